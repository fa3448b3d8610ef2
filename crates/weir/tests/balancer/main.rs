//! A balancer as a process on a port of its own network namespace: start, changes, a kill, a restart, the end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod network;
mod process;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use network::{Outside, tagged_arp_sender, wait_for};
use process::{Balancer, Namespace, VIPS, command, directory, run, write};
use serde_json::Value;

const FLOW: [&str; 6] =
    ["explain", "flow", "--source", "198.51.100.7:40000", "--destination", "192.0.2.10:80"];

#[test]
fn a_balancer_lives_is_changed_and_ends() {
    let namespace = Namespace::new("life");
    let directory = directory(VIPS);
    let balancer = Balancer::start(&namespace, directory.path(), "keep", &[]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], &status["in_step"]), (&"file".into(), &true.into()), "{status}");
    let slots =
        |status: &Value, backend: usize| status["vips"][0]["backends"][backend]["slots"].as_u64().unwrap();
    assert!(slots(&status, 0).abs_diff(slots(&status, 1)) <= 1, "{status}");
    let before = balancer.json(&FLOW);
    assert_eq!((&before["vip"], &before["verdict"]), (&"web".into(), &"forwarded".into()), "{before}");

    let relayed = balancer.json(&[&FLOW[..], &["--packet", "icmp-error"]].concat());
    assert_eq!((&relayed["verdict"], &relayed["backend"]), (&"icmp_relayed".into(), &before["backend"]));
    let addresses = ["explain", "flow", "--source", "198.51.100.7", "--destination", "192.0.2.10"];
    let verdict = |kind| balancer.json(&[&addresses[..], &["--packet", kind]].concat())["verdict"].clone();
    assert_eq!(
        (verdict("echo-request"), verdict("fragment")),
        ("echo_answered".into(), "drop_fragment".into())
    );

    // Drained by a file that is put into force.
    let drained = VIPS.replace("address = \"10.0.0.12\"", "address = \"10.0.0.12\"\nweight = 0");
    let file = directory.path().join("drained.toml");
    write(&file, &drained);
    let file = file.to_str().unwrap();
    assert_eq!(balancer.said(&["apply", file, "--dry-run"]), "web: would be changed\n");
    assert_eq!(balancer.said(&["apply", file]), "web: changed\n");
    assert_eq!(balancer.said(&["apply", file]), "nothing to change\n");
    let backends = balancer.said(&["get", "backends"]);
    let b = backends.lines().find(|line| line.starts_with("web  b")).unwrap();
    assert!(b.contains("drained") && b.contains("  0  "), "{backends}");
    assert_eq!(balancer.end("-KILL"), None);

    // What was changed holds, in the kernel and after a restart.
    let balancer = Balancer::start(&namespace, directory.path(), "keep", &[]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], &status["generation"]), (&"api".into(), &2.into()), "{status}");
    assert_eq!((slots(&status, 0), slots(&status, 1)), (1021, 0));
    // A connection that begins goes to who is left, one from before the change as soon as the drain is over.
    assert_eq!(balancer.json(&[&FLOW[..], &["--first"]].concat())["backend"], "a");
    let follows = || balancer.json(&FLOW)["backend"] == "a";
    assert!((0..50).any(|_| follows() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
    assert_eq!(balancer.end("-TERM"), Some(0));

    // Back to the file, and nothing is left behind.
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &["--reset-from-file"]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], slots(&status, 1) > 500), (&"file".into(), true), "{status}");
    assert_eq!(balancer.end("-TERM"), Some(0));
    assert!(!namespace.port().contains("xdp"));
}

