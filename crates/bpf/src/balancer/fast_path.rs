//! The rules in a straight line, for the frame as it comes: a whole TCP, UDP or SCTP packet without IP options, untagged or
//! in an 802.1Q VLAN, to a VIP that this CPU remembers and whose table alone decides.
//!
//! It takes a fraction of the instructions of the way that knows every case (docs/decisions/0014). What it sends, that
//! way would send with the same octets, and count as the same; what it does not send it leaves untouched.

use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{BackendValue, BalancerNodeValue, segment};

use crate::choice::{named, usable};
use crate::frame::Frame;
use crate::headers::{Address, Ipv4, Ipv6, SCTP, TCP, UDP, mapped, read_words};
use crate::maps::{NODE, VipWords, count, count_sent, cpu};
use crate::packet::native;
use crate::segment::{DOT1Q, ETHERNET, GENEVE_PORT, IPV4, IPV6, TAG, VXLAN_PORT};
use crate::vip_cache;

/// Ethernet II and a tag if there is one, in the words that are compared and written.
#[repr(C, packed)]
struct Start {
    destination: MacWords,
    source: MacWords,
    ethertype: [u8; 2],
    tci: [u8; 2],
    inner_ethertype: [u8; 2],
}

/// A link-layer address, as memory holds it.
#[repr(C, packed)]
#[derive(Clone, Copy, PartialEq)]
struct MacWords(u32, u16);

/// What of a packet makes its flow.
struct Flow {
    source: Address,
    destination: Address,
    protocol: u8,
    ports: u32,
}

/// Sends a common frame to its backend; `None` if it is not common.
#[inline(always)]
pub(crate) fn send(frame: &Frame) -> Option<()> {
    let node = NODE.get(0)?;
    let start: *mut Start = frame.at(0)?;
    // SAFETY: `at` checked that all of it is in the frame, and nothing is written to that yet.
    let read = unsafe { &*start };
    if read.destination != mac_words(node.mac) {
        return None;
    }
    match read.ethertype {
        IPV4 => untagged(frame, node, start, v4::<ETHERNET>(frame)?),
        IPV6 => untagged(frame, node, start, v6::<ETHERNET>(frame)?),
        DOT1Q => match read.inner_ethertype {
            IPV4 => tagged(frame, node, start, v4::<{ ETHERNET + TAG }>(frame)?),
            IPV6 => tagged(frame, node, start, v6::<{ ETHERNET + TAG }>(frame)?),
            _ => None,
        },
        _ => None,
    }
}

#[inline(always)]
fn untagged(frame: &Frame, node: &BalancerNodeValue, start: *mut Start, flow: Flow) -> Option<()> {
    let [_, _, high, low] = flow.ports.to_ne_bytes();
    let may_be_tunnel = flow.protocol == UDP && ([high, low] == VXLAN_PORT || [high, low] == GENEVE_PORT);
    if node.vtep_count != 0 && may_be_tunnel {
        return None;
    }
    let backend = choose(frame, node, &flow, segment::NONE)?;
    // SAFETY: as in `send`; from here on nothing else refers to the frame.
    let start = unsafe { &mut *start };
    start.set_macs(backend, node);
    Some(())
}

#[inline(always)]
fn tagged(frame: &Frame, node: &BalancerNodeValue, start: *mut Start, flow: Flow) -> Option<()> {
    // SAFETY: as in `send`.
    let tci = u16::from_be_bytes(unsafe { (*start).tci });
    let vid = u32::from(tci & 0x0fff);
    // Priority-tagged frames belong to no VLAN (802.1Q-2022 §6.9.1).
    let segment = if vid == 0 { segment::NONE } else { segment::DOT1Q | vid };
    let backend = choose(frame, node, &flow, segment)?;
    // SAFETY: as in `send`; from here on nothing else refers to the frame.
    let start = unsafe { &mut *start };
    start.tci = (tci & 0xf000 | backend.segment as u16 & 0x0fff).to_be_bytes();
    start.set_macs(backend, node);
    Some(())
}

impl Start {
    #[inline(always)]
    fn set_macs(&mut self, backend: &BackendValue, node: &BalancerNodeValue) {
        self.destination = mac_words(backend.mac);
        self.source = mac_words(node.mac);
    }
}

#[inline(always)]
fn mac_words([a, b, c, d, e, f]: [u8; 6]) -> MacWords {
    MacWords(u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]))
}

#[inline(always)]
fn v4<const OFFSET: usize>(frame: &Frame) -> Option<Flow> {
    const HEADER: u32 = 20;
    let (ip, ports): (*mut Ipv4, *mut u32) = (frame.at(OFFSET)?, frame.at(OFFSET + HEADER as usize)?);
    // SAFETY: `at` checked that both are in the frame.
    let (ip, ports) = unsafe { (&*ip, ports.read_unaligned()) };
    let length = u32::from(u16::from_be_bytes(ip.length));
    // Reserved and Don't Fragment bits are anything.
    let is_fragment = u16::from_be_bytes(ip.fragment) & 0x3fff != 0;
    if ip.version_ihl != 0x45 || is_fragment || OFFSET as u32 + length > frame.length() {
        return None;
    }
    has_transport(ip.protocol, length.checked_sub(HEADER)?)?;
    let (source, destination) = (mapped(ip.source), mapped(ip.destination));
    Some(Flow { source, destination, protocol: ip.protocol, ports })
}

#[inline(always)]
fn v6<const OFFSET: usize>(frame: &Frame) -> Option<Flow> {
    const HEADER: usize = 40;
    let (ip, ports): (*mut Ipv6, *mut u32) = (frame.at(OFFSET)?, frame.at(OFFSET + HEADER)?);
    // SAFETY: `at` checked that both are in the frame.
    let (ip, ports) = unsafe { (&*ip, ports.read_unaligned()) };
    let octets = u32::from(u16::from_be_bytes(ip.length));
    if ip.version_class_label[0] >> 4 != 6 || (OFFSET + HEADER) as u32 + octets > frame.length() {
        return None;
    }
    has_transport(ip.next_header, octets)?;
    // SAFETY: as above.
    let source = unsafe { read_words(&raw const ip.source) };
    // SAFETY: as above.
    let destination = unsafe { read_words(&raw const ip.destination) };
    Some(Flow { source, destination, protocol: ip.next_header, ports })
}

/// Whether as many octets hold a header of a transport protocol.
#[inline(always)]
fn has_transport(protocol: u8, octets: u32) -> Option<()> {
    let header = match protocol {
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        _ => return None,
    };
    (octets >= header).then_some(())
}

/// The backend of a flow, which is counted as sent there.
#[inline(always)]
fn choose(
    frame: &Frame,
    node: &BalancerNodeValue,
    flow: &Flow,
    segment: u32,
) -> Option<&'static BackendValue> {
    let port_protocol = flow.ports >> 16 | u32::from(flow.protocol) << 16;
    let key = VipWords { address: flow.destination, segment, port_protocol };
    let cpu = cpu();
    let vip = vip_cache::remembered(cpu, node.generation, &key)?;
    let (table, size) = vip.only_table()?;
    let ports = u32::from_be(flow.ports);
    let hash = node.flow_hash.of_parts(vip.destination_part(), native(flow.source), ports);
    let index = named(hash, table, size)?;
    let backend = usable(index)?;
    count(Reason::Forwarded);
    count_sent(cpu, vip.id(), index, frame.length());
    Some(backend)
}
