//! Egress tunnel router: packets out of the overlay to hosts (RFC 9300 §5.3).

use core::hint::cold_path;

use bpf_abi::{DECAPSULATED, INTERFACE_SEGMENTED, LocalEidValue, NodeValue, OWN_RLOCS, Reason};

use crate::egress_cache::local_eid;
use crate::headers::{
    Address, Ethernet, Ipv4, Ipv6, LISP_DATA_PORT, LISP_I, LISP_KK, LISP_N, LISP_P, LISP_V, UDP, UdpLisp,
    checksum_after, merge_ecn, words,
};
use crate::inner::{Inner, on_wire};
use crate::maps::{INTERFACES, NODE, count, count_traffic};
use crate::packet::{ETHERNET, Family, Packet, at, at_variable};

/// Octets that are read directly: both network headers at their longest, UDP, LISP and TCP up to its flags.
const READABLE: u32 = 14 + 60 + 16 + 60 + 20;

/// Runs the ETR on a packet; the program's return value.
#[inline(always)]
pub(crate) fn etr<P: Packet>(packet: &P) -> i32 {
    let (reason, action) = match forward(packet) {
        Ok(done) => done,
        Err(reason) if reason.passes() => (reason, P::PASS),
        Err(reason) => (reason, P::DROP),
    };
    count(reason);
    action
}

/// What the outer network header says.
struct Outer {
    family: Family,
    /// Octets in front of the UDP header.
    offset: usize,
    /// Octets of UDP and what follows, as the header tells.
    payload: u32,
    ttl: u8,
    tos: u8,
    destination: Address,
}

#[inline(always)]
fn forward<P: Packet>(packet: &P) -> Result<(Reason, i32), Reason> {
    if !packet.is_for_us() && !packet.take_over() {
        return Err(Reason::PassNotLisp);
    }
    packet.make_readable(READABLE);
    let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::PassNotLisp)?;
    // SAFETY: `at` checked that the header is in the packet.
    let ethertype = unsafe { (*ethernet).ethertype };
    let gso_size = packet.gso_size();
    let outer = if ethertype == Family::V4.ethertype() {
        outer_v4(packet, gso_size != 0)?
    } else if ethertype == Family::V6.ethertype() {
        // Here and below: laid apart from what most packets take.
        cold_path();
        outer_v6(packet, gso_size != 0)?
    } else {
        return Err(Reason::PassNotLisp);
    };
    let node = NODE.get(0).ok_or(Reason::PassNotLisp)?;
    // Before any other table, or what an old one says would be taken for the new generation's.
    // SAFETY: an aligned word of the entry of an array.
    let generation = unsafe { (&raw const node.generation).read_volatile() };
    let (instance_id, inner_length) = lisp(packet, node, &outer, gso_size != 0)?;
    let at_inner = outer.offset + size_of::<UdpLisp>();
    let first: *mut u8 = at_variable(packet, at_inner).ok_or(Reason::DropMalformed)?;
    // SAFETY: `at_variable` checked that the octet is in the packet.
    match unsafe { *first } >> 4 {
        4 => {
            let ip: *mut Ipv4 = at_variable(packet, at_inner).ok_or(Reason::DropMalformed)?;
            let inner = Inner::v4(ip, inner_length, gso_size != 0)?;
            deliver(packet, &outer, &inner, instance_id, generation, gso_size)
        }
        6 => {
            cold_path();
            let ip: *mut Ipv6 = at_variable(packet, at_inner).ok_or(Reason::DropMalformed)?;
            let inner = Inner::v6(ip, inner_length, gso_size != 0)?;
            deliver(packet, &outer, &inner, instance_id, generation, gso_size)
        }
        _ => Err(Reason::DropMalformed),
    }
}

