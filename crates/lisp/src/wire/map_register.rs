//! Map-Register (RFC 9301 §5.6).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-+-+-+-----------------------+-+-+-+-+-+---------------+
//! |Type=3 |P|S|I|     Reserved          |E|T|a|R|M| Record Count  |
//! +-------+-+-+-+-----------------------+-+-+-+-+-+---------------+
//! |                        Nonce (64 bits)                        |
//! +---------------+---------------+-------------------------------+
//! |    Key ID     | Algorithm ID  |  Authentication Data Length   |
//! +---------------+---------------+-------------------------------+
//! |  Authentication Data ...                                      |
//! +---------------------------------------------------------------+
//! |  EID-records ...                                              |
//! +---------------------------------------------------------------+
//! |  xTR-ID (128 bits) and Site-ID (64 bits), if I                |
//! +---------------------------------------------------------------+
//! ```

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::message::{MessageType, bit, count_word, low_octet};
use super::{Authentication, EidRecord, MapRegister, XtrIdentity};

const PROXY_REPLY: u32 = 0x0800_0000;
const SECURITY_CAPABLE: u32 = 0x0400_0000;
const XTR_ID: u32 = 0x0200_0000;
const EID_NOTIFY: u32 = 0x0000_1000;
const USE_TTL: u32 = 0x0000_0800;
const MERGE: u32 = 0x0000_0400;
const WANT_MAP_NOTIFY: u32 = 0x0000_0100;

impl MapRegister {
    pub(super) fn read(word: u32, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let nonce = r.u64("nonce")?;
        let authentication = Authentication::read(r)?;
        let records = EidRecord::read_all(low_octet(word), r)?;
        let xtr = XtrIdentity::read(word & XTR_ID != 0, r)?;
        r.clone().finish("Map-Register")?;
        Ok(Self {
            proxy_reply: word & PROXY_REPLY != 0,
            security_capable: word & SECURITY_CAPABLE != 0,
            eid_notify: word & EID_NOTIFY != 0,
            use_ttl_for_timeout: word & USE_TTL != 0,
            merge: word & MERGE != 0,
            want_map_notify: word & WANT_MAP_NOTIFY != 0,
            nonce,
            authentication,
            records,
            xtr,
        })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        let flags = [
            (self.proxy_reply, PROXY_REPLY),
            (self.security_capable, SECURITY_CAPABLE),
            (self.xtr.is_some(), XTR_ID),
            (self.eid_notify, EID_NOTIFY),
            (self.use_ttl_for_timeout, USE_TTL),
            (self.merge, MERGE),
            (self.want_map_notify, WANT_MAP_NOTIFY),
        ];
        let word = flags.iter().fold(MessageType::MapRegister.word(), |w, &(set, mask)| w | bit(set, mask));
        w.u32(word | count_word(self.records.len(), "record count")?);
        w.u64(self.nonce);
        self.authentication.write(w)?;
        EidRecord::write_all(&self.records, w)?;
        if let Some(xtr) = &self.xtr {
            xtr.write(w);
        }
        Ok(())
    }
}

impl Authentication {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let key_id = r.u8("key ID")?;
        let algorithm_id = r.u8("algorithm ID")?;
        let length = r.u16("authentication data length")?;
        let data = r.bytes(usize::from(length), "authentication data")?.to_vec();
        Ok(Self { key_id, algorithm_id, data })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        w.u8(self.key_id);
        w.u8(self.algorithm_id);
        w.length16(self.data.len(), "authentication data length")?;
        w.bytes(&self.data);
        Ok(())
    }
}
