//! Map-Notify and Map-Notify-Ack (RFC 9301 §5.7).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+---------------------------------------+---------------+
//! |Type4/5|              Reserved                 | Record Count  |
//! +-------+---------------------------------------+---------------+
//! |                        Nonce (64 bits)                        |
//! +---------------+---------------+-------------------------------+
//! |    Key ID     | Algorithm ID  |  Authentication Data Length   |
//! +---------------+---------------+-------------------------------+
//! |  Authentication Data ...                                      |
//! +---------------------------------------------------------------+
//! |  EID-records ...                                              |
//! +---------------------------------------------------------------+
//! ```
//! Peers copy the xTR-ID and Site-ID of the Map-Register behind the records, with no bit to say so; whatever stands
//! there is kept.

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::message::{MessageType, count_word, low_octet};
use super::{Authentication, EidRecord, MapNotify};

impl MapNotify {
    pub(super) fn read(word: u32, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let nonce = r.u64("nonce")?;
        let authentication = Authentication::read(r)?;
        let records = EidRecord::read_all(low_octet(word), r)?;
        Ok(Self { nonce, authentication, records, trailer: r.rest().to_vec() })
    }

    pub(super) fn write(&self, message_type: MessageType, w: &mut Writer) -> Result<(), EncodeError> {
        w.u32(message_type.word() | count_word(self.records.len(), "record count")?);
        w.u64(self.nonce);
        self.authentication.write(w)?;
        EidRecord::write_all(&self.records, w)?;
        w.bytes(&self.trailer);
        Ok(())
    }
}
