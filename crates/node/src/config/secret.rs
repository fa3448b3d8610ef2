//! Keys and tokens: read from files that only their owner can read, shown to nobody.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest key file that is read.
const MAX_OCTETS: u64 = 4096;

/// Octets that are wiped when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a file is not a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than the owner can read it.
    #[error("{file} has mode {mode:04o}, others can read it; run: chmod 600 {file}")]
    Mode {
        /// The file.
        file: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Too short to be a secret, or too long to be meant as one.
    #[error("{file} holds {octets} octets, expected {min} to {MAX_OCTETS}")]
    Length {
        /// The file.
        file: String,
        /// Octets without the line end.
        octets: usize,
        /// Fewest allowed.
        min: usize,
    },
}

impl Secret {
    /// A secret from memory.
    #[must_use]
    pub fn new(octets: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(octets.into()))
    }

    /// Reads a file; one line end at its end is not part of the secret.
    ///
    /// # Errors
    /// If the file cannot be read, is readable for others, or is shorter than `min` octets.
    pub fn read(path: &Path, min: usize) -> Result<Self, SecretError> {
        let file = path.display().to_string();
        let read = |source| SecretError::Read { file: file.clone(), source };
        let handle = std::fs::File::open(path).map_err(read)?;
        let mode = handle.metadata().map_err(read)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Mode { file, mode });
        }
        let mut octets = Zeroizing::new(Vec::new());
        handle.take(MAX_OCTETS + 2).read_to_end(&mut octets).map_err(read)?;
        if octets.last() == Some(&b'\n') {
            octets.pop();
        }
        if octets.last() == Some(&b'\r') {
            octets.pop();
        }
        if octets.len() < min || octets.len() as u64 > MAX_OCTETS {
            return Err(SecretError::Length { file, octets: octets.len(), min });
        }
        Ok(Self(octets))
    }

    /// The octets, for the one who computes with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Compares without telling by its duration where the first difference is; the length is not secret.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_line_end_is_not_part_of_the_key() {
        for content in [&b"edge-secret-1"[..], b"edge-secret-1\n", b"edge-secret-1\r\n"] {
            let (_dir, path) = file(content, 0o600);
            assert!(Secret::read(&path, 1).unwrap().matches(b"edge-secret-1"));
        }
    }

    #[test]
    fn refusals_name_the_file_and_the_numbers() {
        let (_dir, path) = file(b"edge-secret-1", 0o640);
        let text = Secret::read(&path, 1).unwrap_err().to_string();
        assert!(text.contains("0640") && text.contains("chmod 600"), "{text}");
        let (_dir, path) = file(b"\n", 0o400);
        assert!(matches!(Secret::read(&path, 1), Err(SecretError::Length { octets: 0, .. })));
        let (_dir, path) = file(&[b'x'; 4097], 0o400);
        assert!(matches!(Secret::read(&path, 1), Err(SecretError::Length { octets: 4097, .. })));
        assert!(matches!(Secret::read(&path.join("absent"), 1), Err(SecretError::Read { .. })));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(*b"edge-secret-1")), "Secret(…)");
    }
}
