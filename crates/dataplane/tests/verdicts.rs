//! Every verdict of the programs through BPF_PROG_TEST_RUN, beside an independent model. Needs root.
#![expect(clippy::cast_possible_truncation, reason = "octets and sizes of small frames")]
#![expect(
    clippy::unwrap_used,
    reason = "frames are built from constants, and slices have the length that is asked for"
)]

mod frames;
mod kernel;
mod model;

use std::collections::HashMap;

use anyhow::Result;
use aya::maps::Array;
use bpf_abi::{
    ACTION_DROP, ACTION_NATIVE, ACTION_RESOLVE, BUCKETS, DECAPSULATED, FLOW_CLOSING, FlowValue,
    INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED, InterfaceValue, LOCATOR_GPE,
    LOCATOR_MAC_RESOLVED, LocalEidValue, LocatorValue, MEMBERS, MappingValue, Member, NO_MEMBER, NodeValue,
    OFFERED, Reason, SlotValue, TrafficKey,
};

use dataplane::test_run::{TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_REDIRECT};

use crate::frames::{Flow, Outer, client, fix_checksum, lisp, own_rlocs, service, tcp, udp};
use crate::kernel::{Direction, Input, Kernel, monotonic_coarse};
use crate::model::{Expected, Hook, Prefix, Tables, Verdict, mapped};

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;
const SECOND: u64 = 1_000_000_000;
const HOOKS: [Hook; 2] = [Hook::Tc, Hook::Xdp];

fn locator(index: u32, v6: bool) -> LocatorValue {
    let address = |host: u8| if v6 { service(true, host) } else { mapped([192, 0, 2, host]) };
    LocatorValue {
        source: address(1),
        destination: address(10 + index as u8),
        next_hop: address(254),
        ifindex: 1,
        mtu: 1500,
        family: if v6 { 6 } else { 4 },
        flags: LOCATOR_MAC_RESOLVED,
        next_hop_mac: [2, 0, 0, 0, 1, index as u8],
        source_mac: [2, 0, 0, 0, 2, 1],
        pad: 0,
    }
}

/// Members at locators 1.., buckets in turn.
fn slot(members: &[(u32, bool)]) -> SlotValue {
    let mut slot = SlotValue {
        member_count: members.len() as u32,
        pad: 0,
        members: [Member { locator: u32::MAX, usable: 0 }; MEMBERS],
        buckets: [NO_MEMBER; BUCKETS],
    };
    for (member, (locator, usable)) in slot.members.iter_mut().zip(members) {
        *member = Member { locator: *locator, usable: (*usable).into() };
    }
    let usable: Vec<u8> =
        (0..).zip(members).filter(|(_, (_, usable))| *usable).map(|(index, _)| index).collect();
    if !usable.is_empty() {
        slot.buckets.iter_mut().zip(usable.iter().cycle()).for_each(|(bucket, member)| *bucket = *member);
    }
    slot
}

fn prefix(address: [u8; 16], bits: u32) -> Prefix {
    Prefix { instance_id: 0, address, bits }
}

const ENCAPSULATE: MappingValue = MappingValue { action: 0, slot: 3, mapping_id: 7, pad: 0 };

/// Both families' services behind locators 1 and 2 (IPv4), their hosts behind this node as well.
fn tables() -> Tables {
    let mut tables = Tables {
        interface: Some(InterfaceValue::default()),
        node: own_rlocs(NodeValue { resolve_ifindex: 1, flow_idle_ns: 100 * SECOND, ..NodeValue::default() }),
        ..Tables::default()
    };
    let eid = LocalEidValue { ifindex: 1, next_hop: [0; 16], local_id: 9 };
    for v6 in [false, true] {
        let bits = if v6 { 64 } else { 120 };
        tables.map_cache.insert(prefix(service(v6, 0), bits), ENCAPSULATE);
        tables.local_eids.insert(prefix(service(v6, 0), bits), eid);
    }
    tables.slots.insert(3, slot(&[(1, true), (2, true)]));
    tables.locators.extend([1, 2].map(|index| (index, locator(index, false))));
    tables
}

fn traffic() -> Vec<TrafficKey> {
    let mut keys: Vec<_> = [1, 2, 3, OFFERED].map(|locator| TrafficKey { id: 7, locator }).into();
    keys.push(TrafficKey { id: 9, locator: DECAPSULATED });
    keys
}

fn kernel(tables: Tables) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.install(tables, &traffic())?;
    Ok(kernel)
}

fn itr(hook: Hook, frame: Vec<u8>) -> Input {
    Input { hook, direction: Direction::Itr, frame, gso_size: 0 }
}

fn etr(hook: Hook, frame: Vec<u8>) -> Input {
    Input { hook, direction: Direction::Etr, frame, gso_size: 0 }
}

