//! Every reason that a frame and the tables can lead to.

use std::collections::HashMap;

use anyhow::Result;
use bpf_abi::{
    ACTION_DROP, ACTION_NATIVE, ACTION_RESOLVE, InterfaceValue, LOCATOR_GPE, MappingValue, Reason,
};

use crate::frames::{Flow, Outer, fix_checksum, lisp, service, tcp, udp};
use crate::kernel::{Direction, Input};
use crate::model::{Hook, Prefix, Tables};
use crate::setup::{ACK, HOOKS, SYN, itr, kernel, traffic};
use crate::tables::{
    ENCAPSULATE, action, from_stack, held_frames, last_own_rloc, locators, lost_member, members,
    nobody_resolves, over_v6, prefix, rename_instance, segment, segmented, slot, slot_index, tables,
    to_stack,
};

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
