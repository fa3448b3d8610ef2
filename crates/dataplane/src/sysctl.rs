//! Settings under `/proc/sys/net` of the calling thread's network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::DataplaneError;

/// What was changed, so that it can be put back, also by a later process: the list is kept in a file that, like the
/// settings, does not outlive the system's start.
#[derive(Debug)]
pub struct Sysctls {
    file: PathBuf,
    changed: Vec<(String, String)>,
}

impl Sysctls {
    /// Continues the list of `file`.
    #[must_use]
    pub fn open(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        let changed = pairs.map(|(name, old)| (name.to_owned(), old.to_owned())).collect();
        Self { file: file.to_owned(), changed }
    }

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
        if self.changed.iter().all(|(changed, _)| changed != name) {
            self.changed.push((name.to_owned(), old.to_owned()));
            if let Err(error) = self.save() {
                let file = self.file.display();
                tracing::warn!(%file, %error, "a later process will not know what to put back");
            }
        }
        Ok(())
    }

    fn save(&self) -> std::io::Result<()> {
        let lines: String = self.changed.iter().map(|(name, old)| format!("{name} {old}\n")).collect();
        self.file.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&self.file, lines)
    }

    /// Puts everything back, the last change first. Settings of interfaces that are gone are gone with them.
    pub fn restore(&mut self) {
        while let Some((name, old)) = self.changed.pop() {
            match fs::write(path(&name), &old) {
                Ok(()) => tracing::info!(sysctl = name, to = old, "restored"),
                Err(error) => tracing::debug!(sysctl = name, %error, "not restored"),
            }
        }
        // Without changes there is no file, and others may have theirs beside it.
        let _ = fs::remove_file(&self.file);
        let _ = self.file.parent().map(fs::remove_dir);
    }
}

/// Slashes separate, so that interface names may hold dots.
fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_process_knows_the_first_value() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run/sysctls");
        let mut sysctls = Sysctls::open(&file);
        sysctls.changed.push(("ipv4/ip_forward".to_owned(), "0".to_owned()));
        sysctls.changed.push(("ipv4/tcp_rmem".to_owned(), "1\t2\t3".to_owned()));
        sysctls.save().unwrap();
        assert_eq!(Sysctls::open(&file).changed, sysctls.changed);
    }
}