/// Name of the case, direction, how the tables differ, the frame, its GSO size, the reason that has to be counted.
type Case = (&'static str, Direction, fn(&mut Tables), Vec<u8>, u32, Reason);

fn itr_cases() -> Vec<Case> {
    use Direction::Itr;
    let flow = Flow::default();
    let same: fn(&mut Tables) = |_| {};
    let mut options = udp(flow, 40);
    options[14] = 0x47;
    options[34..42].copy_from_slice(&[1, 1, 1, 1, 1, 1, 1, 0]);
    fix_checksum(&mut options, 14);
    let other = |at: usize, octet: u8| {
        let mut frame = udp(flow, 30);
        frame[at] = octet;
        frame
    };
    let mut held = udp(flow, 30);
    held[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 5]);
    vec![
        ("udp", Itr, same, udp(flow, 30), 0, Reason::Encapsulated),
        ("tcp", Itr, same, tcp(flow, ACK, 100), 0, Reason::Encapsulated),
        ("ipv4 options", Itr, same, options, 0, Reason::Encapsulated),
        ("padded frame", Itr, same, [udp(flow, 2), vec![0; 16]].concat(), 0, Reason::Encapsulated),
        ("ipv6", Itr, same, udp(Flow { v6: true, ..flow }, 30), 0, Reason::Encapsulated),
        ("dscp and ecn", Itr, same, udp(Flow { tos: 0xb9, ..flow }, 30), 0, Reason::Encapsulated),
        ("instance", Itr, |t| rename_instance(t, 0x0012_3456), udp(flow, 30), 0, Reason::Encapsulated),
        ("gpe", Itr, |t| locators(t, |l| l.flags |= LOCATOR_GPE), udp(flow, 30), 0, Reason::Encapsulated),
        ("over ipv6", Itr, over_v6, udp(flow, 30), 0, Reason::Encapsulated),
        ("ipv6 over ipv6", Itr, over_v6, udp(Flow { v6: true, ..flow }, 30), 0, Reason::Encapsulated),
        ("gso tcp", Itr, same, tcp(flow, ACK, 2500), 1000, Reason::DropAdjustRoom),
        ("gso udp", Itr, same, udp(flow, 2400), 1200, Reason::DropAdjustRoom),
        ("gso tcp too big", Itr, same, tcp(flow, ACK, 3000), 1425, Reason::PassTooBig),
        ("largest", Itr, same, udp(flow, 1464 - 28), 0, Reason::Encapsulated),
        ("too big", Itr, same, udp(flow, 1464 - 27), 0, Reason::PassTooBig),
        ("too big again", Itr, from_stack, udp(flow, 1464 - 27), 0, Reason::DropTooBig),
        ("from the stack", Itr, from_stack, udp(Flow { ttl: 1, ..flow }, 30), 0, Reason::Encapsulated),
        ("ttl 1", Itr, same, udp(Flow { ttl: 1, ..flow }, 30), 0, Reason::PassTtl),
        ("ttl 2", Itr, same, udp(Flow { ttl: 2, ..flow }, 30), 0, Reason::Encapsulated),
        ("other destination", Itr, same, other(32, 9), 0, Reason::PassNotLisp),
        ("arp", Itr, same, other(13, 6), 0, Reason::PassNotLisp),
        (
            "vlan tag",
            Itr,
            same,
            [&udp(flow, 30)[..12], &[0x81, 0], &[0; 60]].concat(),
            0,
            Reason::PassNotLisp,
        ),
        ("group mac", Itr, same, other(0, 1), 0, Reason::PassNotLisp),
        ("short header", Itr, same, other(14, 0x44), 0, Reason::DropMalformed),
        ("other version", Itr, same, other(14, 0x65), 0, Reason::DropMalformed),
        ("length beyond the frame", Itr, same, other(16, 9), 0, Reason::DropMalformed),
        ("length below the header", Itr, same, other(17, 19), 0, Reason::DropMalformed),
        ("no whole udp", Itr, same, other(17, 27), 0, Reason::DropMalformed),
        ("native", Itr, |t| action(t, ACTION_NATIVE), udp(flow, 30), 0, Reason::PassNative),
        ("policy", Itr, |t| action(t, ACTION_DROP), udp(flow, 30), 0, Reason::DropPolicy),
        ("unresolved", Itr, |t| action(t, ACTION_RESOLVE), udp(flow, 30), 0, Reason::Resolve),
        ("nobody resolves", Itr, nobody_resolves, udp(flow, 30), 0, Reason::DropUnresolved),
        ("unknown action", Itr, |t| action(t, 77), udp(flow, 30), 0, Reason::DropNotReady),
        ("held and back", Itr, held_frames, held, 0, Reason::Encapsulated),
        ("held without instance", Itr, held_frames, other(6, 4), 0, Reason::PassNotLisp),
        ("no interface", Itr, |t| t.interface = None, udp(flow, 30), 0, Reason::DropNotReady),
        ("no locator entry", Itr, |t| t.locators.clear(), udp(flow, 30), 0, Reason::DropNotReady),
        ("no slot entry", Itr, |t| t.slots.clear(), udp(flow, 30), 0, Reason::DropNoLocator),
        ("slot out of range", Itr, |t| slot_index(t, 512), udp(flow, 30), 0, Reason::DropNotReady),
        (
            "nothing usable",
            Itr,
            |t| members(t, &[(1, false), (2, false)]),
            udp(flow, 30),
            0,
            Reason::DropNoLocator,
        ),
        ("bucket of a lost member", Itr, lost_member, udp(flow, 30), 0, Reason::DropNoLocator),
        ("stickiness off", Itr, |t| t.node.flow_idle_ns = 0, tcp(flow, SYN, 0), 0, Reason::Encapsulated),
    ]
}

fn rename_instance(tables: &mut Tables, instance_id: u32) {
    tables.interface = Some(InterfaceValue { instance_id, flags: 0 });
    let rename = |(prefix, value)| (Prefix { instance_id, ..prefix }, value);
    tables.map_cache = tables.map_cache.drain().map(rename).collect();
    let rename = |(prefix, value)| (Prefix { instance_id, ..prefix }, value);
    tables.local_eids = tables.local_eids.drain().map(rename).collect();
}

