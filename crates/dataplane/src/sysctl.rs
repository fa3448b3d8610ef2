//! Settings under `/proc/sys/net` of the calling thread's network namespace.

use std::fs;
use std::path::PathBuf;

use crate::error::DataplaneError;

/// What was changed, so that it can be put back.
#[derive(Debug, Default)]
pub struct Sysctls {
    changed: Vec<(String, String)>,
}

impl Sysctls {
    /// Writes `value` unless it is there already; the change is logged.
    ///
    /// # Errors
    /// If the setting does not exist or cannot be written.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), DataplaneError> {
        let path = path(name);
        let failed = |operation| move |source| DataplaneError::system(operation, name, source);
        let old = fs::read_to_string(&path).map_err(failed("read sysctl"))?;
        let old = old.trim();
        if old == value {
            return Ok(());
        }
        fs::write(&path, value).map_err(failed("write sysctl"))?;
        tracing::info!(sysctl = name, from = old, to = value, "changed");
        self.changed.push((name.to_owned(), old.to_owned()));
        Ok(())
    }

    /// Puts everything back, the last change first. Settings of interfaces that are gone are gone with them.
    pub fn restore(&mut self) {
        while let Some((name, old)) = self.changed.pop() {
            match fs::write(path(&name), &old) {
                Ok(()) => tracing::info!(sysctl = name, to = old, "restored"),
                Err(error) => tracing::debug!(sysctl = name, %error, "not restored"),
            }
        }
    }
}

/// Slashes separate, so that interface names may hold dots.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
