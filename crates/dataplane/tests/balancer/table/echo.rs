//! Rule 6: echo requests.

use bpf_abi::BalancerReason::{EchoAnswered, PassIcmp, PassNoVip};
use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, NONE};
use bpf_abi::balancer::{VIP_BY_ADDRESSES, VIP_ECHO, VIP_FLOW_TABLE};

use super::{Case, refused};
use crate::frames::tunnel::Outer;
use crate::frames::{PORT, ROUTER, Tag, client, flow, frame, icmp, octets, service_tag, sum, tag, vip};
use crate::model::State;
use crate::site::{plain, site};

pub(crate) fn cases() -> Vec<Case> {
    [answered(), left_alone()].concat()
}

/// The answer's octets, its checksums computed anew from nothing.
fn answer(name: impl Into<String>, site: &State, tags: &[Tag], request: &[u8]) -> Case {
    let v6 = request[0] >> 4 == 6;
    let ip = 14 + 4 * tags.len();
    let (from, to) = (octets(vip(v6)), octets(client(v6)));
    let mut reply = request.to_vec();
    let header = if v6 { 40 } else { usize::from(reply[0] & 15) * 4 };
    let addresses = if v6 { 8 } else { 12 };
    reply[addresses..addresses + 2 * from.len()].copy_from_slice(&[from, to].concat());
    reply[if v6 { 7 } else { 8 }] = 64;
    if !v6 {
        crate::frames::fix_ipv4(&mut reply);
    }
    reply[header] = if v6 { 129 } else { 0 };
    reply[header + 2..header + 4].fill(0);
    let length = ((reply.len() - header) as u32).to_be_bytes();
    let pseudo = if v6 { [&reply[8..40], &length, &[0, 0, 0, 58]].concat() } else { Vec::new() };
    let checksum = !sum(&[&pseudo, &reply[header..]]);
    reply[header + 2..header + 4].copy_from_slice(&checksum.to_be_bytes());
    refused(name, site, frame(tags, request), EchoAnswered).only(&[(0, &ROUTER), (6, &PORT), (ip, &reply)])
}

fn answered() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let name = |what: &str| format!("echo, {what}, v6 {v6}");
        let ip = flow(v6).ip;
        let request = icmp::echo_request(&ip);
        cases.push(answer(name("untagged"), &plain(), &[], &request));
        cases.push(answer(name("priority tag"), &plain(), &[tag(0xe000)], &request));
        let tagged = site(DOT1Q | 100, DOT1Q | 200, 0);
        cases.push(answer(name("VLAN stays"), &tagged, &[tag(0xb064)], &request));
        let double = site(DOT1AD | 3 << 12 | 4, DOT1AD | 5 << 12 | 6, 0);
        cases.push(answer(name("both VLANs stay"), &double, &[service_tag(3), tag(0x7004)], &request));
        for ttl in [1, 63, 64, 65, 255] {
            let request = icmp::echo_request(&crate::frames::Ip { ttl, ..ip.clone() });
            cases.push(answer(name(&format!("TTL {ttl}")), &plain(), &[], &request));
        }
        let kind = if v6 { 128 } else { 8 };
        cases.push(answer(name("no data"), &plain(), &[], &icmp::message(&ip, kind, 0, [0; 4], &[])));
        let odd = icmp::message(&ip, kind, 0, [1, 2, 3, 4], &[7; 57]);
        cases.push(answer(name("odd length"), &plain(), &[], &odd));
        let large = icmp::message(&ip, kind, 0, [1, 2, 3, 4], &[9; 1400]);
        cases.push(answer(name("large"), &plain(), &[], &large));
        cases.push(answer(name("another code"), &plain(), &[], &icmp::message(&ip, kind, 5, [1; 4], &[])));
        for flags in [VIP_FLOW_TABLE, VIP_BY_ADDRESSES] {
            let state = site(NONE, NONE, flags);
            cases.push(answer(name(&format!("VIP with flags {flags}")), &state, &[], &request));
        }
        let empty = plain().change(crate::site::VIP, |vip| vip.size = 0);
        cases.push(answer(name("VIP without backends"), &empty, &[], &request));
    }
    let mut ip = flow(false).ip;
    for words in [1, 10] {
        ip.options = [1, 1, 1, 0].repeat(words);
        let name = format!("echo behind {words} words of options");
        cases.push(answer(name, &plain(), &[], &icmp::echo_request(&ip)));
    }
    cases
}

fn left_alone() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let name = |what: &str| format!("no echo, {what}, v6 {v6}");
        let ip = flow(v6).ip;
        let request = icmp::echo_request(&ip);
        let mut quiet = plain();
        quiet.vips.values_mut().for_each(|vip| vip.flags &= !VIP_ECHO);
        let mut add = |what: &str, state: &State, frame: Vec<u8>, reason| {
            cases.push(refused(name(what), state, frame, reason));
        };
        add("switched off", &quiet, frame(&[], &request), PassIcmp);
        add("no VIP", &State::node(), frame(&[], &request), PassNoVip);
        add("another segment", &plain(), frame(&[tag(5)], &request), PassNoVip);
        let kind = if v6 { 129 } else { 0 };
        add("reply", &plain(), frame(&[], &icmp::message(&ip, kind, 0, [1; 4], &[])), PassIcmp);
        // The other family's number.
        let kind = if v6 { 8 } else { 128 };
        add("other family", &plain(), frame(&[], &icmp::message(&ip, kind, 0, [1; 4], &[])), PassIcmp);
        let solicitation = icmp::message(&ip, if v6 { 135 } else { 10 }, 0, [0; 4], &[0; 24]);
        add("solicitation", &plain(), frame(&[], &solicitation), PassIcmp);
        for (outer_v6, outer) in [false, true].map(|v6| (v6, Outer::vxlan(v6, 5))) {
            let inside =
                site(bpf_abi::balancer::segment::VXLAN | 5, bpf_abi::balancer::segment::VXLAN | 6, 0);
            add(&format!("in VXLAN over v6 {outer_v6}"), &inside, outer.packet(&request), PassIcmp);
            add(
                &format!("in VXLAN over v6 {outer_v6} to no VIP"),
                &plain(),
                outer.packet(&request),
                PassNoVip,
            );
        }
    }
    cases
}
