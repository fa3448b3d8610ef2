//! Random sites, random and damaged frames: the program and the model have to agree on every one.
//!
//! The sequence is the same in every run; WEIR_SEED chooses another one, and a failure prints the frame and the site.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use bpf_abi::BalancerReason;
use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, GENEVE, KIND, NONE, VXLAN};
use bpf_abi::balancer::{
    BACKEND_USABLE, BalancedFlowValue, FlowHash, VIP_BY_ADDRESSES, VIP_ECHO, VIP_FLOW_TABLE, VipKey,
};

use crate::frames::tunnel::{Outer, vtep};
use crate::frames::{
    Extension, Flow, Fragment, Ip, Tag, client, ethernet, fix_ipv4, frame, icmp, service_tag, tag, vip,
};
use crate::kernel::Kernel;
use crate::model::{State, TCP, UDP};
use crate::site::{DRAIN, Vip, backend_vtep, serial};
use dataplane::mapped;

const SITES: usize = 80;
const FRAMES: usize = 150;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
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

const SEGMENTS: [u32; 8] = [
    NONE,
    NONE,
    DOT1Q | 100,
    DOT1Q | 0xfff,
    DOT1AD | 100 << 12,
    DOT1AD | 100 << 12 | 7,
    VXLAN | 100,
    GENEVE | 0x00ff_ffff,
];
const PORTS: [u16; 3] = [80, 443, 4789];
const BACKENDS: u32 = 6;

/// One of two addresses of a family; tunnel endpoints may be VIPs too.
fn address(random: &mut Random, v6: bool) -> IpAddr {
    let other = if v6 { "2001:db8:1::11" } else { "192.0.2.11" }.parse().unwrap();
    random.of(&[vip(v6), vip(v6), vip(v6), vip(v6), other, vtep(v6)])
}

/// Every segment has backends of its own: indices from 10 times its place on.
fn backend(random: &mut Random, segment: usize) -> u16 {
    match random.below(12) {
        0 => 0xffff,
        1 => (10 * segment + 9) as u16,
        _ => 10 * segment as u16 + random.below(BACKENDS as usize) as u16,
    }
}

fn slots(random: &mut Random, segment: usize) -> Vec<u16> {
    let sizes = [0, 1, 2, 13, 31, 32, 33, 64, 251];
    let size = random.of(&sizes);
    (0..size).map(|_| backend(random, segment)).collect()
}

fn site(random: &mut Random) -> State {
    let mut state = State::node();
    state.node.seed = random.next() as u32;
    state.node.flow_hash = FlowHash::of_seed(state.node.seed);
    state.node.vtep_count = random.of(&[0, 1, 2, 2, 2, 2, 2, 2, 2, 4]);
    let outer_v6 = random.percent(40);
    // Endpoints of backends are all of one family, and so are the node's.
    state.node.vteps[0] = mapped(vtep(outer_v6));
    state.node.vteps[1] = mapped(backend_vtep(outer_v6, 77));
    for (at, segment) in SEGMENTS.iter().enumerate() {
        for index in 0..BACKENDS {
            let index = 10 * at as u32 + index;
            state.add_backend(index, moved(random, *segment), outer_v6);
            if random.percent(15) {
                state.backends.get_mut(&index).unwrap().flags &= !BACKEND_USABLE;
            }
        }
    }
    for id in 0..24 {
        let at = random.below(SEGMENTS.len());
        let flags = random.of(&[0, 0, VIP_FLOW_TABLE, VIP_BY_ADDRESSES, VIP_FLOW_TABLE | VIP_BY_ADDRESSES]);
        let previous = if random.percent(50) { slots(random, at) } else { Vec::new() };
        let v6 = random.percent(50);
        state.add_vip(Vip {
            id,
            address: address(random, v6),
            port: random.of(&PORTS),
            protocol: random.of(&crate::PROTOCOLS),
            segment: SEGMENTS[at],
            flags,
            slots: &slots(random, at),
            previous: &previous,
            palette: random.percent(50),
        });
    }
    let without_echo = random.percent(20);
    for (key, vip) in &mut state.vips {
        if without_echo && key.protocol == 0 {
            vip.flags &= !VIP_ECHO;
        }
    }
    state
}

/// Another identifier of the same kind; none stays none.
fn moved(random: &mut Random, segment: u32) -> u32 {
    let id = random.next() as u32 & 0x00ff_ffff;
    match segment & KIND {
        NONE => NONE,
        DOT1Q => DOT1Q | id & 0xfff,
        kind => kind | id,
    }
}

/// Most frames are for one of the site's VIPs.
fn target(random: &mut Random, state: &State) -> VipKey {
    let vips: Vec<&VipKey> = state.vips.keys().filter(|key| key.port != [0, 0]).collect();
    let mut target = *vips[random.below(vips.len())];
    if random.percent(8) {
        target.port = random.of(&[80_u16, 443, 4789, 0, 81]).to_be_bytes();
    }
    if random.percent(8) {
        target.protocol = random.of(&crate::PROTOCOLS);
    }
    if random.percent(8) {
        target.segment = random.of(&SEGMENTS);
    }
    target
}

