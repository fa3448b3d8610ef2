//! Properties of the wire formats: encoding loses nothing, and no octets make a decoder panic.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod values;

use codec::{Reader, Writer};
use lisp::auth::{Algorithm, Key, MacLength, VerifiedMessage, sign, verify};
use lisp::wire::{Address, DataHeader, EidRecord, Message};
use proptest::prelude::*;
use zeroize::Zeroizing;

/// What decodes has an encoding, and that decodes to the same except for the order of locators.
fn check_decoder(bytes: &[u8]) {
    match Message::decode(bytes) {
        Ok(Message::Unknown(_)) | Err(_) => {}
        Ok(message) => {
            let encoded = message.encode().unwrap();
            assert_eq!(Message::decode(&encoded), Ok(values::sorted(message)));
        }
    }
}

fn check_parts(bytes: &[u8]) {
    let mut w = Writer::new();
    if let Ok(header) = DataHeader::read(&mut Reader::new(bytes)) {
        header.write(&mut w).unwrap();
        assert_eq!(DataHeader::read(&mut Reader::new(&w.into_vec())), Ok(header));
    }
    let mut w = Writer::new();
    if let Ok(address) = Address::read(&mut Reader::new(bytes), "address") {
        address.write(&mut w).unwrap();
        assert_eq!(Address::read(&mut Reader::new(&w.into_vec()), "address"), Ok(address));
    }
    let mut w = Writer::new();
    if let Ok(mut record) = EidRecord::read(&mut Reader::new(bytes)) {
        record.write(&mut w).unwrap();
        record.sort_locators();
        assert_eq!(EidRecord::read(&mut Reader::new(&w.into_vec())), Ok(record));
    }
}

/// One thing that happens to octets under way.
#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Append(Vec<u8>),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Append(more) => bytes.extend_from_slice(more),
            _ if bytes.is_empty() => {}
            Self::Set(at, value) => *at.get_mut(bytes) = *value,
            Self::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << (bit % 8),
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        any::<prop::sample::Index>().prop_map(Mutation::Cut),
        prop::collection::vec(any::<u8>(), 1..40).prop_map(Mutation::Append),
    ]
}

fn key(algorithm: Algorithm, mac_length: MacLength) -> Key {
    Key::new(7, algorithm, Zeroizing::new(b"secret".to_vec())).unwrap().with_mac_length(mac_length)
}

proptest! {
    #[test]
    fn messages_decode_to_what_was_encoded(message in values::message()) {
        prop_assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
    }

    #[test]
    fn data_headers_decode_to_what_was_encoded(header in values::data_header()) {
        let mut w = Writer::new();
        header.write(&mut w).unwrap();
        prop_assert_eq!(DataHeader::read(&mut Reader::new(&w.into_vec())), Ok(header));
    }

    #[test]
    fn damaged_messages_decode_consistently_or_not_at_all(
        message in values::message(),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let mut bytes = message.encode().unwrap();
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        check_decoder(&bytes);
    }

    #[test]
    fn random_octets_decode_consistently_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_decoder(&bytes);
        check_parts(&bytes);
    }

    #[test]
    fn no_prefix_of_a_message_is_a_panic(message in values::message()) {
        let bytes = message.encode().unwrap();
        (0..bytes.len()).for_each(|length| check_decoder(&bytes[..length]));
    }

    #[test]
    fn signed_messages_verify_until_a_bit_changes(
        message in values::authenticated_message(),
        algorithm in prop_oneof![Just(Algorithm::HmacSha256), Just(Algorithm::HmacSha256Hkdf)],
        mac_length in prop_oneof![Just(MacLength::Full), Just(MacLength::Truncated)],
        position in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let key = key(algorithm, mac_length);
        let mut bytes = sign(message.clone(), &key).unwrap();
        let ((), verified) = verify(&bytes, [((), &key)]).unwrap();
        let again = match verified {
            VerifiedMessage::MapRegister(m) => Message::MapRegister(m.into_inner()),
            VerifiedMessage::MapNotify(m) => Message::MapNotify(m.into_inner()),
            VerifiedMessage::MapNotifyAck(m) => Message::MapNotifyAck(m.into_inner()),
        };
        prop_assert_eq!(sign(again, &key).unwrap(), bytes.clone());
        *position.get_mut(&mut bytes) ^= 1 << bit;
        prop_assert!(verify(&bytes, [((), &key)]).is_err());
    }
}
