//! What crosses the balancer's port, as an independent decoder sees it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lab::process::Process;

use crate::api::wait_for;
use crate::network::{BALANCER_MAC, Network, TO_BALANCER, server_mac};
use crate::site::{Family, Site};

/// Status of a checksum that was computed and found right.
const GOOD: &str = "1";
/// Clients' packets come with the TTL of a fresh one, less the router's.
const INNER_TTL: &str = "63";
/// Of a tunnel's outer header: fresh from the router, and once the balancer has sent it on.
const OUTER_TTLS: [&str; 2] = ["64", "63"];

/// tcpdump on the balancer's link.
pub(crate) struct Capture {
    site: Site,
    file: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Capture {
    /// Starts it and waits until every frame is seen.
    pub(crate) fn start(network: &Network) -> Self {
        let [file, log] = ["trunk.pcap", "tcpdump.log"].map(|name| network.directory().join(name));
        let mut command = Command::new("tcpdump");
        // `-U` writes a frame at once, `-Z root` into a directory of root's.
        command.args([
            "-i",
            TO_BALANCER,
            "-n",
            "-s",
            "0",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-Z",
            "root",
            "-w",
        ]);
        command.arg(&file);
        let process = Process::spawn("tcpdump", command, &network.host("switch"), None, &log).unwrap();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("tcpdump listens", || said().contains("listening on").then_some(()));
        Self { site: network.site, file, log, process }
    }

    /// Ends it once everything that came in has left; TCP of the service that was seen, without what errors quote.
    pub(crate) fn stop(self) -> Seen {
        let seen = wait_for("as many frames leave as come", || Some(self.decode()).filter(Seen::is_complete));
        self.process.stop();
        let said = fs::read_to_string(&self.log).unwrap();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        seen
    }

    /// The file still grows: tshark may find half a frame at its end and say so.
    fn decode(&self) -> Seen {
        let mut command = Command::new("tshark");
        command.arg("-n").arg("-r").arg(&self.file).args(["-Y", "tcp && !icmp && !icmpv6"]);
        for option in ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
            command.args(["-o", option]);
        }
        command.args(["-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]);
        FIELDS.iter().for_each(|field| _ = command.args(["-e", field]));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let frames = text.lines().map(|line| Frame::parse(&self.site, line));
        Seen { site: self.site, frames: frames.collect() }
    }
}

const FIELDS: [&str; 16] = [
    "frame.number",
    "frame.len",
    "eth.src",
    "eth.dst",
    "ieee8021ad.id",
    "vlan.id",
    "vxlan.vni",
    "geneve.vni",
    "ip.src",
    "ip.dst",
    "ip.ttl",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.hlim",
    "ip.checksum.status",
    "udp.checksum.status",
];

/// A frame; lists begin with the outermost header.
#[derive(Debug)]
#[expect(dead_code, reason = "what is only printed helps to find the frame")]
struct Frame {
    number: String,
    length: usize,
    from: Vec<String>,
    to: Vec<String>,
    segment: String,
    /// Of the innermost packet.
    source: String,
    destination: String,
    inner_ttl: String,
    outer_ttl: String,
    checksums: Vec<String>,
}

impl Frame {
    fn parse(site: &Site, line: &str) -> Self {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line}");
        let list = |name: &str| -> Vec<String> {
            let index = FIELDS.iter().position(|field| *field == name).unwrap();
            fields[index].split('|').filter(|text| !text.is_empty()).map(str::to_owned).collect()
        };
        let of = |family: Family, v4: &str, v6: &str| list(if family == Family::V4 { v4 } else { v6 });
        let last = |v4: &str, v6: &str| of(site.family, v4, v6).pop().unwrap_or_default();
        let outer_ttl = of(site.underlay, "ip.ttl", "ipv6.hlim").first().cloned().unwrap_or_default();
        Self {
            number: fields[0].to_owned(),
            length: fields[1].parse().unwrap(),
            from: list("eth.src"),
            to: list("eth.dst"),
            segment: segment(&list),
            source: last("ip.src", "ipv6.src"),
            destination: last("ip.dst", "ipv6.dst"),
            inner_ttl: last("ip.ttl", "ipv6.hlim"),
            outer_ttl,
            checksums: [list("ip.checksum.status"), list("udp.checksum.status")].concat(),
        }
    }

    fn is_from_balancer(&self) -> bool {
        self.from[0] == BALANCER_MAC
    }

    fn is_to_balancer(&self) -> bool {
        self.to[0] == BALANCER_MAC
    }
}

/// As configurations have it.
fn segment(list: &dyn Fn(&str) -> Vec<String>) -> String {
    let first = |name: &str| list(name).first().cloned();
    if let Some(vni) = first("vxlan.vni") {
        return format!("vxlan:{vni}");
    }
    if let Some(vni) = first("geneve.vni") {
        let digits = vni.trim_start_matches("0x");
        return format!("geneve:{}", u32::from_str_radix(digits, 16).unwrap());
    }
    match (first("ieee8021ad.id"), first("vlan.id")) {
        (Some(service), Some(customer)) => format!("802.1ad:{service}.{customer}"),
        (Some(service), None) => format!("802.1ad:{service}"),
        (None, Some(id)) => format!("802.1q:{id}"),
        (None, None) => "none".into(),
    }
}

/// TCP of the service on the balancer's link.
pub(crate) struct Seen {
    site: Site,
    frames: Vec<Frame>,
}

impl Seen {
    fn to_service(&self, is: impl Fn(&Frame) -> bool) -> Vec<&Frame> {
        let vip = self.site.vip().to_string();
        self.frames.iter().filter(|frame| frame.destination == vip && is(frame)).collect()
    }

