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