/// Its backend is somewhere that no route leads to; that of the second VIP is in a VLAN, and asked there.
const CHECKED: &str = r#"
[[vips]]
name = "web"
address = "192.0.2.10"
port = 80
[vips.health]
interval = "200ms"
timeout = "100ms"
[[vips.backends]]
name = "a"
address = "198.51.100.11"
mac = "02:00:00:00:00:0b"
[[vips]]
name = "dns"
address = "192.0.2.53"
port = 53
protocol = "udp"
segment = "802.1q:100"
[vips.health]
kind = "arp"
interval = "200ms"
timeout = "100ms"
[[vips.backends]]
name = "b"
address = "10.0.200.11"
segment = "802.1q:200"
"#;
const SOURCE: &str = "[[balancer.source]]\nsegment = \"802.1q:200\"\naddress = \"10.0.200.5\"\n";
const NOT_SENT: &str = "weir_balancer_backend_check_not_sent{vip=\"web\",backend=\"a\"}";

#[test]
fn checks_that_cannot_be_sent_say_why() {
    let namespace = Namespace::new("checks");
    let directory = directory(CHECKED);
    write(&directory.path().join("more.toml"), SOURCE);
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    let backend = |field: &str| balancer.json(&["get", "status"])["vips"][1]["backends"][0][field].clone();
    wait_for("a check that is not sent", || backend("why") == "check-not-sent");
    let reason = backend("not_sent").as_str().unwrap().to_owned();
    assert!(
        reason.contains("198.51.100.11:80: could not be asked: find a route: Network is unreachable"),
        "{reason}"
    );
    assert_eq!((backend("health"), backend("usable")), ("unknown".into(), false.into()));
    let shown = balancer.said(&["get", "backends"]);
    assert!(shown.contains("check-not-sent") && shown.contains(&reason), "{shown}");
    wait_for("the metric", || balancer.metric(NOT_SENT) == Some(1.0));

    // Whoever can be asked and does not answer has failed; a VIP whose backends all fail goes on.
    namespace.ip("route add 198.51.100.0/24 dev eth0");
    wait_for("a check that fails", || backend("health") == "down");
    assert_eq!((backend("why"), backend("not_sent")), ("kept-though-failed".into(), Value::Null));
    wait_for("the metric", || balancer.metric(NOT_SENT) == Some(0.0));

    let sender = Outside::open(&namespace).frames(|frame| tagged_arp_sender(frame, 200));
    assert_eq!(sender, [10, 0, 200, 5]);
    assert_eq!(balancer.end("-TERM"), Some(0));
}

#[test]
fn the_port_is_followed() {
    let namespace = Namespace::new("port");
    let directory = directory(VIPS);
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    let port = || balancer.json(&["get", "status"])["port"].clone();
    let forwarded = || balancer.metric("weir_balancer_packets_total{reason=\"forwarded\"}").unwrap_or(0.0);
    let is_balanced = |what: &str| {
        let (outside, before) = (Outside::open(&namespace), forwarded());
        wait_for(what, || {
            outside.send_syn(&namespace);
            forwarded() > before
        });
    };
    is_balanced("a frame to the port");
    namespace.ip("link set eth0 address 02:00:00:00:00:77");
    is_balanced("a frame to the port's new address");
    assert_eq!(balancer.metric("weir_balancer_port_changes_total{to=\"address\"}"), Some(1.0));

    namespace.ip("link del eth0");
    wait_for("a port that is away", || port() == "away");
    let ready = balancer.open("/readyz");
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("there is no interface eth0"), "{ready}");
    assert_eq!(balancer.metric("weir_balancer_port_taken"), Some(0.0));
    namespace.make_port();
    wait_for("a port that is back", || port() == "taken");
    wait_for("readiness", || balancer.open("/readyz").starts_with("HTTP/1.0 200"));
    assert_eq!(balancer.metric("weir_balancer_port_taken"), Some(1.0));
    is_balanced("a frame to the port that was made again");
    assert_eq!(balancer.end("-TERM"), Some(0));
    assert!(!namespace.port().contains("xdp"));
}

