use alloc::vec;

use proptest::prelude::*;

use super::*;

const A: Mac = [2, 0, 0, 0, 0, 0x0a];
const B: Mac = [2, 0, 0, 0, 0, 0x0b];

/// Between two Linux 6.18 hosts, captured from the wire.
const ARP_REQUEST: &str =
    "ffffffffffff02000000000a0806 000108000604000102000000000a0a000001 0000000000000a000002";
const ARP_REPLY: &str =
    "02000000000a02000000000b0806 000108000604000202000000000b0a000002 02000000000a0a000001";
const SOLICIT: &str = "3333ff00000202000000000a86dd 6000000000203afffd000000000000000000000000000001\
    ff0200000000000000000001ff000002 87007d8e00000000fd000000000000000000000000000002 010102000000000a";
const SOLICIT_UNICAST: &str = "02000000000a02000000000b86dd 6000000000203afffe80000000000000000000fffe00000b\
    fd000000000000000000000000000001 87007e0900000000fd000000000000000000000000000001 010102000000000b";
const ADVERTISE: &str = "02000000000a02000000000b86dd 6000000000203afffd000000000000000000000000000002\
    fd000000000000000000000000000001 88001c9160000000fd000000000000000000000000000002 020102000000000b";
const CONFIRM: &str = "02000000000b02000000000a86dd 6000000000183afffd000000000000000000000000000001\
    fe80000000000000000000fffe00000b 8800401d40000000fd000000000000000000000000000001";

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let octet = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(octet).collect()
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

fn vid(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

fn advertisement(source: Ipv6Addr, destination: Ipv6Addr, target_mac: Option<Mac>) -> Message {
    let overrides = target_mac.is_some();
    let (router, solicited, target) = (false, true, source);
    Message::Advertisement(Advertisement {
        source,
        destination,
        target,
        router,
        solicited,
        overrides,
        target_mac,
    })
}

fn vectors() -> Vec<(&'static str, Frame)> {
    let reply =
        Arp { operation: ArpOperation::Reply, sender_mac: B, sender: v4(2), target_mac: A, target: v4(1) };
    let to_a = |message| Frame { destination: A, source: B, vlan: Vlan::None, message };
    let confirm = advertisement(v6(1), link_local(B), None);
    vec![
        (ARP_REQUEST, Frame::request(Vlan::None, A, v4(1), v4(2), None)),
        (ARP_REPLY, to_a(Message::Arp(reply))),
        (SOLICIT, Frame::solicitation(Vlan::None, A, v6(1), v6(2), None)),
        (SOLICIT_UNICAST, Frame::solicitation(Vlan::None, B, link_local(B), v6(1), Some(A))),
        (ADVERTISE, to_a(advertisement(v6(2), v6(1), Some(B)))),
        (CONFIRM, Frame { destination: B, source: A, vlan: Vlan::None, message: confirm }),
    ]
}

#[test]
fn frames_are_those_of_the_kernel() {
    for (hex, frame) in vectors() {
        assert_eq!(Frame::decode(&octets(hex)), Ok(frame));
        assert_eq!(frame.encode(), octets(hex));
    }
}

#[test]
fn tags_stand_behind_the_addresses() {
    let tagged = [
        (Vlan::Dot1q(vid(100)), "81000064"),
        (Vlan::Dot1ad(vid(200), None), "88a800c8"),
        (Vlan::Dot1ad(vid(200), Some(vid(7))), "88a800c881000007"),
    ];
    for (vlan, tags) in tagged {
        for (hex, frame) in vectors() {
            let mut expected = octets(hex);
            expected.splice(12..12, octets(tags));
            let frame = Frame { vlan, ..frame };
            assert_eq!(frame.encode(), expected);
            assert_eq!(Frame::decode(&expected), Ok(frame));
        }
    }
}

#[test]
fn priority_is_not_part_of_the_vlan() {
    let vlan = |tags: &str| {
        let mut bytes = octets(ARP_REPLY);
        bytes.splice(12..12, octets(tags));
        Frame::decode(&bytes).map(|frame| frame.vlan)
    };
    assert_eq!(vlan("8100e064"), Ok(Vlan::Dot1q(vid(100))));
    assert_eq!(vlan("8100e000"), Ok(Vlan::None));
    assert_eq!(vlan("88a8e000"), Ok(Vlan::None));
    assert_eq!(vlan("88a800c88100e000"), Ok(Vlan::Dot1ad(vid(200), None)));
    assert_eq!(vlan("81000fff"), Err(DecodeError::Invalid { field: "VLAN id", value: 0xfff }));
    assert_eq!(vlan("88a8000081000007"), Err(DecodeError::Invalid { field: "S-VID", value: 0 }));
    assert_eq!(vlan("8100000181000002"), Err(DecodeError::Invalid { field: "EtherType", value: 0x8100 }));
}

#[test]
fn what_only_looks_like_a_neighbour_is_refused() {
    let changed = |hex: &str, at: usize, octet: u8| {
        let mut bytes = octets(hex);
        bytes[at] = octet;
        Frame::decode(&bytes)
    };
    let invalid = |field, value| Err(DecodeError::Invalid { field, value });
    assert_eq!(changed(ADVERTISE, 21, 64), invalid("IPv6 hop limit", 64));
    assert_eq!(changed(ADVERTISE, 85, 0x0c), invalid("ICMPv6 checksum", 1));
    assert_eq!(changed(ADVERTISE, 20, 6), invalid("IPv6 next header", 6));
    assert_eq!(changed(ADVERTISE, 14, 0x45), invalid("IPv6 version", 4));
    assert_eq!(changed(ARP_REPLY, 15, 6), invalid("ARP hardware type", 6));
    assert_eq!(changed(ARP_REPLY, 19, 16), invalid("ARP address lengths", 0x0610));
    for (hex, _) in vectors() {
        let bytes = octets(hex);
        for end in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..end]).is_err());
        }
    }
}

