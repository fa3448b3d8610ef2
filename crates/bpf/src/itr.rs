//! Ingress tunnel router: packets of hosts into the overlay (RFC 9300 §4, §5.3).

use core::hint::cold_path;

use bpf_abi::{
    ACTION_DROP, ACTION_ENCAPSULATE, ACTION_NATIVE, ACTION_RESOLVE, BUCKETS, FLOW_CLOSING, FLOW_REFRESH_NS,
    FlowValue, INSTANCE_MAC, INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, InterfaceValue, LOCATOR_GPE,
    LocatorValue, MEMBERS, MappingValue, Member, NodeValue, OFFERED, OVERHEAD_V4, OVERHEAD_V6, Reason,
    SYN_IDLE_NS, SlotValue, UNPLACED, bucket, source_port,
};

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

use crate::clock::ticks;
use crate::flow_cache::{Moment, Place, Way};
use crate::headers::{
    Ethernet, Ipv4, Ipv6, LISP_I, LISP_P, LISP_PORT, UDP, checksum_after, header_checksum, words, write_words,
};
use crate::inner::{self, Inner, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport, on_wire};
use crate::maps::{
    FLOWS, FlowWords, INTERFACES, LOCATORS, MAP_CACHE, NODE, SLOTS, count, count_traffic, longest,
};
use crate::packet::{ETHERNET, Family, Packet, at};

/// Octets that are read directly: Ethernet, the longest IPv4 header or IPv6, TCP up to its flags.
const READABLE: u32 = 14 + 60 + 20;

/// Runs the ITR on a packet; the program's return value.
#[inline(always)]
pub(crate) fn itr<P: Packet>(packet: &P) -> i32 {
    let (reason, action) = match forward(packet) {
        Ok(done) => done,
        Err(reason) if reason.passes() => (reason, P::PASS),
        Err(reason) => (reason, P::DROP),
    };
    count(reason);
    action
}

#[inline(always)]
fn forward<P: Packet>(packet: &P) -> Result<(Reason, i32), Reason> {
    if !packet.is_for_us() {
        return Err(Reason::PassNotLisp);
    }
    packet.make_readable(READABLE);
    let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::PassNotLisp)?;
    // SAFETY: `at` checked that the header is in the packet.
    let ethertype = unsafe { (*ethernet).ethertype };
    // One copy of the path for each family: the compiler then knows all lengths and the mapped prefix of addresses.
    if ethertype == Family::V4.ethertype() {
        family::<P>(packet, Family::V4)
    } else if ethertype == Family::V6.ethertype() {
        // Here and below: the compiler lays what most packets take together, and this apart from it.
        cold_path();
        family::<P>(packet, Family::V6)
    } else {
        Err(Reason::PassNotLisp)
    }
}

#[inline(always)]
fn family<P: Packet>(packet: &P, family: Family) -> Result<(Reason, i32), Reason> {
    let gso_size = packet.gso_size();
    let inner = inner::read(packet, ETHERNET, family, gso_size != 0)?;
    let node = NODE.get(0).ok_or(Reason::DropNotReady)?;
    let moment = Moment {
        // Before any other table, or what an old one says would be taken for the new generation's.
        // SAFETY: an aligned word of the entry of an array.
        generation: unsafe { (&raw const node.generation).read_volatile() },
        ifindex: packet.ifindex(),
        now: ticks() as u32,
    };
    let mut transport = inner.transport(packet, ETHERNET);
    let cell = match &transport {
        Ok(transport) => Place::of(transport, &moment, node.flow_idle_ns),
        Err(_) => None,
    };
    let recalled = match (&transport, cell) {
        (Ok(transport), Some(cell)) => cell.recall(transport, &moment),
        _ => None,
    };
    let found = match recalled {
        // Only packets of interfaces without flags are noted.
        Some(way) => Found { way, from_stack: false },
        None => {
            cold_path();
            match look_up(packet, &inner, &mut transport, cell, &moment, node)? {
                Verdict::Encapsulate(found) => found,
                Verdict::Resolve(instance_id) => return resolve(packet, instance_id),
            }
        }
    };
    let Found { way: Way { instance_id, mapping_id, locator: locator_index, hash }, from_stack } = found;
    let ttl = decremented(inner.ttl, from_stack)?;
    let locator = LOCATORS.get(locator_index).ok_or(Reason::DropNotReady)?;
    let (outer, overhead) = match locator.family {
        4 => (Family::V4, OVERHEAD_V4),
        6 => {
            cold_path();
            (Family::V6, OVERHEAD_V6)
        }
        _ => return Err(Reason::DropNotReady),
    };
    let wire = on_wire(packet, &inner, ETHERNET, gso_size);
    if wire.largest + overhead > locator.mtu {
        return Err(if from_stack { Reason::DropTooBig } else { Reason::PassTooBig });
    }
    let route = packet.route_to_locator(locator)?;
    set_ttl(packet, family, inner.ttl, ttl)?;
    let counted = packet.grow(overhead, outer, family)?;
    let lisp = Lisp { hash, instance_id, gpe: locator.flags & LOCATOR_GPE != 0, inner: family };
    match outer {
        Family::V4 => write_v4(packet, locator, &inner, ttl, &lisp)?,
        Family::V6 => write_v6(packet, locator, &inner, ttl, &lisp)?,
    }
    count_traffic(mapping_id, locator_index, 0, wire.packets, wire.bytes);
    Ok((counted, packet.send(&route)))
}

