//! EID-records and their locators (RFC 9301 §5.4), the same in Map-Reply, Map-Register and Map-Notify.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                  Record TTL (32 bits, minutes)                |
//! +---------------+---------------+-----+-+-----------------------+
//! | Locator Count | EID mask-len  | ACT |A|      Reserved         |
//! +-------+-------+---------------+-----+-+-----------------------+
//! | Rsvd  |  Map-Version Number   |        EID-Prefix-AFI         |
//! +-------+-----------------------+-------------------------------+
//! |                          EID-Prefix ...                       |
//! +---------------+---------------+---------------+---------------+
//! |    Priority   |    Weight     |  M Priority   |   M Weight    | \
//! +---------------+---------------+-+-+-+---------+---------------+  | Locator Count
//! |    Unused flags         |L|p|R|           Loc-AFI             |  | times
//! +---------------------------------------------------------------+  |
//! |                           Locator ...                         | /
//! +---------------------------------------------------------------+
//! ```

use alloc::vec::Vec;

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::{Action, Address, EidPrefix, EidRecord, LocatorRecord};

const AUTHORITATIVE: u16 = 0x1000;
const LOCAL: u16 = 0x0004;
const PROBED: u16 = 0x0002;
const REACHABLE: u16 = 0x0001;
const MAX_MAP_VERSION: u16 = 0x0fff;
/// Priority, weight, flags and AFI: a locator cannot be shorter, so a count cannot claim more than the octets hold.
const MIN_LOCATOR: usize = 8;

impl Action {
    /// The three ACT bits (<https://www.iana.org/assignments/lisp-parameters>, "LISP ACT Value").
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::NoAction,
            1 => Self::NativelyForward,
            2 => Self::SendMapRequest,
            3 => Self::Drop,
            4 => Self::DropPolicyDenied,
            5 => Self::DropAuthFailure,
            other => Self::Unassigned(other),
        }
    }

    fn bits(self) -> Result<u8, EncodeError> {
        match self {
            Self::NoAction => Ok(0),
            Self::NativelyForward => Ok(1),
            Self::SendMapRequest => Ok(2),
            Self::Drop => Ok(3),
            Self::DropPolicyDenied => Ok(4),
            Self::DropAuthFailure => Ok(5),
            Self::Unassigned(bits @ (6 | 7)) => Ok(bits),
            Self::Unassigned(other) => Err(EncodeError::Invalid { field: "ACT", value: u64::from(other) }),
        }
    }
}

impl EidRecord {
    /// Reads one record; locators stay in the order of the message, which is what Locator-Status-Bits count
    /// (RFC 9300 §5.3).
    ///
    /// # Errors
    /// When the record is cut short, has an AFI that is unknown, or an EID that is not an IP prefix.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ttl = r.u32("record TTL")?;
        let locator_count = usize::from(r.u8("locator count")?);
        let mask_len = r.u8("EID mask-len")?;
        let flags = r.u16("ACT")?;
        let map_version = r.u16("map-version")? & MAX_MAP_VERSION;
        let eid = EidPrefix::read(mask_len, r)?;
        let mut locators = Vec::with_capacity(locator_count.min(r.remaining() / MIN_LOCATOR));
        for _ in 0..locator_count {
            locators.push(LocatorRecord::read(r)?);
        }
        let [high, _] = flags.to_be_bytes();
        Ok(Self {
            ttl,
            action: Action::from_bits(high >> 5),
            authoritative: flags & AUTHORITATIVE != 0,
            map_version,
            eid,
            locators,
        })
    }

    /// Appends the record with its locators sorted (RFC 9301 §5.5).
    ///
    /// # Errors
    /// When there are more than 255 locators, or the map-version or the action does not fit its bits.
    pub fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        if self.map_version > MAX_MAP_VERSION {
            let value = u64::from(self.map_version);
            return Err(EncodeError::Invalid { field: "map-version", value });
        }
        w.u32(self.ttl);
        w.count8(self.locators.len(), "locator count")?;
        w.u8(self.eid.prefix.length());
        let action = u16::from(self.action.bits()?) << 13;
        w.u16(action | if self.authoritative { AUTHORITATIVE } else { 0 });
        w.u16(self.map_version);
        self.eid.write(w)?;
        if self.locators.is_sorted_by(|a, b| a.rloc.wire_order(&b.rloc).is_le()) {
            return self.locators.iter().try_for_each(|locator| locator.write(w));
        }
        let mut sorted: Vec<&LocatorRecord> = self.locators.iter().collect();
        sorted.sort_by(|a, b| a.rloc.wire_order(&b.rloc));
        sorted.into_iter().try_for_each(|locator| locator.write(w))
    }

    /// Brings the locators into the order that the record is sent in.
    pub fn sort_locators(&mut self) {
        self.locators.sort_by(|a, b| a.rloc.wire_order(&b.rloc));
    }

    pub(super) fn read_all(count: u8, r: &mut Reader<'_>) -> Result<Vec<Self>, DecodeError> {
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(Self::read(r)?);
        }
        Ok(records)
    }

    pub(super) fn write_all(records: &[Self], w: &mut Writer) -> Result<(), EncodeError> {
        records.iter().try_for_each(|record| record.write(w))
    }
}

