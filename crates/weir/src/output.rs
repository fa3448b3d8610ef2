//! Exit codes and the two streams.

use std::io::{self, Write as _};

/// Something failed or was refused.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// The configuration of a role is wrong (`EX_CONFIG`); starting again cannot help.
pub(crate) const CONFIG: u8 = 78;

/// Writes to standard output; a reader that went away is an error that [`is_broken_pipe`] knows.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error, where nobody may be listening.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `weir get … | head -1` is not a failure.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(io)
}