/// What the tables said to a packet that is to be encapsulated.
struct Found {
    way: Way,
    from_stack: bool,
}

enum Verdict {
    Encapsulate(Found),
    /// In this instance.
    Resolve(u32),
}

/// Asks interface, map-cache, slot and flow table, and notes the answer for the packets that follow.
#[inline(always)]
fn look_up<P: Packet>(
    packet: &P,
    inner: &Inner,
    transport: &mut Result<Transport, Reason>,
    cell: Option<Place>,
    moment: &Moment,
    node: &NodeValue,
) -> Result<Verdict, Reason> {
    // SAFETY: programs only read the value; user space replaces it whole.
    let interface = unsafe { INTERFACES.get(moment.ifindex) }.ok_or(Reason::DropNotReady)?;
    let instance_id = instance(packet, interface)?;
    let mapping = longest(&MAP_CACHE, instance_id, &inner.destination).ok_or(Reason::PassNotLisp)?;
    match mapping.action {
        ACTION_ENCAPSULATE => {}
        ACTION_RESOLVE => return Ok(Verdict::Resolve(instance_id)),
        ACTION_NATIVE => return Err(Reason::PassNative),
        ACTION_DROP => return Err(Reason::DropPolicy),
        _ => return Err(Reason::DropNotReady),
    }
    let from_stack = interface.flags & INTERFACE_FROM_STACK != 0;
    // A packet that is not forwarded places no flow.
    decremented(inner.ttl, from_stack)?;
    let transport = match transport {
        Ok(transport) => transport,
        Err(reason) => return Err(*reason),
    };
    transport.key.0.instance_id = instance_id;
    let hash = transport.hash();
    // SAFETY: no memory is touched.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let locator = place(transport, hash, mapping, now, node.flow_idle_ns)?;
    let way = Way { instance_id, mapping_id: mapping.mapping_id, locator, hash };
    if let (Some(cell), 0) = (cell, interface.flags) {
        cell.note(transport, moment, &way);
    }
    Ok(Verdict::Encapsulate(Found { way, from_stack }))
}

/// Instance of the packet: the interface's, or the one that was written into the frame before it was held.
#[inline(always)]
fn instance<P: Packet>(packet: &P, interface: &InterfaceValue) -> Result<u32, Reason> {
    if interface.flags & INTERFACE_INSTANCE_IN_MAC == 0 {
        return Ok(interface.instance_id);
    }
    let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::DropMalformed)?;
    // SAFETY: `at` checked that the header is in the packet.
    let [m0, m1, i0, i1, i2, i3] = unsafe { (*ethernet).source };
    if [m0, m1] == INSTANCE_MAC { Ok(u32::from_be_bytes([i0, i1, i2, i3])) } else { Err(Reason::PassNotLisp) }
}

/// Hands the packet to user space, with its instance in the source MAC.
#[inline(always)]
fn resolve<P: Packet>(packet: &P, instance_id: u32) -> Result<(Reason, i32), Reason> {
    let node = NODE.get(0).ok_or(Reason::DropNotReady)?;
    if node.resolve_ifindex == 0 {
        return Err(Reason::DropUnresolved);
    }
    let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::DropMalformed)?;
    let [m0, m1] = INSTANCE_MAC;
    let [i0, i1, i2, i3] = instance_id.to_be_bytes();
    // SAFETY: `at` checked that the header is in the packet.
    unsafe { (*ethernet).source = [m0, m1, i0, i1, i2, i3] };
    Ok((Reason::Resolve, packet.redirect(node.resolve_ifindex)))
}

/// TTL after this router's own decrement; the stack answers packets whose TTL is used up.
#[inline(always)]
fn decremented(ttl: u8, from_stack: bool) -> Result<u8, Reason> {
    if from_stack {
        return Ok(ttl);
    }
    if ttl <= 1 { Err(Reason::PassTtl) } else { Ok(ttl - 1) }
}

