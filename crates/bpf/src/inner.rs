//! A packet of an EID: what the tables and the outer header need to know about it.

use bpf_abi::{Reason, hash_words};

use crate::headers::{Address, IPV6_FRAGMENT, Ipv4, Ipv6, SCTP, TCP, UDP, mapped, read_words};
use crate::maps::FlowWords;
use crate::packet::{Family, Packet, at, at_variable};
use crate::verifier::Aligned;

/// The network header of the packet of an EID.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    pub(crate) family: Family,
    /// Octets of the network header, IPv4 options included.
    pub(crate) header: u32,
    /// Octets of the whole packet as its header tells.
    pub(crate) length: u32,
    /// TOS or traffic class.
    pub(crate) tos: u8,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// Protocol or next header.
    pub(crate) protocol: u8,
    /// One of several fragments.
    pub(crate) fragment: bool,
    pub(crate) source: Address,
    pub(crate) destination: Address,
}

/// Flow and TCP flags of a packet.
pub(crate) struct Transport {
    pub(crate) key: Aligned<FlowWords>,
    pub(crate) tcp_flags: u8,
}

pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_SYN: u8 = 0x02;
pub(crate) const TCP_RST: u8 = 0x04;
pub(crate) const TCP_ACK: u8 = 0x10;

/// First octets of TCP, up to the flags.
#[repr(C, packed)]
struct TcpStart {
    ports: u32,
    sequence: [u8; 8],
    data_offset: u8,
    flags: u8,
}

impl Inner {
    /// Reads an IPv4 header of which `available` octets and more are in the packet.
    #[inline(always)]
    pub(crate) fn v4(ip: *const Ipv4, available: u32, gso: bool) -> Result<Self, Reason> {
        // SAFETY: the caller's pointer comes from `at`, which checked that the header is in the packet.
        let ip = unsafe { &*ip };
        let header = u32::from(ip.version_ihl & 0x0f) << 2;
        if ip.version_ihl >> 4 != 4 || header < 20 {
            return Err(Reason::DropMalformed);
        }
        // The field is 0 or stale in packets above 64 KiB.
        let length = if gso { available } else { u32::from(u16::from_be_bytes(ip.length)) };
        if length < header || length > available {
            return Err(Reason::DropMalformed);
        }
        let [high, low] = ip.fragment;
        Ok(Self {
            family: Family::V4,
            header,
            length,
            tos: ip.tos,
            ttl: ip.ttl,
            protocol: ip.protocol,
            fragment: (high & 0x3f) | low != 0,
            source: mapped(ip.source),
            destination: mapped(ip.destination),
        })
    }

    /// Reads an IPv6 header of which `available` octets and more are in the packet.
    #[inline(always)]
    pub(crate) fn v6(ip: *const Ipv6, available: u32, gso: bool) -> Result<Self, Reason> {
        // SAFETY: as in `v4`.
        let ip = unsafe { &*ip };
        let [first, second, ..] = ip.version_class_label;
        let length = if gso { available } else { u32::from(u16::from_be_bytes(ip.length)) + 40 };
        if first >> 4 != 6 || length > available {
            return Err(Reason::DropMalformed);
        }
        Ok(Self {
            family: Family::V6,
            header: 40,
            length,
            tos: (first << 4) | (second >> 4),
            ttl: ip.hop_limit,
            protocol: ip.next_header,
            fragment: ip.next_header == IPV6_FRAGMENT,
            // SAFETY: as above.
            source: unsafe { read_words(&raw const ip.source) },
            // SAFETY: as above.
            destination: unsafe { read_words(&raw const ip.destination) },
        })
    }

    /// Flow of the packet, whose network header is at `offset` in the frame; of which instance is not known yet.
    #[inline(always)]
    pub(crate) fn transport<P: Packet>(&self, packet: &P, offset: usize) -> Result<Transport, Reason> {
        let mut key = FlowWords {
            source: self.source,
            destination: self.destination,
            ports: 0,
            protocol: 0,
            instance_id: 0,
        };
        let mut tcp_flags = 0;
        if !self.fragment && matches!(self.protocol, TCP | UDP | SCTP) {
            let needed = if self.protocol == TCP { 20 } else { 8 };
            if self.length < self.header + needed {
                return Err(Reason::DropMalformed);
            }
            let at_transport = offset + self.header as usize;
            key.ports = if self.protocol == TCP {
                let tcp: *mut TcpStart = at_variable(packet, at_transport).ok_or(Reason::DropMalformed)?;
                // SAFETY: `at_variable` checked that these octets are in the packet.
                unsafe {
                    tcp_flags = (*tcp).flags;
                    (*tcp).ports
                }
            } else {
                let ports: *mut u32 = at_variable(packet, at_transport).ok_or(Reason::DropMalformed)?;
                // SAFETY: likewise.
                unsafe { ports.read_unaligned() }
            };
            key.protocol = u32::from(self.protocol);
        }
        Ok(Transport { key: Aligned(key), tcp_flags })
    }

    /// Octets of network and transport header of each segment of a GSO packet.
    #[inline(always)]
    pub(crate) fn segment_headers<P: Packet>(&self, packet: &P, offset: usize) -> u32 {
        const TCP_MAXIMUM: u32 = 60;
        let transport = match self.protocol {
            UDP => 8,
            TCP => match at_variable::<TcpStart>(packet, offset + self.header as usize) {
                // SAFETY: `at_variable` checked that these octets are in the packet.
                Some(tcp) => u32::from(unsafe { (*tcp).data_offset } >> 4) << 2,
                None => TCP_MAXIMUM,
            },
            // Behind extension headers: an upper bound, so that the MTU holds.
            _ => TCP_MAXIMUM,
        };
        self.header + transport
    }
}

impl Transport {
    /// `bpf_abi::flow_hash` of the key.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        let FlowWords { source, destination, instance_id, ports, protocol } = &self.key.0;
        let [s0, s1, s2, s3] = *source;
        let [d0, d1, d2, d3] = *destination;
        hash_words(
            [u32::from_be(s0), u32::from_be(s1), u32::from_be(s2), u32::from_be(s3)],
            [u32::from_be(d0), u32::from_be(d1), u32::from_be(d2), u32::from_be(d3)],
            *instance_id,
            u32::from_be(*ports),
            *protocol,
        )
    }
}

/// Packets and octets that a packet is on the wire.
pub(crate) struct OnWire {
    /// Octets of the largest one.
    pub(crate) largest: u32,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// What `inner` at `offset` becomes when it is segmented.
#[inline(always)]
pub(crate) fn on_wire<P: Packet>(packet: &P, inner: &Inner, offset: usize, gso_size: u32) -> OnWire {
    let whole = OnWire { largest: inner.length, packets: 1, bytes: u64::from(inner.length) };
    if gso_size == 0 {
        return whole;
    }
    let headers = inner.segment_headers(packet, offset);
    if inner.length <= headers + gso_size {
        return whole;
    }
    let payload = inner.length - headers;
    let packets = u64::from((payload + gso_size - 1) / gso_size);
    OnWire { largest: headers + gso_size, packets, bytes: u64::from(payload) + packets * u64::from(headers) }
}

/// The network header at a constant `offset`.
#[inline(always)]
pub(crate) fn read<P: Packet>(packet: &P, offset: usize, family: Family, gso: bool) -> Result<Inner, Reason> {
    let available = packet.length() - offset as u32;
    match family {
        Family::V4 => Inner::v4(at(packet, offset).ok_or(Reason::DropMalformed)?, available, gso),
        Family::V6 => Inner::v6(at(packet, offset).ok_or(Reason::DropMalformed)?, available, gso),
    }
}
