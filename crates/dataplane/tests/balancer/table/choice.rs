//! Rule 8: first packets, the flow table, the previous table, and backends that are not usable.

use bpf_abi::BalancerReason::{DropNoBackend, DropNotReady, Forwarded, ForwardedFlow, ForwardedPrevious};
use bpf_abi::balancer::segment::{DOT1Q, NONE};
use bpf_abi::{BalancerReason, FlowKey};

use super::{Case, refused, sent};
use crate::frames::{ACK, FIN, Flow, Fragment, Ip, RST, SYN, flow, frame, icmp};
use crate::model::{SCTP, State, TCP, UDP};
use crate::site::{CURRENT, DRAIN, LOST, OTHER, PREVIOUS, VIP, Vip, addresses_key, flow_key, plain, site};

pub(crate) fn cases() -> Vec<Case> {
    [matrix(), earlier(), lost(), no_table(), reused(), mixtures(), by_addresses(), slots()].concat()
}

/// A packet, and whether it is a first one.
struct Sent {
    name: String,
    protocol: u8,
    frame: Vec<u8>,
    first: bool,
    key: FlowKey,
}

fn packets(flow: &Flow) -> Vec<Sent> {
    let packet = |name: &str, protocol: u8, packet: Vec<u8>, first: bool| Sent {
        name: format!("{name}, v6 {}", flow.ip.source.is_ipv6()),
        protocol,
        frame: frame(&[], &packet),
        first,
        key: flow_key(flow, protocol, NONE),
    };
    vec![
        packet("SYN", TCP, flow.tcp(SYN), true),
        packet("SYN with ECN flags", TCP, flow.tcp(SYN | 0xc0), true),
        packet("SYN and RST", TCP, flow.tcp(SYN | RST), true),
        packet("SYN and ACK", TCP, flow.tcp(SYN | ACK), false),
        packet("ACK", TCP, flow.tcp(ACK), false),
        packet("FIN", TCP, flow.tcp(FIN | ACK), false),
        packet("RST", TCP, flow.tcp(RST), false),
        packet("no flags", TCP, flow.tcp(0), false),
        packet("INIT", SCTP, flow.sctp(0), true),
        packet("DATA", SCTP, flow.sctp(1), false),
        packet("DATA, tag in the first octet", SCTP, flow.sctp(1 << 24), false),
        packet("UDP", UDP, flow.udp(), false),
    ]
}

/// Flow table or not, previous table or not, known or not, first or not.
fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for sent in packets(&flow(false)).into_iter().chain(packets(&flow(true))) {
        for flow_table in [false, true] {
            for previous in [None, Some(PREVIOUS), Some(CURRENT)] {
                for known in [None, Some(OTHER), Some(LOST)] {
                    cases.push(cell(&sent, flow_table, previous, known));
                }
            }
        }
    }
    cases
}

fn cell(packet: &Sent, flow_table: bool, previous: Option<u32>, known: Option<u32>) -> Case {
    let mut state = plain();
    if flow_table {
        state = state.flow_table();
    }
    if let Some(previous) = previous {
        state = state.previous(previous);
    }
    if let Some(known) = known {
        state = state.remembers(packet.key, known);
    }
    let name = format!("{}, flow table {flow_table}, previous {previous:?}, known {known:?}", packet.name);
    // Of three tables: is the flow looked up, is it found, and where does the rest go?
    let (drains, moved) = (previous.is_some(), previous == Some(PREVIOUS));
    let (reason, backend) = match (packet.first, known == Some(OTHER) && (flow_table || drains), moved) {
        (false, true, _) => (ForwardedFlow, OTHER),
        (false, false, true) => (ForwardedPrevious, PREVIOUS),
        _ => (Forwarded, CURRENT),
    };
    let case = sent(name, &state, packet.frame.clone(), reason, backend);
    let remembered = match reason {
        ForwardedFlow => false,
        ForwardedPrevious => flow_table,
        _ => flow_table || drains && packet.first,
    };
    assert!([TCP, UDP, SCTP].contains(&packet.protocol));
    if remembered { case.remembers(packet.key, backend) } else { case }
}