fn locators(tables: &mut Tables, change: fn(&mut LocatorValue)) {
    tables.locators.values_mut().for_each(change);
}

fn over_v6(tables: &mut Tables) {
    tables.locators.iter_mut().for_each(|(index, value)| *value = locator(*index, true));
}

fn from_stack(tables: &mut Tables) {
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_FROM_STACK });
}

fn held_frames(tables: &mut Tables) {
    rename_instance(tables, 5);
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_INSTANCE_IN_MAC });
}

fn action(tables: &mut Tables, action: u32) {
    tables.map_cache.values_mut().for_each(|mapping| mapping.action = action);
}

fn nobody_resolves(tables: &mut Tables) {
    action(tables, ACTION_RESOLVE);
    tables.node.resolve_ifindex = 0;
}

fn slot_index(tables: &mut Tables, slot: u32) {
    tables.map_cache.values_mut().for_each(|mapping| mapping.slot = slot);
}

fn members(tables: &mut Tables, members: &[(u32, bool)]) {
    tables.slots.insert(3, slot(members));
}

fn lost_member(tables: &mut Tables) {
    let mut lost = slot(&[(1, true), (2, false)]);
    lost.buckets = [1; BUCKETS];
    tables.slots.insert(3, lost);
}

fn etr_cases() -> Vec<Case> {
    use Direction::Etr;
    let flow = Flow::default();
    let same: fn(&mut Tables) = |_| {};
    let inner = udp(flow, 30);
    let outer = Outer::default();
    let with = |change: fn(&mut Outer)| {
        let mut outer = Outer::default();
        change(&mut outer);
        lisp(&outer, &udp(Flow::default(), 30))
    };
    let changed = |at: usize, octet: u8| {
        let mut frame = lisp(&Outer::default(), &udp(Flow::default(), 30));
        frame[at] = octet;
        frame
    };
    let v6 = udp(Flow { v6: true, ..flow }, 30);
    vec![
        ("4 in 4", Etr, same, lisp(&outer, &inner), 0, Reason::Decapsulated),
        ("4 in 6", Etr, same, with(|o| o.v6 = true), 0, Reason::Decapsulated),
        ("6 in 4", Etr, same, lisp(&outer, &v6), 0, Reason::Decapsulated),
        ("6 in 6", Etr, same, lisp(&Outer { v6: true, ..outer.clone() }, &v6), 0, Reason::Decapsulated),
        ("outer options", Etr, same, with(|o| o.options = vec![1; 40]), 0, Reason::Decapsulated),
        ("tcp gso", Etr, same, lisp(&outer, &tcp(flow, ACK, 2500)), 1000, Reason::DropAdjustRoom),
        ("udp gso", Etr, same, lisp(&outer, &udp(flow, 2500)), 1000, Reason::DropAdjustRoom),
        ("udp gso", Etr, segment, lisp(&outer, &udp(flow, 2500)), 1000, Reason::Segment),
        ("udp gso again", Etr, segmented, lisp(&outer, &udp(flow, 2500)), 1000, Reason::DropAdjustRoom),
        ("into the stack", Etr, to_stack, lisp(&outer, &inner), 0, Reason::Decapsulated),
        ("ttl 1", Etr, same, with(|o| o.ttl = 1), 0, Reason::PassTtl),
        ("ttl 1 into the stack", Etr, to_stack, with(|o| o.ttl = 1), 0, Reason::Decapsulated),
        ("nonce", Etr, same, with(|o| o.flags = [0x80, 1, 2, 3]), 0, Reason::Decapsulated),
        ("instance", Etr, |t| rename_instance(t, 5), with(instance_5), 0, Reason::Decapsulated),
        ("other instance", Etr, same, with(instance_5), 0, Reason::DropNotLocal),
        ("status bits, no instance", Etr, same, with(status_bits), 0, Reason::Decapsulated),
        ("reserved bit", Etr, same, with(|o| o.flags = [4, 0, 0, 0]), 0, Reason::Decapsulated),
        ("reserved bit, nonce", Etr, same, with(|o| o.flags = [0x84, 1, 2, 9]), 0, Reason::Decapsulated),
        ("gpe ipv4", Etr, same, with(|o| o.flags = [0x0c, 0, 0, 1]), 0, Reason::Decapsulated),
        ("gpe ethernet", Etr, same, with(|o| o.flags = [0x0c, 0, 0, 3]), 0, Reason::DropHeader),
        ("encrypted", Etr, same, with(|o| o.flags = [1, 0, 0, 0]), 0, Reason::DropHeader),
        ("other port", Etr, same, with(|o| o.destination_port = 4342), 0, Reason::PassNotLisp),
        ("outer fragment", Etr, same, changed(20, 0x20), 0, Reason::PassNotLisp),
        ("in transit", Etr, |t| t.node.rloc_count = 0, lisp(&outer, &inner), 0, Reason::PassNotLisp),
        ("in transit, 6", Etr, |t| t.node.rloc_count = 1, with(|o| o.v6 = true), 0, Reason::PassNotLisp),
        ("in transit, host", Etr, same, changed(33, 3), 0, Reason::PassNotLisp),
        ("last own rloc", Etr, last_own_rloc, lisp(&outer, &inner), 0, Reason::Decapsulated),
        ("outer tcp", Etr, same, changed(23, 6), 0, Reason::PassNotLisp),
        ("foreign mac", Etr, same, changed(0, 3), 0, Reason::PassNotLisp),
        ("mac of another underlay", Etr, segmented, changed(0, 2), 0, Reason::Decapsulated),
        ("udp length short", Etr, same, changed(39, 15), 0, Reason::DropMalformed),
        ("udp length long", Etr, same, changed(38, 9), 0, Reason::DropMalformed),
        ("inner version", Etr, same, changed(50, 0x75), 0, Reason::DropMalformed),
        ("inner length", Etr, same, changed(52, 9), 0, Reason::DropMalformed),
        ("inner cut", Etr, same, lisp(&outer, &inner[..30]), 0, Reason::DropMalformed),
        ("no inner", Etr, same, lisp(&outer, &inner[..14]), 0, Reason::DropMalformed),
        ("not local", Etr, |t| t.local_eids.clear(), lisp(&outer, &inner), 0, Reason::DropNotLocal),
        ("ecn", Etr, same, with(|o| o.tos = 3), 0, Reason::DropEcn),
    ]
}

