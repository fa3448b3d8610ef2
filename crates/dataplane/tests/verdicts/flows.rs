//! Where the packets of a flow go, and when it is a new one.

use std::collections::HashSet;

use anyhow::Result;
use aya::maps::{Array, LpmTrie};
use bpf_abi::{BUCKETS, FLOW_CLOSING, FlowValue, LocalEidValue, OFFERED, Reason, SlotValue, TrafficKey};
use dataplane::test_run::{TC_SHOT, XDP_DROP};

use crate::frames::{Flow, Outer, fix_checksum, lisp, tcp, udp};
use crate::kernel::Kernel;
use crate::model::{Hook, Tables};
use crate::setup::{ACK, FIN, HOOKS, RST, SYN, etr, itr, kernel, place, traffic};
use crate::tables::{SECOND, locator, locators, members, slot, tables};

/// Defect seen elsewhere: the first fragment takes another way than the later ones.
#[test]
fn fragments_of_a_datagram_stay_together() -> Result<()> {
    let mut kernel = kernel(tables())?;
    let mut used = HashSet::new();
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

/// Removes the local EIDs without a new generation, which user space never does.
fn no_local_eids(kernel: &mut Kernel) -> Result<()> {
    let map = kernel.object.map_mut("LOCAL_EIDS").expect("a map of the object");
    let mut trie = LpmTrie::<_, [u8; 20], LocalEidValue>::try_from(map)?;
    for key in trie.keys().collect::<Result<Vec<_>, _>>()? {
        trie.remove(&key)?;
    }
    kernel.tables.local_eids.clear();
    Ok(())
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
            no_local_eids(&mut kernel)?;
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
