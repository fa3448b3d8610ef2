//! Rules 1, 2 and 9: for whom a frame is, of which segment, and what is written.

use bpf_abi::BalancerReason::{Forwarded, PassMalformed, PassNoVip, PassNotForUs, PassNotIp, PassSegment};
use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, NONE, VXLAN};

use super::{Case, refused, sent};
use crate::frames::{ACK, PORT, ROUTER, SYN, Tag, ethernet, flow, frame, service_tag, tag};
use crate::model::{SCTP, TCP, UDP};
use crate::site::{CURRENT, plain, site};

pub(crate) fn cases() -> Vec<Case> {
    [for_whom(), families(), tagged(), other_segments(), odd_tags(), truncated_tags()].concat()
}

/// Rule 1.
fn for_whom() -> Vec<Case> {
    let syn = flow(false).tcp(SYN);
    let to = |destination: [u8; 6]| ethernet(destination, ROUTER, &[], 0x0800, &syn);
    let vlan = |destination: [u8; 6]| ethernet(destination, ROUTER, &[tag(100)], 0x0800, &syn);
    let tagged = site(DOT1Q | 100, DOT1Q | 200, 0);
    let mut cases = vec![
        refused("another port's MAC", &plain(), to([2, 0, 0, 0, 0, 2]), PassNotForUs),
        refused("another port's MAC, first octet", &plain(), to([6, 0, 0, 0, 0, 1]), PassNotForUs),
        refused("broadcast", &plain(), to([0xff; 6]), PassNotForUs),
        refused("a backend's MAC: a flooded frame of ours", &plain(), to([2, 0, 0, 1, 0, 1]), PassNotForUs),
        refused("another port's MAC, tagged", &tagged, vlan([2, 0, 0, 0, 0, 2]), PassNotForUs),
    ];
    let short = to([2, 0, 0, 0, 0, 2])[..14].to_vec();
    cases.push(refused("another port's MAC, nothing behind it", &plain(), short, PassNotForUs));
    let arp = ethernet([0xff; 6], ROUTER, &[], 0x0806, &[0; 46]);
    cases.push(refused("broadcast ARP", &plain(), arp, PassNotForUs));
    cases
}

/// Rule 9 without a tag: nothing but the MAC addresses is written.
fn families() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let flow = flow(v6);
        let name = |what: &str| format!("{what}, v6 {v6}");
        let mut add = |what: &str, packet: Vec<u8>| {
            cases.push(sent(name(what), &plain(), frame(&[], &packet), Forwarded, CURRENT));
        };
        add("TCP SYN", flow.tcp(SYN));
        add("TCP ACK", flow.tcp(ACK));
        add("UDP", flow.udp());
        add("SCTP INIT", flow.sctp(0));
        add("SCTP DATA", flow.sctp(0x1234_5678));
        let mut dying = flow.clone();
        dying.ip.ttl = 0;
        add("TTL 0 is the server's business", dying.tcp(ACK));
        let mut marked = flow.clone();
        marked.ip.tos = 0xff;
        add("DSCP and ECN", marked.tcp(ACK));
        let mut wrong = flow.tcp(ACK);
        let header = if v6 { 40 } else { 20 };
        wrong[header + 16] ^= 0x55;
        add("a wrong TCP checksum is the server's business", wrong);
        let big = crate::frames::Flow { payload: 1400, ..flow };
        add("large", big.tcp(ACK));
    }
    let mut wrong = flow(false).tcp(ACK);
    wrong[10] ^= 0x55;
    cases.push(sent("a wrong IPv4 checksum", &plain(), frame(&[], &wrong), Forwarded, CURRENT));
    let mut other = plain();
    other.node.mac = [0x0a, 0xbb, 0xcc, 0xdd, 0xee, 0x0f];
    let from = ethernet(other.node.mac, ROUTER, &[], 0x0800, &flow(false).udp());
    let own = other.node.mac;
    cases.push(sent("the source becomes the port's own", &other, from, Forwarded, CURRENT).and(6, &own));
    cases
}

/// Rules 2 and 9 with tags: VIDs are the backend's, priority and DEI the frame's.
fn tagged() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for protocol in [TCP, UDP, SCTP] {
            let packet = match protocol {
                TCP => flow(v6).tcp(ACK),
                UDP => flow(v6).udp(),
                _ => flow(v6).sctp(9),
            };
            let mut add = |what: &str, vip: u32, backend: u32, tags: &[Tag], written: &[(usize, [u8; 2])]| {
                let name = format!("{what}, v6 {v6}, protocol {protocol}");
                let row = sent(name, &site(vip, backend, 0), frame(tags, &packet), Forwarded, CURRENT);
                cases.push(written.iter().fold(row, |row, (at, tci)| row.and(*at, tci)));
            };
            let (q, ad) = (DOT1Q, DOT1AD);
            add("802.1Q, same VLAN", q | 100, q | 100, &[tag(100)], &[]);
            add("802.1Q, another VLAN", q | 100, q | 200, &[tag(100)], &[(14, [0x00, 200])]);
            add("802.1Q, PCP 5", q | 100, q | 0xabc, &[tag(0xa064)], &[(14, [0xaa, 0xbc])]);
            add("802.1Q, PCP 7 and DEI", q | 100, q | 1, &[tag(0xf064)], &[(14, [0xf0, 1])]);
            add("802.1Q, DEI", q | 4094, q | 4093, &[tag(0x1ffe)], &[(14, [0x1f, 0xfd])]);
            add("priority tag", NONE, NONE, &[tag(0)], &[]);
            add("priority tag, PCP 6 and DEI", NONE, NONE, &[tag(0xd000)], &[]);
            add("802.1ad", ad | 100 << 12, ad | 200 << 12, &[service_tag(0xb064)], &[(14, [0xb0, 200])]);
            let double = [service_tag(0x3000 | 10), tag(0xe000 | 20)];
            let written = [(14, [0x31, 0x10]), (18, [0xe2, 0x20])];
            add("802.1ad and 802.1Q", ad | 10 << 12 | 20, ad | 0x110 << 12 | 0x220, &double, &written);
            let written = [(18, [0xe0, 21])];
            add("802.1ad, another C-VID", ad | 10 << 12 | 20, ad | 10 << 12 | 21, &double, &written);
            let double = [service_tag(10), tag(0x6000)];
            let written = [(14, [0, 11])];
            add("802.1ad, C-tag of priority only", ad | 10 << 12, ad | 11 << 12, &double, &written);
            add("802.1ad, S-VID 0", ad, ad, &[service_tag(0x4000)], &[]);
            let double = [service_tag(0x4000), tag(5)];
            add("802.1ad, S-VID 0 with a C-tag", ad | 5, ad | 6, &double, &[(18, [0, 6])]);
        }
    }
    cases
}