fn instance_5(outer: &mut Outer) {
    outer.flags = [8, 0, 0, 0];
    outer.instance_id = 5;
}

fn status_bits(outer: &mut Outer) {
    outer.flags = [0x40, 0, 0, 0];
    outer.instance_id = 5;
}

fn segment(tables: &mut Tables) {
    tables.node.segment_ifindex = 1;
}

fn segmented(tables: &mut Tables) {
    segment(tables);
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_SEGMENTED });
}

fn last_own_rloc(tables: &mut Tables) {
    tables.node.rlocs.rotate_right(1);
    tables.node.rlocs.swap(1, 7);
    tables.node.rloc_count = 8;
}

fn to_stack(tables: &mut Tables) {
    tables.local_eids.values_mut().for_each(|eid| eid.ifindex = 0);
}

#[test]
fn cases() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let mut seen = HashMap::new();
    for (name, direction, change, frame, gso_size, reason) in itr_cases().into_iter().chain(etr_cases()) {
        for hook in HOOKS.into_iter().filter(|hook| *hook == Hook::Tc || gso_size == 0) {
            let mut tables = tables();
            change(&mut tables);
            kernel.install(tables, &traffic())?;
            let input = Input { hook, direction, frame: frame.clone(), gso_size };
            let expected = kernel.check(&input).map_err(|error| error.context(name))?;
            // XDP sees no foreign unicast to refuse.
            if !(name == "foreign mac" && hook == Hook::Xdp) {
                assert_eq!(expected.reason, reason, "{name} {hook:?}");
            }
            seen.insert(expected.reason, name);
        }
    }
    // Only a packet that the kernel marked as a tunnel's before gets there, and a test run cannot mark one;
    // without a resolved next hop see `xdp_without_next_hop`.
    let untested = [Reason::EncapsulatedPlain, Reason::PassNoNextHop];
    let missing: Vec<_> =
        Reason::ALL.iter().filter(|r| !seen.contains_key(r) && !untested.contains(r)).collect();
    assert!(missing.is_empty(), "no case leads to {missing:?}");
    Ok(())
}

#[test]
fn xdp_without_next_hop() -> Result<()> {
    let mut tables = tables();
    locators(&mut tables, |locator| locator.flags = 0);
    let expected = kernel(tables)?.check(&itr(Hook::Xdp, udp(Flow::default(), 30)))?;
    assert_eq!(expected.reason, Reason::PassNoNextHop);
    Ok(())
}

