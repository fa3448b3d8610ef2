//! Shares of backends, and what a change moves: many flows through the program itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use balance::maglev::{Base, Member, TableSize, table};
use bpf_abi::balancer::segment::NONE;
use bpf_abi::balancer::{FlowHash, slot};

use crate::frames::{ACK, Flow, Ip, flow, frame, vip};
use crate::kernel::Kernel;
use crate::model::{State, TCP};
use crate::random::Random;
use crate::site::{SEED, VIP, Vip, flow_key};

const FLOWS: usize = 100_000;
/// Index of the first backend.
const FIRST: u32 = 10;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("server-{at}")).collect()
}

/// Member to backend.
fn slots(table: &[u16]) -> Vec<u16> {
    table.iter().map(|member| member + FIRST as u16).collect()
}

fn site(backends: usize, slots: &[u16]) -> State {
    let mut state = State::node();
    for index in FIRST..FIRST + backends as u32 {
        state.add_backend(index, NONE, false);
    }
    for v6 in [false, true] {
        state.add_vip(Vip { address: vip(v6), slots, ..Vip::default() });
    }
    state
}

fn swapped(state: &State, slots: &[u16]) -> State {
    let mut state = state.clone();
    let (table, size) = state.add_table(slots);
    state.change(VIP, |vip| (vip.table, vip.size) = (table, size))
}

fn random_flow(random: &mut Random) -> Flow {
    let v6 = random.below(2) == 1;
    let number = random.next();
    let source: IpAddr = if v6 {
        Ipv6Addr::from(0x2001_0db8_000c_u128 << 80 | u128::from(number)).into()
    } else {
        Ipv4Addr::from(number as u32).into()
    };
    let ports = random.next();
    Flow { ip: Ip::new(source, vip(v6)), source_port: ports as u16, payload: 0, ..flow(v6) }
}

/// Where each flow goes.
fn places(kernel: &Kernel, flows: &[Flow]) -> Result<Vec<u32>> {
    let place = |flow: &Flow| {
        let sent = kernel.run(&frame(&[], &flow.tcp(ACK)))?;
        ensure!(sent.action == 3, "{flow:?} was not sent");
        Ok(u32::from_be_bytes(sent.packet[2..6].try_into()?) & 0xffff)
    };
    flows.iter().map(place).collect()
}

fn flow_slot(flow: &Flow, size: usize) -> usize {
    slot(FlowHash::of_seed(SEED).of(&flow_key(flow, TCP, NONE)), size as u32) as usize
}

fn flows(seed: u64, count: usize) -> Vec<Flow> {
    let mut random = Random(seed);
    (0..count).map(|_| random_flow(&mut random)).collect()
}

/// Within five standard deviations, which one run in a million exceeds by chance; the flows are always the same.
#[test]
fn shares_are_the_weights() -> Result<()> {
    let weights: Vec<u32> = vec![100, 100, 100, 50, 200, 1, 10, 0, 300, 139];
    let names = names(weights.len());
    let members: Vec<Member<'_>> =
        names.iter().zip(&weights).map(|(name, weight)| Member { name, weight: *weight }).collect();
    let slots = slots(&table(TableSize::new(65_521)?, &members)?);
    let mut kernel = Kernel::new()?;
    kernel.install(site(weights.len(), &slots))?;
    let places = places(&kernel, &flows(1, FLOWS))?;
    let sum: u32 = weights.iter().sum();
    for (at, weight) in weights.iter().enumerate() {
        let found = places.iter().filter(|place| **place == FIRST + at as u32).count() as f64;
        let share = f64::from(*weight) / f64::from(sum);
        let (mean, variance) = (share * FLOWS as f64, FLOWS as f64 * share * (1.0 - share));
        // Besides chance, a share of slots is off by one at most.
        let tolerance = 5.0 * variance.sqrt() + FLOWS as f64 / slots.len() as f64;
        ensure!((found - mean).abs() <= tolerance, "{at}: {found} flows, not {mean} within {tolerance}");
        ensure!(*weight > 0 || found == 0.0, "{at} takes none and got {found}");
    }
    Ok(())
}