/// Locator of the packet's flow. New flows are counted here, also those whose first packet gets no further.
#[inline(always)]
fn place(
    transport: &Transport,
    hash: u32,
    mapping: &MappingValue,
    now: u64,
    idle_ns: u64,
) -> Result<u32, Reason> {
    let slot = SLOTS.get(mapping.slot).ok_or(Reason::DropNotReady)?;
    let is_syn = transport.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if idle_ns == 0 {
        count_traffic(mapping.mapping_id, OFFERED, u64::from(is_syn), 0, 0);
        let locator = bucket_member(slot, hash)?.1.locator;
        count_traffic(mapping.mapping_id, locator, u64::from(is_syn), 0, 0);
        return Ok(locator);
    }
    let mut known = false;
    if let Some(flow) = FLOWS.get_ptr_mut(&transport.key.0) {
        known = is_known(flow, mapping.mapping_id, now, idle_ns, is_syn);
        if known && let Some(locator) = stay(flow, slot) {
            refresh(flow, now, transport.tcp_flags);
            return Ok(locator);
        }
    }
    if !known {
        count_traffic(mapping.mapping_id, OFFERED, 1, 0, 0);
    }
    let chosen = bucket_member(slot, hash);
    // A flow that has lost its locator goes back there if the locator comes back first.
    if known && let Err(reason) = chosen {
        return Err(reason);
    }
    let (member, locator) = match &chosen {
        Ok((member, chosen)) => (u32::from(*member), chosen.locator),
        Err(_) => (UNPLACED, UNPLACED),
    };
    remember(
        &transport.key.0,
        FlowValue {
            last_seen: now,
            mapping_id: mapping.mapping_id,
            member,
            locator,
            flags: closing(transport.tcp_flags),
        },
    );
    chosen?;
    count_traffic(mapping.mapping_id, locator, 1, 0, 0);
    Ok(locator)
}

/// Whether the packet belongs to the flow that was remembered, and not to a new one of the same addresses and ports.
#[inline(always)]
fn is_known(flow: *const FlowValue, mapping_id: u32, now: u64, idle_ns: u64, is_syn: bool) -> bool {
    // SAFETY: a value of the flow table: valid for the run of the program, even if the entry is replaced meanwhile;
    // a torn read only places one flow anew.
    let flow = unsafe { &*flow };
    let idle = now.saturating_sub(flow.last_seen);
    if flow.mapping_id != mapping_id || idle >= idle_ns {
        return false;
    }
    !(is_syn && (flow.flags & FLOW_CLOSING != 0 || idle > SYN_IDLE_NS))
}

/// Locator of a flow that stays where it is.
#[inline(always)]
fn stay(flow: *const FlowValue, slot: &SlotValue) -> Option<u32> {
    // SAFETY: as in `is_known`.
    let flow = unsafe { &*flow };
    let member = usable(slot, flow.member)?;
    (member.locator == flow.locator).then_some(member.locator)
}

/// Member of the hash's bucket for a new flow.
#[inline(always)]
fn bucket_member(slot: &SlotValue, hash: u32) -> Result<(u8, &Member), Reason> {
    const { assert!(BUCKETS.is_power_of_two(), "the verifier must see the bound") };
    let member = slot.buckets[bucket(hash)];
    usable(slot, u32::from(member)).map(|chosen| (member, chosen)).ok_or(Reason::DropNoLocator)
}

#[inline(always)]
fn usable(slot: &SlotValue, index: u32) -> Option<&Member> {
    if index as usize >= MEMBERS {
        return None;
    }
    let member = slot.members.get(index as usize)?;
    (member.usable != 0).then_some(member)
}

#[inline(always)]
const fn closing(tcp_flags: u8) -> u32 {
    if tcp_flags & (TCP_FIN | TCP_RST) != 0 { FLOW_CLOSING } else { 0 }
}

/// Writes to the flow only when it changes something: its cache line is shared by all CPUs.
#[inline(always)]
fn refresh(flow: *mut FlowValue, now: u64, tcp_flags: u8) {
    // SAFETY: as in `is_known`; aligned words, written whole.
    unsafe {
        if now.saturating_sub((*flow).last_seen) > FLOW_REFRESH_NS {
            (*flow).last_seen = now;
        }
        let flags = (*flow).flags | closing(tcp_flags);
        if flags != (*flow).flags {
            (*flow).flags = flags;
        }
    }
}

/// A full or contended table costs stickiness, never the packet.
#[inline(always)]
fn remember(key: &FlowWords, value: FlowValue) {
    const BPF_ANY: u64 = 0;
    let _ = FLOWS.insert(key, value, BPF_ANY);
}

