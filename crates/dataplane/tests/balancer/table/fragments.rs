//! Rules 4 and 5: fragments and extension headers.

use bpf_abi::BalancerReason::{
    DropExtensionHeader, DropFragment, DropNoBackend, Forwarded, ForwardedFlow, ForwardedPrevious,
    PassMalformed, PassNoVip,
};
use bpf_abi::balancer::segment::{DOT1Q, NONE};

use super::{Case, refused, sent};
use crate::PROTOCOLS;
use crate::frames::{ACK, Extension, Flow, Fragment, Ip, SYN, flow, frame, icmp, tag};
use crate::model::{ICMP, ICMPV6, SCTP, State, TCP, UDP};
use crate::site::{CURRENT, OTHER, PREVIOUS, Vip, addresses_key, by_addresses, flow_key, plain, site};

const FIRST: Fragment = Fragment { offset: 0, more: true };
const MIDDLE: Fragment = Fragment { offset: 1480, more: true };
const LAST: Fragment = Fragment { offset: 2960, more: false };
const ATOMIC: Fragment = Fragment { offset: 0, more: false };

pub(crate) fn cases() -> Vec<Case> {
    [with_ports(), by_address(), remembered(), odd(), extensions()].concat()
}

fn fragment(v6: bool, fragment: Fragment) -> Ip {
    Ip { fragment: Some(fragment), ..flow(v6).ip }
}

fn fragments(v6: bool) -> Vec<(&'static str, Fragment)> {
    let mut all = vec![("first", FIRST), ("middle", MIDDLE), ("last", LAST)];
    // Over IPv4 there is no such thing: no offset and no more of them.
    all.extend(v6.then_some(("atomic", ATOMIC)));
    all
}

/// Where ports count, no fragment goes anywhere, whatever its first octets look like.
fn with_ports() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for (which, at) in fragments(v6) {
            for protocol in [TCP, UDP, SCTP, ICMP, ICMPV6, 50] {
                let looks_like_tcp = &flow(v6).tcp(SYN)[if v6 { 40 } else { 20 }..];
                let packet = frame(&[], &fragment(v6, at).packet(protocol, looks_like_tcp));
                let name = |what: &str| format!("{which} fragment, protocol {protocol}, v6 {v6}, {what}");
                cases.push(refused(name("5-tuple"), &plain(), packet.clone(), DropFragment));
                let nowhere = State::node();
                cases.push(refused(name("no VIP"), &nowhere, packet.clone(), PassNoVip));
                let elsewhere = site(DOT1Q | 7, DOT1Q | 7, 0);
                cases.push(refused(name("another segment"), &elsewhere, packet, PassNoVip));
            }
        }
    }
    cases
}

/// Where they do not, fragments go the way of all packets.
fn by_address() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            for (which, at) in fragments(v6) {
                for octets in [1, 8, 200] {
                    let packet = fragment(v6, at).packet(protocol, &vec![0xee; octets]);
                    let name = format!("{which} fragment, protocol {protocol}, v6 {v6}, {octets} octets");
                    cases.push(sent(name, &by_addresses(), frame(&[], &packet), Forwarded, CURRENT));
                }
            }
        }
        let tagged = site(DOT1Q | 100, DOT1Q | 200, bpf_abi::balancer::VIP_BY_ADDRESSES);
        let packet = fragment(v6, MIDDLE).packet(UDP, &[0; 64]);
        let row = sent(
            format!("fragment in a VLAN, v6 {v6}"),
            &tagged,
            frame(&[tag(0x8064)], &packet),
            Forwarded,
            CURRENT,
        );
        cases.push(row.and(14, &[0x80, 200]));
        for protocol in [ICMP, ICMPV6, 0, 2, 60] {
            let packet = fragment(v6, LAST).packet(protocol, &[0; 64]);
            let name = format!("fragment of protocol {protocol}, v6 {v6}, VIPs take others");
            cases.push(refused(name, &by_addresses(), frame(&[], &packet), DropFragment));
        }
    }
    cases
}

/// Fragments are no first packets, and their key has no ports.
fn remembered() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let packet =
            frame(&[], &fragment(v6, FIRST).packet(TCP, &flow(v6).tcp(SYN)[if v6 { 40 } else { 20 }..]));
        let key = addresses_key(&flow(v6), TCP, NONE);
        let keeps = by_addresses().flow_table();
        let name = |what: &str| format!("fragment, {what}, v6 {v6}");
        let known = keeps.clone().remembers(key, OTHER);
        cases.extend([
            sent(name("flow table"), &keeps, packet.clone(), Forwarded, CURRENT).remembers(key, CURRENT),
            sent(name("known flow"), &known, packet.clone(), ForwardedFlow, OTHER),
            sent(
                name("previous table"),
                &by_addresses().previous(PREVIOUS),
                packet.clone(),
                ForwardedPrevious,
                PREVIOUS,
            ),
            sent(
                name("previous table and flow table"),
                &keeps.clone().previous(PREVIOUS),
                packet.clone(),
                ForwardedPrevious,
                PREVIOUS,
            )
            .remembers(key, PREVIOUS),
            refused(name("no backend"), &by_addresses().unusable(CURRENT), packet.clone(), DropNoBackend),
        ]);
        // The same flow as the unfragmented packets of any port.
        let whole = frame(&[], &flow(v6).with_source_port(1234).tcp(ACK));
        cases.push(sent(name("unfragmented after it"), &known, whole, ForwardedFlow, OTHER));
        let syn = frame(&[], &flow(v6).tcp(SYN));
        cases.push(sent(name("but a SYN"), &known, syn.clone(), Forwarded, CURRENT).remembers(key, CURRENT));
        // Ports of the flow are not looked at: an entry with them is another VIP's business.
        let other = keeps.remembers(flow_key(&flow(v6), TCP, NONE), OTHER);
        cases
            .push(sent(name("entry with ports"), &other, packet, Forwarded, CURRENT).remembers(key, CURRENT));
    }
    cases
}

