//! What a lab has on the machine, written down before it is made, so that anyone can take it away later.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::netns::Netns;
use crate::process::{self, ProcessId};

/// One file per lab; cleared by a reboot, as everything it names is.
pub const DIRECTORY: &str = "/run/weir-lab";

/// Everything one lab has made, or is about to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Identifies the lab in every name.
    pub id: String,
    /// The process that takes it down at its end; none once `weir lab up` has returned.
    pub owner: Option<ProcessId>,
    /// Network namespaces. Links, addresses, routes and TC programs go with them.
    pub namespaces: Vec<String>,
    /// Programs, as far as they were recorded; whatever else runs in the namespaces belongs to the lab too.
    pub processes: Vec<ProcessId>,
    /// cgroup directories.
    pub cgroups: Vec<PathBuf>,
    /// Directories of pinned BPF maps and links.
    pub pins: Vec<PathBuf>,
    /// Generated configuration, keys and program state.
    pub directories: Vec<PathBuf>,
}

impl State {
    /// The path of a lab's file.
    pub fn path(id: &str) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{id}.json"))
    }

    /// What becomes the file once it is written whole.
    fn unfinished(id: &str) -> PathBuf {
        Self::path(id).with_extension("new")
    }

    /// Writes the file so that a crash leaves the old or the new one, never half of it.
    pub fn save(&self) -> Result<()> {
        let path = Self::path(&self.id);
        let new = Self::unfinished(&self.id);
        let write = || -> Result<()> {
            fs::create_dir_all(DIRECTORY)?;
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            Ok(fs::rename(&new, &path)?)
        };
        write().with_context(|| format!("lab state {}", path.display()))
    }

    /// Every lab on this machine, and the files that could not be read.
    pub fn all() -> (Vec<Self>, Vec<anyhow::Error>) {
        let (mut states, mut errors) = (Vec::new(), Vec::new());
        let Ok(entries) = fs::read_dir(DIRECTORY) else { return (states, errors) };
        let paths = entries.flatten().map(|entry| entry.path());
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let read = || -> Result<Self> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
            match read().with_context(|| format!("lab state {}", path.display())) {
                Ok(state) => states.push(state),
                Err(error) => errors.push(error),
            }
        }
        (states, errors)
    }

    /// Whether the process that looks after this lab is running.
    pub fn is_owned(&self) -> bool {
        self.owner.is_some_and(ProcessId::is_alive)
    }

    /// Takes everything away. The file stays while something is left, so that the next try knows of it.
    pub fn teardown(&self) -> Result<()> {
        let mut left = Vec::new();
        let survivors = process::end(&self.all_processes());
        left.extend(survivors.iter().map(|process| format!("process {}", process.pid)));
        for name in &self.namespaces {
            left.extend(
                Netns::existing(name).delete().err().map(|error| format!("namespace {name}: {error}")),
            );
        }
        // A group is removed after the groups inside it.
        for path in self.cgroups.iter().rev() {
            left.extend(
                cgroup::remove(path).err().map(|error| format!("cgroup {}: {error}", path.display())),
            );
        }
        for path in self.pins.iter().chain(&self.directories) {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    left.push(format!("{}: {error}", path.display()))
                }
                _ => {}
            }
        }
        if !left.is_empty() {
            bail!("lab {} is not wholly gone:\n{}", self.id, left.join("\n"));
        }
        // The lab may have died while it wrote the file anew.
        for path in [Self::unfinished(&self.id), Self::path(&self.id)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The recorded programs and everything in the namespaces: a crash may fall between fork and record.
    fn all_processes(&self) -> Vec<ProcessId> {
        let namespaces = self.namespaces.iter().map(|name| Netns::existing(name));
        let inside = namespaces.flat_map(|netns| netns.processes()).filter_map(ProcessId::of);
        let own = std::process::id();
        let mut all: Vec<_> =
            inside.chain(self.processes.iter().copied()).filter(|process| process.pid != own).collect();
        all.sort_by_key(|process| process.pid);
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_died_while_it_wrote_its_file_leaves_none() {
        let state = State { id: format!("unfinished-{}", std::process::id()), ..State::default() };
        state.save().unwrap();
        fs::write(State::unfinished(&state.id), "{").unwrap();
        state.teardown().unwrap();
        assert!(!State::path(&state.id).exists());
        assert!(!State::unfinished(&state.id).exists());
    }
}
