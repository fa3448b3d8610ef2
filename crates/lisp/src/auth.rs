//! Message authentication of Map-Register, Map-Notify and Map-Notify-Ack (RFC 9301 §5.6, §5.7).
//!
//! [`verify`] works on the octets as received and is the only way to a [`Verified`] message; machines that change
//! state take nothing else, so an unauthenticated message cannot reach them.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use codec::{DecodeError, EncodeError, Reader};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::wire::{Authentication, MapNotify, MapRegister, Message, MessageType};

/// Octets before the MAC: header, nonce, key ID, algorithm ID and length.
const DATA_OFFSET: usize = 16;

/// How the MAC and its key are made
/// (<https://www.iana.org/assignments/lisp-parameters>, "LISP Algorithm ID Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// 1, HMAC-SHA-1-96: for peers that know nothing else. Verified when a key is given for it, never used to sign;
    /// RFC 9301 §1.1 forbids it on the public Internet.
    HmacSha1,
    /// 2, HMAC-SHA-256-128 with the shared secret as the key.
    HmacSha256,
    /// 3, HMAC-SHA-256-128 with a key derived for every message by HKDF-SHA-256.
    HmacSha256Hkdf,
}

impl Algorithm {
    /// The IANA number. 0 means no authentication and is not one of ours.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::HmacSha1),
            2 => Some(Self::HmacSha256),
            3 => Some(Self::HmacSha256Hkdf),
            _ => None,
        }
    }

    /// The IANA number.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::HmacSha1 => 1,
            Self::HmacSha256 => 2,
            Self::HmacSha256Hkdf => 3,
        }
    }

    /// RFC 9301 names the truncated MACs of RFC 2404 and RFC 4868; deployed peers send all octets. Both are taken.
    const fn accepts(self, length: usize) -> bool {
        match self {
            Self::HmacSha1 => matches!(length, 12 | 20),
            Self::HmacSha256 | Self::HmacSha256Hkdf => matches!(length, 16 | 32),
        }
    }
}

/// How many octets of the SHA-256 MAC are sent; both are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MacLength {
    /// 32, what deployed peers send and expect.
    #[default]
    Full,
    /// 16, what the name HMAC-SHA-256-128 says.
    Truncated,
}

impl MacLength {
    const fn octets(self) -> usize {
        match self {
            Self::Full => 32,
            Self::Truncated => 16,
        }
    }
}

/// A shared secret and what it may be used for. Erased on drop and never printed.
#[derive(Clone)]
pub struct Key {
    id: u8,
    algorithm: Algorithm,
    mac_length: MacLength,
    secret: Zeroizing<Vec<u8>>,
}

/// Why a secret cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Everybody knows the empty secret.
    #[error("the secret is empty")]
    Empty,
}

impl Key {
    /// The key `id` that is used with `algorithm` only, so that a peer cannot choose a weaker one.
    ///
    /// # Errors
    /// [`KeyError::Empty`] for a secret without octets.
    pub fn new(id: u8, algorithm: Algorithm, secret: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self { id, algorithm, mac_length: MacLength::Full, secret })
    }

    /// The same key with another length of what [`sign`] writes.
    #[must_use]
    pub fn with_mac_length(self, mac_length: MacLength) -> Self {
        Self { mac_length, ..self }
    }

    /// Key ID in messages.
    #[must_use]
    pub const fn id(&self) -> u8 {
        self.id
    }

    /// The only algorithm that the key is used with.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A message whose MAC was right. Only [`verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<M> {
    message: M,
}

impl<M> Verified<M> {
    /// The message.
    #[must_use]
    pub fn into_inner(self) -> M {
        self.message
    }
}

impl<M> Deref for Verified<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

/// The messages that carry a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifiedMessage {
    /// Type 3.
    MapRegister(Verified<MapRegister>),
    /// Type 4.
    MapNotify(Verified<MapNotify>),
    /// Type 5.
    MapNotifyAck(Verified<MapNotify>),
}

