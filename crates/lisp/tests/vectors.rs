//! The golden vectors of `tests/data/lisp/vectors.json` in both directions.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use codec::{IpPrefix, Reader, Writer};
use lisp::wire::{
    Action, Address, Authentication, DataHeader, EidPrefix, EidRecord, EncapsulatedControlMessage,
    InstanceId, LocatorRecord, LowField, MapNotify, MapRegister, MapReply, MapRequest, Message, SiteId,
    XtrId, XtrIdentity,
};

fn vectors() -> BTreeMap<String, Vec<u8>> {
    let text = include_str!("../../../tests/data/lisp/vectors.json");
    let hex: BTreeMap<String, String> = serde_json::from_str(text).unwrap();
    hex.into_iter().map(|(name, hex)| (name, unhex(&hex))).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn ip(text: &str) -> Address {
    Address::Ip(text.parse().unwrap())
}

fn eid(instance_id: u32, prefix: &str) -> EidPrefix {
    EidPrefix { instance_id: InstanceId(instance_id), prefix: prefix.parse().unwrap() }
}

fn locator(rloc: &str, weight: u8) -> LocatorRecord {
    LocatorRecord::new(ip(rloc), 1, weight)
}

/// 10.1.0.0/24 over two locators, as most vectors have it.
fn record(authoritative: bool) -> EidRecord {
    EidRecord {
        ttl: 1440,
        action: Action::NoAction,
        authoritative,
        map_version: 0,
        eid: eid(0, "10.1.0.0/24"),
        locators: vec![locator("192.0.2.1", 70), locator("198.51.100.1", 30)],
    }
}

fn identity() -> XtrIdentity {
    XtrIdentity {
        xtr_id: XtrId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        site_id: SiteId(0x0102_0304_0506_0708),
    }
}

fn request(nonce: u64, source_eid: Address, itr_rloc: &str, asked: EidPrefix) -> MapRequest {
    MapRequest { source_eid, ..MapRequest::new(nonce, vec![ip(itr_rloc)], asked) }
}

fn plain_request() -> MapRequest {
    request(0x1122_3344_5566_7788, ip("10.9.0.5"), "203.0.113.9", eid(0, "10.1.0.7/32"))
}

fn authentication(bytes: &[u8], algorithm_id: u8, length: usize) -> Authentication {
    Authentication { key_id: 1, algorithm_id, data: bytes[16..16 + length].to_vec() }
}

fn register(bytes: &[u8], algorithm_id: u8, length: usize) -> MapRegister {
    MapRegister {
        proxy_reply: true,
        security_capable: false,
        eid_notify: false,
        use_ttl_for_timeout: false,
        merge: false,
        want_map_notify: true,
        nonce: 5,
        authentication: authentication(bytes, algorithm_id, length),
        records: vec![record(true)],
        xtr: None,
    }
}

fn notify(bytes: &[u8]) -> MapNotify {
    MapNotify {
        nonce: 5,
        authentication: authentication(bytes, 3, 32),
        records: vec![record(false)],
        trailer: Vec::new(),
    }
}

fn probe_reply() -> MapReply {
    let mut answer = record(true);
    answer.locators[0].local = true;
    answer.locators[0].probed = true;
    MapReply {
        probe: true,
        echo_nonce: false,
        security: None,
        nonce: 0x1122_3344_5566_7789,
        records: vec![answer],
    }
}

fn negative_reply() -> MapReply {
    let record = EidRecord {
        ttl: 15,
        action: Action::NativelyForward,
        authoritative: false,
        map_version: 0,
        eid: eid(0, "10.2.0.0/16"),
        locators: Vec::new(),
    };
    MapReply {
        probe: false,
        echo_nonce: false,
        security: None,
        nonce: 0x1122_3344_5566_7788,
        records: vec![record],
    }
}

fn smr_invoked() -> MapRequest {
    let source =
        Address::InstanceId { instance_id: InstanceId(7), mask_len: 0, address: Box::new(ip("10.9.0.5")) };
    let mut message = request(0x1122_3344_5566_778b, source, "203.0.113.9", eid(7, "10.1.0.0/24"));
    message.smr_invoked = true;
    message.itr_rlocs.push(ip("2001:db8::9"));
    message
}

fn subscribe() -> MapRequest {
    let mut message = request(0x1000, Address::NoAddress, "203.0.113.9", eid(0, "10.1.0.0/24"));
    message.records[0].subscribe = true;
    message.xtr = Some(identity());
    message
}

/// What a vector means, from the inputs it was generated from.
fn meaning(name: &str, bytes: &[u8]) -> Message {
    match name {
        "map_request" => Message::MapRequest(plain_request()),
        "map_request_rloc_probe" => Message::MapRequest(MapRequest {
            probe: true,
            ..request(0x1122_3344_5566_7789, Address::NoAddress, "203.0.113.9", eid(0, "10.1.0.0/24"))
        }),
        "map_request_smr" => Message::MapRequest(MapRequest {
            smr: true,
            no_map_reply: true,
            ..request(0x1122_3344_5566_778a, ip("10.1.0.0"), "192.0.2.1", eid(0, "10.9.0.0/24"))
        }),
        "map_request_smr_invoked_iid" => Message::MapRequest(smr_invoked()),
        "map_request_subscribe" => Message::MapRequest(subscribe()),
        "map_reply" => Message::MapReply(MapReply {
            probe: false,
            echo_nonce: false,
            security: None,
            nonce: 0x1122_3344_5566_7788,
            records: vec![record(true)],
        }),
        "map_reply_probe" => Message::MapReply(probe_reply()),
        "map_reply_negative" => Message::MapReply(negative_reply()),
        "map_register_alg1_20" => Message::MapRegister(register(bytes, 1, 20)),
        "map_register_alg2_32" => Message::MapRegister(register(bytes, 2, 32)),
        "map_register_alg2_16" => Message::MapRegister(register(bytes, 2, 16)),
        "map_register_alg3_32" => Message::MapRegister(register(bytes, 3, 32)),
        "map_register_alg3_16" => Message::MapRegister(register(bytes, 3, 16)),
        "map_register_alg2_32_xtrid_whole" => {
            Message::MapRegister(MapRegister { nonce: 6, xtr: Some(identity()), ..register(bytes, 2, 32) })
        }
        "map_notify_alg3_32" => Message::MapNotify(notify(bytes)),
        "map_notify_ack_alg3_32" => Message::MapNotifyAck(notify(bytes)),
        "ecm_map_request" => Message::Encapsulated(EncapsulatedControlMessage {
            security: false,
            ddt: false,
            inner_source: "10.9.0.5:61000".parse().unwrap(),
            inner_destination: "10.1.0.7:4342".parse().unwrap(),
            message: Message::MapRequest(plain_request()).encode().unwrap(),
        }),
        other => panic!("vector {other} has no expected meaning here"),
    }
}

#[test]
fn control_vectors_decode_to_their_meaning_and_encode_to_their_octets() {
    let mut seen = 0;
    for (name, bytes) in vectors() {
        if name.starts_with("data_") || name.ends_with("#key") {
            continue;
        }
        let expected = meaning(&name, &bytes);
        assert_eq!(Message::decode(&bytes).unwrap(), expected, "decoding {name}");
        assert_eq!(expected.encode().unwrap(), bytes, "encoding {name}");
        seen += 1;
    }
    assert_eq!(seen, 17);
}

#[test]
fn data_vectors_decode_to_their_meaning_and_encode_to_their_octets() {
    let vectors = vectors();
    let headers = [
        ("data_v4_plain", DataHeader::default()),
        ("data_v4_iid7", DataHeader { instance_id: Some(InstanceId(7)), ..DataHeader::default() }),
        (
            "data_v4_nonce_echo_lsb",
            DataHeader {
                low_field: LowField::Nonce { nonce: 0x00ab_cdef, echo: true },
                instance_id: None,
                locator_status: Some(3),
            },
        ),
        (
            "data_v4_mapver",
            DataHeader {
                low_field: LowField::MapVersion { source: 69, destination: 70 },
                instance_id: Some(InstanceId(7)),
                locator_status: None,
            },
        ),
    ];
    assert_eq!(vectors.keys().filter(|name| name.starts_with("data_")).count(), headers.len());
    for (name, expected) in headers {
        let bytes = &vectors[name];
        let mut r = Reader::new(bytes);
        assert_eq!(DataHeader::read(&mut r).unwrap(), expected, "decoding {name}");
        assert_eq!(r.rest()[0], 0x45, "the inner packet of {name} comes next");
        let mut w = Writer::new();
        expected.write(&mut w).unwrap();
        assert_eq!(w.into_vec(), bytes[..DataHeader::LENGTH], "encoding {name}");
    }
}

#[test]
fn host_bits_of_an_eid_do_not_make_another_prefix() {
    let asked: IpAddr = "10.1.0.7".parse().unwrap();
    assert_eq!(eid(0, "10.1.0.7/24").prefix, IpPrefix::new(asked, 24).unwrap());
}
