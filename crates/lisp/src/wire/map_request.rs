//! Map-Request (RFC 9301 §5.2, RFC 9437 §4).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-+-+-+-+-+-+-+-+---------+-+-+---------+---------------+
//! |Type=1 |A|M|P|S|p|s|R|I|  Rsvd   |L|D|   IRC   | Record Count  |
//! +-------+-+-+-+-+-+-+-+-+---------+-+-+---------+---------------+
//! |                        Nonce (64 bits)                        |
//! +-------------------------------+-------------------------------+
//! |        Source-EID-AFI         |  Source EID ...               |
//! +-------------------------------+-------------------------------+
//! |        ITR-RLOC-AFI           |  ITR-RLOC ...                 | IRC + 1 times
//! +-+-------------+---------------+-------------------------------+
//! |N|  Reserved   | EID mask-len  |        EID-Prefix-AFI         | \ Record Count
//! +-+-------------+---------------+-------------------------------+  | times
//! |                        EID-Prefix ...                         | /
//! +---------------------------------------------------------------+
//! |  EID-record of the sender, if M                               |
//! +---------------------------------------------------------------+
//! |  xTR-ID (128 bits) and Site-ID (64 bits), if I                |
//! +---------------------------------------------------------------+
//! ```

use alloc::vec::Vec;

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::message::{MessageType, bit, count_word, low_octet};
use super::{Address, EidPrefix, EidRecord, MapRequest, RequestRecord, XtrIdentity};

const AUTHORITATIVE: u32 = 0x0800_0000;
const MAP_REPLY: u32 = 0x0400_0000;
const PROBE: u32 = 0x0200_0000;
const SMR: u32 = 0x0100_0000;
const PROXY_ITR: u32 = 0x0080_0000;
const SMR_INVOKED: u32 = 0x0040_0000;
const XTR_ID: u32 = 0x0010_0000;
const LOCAL_XTR: u32 = 0x0000_4000;
const NO_MAP_REPLY: u32 = 0x0000_2000;
const SUBSCRIBE: u8 = 0x80;
/// IRC has 5 bits and counts from one.
const MAX_ITR_RLOCS: usize = 32;

impl MapRequest {
    /// Octets after the end are ignored (RFC 9437 §4).
    pub(super) fn read(word: u32, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let nonce = r.u64("nonce")?;
        let source_eid = Address::read(r, "source EID")?;
        let mut itr_rlocs = Vec::new();
        for _ in 0..=(word >> 8) & 0x1f {
            itr_rlocs.push(Address::read(r, "ITR-RLOC")?);
        }
        let mut records = Vec::new();
        for _ in 0..low_octet(word) {
            records.push(RequestRecord::read(r)?);
        }
        let map_reply = if word & MAP_REPLY == 0 { None } else { Some(EidRecord::read(r)?) };
        let xtr = XtrIdentity::read(word & XTR_ID != 0, r)?;
        Ok(Self {
            authoritative: word & AUTHORITATIVE != 0,
            probe: word & PROBE != 0,
            smr: word & SMR != 0,
            proxy_itr: word & PROXY_ITR != 0,
            smr_invoked: word & SMR_INVOKED != 0,
            local_xtr: word & LOCAL_XTR != 0,
            no_map_reply: word & NO_MAP_REPLY != 0,
            nonce,
            source_eid,
            itr_rlocs,
            records,
            map_reply,
            xtr,
        })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        w.u32(self.header()?);
        w.u64(self.nonce);
        self.source_eid.write(w)?;
        self.itr_rlocs.iter().try_for_each(|rloc| rloc.write(w))?;
        self.records.iter().try_for_each(|record| record.write(w))?;
        if let Some(record) = &self.map_reply {
            record.write(w)?;
        }
        if let Some(xtr) = &self.xtr {
            xtr.write(w);
        }
        Ok(())
    }

    fn header(&self) -> Result<u32, EncodeError> {
        let flags = [
            (self.authoritative, AUTHORITATIVE),
            (self.map_reply.is_some(), MAP_REPLY),
            (self.probe, PROBE),
            (self.smr, SMR),
            (self.proxy_itr, PROXY_ITR),
            (self.smr_invoked, SMR_INVOKED),
            (self.xtr.is_some(), XTR_ID),
            (self.local_xtr, LOCAL_XTR),
            (self.no_map_reply, NO_MAP_REPLY),
        ];
        let word = flags.iter().fold(MessageType::MapRequest.word(), |w, &(set, mask)| w | bit(set, mask));
        Ok(word
            | itr_rloc_count(self.itr_rlocs.len())? << 8
            | count_word(self.records.len(), "record count")?)
    }
}

/// IRC: one less than the number of ITR-RLOCs, of which there is at least one (RFC 9301 §5.2).
fn itr_rloc_count(count: usize) -> Result<u32, EncodeError> {
    const FIELD: &str = "ITR-RLOC count";
    let Some(irc) = count.checked_sub(1) else {
        return Err(EncodeError::Invalid { field: FIELD, value: 0 });
    };
    if count > MAX_ITR_RLOCS {
        return Err(EncodeError::TooLarge { field: FIELD, value: count, limit: MAX_ITR_RLOCS });
    }
    count_word(irc, FIELD)
}

impl RequestRecord {
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = r.u8("record flags")?;
        let mask_len = r.u8("EID mask-len")?;
        let eid = EidPrefix::read(mask_len, r)?;
        Ok(Self { subscribe: flags & SUBSCRIBE != 0, eid })
    }

    fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        w.u8(if self.subscribe { SUBSCRIBE } else { 0 });
        w.u8(self.eid.prefix.length());
        self.eid.write(w)
    }
}
