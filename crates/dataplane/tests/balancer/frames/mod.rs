//! Frames to test with, octet by octet, with the right checksums.

pub(crate) mod icmp;
mod ip;
pub(crate) mod tunnel;

use std::net::IpAddr;

pub(crate) use self::ip::{Extension, Fragment, Ip, fix_ipv4};
use crate::model::{SCTP, TCP, UDP};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// The port's own address.
pub(crate) const PORT: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The router's, which sends the frames.
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) ethertype: u16,
    /// Priority, DEI and VID.
    pub(crate) tci: u16,
}

/// 802.1Q.
pub(crate) const fn tag(tci: u16) -> Tag {
    Tag { ethertype: 0x8100, tci }
}

/// 802.1ad.
pub(crate) const fn service_tag(tci: u16) -> Tag {
    Tag { ethertype: 0x88a8, tci }
}

/// Ones' complement sum of 16-bit words, the last one padded.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let mut sum: u64 = all
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// An Ethernet frame from the router to the port around an IP packet.
pub(crate) fn frame(tags: &[Tag], packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
    ethernet(PORT, ROUTER, tags, ethertype, packet)
}

pub(crate) fn ethernet(
    destination: [u8; 6],
    source: [u8; 6],
    tags: &[Tag],
    ethertype: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [destination, source].concat();
    for tag in tags {
        frame.extend(tag.ethertype.to_be_bytes());
        frame.extend(tag.tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a client sends to a VIP.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) ip: Ip,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Octets behind the transport header.
    pub(crate) payload: usize,
}

pub(crate) fn client(v6: bool) -> IpAddr {
    if v6 { "2001:db8:c::7" } else { "198.51.100.7" }.parse().unwrap()
}

pub(crate) fn vip(v6: bool) -> IpAddr {
    if v6 { "2001:db8:1::10" } else { "192.0.2.10" }.parse().unwrap()
}

/// From client port 40000 to the VIP's port 80.
pub(crate) fn flow(v6: bool) -> Flow {
    Flow { ip: Ip::new(client(v6), vip(v6)), source_port: 40_000, destination_port: 80, payload: 30 }
}

impl Flow {
    /// The other direction.
    pub(crate) fn reply(&self) -> Self {
        let ip = Ip { source: self.ip.destination, destination: self.ip.source, ..self.ip.clone() };
        Self { ip, source_port: self.destination_port, destination_port: self.source_port, ..self.clone() }
    }

    /// Another client port.
    pub(crate) fn with_source_port(&self, source_port: u16) -> Self {
        Self { source_port, ..self.clone() }
    }

    fn ports(&self) -> Vec<u8> {
        [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat()
    }

    fn payload(&self) -> Vec<u8> {
        (0..self.payload).map(|at| at as u8).collect()
    }

    /// A TCP segment.
    pub(crate) fn tcp(&self, flags: u8) -> Vec<u8> {
        let mut segment = self.ports();
        segment.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 4, 0, 0, 0, 0, 0]);
        segment.extend(self.payload());
        self.ip.checksum(TCP, &mut segment, 16);
        self.ip.packet(TCP, &segment)
    }

    /// A UDP datagram.
    pub(crate) fn udp(&self) -> Vec<u8> {
        self.datagram(&self.payload())
    }

    pub(crate) fn datagram(&self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = self.ports();
        datagram.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.ip.checksum(UDP, &mut datagram, 6);
        self.ip.packet(UDP, &datagram)
    }

    /// An SCTP packet with one chunk: INIT where the verification tag is 0, otherwise DATA.
    pub(crate) fn sctp(&self, verification_tag: u32) -> Vec<u8> {
        let mut packet = self.ports();
        packet.extend(verification_tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([u8::from(verification_tag == 0), 3, 0, 4 + self.payload as u8]);
        packet.extend(self.payload());
        let checksum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&checksum);
        self.ip.packet(SCTP, &packet)
    }
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[test]
fn published_checksums() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    // RFC 1071, section 3.
    assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
}

/// Another implementation finds the same checksums.
#[test]
fn frames_are_whole() {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    for v6 in [false, true] {
        let packets = [flow(v6).tcp(SYN), flow(v6).udp(), icmp::echo_request(&flow(v6).ip)];
        for packet in packets {
            let frame = frame(&[tag(100)], &packet);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let (source, destination) = match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    (header.source.to_vec(), header.destination.to_vec())
                }
                NetSlice::Ipv6(ip) => (ip.header().source().to_vec(), ip.header().destination().to_vec()),
                NetSlice::Arp(_) => panic!("no IP"),
            };
            let (checksum, protocol, offset) = match sliced.transport.unwrap() {
                TransportSlice::Tcp(tcp) => (tcp.checksum(), TCP, 16),
                TransportSlice::Udp(udp) => (udp.checksum(), UDP, 6),
                TransportSlice::Icmpv4(icmp) => (icmp.checksum(), 1, 2),
                TransportSlice::Icmpv6(icmp) => (icmp.checksum(), 58, 2),
                TransportSlice::Igmp(_) => panic!("IGMP"),
            };
            let header = if v6 { 40 } else { 20 };
            let transport = &packet[header..];
            assert_eq!(crate::model::be16(transport, offset), checksum);
            let length = (transport.len() as u32).to_be_bytes();
            let pseudo: &[&[u8]] = &[&source, &destination, &length, &[0, 0, 0, protocol], transport];
            let covered = if protocol == 1 { &pseudo[4..] } else { pseudo };
            assert_eq!(sum(covered), 0xffff, "v6 {v6}, protocol {protocol}");
        }
    }
}
