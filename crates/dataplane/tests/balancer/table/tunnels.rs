//! Rules 2 and 9: VXLAN and Geneve.
//!
//! What has to come out is built from nothing, with all checksums computed anew.

use bpf_abi::BalancerReason::{
    DropFragment, DropNoBackend, DropNotReady, DropTtl, Forwarded, ForwardedFlow, ForwardedPrevious,
    IcmpRelayed, PassMalformed, PassNoVip, PassNotForUs, PassNotIp, PassSegment,
};
use bpf_abi::balancer::segment::{GENEVE, NONE, VXLAN};

use super::{Case, refused, sent};
use crate::frames::tunnel::{INNER_DESTINATION, INNER_SOURCE, Outer, far_vtep, geneve, vtep, vxlan};
use crate::frames::{ACK, Flow, Fragment, Ip, PORT, SYN, ethernet, flow, frame, icmp, service_tag, tag, vip};
use crate::model::{State, TCP, UDP};
use crate::site::{
    CURRENT, LOST, OTHER, PREVIOUS, Vip, backend_mac, backend_vtep, flow_key, hop_mac, serial, site,
};

const VNI: u32 = 0x00ab_cdef;
const BACKEND_VNI: u32 = 0x0012_3456;

pub(crate) fn cases() -> Vec<Case> {
    [forwarded(), like_all(), ttl(), other_family(), headers(), no_tunnels(), truncated(), inside()].concat()
}

/// The site in a tunnel of a kind, its backends behind endpoints of a family.
fn tunnelled(kind: u32, outer_v6: bool, flags: u32) -> State {
    let mut state = site(kind | VNI, kind | BACKEND_VNI, flags);
    for index in [CURRENT, PREVIOUS, OTHER, LOST] {
        state.add_backend(index, kind | BACKEND_VNI, outer_v6);
    }
    state.unusable(LOST)
}

fn outer(kind: u32, v6: bool) -> Outer {
    if kind == VXLAN { Outer::vxlan(v6, VNI) } else { Outer::geneve(v6, VNI) }
}

/// The frame that the backend's endpoint gets.
fn to_backend(outer: &Outer, backend: u32, packet: &[u8]) -> Vec<u8> {
    let v6 = outer.ip.source.is_ipv6();
    let ip = Ip {
        source: outer.ip.destination,
        destination: backend_vtep(v6, backend),
        ttl: outer.ip.ttl - 1,
        ..outer.ip.clone()
    };
    let mut header = outer.header;
    header[4..7].copy_from_slice(&BACKEND_VNI.to_be_bytes()[1..]);
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let inner = ethernet(backend_mac(backend), PORT, &[], ethertype, packet);
    let mut frame = Outer { ip, header, ..outer.clone() }.frame(&inner);
    frame[..6].copy_from_slice(&hop_mac(backend));
    frame[6..12].copy_from_slice(&PORT);
    frame
}

fn relayed(
    name: String,
    site: &State,
    outer: &Outer,
    packet: &[u8],
    reason: bpf_abi::BalancerReason,
    backend: u32,
) -> Case {
    let whole = to_backend(outer, backend, packet);
    sent(name, site, outer.packet(packet), reason, backend).only(&[(0, &whole)])
}

fn forwarded() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [VXLAN, GENEVE] {
        for outer_v6 in [false, true] {
            for checksum in [false, true] {
                for v6 in [false, true] {
                    let outer = Outer { checksum, ..outer(kind, outer_v6) };
                    let flow = flow(v6);
                    let error = icmp::too_big(&flow.reply().tcp(ACK));
                    let packets = [
                        ("TCP", flow.tcp(SYN), Forwarded),
                        ("UDP", flow.udp(), Forwarded),
                        ("SCTP", flow.sctp(1), Forwarded),
                        ("error", error, IcmpRelayed),
                    ];
                    for (what, packet, reason) in packets {
                        let name =
                            format!("{what}, v6 {v6}, kind {kind:x} over v6 {outer_v6}, checksum {checksum}");
                        let site = tunnelled(kind, outer_v6, 0);
                        cases.push(relayed(name, &site, &outer, &packet, reason, CURRENT));
                    }
                }
            }
        }
    }
    cases
}

