//! `deploy/`: the examples are right as they are, and the units start what the examples configure.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Example and the role it runs, whose file is `/etc/weir/ROLE.toml`.
const EXAMPLES: [(&str, &str); 5] = [
    ("client-gateway.toml", "gateway"),
    ("edge-gateway.toml", "gateway"),
    ("mapserver.toml", "mapserver"),
    ("controller.toml", "controller"),
    ("balancer.toml", "balancer"),
];

/// The file with the VIPs that the balancer's example names.
const SERVICES: &str = "balancer-services.toml";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// The files that an example names for keys and tokens.
fn secrets(text: &str) -> Vec<&str> {
    let named = text.lines().filter_map(|line| line.split_once("_file = \""));
    named.map(|(_, value)| value.trim_end_matches('"')).collect()
}

#[test]
fn examples_are_right() {
    for (example, role) in EXAMPLES {
        let directory = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(deploy().join("examples").join(example)).unwrap();
        assert!(!secrets(&text).is_empty(), "{example}");
        for secret in secrets(&text) {
            let path = directory.path().join(secret);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                secret.starts_with(&format!("{role}/")),
                "{example}: {secret} is in another role's folder"
            );
        }
        fs::copy(deploy().join("examples").join(SERVICES), directory.path().join(SERVICES)).unwrap();
        let file = directory.path().join(format!("{role}.toml"));
        fs::write(&file, &text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").arg(&file).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(output.status.success() && said.contains(&format!("runs {role} as")), "{example}: {said}");
        assert!(text.contains(&format!("state_dir = \"/var/lib/weir/{role}\"")), "{example}");
    }
}

#[test]
fn every_example_is_tested() {
    let found = fs::read_dir(deploy().join("examples")).unwrap().count();
    assert_eq!(found, EXAMPLES.len() + 1);
}

#[test]
fn the_vips_of_the_example_are_right() {
    let file = deploy().join("examples").join(SERVICES);
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").arg(&file).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("right, 2 VIPs with 3 backends\n"), "{said}");
    let balancer = fs::read_to_string(deploy().join("examples/balancer.toml")).unwrap();
    assert!(balancer.contains(&format!("services = \"{SERVICES}\"")));
}

#[test]
fn units_do_not_retry_what_cannot_help() {
    for role in ["gateway", "mapserver", "controller", "balancer"] {
        let unit = fs::read_to_string(deploy().join(format!("systemd/weir-{role}.service"))).unwrap();
        for line in [
            &format!("ExecStart=/usr/bin/weir {role} --config /etc/weir/{role}.toml"),
            &format!("StateDirectory=weir/{role}"),
            "RestartPreventExitStatus=64 78",
            "Type=notify",
        ] {
            assert!(unit.lines().any(|found| found == line), "{role}: {line}");
        }
        // systemd restarts after a failed ExecStartPre whatever its status.
        assert!(!unit.contains("ExecStartPre"), "{role}");
    }
}

/// Nobody publishes by the balancer: it needs no priority, and may have none.
#[test]
fn the_control_path_may_go_first() {
    for (role, line) in [
        ("gateway", "LimitRTPRIO=1"),
        ("mapserver", "LimitRTPRIO=1"),
        ("controller", "LimitRTPRIO=1"),
        ("balancer", "RestrictRealtime=yes"),
    ] {
        let unit = fs::read_to_string(deploy().join(format!("systemd/weir-{role}.service"))).unwrap();
        let found: Vec<_> =
            unit.lines().filter(|found| found.contains("RT") || found.contains("Realtime")).collect();
        assert_eq!(found, [line], "{role}");
    }
}

/// What may do least does least harm: the balancer needs no more than its own comment says.
#[test]
fn the_balancer_has_four_capabilities() {
    let unit = fs::read_to_string(deploy().join("systemd/weir-balancer.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    assert_eq!(line, "CAP_NET_ADMIN CAP_NET_RAW CAP_BPF CAP_PERFMON");
    assert!(unit.lines().any(|line| line.contains("AF_PACKET") && line.contains("AF_NETLINK")));
}
