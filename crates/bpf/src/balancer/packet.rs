//! Rules 3 to 7: what a packet is, as far as its own octets tell.

use bpf_abi::BalancerReason as Reason;

use crate::frame::Frame;
use crate::headers::{Address, IPV6_FRAGMENT, Ipv4, Ipv6, SCTP, TCP, UDP, mapped, read_words};
use crate::segment::{Family, Layers, Link};

/// A packet to some address.
pub(crate) struct Packet {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Of fragments the fragmented packet's.
    pub(crate) protocol: u8,
    /// Source and destination port as in the packet, 0 where there are none.
    pub(crate) ports: u32,
    pub(crate) kind: Kind,
}

/// What decides where it goes.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP, UDP or SCTP.
    Transport,
    /// Likewise, and it begins a connection.
    First,
    Fragment,
    /// IPv6 with an extension header that is not looked behind.
    ExtensionHeader,
    EchoRequest,
    /// An ICMP error about a packet from `destination` to `source`, whose protocol and ports (the client's first)
    /// are in the packet's place.
    Error,
    /// ICMP that is for nobody.
    OtherIcmp,
    Other,
}

impl Packet {
    /// The same, but the verifier has forgotten how it came to be. It would follow every way to read a packet to the end
    /// of the program, and is allowed a million instructions; so all of them meet here.
    #[inline(always)]
    pub(crate) const fn forgotten(self, zero: u32) -> Self {
        let kind = match self.kind as u32 ^ zero {
            0 => Kind::Transport,
            1 => Kind::First,
            2 => Kind::Fragment,
            3 => Kind::ExtensionHeader,
            4 => Kind::EchoRequest,
            5 => Kind::Error,
            6 => Kind::OtherIcmp,
            _ => Kind::Other,
        };
        Self { protocol: (self.protocol as u32 ^ zero) as u8, kind, ..self }
    }
}

/// The words of an address as numbers.
#[inline(always)]
pub(crate) const fn native([a, b, c, d]: Address) -> [u32; 4] {
    [u32::from_be(a), u32::from_be(b), u32::from_be(c), u32::from_be(d)]
}

pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// First octets of TCP, up to the flags.
#[repr(C, packed)]
struct TcpStart {
    ports: u32,
    sequence: [u8; 8],
    data_offset: u8,
    flags: u8,
}

/// First octets of SCTP (RFC 9260 §3.1).
#[repr(C, packed)]
struct SctpStart {
    ports: u32,
    verification_tag: u32,
}

/// Where the transport header is, and how many octets the packet has from there on.
#[derive(Clone, Copy)]
struct Transport {
    offset: usize,
    /// The offset is not a constant.
    is_variable: bool,
    octets: u32,
}

impl Transport {
    #[inline(always)]
    fn at<T>(&self, frame: &Frame) -> Result<*mut T, Reason> {
        let found = if self.is_variable { frame.at_variable(self.offset) } else { frame.at(self.offset) };
        found.ok_or(Reason::PassMalformed)
    }

    #[inline(always)]
    fn has(&self, octets: u32) -> Result<(), Reason> {
        if self.octets < octets { Err(Reason::PassMalformed) } else { Ok(()) }
    }
}

/// One copy of the path for each place of the network header: all offsets are then constants.
#[inline(always)]
pub(crate) fn parse(frame: &Frame, layers: &Layers) -> Result<Packet, Reason> {
    match (layers.link, layers.family) {
        (Link::Untagged, Family::V4) => v4(frame, Link::Untagged, layers.end),
        (Link::Untagged, Family::V6) => v6(frame, Link::Untagged, layers.end),
        (Link::Tagged, Family::V4) => v4(frame, Link::Tagged, layers.end),
        (Link::Tagged, Family::V6) => v6(frame, Link::Tagged, layers.end),
        (Link::DoubleTagged, Family::V4) => v4(frame, Link::DoubleTagged, layers.end),
        (Link::DoubleTagged, Family::V6) => v6(frame, Link::DoubleTagged, layers.end),
        (Link::TunnelV4, Family::V4) => v4(frame, Link::TunnelV4, layers.end),
        (Link::TunnelV4, Family::V6) => v6(frame, Link::TunnelV4, layers.end),
        (Link::TunnelV6, Family::V4) => v4(frame, Link::TunnelV6, layers.end),
        (Link::TunnelV6, Family::V6) => v6(frame, Link::TunnelV6, layers.end),
    }
}