/// Why a message is not authentic. All of it is the peer's doing, or a key that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The type has no authentication field.
    #[error("{0:?} carries no authentication")]
    MessageType(MessageType),
    /// No authentication (0) or an algorithm that is not known.
    #[error("algorithm ID {algorithm_id} is not accepted")]
    Algorithm {
        /// What the message says.
        algorithm_id: u8,
    },
    /// Not a length that the algorithm has.
    #[error("{length} octets of authentication data do not fit algorithm ID {algorithm_id}")]
    Length {
        /// What the message says.
        algorithm_id: u8,
        /// Octets in the message.
        length: usize,
    },
    /// None of the keys has this ID and algorithm.
    #[error("no key {key_id} for algorithm ID {algorithm_id}")]
    UnknownKey {
        /// What the message says.
        key_id: u8,
        /// What the message says.
        algorithm_id: u8,
    },
    /// The MAC is that of another message or another key.
    #[error("wrong MAC for key {key_id}")]
    Mac {
        /// What the message says.
        key_id: u8,
    },
    /// Cut short before the MAC, or authentic and yet malformed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Why a message cannot be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignError {
    /// The message has no authentication field.
    #[error("the message carries no authentication")]
    MessageType,
    /// HMAC-SHA-1 is only verified.
    #[error("algorithm ID {0} is not used to sign")]
    Algorithm(u8),
    /// The message has no encoding.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Checks the MAC of `bytes` against those `keys` that have its key ID and algorithm, and only then decodes.
///
/// What stands beside the key that fits (a site, a subscriber) comes back with the message.
///
/// # Errors
/// Why the message must be dropped without a further look.
pub fn verify<'k, T>(
    bytes: &[u8],
    keys: impl IntoIterator<Item = (T, &'k Key)>,
) -> Result<(T, VerifiedMessage), AuthError> {
    let claim = Claim::read(bytes)?;
    let mut known = false;
    for (owner, key) in keys {
        if key.id != claim.key_id || key.algorithm != claim.algorithm {
            continue;
        }
        known = true;
        if claim.is_made_with(key) {
            return Ok((owner, verified(Message::decode(bytes)?)?));
        }
    }
    let (key_id, algorithm_id) = (claim.key_id, claim.algorithm.id());
    Err(if known { AuthError::Mac { key_id } } else { AuthError::UnknownKey { key_id, algorithm_id } })
}

/// Encodes `message` and authenticates it with `key`; what its authentication field held is replaced.
///
/// # Errors
/// When the message has no such field, the key is for HMAC-SHA-1, or a value does not fit the message.
pub fn sign(mut message: Message, key: &Key) -> Result<Vec<u8>, SignError> {
    let (salt, authentication) = match &mut message {
        Message::MapRegister(m) => (REGISTER_SALT, &mut m.authentication),
        Message::MapNotify(m) => (NOTIFY_SALT, &mut m.authentication),
        Message::MapNotifyAck(m) => (NOTIFY_ACK_SALT, &mut m.authentication),
        _ => return Err(SignError::MessageType),
    };
    if key.algorithm == Algorithm::HmacSha1 {
        return Err(SignError::Algorithm(key.algorithm.id()));
    }
    let length = key.mac_length.octets();
    *authentication =
        Authentication { key_id: key.id, algorithm_id: key.algorithm.id(), data: vec![0; length] };
    let mut bytes = message.encode()?;
    let nonce = nonce(&message);
    let mac = match key.algorithm {
        Algorithm::HmacSha256Hkdf => {
            mac::<Hmac<Sha256>>(derive_key(&key.secret, nonce, salt).as_ref(), [&bytes])
        }
        Algorithm::HmacSha256 | Algorithm::HmacSha1 => mac::<Hmac<Sha256>>(&key.secret, [&bytes]),
    };
    let mac = mac.finalize().into_bytes();
    bytes.splice(DATA_OFFSET..DATA_OFFSET + length, mac.iter().take(length).copied());
    Ok(bytes)
}

const REGISTER_SALT: &[u8] = b"Map-Register Authentication";
const NOTIFY_SALT: &[u8] = b"Map-Notify Authentication";
const NOTIFY_ACK_SALT: &[u8] = b"Map-Notify-Ack Authentication";

fn nonce(message: &Message) -> u64 {
    match message {
        Message::MapRegister(m) => m.nonce,
        Message::MapNotify(m) | Message::MapNotifyAck(m) => m.nonce,
        _ => 0,
    }
}

/// What a message says about its authentication, before any of it is believed.
struct Claim<'a> {
    salt: &'static [u8],
    nonce: u64,
    key_id: u8,
    algorithm: Algorithm,
    before: &'a [u8],
    data: &'a [u8],
    after: &'a [u8],
}