/// Writes the decremented TTL into the packet of the EID.
#[inline(always)]
fn set_ttl<P: Packet>(packet: &P, family: Family, old: u8, new: u8) -> Result<(), Reason> {
    if old == new {
        return Ok(());
    }
    match family {
        Family::V4 => {
            let ip: *mut Ipv4 = at(packet, ETHERNET).ok_or(Reason::DropMalformed)?;
            // SAFETY: `at` checked that the header is in the packet.
            unsafe {
                let protocol = (*ip).protocol;
                let before = u16::from_ne_bytes([old, protocol]);
                let after = u16::from_ne_bytes([new, protocol]);
                (*ip).checksum = checksum_after((*ip).checksum, before, after);
                (*ip).ttl = new;
            }
        }
        Family::V6 => {
            let ip: *mut Ipv6 = at(packet, ETHERNET).ok_or(Reason::DropMalformed)?;
            // SAFETY: likewise.
            unsafe { (*ip).hop_limit = new };
        }
    }
    Ok(())
}

/// What the UDP and LISP headers say.
struct Lisp {
    hash: u32,
    instance_id: u32,
    gpe: bool,
    inner: Family,
}

impl Lisp {
    /// UDP and LISP header in words (RFC 9300 §5.3). With GPE the next protocol is told, which lets the peer's kernel
    /// merge segments (RFC 9305).
    #[inline(always)]
    fn words(&self, length: u16) -> [u32; 4] {
        let next_protocol = match self.inner {
            Family::V4 => 1,
            Family::V6 => 2,
        };
        let (flags, low) = match (self.gpe, self.instance_id) {
            (true, _) => (LISP_I | LISP_P, next_protocol),
            (false, 0) => (0, 0),
            (false, _) => (LISP_I, 0),
        };
        [
            (u32::from(source_port(self.hash)) << 16 | u32::from(LISP_PORT)).to_be(),
            (u32::from(length) << 16).to_be(),
            (u32::from(flags) << 24 | low).to_be(),
            (self.instance_id << 8).to_be(),
        ]
    }
}

/// Length field of a header; segmentation writes the real ones when a GSO packet does not fit.
#[inline(always)]
const fn length_field(length: u32) -> u16 {
    if length > 0xffff { 0 } else { length as u16 }
}

#[inline(always)]
fn write_v4<P: Packet>(
    packet: &P,
    locator: &LocatorValue,
    inner: &Inner,
    ttl: u8,
    lisp: &Lisp,
) -> Result<(), Reason> {
    const DONT_FRAGMENT: u32 = 0x4000;
    let outer: *mut [u32; 9] = at(packet, ETHERNET).ok_or(Reason::DropAdjustRoom)?;
    let length = inner.length + OVERHEAD_V4;
    let first = (0x45 << 24 | u32::from(inner.tos) << 16 | u32::from(length_field(length))).to_be();
    let second = DONT_FRAGMENT.to_be();
    let third = (u32::from(ttl) << 24 | u32::from(UDP) << 16).to_be();
    let [.., source] = words(&locator.source);
    let [.., destination] = words(&locator.destination);
    let checksum = header_checksum([first, second, third, source, destination]);
    // The checksum is the second half of the word in memory.
    let third = (u32::from_be(third) | u32::from(u16::from_be(checksum))).to_be();
    let [u0, u1, l0, l1] = lisp.words(length_field(length - 20));
    // SAFETY: `at` checked that the room is in the packet.
    unsafe { write_words(outer, [first, second, third, source, destination, u0, u1, l0, l1]) };
    set_ethertype(packet, Family::V4, lisp.inner)
}

#[inline(always)]
fn write_v6<P: Packet>(
    packet: &P,
    locator: &LocatorValue,
    inner: &Inner,
    ttl: u8,
    lisp: &Lisp,
) -> Result<(), Reason> {
    let outer: *mut [u32; 14] = at(packet, ETHERNET).ok_or(Reason::DropAdjustRoom)?;
    let payload = length_field(inner.length + OVERHEAD_V6 - 40);
    // Flow label (RFC 6438): the low 20 bits of the flow hash.
    let first = (6 << 28 | u32::from(inner.tos) << 20 | lisp.hash & 0x000f_ffff).to_be();
    let second = (u32::from(payload) << 16 | u32::from(UDP) << 8 | u32::from(ttl)).to_be();
    let [s0, s1, s2, s3] = words(&locator.source);
    let [d0, d1, d2, d3] = words(&locator.destination);
    let [u0, u1, l0, l1] = lisp.words(payload);
    // SAFETY: `at` checked that the room is in the packet.
    unsafe { write_words(outer, [first, second, s0, s1, s2, s3, d0, d1, d2, d3, u0, u1, l0, l1]) };
    set_ethertype(packet, Family::V6, lisp.inner)
}

#[inline(always)]
fn set_ethertype<P: Packet>(packet: &P, new: Family, old: Family) -> Result<(), Reason> {
    if new != old {
        let ethernet: *mut Ethernet = at(packet, 0).ok_or(Reason::DropAdjustRoom)?;
        // SAFETY: `at` checked that the header is in the packet.
        unsafe { (*ethernet).ethertype = new.ethertype() };
    }
    Ok(())
}