/// Written by hand from RFC 9300 §5.1, with neither model nor builder.
#[test]
fn encapsulated_octets() -> Result<()> {
    let inner = "45000021123400004011536b0ac800010a640001";
    let datagram = "9c400050000d000068656c6c6f";
    let frame = format!("000000000000020000000001 0800 {inner} {datagram}");
    let mut tables = tables();
    members(&mut tables, &[(1, true)]);
    let mut kernel = kernel(tables)?;
    let expected = kernel.check(&itr(Hook::Tc, hex(&frame)))?;
    let outer_ip = "45000045000040003f11b79bc0000201c000020b";
    let lisp = "0000000000000000";
    let forwarded = "45000021123400003f11546b0ac800010a640001";
    let packet = hex(&format!(
        "000000000000020000000001 0800 {outer_ip} 0000 10f5 0031 0000 {lisp} {forwarded} {datagram}"
    ));
    assert!(expected.packet[34] >= 0xc0, "source port is in the dynamic range");
    assert_eq!(expected.packet[..34], packet[..34]);
    assert_eq!(expected.packet[36..], packet[36..]);
    Ok(())
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// Defect seen elsewhere: outer TTL copied to the inner packet even when it is larger, or smaller one lost.
#[test]
fn inner_ttl_is_only_lowered() -> Result<()> {
    let mut tables = tables();
    to_stack(&mut tables);
    let mut to_stack = kernel(tables)?;
    for (inner, outer, result) in [(5, 60, 5), (60, 5, 5), (64, 64, 64), (1, 255, 1)] {
        for hook in HOOKS {
            let frame = udp(Flow { ttl: inner, ..Flow::default() }, 30);
            let expected =
                to_stack.check(&etr(hook, lisp(&Outer { ttl: outer, ..Outer::default() }, &frame)))?;
            assert_eq!(expected.packet[22], result, "inner {inner} outer {outer}");
        }
    }
    Ok(())
}

/// Defect seen elsewhere: the TOS octet copied whole both ways.
#[test]
fn ecn_of_every_combination() -> Result<()> {
    let mut kernel = kernel(tables())?;
    for inner in 0..4_u8 {
        for outer in 0..4_u8 {
            for v6 in [false, true] {
                let frame = udp(Flow { tos: 0x20 | inner, v6, ..Flow::default() }, 30);
                let frame = lisp(&Outer { tos: 0x40 | outer, ..Outer::default() }, &frame);
                let expected = kernel.check(&etr(Hook::Tc, frame))?;
                let result = model::ECN[usize::from(inner)][usize::from(outer)];
                let tos = if v6 {
                    (expected.packet[14] << 4) | (expected.packet[15] >> 4)
                } else {
                    expected.packet[15]
                };
                match result {
                    Some(ecn) => assert_eq!(tos, 0x40 | ecn, "inner {inner} outer {outer}"),
                    None => assert_eq!(expected.reason, Reason::DropEcn),
                }
            }
        }
    }
    Ok(())
}

fn place(kernel: &mut Kernel, frame: Vec<u8>) -> Result<(u32, bool)> {
    let expected = kernel.check(&itr(Hook::Tc, frame))?;
    let (key, [flows, ..]) = expected.traffic.unwrap_or_else(|| panic!("{expected:?}"));
    Ok((key.locator, flows == 1))
}

/// Defect seen elsewhere: one source port for all flows.
#[test]
fn source_ports_tell_flows_apart() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let mut ports = std::collections::HashSet::new();
    for port in 0..1000 {
        let flow = Flow { source_port: 1024 + port, ..Flow::default() };
        let first = kernel.check(&itr(Hook::Tc, udp(flow, 30)))?.packet;
        let second = kernel.check(&itr(Hook::Tc, udp(flow, 300)))?.packet;
        assert_eq!(first[34..36], second[34..36]);
        ports.insert([first[34], first[35]]);
    }
    assert!(ports.len() > 950, "{} source ports for 1000 flows", ports.len());
    Ok(())
}

/// Defect seen elsewhere: the first fragment takes another way than the later ones.
#[test]
fn fragments_of_a_datagram_stay_together() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let mut used = std::collections::HashSet::new();
    for host in 0..40 {
        let flow = Flow { source: host, ..Flow::default() };
        let fragment = |field: u16| {
            let mut frame = udp(flow, 200);
            frame[20..22].copy_from_slice(&field.to_be_bytes());
            // Later fragments hold payload where ports would be.
            if field & 0x1fff != 0 {
                frame[34..38].copy_from_slice(&field.to_le_bytes().repeat(2));
            }
            fix_checksum(&mut frame, 14);
            frame
        };
        let (first, _) = place(&mut kernel, fragment(0x2000))?;
        for field in [0x2019, 0x2032, 0x004b] {
            assert_eq!(place(&mut kernel, fragment(field))?, (first, false));
        }
        used.insert(first);
    }
    assert_eq!(used.len(), 2);
    Ok(())
}

/// Defect seen elsewhere: a packet that does not fit vanishes. What is left to the stack is unchanged, so that it can
/// answer or fragment, and the fragments that come back fit.
#[test]
fn packets_that_do_not_fit_go_to_the_stack() -> Result<()> {
    for (v6_locator, largest) in [(false, 1464), (true, 1444)] {
        let mut tables = tables();
        if v6_locator {
            over_v6(&mut tables);
        }
        let mut kernel = kernel(tables)?;
        for hook in HOOKS {
            let fits = kernel.check(&itr(hook, udp(Flow::default(), largest - 28)))?;
            assert_eq!((fits.reason, fits.packet.len()), (Reason::Encapsulated, 1514));
            let frame = udp(Flow::default(), largest - 27);
            let large = kernel.check(&itr(hook, frame.clone()))?;
            assert_eq!((large.reason, large.packet), (Reason::PassTooBig, frame));
        }
    }
    Ok(())
}

#[test]
fn a_flow_stays_when_the_buckets_move() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let flows: Vec<_> = (0..200).map(|port| Flow { source_port: 2000 + port, ..Flow::default() }).collect();
    let mut placed = Vec::new();
    for flow in &flows {
        placed.push(place(&mut kernel, tcp(*flow, SYN, 0))?.0);
    }
    let mut tables = kernel.tables.clone();
    let mut moved = slot(&[(1, true), (2, true)]);
    moved.buckets = [1; BUCKETS];
    tables.slots.insert(3, moved);
    kernel.install(tables, &traffic())?;
    for (flow, locator) in flows.iter().zip(&placed) {
        assert_eq!(place(&mut kernel, tcp(*flow, ACK, 10))?, (*locator, false));
    }
    for port in 0..200 {
        let flow = Flow { source_port: 3000 + port, ..Flow::default() };
        assert_eq!(place(&mut kernel, tcp(flow, SYN, 0))?, (2, true));
    }
    kernel.check_flows()
}

#[test]
fn a_flow_leaves_a_locator_that_is_lost() -> Result<()> {
    for lost in [slot(&[(1, false), (2, true)]), slot(&[(5, true), (2, true)]), slot(&[(2, true)])] {
        let mut only_first = tables();
        members(&mut only_first, &[(1, true)]);
        let mut kernel = kernel(only_first)?;
        assert_eq!(place(&mut kernel, tcp(Flow::default(), SYN, 0))?, (1, true));
        let mut tables = kernel.tables.clone();
        tables
            .slots
            .insert(3, SlotValue { buckets: [if lost.member_count == 1 { 0 } else { 1 }; BUCKETS], ..lost });
        tables.locators.insert(2, locator(2, false));
        kernel.install(tables, &traffic())?;
        assert_eq!(place(&mut kernel, tcp(Flow::default(), ACK, 0))?, (2, true));
    }
    Ok(())
}

