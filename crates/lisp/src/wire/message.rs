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
