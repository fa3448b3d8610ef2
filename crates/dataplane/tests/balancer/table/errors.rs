//! Rule 6: ICMP errors, which go to the backend of the flow that they are about.

use bpf_abi::BalancerReason::{DropNoBackend, IcmpRelayed, PassIcmp, PassMalformed, PassNoVip};
use bpf_abi::balancer::segment::{DOT1Q, NONE};
use bpf_abi::balancer::{VIP_BY_ADDRESSES, VIP_FLOW_TABLE};

use super::{Case, refused, sent};
use crate::frames::{ACK, Extension, Flow, Fragment, Ip, SYN, client, flow, frame, icmp, tag};
use crate::model::{SCTP, State, TCP, UDP};
use crate::site::{CURRENT, OTHER, PREVIOUS, Vip, addresses_key, flow_key, plain, site};

pub(crate) fn cases() -> Vec<Case> {
    [relayed(), like_the_flow(), quotes(), short_quotes(), unrelated(), others()].concat()
}

fn quoted(v6: bool) -> Vec<(u8, Vec<u8>)> {
    let reply = flow(v6).reply();
    vec![(TCP, reply.tcp(ACK)), (UDP, reply.udp()), (SCTP, reply.sctp(3))]
}

fn relayed() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let kinds: &[(u8, u8)] = if v6 {
            &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 2)]
        } else {
            &[(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)]
        };
        for (protocol, quote) in quoted(v6) {
            for (kind, code) in kinds {
                let error = icmp::error(*kind, *code, &quote);
                let name = format!("error {kind} code {code} about protocol {protocol}, v6 {v6}");
                cases.push(sent(name, &plain(), frame(&[], &error), IcmpRelayed, CURRENT));
            }
            let tagged = site(DOT1Q | 100, DOT1Q | 200, 0);
            let error = frame(&[tag(0x6064)], &icmp::too_big(&quote));
            let name = format!("too big about protocol {protocol} in a VLAN, v6 {v6}");
            cases.push(sent(name, &tagged, error, IcmpRelayed, CURRENT).and(14, &[0x60, 200]));
        }
    }
    cases
}

/// Rule 8 as for what the client sends, and nothing remembered.
fn like_the_flow() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let error = frame(&[], &icmp::too_big(&flow(v6).reply().tcp(SYN | ACK)));
        let key = flow_key(&flow(v6), TCP, NONE);
        let keeps = plain().flow_table();
        let mut add = |what: &str, state: State, backend: u32| {
            let name = format!("error, {what}, v6 {v6}");
            cases.push(sent(name, &state, error.clone(), IcmpRelayed, backend));
        };
        add("flow table, unknown flow", keeps.clone(), CURRENT);
        add("flow table, known flow", keeps.clone().remembers(key, OTHER), OTHER);
        add(
            "flow table, known flow on a lost backend",
            keeps.clone().remembers(key, OTHER).unusable(OTHER),
            CURRENT,
        );
        add("previous table", plain().previous(PREVIOUS), PREVIOUS);
        add("previous table, lost", plain().previous(PREVIOUS).unusable(PREVIOUS), CURRENT);
        add("previous table, known flow", plain().previous(PREVIOUS).remembers(key, CURRENT), CURRENT);
        add("previous table and flow table", keeps.clone().previous(PREVIOUS), PREVIOUS);
        add("a quoted SYN is no first packet", keeps.clone().remembers(key, OTHER), OTHER);
        let ports_do_not_count = site(NONE, NONE, VIP_BY_ADDRESSES | VIP_FLOW_TABLE);
        let by_addresses = addresses_key(&flow(v6), TCP, NONE);
        add("by addresses", ports_do_not_count.clone().remembers(by_addresses, OTHER), OTHER);
        add("by addresses, entry with ports", ports_do_not_count.remembers(key, OTHER), CURRENT);
        let syn = frame(&[], &icmp::too_big(&flow(v6).reply().tcp(SYN)));
        let known = keeps.clone().remembers(key, OTHER);
        cases.push(sent(format!("error about a SYN, v6 {v6}"), &known, syn, IcmpRelayed, OTHER));
        let init = frame(&[], &icmp::too_big(&flow(v6).reply().sctp(0)));
        let previous = plain().previous(PREVIOUS);
        cases.push(sent(format!("error about an INIT, v6 {v6}"), &previous, init, IcmpRelayed, PREVIOUS));
        let lost = plain().unusable(CURRENT);
        cases.push(refused(format!("error, no backend, v6 {v6}"), &lost, error.clone(), DropNoBackend));
        let none = plain().change(crate::site::VIP, |vip| vip.size = 0);
        cases.push(refused(format!("error, no table, v6 {v6}"), &none, error, DropNoBackend));
    }
    cases
}