/// Offered load is what comes in front of the split, also when nothing behind it can take it.
#[test]
fn flows_without_a_locator_are_offered_once() -> Result<()> {
    let offered =
        |kernel: &Kernel| Ok::<_, anyhow::Error>(kernel.traffic(TrafficKey { id: 7, locator: OFFERED })?[0]);
    let mut lost = tables();
    members(&mut lost, &[(1, false), (2, false)]);
    let mut kernel = kernel(lost)?;
    for flags in [SYN, SYN, ACK] {
        assert_eq!(
            kernel.check(&itr(Hook::Tc, tcp(Flow::default(), flags, 0)))?.reason,
            Reason::DropNoLocator
        );
        kernel.check_flows()?;
    }
    assert_eq!(offered(&kernel)?, 1);
    let mut back = kernel.tables.clone();
    members(&mut back, &[(1, true)]);
    kernel.install(back, &traffic())?;
    assert_eq!(place(&mut kernel, tcp(Flow::default(), SYN, 0))?, (1, true));
    assert_eq!(offered(&kernel)?, 0, "it was counted when it came");
    let mut lost = kernel.tables.clone();
    members(&mut lost, &[(1, false)]);
    kernel.install(lost, &traffic())?;
    kernel.check(&itr(Hook::Tc, tcp(Flow::default(), ACK, 0)))?;
    assert_eq!(
        kernel.tables.flows.values().map(|flow| flow.locator).collect::<Vec<_>>(),
        [1],
        "it may come back"
    );
    kernel.check_flows()
}

#[test]
fn a_flow_is_counted_when_its_first_packet_is_too_big() -> Result<()> {
    let mut small = tables();
    members(&mut small, &[(1, true)]);
    locators(&mut small, |l| l.mtu = 500);
    let mut kernel = kernel(small)?;
    let first = kernel.check(&itr(Hook::Tc, udp(Flow::default(), 600)))?;
    assert_eq!((first.reason, first.flows.len()), (Reason::PassTooBig, 2));
    assert_eq!(place(&mut kernel, udp(Flow::default(), 100))?, (1, false));
    kernel.check_flows()
}

/// Changes the slot behind the programs' back: what they remember stays.
fn slot_alone(kernel: &mut Kernel, slot: SlotValue) -> Result<()> {
    let map = kernel.object.map_mut("SLOTS").expect("a map of the object");
    Ok(Array::<_, SlotValue>::try_from(map)?.set(3, slot, 0)?)
}

/// What a CPU remembers of a flow ends with the generation of the tables; packets that begin or end a flow ask anyway.
#[test]
fn what_is_remembered_ends_with_the_generation() -> Result<()> {
    const TRIES: usize = 20;
    let mut kernel = kernel(tables())?;
    let way = |kernel: &Kernel, flags: u8| -> Result<u8> {
        Ok(kernel.run(&itr(Hook::Tc, tcp(Flow::default(), flags, 0)))?.packet[33])
    };
    let mut remembered = 0;
    for _ in 0..TRIES {
        let mut first = tables();
        members(&mut first, &[(1, true)]);
        kernel.install(first, &traffic())?;
        assert_eq!(way(&kernel, ACK)?, 11);
        slot_alone(&mut kernel, slot(&[(2, true)]))?;
        // Not if the machine took too long, or another CPU.
        remembered += usize::from(way(&kernel, ACK)? == 11);
        assert_eq!(way(&kernel, SYN)?, 12, "a packet that may begin a flow");
        assert_eq!(way(&kernel, ACK)?, 12, "what the flow table said last");
        slot_alone(&mut kernel, slot(&[(1, true)]))?;
        let tables = kernel.tables.clone();
        kernel.install(tables, &traffic())?;
        assert_eq!(way(&kernel, ACK)?, 11, "a new generation");
    }
    assert!(remembered > 0, "nothing is remembered");
    Ok(())
}

/// Likewise for what a CPU remembers of a local EID.
#[test]
fn a_local_eid_is_remembered_for_its_generation() -> Result<()> {
    const TRIES: usize = 20;
    for hook in HOOKS {
        let mut kernel = kernel(tables())?;
        let packet = etr(hook, lisp(&Outer::default(), &udp(Flow::default(), 30)));
        let drop = if hook == Hook::Tc { TC_SHOT } else { XDP_DROP };
        let mut remembered = 0;
        for _ in 0..TRIES {
            kernel.install(tables(), &traffic())?;
            assert_ne!(kernel.run(&packet)?.action, drop);
            kernel.local_eids_alone(&Tables::default())?;
            // Not on another CPU.
            remembered += usize::from(kernel.run(&packet)?.action != drop);
            kernel.install(Tables { node: tables().node, ..Tables::default() }, &traffic())?;
            assert_eq!(kernel.run(&packet)?.action, drop, "a new generation");
        }
        assert!(remembered > 0, "nothing is remembered, {hook:?}");
    }
    Ok(())
}