/// Fragments of outer packets are left to the stack, as is everything that is no UDP.
#[inline(always)]
fn outer_v4<P: Packet>(packet: &P, gso: bool) -> Result<Outer, Reason> {
    let ip: *mut Ipv4 = at(packet, ETHERNET).ok_or(Reason::PassNotLisp)?;
    let available = packet.length() - ETHERNET as u32;
    let outer = Inner::v4(ip, available, gso).map_err(|_| Reason::PassNotLisp)?;
    if outer.protocol != UDP || outer.fragment {
        return Err(Reason::PassNotLisp);
    }
    Ok(Outer {
        family: Family::V4,
        offset: ETHERNET + outer.header as usize,
        payload: outer.length - outer.header,
        ttl: outer.ttl,
        tos: outer.tos,
        destination: outer.destination,
    })
}

#[inline(always)]
fn outer_v6<P: Packet>(packet: &P, gso: bool) -> Result<Outer, Reason> {
    let ip: *mut Ipv6 = at(packet, ETHERNET).ok_or(Reason::PassNotLisp)?;
    let available = packet.length() - ETHERNET as u32;
    let outer = Inner::v6(ip, available, gso).map_err(|_| Reason::PassNotLisp)?;
    if outer.protocol != UDP {
        return Err(Reason::PassNotLisp);
    }
    Ok(Outer {
        family: Family::V6,
        offset: ETHERNET + 40,
        payload: outer.length - 40,
        ttl: outer.ttl,
        tos: outer.tos,
        destination: outer.destination,
    })
}

/// Whether the packet is for this node; one to another node's RLOC is in transit, whatever EIDs both have.
#[inline(always)]
fn is_own_rloc(node: &NodeValue, destination: &Address) -> bool {
    for (index, rloc) in node.rlocs.iter().enumerate() {
        if index as u32 >= node.rloc_count {
            return false;
        }
        if words(rloc) == *destination {
            return true;
        }
    }
    const { assert!(OWN_RLOCS <= 8, "the loop is unrolled") };
    false
}

/// Instance and octets of the packet behind the LISP header.
#[inline(always)]
fn lisp<P: Packet>(packet: &P, node: &NodeValue, outer: &Outer, gso: bool) -> Result<(u32, u32), Reason> {
    const HEADERS: u32 = size_of::<UdpLisp>() as u32;
    let udp: *mut UdpLisp = at_variable(packet, outer.offset).ok_or(Reason::PassNotLisp)?;
    // SAFETY: `at_variable` checked that the headers are in the packet.
    let udp = unsafe { &*udp };
    if udp.destination_port != LISP_DATA_PORT || !is_own_rloc(node, &outer.destination) {
        return Err(Reason::PassNotLisp);
    }
    let length = if gso { outer.payload } else { u32::from(u16::from_be_bytes(udp.length)) };
    if length < HEADERS || length > outer.payload {
        return Err(Reason::DropMalformed);
    }
    if udp.flags & LISP_KK != 0 {
        return Err(Reason::DropHeader);
    }
    // RFC 9300 ignores the bit that RFC 9305 calls P, and a plain header may set it by mistake: only a next protocol
    // that could be meant (no nonce, no map-version there) and is not IP refuses the packet.
    let [_, _, next_protocol] = udp.nonce;
    if udp.flags & (LISP_P | LISP_N | LISP_V) == LISP_P && next_protocol > 2 {
        return Err(Reason::DropHeader);
    }
    let instance_id = if udp.flags & LISP_I == 0 { 0 } else { u32::from_be_bytes(udp.instance) >> 8 };
    Ok((instance_id, length - HEADERS))
}

