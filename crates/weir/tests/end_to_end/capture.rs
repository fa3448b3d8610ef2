//! Every LISP frame that crossed the core, and what an independent decoder says about it.
//!
//! Known limits of Wireshark 4.0: it has no decoder for Map-Notify-Ack (type 5, added by RFC 9301), which it shows as
//! an unknown type without looking further, and it shows Key ID and Algorithm ID as one 16-bit Key ID.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::process::Process;

use crate::api::wait_for;
use crate::network::{STRANGER, core_links};
use crate::roles::Roles;

/// PI_WARN and PI_ERROR of Wireshark's expert information (epan/proto.h).
const WARNING: u64 = 0x0060_0000;
/// Status of a checksum that was computed and found right.
const GOOD: &str = "1";
/// The kernel writes 0xffff for a TCP checksum of 0 when it computes it in software (`skb_checksum_help` does not ask
/// whether it is UDP's); receivers take both.
const KERNEL_CHECKSUM: &str = "TCP Checksum 0xffff instead of 0x0000";
/// What TCP inside had to say about time and about the link that was cut: early tail loss probes, packets that changed
/// places when their sender changed CPUs, resets of connections that were lost with their edge. It says nothing about
/// the frames around it; that nothing else was lost is seen from the requests and the counters.
const INNER_TCP: [&str; 5] = [
    "retransmission",
    "out-of-order",
    "segment(s) not captured",
    "segment that wasn't captured",
    "Connection reset (RST)",
];

const DATA_PORT: &str = "4341";

/// tcpdump on every link of the core.
pub(crate) struct Capture {
    directory: PathBuf,
    running: Vec<(String, Process)>,
}

impl Capture {
    /// Starts it and waits until every packet is seen.
    pub(crate) fn start(roles: &Roles<'_>, directory: PathBuf) -> Self {
        let start = |link: String| {
            let mut command = Command::new("tcpdump");
            // Every packet enters the core once. `-U` writes it at once, `-Z root` into a directory of root's.
            command.args([
                "-i",
                &link,
                "-Q",
                "in",
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
            command.arg(file(&directory, &link)).arg("udp port 4341 or udp port 4342");
            let process = roles.spawn(&format!("tcpdump-{link}"), "core", command);
            (link, process)
        };
        let capture = Self { running: core_links().into_iter().map(start).collect(), directory };
        for (link, _) in &capture.running {
            wait_for("tcpdump listens", || capture.log(link).contains("listening on").then_some(()));
        }
        capture
    }

    /// UDP payloads seen so far on a link, chosen by a display filter, in their order.
    pub(crate) fn payloads(&self, link: &str, filter: &str) -> Vec<Vec<u8>> {
        let arguments = ["-Y", filter, "-T", "fields", "-E", "occurrence=f", "-e", "udp.payload"];
        // The file still grows: tshark may find half a packet at its end and say so.
        let text = tshark(&file(&self.directory, link), &arguments);
        text.lines().filter(|line| !line.is_empty()).map(octets).collect()
    }

    /// Ends it; what was seen.
    pub(crate) fn stop(self) -> Frames {
        let links: Vec<String> = self.running.iter().map(|(link, _)| link.clone()).collect();
        for (_, process) in self.running {
            process.stop();
        }
        let logs = links
            .iter()
            .map(|link| fs::read_to_string(self.directory.join(format!("tcpdump-{link}.log"))).unwrap());
        for log in logs {
            assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        }
        let merged = self.directory.join("core.pcapng");
        let files = links.iter().map(|link| file(&self.directory, link));
        let status = Command::new("mergecap").arg("-w").arg(&merged).args(files).status().unwrap();
        assert!(status.success());
        Frames::decode(&merged)
    }

    fn log(&self, link: &str) -> String {
        fs::read_to_string(self.directory.join(format!("tcpdump-{link}.log"))).unwrap_or_default()
    }
}

/// What tshark says about one frame; fields that occur in several headers hold the outermost first.
#[derive(Debug)]
#[expect(dead_code, reason = "what is only printed helps to find the frame")]
pub(crate) struct Frame {
    number: String,
    at_s: f64,
    sources: Vec<String>,
    ports: Vec<String>,
    protocols: String,
    types: Vec<String>,
    ip_checksums: Vec<String>,
    udp_checksums: Vec<String>,
    tcp_checksums: Vec<String>,
    remarks: Vec<(u64, String)>,
    malformed: bool,
}

const FIELDS: [&str; 12] = [
    "frame.number",
    "ip.src",
    "udp.dstport",
    "frame.protocols",
    "lisp.type",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "_ws.expert.severity",
    "_ws.expert.message",
    "frame.time_epoch",
    "_ws.malformed",
];

impl Frame {
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), FIELDS.len(), "{line}");
        let list = |index: usize| -> Vec<String> {
            fields[index].split('|').filter(|text| !text.is_empty()).map(str::to_owned).collect()
        };
        Self {
            number: fields[0].to_owned(),
            at_s: fields[10].parse().unwrap(),
            sources: list(1),
            ports: list(2),
            protocols: fields[3].to_owned(),
            types: list(4),
            ip_checksums: list(5),
            udp_checksums: list(6),
            tcp_checksums: list(7),
            remarks: list(8).iter().map(|text| text.parse().unwrap()).zip(list(9)).collect(),
            malformed: !fields[11].is_empty(),
        }
    }

    fn source(&self) -> &str {
        self.sources.first().map_or("", String::as_str)
    }

    fn is_to(&self, port: &str) -> bool {
        self.ports.first().is_some_and(|first| first == port)
    }

    fn is_flawed(&self) -> bool {
        let inner_tcp = |message: &str| INNER_TCP.iter().any(|text| message.contains(text));
        let excused = |message: &str| message.contains(KERNEL_CHECKSUM) || inner_tcp(message);
        self.malformed
            || self.remarks.iter().any(|(severity, message)| *severity >= WARNING && !excused(message))
    }

    fn tcp_checksum_is_good(&self) -> bool {
        let kernels = self.remarks.iter().any(|(_, message)| message.contains(KERNEL_CHECKSUM));
        kernels || all_good(&self.tcp_checksums)
    }
}

