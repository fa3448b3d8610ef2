//! Frames to test with.

use bpf_abi::NodeValue;
use etherparse::PacketBuilder;

use crate::model::mapped;

/// Addresses and ports of a flow, and what the tests vary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) v6: bool,
    pub(crate) source: u8,
    pub(crate) destination: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            v6: false,
            source: 1,
            destination: 1,
            source_port: 40000,
            destination_port: 80,
            ttl: 64,
            tos: 0,
        }
    }
}

/// Host of the sending site.
pub(crate) fn client(v6: bool, host: u8) -> [u8; 16] {
    if v6 { address6(0x200, host) } else { mapped([10, 200, 0, host]) }
}

/// Host of the service site.
pub(crate) fn service(v6: bool, host: u8) -> [u8; 16] {
    if v6 { address6(0x100, host) } else { mapped([10, 100, 0, host]) }
}

fn address6(site: u16, host: u8) -> [u8; 16] {
    std::net::Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, host.into()).octets()
}

fn v4(address: [u8; 16]) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

fn ip(flow: Flow) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
    let (source, destination) = (client(flow.v6, flow.source), service(flow.v6, flow.destination));
    if flow.v6 {
        let header = etherparse::Ipv6Header {
            traffic_class: flow.tos,
            flow_label: etherparse::Ipv6FlowLabel::try_new(0x5_4321).unwrap(),
            hop_limit: flow.ttl,
            source,
            destination,
            ..Default::default()
        };
        return ethernet.ip(etherparse::IpHeaders::Ipv6(header, Default::default()));
    }
    let mut header = etherparse::Ipv4Header::new(0, flow.ttl, 0.into(), v4(source), v4(destination)).unwrap();
    header.dscp = (flow.tos >> 2).try_into().unwrap();
    header.ecn = (flow.tos & 3).try_into().unwrap();
    header.identification = 0x1234;
    ethernet.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
}

/// A UDP datagram.
pub(crate) fn udp(flow: Flow, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(flow).udp(flow.source_port, flow.destination_port).write(&mut frame, &octets(payload)).unwrap();
    frame
}

/// A TCP segment with these flags (FIN 1, SYN 2, RST 4, ACK 16).
pub(crate) fn tcp(flow: Flow, flags: u8, payload: usize) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(flow.source_port, flow.destination_port, 7, 1024);
    header.fin = flags & 1 != 0;
    header.syn = flags & 2 != 0;
    header.rst = flags & 4 != 0;
    header.ack = flags & 16 != 0;
    let mut frame = Vec::new();
    ip(flow).tcp_header(header).write(&mut frame, &octets(payload)).unwrap();
    frame
}

fn octets(count: usize) -> Vec<u8> {
    (0..count).map(|at| at as u8).collect()
}

/// Outer headers as a foreign ITR may write them.
#[derive(Clone, Debug)]
pub(crate) struct Outer {
    pub(crate) v6: bool,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// First word of the LISP header.
    pub(crate) flags: [u8; 4],
    pub(crate) instance_id: u32,
    /// IPv4 options, a multiple of 4.
    pub(crate) options: Vec<u8>,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            v6: false,
            ttl: 60,
            tos: 0,
            source_port: 50000,
            destination_port: 4341,
            flags: [0; 4],
            instance_id: 0,
            options: Vec::new(),
        }
    }
}

/// The node to which [`lisp`] packets go, over either family.
pub(crate) fn own_rlocs(mut node: NodeValue) -> NodeValue {
    node.rlocs[0] = mapped([192, 0, 2, 2]);
    node.rlocs[1] = address6(0xa, 2);
    node.rloc_count = 2;
    node
}

/// The frame's packet in a LISP packet.
pub(crate) fn lisp(outer: &Outer, frame: &[u8]) -> Vec<u8> {
    let mut payload = outer.flags.to_vec();
    payload.extend((outer.instance_id << 8).to_be_bytes());
    payload.extend(&frame[14..]);
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
    let ip = if outer.v6 {
        etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                traffic_class: outer.tos,
                hop_limit: outer.ttl,
                source: address6(0xa, 1),
                destination: address6(0xa, 2),
                ..Default::default()
            },
            Default::default(),
        )
    } else {
        let mut header =
            etherparse::Ipv4Header::new(0, outer.ttl, 0.into(), [192, 0, 2, 1], [192, 0, 2, 2]).unwrap();
        header.dscp = (outer.tos >> 2).try_into().unwrap();
        header.ecn = (outer.tos & 3).try_into().unwrap();
        header.dont_fragment = true;
        header.options = outer.options.as_slice().try_into().unwrap();
        etherparse::IpHeaders::Ipv4(header, Default::default())
    };
    let mut all = Vec::new();
    ethernet.ip(ip).udp(outer.source_port, outer.destination_port).write(&mut all, &payload).unwrap();
    let checksum = if outer.v6 { 54 } else { 34 + outer.options.len() } + 6;
    all[checksum..checksum + 2].fill(0);
    all
}

/// Puts the right checksum into the IPv4 header at `offset`.
pub(crate) fn fix_checksum(frame: &mut [u8], offset: usize) {
    let header = usize::from(frame[offset] & 15) * 4;
    frame[offset + 10..offset + 12].fill(0);
    let sum: u32 = frame[offset..offset + header]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[offset + 10..offset + 12].copy_from_slice(&checksum.to_be_bytes());
}