/// Tunnels do not change who gets the packet.
fn like_all() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [VXLAN, GENEVE] {
        let outer = outer(kind, false).with_checksum();
        let ack = flow(false).tcp(ACK);
        let key = flow_key(&flow(false), TCP, kind | VNI);
        let state = || tunnelled(kind, false, 0);
        let name = |what: &str| format!("{what}, kind {kind:x}");
        let known = state().flow_table().remembers(key, OTHER);
        cases.push(relayed(name("known flow"), &known, &outer, &ack, ForwardedFlow, OTHER));
        let moved = state().previous(PREVIOUS);
        cases.push(relayed(name("previous"), &moved, &outer, &ack, ForwardedPrevious, PREVIOUS));
        let keeps = state().flow_table();
        let row = relayed(name("flow table"), &keeps, &outer, &ack, Forwarded, CURRENT);
        cases.push(row.remembers(key, CURRENT));
        let reused = known.with(|state| {
            state.backends.get_mut(&OTHER).unwrap().serial = serial(OTHER) + 1;
        });
        let row = relayed(name("reused index"), &reused, &outer, &ack, Forwarded, CURRENT);
        cases.push(row.remembers(key, CURRENT));
        let lost = state().unusable(CURRENT);
        cases.push(refused(name("no backend"), &lost, outer.packet(&ack), DropNoBackend));
        let fragment = Ip { fragment: Some(Fragment { offset: 8, more: true }), ..flow(false).ip };
        let fragment = fragment.packet(UDP, &[1; 80]);
        cases.push(refused(name("inner fragment"), &state(), outer.packet(&fragment), DropFragment));
        let by_addresses = tunnelled(kind, false, bpf_abi::balancer::VIP_BY_ADDRESSES);
        let row = relayed(
            name("inner fragment by addresses"),
            &by_addresses,
            &outer,
            &fragment,
            Forwarded,
            CURRENT,
        );
        cases.push(row);
        let mut options = flow(false);
        options.ip.options = vec![1; 40];
        cases.push(relayed(name("inner options"), &state(), &outer, &options.tcp(ACK), Forwarded, CURRENT));
        options = options.reply();
        let error = icmp::too_big(&options.tcp(ACK));
        cases.push(relayed(name("quoted options"), &state(), &outer, &error, IcmpRelayed, CURRENT));
        let other = Flow { destination_port: 81, ..flow(false) };
        cases.push(refused(name("no VIP"), &state(), outer.packet(&other.tcp(ACK)), PassNoVip));
        let elsewhere = site(kind | (VNI + 1), kind | 1, 0);
        cases.push(refused(name("another VNI"), &elsewhere, outer.packet(&ack), PassNoVip));
        let swapped = tunnelled(kind ^ VXLAN ^ GENEVE, false, 0);
        cases.push(refused(name("the other kind"), &swapped, outer.packet(&ack), PassNoVip));
        let untagged = site(NONE, NONE, 0);
        cases.push(refused(name("VIP outside"), &untagged, outer.packet(&ack), PassNoVip));
        let mut zero = Outer { header: if kind == VXLAN { vxlan(0) } else { geneve(0) }, ..outer.clone() };
        cases.push(relayed(name("VNI 0"), &vni_zero(kind), &zero, &ack, Forwarded, CURRENT));
        zero.header[7] = 0x5a;
        cases.push(relayed(name("reserved octet"), &vni_zero(kind), &zero, &ack, Forwarded, CURRENT));
        let mut other_port = outer.packet(&ack);
        other_port[0] ^= 4;
        cases.push(refused(name("another port's MAC"), &state(), other_port, PassNotForUs));
    }
    cases
}

fn vni_zero(kind: u32) -> State {
    let mut state = tunnelled(kind, false, 0);
    state.add_vip(Vip { segment: kind, ..Vip::default() });
    state
}

fn ttl() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [VXLAN, GENEVE] {
        for v6 in [false, true] {
            for (ttl, checksum) in [0, 1, 2, 128, 255].into_iter().flat_map(|t| [(t, false), (t, true)]) {
                let mut outer = Outer { checksum, ..outer(kind, v6) };
                outer.ip.ttl = ttl;
                let name = format!("outer TTL {ttl}, v6 {v6}, kind {kind:x}, checksum {checksum}");
                let state = tunnelled(kind, v6, 0);
                let packet = flow(false).udp();
                cases.push(if ttl < 2 {
                    refused(name, &state, outer.packet(&packet), DropTtl)
                } else {
                    relayed(name, &state, &outer, &packet, Forwarded, CURRENT)
                });
            }
            let mut outer = outer(kind, v6);
            outer.ip.ttl = 1;
            let name = |what: &str| format!("outer TTL 1, {what}, v6 {v6}, kind {kind:x}");
            let other = Flow { destination_port: 81, ..flow(false) };
            let state = tunnelled(kind, v6, 0);
            cases.push(refused(name("no VIP"), &state, outer.packet(&other.udp()), PassNoVip));
            let lost = state.clone().unusable(CURRENT);
            cases.push(refused(name("no backend"), &lost, outer.packet(&flow(false).udp()), DropNoBackend));
            let mut dying = flow(false);
            dying.ip.ttl = 1;
            outer.ip.ttl = 64;
            let name = format!("inner TTL 1, v6 {v6}, kind {kind:x}");
            cases.push(relayed(name, &state, &outer, &dying.tcp(ACK), Forwarded, CURRENT));
        }
    }
    cases
}