fn odd() -> Vec<Case> {
    let mut cases = Vec::new();
    // Protocol and port 0 are the key of the address, which is no VIP.
    let nothing = fragment(false, LAST).packet(0, &[0; 40]);
    cases.push(refused("fragment of protocol 0, 5-tuple", &plain(), frame(&[], &nothing), DropFragment));
    // Port 0 is the key for fragments, which are no packets with ports.
    for v6 in [false, true] {
        let zero = Flow { destination_port: 0, ..flow(v6) };
        for (protocol, packet) in [(TCP, zero.tcp(SYN)), (UDP, zero.udp()), (SCTP, zero.sctp(1))] {
            let name = format!("port 0, protocol {protocol}, v6 {v6}");
            cases.push(refused(name, &by_addresses(), frame(&[], &packet), PassNoVip));
        }
        let reply = zero.reply().tcp(ACK);
        let error = frame(&[], &icmp::too_big(&reply));
        let name = format!("an error about port 0, v6 {v6}");
        cases.push(refused(name, &by_addresses(), error, bpf_abi::BalancerReason::PassIcmp));
    }
    // Only the flags' more-fragments counts: not don't-fragment, not the reserved bit.
    for (name, bits) in [("don't fragment", 0x40), ("reserved bit", 0x80), ("both bits", 0xc0)] {
        let mut packet = flow(false).tcp(ACK);
        packet[6] = bits;
        cases.push(sent(name, &plain(), frame(&[], &packet), Forwarded, CURRENT));
    }
    let mut smallest = flow(false).tcp(ACK);
    smallest[7] = 1;
    cases.push(refused("offset of 8", &plain(), frame(&[], &smallest), DropFragment));
    for octets in 0..8 {
        let mut packet = fragment(true, ATOMIC).packet(UDP, &[])[..40 + octets].to_vec();
        packet[5] = octets as u8;
        let padded = [frame(&[], &packet), vec![17; 40]].concat();
        let name = format!("{octets} octets of a Fragment header");
        cases.push(refused(name, &by_addresses(), padded, PassMalformed));
    }
    cases.push(other_protocol());
    cases
}

/// A VIP by addresses takes fragments of its own protocol only.
fn other_protocol() -> Case {
    let mut state = plain();
    let flags = bpf_abi::balancer::VIP_BY_ADDRESSES;
    state.add_vip(Vip { protocol: UDP, port: 53, flags, ..Vip::default() });
    let packet = fragment(false, LAST).packet(TCP, &[0; 40]);
    refused("TCP fragment, UDP VIP by addresses", &state, frame(&[], &packet), DropFragment)
}

fn extensions() -> Vec<Case> {
    let mut cases = Vec::new();
    let chain = |extensions: &[u8], fragment: Option<Fragment>| {
        let extensions = extensions.iter().map(|next| Extension(*next)).collect();
        let ip = Ip { extensions, fragment, ..flow(true).ip };
        frame(&[], &Flow { ip, ..flow(true) }.tcp(ACK))
    };
    for state in [plain(), by_addresses()] {
        let by_addresses = state.vips.len() > plain().vips.len();
        for next in [0, 43, 51, 60, 135] {
            let name = format!("extension header {next}, by addresses {by_addresses}");
            cases.push(refused(name, &state, chain(&[next], None), DropExtensionHeader));
        }
        let name = format!("hop-by-hop and Fragment, by addresses {by_addresses}");
        cases.push(refused(name, &state, chain(&[0], Some(FIRST)), DropExtensionHeader));
    }
    for next in [0, 43, 51, 60, 135] {
        let name = format!("extension header {next} to no VIP");
        cases.push(refused(name, &State::node(), chain(&[next], None), PassNoVip));
        let nothing = frame(&[], &flow(true).ip.packet(next, &[]));
        let name = format!("extension header {next} that is not there");
        cases.push(refused(name, &plain(), nothing, DropExtensionHeader));
        let elsewhere = site(DOT1Q | 7, DOT1Q | 7, 0);
        let name = format!("extension header {next} in another segment");
        cases.push(refused(name, &elsewhere, chain(&[next], None), PassNoVip));
    }
    // Over IPv4 these numbers are protocols like any other.
    for protocol in [0, 43, 44, 51, 60, 135] {
        let packet = flow(false).ip.packet(protocol, &[6; 40]);
        let name = format!("IPv4, protocol {protocol}");
        cases.push(refused(name, &plain(), frame(&[], &packet), PassNoVip));
    }
    cases
}
