//! Map-Reply (RFC 9301 §5.4).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-+-+-+---------------------------------+---------------+
//! |Type=2 |P|E|S|           Reserved              | Record Count  |
//! +-------+-+-+-+---------------------------------+---------------+
//! |                        Nonce (64 bits)                        |
//! +---------------------------------------------------------------+
//! |  EID-records ...                                              |
//! +---------------------------------------------------------------+
//! |  LISP-SEC authentication data, if S (RFC 9303)                |
//! +---------------------------------------------------------------+
//! ```

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::message::{MessageType, bit, count_word, low_octet};
use super::{EidRecord, MapReply};

const PROBE: u32 = 0x0800_0000;
const ECHO_NONCE: u32 = 0x0400_0000;
const SECURITY: u32 = 0x0200_0000;

impl MapReply {
    pub(super) fn read(word: u32, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let nonce = r.u64("nonce")?;
        let records = EidRecord::read_all(low_octet(word), r)?;
        let security = if word & SECURITY == 0 {
            r.clone().finish("Map-Reply")?;
            None
        } else {
            Some(r.rest().to_vec())
        };
        Ok(Self { probe: word & PROBE != 0, echo_nonce: word & ECHO_NONCE != 0, security, nonce, records })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        let flags = bit(self.probe, PROBE)
            | bit(self.echo_nonce, ECHO_NONCE)
            | bit(self.security.is_some(), SECURITY);
        w.u32(MessageType::MapReply.word() | flags | count_word(self.records.len(), "record count")?);
        w.u64(self.nonce);
        EidRecord::write_all(&self.records, w)?;
        if let Some(security) = &self.security {
            w.bytes(security);
        }
        Ok(())
    }
}
