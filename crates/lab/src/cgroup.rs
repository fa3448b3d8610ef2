//! CPU quotas in cgroup v1 (`cpu.cfs_quota_us`) and v2 (`cpu.max`).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// The kernel refuses quotas below 1 ms (kernel/sched/core.c, min_cfs_quota_period).
const LEAST_QUOTA_US: f64 = 1000.0;
/// A throttled task waits for the next period at most: the shorter, the smaller the tail it adds.
const LEAST_PERIOD_US: f64 = 5000.0;
/// The kernel's longest period.
const MOST_PERIOD_US: f64 = 1_000_000.0;

/// Real time of a group in each second and on each CPU: many times what the control path takes, and two labs have room
/// beside each other.
const REAL_TIME_BUDGET_US: &str = "400000";

/// Which interface carries the cpu controller here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The mounted hierarchy that has the cpu controller.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    version: Version,
    root: PathBuf,
}

/// Quota and period in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// CPU time per period.
    pub quota_us: u64,
    /// Length of a period.
    pub period_us: u64,
}

impl Quota {
    /// The shortest period in which `share` of one CPU is still a quota that the kernel takes.
    pub fn from_share(share: f64) -> Self {
        let share = share.clamp(LEAST_QUOTA_US / MOST_PERIOD_US, 64.0);
        let period = (LEAST_QUOTA_US / share).clamp(LEAST_PERIOD_US, MOST_PERIOD_US);
        Self { quota_us: microseconds((share * period).max(LEAST_QUOTA_US)), period_us: microseconds(period) }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "callers clamp to 1000..=64_000_000"
)]
fn microseconds(value: f64) -> u64 {
    value.round() as u64
}

impl Hierarchy {
    /// Finds it among the mounts; v1 first, because a v2 mount without the controller may lie beside it.
    pub fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        find_in(&mounts, |root| {
            fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "cpu"))
        })
        .ok_or_else(|| anyhow!("no cgroup hierarchy with the cpu controller is mounted; use --service model"))
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where a group of this name lies.
    pub fn path(&self, group: &str) -> PathBuf {
        self.root.join(group)
    }

    /// Creates a group. On v2 the parent must delegate the controller.
    pub fn create(&self, group: &str) -> Result<Cgroup> {
        if self.version == Version::V2 {
            let control = self.root.join("cgroup.subtree_control");
            fs::write(&control, "+cpu").with_context(|| {
                format!(
                    "{}: cannot delegate the cpu controller (processes in this cgroup?)",
                    control.display()
                )
            })?;
        }
        let path = self.path(group);
        fs::create_dir(&path).with_context(|| format!("cgroup {}", path.display()))?;
        Ok(Cgroup { version: self.version, path })
    }
}

/// One group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    version: Version,
    path: PathBuf,
}

impl Cgroup {
    /// The file that takes process ids.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Sets the quota, and a burst of the same size where the kernel has it: what an idle period left over
    /// may be used in the next, so that two requests close together are not throttled.
    pub fn limit(&self, quota: Quota) -> Result<()> {
        let Quota { quota_us, period_us } = quota;
        match self.version {
            Version::V1 => {
                // Burst and quota must fit each other at every step, so the burst goes first.
                self.write_if_there("cpu.cfs_burst_us", "0")?;
                self.write("cpu.cfs_quota_us", "-1")?;
                self.write("cpu.cfs_period_us", &period_us.to_string())?;
                self.write("cpu.cfs_quota_us", &quota_us.to_string())?;
                self.write_if_there("cpu.cfs_burst_us", &quota_us.to_string())
            }
            Version::V2 => {
                self.write_if_there("cpu.max.burst", "0")?;
                self.write("cpu.max", &format!("{quota_us} {period_us}"))?;
                self.write_if_there("cpu.max.burst", &quota_us.to_string())
            }
        }
    }

    /// The largest weight against everything else on the machine: what a group may use is bounded by its quota or by
    /// the load, and a compiler running beside the lab must not be what is measured.
    pub fn favour(&self) -> Result<()> {
        match self.version {
            Version::V1 => self.write("cpu.shares", "262144"),
            Version::V2 => self.write("cpu.weight", "10000"),
        }
    }

    /// Lets programs of this group take a real-time priority, where the kernel keeps a budget of that per group
    /// (CONFIG_RT_GROUP_SCHED) and other groups have left something of it.
    pub fn allow_real_time(&self) {
        let budget = self.write_if_there("cpu.rt_runtime_us", REAL_TIME_BUDGET_US);
        if let Err(error) = budget {
            tracing::warn!(%error, "the control path has ordinary priority");
        }
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))
    }

    fn write_if_there(&self, file: &str, value: &str) -> Result<()> {
        if self.path.join(file).exists() { self.write(file, value) } else { Ok(()) }
    }
}

/// Removes a group; one that is gone already is fine. Exiting processes leave it a moment after they were reaped.
pub fn remove(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && tries < 100 => {
                tries += 1;
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn find_in(mounts: &str, has_cpu: impl Fn(&Path) -> bool) -> Option<Hierarchy> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mounted: Vec<_> = fields.filter(|fields| fields.len() >= 4).collect();
    let v1 =
        mounted.iter().find(|fields| fields[2] == "cgroup" && fields[3].split(',').any(|name| name == "cpu"));
    if let Some(fields) = v1 {
        return Some(Hierarchy { version: Version::V1, root: PathBuf::from(fields[1]) });
    }
    let v2 = mounted.iter().find(|fields| fields[2] == "cgroup2" && has_cpu(Path::new(fields[1])))?;
    Some(Hierarchy { version: Version::V2, root: PathBuf::from(v2[1]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_shares_get_the_least_quota_in_a_longer_period() {
        assert_eq!(Quota::from_share(0.04), Quota { quota_us: 1000, period_us: 25_000 });
        assert_eq!(Quota::from_share(0.5), Quota { quota_us: 2500, period_us: 5000 });
        assert_eq!(Quota::from_share(2.0), Quota { quota_us: 10_000, period_us: 5000 });
    }

    #[test]
    fn no_share_leaves_the_kernels_bounds() {
        for share in [f64::MIN_POSITIVE, 1e-6, 0.001, 0.2, 1.0, 64.0, 1e9] {
            let Quota { quota_us, period_us } = Quota::from_share(share);
            assert!(quota_us >= 1000, "{share}: quota {quota_us}");
            assert!((1000..=1_000_000).contains(&period_us), "{share}: period {period_us}");
        }
    }

    #[test]
    fn v2_without_the_controller_is_passed_over() {
        let hybrid =
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let found = find_in(hybrid, |_| false).unwrap();
        assert_eq!((found.version, found.root.to_str()), (Version::V1, Some("/sys/fs/cgroup/cpu")));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(find_in(unified, |_| true).unwrap().version, Version::V2);
        assert!(find_in(unified, |_| false).is_none());
    }

    #[test]
    fn cpuset_is_not_cpu() {
        let mounts = "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n";
        assert!(find_in(mounts, |_| false).is_none());
    }
}