#[inline(always)]
fn deliver<P: Packet>(
    packet: &P,
    outer: &Outer,
    inner: &Inner,
    instance_id: u32,
    generation: u32,
    gso_size: u32,
) -> Result<(Reason, i32), Reason> {
    let eid = local_eid(generation, instance_id, &inner.destination).ok_or(Reason::DropNotLocal)?;
    let ecn = merge_ecn(inner.tos, outer.tos).ok_or(Reason::DropEcn)?;
    if gso_size != 0 && inner.protocol == UDP {
        cold_path();
        if let Some(segmented) = segment(packet)? {
            return Ok(segmented);
        }
    }
    let wire = on_wire(packet, inner, outer.offset + size_of::<UdpLisp>(), gso_size);
    let received = if outer.ttl < inner.ttl { outer.ttl } else { inner.ttl };
    // The stack decrements the TTL of what it forwards, and answers when it is used up.
    let route =
        if eid.ifindex != 0 && received > 1 { packet.route_to_host(&inner.destination, eid) } else { None };
    let ttl = if route.is_some() { received - 1 } else { received };
    let removed = (outer.offset - ETHERNET + size_of::<UdpLisp>()) as u32;
    packet.shrink(removed, inner.family)?;
    rewrite(packet, inner, ttl, (outer.tos & 0xfc) | ecn)?;
    if outer.family != inner.family {
        let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::DropAdjustRoom)?;
        // SAFETY: `at` checked that the header is in the packet.
        unsafe { (*ethernet).ethertype = inner.family.ethertype() };
    }
    if eid.ifindex != 0 && received <= 1 {
        return Err(Reason::PassTtl);
    }
    count_traffic(eid.local_id, DECAPSULATED, 0, wire.packets, wire.bytes);
    Ok((
        Reason::Decapsulated,
        match route {
            Some(route) => packet.send(&route),
            None => P::PASS,
        },
    ))
}

/// Sends a UDP GSO packet through the segmenting veth: shrinking leaves it marked as a tunnel's, and the host's
/// segmentation would then take the inner UDP header for the tunnel's (kernels without BPF_F_ADJ_ROOM_DECAP_L4_UDP).
#[inline(always)]
fn segment<P: Packet>(packet: &P) -> Result<Option<(Reason, i32)>, Reason> {
    let node = NODE.get(0).ok_or(Reason::DropNotReady)?;
    if node.segment_ifindex == 0 {
        return Ok(None);
    }
    if is_segmented(packet) {
        return Err(Reason::DropAdjustRoom);
    }
    Ok(Some((Reason::Segment, packet.redirect(node.segment_ifindex))))
}

/// Whether the packet comes out of the segmenting veth.
#[inline(always)]
pub(crate) fn is_segmented<P: Packet>(packet: &P) -> bool {
    // SAFETY: programs only read the value; user space replaces it whole.
    let interface = unsafe { INTERFACES.get(packet.ifindex()) };
    interface.is_some_and(|interface| interface.flags & INTERFACE_SEGMENTED != 0)
}

/// Writes TTL and TOS into the decapsulated packet.
#[inline(always)]
fn rewrite<P: Packet>(packet: &P, inner: &Inner, ttl: u8, tos: u8) -> Result<(), Reason> {
    match inner.family {
        Family::V4 => {
            let ip: *mut Ipv4 = at(packet, ETHERNET).ok_or(Reason::DropAdjustRoom)?;
            // SAFETY: `at` checked that the header is in the packet.
            let ip = unsafe { &mut *ip };
            let mut checksum = ip.checksum;
            if tos != inner.tos {
                let first = ip.version_ihl;
                checksum = checksum_after(
                    checksum,
                    u16::from_ne_bytes([first, inner.tos]),
                    u16::from_ne_bytes([first, tos]),
                );
                ip.tos = tos;
            }
            if ttl != inner.ttl {
                let protocol = inner.protocol;
                checksum = checksum_after(
                    checksum,
                    u16::from_ne_bytes([inner.ttl, protocol]),
                    u16::from_ne_bytes([ttl, protocol]),
                );
                ip.ttl = ttl;
            }
            ip.checksum = checksum;
        }
        Family::V6 => {
            let ip: *mut Ipv6 = at(packet, ETHERNET).ok_or(Reason::DropAdjustRoom)?;
            // SAFETY: likewise.
            let ip = unsafe { &mut *ip };
            let [first, second, l2, l3] = ip.version_class_label;
            ip.version_class_label = [(first & 0xf0) | (tos >> 4), (tos << 4) | (second & 0x0f), l2, l3];
            ip.hop_limit = ttl;
        }
    }
    Ok(())
}

/// Address to ask the neighbour table for: the configured next hop, or the destination itself.
#[inline(always)]
pub(crate) fn next_hop(eid: &LocalEidValue, destination: &Address) -> Address {
    let configured = words(&eid.next_hop);
    let [a, b, c, d] = configured;
    if a | b | c | d == 0 { *destination } else { configured }
}