/// What a packet with these flags is to a flow of this age and state: `true` if it is a new one.
#[test]
fn when_a_flow_is_a_new_one() -> Result<()> {
    let flow = Flow::default();
    let cases = [
        ("retransmitted SYN", SYN, 30, 0, false),
        ("SYN after a minute", SYN, 61, 0, true),
        ("SYN-ACK after a minute", SYN | ACK, 61, 0, false),
        ("data after a minute", ACK, 61, 0, false),
        ("data after the idle time", ACK, 101, 0, true),
        ("last ACK", ACK, 0, FLOW_CLOSING, false),
        ("SYN after the close", SYN, 0, FLOW_CLOSING, true),
        ("SYN-ACK after the close", SYN | ACK, 0, FLOW_CLOSING, false),
    ];
    let mut kernel = kernel(tables())?;
    for (name, flags, seconds, state, is_new) in cases {
        let mut tables = tables();
        members(&mut tables, &[(1, true)]);
        kernel.install(tables, &traffic())?;
        assert_eq!(place(&mut kernel, tcp(flow, SYN, 0))?, (1, true));
        if state == FLOW_CLOSING {
            place(&mut kernel, tcp(flow, ACK | if seconds == 0 { FIN } else { RST }, 0))?;
        }
        let mut tables = kernel.tables.clone();
        let mut moved = slot(&[(1, true), (2, true)]);
        moved.buckets = [1; BUCKETS];
        tables.slots.insert(3, moved);
        kernel.install(tables, &traffic())?;
        kernel.age_flows(seconds * SECOND)?;
        let (locator, new) = place(&mut kernel, tcp(flow, flags, 0))?;
        assert_eq!((locator, new), (if is_new { 2 } else { 1 }, is_new), "{name}");
        kernel.check_flows()?;
    }
    Ok(())
}

#[test]
fn a_reset_closes_a_flow() -> Result<()> {
    let mut kernel = kernel(tables())?;
    place(&mut kernel, tcp(Flow::default(), SYN, 0))?;
    place(&mut kernel, tcp(Flow::default(), RST, 0))?;
    assert!(kernel.tables.flows.values().all(|flow| flow.flags == FLOW_CLOSING));
    kernel.check_flows()?;
    assert!(place(&mut kernel, tcp(Flow::default(), SYN, 0))?.1);
    Ok(())
}

/// The prefix decides in its instance: the same addresses, two instances, two locators.
#[test]
fn overlapping_prefixes_of_two_instances() -> Result<()> {
    let mut tables = tables();
    tables.map_cache.clear();
    for (instance_id, slot_index) in [(1, 10), (2, 11)] {
        let prefix = Prefix { instance_id, ..prefix(service(false, 0), 120) };
        tables.map_cache.insert(prefix, MappingValue { slot: slot_index, ..ENCAPSULATE });
        tables.slots.insert(slot_index, slot(&[(instance_id, true)]));
    }
    let mut kernel = kernel(tables)?;
    for instance_id in [1, 2] {
        let mut tables = kernel.tables.clone();
        tables.interface = Some(InterfaceValue { instance_id, flags: 0 });
        kernel.install(tables, &traffic())?;
        let expected = kernel.check(&itr(Hook::Tc, udp(Flow::default(), 30)))?;
        assert_eq!(expected.packet[46..50], (instance_id << 8).to_be_bytes());
        assert_eq!(expected.traffic.map(|(key, _)| key.locator), Some(instance_id));
    }
    Ok(())
}

/// Over 10 000 flows the share of each locator is its weight to a percentage point, and after a change of weights the
/// flows of before are where they were.
#[test]
fn shares_follow_the_weights() -> Result<()> {
    use dataplane::buckets::{Share, assign};
    let share = |weight| Share { priority: 1, weight, usable: true };
    let weights = [share(10), share(25), share(65)];
    let mut tables = tables();
    tables.locators.insert(3, locator(3, false));
    let mut three = slot(&[(1, true), (2, true), (3, true)]);
    three.buckets = assign(&[NO_MEMBER; BUCKETS], &weights);
    tables.slots.insert(3, three);
    let mut kernel = kernel(tables)?;
    let flows = |kernel: &mut Kernel, from: u16| -> Result<Vec<u32>> {
        (0..10_000)
            .map(|at| {
                let flow =
                    Flow { source: (at / 100) as u8, source_port: from + at % 100 * 7, ..Flow::default() };
                place_only(kernel, tcp(flow, SYN, 0))
            })
            .collect()
    };
    let before = flows(&mut kernel, 10_000)?;
    assert_shares(&before, &[10, 25, 65]);
    let mut tables = kernel.tables.clone();
    let mut changed = three;
    changed.buckets = assign(&three.buckets, &[share(50), share(25), share(25)]);
    let moved = three.buckets.iter().zip(&changed.buckets).filter(|(a, b)| a != b).count();
    assert!((409..=411).contains(&moved), "{moved} buckets moved for 40 % of the weight");
    tables.slots.insert(3, changed);
    kernel.install(tables, &traffic())?;
    assert_eq!(flows(&mut kernel, 10_000)?, before, "flows moved");
    assert_shares(&flows(&mut kernel, 20_000)?, &[50, 25, 25]);
    kernel.check_flows()
}

/// As [`place`], but without reading all counters for each of thousands of flows.
fn place_only(kernel: &mut Kernel, frame: Vec<u8>) -> Result<u32> {
    let input = itr(Hook::Tc, frame);
    let outcome = kernel.run(&input)?;
    let expected = kernel.tables.itr(input.hook, &input.frame, 0, monotonic_coarse());
    assert_eq!(outcome.packet, expected.packet);
    Ok(expected.traffic.expect("encapsulated").0.locator)
}