    fn is_complete(&self) -> bool {
        let [received, sent] = [Frame::is_to_balancer, Frame::is_from_balancer].map(|is| self.to_service(is));
        !sent.is_empty() && received.len() == sent.len()
    }

    /// What came for the service went on to its servers, well-formed, and no answer came past.
    pub(crate) fn assert_right(&self) {
        let vip = self.site.vip().to_string();
        let [received, sent] = [Frame::is_to_balancer, Frame::is_from_balancer].map(|is| self.to_service(is));
        eprintln!("{}: {} frames to the service in, {} out", self.site.name, received.len(), sent.len());
        for frame in received {
            assert_eq!(frame.segment, self.site.front, "{frame:?}");
            self.assert_well_formed(frame, OUTER_TTLS[0]);
        }
        for frame in sent {
            self.assert_reaches_a_server(frame);
            self.assert_well_formed(frame, OUTER_TTLS[1]);
        }
        let answers: Vec<_> = self.frames.iter().filter(|f| f.is_to_balancer() && f.source == vip).collect();
        assert!(answers.is_empty(), "{} answers to the balancer: {:?}", answers.len(), answers[0]);
    }

    /// Length of the longest frame that went on to a server.
    pub(crate) fn longest(&self) -> usize {
        self.to_service(Frame::is_from_balancer).into_iter().map(|frame| frame.length).max().unwrap_or(0)
    }

    fn assert_reaches_a_server(&self, frame: &Frame) {
        let mac = frame.to.last().unwrap();
        let is_to = |segment: &str| frame.segment == segment;
        let server = self.site.servers.iter().find(|server| server_mac(server) == *mac);
        assert!(server.is_some_and(|server| is_to(server.segment)), "{frame:?}");
    }

    fn assert_well_formed(&self, frame: &Frame, outer_ttl: &str) {
        assert!(frame.checksums.iter().all(|status| status == GOOD), "{frame:?}");
        assert_eq!(frame.inner_ttl, INNER_TTL, "{frame:?}");
        if self.site.has_tunnels() {
            assert_eq!(frame.outer_ttl, outer_ttl, "{frame:?}");
        }
    }
}