/// Links of programs come and go without a word of the kernel.
#[test]
fn a_port_that_somebody_else_had_is_taken_when_it_is_free() {
    let namespace = Namespace::new("taken");
    let directory = directory(VIPS);
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    let port = || balancer.json(&["get", "status"])["port"].clone();
    namespace.ip("link del eth0");
    wait_for("a port that is away", || port() == "away");
    namespace.ip("link add new0 type veth peer name eth1");
    let other = namespace.attach_other("new0");
    namespace.ip("link set new0 name eth0");
    // Addresses that come of themselves are announced, and everything is looked at again then.
    for end in ["eth0", "eth1"] {
        namespace.ip(&format!("link set {end} addrgenmode none"));
        namespace.ip(&format!("link set {end} up"));
    }
    wait_for("a port that is refused", || port() == "refused");
    let error = balancer.json(&["get", "status"])["error"].as_str().unwrap().to_owned();
    assert!(error.contains("empty_xdp"), "{error}");
    drop(other);
    wait_for("a port that is taken", || port() == "taken");
    assert!(namespace.port().contains("xdp"));
    assert_eq!(balancer.end("-TERM"), Some(0));
}

#[test]
fn a_drain_from_before_a_restart_is_shown() {
    let namespace = Namespace::new("drain");
    let directory = directory(&VIPS.replace("\"1s\"", "\"1h\""));
    let balancer = Balancer::start(&namespace, directory.path(), "keep", &[]);
    wait_for("the metric", || balancer.metric("weir_balancer_drains") == Some(0.0));
    let file = directory.path().join("drained.toml");
    let drained = VIPS.replace("\"1s\"", "\"1h\"");
    write(&file, &drained.replace("address = \"10.0.0.12\"", "address = \"10.0.0.12\"\nweight = 0"));
    balancer.said(&["apply", file.to_str().unwrap()]);
    assert_eq!(balancer.json(&["get", "status"])["vips"][0]["draining"], true);
    assert_eq!(balancer.end("-KILL"), None);
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    assert_eq!(balancer.json(&["get", "status"])["vips"][0]["draining"], true);
    wait_for("the metric", || balancer.metric("weir_balancer_drains") == Some(1.0));
    assert_eq!(balancer.end("-TERM"), Some(0));
}

#[test]
fn a_port_with_jumbo_frames_is_refused_with_a_way_out() {
    let namespace = Namespace::new("jumbo");
    let directory = directory(VIPS);
    for end in ["eth0", "eth1"] {
        run(&["ip", "-n", &namespace.0, "link", "set", end, "mtu", "9000"]);
    }
    let refused = command(&namespace, directory.path(), "native", "keep").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("eth0 (MTU 9000) refuses XDP") && said.contains("lower its MTU"), "{said}");
    let left = Path::new("/sys/fs/bpf/weir").join(&namespace.0);
    assert!(!left.exists(), "a start that fails leaves nothing");

    // The two ways out that it names.
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    assert_eq!(balancer.end("-TERM"), Some(0));
    for end in ["eth0", "eth1"] {
        run(&["ip", "-n", &namespace.0, "link", "set", end, "mtu", "3498"]);
    }
    let mut native = command(&namespace, directory.path(), "native", "detach");
    let balancer = Balancer::run(&namespace, directory.path(), &mut native);
    let link = Command::new("ip").args(["-n", &namespace.0, "link", "show", "eth0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&link.stdout).contains(" xdp "));
    assert_eq!(balancer.end("-TERM"), Some(0));
}

#[test]
fn a_stop_during_the_start_takes_down_what_was_built() {
    let namespace = Namespace::new("early");
    let directory = directory(VIPS);
    let mut command = command(&namespace, directory.path(), "generic", "detach");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.by_ref().any(|line| line.contains("VIPs read")), "it says what it starts with");
    run(&["kill", "-TERM", &child.id().to_string()]);
    let said: Vec<String> = log.collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said:#?}");
    assert!(!Path::new("/sys/fs/bpf/weir").join(&namespace.0).exists(), "{said:#?}");
}