impl<'a> Claim<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, AuthError> {
        let mut r = Reader::new(bytes);
        let [first, ..] = r.array::<4>("message header")?;
        let salt = match MessageType::of(first) {
            MessageType::MapRegister => REGISTER_SALT,
            MessageType::MapNotify => NOTIFY_SALT,
            MessageType::MapNotifyAck => NOTIFY_ACK_SALT,
            other => return Err(AuthError::MessageType(other)),
        };
        let nonce = r.u64("nonce")?;
        let key_id = r.u8("key ID")?;
        let algorithm_id = r.u8("algorithm ID")?;
        let length = usize::from(r.u16("authentication data length")?);
        let algorithm = Algorithm::from_id(algorithm_id).ok_or(AuthError::Algorithm { algorithm_id })?;
        if !algorithm.accepts(length) {
            return Err(AuthError::Length { algorithm_id, length });
        }
        let data = r.bytes(length, "authentication data")?;
        let before = Reader::new(bytes).bytes(DATA_OFFSET, "message header")?;
        Ok(Self { salt, nonce, key_id, algorithm, before, data, after: r.rest() })
    }

    /// The MAC is over the whole message with zeros in the place of the MAC; compared in constant time.
    fn is_made_with(&self, key: &Key) -> bool {
        let zeros = vec![0; self.data.len()];
        let parts = [self.before, &zeros, self.after];
        let comparison = match key.algorithm {
            Algorithm::HmacSha1 => mac::<Hmac<Sha1>>(&key.secret, parts).verify_truncated_left(self.data),
            Algorithm::HmacSha256 => mac::<Hmac<Sha256>>(&key.secret, parts).verify_truncated_left(self.data),
            Algorithm::HmacSha256Hkdf => {
                let derived = derive_key(&key.secret, self.nonce, self.salt);
                mac::<Hmac<Sha256>>(derived.as_ref(), parts).verify_truncated_left(self.data)
            }
        };
        comparison.is_ok()
    }
}

fn verified(message: Message) -> Result<VerifiedMessage, AuthError> {
    match message {
        Message::MapRegister(message) => Ok(VerifiedMessage::MapRegister(Verified { message })),
        Message::MapNotify(message) => Ok(VerifiedMessage::MapNotify(Verified { message })),
        Message::MapNotifyAck(message) => Ok(VerifiedMessage::MapNotifyAck(Verified { message })),
        Message::MapRequest(_) => Err(AuthError::MessageType(MessageType::MapRequest)),
        Message::MapReply(_) => Err(AuthError::MessageType(MessageType::MapReply)),
        Message::Encapsulated(_) => Err(AuthError::MessageType(MessageType::Encapsulated)),
        Message::Unknown(other) => Err(AuthError::MessageType(MessageType::Unknown(other))),
    }
}

fn mac<'a, M: Mac + KeyInit>(
    key: &[u8],
    parts: impl IntoIterator<Item = &'a (impl AsRef<[u8]> + ?Sized + 'a)>,
) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part.as_ref());
    }
    mac
}