/// What was remembered in an earlier drain may be of other connections with the same addresses and ports.
fn earlier() -> Vec<Case> {
    let key = flow_key(&flow(false), TCP, NONE);
    let ack = frame(&[], &flow(false).tcp(ACK));
    let syn = frame(&[], &flow(false).tcp(SYN));
    let since = |state: State, drain: u32| state.remembers_since(key, OTHER, drain);
    let drains = || plain().previous(PREVIOUS);
    let unmoved = || plain().previous(CURRENT);
    let keeps = || drains().flow_table();
    vec![
        sent("remembered in this drain", &since(drains(), DRAIN), ack.clone(), ForwardedFlow, OTHER),
        sent(
            "remembered in this drain, unmoved",
            &since(unmoved(), DRAIN),
            ack.clone(),
            ForwardedFlow,
            OTHER,
        ),
        sent("remembered before", &since(drains(), DRAIN - 1), ack.clone(), ForwardedPrevious, PREVIOUS),
        sent("remembered before, unmoved", &since(unmoved(), DRAIN - 1), ack.clone(), Forwarded, CURRENT),
        sent("remembered without a drain", &since(drains(), 0), ack.clone(), ForwardedPrevious, PREVIOUS),
        sent("remembered before, flow table", &since(keeps(), DRAIN - 1), ack.clone(), ForwardedFlow, OTHER),
        sent("remembered, the drain is over", &since(plain(), DRAIN), ack, Forwarded, CURRENT),
        sent("begun anew in this drain", &since(unmoved(), DRAIN), syn, Forwarded, CURRENT)
            .remembers(key, CURRENT),
    ]
}

/// Backends that may not be sent to.
fn lost() -> Vec<Case> {
    let mut cases = Vec::new();
    let key = flow_key(&flow(false), TCP, NONE);
    let ack = frame(&[], &flow(false).tcp(ACK));
    let syn = frame(&[], &flow(false).tcp(SYN));
    let current_lost = || plain().unusable(CURRENT);
    let moved = || plain().previous(PREVIOUS);
    let mut add = |name: &str, state: State, frame: &[u8], reason: BalancerReason, backend: Option<u32>| {
        cases.push(match backend {
            Some(backend) => sent(name, &state, frame.to_vec(), reason, backend),
            None => refused(name, &state, frame.to_vec(), reason),
        });
    };
    add("current backend lost, SYN", current_lost(), &syn, DropNoBackend, None);
    add("current backend lost, ACK", current_lost(), &ack, DropNoBackend, None);
    add("current backend lost, flow table", current_lost().flow_table(), &ack, DropNoBackend, None);
    let known = current_lost().flow_table().remembers(key, OTHER);
    add("current backend lost, known elsewhere", known.clone(), &ack, ForwardedFlow, Some(OTHER));
    add("current backend lost, known elsewhere, SYN", known, &syn, DropNoBackend, None);
    let known = current_lost().flow_table().remembers(key, CURRENT);
    add("known on the lost backend", known, &ack, DropNoBackend, None);
    let both = moved().unusable(CURRENT);
    add("current lost, previous not, ACK", both.clone(), &ack, ForwardedPrevious, Some(PREVIOUS));
    add("current lost, previous not, SYN", both.clone(), &syn, DropNoBackend, None);
    let none = both.unusable(PREVIOUS);
    add("current and previous lost", none.clone(), &ack, DropNoBackend, None);
    add("current and previous lost, flow table", none.flow_table(), &ack, DropNoBackend, None);
    let previous_lost = || moved().unusable(PREVIOUS);
    add("previous lost, ACK", previous_lost(), &ack, Forwarded, Some(CURRENT));
    let last = || plain().previous(0xffff).with(|state| state.add_backend(0xffff, NONE, false));
    add("previous table names the last index, ACK", last(), &ack, ForwardedPrevious, Some(0xffff));
    add("previous table names the last index, lost", last().unusable(0xffff), &ack, Forwarded, Some(CURRENT));
    let known = moved().remembers(key, OTHER).unusable(OTHER);
    add("known on a lost one, previous there", known, &ack, ForwardedPrevious, Some(PREVIOUS));
    let known = previous_lost().remembers(key, OTHER);
    add("previous lost, known", known.clone(), &ack, ForwardedFlow, Some(OTHER));
    add("previous and known lost", known.unusable(OTHER), &ack, Forwarded, Some(CURRENT));
    // The previous backend may come back before the drain ends: what begins now has to be known then.
    let lost = sent("previous lost, SYN", &previous_lost(), syn, Forwarded, CURRENT);
    cases.push(lost.remembers(key, CURRENT));
    cases
}

