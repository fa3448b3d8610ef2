//! Programs started in a namespace and a cgroup, and ended by pid.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::netns::{Netns, enter};

/// How long a program may take to stop by itself.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// A process id that cannot be mistaken for a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// Clock ticks since boot at which it started (field 22 of /proc/PID/stat).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_time: start_time(&stat)? })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        start_time(&stat) == Some(self.start_time) && state(&stat) != Some('Z')
    }
}

/// The command may contain spaces and parentheses: the fields follow the last ')'.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_whitespace())
}

fn start_time(stat: &str) -> Option<u64> {
    fields(stat)?.nth(19)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    fields(stat)?.next()?.chars().next()
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    id: ProcessId,
}

impl Process {
    /// Starts `command` in `netns`, in a process group of its own so that Ctrl-C reaches only the lab, with its
    /// output in `log`.
    pub fn spawn(
        name: &str,
        mut command: Command,
        netns: &Netns,
        cgroup: Option<&Cgroup>,
        log: &Path,
    ) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.with_context(|| format!("log {}", log.display()))?;
        let handle = netns.open().with_context(|| format!("network namespace {}", netns.name()))?;
        let procs = cgroup.map(|cgroup| OpenOptions::new().write(true).open(cgroup.procs())).transpose()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        // SAFETY: between fork and exec the closure only calls setns and write on descriptors opened before.
        unsafe { command.pre_exec(move || settle(&handle, procs.as_ref())) };
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let pid = child.id();
        let id = ProcessId::of(pid).unwrap_or(ProcessId { pid, start_time: 0 });
        Ok(Self { name: name.to_owned(), child, id })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pid and start time.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// The exit status, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// SIGKILL: it ends without a word, as in a power cut. The process is reaped.
    pub fn kill(mut self) {
        // Both fail only when it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, a grace, SIGKILL; the process is reaped.
    pub fn stop(mut self) {
        signal(self.id.pid, libc::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL);
        }
        // Both fail only when it has ended meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settle(netns: &File, procs: Option<&File>) -> io::Result<()> {
    if let Some(mut procs) = procs {
        // "0" is the writer itself, in v1 and v2.
        procs.write_all(b"0")?;
    }
    enter(netns)
}

/// Ends processes that may not be our children: SIGTERM to all, a grace, SIGKILL to what is left. Returns what survived.
pub fn end(processes: &[ProcessId]) -> Vec<ProcessId> {
    let alive = |processes: &[ProcessId]| -> Vec<ProcessId> {
        processes.iter().copied().filter(|process| process.is_alive()).collect()
    };
    let mut left = alive(processes);
    for number in [libc::SIGTERM, libc::SIGKILL] {
        left.iter().for_each(|process| signal(process.pid, number));
        let deadline = Instant::now() + GRACE;
        while !left.is_empty() && Instant::now() < deadline {
            thread::sleep(POLL);
            left = alive(&left);
        }
    }
    left
}

/// Waits until a process that takes something down by itself has ended, as long as that may take.
pub(crate) fn wait_for_end(process: ProcessId) {
    let deadline = Instant::now() + 10 * GRACE;
    while process.is_alive() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// Asks a process to end.
pub(crate) fn signal(pid: u32, number: i32) {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return };
    // SAFETY: kill takes two integers. It fails for a process that has ended, which is what was wanted.
    unsafe { libc::kill(pid, number) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_a_command_name_with_parentheses() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(state(stat), Some('S'));
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_it() {
        let this = ProcessId::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(!ProcessId { start_time: this.start_time + 1, ..this }.is_alive());
        assert!(end(&[ProcessId { start_time: this.start_time + 1, ..this }]).is_empty());
    }
}
