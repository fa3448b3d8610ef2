//! `weir balancer check-backend` on a server in a network namespace, wrong and right. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use dataplane::netns::NetnsGuard;
use serde_json::Value;

/// A server and a client on one cable; removed when dropped.
struct Site(String);

impl Site {
    fn new(test: &str) -> Self {
        let site = Self(format!("cb-{}-{test}", std::process::id()));
        for end in ["s", "c"] {
            run("ip", &["netns", "add", &site.name(end)]);
        }
        let (server, client) = (site.name("s"), site.name("c"));
        run(
            "ip",
            &["link", "add", "e0", "netns", &server, "type", "veth", "peer", "name", "e0", "netns", &client],
        );
        for (end, number) in [("s", 2), ("c", 1)] {
            site.sh(end, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
            site.sh(end, "ip link set e0 up");
            site.sh(end, &format!("ip address add 10.0.0.{number}/24 dev e0"));
            site.sh(end, &format!("ip address add fd00::{number}/64 dev e0 nodad"));
        }
        site.sh("s", "ip route add default via 10.0.0.1 && ip -6 route add default via fd00::1");
        site
    }

    fn name(&self, end: &str) -> String {
        format!("{}-{end}", self.0)
    }

    fn command(&self, end: &str, command: &[&str]) -> Output {
        let name = self.name(end);
        Command::new("ip").args(["netns", "exec", &name]).args(command).output().unwrap()
    }

    fn sh(&self, end: &str, script: &str) {
        let output = self.command(end, &["sh", "-ec", script]);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Exit code, and what is not right by its name.
    fn check(&self, options: &[&str]) -> (Option<i32>, Vec<Value>) {
        let weir = env!("CARGO_BIN_EXE_weir");
        let arguments = [&[weir, "balancer", "check-backend", "-o", "json"], options].concat();
        let output = self.command("s", &arguments);
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(answer["ready"], output.status.success());
        let findings = answer["findings"].as_array().unwrap().iter();
        (output.status.code(), findings.filter(|f| f["status"] != "ok").cloned().collect())
    }

    fn pings(&self, address: &str) -> bool {
        self.command("c", &["ping", "-c", "1", "-W", "1", address]).status.success()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for end in ["s", "c"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(end)]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn checks(findings: &[Value]) -> Vec<&str> {
    findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect()
}

/// Follows the advice.
fn mend(site: &Site, findings: &[Value]) {
    for finding in findings {
        site.sh("s", finding["mend"].as_str().unwrap());
    }
}

#[test]
fn a_server_that_is_mended_as_told_takes_packets_to_the_vip_and_does_not_answer_for_it() {
    let site = Site::new("v4");
    site.sh("s", "ip address add 10.0.0.10/24 dev e0; sysctl -qw net.ipv4.conf.all.rp_filter=0");
    assert!(site.pings("10.0.0.10"), "the server answers ARP for the VIP");
    let (code, findings) = site.check(&["--vip", "10.0.0.10"]);
    assert_eq!(code, Some(1));
    assert_eq!(checks(&findings), ["vip", "vip elsewhere", "arp_ignore", "arp_announce"]);
    mend(&site, &findings);
    site.sh("s", "ip link set lo up");
    let (code, findings) = site.check(&["--vip", "10.0.0.10"]);
    assert_eq!((code, findings), (Some(0), vec![]));

    site.sh("c", "ip neighbour flush dev e0");
    assert!(!site.pings("10.0.0.10"), "the server is silent now");
    let mac = site.command("s", &["cat", "/sys/class/net/e0/address"]);
    let mac = String::from_utf8(mac.stdout).unwrap();
    site.sh("c", &format!("ip neighbour replace 10.0.0.10 lladdr {} dev e0", mac.trim()));
    let vip: SocketAddr = "10.0.0.10:80".parse().unwrap();
    assert_eq!(checks(&site.check(&["--vip", "10.0.0.10", "--port", "80"]).1), ["listener"]);
    let _listener = {
        let _there = NetnsGuard::enter(&site.name("s")).unwrap();
        TcpListener::bind(vip).unwrap()
    };
    assert_eq!(site.check(&["--vip", "10.0.0.10", "--port", "80"]), (Some(0), vec![]));
    let _there = NetnsGuard::enter(&site.name("c")).unwrap();
    TcpStream::connect_timeout(&vip, Duration::from_secs(2)).unwrap();
}

#[test]
fn a_server_of_an_ipv6_vip_likewise() {
    let site = Site::new("v6");
    site.sh(
        "s",
        "ip link set lo up; ip address add fd00::10/64 dev e0 nodad; sysctl -qw net.ipv6.conf.e0.proxy_ndp=1",
    );
    assert!(site.pings("fd00::10"));
    let (code, findings) = site.check(&["--vip", "fd00::10"]);
    assert_eq!(code, Some(1));
    assert_eq!(checks(&findings), ["vip", "vip elsewhere", "proxy_ndp"]);
    mend(&site, &findings);
    assert_eq!(site.check(&["--vip", "fd00::10"]), (Some(0), vec![]));
    site.sh("c", "ip -6 neighbour flush dev e0");
    assert!(!site.pings("fd00::10"), "the server is silent now");
}

#[test]
fn answers_that_leave_elsewhere_need_a_loose_filter() {
    let site = Site::new("rp");
    site.sh(
        "s",
        "ip link set lo up; ip link add e1 type veth peer name e2; ip link set e1 up; ip link set e2 up",
    );
    site.sh("s", "ip address add 10.0.9.2/24 dev e1; ip route add 198.18.0.0/15 via 10.0.9.1");
    site.sh("s", "ip address add 10.0.0.10/32 dev lo scope host; sysctl -qw net.ipv4.conf.all.rp_filter=1");
    site.sh("s", "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2");
    let there = ["--vip", "10.0.0.10", "--interface", "e0", "--client", "198.18.0.1"];
    let (code, findings) = site.check(&there);
    assert_eq!((code, checks(&findings)), (Some(1), vec!["rp_filter"]));
    mend(&site, &findings);
    assert_eq!(site.check(&there), (Some(0), vec![]));
    assert_eq!(site.check(&["--vip", "10.0.0.10"]), (Some(0), vec![]));
}

#[test]
fn the_device_of_the_vlan_is_missed() {
    let site = Site::new("vlan");
    site.sh("s", "ip link set lo up; ip address add 10.0.0.10/32 dev lo scope host");
    site.sh("s", "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.arp_ignore=1");
    site.sh("s", "sysctl -qw net.ipv4.conf.all.arp_announce=2");
    let there = ["--vip", "10.0.0.10", "--interface", "e0", "--segment", "802.1q:100"];
    let (code, findings) = site.check(&there);
    assert_eq!((code, checks(&findings)), (Some(1), vec!["segment"]));
    // Not every kernel has VLAN devices.
    let made = site.command("s", &["sh", "-ec", findings[0]["mend"].as_str().unwrap()]);
    if made.status.success() {
        assert_eq!(site.check(&there), (Some(0), vec![]));
        site.sh("s", "ip link set e0.100 mtu 1400");
        assert_eq!(checks(&site.check(&there).1), ["mtu"]);
    } else {
        let words = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(words.contains("Unknown device type") || words.contains("not supported"), "{words}");
        eprintln!("this kernel has no VLAN devices: their discovery was not tested");
    }
}

#[test]
fn the_table_ends_with_the_cure() {
    let site = Site::new("table");
    let weir = env!("CARGO_BIN_EXE_weir");
    let output = site.command("s", &[weir, "balancer", "check-backend", "--vip", "10.0.0.10"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("STATUS   CHECK") || text.starts_with("STATUS  CHECK"), "{text}");
    assert!(text.contains("\n  ip address add 10.0.0.10/32 dev lo scope host\n"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    let output =
        site.command("s", &[weir, "balancer", "check-backend", "--vip", "10.0.0.10", "--segment", "vlan9"]);
    assert_eq!(output.status.code(), Some(64), "{}", String::from_utf8_lossy(&output.stderr));
}