/// VIPs without a table, or with one that is not there.
fn no_table() -> Vec<Case> {
    let key = flow_key(&flow(false), TCP, NONE);
    let ack = frame(&[], &flow(false).tcp(ACK));
    let syn = frame(&[], &flow(false).tcp(SYN));
    let empty = || plain().change(VIP, |vip| (vip.table, vip.size) = (0, 0));
    let unknown = Vip { slots: &[77; 64], ..Vip::default() };
    let mut unwritten = State::node();
    unwritten.add_vip(unknown);
    let known = empty().flow_table().remembers(key, OTHER);
    let not_there = || plain().change(VIP, |vip| vip.table = 0x0fff_ffff);
    vec![
        refused("no table, SYN", &empty(), syn.clone(), DropNoBackend),
        refused("no table, ACK", &empty(), ack.clone(), DropNoBackend),
        refused("no table, flow table", &empty().flow_table(), ack.clone(), DropNoBackend),
        refused("no table, known, SYN", &known, syn.clone(), DropNoBackend),
        sent("no table, known", &known, ack.clone(), ForwardedFlow, OTHER),
        sent("no table, previous", &empty().previous(PREVIOUS), ack.clone(), ForwardedPrevious, PREVIOUS),
        refused("no table, previous, SYN", &empty().previous(PREVIOUS), syn, DropNoBackend),
        refused("a backend that nobody wrote", &unwritten, ack.clone(), DropNoBackend),
        refused("a table that is not there", &not_there(), ack.clone(), DropNotReady),
        refused(
            "a table that is not there, known",
            &not_there().flow_table().remembers(key, OTHER),
            ack.clone(),
            DropNotReady,
        ),
        refused(
            "a table that is not there, previous",
            &plain().previous(PREVIOUS).change(VIP, |vip| vip.table = 0x0fff_ffff),
            ack.clone(),
            DropNotReady,
        ),
        refused(
            "a table with a palette that is not there",
            &plain().change(VIP, |vip| vip.table = 0x1fff_ffff),
            ack,
            DropNotReady,
        ),
    ]
}

/// An index that has another owner is not where the flow was.
fn reused() -> Vec<Case> {
    let key = flow_key(&flow(false), TCP, NONE);
    let ack = frame(&[], &flow(false).tcp(ACK));
    let renew =
        |state: State, index: u32| state.with(|state| state.backends.get_mut(&index).unwrap().serial += 1);
    let keeps = plain().flow_table();
    let known = keeps.clone().remembers(key, OTHER);
    let zero = keeps.clone().with(|state| {
        state.flows.insert(key, bpf_abi::balancer::BalancedFlowValue::default());
    });
    let moved = plain().previous(PREVIOUS).remembers(key, OTHER);
    vec![
        sent("reused index", &renew(known, OTHER), ack.clone(), Forwarded, CURRENT).remembers(key, CURRENT),
        sent("an entry of zeros", &zero, ack.clone(), Forwarded, CURRENT).remembers(key, CURRENT),
        sent("reused index, previous", &renew(moved, OTHER), ack.clone(), ForwardedPrevious, PREVIOUS),
        sent(
            "reused index in the table",
            &renew(keeps.remembers(key, CURRENT), CURRENT),
            ack,
            Forwarded,
            CURRENT,
        )
        .remembers(key, CURRENT),
    ]
}

/// A value that is being replaced is not used, whatever entry it is.
fn mixtures() -> Vec<Case> {
    let mut cases = Vec::new();
    let whole = site(NONE, NONE, bpf_abi::balancer::VIP_BY_ADDRESSES);
    let mut half = whole.clone();
    half.vips.values_mut().for_each(|vip| vip.generation += 1);
    // The kernel uses the memory of a value that was replaced for the next one that is written, of any key.
    let mut anothers = whole.clone();
    let values = whole.vips.values().cycle().skip(1);
    anothers.vips.values_mut().zip(values).for_each(|(vip, other)| *vip = *other);
    let states = [("of two generations", &half), ("with another's value", &anothers)];
    for (v6, (which, state)) in states.into_iter().flat_map(|state| [(false, state), (true, state)]) {
        let fragment = Ip { fragment: Some(Fragment { offset: 8, more: false }), ..flow(v6).ip };
        for (name, packet) in [
            ("SYN", flow(v6).tcp(SYN)),
            ("UDP", flow(v6).udp()),
            ("fragment", fragment.packet(UDP, &[1; 40])),
            ("echo", icmp::echo_request(&flow(v6).ip)),
            ("error", icmp::too_big(&flow(v6).reply().udp())),
        ] {
            let name = format!("{name} to a VIP {which}, v6 {v6}");
            cases.push(refused(name, state, frame(&[], &packet), DropNotReady));
        }
    }
    cases
}