/// HKDF-SHA-256 (RFC 5869) with the nonce in wire order before the secret as input, the salt by message type, and an
/// empty info: RFC 9301 §5.6 names only KDF, nonce, secret and salt.
fn derive_key(secret: &[u8], nonce: u64, salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut input = Zeroizing::new(Vec::with_capacity(8 + secret.len()));
    input.extend_from_slice(&nonce.to_be_bytes());
    input.extend_from_slice(secret);
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(salt), &input)
        .expand(&[], key.as_mut())
        .expect("32 octets are one block of SHA-256");
    key
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::collections::BTreeMap;
    use alloc::format;
    use alloc::string::String;

    use super::*;
    use crate::wire::octets;

    fn vectors() -> BTreeMap<String, Vec<u8>> {
        let text = include_str!("../../../tests/data/lisp/vectors.json");
        let hex: BTreeMap<String, String> = serde_json::from_str(text).unwrap();
        hex.into_iter().map(|(name, hex)| (name, octets(&hex))).collect()
    }

    fn key(id: u8, algorithm: Algorithm, secret: &[u8]) -> Key {
        Key::new(id, algorithm, Zeroizing::new(secret.to_vec())).unwrap()
    }

    fn edge_key(algorithm: Algorithm) -> Key {
        key(1, algorithm, b"edge-secret-1")
    }

    fn check(bytes: &[u8], key: &Key) -> Result<VerifiedMessage, AuthError> {
        verify(bytes, [((), key)]).map(|((), message)| message)
    }

    fn register(nonce: u64) -> Message {
        Message::MapRegister(MapRegister {
            proxy_reply: true,
            security_capable: false,
            eid_notify: false,
            use_ttl_for_timeout: false,
            merge: true,
            want_map_notify: true,
            nonce,
            authentication: Authentication::default(),
            records: Vec::new(),
            xtr: None,
        })
    }

    #[test]
    fn golden_vectors_verify_and_signing_makes_the_same_octets() {
        let mut seen = 0;
        for (name, bytes) in vectors() {
            let algorithm = match &name {
                n if n.ends_with("#key") => continue,
                n if n.contains("_alg1_") => Algorithm::HmacSha1,
                n if n.contains("_alg2_") => Algorithm::HmacSha256,
                n if n.contains("_alg3_") => Algorithm::HmacSha256Hkdf,
                _ => continue,
            };
            let length = if name.ends_with("_16") { MacLength::Truncated } else { MacLength::Full };
            let key = edge_key(algorithm).with_mac_length(length);
            check(&bytes, &key).unwrap_or_else(|error| panic!("{name}: {error}"));
            let signed = sign(Message::decode(&bytes).unwrap(), &key);
            match algorithm {
                Algorithm::HmacSha1 => assert_eq!(signed, Err(SignError::Algorithm(1)), "{name}"),
                _ => assert_eq!(signed.unwrap(), bytes, "{name}"),
            }
            seen += 1;
        }
        assert_eq!(seen, 8);
    }

    #[test]
    fn keys_are_derived_as_in_the_golden_vectors() {
        let vectors = vectors();
        for (name, salt) in [
            ("map_register_alg3_32#key", REGISTER_SALT),
            ("map_register_alg3_16#key", REGISTER_SALT),
            ("map_notify_alg3_32#key", NOTIFY_SALT),
            ("map_notify_ack_alg3_32#key", NOTIFY_ACK_SALT),
        ] {
            assert_eq!(derive_key(b"edge-secret-1", 5, salt).as_slice(), vectors[name], "{name}");
        }
    }

    /// The Map-Registers of OpenDaylight's `LispAuthenticationTest`, with the 16-bit Key ID of older peers, which
    /// reads as key 0 and the algorithm.
    #[test]
    fn third_party_registers_verify() {
        let sha1 = "38000101 ffbb000000000000 0001 0014 2c61b9c99a20bad8f540d3556f5f6e5ab20abfb5
            0000000a0120100000000001 9910fe01 0164ff0000050001c0a8880a";
        let sha256 = "38000101 ffbb000000000000 0002 0020
            7030d4c610440d83be4dbffda98c576d68a5bf3211c97b58c4b99f061123b938
            0000000a0120100000000001 9910fe01 0164ff0000050001c0a8880a";
        for (hex, algorithm) in [(sha1, Algorithm::HmacSha1), (sha256, Algorithm::HmacSha256)] {
            let bytes = octets(hex);
            let verified = check(&bytes, &key(0, algorithm, b"password")).unwrap();
            let VerifiedMessage::MapRegister(register) = verified else { panic!("a Map-Register") };
            assert_eq!(Message::MapRegister(register.into_inner()).encode().unwrap(), bytes);
            assert_eq!(check(&bytes, &key(0, algorithm, b"passwore")), Err(AuthError::Mac { key_id: 0 }));
        }
    }

    #[test]
    fn every_octet_of_a_message_is_covered() {
        let key = edge_key(Algorithm::HmacSha256Hkdf);
        let bytes = &vectors()["map_register_alg3_32"];
        for position in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[position] ^= 0x01;
            assert!(check(&forged, &key).is_err(), "octet {position}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(check(&longer, &key), Err(AuthError::Mac { key_id: 1 }));
        assert_eq!(check(&bytes[..bytes.len() - 1], &key), Err(AuthError::Mac { key_id: 1 }));
    }

    #[test]
    fn a_mac_that_begins_with_zero_is_compared_to_its_end() {
        for algorithm in [Algorithm::HmacSha256, Algorithm::HmacSha256Hkdf] {
            let key = edge_key(algorithm);
            let signed = (0..)
                .map(|nonce| sign(register(nonce), &key).unwrap())
                .find(|bytes| bytes[DATA_OFFSET] == 0)
                .unwrap();
            check(&signed, &key).unwrap();
            let mut forged = signed;
            forged[DATA_OFFSET + 1..DATA_OFFSET + 32].fill(0);
            assert_eq!(check(&forged, &key), Err(AuthError::Mac { key_id: 1 }));
        }
    }

    #[test]
    fn no_authentication_and_odd_lengths_are_refused() {
        let key = edge_key(Algorithm::HmacSha256);
        for (algorithm_id, length) in
            [(2_u8, 0_usize), (2, 12), (2, 17), (2, 20), (2, 31), (2, 33), (3, 1), (1, 16)]
        {
            let Message::MapRegister(mut message) = register(1) else { panic!("a Map-Register") };
            message.authentication = Authentication { key_id: 1, algorithm_id, data: vec![0; length] };
            let bytes = Message::MapRegister(message).encode().unwrap();
            assert_eq!(check(&bytes, &key), Err(AuthError::Length { algorithm_id, length }));
        }
        for algorithm_id in [0, 4, 255] {
            let Message::MapRegister(mut message) = register(1) else { panic!("a Map-Register") };
            message.authentication = Authentication { key_id: 1, algorithm_id, data: Vec::new() };
            let bytes = Message::MapRegister(message).encode().unwrap();
            assert_eq!(check(&bytes, &key), Err(AuthError::Algorithm { algorithm_id }));
        }
    }

    #[test]
    fn a_peer_cannot_choose_another_algorithm_than_the_key_has() {
        let bytes = &vectors()["map_register_alg1_20"];
        let unknown = AuthError::UnknownKey { key_id: 1, algorithm_id: 1 };
        assert_eq!(check(bytes, &edge_key(Algorithm::HmacSha256)), Err(unknown));
        assert_eq!(check(bytes, &edge_key(Algorithm::HmacSha256Hkdf)), Err(unknown));
    }

    #[test]
    fn a_mac_for_one_message_type_does_not_fit_another() {
        let key = edge_key(Algorithm::HmacSha256Hkdf);
        let mut bytes = vectors()["map_notify_alg3_32"].clone();
        bytes[0] = 0x50;
        assert_eq!(check(&bytes, &key), Err(AuthError::Mac { key_id: 1 }));
    }

    #[test]
    fn the_owner_of_the_key_that_fits_comes_back() {
        let secrets: [&[u8]; 3] = [b"other", b"edge-secret-1", b"third"];
        let keys = secrets.map(|secret| key(1, Algorithm::HmacSha256, secret));
        let bytes = &vectors()["map_register_alg2_16"];
        let (owner, _) = verify(bytes, keys.iter().enumerate()).unwrap();
        assert_eq!(owner, 1);
    }

    #[test]
    fn messages_without_authentication_are_refused() {
        let key = edge_key(Algorithm::HmacSha256);
        let unsigned = AuthError::MessageType(MessageType::MapRequest);
        assert_eq!(check(&vectors()["map_request"], &key), Err(unsigned));
        let request = Message::decode(&vectors()["map_request"]).unwrap();
        assert_eq!(sign(request, &key), Err(SignError::MessageType));
        assert!(matches!(check(&[0x30, 0, 0], &key), Err(AuthError::Decode(_))));
    }

    #[test]
    fn what_holds_key_material_is_erased_on_drop() {
        fn erased<T: zeroize::ZeroizeOnDrop>() {}
        erased::<Zeroizing<Vec<u8>>>();
        // The states that HMAC and HKDF keep; a feature of these crates, easily lost.
        erased::<Sha1>();
        erased::<Sha256>();
    }

    #[test]
    fn a_key_does_not_print_its_secret() {
        let text = format!("{:?}", edge_key(Algorithm::HmacSha256));
        assert_eq!(text, "Key { id: 1, algorithm: HmacSha256, .. }");
        assert_eq!(Key::new(1, Algorithm::HmacSha256, Zeroizing::default()).err(), Some(KeyError::Empty));
    }
}
