//! The kernel's own ways to spread connections over servers: destination NAT by iptables and by nftables.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::frames::{Protocol, Stream, VIPS};
use super::lane::{D0, Device, Pair, T0, Tester};
use super::scenario::Scenario;
use crate::bench::path::{offload, text};
use crate::netns::Netns;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    Iptables,
    Nftables,
}

/// Destination NAT in a namespace, which takes it away when it goes.
pub(super) struct Dnat {
    netns: Netns,
    /// The datagrams' flows are tracked.
    warm: bool,
    _room: Room,
}

impl Dnat {
    /// Forwarding with neighbours that are known, and the rules.
    pub(super) fn install(pair: &Pair, rules: Rules, scenario: Scenario) -> Result<Self> {
        let netns = pair.device.clone();
        // Without a program of its own, the device takes redirected frames only with NAPI on.
        offload(&netns, D0, "gro", true)?;
        netns.ip(&["address", "add", "10.32.255.254/16", "dev", D0.name])?;
        netns.ip(&["route", "add", "198.18.0.0/15", "dev", D0.name])?;
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/d0/send_redirects", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/d0/rp_filter", "0"),
        ])?;
        neighbours(&netns, scenario)?;
        netns.run(|| match rules {
            Rules::Iptables => feed("iptables-restore", &[], &iptables(scenario)),
            Rules::Nftables => feed("nft", &["-f", "-"], &nftables(scenario)),
        })?;
        // A network card has verified checksums before connections are tracked; a veth's frames would be summed up here.
        netns.sysctl(&[
            ("net/netfilter/nf_conntrack_checksum", "0"),
            ("net/netfilter/nf_conntrack_udp_timeout", "3600"),
        ])?;
        Ok(Self { netns, warm: false, _room: Room::make()? })
    }
}

impl Device for Dnat {
    /// Datagrams are of flows that are tracked already.
    fn before_series(&mut self, stream: &Stream, tester: &Tester<'_>) -> Result<()> {
        if stream.protocol == Protocol::Udp && !self.warm {
            self.netns.run(forget_connections)?;
            tester.send(stream.flows)?;
        }
        self.warm = stream.protocol == Protocol::Udp;
        Ok(())
    }

    /// Every SYN opens a connection.
    fn before_burst(&mut self, stream: &Stream) -> Result<()> {
        match stream.protocol {
            Protocol::Udp => Ok(()),
            Protocol::Tcp => self.netns.run(forget_connections),
        }
    }

    fn explain(&self) -> String {
        let counted = self.netns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack")?));
        counted.map(|text| format!("(connection tracking says:\n{text})")).unwrap_or_default()
    }
}

/// Rules of one chain per VIP, whose servers are drawn one after the other, as Kubernetes and many others write them.
fn iptables(scenario: Scenario) -> String {
    let mut text = String::from("*nat\n:PREROUTING ACCEPT\n");
    for (number, vip) in (0..scenario.vips).zip(VIPS..) {
        let _ =
            writeln!(text, ":VIP-{number} -\n-A PREROUTING -d {}/32 -j VIP-{number}", Ipv4Addr::from(vip));
    }
    for number in 0..scenario.vips {
        let backends = scenario.backends_of(number);
        for (left, backend) in (1..=backends.len()).rev().zip(backends) {
            let chance = if left > 1 {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64)
            } else {
                String::new()
            };
            let _ = writeln!(text, "-A VIP-{number}{chance} -j DNAT --to-destination {}", address(backend));
        }
    }
    text + "COMMIT\n"
}