/// Ports do not count, the protocol does.
fn by_addresses() -> Vec<Case> {
    let keeps = || site(NONE, NONE, bpf_abi::balancer::VIP_BY_ADDRESSES).flow_table();
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for (protocol, packet) in [(TCP, flow(v6).tcp(ACK)), (UDP, flow(v6).udp()), (SCTP, flow(v6).sctp(1))]
        {
            let key = addresses_key(&flow(v6), protocol, NONE);
            let name = |what: &str| format!("by addresses, {what}, protocol {protocol}, v6 {v6}");
            let packet = frame(&[], &packet);
            let row = sent(name("unknown"), &keeps(), packet.clone(), Forwarded, CURRENT);
            cases.push(row.remembers(key, CURRENT));
            let known = keeps().remembers(key, OTHER);
            cases.push(sent(name("known"), &known, packet.clone(), ForwardedFlow, OTHER));
            let other = FlowKey { protocol: key.protocol ^ 1, ..key };
            let known = keeps().remembers(other, OTHER);
            let row = sent(name("another protocol known"), &known, packet, Forwarded, CURRENT);
            cases.push(row.remembers(key, CURRENT));
        }
        let key = addresses_key(&flow(v6), TCP, NONE);
        let syn = frame(&[], &flow(v6).tcp(SYN));
        let known = keeps().remembers(key, OTHER);
        let row = sent(format!("by addresses, SYN, v6 {v6}"), &known, syn, Forwarded, CURRENT);
        cases.push(row.remembers(key, CURRENT));
    }
    cases
}

/// Slots of flows, computed by another implementation: a table of 1021 slots whose backends
/// are their numbers plus 100; with a palette, every 85 numbers have the same.
fn slots() -> Vec<Case> {
    let numbers: Vec<u16> = (100..1121).collect();
    let names: Vec<u16> = (0..1021).map(|slot| 100 + slot % 85).collect();
    let both = [(&numbers, false, u32::MAX), (&names, true, 85)];
    let rows = VECTORS.iter().flat_map(|row| both.map(|form| (form, row)));
    rows
        .map(|((slots, palette, names), (v6, protocol, flags, source_port, segment, slot))| {
            let mut state = State::node();
            for index in 100..1121 {
                state.add_backend(index, *segment, false);
            }
            let flow = flow(*v6).with_source_port(*source_port);
            let address = flow.ip.destination;
            state.add_vip(Vip {
                address,
                protocol: *protocol,
                flags: *flags,
                segment: *segment,
                slots,
                palette,
                ..Vip::default()
            });
            let packet = if *protocol == TCP { flow.tcp(SYN) } else { flow.udp() };
            let tags = [crate::frames::tag(*segment as u16 & 0xfff)];
            let frame = frame(if *segment == NONE { &[] } else { &tags }, &packet);
            let name = format!(
                "slot {slot} of port {source_port}, protocol {protocol}, v6 {v6}, flags {flags}, palette {palette}"
            );
            sent(name, &state, frame, Forwarded, 100 + slot % names)
        })
        .collect()
}

/// IPv6, protocol, flags, source port, segment, slot.
const VECTORS: [(bool, u8, u32, u16, u32, u32); 32] = [
    (false, 6, 0, 1, NONE, 705),
    (false, 6, 0, 1, DOT1Q | 100, 565),
    (false, 6, 0, 40000, NONE, 479),
    (false, 6, 0, 40000, DOT1Q | 100, 339),
    (false, 6, 0, 65535, NONE, 14),
    (false, 6, 0, 65535, DOT1Q | 100, 895),
    (false, 6, 2, 40000, NONE, 592),
    (false, 6, 2, 40000, DOT1Q | 100, 452),
    (false, 17, 0, 1, NONE, 162),
    (false, 17, 0, 1, DOT1Q | 100, 22),
    (false, 17, 0, 40000, NONE, 958),
    (false, 17, 0, 40000, DOT1Q | 100, 818),
    (false, 17, 0, 65535, NONE, 492),
    (false, 17, 0, 65535, DOT1Q | 100, 352),
    (false, 17, 2, 40000, NONE, 49),
    (false, 17, 2, 40000, DOT1Q | 100, 930),
    (true, 6, 0, 1, NONE, 318),
    (true, 6, 0, 1, DOT1Q | 100, 178),
    (true, 6, 0, 40000, NONE, 93),
    (true, 6, 0, 40000, DOT1Q | 100, 974),
    (true, 6, 0, 65535, NONE, 648),
    (true, 6, 0, 65535, DOT1Q | 100, 509),
    (true, 6, 2, 40000, NONE, 205),
    (true, 6, 2, 40000, DOT1Q | 100, 65),
    (true, 17, 0, 1, NONE, 797),
    (true, 17, 0, 1, DOT1Q | 100, 657),
    (true, 17, 0, 40000, NONE, 571),
    (true, 17, 0, 40000, DOT1Q | 100, 432),
    (true, 17, 0, 65535, NONE, 106),
    (true, 17, 0, 65535, DOT1Q | 100, 987),
    (true, 17, 2, 40000, NONE, 684),
    (true, 17, 2, 40000, DOT1Q | 100, 544),
];
