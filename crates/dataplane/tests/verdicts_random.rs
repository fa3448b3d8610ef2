//! Random tables, random and damaged packets: the programs and the model have to agree on every one. Needs root.
//!
//! The sequence is the same in every run; WEIR_SEED chooses another one, and a failure prints the whole packet.
#![expect(clippy::cast_possible_truncation, reason = "octets and small numbers out of random words")]
#![expect(
    clippy::unwrap_used,
    reason = "frames are built from constants, and slices have the length that is asked for"
)]

mod frames;
mod kernel;
mod model;

use anyhow::{Context, Result};
use bpf_abi::{
    BUCKETS, DECAPSULATED, INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED,
    InterfaceValue, LocalEidValue, LocatorValue, MEMBERS, MappingValue, Member, NO_MEMBER, NodeValue,
    OFFERED, Reason, SlotValue, TrafficKey,
};

use crate::frames::{Flow, Outer, client, fix_checksum, lisp, own_rlocs, service, tcp, udp};
use crate::kernel::{Direction, Input, Kernel};
use crate::model::{Hook, Prefix, Tables, mapped};

const TABLES: usize = 100;
const PACKETS: usize = 150;
const SECOND: u64 = 1_000_000_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len())]
    }

    fn octet(&mut self) -> u8 {
        self.next() as u8
    }
}

const INSTANCES: [u32; 4] = [0, 0, 1, 0x00ab_cdef];

fn prefix(random: &mut Random, host: fn(bool, u8) -> [u8; 16]) -> Prefix {
    let v6 = random.percent(40);
    let bits = random.of(if v6 { &[0, 32, 64, 120, 126, 128] } else { &[96, 104, 120, 125, 128] });
    let number = u128::from_be_bytes(host(v6, random.below(8) as u8));
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    Prefix { instance_id: random.of(&INSTANCES), address: (number & mask).to_be_bytes(), bits }
}

fn slot(random: &mut Random) -> SlotValue {
    let mut members = [Member { locator: u32::MAX, usable: 0 }; MEMBERS];
    let count = random.below(6);
    for member in &mut members[..count] {
        *member = Member {
            locator: random.of(&[1, 2, 3, 4, 1, 2, 3, 4, 4, 300]),
            usable: u32::from(random.percent(90)),
        };
    }
    let mut buckets = [NO_MEMBER; BUCKETS];
    for bucket in &mut buckets {
        *bucket = match random.below(50) {
            0 => random.octet(),
            1 => NO_MEMBER,
            _ if count > 0 => random.below(count) as u8,
            _ => NO_MEMBER,
        };
    }
    SlotValue { member_count: count as u32, pad: 0, members, buckets }
}

fn locator(random: &mut Random, index: u8) -> LocatorValue {
    let family = random.of(&[4, 4, 4, 4, 6, 6, 6, 6, 0]);
    let address = |host: u8| if family == 6 { service(true, host) } else { mapped([192, 0, 2, host]) };
    LocatorValue {
        source: address(random.octet()),
        destination: address(random.octet()),
        next_hop: address(random.octet()),
        ifindex: 1,
        mtu: random.of(&[60, 263, 264, 576, 1500, 1500, 1500, 9000]),
        family,
        flags: random.of(&[1, 1, 1, 1, 3, 3, 0, 2]),
        next_hop_mac: [2, 0, 0, 0, 1, index],
        source_mac: [2, 0, 0, 0, 2, index],
        pad: 0,
    }
}

fn tables(random: &mut Random) -> Tables {
    let flags =
        random.of(&[0, 0, 0, 0, INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED]);
    let interface = InterfaceValue { instance_id: random.of(&INSTANCES), flags };
    let mut tables = Tables {
        interface: random.percent(97).then_some(interface),
        node: NodeValue {
            resolve_ifindex: random.of(&[0, 1, 1]),
            segment_ifindex: random.of(&[0, 1]),
            flow_idle_ns: random.of(&[0, 10, 100, 100, 100]) * SECOND,
            rloc_count: random.of(&[0, 1, 2, 2, 2, 2, 2, 8]),
            ..own_rlocs(NodeValue::default())
        },
        ..Tables::default()
    };
    for _ in 0..12 {
        let mapping = MappingValue {
            action: random.of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 9]),
            slot: random.of(&[0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 512]),
            mapping_id: random.of(&[7, 8]),
            pad: 0,
        };
        tables.map_cache.insert(prefix(random, service), mapping);
        let next_hop = if random.percent(50) { [0; 16] } else { client(random.percent(50), 9) };
        let eid = LocalEidValue { ifindex: random.of(&[0, 1, 1]), next_hop, local_id: random.of(&[9, 10]) };
        tables.local_eids.insert(prefix(random, service), eid);
    }
    for index in 0..4 {
        tables.slots.insert(index, slot(random));
    }
    for index in 1..5 {
        tables.locators.insert(index, locator(random, index as u8));
    }
    tables
}

fn traffic() -> Vec<TrafficKey> {
    let mut keys: Vec<_> = [7, 8]
        .into_iter()
        .flat_map(|id| (1..4).chain([OFFERED]).map(move |locator| TrafficKey { id, locator }))
        .collect();
    keys.push(TrafficKey { id: 9, locator: DECAPSULATED });
    keys
}