impl LocatorRecord {
    /// A reachable locator for unicast: a multicast priority of 255 rules it out there.
    #[must_use]
    pub const fn new(rloc: Address, priority: u8, weight: u8) -> Self {
        Self {
            priority,
            weight,
            multicast_priority: 255,
            multicast_weight: 0,
            local: false,
            probed: false,
            reachable: true,
            rloc,
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [priority, weight, multicast_priority, multicast_weight] = r.array("locator priority")?;
        let flags = r.u16("locator flags")?;
        Ok(Self {
            priority,
            weight,
            multicast_priority,
            multicast_weight,
            local: flags & LOCAL != 0,
            probed: flags & PROBED != 0,
            reachable: flags & REACHABLE != 0,
            rloc: Address::read(r, "locator")?,
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        w.bytes(&[self.priority, self.weight, self.multicast_priority, self.multicast_weight]);
        let mut flags = 0;
        for (set, mask) in [(self.local, LOCAL), (self.probed, PROBED), (self.reachable, REACHABLE)] {
            flags |= if set { mask } else { 0 };
        }
        w.u16(flags);
        self.rloc.write(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{InstanceId, octets};

    /// 10.1.0.0/24, TTL 1440, with `count` locators that `locators` holds.
    fn with_locators(count: u8, locators: &str) -> Vec<u8> {
        let mut bytes = octets("000005a0 00 18 1000 0000 0001 0a010000");
        bytes[4] = count;
        bytes.extend(octets(locators));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<EidRecord, DecodeError> {
        let mut r = Reader::new(bytes);
        let record = EidRecord::read(&mut r)?;
        r.finish("record")?;
        Ok(record)
    }

    fn write(record: &EidRecord) -> Result<Vec<u8>, EncodeError> {
        let mut w = Writer::new();
        record.write(&mut w).map(|()| w.into_vec())
    }

    #[test]
    fn an_unknown_locator_does_not_take_the_others_with_it() {
        let bytes = with_locators(2, "0164ff000001 4003 0000 1000 0002 abcd  0132ff000001 0001 c0000201");
        let record = read(&bytes).unwrap();
        assert!(matches!(record.locators[0].rloc, Address::UnknownLcaf { lcaf_type: 16, .. }));
        assert_eq!(record.locators[1].rloc.ip(), Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn an_unknown_eid_refuses_the_record() {
        for (eid, field, value) in [
            ("4003 0000 0c00 0002 abcd", "EID-prefix LCAF type", 12),
            ("4003 0000 0100 0006 0001 0a010000", "EID-prefix LCAF type", 1),
            (
                "4003 0000 0200 0016 00000001 4003 0000 0200 000a 00000002 0001 0a010000",
                "EID-prefix LCAF type",
                2,
            ),
            ("4003 0000 0200 0006 00000001 0000", "EID-prefix AFI", 0),
            ("0000", "EID-prefix AFI", 0),
            ("4005 0102 0304 0506", "EID-prefix", 16389),
        ] {
            let mut bytes = octets("000005a0 00 18 1000 0000");
            bytes.extend(octets(eid));
            assert_eq!(read(&bytes), Err(DecodeError::Invalid { field, value }), "{eid}");
        }
    }

    #[test]
    fn the_mask_is_that_of_the_inner_address_whatever_the_iid_mask_says() {
        for iid_mask_len in ["00", "20", "38"] {
            let mut bytes = octets("000005a0 00 18 1000 0000 4003 0000 02");
            bytes.extend(octets(iid_mask_len));
            bytes.extend(octets("000a 00000007 0001 0a0100ff"));
            let eid = read(&bytes).unwrap().eid;
            assert_eq!((eid.instance_id, eid.prefix), (InstanceId(7), "10.1.0.0/24".parse().unwrap()));
        }
    }

    #[test]
    fn a_mask_longer_than_the_address_is_refused() {
        let mut bytes = with_locators(0, "");
        bytes[5] = 33;
        assert_eq!(read(&bytes), Err(DecodeError::Invalid { field: "EID mask-len", value: 33 }));
    }

    #[test]
    fn locators_keep_their_order_when_read_and_are_sorted_when_written() {
        let bytes = with_locators(
            3,
            "0102ff000001 0002 20010db8000000000000000000000001 0103ff000001 0001 c6336401
            0101ff000001 0001 c0000201",
        );
        let mut record = read(&bytes).unwrap();
        let weights = |record: &EidRecord| record.locators.iter().map(|l| l.weight).collect::<Vec<_>>();
        assert_eq!(weights(&record), [2, 3, 1]);
        let sorted = read(&write(&record).unwrap()).unwrap();
        assert_eq!(weights(&sorted), [1, 3, 2]);
        record.sort_locators();
        assert_eq!(record, sorted);
    }

    #[test]
    fn more_locators_announced_than_there_are_is_truncated() {
        let bytes = with_locators(255, "0164ff000001 0001 c0000201");
        let truncated = DecodeError::Truncated { field: "locator priority", needed: 4, available: 0 };
        assert_eq!(read(&bytes), Err(truncated));
    }

    #[test]
    fn every_action_and_flag_has_its_bit() {
        for bits in 0..8 {
            let mut bytes = with_locators(0, "");
            bytes[6] = bits << 5;
            let record = read(&bytes).unwrap();
            assert_eq!(record.action, Action::from_bits(bits));
            assert!(!record.authoritative);
            assert_eq!(write(&record).unwrap(), bytes);
        }
        for (flags, expected) in
            [(4, [true, false, false]), (2, [false, true, false]), (1, [false, false, true])]
        {
            let mut bytes = with_locators(1, "0164ff000000 0001 c0000201");
            bytes[21] = flags;
            let locator = &read(&bytes).unwrap().locators[0];
            assert_eq!([locator.local, locator.probed, locator.reachable], expected);
        }
    }

    #[test]
    fn what_does_not_fit_its_bits_is_not_written() {
        let record = read(&with_locators(0, "")).unwrap();
        let version = EidRecord { map_version: 4096, ..record.clone() };
        assert_eq!(write(&version), Err(EncodeError::Invalid { field: "map-version", value: 4096 }));
        let action = EidRecord { action: Action::Unassigned(3), ..record.clone() };
        assert_eq!(write(&action), Err(EncodeError::Invalid { field: "ACT", value: 3 }));
        let locator = read(&with_locators(1, "0164ff000001 0001 c0000201")).unwrap().locators.remove(0);
        let many = EidRecord { locators: alloc::vec![locator; 256], ..record };
        let too_many = EncodeError::TooLarge { field: "locator count", value: 256, limit: 255 };
        assert_eq!(write(&many), Err(too_many));
    }
}