fn flow(random: &mut Random, target: &VipKey) -> Flow {
    let destination = Ipv6Addr::from(target.address).to_canonical();
    let v6 = destination.is_ipv6();
    let mut ip = Ip::new(client(v6), destination);
    ip.ttl = random.of(&[0, 1, 2, 64, 64, 255]);
    ip.tos = random.octet();
    if !v6 && random.percent(15) {
        ip.options = vec![random.octet(); 4 * random.below(11)];
    }
    if v6 && random.percent(6) {
        ip.extensions = vec![Extension(random.of(&[0, 43, 51, 60, 135]))];
    }
    if random.percent(10) {
        let offset = 8 * random.of(&[0, 0, 1, 185]);
        ip.fragment = Some(Fragment { offset, more: random.percent(60) });
    }
    Flow {
        ip,
        source_port: random.of(&[1, 1024, 40_000, 40_001, 40_002, 65_535]),
        destination_port: u16::from_be_bytes(target.port),
        payload: random.of(&[0, 1, 2, 30, 30, 30, 200, 1400]),
    }
}

fn transport(random: &mut Random, flow: &Flow, protocol: u8) -> Vec<u8> {
    match protocol {
        TCP => flow.tcp(random.of(&[0x02, 0x02, 0x12, 0x10, 0x10, 0x18, 0x04, 0x11, 0, 0xc2])),
        UDP => flow.udp(),
        _ => flow.sctp(random.of(&[0, 0, 1, 0x0100_0000, 77])),
    }
}

fn packet(random: &mut Random, target: &VipKey) -> Vec<u8> {
    let flow = flow(random, target);
    match random.below(20) {
        0..=2 => error(random, &flow, target.protocol),
        3 => icmp::echo_request(&flow.ip),
        4 => {
            let body: Vec<u8> = (0..random.below(40)).map(|_| random.octet()).collect();
            let (kind, code) = (random.of(&[8, 128, 0, 129, 3]), random.of(&[0, 0, 1]));
            icmp::message(&flow.ip, kind, code, [random.octet(), 0, 0, random.octet()], &body)
        }
        5 => flow.ip.packet(random.octet(), &[random.octet(); 40]),
        _ => transport(random, &flow, target.protocol),
    }
}

fn error(random: &mut Random, flow: &Flow, protocol: u8) -> Vec<u8> {
    let v6 = flow.ip.source.is_ipv6();
    let extensions = flow.ip.extensions.iter().filter(|_| random.percent(20)).copied().collect();
    let quoted = Flow { ip: Ip { extensions, ..flow.ip.clone() }, ..flow.clone() };
    let mut quote = transport(random, &quoted.reply(), protocol);
    if random.percent(30) {
        quote.truncate(random.below(quote.len()));
    }
    let kind = random.of(if v6 { &[1, 2, 2, 3, 4, 5, 127] } else { &[3, 3, 3, 11, 12, 5, 4] });
    let ip = Ip { fragment: None, ..Ip::new(client(v6), flow.ip.destination) };
    icmp::message(&ip, kind, random.below(6) as u8, [0; 4], &quote)
}

/// The segment's own, with random priorities, or any.
fn tags(random: &mut Random, segment: u32) -> Vec<Tag> {
    let mut bits = || (random.next() as u16) & 0xf000;
    let (service, customer) = ((segment >> 12 & 0xfff) as u16, (segment & 0xfff) as u16);
    let (first, second, third) = (bits() | service, bits() | customer, bits() | 7);
    if random.percent(4) {
        return match random.below(3) {
            0 => vec![tag(first), tag(second)],
            1 => vec![service_tag(first), service_tag(second)],
            _ => vec![service_tag(first), tag(second), random.of(&[tag(third), service_tag(third)])],
        };
    }
    match segment & KIND {
        DOT1Q => vec![tag(second)],
        DOT1AD if customer == 0 && random.percent(80) => vec![service_tag(first)],
        DOT1AD => vec![service_tag(first), tag(second)],
        _ if random.percent(20) => vec![tag(second & 0xf000)],
        _ => vec![],
    }
}

