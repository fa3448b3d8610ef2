//! Every LISP datagram of the captures in `tests/data/lisp`: Open Overlay Router's, those of the tcpdump suite, and
//! the golden vectors as frames.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod pcap;

use std::collections::BTreeMap;

use codec::{DecodeError, Reader, Writer};
use lisp::auth::{Algorithm, AuthError, Key, verify};
use lisp::wire::{CONTROL_PORT, DATA_PORT, DataHeader, EidRecord, Message, MessageType};
use zeroize::Zeroizing;

use pcap::{Datagram, datagrams};

/// Name, control messages and data packets, as tshark counts them.
const CAPTURES: [(&str, usize, usize); 12] = [
    ("lisp_eid_register", 2, 0),
    ("lisp_eid_notify", 4, 0),
    ("lisp_ipv6", 2, 0),
    ("vectors", 17, 4),
    ("oor/data", 0, 299),
    ("oor/ecm-map-request", 6, 0),
    ("oor/map-register-notify", 20, 0),
    ("oor/map-reply", 5, 0),
    ("oor/mapping-change-sequence", 16, 0),
    ("oor/peer", 40, 14),
    ("oor/rloc-probe", 12, 0),
    ("oor/smr", 6, 0),
];

fn capture(name: &str) -> Vec<Datagram> {
    let path = format!("{}/../../tests/data/lisp/{name}.pcap", env!("CARGO_MANIFEST_DIR"));
    datagrams(&std::fs::read(path).unwrap())
}

fn of_port(datagrams: &[Datagram], port: u16) -> impl Iterator<Item = &[u8]> {
    let of_port = move |d: &&Datagram| d.source_port == port || d.destination_port == port;
    datagrams.iter().filter(of_port).map(|d| d.payload.as_slice())
}

fn sorted(mut message: Message) -> Message {
    let records: &mut [EidRecord] = match &mut message {
        Message::MapReply(m) => &mut m.records,
        Message::MapRegister(m) => &mut m.records,
        Message::MapNotify(m) | Message::MapNotifyAck(m) => &mut m.records,
        _ => &mut [],
    };
    records.iter_mut().for_each(EidRecord::sort_locators);
    message
}

/// The hand-made peer of `oor/peer` leaves the inner checksum out, which RFC 9301 §5.8 forbids.
fn lacks_inner_checksum(name: &str, error: DecodeError) -> bool {
    name == "oor/peer" && error == DecodeError::Invalid { field: "inner UDP checksum", value: 0 }
}

#[test]
fn every_control_message_decodes_and_means_the_same_when_encoded() {
    let mut refused = 0;
    for (name, expected, _) in CAPTURES {
        let datagrams = capture(name);
        let mut seen = 0;
        for payload in of_port(&datagrams, CONTROL_PORT) {
            seen += 1;
            let message = match Message::decode(payload) {
                Ok(message) => message,
                Err(error) if lacks_inner_checksum(name, error) => {
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{name} #{seen}: {error}: {payload:02x?}"),
            };
            let encoded = message.encode().unwrap();
            assert_eq!(Message::decode(&encoded).unwrap(), sorted(message.clone()), "{name} #{seen}");
            if let Message::Encapsulated(ecm) = message {
                assert!(
                    matches!(Message::decode(&ecm.message), Ok(Message::MapRequest(_))),
                    "{name} #{seen}"
                );
            }
        }
        assert_eq!(seen, expected, "{name}");
    }
    assert_eq!(refused, 4);
}

#[test]
fn every_data_header_decodes_and_means_the_same_when_encoded() {
    for (name, _, expected) in CAPTURES {
        let datagrams = capture(name);
        let mut seen = 0;
        for payload in of_port(&datagrams, DATA_PORT) {
            let mut r = Reader::new(payload);
            let header = DataHeader::read(&mut r).unwrap();
            assert!(matches!(r.rest()[0] >> 4, 4 | 6), "{name} #{seen}: no IP packet inside");
            let mut w = Writer::new();
            header.write(&mut w).unwrap();
            let encoded = w.into_vec();
            assert_eq!(DataHeader::read(&mut Reader::new(&encoded)), Ok(header), "{name} #{seen}");
            // The hand-made peer sends locator-status-bits without the L bit; they are not to be believed.
            assert!(name == "oor/peer" || encoded == payload[..DataHeader::LENGTH], "{name} #{seen}");
            seen += 1;
        }
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn messages_of_open_overlay_router_encode_to_the_same_octets() {
    let mut seen = 0;
    for (name, ..) in CAPTURES.iter().filter(|(name, ..)| name.starts_with("oor/")) {
        for payload in of_port(&capture(name), CONTROL_PORT) {
            match Message::decode(payload) {
                // The inner IP header has its own identification and hop limit.
                Ok(Message::Encapsulated(ecm)) => {
                    let inner = Message::decode(&ecm.message).unwrap();
                    assert_eq!(inner.encode().unwrap(), ecm.message, "{name}");
                }
                Ok(other) => assert_eq!(other.encode().unwrap(), payload, "{name}"),
                Err(error) if lacks_inner_checksum(name, error) => continue,
                Err(error) => panic!("{name}: {error}"),
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 101);
}

/// The keys that the captured routers were configured with; a 16-bit Key ID of 1 reads as key 0 and algorithm 1.
#[test]
fn macs_of_open_overlay_router_verify_with_their_keys_only() {
    let keys = ["keyA", "keyBC", "keyP"].map(|secret| {
        let secret = Zeroizing::new(secret.as_bytes().to_vec());
        (secret.clone(), Key::new(0, Algorithm::HmacSha1, secret).unwrap())
    });
    let mut owners = BTreeMap::new();
    for name in ["oor/map-register-notify", "oor/mapping-change-sequence", "oor/peer"] {
        for payload in of_port(&capture(name), CONTROL_PORT) {
            match verify(payload, keys.iter().map(|(secret, key)| (secret, key))) {
                Ok((secret, _)) => {
                    *owners.entry(String::from_utf8_lossy(secret).into_owned()).or_insert(0) += 1
                }
                Err(AuthError::MessageType(
                    MessageType::MapRequest | MessageType::MapReply | MessageType::Encapsulated,
                )) => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
    assert_eq!(owners.values().sum::<i32>(), 32, "{owners:?}");
}