/// A backend behind an endpoint of the other family than the outer header's.
fn other_family() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [VXLAN, GENEVE] {
        for v6 in [false, true] {
            let frame = outer(kind, v6).packet(&flow(false).tcp(ACK));
            let name = format!("endpoint of the other family, outer v6 {v6}, kind {kind:x}");
            cases.push(refused(name, &tunnelled(kind, !v6, 0), frame, DropNotReady));
        }
    }
    cases
}

/// Tunnel headers and inner frames that rule 2 names.
fn headers() -> Vec<Case> {
    let mut cases = Vec::new();
    let ack = flow(false).tcp(ACK);
    for v6 in [false, true] {
        let mut add = |what: &str, kind: u32, header: [u8; 8], fine: bool| {
            let name = format!("{what}, v6 {v6}");
            let outer = Outer { header, ..outer(kind, v6) };
            let state = tunnelled(kind, v6, 0);
            cases.push(if fine {
                relayed(name, &state, &outer, &ack, Forwarded, CURRENT)
            } else {
                refused(name, &state, outer.packet(&ack), PassSegment)
            });
        };
        let with = |mut header: [u8; 8], at: usize, octet: u8| {
            header[at] = octet;
            header
        };
        let (vx, ge) = (vxlan(VNI), geneve(VNI));
        add("VXLAN without I", VXLAN, with(vx, 0, 0), false);
        add("VXLAN, every flag but I", VXLAN, with(vx, 0, 0xf7), false);
        add("VXLAN with other flags", VXLAN, with(vx, 0, 0xff), true);
        add("VXLAN, reserved bits", VXLAN, with(vx, 2, 0x77), true);
        add("Geneve version 1", GENEVE, with(ge, 0, 0x40), false);
        add("Geneve version 2", GENEVE, with(ge, 0, 0x80), false);
        add("Geneve with options", GENEVE, with(ge, 0, 1), false);
        add("Geneve with many options", GENEVE, with(ge, 0, 0x3f), false);
        add("Geneve control", GENEVE, with(ge, 1, 0x80), false);
        add("Geneve control and critical", GENEVE, with(ge, 1, 0xc0), false);
        add("Geneve, reserved bits", GENEVE, with(ge, 1, 0x3f), true);
        add("Geneve of IPv4", GENEVE, [0, 0, 8, 0, 0xab, 0xcd, 0xef, 0], false);
        add("Geneve of something near Ethernet", GENEVE, with(ge, 3, 0x59), false);
    }
    for kind in [VXLAN, GENEVE] {
        let state = tunnelled(kind, false, 0);
        let mut add = |what: &str, inner: Vec<u8>, reason| {
            let name = format!("{what}, kind {kind:x}");
            cases.push(refused(name, &state, outer(kind, false).frame(&inner), reason));
        };
        let inner = |tags: &[_], ethertype| ethernet(INNER_DESTINATION, INNER_SOURCE, tags, ethertype, &ack);
        add("inner 802.1Q", inner(&[tag(100)], 0x0800), PassSegment);
        add("inner priority tag", inner(&[tag(0)], 0x0800), PassSegment);
        add("inner 802.1ad", inner(&[service_tag(1)], 0x0800), PassSegment);
        add("inner ARP", inner(&[], 0x0806), PassNotIp);
        add("inner IPv6 that is IPv4", inner(&[], 0x86dd), PassMalformed);
    }
    cases
}

/// What looks like a tunnel and is a packet like any other.
fn no_tunnels() -> Vec<Case> {
    let mut cases = Vec::new();
    let ack = flow(false).tcp(ACK);
    for kind in [VXLAN, GENEVE] {
        for v6 in [false, true] {
            let state = tunnelled(kind, v6, 0);
            let mut add = |what: &str, state: &State, outer: &Outer| {
                let name = format!("{what}, v6 {v6}, kind {kind:x}");
                cases.push(refused(name, state, outer.packet(&ack), PassNoVip));
            };
            let whole = outer(kind, v6);
            let port = Outer { port: 4790, ..whole.clone() };
            add("another UDP port", &state, &port);
            let elsewhere = Ip { destination: far_vtep(v6), ..whole.ip.clone() };
            add("not to our endpoint", &state, &Outer { ip: elsewhere, ..whole.clone() });
            let none = state.clone().with(|state| state.node.vtep_count = 0);
            add("no endpoints", &none, &whole);
            let first = state.clone().with(|state| state.node.vtep_count = 1);
            if v6 {
                add("the second endpoint, one in use", &first, &whole);
            }
            add("802.1Q outside", &state, &Outer { tags: vec![tag(100)], ..whole.clone() });
            add("priority tag outside", &state, &Outer { tags: vec![tag(0xe000)], ..whole.clone() });
            add("802.1ad outside", &state, &Outer { tags: vec![service_tag(1)], ..whole.clone() });
            let fragment = Ip { fragment: Some(Fragment { offset: 0, more: true }), ..whole.ip.clone() };
            add("outer first fragment", &state, &Outer { ip: fragment, ..whole.clone() });
            if !v6 {
                let options = Ip { options: vec![1; 4], ..whole.ip.clone() };
                add("outer options", &state, &Outer { ip: options, ..whole.clone() });
            }
            let mut tcp = whole.packet(&ack);
            tcp[if v6 { 20 } else { 23 }] = TCP;
            let name = format!("TCP to the tunnel's port, v6 {v6}, kind {kind:x}");
            cases.push(refused(name, &state, tcp, PassNoVip));
        }
    }
    cases.extend(vip_at_the_endpoint());
    cases
}