fn whole(random: &mut Random, state: &State) -> Vec<u8> {
    let target = target(random, state);
    let packet = packet(random, &target);
    let outer_v6 = state.node.vteps[0][0] == 0x20;
    let v6 = if random.percent(95) { outer_v6 } else { !outer_v6 };
    let mut outer = match target.segment & KIND {
        VXLAN => Outer::vxlan(v6, target.segment & !KIND),
        GENEVE => Outer::geneve(v6, target.segment & !KIND),
        _ => return frame(&tags(random, target.segment), &packet),
    };
    outer.checksum = random.percent(50);
    outer.ip.ttl = random.of(&[0, 1, 2, 64, 64, 64, 64, 64, 255]);
    match random.below(40) {
        0 => outer.tags = vec![tag(0)],
        1 if !v6 => outer.ip.options = vec![1; 4 * random.below(11)],
        2 => outer.ip.fragment = Some(Fragment { offset: 0, more: random.percent(70) }),
        3 => outer.ip.destination = backend_vtep(v6, 77),
        4 => outer.header[0] = random.octet(),
        5 => outer.header[1] = random.octet(),
        _ => {}
    }
    if random.percent(4) {
        let ethertype = random.of(&[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8]);
        return outer.frame(&ethernet([2; 6], [4; 6], &[], ethertype, &packet));
    }
    outer.packet(&packet)
}

/// Octets changed, the end cut off or extended, a length another one, or none of it.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    const HEADERS: usize = 150;
    match random.below(12) {
        0 | 1 => {
            for _ in 0..=random.below(3) {
                let at = 12 + random.below(frame.len().min(HEADERS) - 12);
                frame[at] = random.octet();
            }
        }
        2 => {
            let at = 12 + random.below(frame.len().min(HEADERS) - 12);
            frame[at] ^= 1 << random.below(8);
        }
        3 => {
            let length = 14 + random.below(frame.len() - 14);
            frame.truncate(length);
        }
        4 => frame.extend(vec![random.octet(); random.below(60)]),
        5 => shorten(random, frame),
        6 if random.percent(20) => frame[random.below(6)] ^= 1,
        _ => {}
    }
}

/// A packet that says it is shorter than what is there.
fn shorten(random: &mut Random, frame: &mut [u8]) {
    let v6 = match frame[12..14] {
        [0x08, 0x00] => false,
        [0x86, 0xdd] => true,
        _ => return,
    };
    let length = random.below(frame.len() - 13) as u16;
    let at = if v6 { 18 } else { 16 };
    if frame.len() >= 54 {
        frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
        if !v6 && frame[14] & 15 >= 5 && usize::from(frame[14] & 15) * 4 + 14 <= frame.len() {
            fix_ipv4(&mut frame[14..]);
        }
    }
}

/// What an agent may change between packets: other tables, lost and renewed backends.
fn change(random: &mut Random, kernel: &mut Kernel) -> Result<()> {
    let mut state = kernel.state.clone();
    for backend in state.backends.values_mut() {
        match random.below(20) {
            0 => backend.flags ^= BACKEND_USABLE,
            1 => backend.serial += 1,
            _ => {}
        }
    }
    for chunk in state.chunks.values_mut().filter(|_| random.percent(30)) {
        chunk.rotate_left(1);
    }
    for (key, vip) in &mut state.vips {
        let swap = random.percent(20);
        if swap && vip.size > 0 && vip.previous_size > 0 {
            std::mem::swap(&mut vip.table, &mut vip.previous_table);
            std::mem::swap(&mut vip.size, &mut vip.previous_size);
            vip.drain += 1;
        }
        *vip = vip.stamped(key, vip.generation + 100);
    }
    // In an order that is the same in every run.
    let mut flows: Vec<_> = state.flows.keys().copied().collect();
    flows.sort_by_key(|flow| {
        (flow.instance_id, flow.protocol, flow.destination, flow.source_port, flow.destination_port)
    });
    for flow in flows {
        if random.percent(10) {
            let backend = random.below(80) as u32;
            let drain = random.below(3) as u32 + DRAIN - 1;
            let value = BalancedFlowValue { backend, serial: serial(backend), drain, pad: 0 };
            state.flows.insert(flow, value);
        }
    }
    kernel.install(state)
}

#[test]
fn program_and_model_agree() -> Result<()> {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2026);
    let sites = std::env::var("WEIR_SITES").ok().and_then(|sites| sites.parse().ok()).unwrap_or(SITES);
    let mut random = Random(seed);
    let mut kernel = Kernel::new()?;
    let mut seen = vec![0; BalancerReason::ALL.len()];
    for number in 0..sites {
        kernel.install(site(&mut random))?;
        for at in 0..FRAMES {
            let mut frame = whole(&mut random, &kernel.state);
            damage(&mut random, &mut frame);
            let expected =
                kernel.check(&frame).with_context(|| format!("seed {seed}, site {number}, frame {at}"))?;
            seen[expected.reason as usize] += 1;
            if at % 25 == 24 {
                kernel.check_all().with_context(|| format!("seed {seed}, site {number}, frame {at}"))?;
                change(&mut random, &mut kernel)?;
            }
        }
    }
    for (reason, seen) in BalancerReason::ALL.iter().zip(&seen) {
        println!("{:24} {seen}", reason.label());
        assert!(
            *seen > 0 || sites < SITES || *reason == BalancerReason::DropNotReady,
            "no {}",
            reason.label()
        );
    }
    Ok(())
}
