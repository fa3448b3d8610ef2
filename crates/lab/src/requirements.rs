//! What a lab needs of its machine, said before anything is built.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cgroup::Hierarchy;

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (`include/uapi/linux/capability.h`).
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;
/// What the kernel must offer, and what for.
const PATHS: [(&str, &str); 3] = [
    ("/proc/self/ns/net", "network namespaces (CONFIG_NET_NS)"),
    ("/sys/fs/bpf", "the BPF file system (CONFIG_BPF_SYSCALL, /sys mounted)"),
    ("/dev/net/tun", "TAP devices (CONFIG_TUN; `modprobe tun`, in a container --device /dev/net/tun)"),
];

/// Names everything that is missing at once. `programs` are what will be started, `quotas` asks for CPU quotas.
pub(crate) fn check(programs: &[&str], quotas: bool) -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let mut missing = Vec::new();
    if !may_build(&status) {
        missing.push("root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run it with sudo".to_owned());
    }
    let absent = PATHS.iter().filter(|(path, _)| !Path::new(path).exists());
    missing.extend(absent.map(|(path, what)| format!("{path}: the kernel offers no {what}")));
    if quotas && let Err(error) = Hierarchy::find() {
        missing.push(format!("{error:#}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let absent = programs.iter().filter(|program| !found(program));
    missing.extend(absent.map(|program| format!("{program} is not in PATH; scripts/setup installs it")));
    if missing.is_empty() {
        return Ok(());
    }
    bail!("the lab cannot be built here; missing:\n  {}", missing.join("\n  "))
}

fn may_build(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & CAPABILITIES == CAPABILITIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_capabilities_are_needed() {
        assert!(may_build("Name:\tweir\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_build("CapEff:\t0000000000001000\n"));
        assert!(!may_build("CapEff:\t0000000000000000\n"));
        assert!(!may_build(""));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = check(&["weir-no-such-program"], false).unwrap_err().to_string();
        assert!(error.contains("weir-no-such-program is not in PATH"), "{error}");
    }
}
