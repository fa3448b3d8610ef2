//! The command line as a person meets it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn weir(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).output().unwrap()
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

/// Names of the subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let name =
        |line: &str| line.strip_prefix("  ").and_then(|l| l.split_whitespace().next()).map(str::to_owned);
    lines
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("   "))
        .filter_map(name)
        .collect()
}

#[test]
fn every_subcommand_explains_itself() {
    fn visit(path: &[String], count: &mut usize) {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = weir(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let help = text(&output.stdout);
        assert!(help.contains("Usage: weir") && help.len() > 100, "{arguments:?}: {help}");
        *count += 1;
        for name in subcommands(&help).into_iter().filter(|name| name != "help") {
            visit(&[path, &[name]].concat(), count);
        }
    }
    let mut count = 0;
    visit(&[], &mut count);
    assert!(count >= 13, "only {count} help texts");
}

#[test]
fn own_commands_have_examples() {
    for command in [
        "gateway",
        "mapserver",
        "controller",
        "balancer",
        "run",
        "check",
        "get",
        "apply",
        "explain",
        "completions",
    ] {
        let help = text(&weir(&[command, "--help"]).stdout);
        assert!(help.contains("Examples:\n  weir "), "{command}: {help}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_64() {
    for arguments in [
        &["gatway"][..],
        &["check"],
        &["get"],
        &["get", "weathers"],
        &["gateway"],
        &["balancer"],
        &["explain"],
        &["explain", "flow", "--source", "192.0.2.1:1"],
        &[
            "explain",
            "flow",
            "--source",
            "192.0.2.1:1",
            "--destination",
            "192.0.2.10:80",
            "--segment",
            "vlan:1",
        ],
        &["get", "weights", "-o", "xml"],
    ] {
        let output = weir(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains("error:"), "{arguments:?}");
    }
}

#[test]
fn the_ends_of_a_flow_are_told_their_forms() {
    for wrong in ["192.0.2.1:70000", "192.0.2.1:", "client:80"] {
        let output = weir(&["explain", "flow", "--source", wrong, "--destination", "192.0.2.10"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64));
        assert!(
            said.contains("is not ADDRESS:PORT, e.g. 192.0.2.10:80") && said.contains("nor ADDRESS"),
            "{said}"
        );
    }
}

fn write(directory: &Path, name: &str, content: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

const RIGHT: &str = "[node]\nname = \"control\"\n[mapserver]\nlisten = [\"127.0.0.1\"]\n";
const WRONG: &str = "[node]\nname = \"\"\n[mapserver]\nlisten = [\"x\"]\nsites = 1\n";

#[test]
fn check_prints_everything_and_exits_with_0_or_1() {
    let directory = tempfile::tempdir().unwrap();
    let right = write(directory.path(), "right.toml", RIGHT);
    let wrong = write(directory.path(), "wrong.toml", WRONG);
    let output = weir(&["check", &right]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("{right}: right, runs mapserver as control\n"));
    let output = weir(&["check", &wrong, &right]);
    assert_eq!(output.status.code(), Some(1));
    let complaints = text(&output.stderr);
    for line in [
        "line 5: mapserver.sites: unknown key; did you mean `site`?",
        "line 2: node.name: required",
        "line 4: mapserver.listen[0]: `x` is not ADDRESS",
        "wrong.toml: 3 problems",
    ] {
        assert!(complaints.contains(line), "{line} is missing in\n{complaints}");
    }
    assert!(text(&output.stdout).contains("right.toml: right"));
    assert_eq!(weir(&["check", "/nonexistent.toml"]).status.code(), Some(1));
}

const VIPS: &str = "[[vips]]\nname = \"web\"\naddress = \"192.0.2.10\"\nport = 80\n";

#[test]
fn check_knows_a_balancer_and_its_vips() {
    let directory = tempfile::tempdir().unwrap();
    let vips = write(directory.path(), "vips.toml", VIPS);
    let config = "[node]\nname = \"b1\"\n[balancer]\ninterface = \"eth0\"\nservices = \"vips.toml\"\n";
    let config = write(directory.path(), "balancer.toml", config);
    let output = weir(&["check", &vips, &config]);
    let expected = format!("{vips}: right, 1 VIPs with 0 backends\n{config}: right, runs balancer as b1\n");
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    write(directory.path(), "vips.toml", &VIPS.replace("80", "0\nadress = 1"));
    for file in [&vips, &config] {
        let output = weir(&["check", file]);
        assert_eq!(output.status.code(), Some(1));
        let complaints = text(&output.stderr);
        for line in [
            format!("{vips}: line 5: vips[0].adress: unknown key; did you mean `address`?"),
            format!("{vips}: line 4: vips[0].port: required: the port that clients send to"),
            format!("{file}: 2 problems"),
        ] {
            assert!(complaints.contains(&line), "{line} is missing in\n{complaints}");
        }
    }
    assert_eq!(weir(&["balancer", "--config", &config]).status.code(), Some(78));
}

#[test]
fn a_role_with_a_wrong_file_exits_with_78() {
    let directory = tempfile::tempdir().unwrap();
    let right = write(directory.path(), "right.toml", RIGHT);
    let wrong = write(directory.path(), "wrong.toml", WRONG);
    assert_eq!(weir(&["mapserver", "--config", &wrong]).status.code(), Some(78));
    let output = weir(&["controller", "--config", &right]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("has no section [controller]"));
}

#[test]
fn nobody_answers() {
    // Port 1 is reserved and nothing listens there.
    let output = weir(&["get", "weights", "--server", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("see --server"), "{}", text(&output.stderr));
    let output = weir(&["explain", "web", "--server", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let flow = ["explain", "flow", "--source", "198.51.100.7:40000", "--destination", "[::1]:80"];
    let output = weir(&[&flow[..], &["--server", "http://127.0.0.1:1"]].concat());
    assert!(text(&output.stderr).contains("see --server"), "{}", text(&output.stderr));
    // The default kind is one like the others when it is written down.
    let first = ["--packet", "transport", "--first", "--server", "http://127.0.0.1:1"];
    let output = weir(&[&flow[..], &first].concat());
    assert!(text(&output.stderr).contains("see --server"), "{}", text(&output.stderr));
    let directory = tempfile::tempdir().unwrap();
    let vips = write(directory.path(), "vips.toml", VIPS);
    assert_eq!(weir(&["apply", &vips, "--server", "http://127.0.0.1:1"]).status.code(), Some(1));
    let wrong = write(directory.path(), "vips.toml", &VIPS.replace("192", "x"));
    let output = weir(&["apply", &wrong, "--server", "http://127.0.0.1:1"]);
    assert!(text(&output.stderr).contains("vips[0].address"), "{}", text(&output.stderr));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty());
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&weir(&["completions", shell]).stdout);
        assert!(script.contains("mapserver") && script.contains("token-file"), "{shell}");
    }
}
