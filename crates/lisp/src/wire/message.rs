//! Which message it is: the first four bits (RFC 9301 §5.1).

use alloc::vec::Vec;

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::{EncapsulatedControlMessage, MapNotify, MapRegister, MapReply, MapRequest, Message};

/// The 4-bit type that every control message starts with
/// (<https://www.iana.org/assignments/lisp-parameters>, "LISP Packet Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MessageType {
    /// 1
    MapRequest,
    /// 2
    MapReply,
    /// 3
    MapRegister,
    /// 4
    MapNotify,
    /// 5
    MapNotifyAck,
    /// 8
    Encapsulated,
    /// Any other.
    Unknown(u8),
}

impl MessageType {
    /// The type in the upper half of a message's first octet.
    #[must_use]
    pub const fn of(first_octet: u8) -> Self {
        match first_octet >> 4 {
            1 => Self::MapRequest,
            2 => Self::MapReply,
            3 => Self::MapRegister,
            4 => Self::MapNotify,
            5 => Self::MapNotifyAck,
            8 => Self::Encapsulated,
            other => Self::Unknown(other),
        }
    }

    /// The type in the place it has in the first 32 bits.
    pub(super) const fn word(self) -> u32 {
        let number = match self {
            Self::MapRequest => 1,
            Self::MapReply => 2,
            Self::MapRegister => 3,
            Self::MapNotify => 4,
            Self::MapNotifyAck => 5,
            Self::Encapsulated => 8,
            Self::Unknown(other) => other as u32,
        };
        number << 28
    }
}

impl Message {
    /// Reads the payload of a UDP datagram of the control port.
    ///
    /// # Errors
    /// What is wrong and in which field; nothing of such a message may be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let word = r.u32("message header")?;
        let [first, ..] = word.to_be_bytes();
        match MessageType::of(first) {
            MessageType::MapRequest => MapRequest::read(word, &mut r).map(Self::MapRequest),
            MessageType::MapReply => MapReply::read(word, &mut r).map(Self::MapReply),
            MessageType::MapRegister => MapRegister::read(word, &mut r).map(Self::MapRegister),
            MessageType::MapNotify => MapNotify::read(word, &mut r).map(Self::MapNotify),
            MessageType::MapNotifyAck => MapNotify::read(word, &mut r).map(Self::MapNotifyAck),
            MessageType::Encapsulated => {
                EncapsulatedControlMessage::read(word, &mut r).map(Self::Encapsulated)
            }
            MessageType::Unknown(other) => Ok(Self::Unknown(other)),
        }
    }

    /// The payload of the UDP datagram.
    ///
    /// # Errors
    /// When a field cannot hold its value; [`Message::Unknown`] has no encoding.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut w = Writer::new();
        match self {
            Self::MapRequest(m) => m.write(&mut w)?,
            Self::MapReply(m) => m.write(&mut w)?,
            Self::MapRegister(m) => m.write(&mut w)?,
            Self::MapNotify(m) => m.write(MessageType::MapNotify, &mut w)?,
            Self::MapNotifyAck(m) => m.write(MessageType::MapNotifyAck, &mut w)?,
            Self::Encapsulated(m) => m.write(&mut w)?,
            Self::Unknown(other) => {
                return Err(EncodeError::Invalid { field: "message type", value: u64::from(*other) });
            }
        }
        Ok(w.into_vec())
    }
}

/// `mask` if `set`, for putting header words together.
pub(super) const fn bit(set: bool, mask: u32) -> u32 {
    if set { mask } else { 0 }
}

/// The low octet of a header word, where messages have their record count.
pub(super) const fn low_octet(word: u32) -> u8 {
    word.to_be_bytes()[3]
}