/// The right address in the wrong segment.
fn other_segments() -> Vec<Case> {
    let packet = flow(false).tcp(SYN);
    let mut cases = Vec::new();
    let mut add = |name: &str, segment: u32, tags: &[Tag]| {
        cases.push(refused(name, &site(segment, segment, 0), frame(tags, &packet), PassNoVip));
    };
    add("tagged, VIP untagged", NONE, &[tag(100)]);
    add("untagged, VIP tagged", DOT1Q | 100, &[]);
    add("priority tag, VIP tagged", DOT1Q | 100, &[tag(0xe000)]);
    add("another VLAN", DOT1Q | 100, &[tag(101)]);
    add("802.1Q, VIP 802.1ad with the same S-VID", DOT1AD | 100 << 12, &[tag(100)]);
    add("802.1Q, VIP 802.1ad with the same C-VID", DOT1AD | 100, &[tag(100)]);
    add("802.1ad, VIP 802.1Q", DOT1Q | 100, &[service_tag(100)]);
    add("802.1ad, VIP has a C-VID", DOT1AD | 100 << 12 | 5, &[service_tag(100)]);
    add("802.1ad with a C-VID, VIP without", DOT1AD | 100 << 12, &[service_tag(100), tag(5)]);
    add("S-VID and C-VID the other way round", DOT1AD | 100 << 12 | 5, &[service_tag(5), tag(100)]);
    add("802.1ad, S-VID 0, VIP untagged", NONE, &[service_tag(0)]);
    add("untagged, VIP in a tunnel", VXLAN | 100, &[]);
    add("802.1Q, VIP in a tunnel", VXLAN | 100, &[tag(100)]);
    cases
}

fn odd_tags() -> Vec<Case> {
    let packet = flow(false).tcp(SYN);
    let state = [NONE, DOT1Q | 100, DOT1AD | 100 << 12, DOT1AD | 100 << 12 | 100];
    let state = state.map(|segment| site(segment, segment, 0));
    let mut cases = Vec::new();
    for (at, site) in state.iter().enumerate() {
        let mut add = |name: &str, tags: &[Tag]| {
            let name = format!("{name}, VIP {at}");
            cases.push(refused(name, site, frame(tags, &packet), PassSegment));
        };
        add("two 802.1Q tags", &[tag(100), tag(100)]);
        add("two 802.1Q tags, priority first", &[tag(0), tag(100)]);
        add("two 802.1Q tags, priority last", &[tag(100), tag(0)]);
        add("802.1ad behind 802.1Q", &[tag(100), service_tag(100)]);
        add("two 802.1ad tags", &[service_tag(100), service_tag(100)]);
        add("three tags", &[service_tag(100), tag(100), tag(100)]);
        add("three tags, 802.1ad last", &[service_tag(100), tag(100), service_tag(100)]);
    }
    let site = &state[0];
    let kinds = [(0x0806, "ARP"), (0x88cc, "LLDP"), (0x9100, "an old service tag"), (0x05dc, "a length")];
    for (ethertype, name) in kinds {
        for tags in [&[][..], &[tag(100)], &[service_tag(1)], &[service_tag(1), tag(2)]] {
            let frame = ethernet(PORT, ROUTER, tags, ethertype, &packet);
            let name = format!("{name} behind {} tags {:?}", tags.len(), tags.first());
            cases.push(refused(name, site, frame, PassNotIp));
        }
    }
    cases
}

fn truncated_tags() -> Vec<Case> {
    let packet = flow(false).tcp(SYN);
    let mut cases = Vec::new();
    for (name, tags) in [
        ("802.1Q", vec![tag(100)]),
        ("802.1ad", vec![service_tag(100)]),
        ("both", vec![service_tag(100), tag(5)]),
    ] {
        let segment = match name {
            "802.1Q" => DOT1Q | 100,
            "802.1ad" => DOT1AD | 100 << 12,
            _ => DOT1AD | 100 << 12 | 5,
        };
        let whole = frame(&tags, &packet);
        for length in 14..14 + 4 * tags.len() {
            let name = format!("{name}, cut off after {length} octets");
            let cut = whole[..length].to_vec();
            cases.push(refused(name, &site(segment, segment, 0), cut, PassMalformed));
        }
    }
    cases
}