#[test]
fn padding_is_no_part_of_it() {
    for (hex, frame) in vectors() {
        let mut bytes = octets(hex);
        bytes.resize(bytes.len() + 18, 0xee);
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }
}

#[test]
fn claims_are_what_a_neighbour_can_have() {
    let claim = |hex: &str| Frame::decode(&octets(hex)).unwrap().claim();
    let of = |address: IpAddr, mac, replaces| Some(Claim { address, mac, replaces });
    assert_eq!(claim(ARP_REQUEST), of(v4(1).into(), Some(A), true));
    assert_eq!(claim(ARP_REPLY), of(v4(2).into(), Some(B), true));
    assert_eq!(claim(ADVERTISE), of(v6(2).into(), Some(B), true));
    assert_eq!(claim(CONFIRM), of(v6(1).into(), None, false));
    assert_eq!(claim(SOLICIT), None);
    let probe = Frame::request(Vlan::None, A, Ipv4Addr::UNSPECIFIED, v4(2), None);
    assert_eq!(probe.claim(), None);
    for mac in [BROADCAST, ALL_NODES, [0; 6]] {
        assert_eq!(Frame::request(Vlan::None, mac, v4(1), v4(1), None).claim(), None);
    }
}

#[test]
fn an_unspecified_source_tells_no_address() {
    let frame = Frame::solicitation(Vlan::None, A, Ipv6Addr::UNSPECIFIED, v6(2), None);
    assert!(matches!(frame.message, Message::Solicitation(Solicitation { source_mac: None, .. })));
    assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
}

fn any_mac() -> impl Strategy<Value = Mac> {
    any::<Mac>()
}

fn any_vlan() -> impl Strategy<Value = Vlan> {
    let id = || (1_u16..=4094).prop_map(vid);
    prop_oneof![
        Just(Vlan::None),
        id().prop_map(Vlan::Dot1q),
        (id(), proptest::option::of(id())).prop_map(|(s, c)| Vlan::Dot1ad(s, c)),
    ]
}

fn any_arp() -> impl Strategy<Value = Message> {
    let operation = any::<u16>().prop_map(|code| match code % 4 {
        1 => ArpOperation::Request,
        2 => ArpOperation::Reply,
        _ => ArpOperation::Other(code | 4),
    });
    (operation, any_mac(), any::<Ipv4Addr>(), any_mac(), any::<Ipv4Addr>()).prop_map(
        |(operation, sender_mac, sender, target_mac, target)| {
            Message::Arp(Arp { operation, sender_mac, sender, target_mac, target })
        },
    )
}

/// An address that is no group, and not unspecified.
fn any_node() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits & !(0xff << 120) | 0x20 << 120))
}

fn any_nd() -> impl Strategy<Value = Message> {
    let mac = || proptest::option::of(any_mac());
    let solicitation = (any_node(), any::<Ipv6Addr>(), any_node(), mac()).prop_map(
        |(source, destination, target, source_mac)| {
            Message::Solicitation(Solicitation { source, destination, target, source_mac })
        },
    );
    let advertisement = (any_node(), any::<Ipv6Addr>(), any_node(), any::<[bool; 3]>(), mac()).prop_map(
        |(source, destination, target, [router, solicited, overrides], target_mac)| {
            let solicited = solicited && !destination.is_multicast();
            Message::Advertisement(Advertisement {
                source,
                destination,
                target,
                router,
                solicited,
                overrides,
                target_mac,
            })
        },
    );
    prop_oneof![solicitation, advertisement]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        destination in any_mac(), source in any_mac(), vlan in any_vlan(), message in prop_oneof![any_arp(), any_nd()],
    ) {
        let frame = Frame { destination, source, vlan, message };
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn no_octets_break_the_decoder(
        at in 0_usize..100, octet: u8, cut in 0_usize..100, vector in 0_usize..6, noise: Vec<u8>,
    ) {
        let mut bytes = octets(vectors()[vector].0);
        let length = bytes.len();
        bytes[at % length] = octet;
        bytes.truncate(cut);
        let _ = Frame::decode(&bytes);
        let _ = Frame::decode(&noise);
    }
}