/// Quotes with more headers, or less.
fn quotes() -> Vec<Case> {
    let mut cases = Vec::new();
    for words in [1, 5, 10] {
        let mut reply = flow(false).reply();
        // They look like ports of no VIP.
        reply.ip.options = [0, 81, 0, 81].repeat(words);
        let error = icmp::too_big(&reply.tcp(ACK));
        let name = format!("quote with {words} words of options");
        cases.push(sent(name, &plain(), frame(&[], &error), IcmpRelayed, CURRENT));
        let mut outer = Ip::new(client(false), flow(false).ip.destination);
        outer.options = [0, 81, 0, 81].repeat(words);
        let error = icmp::message(&outer, 3, 4, [0, 0, 5, 0], &reply.tcp(ACK));
        let name = format!("options inside and outside, {words} words");
        cases.push(sent(name, &plain(), frame(&[], &error), IcmpRelayed, CURRENT));
    }
    let fragment = |v6: bool, offset: u16, more: bool| {
        let mut reply = flow(v6).reply();
        reply.ip.fragment = Some(Fragment { offset, more });
        frame(&[], &icmp::too_big(&reply.udp()))
    };
    cases.push(sent("quote of a first fragment", &plain(), fragment(false, 0, true), IcmpRelayed, CURRENT));
    cases.push(refused("quote of a later fragment", &plain(), fragment(false, 1480, true), PassIcmp));
    cases.push(refused("quote of a last fragment", &plain(), fragment(false, 8, false), PassIcmp));
    cases.push(refused("quote of an IPv6 fragment", &plain(), fragment(true, 0, true), PassIcmp));
    cases.push(refused("quote of an atomic fragment", &plain(), fragment(true, 0, false), PassIcmp));
    for next in [0, 43, 51, 60, 135] {
        let mut reply = flow(true).reply();
        reply.ip.extensions = vec![Extension(next)];
        let name = format!("quote with extension header {next}");
        cases.push(refused(name, &plain(), frame(&[], &icmp::too_big(&reply.tcp(ACK))), PassIcmp));
    }
    cases
}

/// Routers quote as little as 8 octets behind the network header; 4 have the ports.
fn short_quotes() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let header = if v6 { 40 } else { 20 };
        let quote = flow(v6).reply().tcp(ACK);
        for octets in [8, 5, 4] {
            let error = frame(&[], &icmp::too_big(&quote[..header + octets]));
            let name = format!("{octets} octets of the quoted transport, v6 {v6}");
            cases.push(sent(name, &plain(), error, IcmpRelayed, CURRENT));
        }
        // What is missing is in the padding, which is not the packet.
        for octets in 1..header + 4 {
            let error = icmp::message(&flow(v6).ip, if v6 { 2 } else { 3 }, 4, [0; 4], &quote[..octets]);
            let padded = [&frame(&[], &error), &quote[octets..], &[0; 60]].concat();
            let name = format!("{octets} octets of a quote, v6 {v6}");
            cases.push(refused(name, &plain(), padded, PassIcmp));
        }
        let error = icmp::message(&flow(v6).ip, if v6 { 2 } else { 3 }, 4, [0; 4], &[]);
        cases.push(refused(format!("no quote, v6 {v6}"), &plain(), frame(&[], &error), PassIcmp));
        let mut short = icmp::too_big(&quote);
        let length = (header + 7) as u8;
        if v6 {
            short[5] = 7
        } else {
            short[3] = length
        }
        cases.push(refused(
            format!("7 octets of ICMP, v6 {v6}"),
            &plain(),
            frame(&[], &short),
            PassMalformed,
        ));
    }
    let mut reply = flow(false).reply();
    reply.ip.options = vec![1; 40];
    let quote = reply.tcp(ACK);
    let error = icmp::too_big(&quote[..63]);
    cases.push(refused("options and 3 octets of the quote", &plain(), frame(&[], &error), PassIcmp));
    let error = icmp::too_big(&quote[..64]);
    cases.push(sent("options and 4 octets of it", &plain(), frame(&[], &error), IcmpRelayed, CURRENT));
    cases
}