#[inline(always)]
fn v4(frame: &Frame, link: Link, end: u32) -> Result<Packet, Reason> {
    let offset = link.octets();
    let ip: *mut Ipv4 = frame.at(offset).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    let header = u32::from(ip.version_ihl & 0x0f) << 2;
    let length = u32::from(u16::from_be_bytes(ip.length));
    if ip.version_ihl >> 4 != 4 || header < 20 || length < header || offset as u32 + length > end {
        return Err(Reason::PassMalformed);
    }
    let [high, low] = ip.fragment;
    let mut packet = Packet {
        source: mapped(ip.source),
        destination: mapped(ip.destination),
        protocol: ip.protocol,
        ports: 0,
        kind: Kind::Fragment,
    };
    if (high & 0x3f) | low != 0 {
        return Ok(packet);
    }
    let octets = length - header;
    if header == 20 {
        transport(frame, link, Transport { offset: offset + 20, is_variable: false, octets }, &mut packet)?;
    } else {
        let offset = offset + header as usize;
        transport(frame, link, Transport { offset, is_variable: true, octets }, &mut packet)?;
    }
    Ok(packet)
}

#[inline(always)]
fn v6(frame: &Frame, link: Link, end: u32) -> Result<Packet, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION_OPTIONS: u8 = 60;
    const MOBILITY: u8 = 135;
    const HEADER: usize = 40;
    let offset = link.octets();
    let ip: *mut Ipv6 = frame.at(offset).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    let octets = u32::from(u16::from_be_bytes(ip.length));
    if ip.version_class_label[0] >> 4 != 6 || (offset + HEADER) as u32 + octets > end {
        return Err(Reason::PassMalformed);
    }
    let mut packet = Packet {
        // SAFETY: as above.
        source: unsafe { read_words(&raw const ip.source) },
        // SAFETY: as above.
        destination: unsafe { read_words(&raw const ip.destination) },
        protocol: ip.next_header,
        ports: 0,
        kind: Kind::Other,
    };
    match ip.next_header {
        IPV6_FRAGMENT => {
            let fragment: *mut [u8; 8] = frame.at(offset + HEADER).ok_or(Reason::PassMalformed)?;
            if octets < 8 {
                return Err(Reason::PassMalformed);
            }
            // SAFETY: `at` checked that the header is in the frame.
            packet.protocol = unsafe { (*fragment)[0] };
            packet.kind = Kind::Fragment;
        }
        HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY => {
            packet.kind = Kind::ExtensionHeader;
        }
        _ => {
            let at_transport = Transport { offset: offset + HEADER, is_variable: false, octets };
            transport(frame, link, at_transport, &mut packet)?;
        }
    }
    Ok(packet)
}

/// Reads the transport header of a packet that is no fragment.
#[inline(always)]
fn transport(frame: &Frame, link: Link, at: Transport, packet: &mut Packet) -> Result<(), Reason> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let is_v4 = crate::headers::unmapped(&packet.destination).is_some();
    match packet.protocol {
        TCP => {
            at.has(20)?;
            let tcp: *mut TcpStart = at.at(frame)?;
            // SAFETY: `at` checked that these octets are in the frame.
            let (ports, flags) = unsafe { ((*tcp).ports, (*tcp).flags) };
            packet.ports = ports;
            packet.kind = if flags & (SYN | ACK) == SYN { Kind::First } else { Kind::Transport };
        }
        UDP => {
            at.has(8)?;
            let ports: *mut u32 = at.at(frame)?;
            // SAFETY: likewise.
            packet.ports = unsafe { ports.read_unaligned() };
            packet.kind = Kind::Transport;
        }
        SCTP => {
            at.has(12)?;
            let sctp: *mut SctpStart = at.at(frame)?;
            // SAFETY: likewise.
            let (ports, verification_tag) = unsafe { ((*sctp).ports, (*sctp).verification_tag) };
            packet.ports = ports;
            packet.kind = if verification_tag == 0 { Kind::First } else { Kind::Transport };
        }
        ICMP if is_v4 => icmp(frame, link, at, packet)?,
        ICMPV6 if !is_v4 => icmpv6(frame, link, at, packet)?,
        _ => packet.kind = Kind::Other,
    }
    Ok(())
}