/// A packet of a host: mostly whole, with odd headers now and then.
fn plain(random: &mut Random) -> Vec<u8> {
    let flow = Flow {
        v6: random.percent(40),
        source: random.below(8) as u8,
        destination: random.below(8) as u8,
        source_port: random.of(&[1000, 2000, 40000]),
        destination_port: random.of(&[80, 443]),
        ttl: random.of(&[0, 1, 2, 5, 63, 64, 64, 64, 128, 255]),
        tos: random.octet(),
    };
    let payload = random.of(&[0, 1, 18, 64, 200, 1000, 1400, 1444, 2000]);
    let mut frame = if random.percent(50) {
        tcp(flow, random.of(&[2, 16, 16, 18, 17, 4]), payload)
    } else {
        udp(flow, payload)
    };
    match random.below(8) {
        0 if !flow.v6 => {
            let fields: [u16; 5] = [0x2000, 0x4000, 0x8000, 0x00b9, 0x2001];
            frame[20..22].copy_from_slice(&random.of(&fields).to_be_bytes());
        }
        1 if !flow.v6 => {
            let options = random.below(11) * 4;
            frame.splice(34..34, vec![1; options]);
            frame[14] = 0x45 + (options / 4) as u8;
            let length = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
        }
        2 => frame[if flow.v6 { 20 } else { 23 }] = random.of(&[1, 6, 17, 44, 47, 58, 132]),
        3 => frame.extend(vec![0xee; random.below(40)]),
        _ => {}
    }
    if !flow.v6 && random.percent(95) {
        fix_checksum(&mut frame, 14);
    }
    if random.percent(30) {
        let instance_id = random.of(&INSTANCES);
        frame[6..8].copy_from_slice(&[2, 0]);
        frame[8..12].copy_from_slice(&instance_id.to_be_bytes());
    }
    frame
}

fn encapsulated(random: &mut Random) -> Vec<u8> {
    let instance_id = random.of(&INSTANCES);
    let mut flags = [if instance_id == 0 { 0 } else { 0x08 }, 0, 0, random.below(5) as u8];
    if random.percent(20) {
        flags = [random.octet(), random.octet(), random.octet(), random.below(5) as u8];
    }
    let outer = Outer {
        v6: random.percent(40),
        ttl: random.of(&[0, 1, 2, 5, 60, 255]),
        tos: random.octet(),
        source_port: 50000,
        destination_port: if random.percent(97) { 4341 } else { 4789 },
        flags,
        instance_id,
        options: vec![1; random.of(&[0, 0, 0, 4, 40])],
    };
    lisp(&outer, &plain(random))
}

/// Octets changed, the end cut off, or neither.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    const HEADERS: usize = 130;
    match random.below(5) {
        0 => {
            for _ in 0..=random.below(3) {
                let at = random.below(frame.len().min(HEADERS));
                frame[at] = random.octet();
            }
        }
        1 if random.percent(50) => {
            let length = 15 + random.below(frame.len() - 15);
            frame.truncate(length);
        }
        _ => {}
    }
}

/// A TC test run takes no frame without a whole network header.
fn cut(frame: &[u8]) -> bool {
    let header = if frame[12..14] == [0x86, 0xdd] { 40 } else { 20 };
    frame.len() < 14 + header
}

#[test]
fn programs_and_model_agree() -> Result<()> {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2026);
    let mut random = Random(seed);
    let mut kernel = Kernel::new()?;
    let mut seen = vec![0; Reason::ALL.len()];
    for table in 0..TABLES {
        kernel.install(tables(&mut random), &traffic())?;
        for packet in 0..PACKETS {
            let direction = random.of(&[Direction::Itr, Direction::Itr, Direction::Etr]);
            let mut frame =
                if direction == Direction::Itr { plain(&mut random) } else { encapsulated(&mut random) };
            damage(&mut random, &mut frame);
            let hook = if cut(&frame) { Hook::Xdp } else { random.of(&[Hook::Tc, Hook::Tc, Hook::Xdp]) };
            let gso = hook == Hook::Tc && random.percent(10);
            let gso_size = if gso { random.of(&[1, 500, 1400]) } else { 0 };
            let input = Input { hook, direction, frame, gso_size };
            let expected = kernel.check(&input).with_context(|| {
                format!("seed {seed}, table {table}, packet {packet}: {:?}", kernel.tables)
            })?;
            seen[expected.reason as usize] += 1;
            if packet % 50 == 49 {
                kernel.check_flows().with_context(|| format!("seed {seed}, table {table}"))?;
                change(&mut random, &mut kernel)?;
            }
        }
    }
    for (reason, seen) in Reason::ALL.iter().zip(&seen) {
        println!("{:24} {seen}", reason.label());
    }
    let encapsulated = seen[Reason::Encapsulated as usize];
    assert!(encapsulated > TABLES * PACKETS / 20, "only {encapsulated} packets came through");
    Ok(())
}

/// New locator-sets under the flows, or older flows.
fn change(random: &mut Random, kernel: &mut Kernel) -> Result<()> {
    let mut tables = kernel.tables.clone();
    for index in 0..4 {
        if random.percent(50) {
            tables.slots.insert(index, slot(random));
        }
    }
    kernel.install(tables, &traffic())?;
    // Sums of these stay off the thresholds of 10, 60 and 100 seconds.
    kernel.age_flows(random.of(&[0, 7, 29]) * SECOND)
}
