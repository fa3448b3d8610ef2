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
    /// A request for one prefix with no flag set; it names neither a source EID nor the xTR.
    #[must_use]
    pub fn new(nonce: u64, itr_rlocs: Vec<Address>, eid: EidPrefix) -> Self {
        Self {
            authoritative: false,
            probe: false,
            smr: false,
            proxy_itr: false,
            smr_invoked: false,
            local_xtr: false,
            no_map_reply: false,
            nonce,
            source_eid: Address::NoAddress,
            itr_rlocs,
            records: Vec::from([RequestRecord { subscribe: false, eid }]),
            map_reply: None,
            xtr: None,
        }
    }

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

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::wire::{Message, octets};

    const REQUEST: &str = "10000001 1122334455667788 0001 0a090005 0001 cb007109 00 20 0001 0a010007";
    const TRAILER: &str = "000102030405060708090a0b0c0d0e0f 0102030405060708";

    fn read(bytes: &[u8]) -> Result<MapRequest, DecodeError> {
        match Message::decode(bytes)? {
            Message::MapRequest(request) => Ok(request),
            other => panic!("{other:?} is no Map-Request"),
        }
    }

    #[test]
    fn octets_after_the_end_are_ignored() {
        let mut bytes = octets(REQUEST);
        let request = read(&bytes).unwrap();
        bytes.extend(octets(TRAILER));
        assert_eq!(read(&bytes).unwrap(), request);
        bytes[1] |= 0x10;
        assert!(read(&bytes).unwrap().xtr.is_some());
        bytes.push(0xff);
        assert!(read(&bytes).unwrap().xtr.is_some());
    }

    #[test]
    fn an_announced_trailer_must_be_there() {
        let mut bytes = octets(REQUEST);
        bytes[1] |= 0x10;
        bytes.extend(&octets(TRAILER)[..23]);
        assert_eq!(read(&bytes), Err(DecodeError::Truncated { field: "Site-ID", needed: 8, available: 7 }));
    }

    #[test]
    fn the_piggybacked_record_stands_before_the_trailer() {
        let mut bytes = octets(REQUEST);
        bytes[0] |= 0x04;
        bytes[1] |= 0x10;
        bytes.extend(octets("000005a0 00 18 1000 0000 0001 0a090000"));
        bytes.extend(octets(TRAILER));
        let request = read(&bytes).unwrap();
        assert_eq!(request.map_reply.as_ref().unwrap().eid.prefix, "10.9.0.0/24".parse().unwrap());
        assert_eq!(request.xtr.unwrap().site_id.0, 0x0102_0304_0506_0708);
        assert_eq!(Message::MapRequest(request).encode().unwrap(), bytes);
    }

    #[test]
    fn each_flag_has_its_bit_and_reserved_bits_are_ignored() {
        type Flag = (u32, fn(&MapRequest) -> bool);
        let plain = read(&octets(REQUEST)).unwrap();
        let flags: [Flag; 7] = [
            (0x0800_0000, |m| m.authoritative),
            (0x0200_0000, |m| m.probe),
            (0x0100_0000, |m| m.smr),
            (0x0080_0000, |m| m.proxy_itr),
            (0x0040_0000, |m| m.smr_invoked),
            (0x0000_4000, |m| m.local_xtr),
            (0x0000_2000, |m| m.no_map_reply),
        ];
        for (mask, flag) in flags {
            let mut bytes = octets(REQUEST);
            bytes.splice(..4, (0x1000_0001 | mask).to_be_bytes());
            let request = read(&bytes).unwrap();
            assert!(flag(&request) && !flag(&plain), "{mask:#x}");
            assert_eq!(Message::MapRequest(request).encode().unwrap(), bytes);
        }
        let mut reserved = octets(REQUEST);
        reserved.splice(..4, (0x1000_0001_u32 | 0x002f_8000).to_be_bytes());
        reserved[24] |= 0x7f;
        assert_eq!(read(&reserved).unwrap(), plain);
    }

    /// RFC 9437 §5 ends a subscription with an ITR-RLOC of AFI 0: the handler decides, not the parser.
    #[test]
    fn an_itr_rloc_without_an_address_is_kept() {
        let bytes = octets("10000001 1122334455667788 0000 0000 80 20 0001 0a010007");
        let request = read(&bytes).unwrap();
        assert_eq!(request.itr_rlocs, [Address::NoAddress]);
        assert!(request.records[0].subscribe);
        assert_eq!(Message::MapRequest(request).encode().unwrap(), bytes);
    }

    #[test]
    fn one_to_thirty_two_itr_rlocs_fit() {
        let mut request = read(&octets(REQUEST)).unwrap();
        request.itr_rlocs = alloc::vec![Address::Ip(IpAddr::from([192, 0, 2, 1])); 32];
        assert_eq!(read(&Message::MapRequest(request.clone()).encode().unwrap()).unwrap(), request);
        let field = "ITR-RLOC count";
        request.itr_rlocs.push(Address::NoAddress);
        let encoded = Message::MapRequest(request.clone()).encode();
        assert_eq!(encoded, Err(EncodeError::TooLarge { field, value: 33, limit: 32 }));
        request.itr_rlocs.clear();
        assert_eq!(Message::MapRequest(request).encode(), Err(EncodeError::Invalid { field, value: 0 }));
    }

    #[test]
    fn unknown_afis_refuse_the_message_wherever_they_stand() {
        for (at, field) in [(12, "source EID"), (18, "ITR-RLOC"), (26, "EID-prefix")] {
            let mut bytes = octets(REQUEST);
            bytes.splice(at..at + 2, [0x40, 0x05]);
            assert_eq!(read(&bytes), Err(DecodeError::Invalid { field, value: 0x4005 }));
        }
    }

    #[test]
    fn more_records_announced_than_there_are_is_truncated() {
        let mut bytes = octets(REQUEST);
        bytes[3] = 255;
        let truncated = DecodeError::Truncated { field: "record flags", needed: 1, available: 0 };
        assert_eq!(read(&bytes), Err(truncated));
    }
}