#[inline(always)]
fn icmp(frame: &Frame, link: Link, at: Transport, packet: &mut Packet) -> Result<(), Reason> {
    const ECHO_REQUEST: u8 = 8;
    const UNREACHABLE: u8 = 3;
    const TIME_EXCEEDED: u8 = 11;
    const PARAMETER_PROBLEM: u8 = 12;
    at.has(8)?;
    let icmp: *mut u8 = at.at(frame)?;
    packet.kind = Kind::OtherIcmp;
    // SAFETY: `at` checked that the octet is in the frame.
    match unsafe { *icmp } {
        ECHO_REQUEST if !link.is_tunnel() => packet.kind = Kind::EchoRequest,
        UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => quoted_v4(frame, at, packet),
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn icmpv6(frame: &Frame, link: Link, at: Transport, packet: &mut Packet) -> Result<(), Reason> {
    const ECHO_REQUEST: u8 = 128;
    at.has(8)?;
    let icmp: *mut u8 = at.at(frame)?;
    packet.kind = Kind::OtherIcmp;
    // SAFETY: `at` checked that the octet is in the frame.
    match unsafe { *icmp } {
        ECHO_REQUEST if !link.is_tunnel() => packet.kind = Kind::EchoRequest,
        // Destination Unreachable, Packet Too Big, Time Exceeded, Parameter Problem (RFC 4443 §3).
        1..=4 => quoted_v6(frame, at, packet),
        _ => {}
    }
    Ok(())
}

/// Makes the packet one from the client that the quoted packet was for. What quotes nothing of ours stays as it is.
#[inline(always)]
fn quoted_v4(frame: &Frame, at: Transport, packet: &mut Packet) {
    let Some(room) = at.octets.checked_sub(8) else { return };
    let Some(ip) = frame.at_variable::<Ipv4>(at.offset + 8) else { return };
    // SAFETY: `at_variable` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    let header = u32::from(ip.version_ihl & 0x0f) << 2;
    let [high, low] = ip.fragment;
    let is_later_fragment = (high & 0x1f) | low != 0;
    if ip.version_ihl >> 4 != 4 || header < 20 || is_later_fragment || room < header + 4 {
        return;
    }
    let (source, destination, protocol) = (mapped(ip.source), mapped(ip.destination), ip.protocol);
    if source != packet.destination {
        return;
    }
    quoted_ports(frame, at.offset + 8 + header as usize, protocol, destination, packet);
}

#[inline(always)]
fn quoted_v6(frame: &Frame, at: Transport, packet: &mut Packet) {
    const HEADER: u32 = 40;
    let Some(room) = at.octets.checked_sub(8) else { return };
    let Some(ip) = frame.at_variable::<Ipv6>(at.offset + 8) else { return };
    // SAFETY: `at_variable` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    if ip.version_class_label[0] >> 4 != 6 || room < HEADER + 4 {
        return;
    }
    // SAFETY: likewise.
    let source = unsafe { read_words(&raw const ip.source) };
    // SAFETY: likewise.
    let destination = unsafe { read_words(&raw const ip.destination) };
    let protocol = ip.next_header;
    if source != packet.destination {
        return;
    }
    quoted_ports(frame, at.offset + 8 + HEADER as usize, protocol, destination, packet);
}

#[inline(always)]
fn quoted_ports(frame: &Frame, offset: usize, protocol: u8, client: Address, packet: &mut Packet) {
    if !matches!(protocol, TCP | UDP | SCTP) {
        return;
    }
    let Some(ports) = frame.at_variable::<u32>(offset) else { return };
    // SAFETY: `at_variable` checked that the ports are in the frame.
    let ports = unsafe { ports.read_unaligned() };
    packet.source = client;
    packet.protocol = protocol;
    // The server sent it: its port stands first.
    packet.ports = ports.rotate_left(16);
    packet.kind = Kind::Error;
}