/// One lookup of the VIP, one hash, one lookup of the server.
fn nftables(scenario: Scenario) -> String {
    let mut text = String::from("table ip balancer {\n");
    let mut jumps = Vec::new();
    for (number, vip) in (0..scenario.vips).zip(VIPS..) {
        let backends = scenario.backends_of(number);
        let count = backends.len();
        let servers: Vec<_> = backends.enumerate().map(|(n, b)| format!("{n} : {}", address(b))).collect();
        let servers = servers.join(", ");
        let _ = writeln!(
            text,
            "  chain vip{number} {{\n    dnat to jhash ip saddr . th sport mod {count} map {{ {servers} }}\n  }}"
        );
        jumps.push(format!("{} : jump vip{number}", Ipv4Addr::from(vip)));
    }
    let jumps = jumps.join(", ");
    let _ = writeln!(
        text,
        "  chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    \
         meta l4proto {{ tcp, udp }} ip daddr vmap {{ {jumps} }}\n  }}\n}}"
    );
    text
}

/// 10.32.0.1 and on.
fn address(backend: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes([10, 32, 0, 1]) + backend)
}

fn neighbours(netns: &Netns, scenario: Scenario) -> Result<()> {
    let (mut batch, lladdr) = (String::new(), text(T0.mac));
    for backend in 0..scenario.backends {
        let _ = writeln!(
            batch,
            "neigh replace {} lladdr {lladdr} dev {} nud permanent",
            address(backend),
            D0.name
        );
    }
    feed("ip", &["-n", netns.name(), "-batch", "-"], &batch)
}

/// Runs a program to its end with `input` on its standard input.
fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be started: is it installed?"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.with_context(|| format!("{program} did not read its input"))
}

/// `IPCTNL_MSG_CT_DELETE` of the subsystem `NFNL_SUBSYS_CTNETLINK`.
const DELETE_CONNECTIONS: u16 = 1 << 8 | 2;

/// Deletes every tracked connection of the calling thread's namespace.
fn forget_connections() -> Result<()> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(SocketProtocol::from(libc::NETLINK_NETFILTER)),
    )
    .context("netlink of netfilter")?;
    let mut request = [0_u8; 20];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&DELETE_CONNECTIONS.to_ne_bytes());
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK)?;
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    socket.send(&request).context("request to forget connections")?;
    let mut answer = [0_u8; 64];
    let length = socket.read(&mut answer).context("answer of connection tracking")?;
    ensure!(length >= 20, "connection tracking answered {length} octets");
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(error == 0, "connections are not forgotten: {}", std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// Connections that fit at least: two streams' flows.
const ROOM: u64 = 131_072;
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Room for connections, which is the machine's: raised where there is too little, and put back.
struct Room {
    before: Option<String>,
}

impl Room {
    fn make() -> Result<Self> {
        let limit = fs::read_to_string(LIMIT).with_context(|| LIMIT.to_owned())?;
        if limit.trim().parse::<u64>().is_ok_and(|limit| limit >= ROOM) {
            return Ok(Self { before: None });
        }
        fs::write(LIMIT, ROOM.to_string()).with_context(|| format!("{LIMIT} = {ROOM}"))?;
        Ok(Self { before: Some(limit) })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(limit) = &self.before
            && let Err(error) = fs::write(LIMIT, limit)
        {
            tracing::warn!(%error, "{LIMIT} left at {ROOM}");
        }
    }
}

/// What the programs call themselves.
pub(super) fn version(rules: Rules) -> String {
    let program = if rules == Rules::Iptables { "iptables" } else { "nft" };
    let output = Command::new(program).arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_every_server_once() {
        let scenario = Scenario { vips: 2, backends: 5 };
        let text = iptables(scenario);
        assert_eq!(text.matches("--to-destination").count(), 5);
        assert!(
            text.contains("-A VIP-0 -m statistic --mode random --probability 0.3333333333 -j DNAT"),
            "{text}"
        );
        assert!(text.contains("-A VIP-0 -j DNAT --to-destination 10.32.0.3\n"), "{text}");
        assert!(text.contains("-A VIP-1 -j DNAT --to-destination 10.32.0.5\n"), "{text}");
        let text = nftables(scenario);
        assert!(text.contains("mod 3 map { 0 : 10.32.0.1, 1 : 10.32.0.2, 2 : 10.32.0.3 }"), "{text}");
        assert!(text.contains("vmap { 198.19.0.1 : jump vip0, 198.19.0.2 : jump vip1 }"), "{text}");
    }
}