/// All frames but the stranger's, whose are wrong on purpose.
pub(crate) struct Frames(Vec<Frame>);

impl Frames {
    fn decode(path: &Path) -> Self {
        let mut arguments = Vec::new();
        // Addresses and ports of HTTP say nothing about LISP; the rest is decoded as deep as it goes.
        for option in ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE", "tcp.check_checksum:TRUE"] {
            arguments.extend(["-o", option]);
        }
        arguments.extend(["-T", "fields", "-E", "separator=/t", "-E", "aggregator=|"]);
        FIELDS.iter().for_each(|field| arguments.extend(["-e", field]));
        let text = tshark(path, &arguments);
        let stranger = STRANGER.to_string();
        Self(text.lines().map(Frame::parse).filter(|frame| frame.source() != stranger).collect())
    }

    /// Frames with LISP data that a host sent before a moment.
    pub(crate) fn data_from(&self, source: &str, until_ns: u64) -> usize {
        let until_s = until_ns as f64 / 1e9;
        let matches =
            |frame: &&Frame| frame.is_to(DATA_PORT) && frame.source() == source && frame.at_s < until_s;
        self.0.iter().filter(matches).count()
    }

    /// Control messages by type; ECM (type 8) counts once, with what is inside.
    pub(crate) fn control_types(&self) -> BTreeMap<String, usize> {
        let mut types = BTreeMap::new();
        for frame in self.0.iter().filter(|frame| !frame.is_to(DATA_PORT)) {
            *types.entry(frame.types.join(" in ")).or_default() += 1;
        }
        types
    }

    /// What the decoder remarked.
    pub(crate) fn remarks(&self) -> BTreeMap<String, usize> {
        let mut remarks = BTreeMap::new();
        for (_, message) in self.0.iter().flat_map(|frame| &frame.remarks) {
            *remarks.entry(message.clone()).or_default() += 1;
        }
        remarks
    }

    /// No frame is malformed, carries a warning, or has a wrong checksum.
    pub(crate) fn assert_flawless(&self) {
        let flawed: Vec<&Frame> = self.0.iter().filter(|frame| frame.is_flawed()).collect();
        assert!(flawed.is_empty(), "{} frames: {:#?}", flawed.len(), &flawed[..flawed.len().min(5)]);
        for frame in &self.0 {
            assert!(all_good(&frame.ip_checksums) && frame.tcp_checksum_is_good(), "{frame:?}");
            if frame.is_to(DATA_PORT) {
                assert!(frame.protocols.contains("udp:lisp-data:ip:tcp"), "{frame:?}");
            } else {
                assert!(frame.protocols.contains(":udp:lisp"), "{frame:?}");
                assert!(
                    frame.udp_checksums.len() == frame.ports.len() && all_good(&frame.udp_checksums),
                    "{frame:?}"
                );
            }
        }
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn all_good(checksums: &[String]) -> bool {
    checksums.iter().all(|status| status == GOOD)
}

fn file(directory: &Path, link: &str) -> PathBuf {
    directory.join(format!("{link}.pcap"))
}

fn tshark(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new("tshark").arg("-n").arg("-r").arg(path).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn octets(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}