fn assert_shares(placed: &[u32], percent: &[u32]) {
    for (locator, percent) in (1..).zip(percent) {
        let count = placed.iter().filter(|placed| **placed == locator).count();
        let share = 100.0 * count as f64 / placed.len() as f64;
        assert!((share - f64::from(*percent)).abs() < 1.0, "locator {locator}: {share} %, not {percent} %");
    }
}

/// A flow's value written by an older table is not believed.
#[test]
fn flows_of_another_mapping_are_placed_anew() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let (locator, _) = place(&mut kernel, udp(Flow::default(), 30))?;
    let mut tables = kernel.tables.clone();
    for flow in tables.flows.values_mut() {
        *flow = FlowValue { mapping_id: 6, ..*flow };
    }
    kernel.install(tables, &traffic())?;
    assert_eq!(place(&mut kernel, udp(Flow::default(), 30))?, (locator, true));
    Ok(())
}

/// A next hop on the way to the hosts is asked for instead of the host, which no test run shows; it only has to work.
#[test]
fn hosts_behind_a_next_hop() -> Result<()> {
    let mut tables = tables();
    tables.local_eids.values_mut().for_each(|eid| eid.next_hop = client(false, 254));
    let expected: Expected =
        kernel(tables)?.check(&etr(Hook::Tc, lisp(&Outer::default(), &udp(Flow::default(), 9))))?;
    assert_eq!(expected.verdict, Verdict::Redirect);
    Ok(())
}

/// A host with the address 10.100.0.1 on a veth of this thread's namespace.
fn host_on_v0() -> Result<()> {
    ip("link add v0 type veth peer name v1")?;
    ip("link set v0 address 02:00:00:00:03:01 up")?;
    ip("link set v1 up")?;
    ip("addr add 10.100.0.254/24 dev v0")?;
    ip("neigh add 10.100.0.1 lladdr 02:00:00:00:04:01 dev v0")?;
    ip("link set lo up")?;
    Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?)
}

fn ip(arguments: &str) -> Result<()> {
    let status = std::process::Command::new("ip").args(arguments.split(' ')).status()?;
    anyhow::ensure!(status.success(), "ip {arguments}");
    Ok(())
}

/// With TC the kernel keeps the neighbours: the first packet leaves the addresses to it, the ones that follow take what
/// it said, and a change is seen soon.
#[test]
fn tc_remembers_neighbours_for_a_moment() -> Result<()> {
    let old = [2, 0, 0, 0, 4, 1, 2, 0, 0, 0, 3, 1];
    let new = [2, 0, 0, 0, 4, 2, 2, 0, 0, 0, 3, 1];
    let mut kernel = kernel(tables())?;
    host_on_v0()?;
    let mut on_v0 = tables();
    // SAFETY: a C string.
    let ifindex = unsafe { libc::if_nametoindex(c"v0".as_ptr()) };
    on_v0.local_eids.values_mut().for_each(|eid| eid.ifindex = ifindex);
    kernel.install(on_v0, &traffic())?;
    let frame = lisp(&Outer::default(), &udp(Flow::default(), 30));
    let macs = |kernel: &Kernel| -> Result<Vec<u8>> {
        let outcome = kernel.run(&etr(Hook::Tc, frame.clone()))?;
        assert_eq!(outcome.action, TC_REDIRECT);
        Ok(outcome.packet[..12].to_vec())
    };
    assert_eq!(macs(&kernel)?, frame[..12], "the kernel has not been asked before");
    for (mac, expected, before) in [("04:01", old, old), ("04:02", new, old)] {
        ip(&format!("neigh replace 10.100.0.1 lladdr 02:00:00:00:{mac} dev v0"))?;
        let started = std::time::Instant::now();
        loop {
            let macs = macs(&kernel)?;
            if macs == expected {
                break;
            }
            assert!(macs == frame[..12] || macs == before, "{macs:02x?}");
            assert!(started.elapsed() < std::time::Duration::from_secs(10), "{expected:02x?} never came");
        }
    }
    ip("neigh del 10.100.0.1 dev v0")?;
    ip("link set v1 down")?;
    let started = std::time::Instant::now();
    while macs(&kernel)? == new {
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "a neighbour that is gone stays");
    }
    Ok(())
}

/// With a route and a neighbour XDP sends on by itself, and keeps to what the kernel said.
#[test]
fn xdp_asks_the_kernel_for_the_next_hop() -> Result<()> {
    let kernel = kernel(tables())?;
    host_on_v0()?;
    let frame = lisp(&Outer::default(), &udp(Flow::default(), 30));
    for _ in 0..2 {
        let outcome = kernel.run(&etr(Hook::Xdp, frame.clone()))?;
        assert_eq!(outcome.action, XDP_REDIRECT);
        assert_eq!(outcome.packet[..12], [2, 0, 0, 0, 4, 1, 2, 0, 0, 0, 3, 1]);
        assert_eq!(outcome.packet[22], 59, "the outer TTL of 60, and this router's decrement");
    }
    let unknown = lisp(&Outer::default(), &udp(Flow { destination: 2, ..Flow::default() }, 30));
    assert_eq!(kernel.run(&etr(Hook::Xdp, unknown))?.action, XDP_PASS);
    Ok(())
}