/// loxilb's hash modulo the number of endpoints moves most flows at every change.
#[test]
fn a_change_moves_the_flows_of_its_slots() -> Result<()> {
    const BACKENDS: usize = 20;
    let names = names(BACKENDS);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let base = Base::new(TableSize::default_for(BACKENDS), &names)?;
    let equal = [100; BACKENDS];
    let (mut lost, mut lighter, mut grown) = (equal, equal, equal);
    (lost[7], lighter[3], grown[0]) = (0, 50, 150);
    let mut kernel = Kernel::new()?;
    let before = slots(&base.table(&equal));
    kernel.install(site(BACKENDS, &before))?;
    let flows = flows(2, FLOWS / 4);
    let places_before = places(&kernel, &flows)?;
    for (name, weights) in [("lost", lost), ("lighter", lighter), ("grown", grown)] {
        let after = slots(&base.table(&weights));
        kernel.install(swapped(&kernel.state, &after))?;
        let mut moved = 0;
        for ((flow, old), new) in flows.iter().zip(&places_before).zip(places(&kernel, &flows)?) {
            let at = flow_slot(flow, before.len());
            ensure!(*old == u32::from(before[at]) && new == u32::from(after[at]), "{name}: {flow:?}");
            moved += usize::from(*old != new);
            ensure!(name != "lost" || *old == new || *old == FIRST + 7, "{flow:?} moved from {old} to {new}");
        }
        let changed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        let share = changed as f64 / before.len() as f64;
        let mean = share * flows.len() as f64;
        ensure!((moved as f64 - mean).abs() <= 5.0 * mean.sqrt(), "{name}: {moved} moved, not {mean}");
        ensure!(share < 0.12, "{name}: {share} of the slots changed");
    }
    Ok(())
}

/// With the table of before in place, nobody moves until the drain ends, and who begins meanwhile stays as well.
#[test]
fn a_drain_moves_nobody() -> Result<()> {
    const BACKENDS: usize = 8;
    let names = names(BACKENDS);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let base = Base::new(TableSize::MIN, &names)?;
    let mut weights = [100; BACKENDS];
    let before = slots(&base.table(&weights));
    let mut kernel = Kernel::new()?;
    kernel.install(site(BACKENDS, &before))?;
    let old = flows(3, 2000);
    let places_before = places(&kernel, &old)?;
    weights[2] = 0;
    let after = slots(&base.table(&weights));
    let drain = swapped(&kernel.state, &after);
    let (table, size) =
        kernel.state.vips.values().find(|vip| vip.id == VIP).map(|vip| (vip.table, vip.size)).unwrap();
    kernel.install(
        drain.change(VIP, |vip| (vip.previous_table, vip.previous_size, vip.drain) = (table, size, 1)),
    )?;
    ensure!(places(&kernel, &old)? == places_before, "a known flow moved");
    for flow in flows(4, 2000) {
        let syn = kernel.run(&frame(&[], &flow.tcp(crate::frames::SYN)))?;
        let ack = kernel.run(&frame(&[], &flow.tcp(ACK)))?;
        let current = after[flow_slot(&flow, after.len())];
        ensure!(
            syn.packet == frame_to(&flow, crate::frames::SYN, current),
            "{flow:?} did not begin on {current}"
        );
        ensure!(ack.packet[..6] == syn.packet[..6], "{flow:?} did not stay on {current}");
    }
    Ok(())
}

fn frame_to(flow: &Flow, flags: u8, backend: u16) -> Vec<u8> {
    let mut frame = frame(&[], &flow.tcp(flags));
    frame[..6].copy_from_slice(&crate::site::backend_mac(backend.into()));
    frame[6..12].copy_from_slice(&crate::frames::PORT);
    frame
}
