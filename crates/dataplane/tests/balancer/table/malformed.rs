//! Rule 3: versions and lengths; options are skipped.

use bpf_abi::BalancerReason::{Forwarded, PassMalformed, PassNoVip};

use super::{Case, refused, sent};
use crate::frames::{ACK, Flow, flow, frame, icmp, tag};
use crate::model::State;
use crate::site::{CURRENT, plain, site};

pub(crate) fn cases() -> Vec<Case> {
    [truncated(), padded(), lengths_v4(), lengths_v6(), options(), short_transports()].concat()
}

/// Cut off at every octet: all of the packet has to be there, since its length says so.
fn truncated() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let flow = Flow { payload: 4, ..flow(v6) };
        let tagged = bpf_abi::balancer::segment::DOT1Q | 100;
        for (name, packet) in [
            ("TCP", flow.tcp(ACK)),
            ("UDP", flow.udp()),
            ("SCTP", flow.sctp(1)),
            ("echo", icmp::echo_request(&flow.ip)),
            ("too big", icmp::too_big(&flow.reply().udp())),
        ] {
            let (whole, inside) = (frame(&[], &packet), frame(&[tag(100)], &packet));
            for cut in 0..packet.len() {
                let name = |what: &str| format!("{name}{what}, v6 {v6}, {cut} octets of it");
                let short = whole[..14 + cut].to_vec();
                cases.push(refused(name(""), &plain(), short, PassMalformed));
                let short = inside[..18 + cut].to_vec();
                cases.push(refused(name(" in a VLAN"), &site(tagged, tagged, 0), short, PassMalformed));
            }
        }
    }
    cases
}

/// What is behind the packet stays, and does not count as the packet's.
fn padded() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let flow = Flow { payload: 0, ..flow(v6) };
        for (name, packet) in [("TCP", flow.tcp(ACK)), ("UDP", flow.udp()), ("SCTP", flow.sctp(1))] {
            let name = format!("{name} with padding, v6 {v6}");
            let padded = [frame(&[], &packet), vec![0xee; 46]].concat();
            cases.push(sent(name, &plain(), padded, Forwarded, CURRENT));
        }
    }
    cases
}

fn changed(packet: &[u8], at: usize, octets: &[u8]) -> Vec<u8> {
    let mut frame = frame(&[], packet);
    frame[14 + at..14 + at + octets.len()].copy_from_slice(octets);
    frame
}

fn lengths_v4() -> Vec<Case> {
    let packet = flow(false).udp();
    let odd = |name: &str, at: usize, octets: &[u8]| {
        refused(name, &plain(), changed(&packet, at, octets), PassMalformed)
    };
    let length = packet.len() as u8;
    vec![
        odd("IPv4, version 5", 0, &[0x55]),
        odd("IPv4, version 6", 0, &[0x65]),
        odd("IPv4, version 0", 0, &[0x05]),
        odd("IPv4, header of 16 octets", 0, &[0x44]),
        odd("IPv4, header of 0 octets", 0, &[0x40]),
        odd("IPv4, header of 60 octets in 58", 0, &[0x4f]),
        odd("IPv4, length beyond the frame", 2, &[0, length + 1]),
        odd("IPv4, length far beyond the frame", 2, &[0xff, 0xff]),
        odd("IPv4, length below the header", 2, &[0, 19]),
        odd("IPv4, length 0", 2, &[0, 0]),
        odd("IPv4, nothing behind the header", 2, &[0, 20]),
        odd("IPv4, half a UDP header", 2, &[0, 27]),
        sent("IPv4, a UDP header", &plain(), changed(&packet, 2, &[0, 28]), Forwarded, CURRENT),
        odd("IPv4, options up to the packet's end", 0, &[0x4e]),
        refused(
            "IPv6 behind IPv4's EtherType",
            &plain(),
            {
                let mut frame = frame(&[], &flow(true).udp());
                frame[12..14].copy_from_slice(&[8, 0]);
                frame
            },
            PassMalformed,
        ),
    ]
}

fn lengths_v6() -> Vec<Case> {
    let packet = flow(true).udp();
    let odd = |name: &str, at: usize, octets: &[u8]| {
        refused(name, &plain(), changed(&packet, at, octets), PassMalformed)
    };
    let length = (packet.len() - 40) as u8;
    vec![
        odd("IPv6, version 4", 0, &[0x45]),
        odd("IPv6, version 7", 0, &[0x75]),
        odd("IPv6, payload beyond the frame", 4, &[0, length + 1]),
        odd("IPv6, payload far beyond the frame", 4, &[0xff, 0xff]),
        odd("IPv6, no payload", 4, &[0, 0]),
        odd("IPv6, half a UDP header", 4, &[0, 7]),
        sent("IPv6, a UDP header", &plain(), changed(&packet, 4, &[0, 8]), Forwarded, CURRENT),
        refused(
            "IPv4 behind IPv6's EtherType",
            &plain(),
            {
                let mut frame = frame(&[], &flow(false).tcp(ACK));
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
                frame
            },
            PassMalformed,
        ),
    ]
}

/// The ports are where the header says, not at octet 20: blixt ignores IHL.
fn options() -> Vec<Case> {
    let mut cases = Vec::new();
    for words in 1..=10 {
        let mut flow = flow(false);
        // Octets that would be ports of another VIP, or none, if they were taken for the transport header.
        flow.ip.options = [0x94, 4, 0, 81].repeat(words);
        for (name, packet) in [("TCP", flow.tcp(ACK)), ("UDP", flow.udp()), ("SCTP", flow.sctp(1))] {
            let name = format!("{name} behind {words} words of options");
            cases.push(sent(name, &plain(), frame(&[], &packet), Forwarded, CURRENT));
        }
        flow.ip.options = [0, 81, 0, 80].repeat(words);
        flow.destination_port = 81;
        let name = format!("options look like ports, {words} words");
        cases.push(refused(name, &plain(), frame(&[], &flow.udp()), PassNoVip));
    }
    cases
}

/// Octets that each transport needs within the packet, with padding behind it so that only the packet's own length tells.
fn short_transports() -> Vec<Case> {
    let mut cases = Vec::new();
    let needed: [(u8, usize); 4] = [(6, 20), (17, 8), (132, 12), (1, 8)];
    for v6 in [false, true] {
        for (protocol, needed) in needed {
            let number = if v6 && protocol == 1 { 58 } else { protocol };
            // To a VIP, and to an address without one: what is malformed is so for whomever.
            for state in [plain(), State::node()] {
                let without = state.vips.is_empty();
                for octets in [0, needed - 1] {
                    let packet = flow(v6).ip.packet(number, &vec![0x50; octets]);
                    let padded = [frame(&[], &packet), vec![0; 60]].concat();
                    let name = format!("protocol {number}, v6 {v6}, {octets} octets, no VIP {without}");
                    cases.push(refused(name, &state, padded, PassMalformed));
                }
            }
            let packet = flow(v6).ip.packet(number, &vec![0x50; needed]);
            let name = format!("protocol {number}, v6 {v6}, just enough");
            cases.push(refused(name, &State::node(), frame(&[], &packet), PassNoVip));
        }
        for other in [2, 4, 41, 47, 50, 59, 89, if v6 { 1 } else { 58 }] {
            for octets in [0, 30] {
                let packet = flow(v6).ip.packet(other, &vec![0; octets]);
                let name = format!("protocol {other}, v6 {v6}, {octets} octets");
                cases.push(refused(name, &plain(), frame(&[], &packet), PassNoVip));
            }
        }
    }
    cases
}