/// Quotes that are about nothing here.
fn unrelated() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let mut add = |what: &str, state: &State, quote: &[u8], reason| {
            let error = icmp::message(&flow(v6).ip, if v6 { 2 } else { 3 }, 4, [0; 4], quote);
            cases.push(refused(format!("{what}, v6 {v6}"), state, frame(&[], &error), reason));
        };
        let reply = flow(v6).reply();
        let whole = reply.tcp(ACK);
        add("error to no VIP", &State::node(), &whole, PassNoVip);
        add("error in another segment", &site(DOT1Q | 1, DOT1Q | 1, 0), &whole, PassNoVip);
        let other = Flow { source_port: 81, ..reply.clone() };
        add("quote from another port", &plain(), &other.tcp(ACK), PassIcmp);
        add("quote of what the client sent", &plain(), &flow(v6).tcp(ACK), PassIcmp);
        let mut other = reply.clone();
        other.ip.source = "192.0.2.11".parse().unwrap();
        if v6 {
            other.ip.source = "2001:db8:1::11".parse().unwrap();
        }
        add("quote from another address", &plain(), &other.tcp(ACK), PassIcmp);
        // That address is a VIP too, but the error came to the first one.
        let mut two = plain();
        two.add_vip(Vip { address: other.ip.source, ..Vip::default() });
        add("quote from another VIP", &two, &other.tcp(ACK), PassIcmp);
        let header = if v6 { 40 } else { 20 };
        for protocol in [1, 4, 41, 47, 50, 58] {
            let quote = reply.ip.packet(protocol, &whole[header..]);
            add(&format!("quote of protocol {protocol}"), &plain(), &quote, PassIcmp);
        }
        add("quote of the other family", &plain(), &flow(!v6).reply().tcp(ACK), PassIcmp);
        let mut odd = whole.clone();
        odd[0] = 0x50 | odd[0] & 15;
        add("quote of version 5", &plain(), &odd, PassIcmp);
        if !v6 {
            odd[0] = 0x44;
            add("quote with a header of 16 octets", &plain(), &odd, PassIcmp);
        }
        // One protocol of three has a VIP.
        let mut only_udp = State::node();
        only_udp.add_backend(CURRENT, NONE, false);
        only_udp.add_vip(Vip { address: flow(v6).ip.destination, protocol: UDP, ..Vip::default() });
        add("quote of another protocol than the VIP's", &only_udp, &whole, PassIcmp);
        // A quote's own checksum and length are not looked at: routers change them.
        let mut mangled = whole;
        mangled[if v6 { 5 } else { 3 }] ^= 0x77;
        mangled[if v6 { 7 } else { 10 }] ^= 0x77;
        let error = frame(&[], &icmp::too_big(&mangled));
        cases.push(sent(format!("mangled quote, v6 {v6}"), &plain(), error, IcmpRelayed, CURRENT));
    }
    cases
}

/// Types that are no errors, though they quote the same.
fn others() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let quote = flow(v6).reply().tcp(ACK);
        let kinds: &[u8] = if v6 {
            &[0, 5, 8, 11, 12, 100, 127, 129, 133, 136, 255]
        } else {
            &[0, 1, 2, 4, 5, 9, 10, 13, 17, 30, 128, 255]
        };
        for kind in kinds {
            let name = format!("type {kind}, v6 {v6}");
            cases.push(refused(name, &plain(), frame(&[], &icmp::error(*kind, 0, &quote)), PassIcmp));
        }
    }
    cases
}