/// A VIP at the endpoint's own address and port gets what is no tunnel.
fn vip_at_the_endpoint() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let mut state = tunnelled(VXLAN, v6, 0);
        state.add_backend(9, NONE, false);
        let address = vtep(v6);
        state.add_vip(Vip { id: 9, address, port: 4789, protocol: UDP, slots: &[9; 8], ..Vip::default() });
        let ack = flow(false).tcp(ACK);
        let whole = Outer::vxlan(v6, VNI);
        let name = format!("a tunnel, though its endpoint is a VIP, v6 {v6}");
        cases.push(relayed(name, &state, &whole, &ack, Forwarded, CURRENT));
        if !v6 {
            let ip = Ip { options: vec![1; 4], ..whole.ip.clone() };
            let options = Outer { ip, ..whole.clone() }.packet(&ack);
            cases.push(sent("outer options to a VIP", &state, options, Forwarded, 9).of_vip(9));
        }
        let priority = Outer { tags: vec![tag(0xe000)], ..whole.clone() }.packet(&ack);
        let name = format!("priority tag outside, to a VIP, v6 {v6}");
        cases.push(sent(name, &state, priority, Forwarded, 9).of_vip(9));
        let none = state.clone().with(|state| state.node.vtep_count = 0);
        let name = format!("no endpoints, to a VIP, v6 {v6}");
        cases.push(sent(name, &none, whole.packet(&ack), Forwarded, 9).of_vip(9));
        let fragment = Ip { fragment: Some(Fragment { offset: 0, more: true }), ..whole.ip.clone() };
        let name = format!("outer fragment to a VIP, v6 {v6}");
        let outer = Outer { ip: fragment, ..whole };
        cases.push(refused(name, &state, outer.packet(&ack), DropFragment));
    }
    cases
}

/// Cut off anywhere, the outer lengths telling the truth about what is left.
fn truncated() -> Vec<Case> {
    let mut cases = Vec::new();
    let packet = Flow { payload: 0, ..flow(false) }.udp();
    for v6 in [false, true] {
        for kind in [VXLAN, GENEVE] {
            let state = tunnelled(kind, v6, 0);
            let whole = outer(kind, v6).packet(&packet);
            let (network, header) = (14, if v6 { 40 } else { 20 });
            for length in network..whole.len() {
                let cut = whole[..length].to_vec();
                let name = format!("{length} octets, kind {kind:x} over v6 {v6}");
                cases.push(refused(name, &state, cut.clone(), PassMalformed));
                if length < network + header {
                    continue;
                }
                let name = format!("{length} octets and honest, kind {kind:x} over v6 {v6}");
                cases.push(refused(name, &state, honest(cut, v6, length - network), PassMalformed));
            }
        }
    }
    cases
}

fn honest(mut frame: Vec<u8>, v6: bool, length: usize) -> Vec<u8> {
    if v6 {
        frame[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    } else {
        frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
        crate::frames::fix_ipv4(&mut frame[14..]);
    }
    frame
}

/// The inner packet ends with the outer one.
fn inside() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let state = tunnelled(VXLAN, v6, 0);
        let packet = flow(false).udp();
        let whole = Outer::vxlan(v6, VNI).packet(&packet);
        let padded = [whole, vec![0xee; 30]].concat();
        let name = format!("padding behind the outer packet, v6 {v6}");
        let expected = [to_backend(&Outer::vxlan(v6, VNI), CURRENT, &packet), vec![0xee; 30]].concat();
        cases.push(sent(name, &state, padded, Forwarded, CURRENT).only(&[(0, &expected)]));
    }
    // A VIP inside, whatever segment the same address has outside.
    let plain = frame(&[], &flow(false).tcp(ACK));
    let state = tunnelled(VXLAN, false, 0);
    assert_eq!(vip(false), flow(false).ip.destination);
    cases.push(refused("untagged, VIP in VXLAN", &state, plain, PassNoVip));
    cases
}