/// A count in 8 bits of a header word.
pub(super) fn count_word(count: usize, field: &'static str) -> Result<u32, EncodeError> {
    u8::try_from(count).map(u32::from).map_err(|_| EncodeError::TooLarge { field, value: count, limit: 255 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::octets;

    const REPLY: &str = "20000001 1122334455667788 0000000f 00 10 2000 0000 0001 0a020000";
    const REGISTER: &str = "38000101 0000000000000005 01 02 0000 000005a0 00 18 1000 0000 0001 0a010000";
    const NOTIFY: &str = "40000001 0000000000000005 01 02 0000 000005a0 00 18 0000 0000 0001 0a010000";

    #[test]
    fn a_header_cut_short_is_no_message() {
        for length in 0..4 {
            let error = DecodeError::Truncated { field: "message header", needed: 4, available: length };
            assert_eq!(Message::decode(&octets(REPLY)[..length]), Err(error));
        }
    }

    #[test]
    fn unknown_types_are_told_and_not_sent() {
        for unknown in [0, 6, 7, 9, 15] {
            let message = Message::decode(&[unknown << 4, 0, 0, 0]).unwrap();
            assert_eq!(message, Message::Unknown(unknown));
            let error = EncodeError::Invalid { field: "message type", value: u64::from(unknown) };
            assert_eq!(message.encode(), Err(error));
        }
    }

    #[test]
    fn octets_after_reply_and_register_are_refused_and_after_notify_kept() {
        for (hex, field) in [(REPLY, "Map-Reply"), (REGISTER, "Map-Register")] {
            let mut bytes = octets(hex);
            Message::decode(&bytes).unwrap();
            bytes.push(0);
            assert_eq!(Message::decode(&bytes), Err(DecodeError::Trailing { field, count: 1 }));
        }
        let mut bytes = octets(NOTIFY);
        bytes.extend([1, 2, 3]);
        let Ok(Message::MapNotify(notify)) = Message::decode(&bytes) else { panic!("a Map-Notify") };
        assert_eq!(notify.trailer, [1, 2, 3]);
        assert_eq!(Message::MapNotify(notify).encode().unwrap(), bytes);
    }

    #[test]
    fn security_data_of_a_reply_is_kept() {
        let mut bytes = octets(REPLY);
        bytes[0] |= 0x02;
        bytes.extend([9, 8, 7]);
        let Ok(Message::MapReply(reply)) = Message::decode(&bytes) else { panic!("a Map-Reply") };
        assert_eq!(reply.security.as_deref(), Some([9, 8, 7].as_slice()));
        assert_eq!(Message::MapReply(reply).encode().unwrap(), bytes);
    }

    #[test]
    fn each_flag_of_a_register_has_its_bit() {
        type Flag = (u32, fn(&MapRegister) -> bool);
        let flags: [Flag; 6] = [
            (0x0800_0000, |m| m.proxy_reply),
            (0x0400_0000, |m| m.security_capable),
            (0x0000_1000, |m| m.eid_notify),
            (0x0000_0800, |m| m.use_ttl_for_timeout),
            (0x0000_0400, |m| m.merge),
            (0x0000_0100, |m| m.want_map_notify),
        ];
        for (mask, _) in flags {
            let mut bytes = octets(REGISTER);
            bytes.splice(..4, (0x3000_0001 | mask).to_be_bytes());
            let Ok(Message::MapRegister(register)) = Message::decode(&bytes) else {
                panic!("a Map-Register")
            };
            for (other, flag) in flags {
                assert_eq!(flag(&register), other == mask, "{mask:#x} {other:#x}");
            }
            assert_eq!(Message::MapRegister(register).encode().unwrap(), bytes);
        }
    }

    #[test]
    fn a_mac_longer_than_the_message_is_truncated() {
        let mut bytes = octets(REGISTER);
        bytes.splice(14..16, [0xff, 0xff]);
        let available = bytes.len() - 16;
        let error = DecodeError::Truncated { field: "authentication data", needed: 0xffff, available };
        assert_eq!(Message::decode(&bytes), Err(error));
    }

    #[test]
    fn more_records_than_a_count_can_say_are_not_sent() {
        let Ok(Message::MapReply(mut reply)) = Message::decode(&octets(REPLY)) else { panic!("a Map-Reply") };
        reply.records = alloc::vec![reply.records[0].clone(); 256];
        let error = EncodeError::TooLarge { field: "record count", value: 256, limit: 255 };
        assert_eq!(Message::MapReply(reply).encode(), Err(error));
    }
}
