//! Network namespaces by name, entered with setns(2) so that /sys stays the machine's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

use crate::link::ip;

/// Where ip(8) keeps the handles.
const HANDLES: &str = "/run/netns";

/// A named network namespace. Dropping it does not delete it: the state file decides what lives.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates the namespace with its loopback up and without IPv6 autoconfiguration chatter.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link", "set", "lo", "up"])?;
        netns.sysctl(&[
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ])?;
        Ok(netns)
    }

    /// A namespace that something else created.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle, to be passed to setns(2) in a child.
    pub fn open(&self) -> io::Result<File> {
        File::open(self.path())
    }

    /// Runs ip(8) on it.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Runs `work` on a thread that has entered the namespace. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let handle = self.open().with_context(|| format!("network namespace {}", self.name))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&handle)?;
                work()
            });
            thread.join().map_err(|_| anyhow::anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// Writes /proc/sys entries of the namespace. Entries that this kernel lacks are left out.
    pub fn sysctl(&self, entries: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in entries {
                match fs::write(Path::new("/proc/sys").join(key), value) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other.with_context(|| format!("sysctl {key} = {value}"))?,
                }
            }
            Ok(())
        })
    }

    /// Process ids whose network namespace this is.
    pub fn processes(&self) -> Vec<u32> {
        let Ok(handle) = fs::metadata(self.path()) else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let inside = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|ns| ns.ino() == handle.ino() && ns.dev() == handle.dev())
        };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(inside).collect()
    }

    /// Whether the handle is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Removes the handle; the kernel removes the links with the last process.
    pub fn delete(&self) -> Result<()> {
        if self.exists() { ip(&["netns", "del", &self.name]) } else { Ok(()) }
    }

    fn path(&self) -> PathBuf {
        Path::new(HANDLES).join(&self.name)
    }
}

/// Moves the calling thread (or a freshly forked child) into a namespace. Async-signal-safe.
pub(crate) fn enter(handle: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that `handle` keeps open, and touches no memory of ours.
    match unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
