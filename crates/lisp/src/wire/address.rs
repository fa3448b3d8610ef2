//! AFI-tagged addresses (RFC 9301 §5) and the LISP Canonical Address Format (RFC 8060).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------------------------------+---------------+---------------+
//! |           AFI = 16387         |     Rsvd1     |     Flags     |
//! +---------------+---------------+---------------+---------------+
//! |     Type      |     Rsvd2     |            Length             |
//! +---------------+---------------+-------------------------------+
//! |  Length octets ...                                            |
//! +---------------------------------------------------------------+
//! ```
//! Type 2 (Instance ID) uses Rsvd2 as "IID mask-len"; its body is `IID(32) AFI(16) address`. Type 1 (AFI list) is a
//! sequence of `AFI(16) address`.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::IpAddr;

use codec::{DecodeError, EncodeError, IpPrefix, Reader, Writer};

use super::{Address, EidPrefix, InstanceId};

const AFI_NONE: u16 = 0;
const AFI_IPV4: u16 = 1;
const AFI_IPV6: u16 = 2;
const AFI_LCAF: u16 = 16387;

const LCAF_AFI_LIST: u8 = 1;
const LCAF_INSTANCE_ID: u8 = 2;

/// LCAFs inside LCAFs; deployed formats need two, a peer must not choose how deep our stack gets.
const MAX_DEPTH: usize = 4;

impl Address {
    /// Reads an AFI and the address it announces.
    ///
    /// Instance 0 around an IP address means the plain address and becomes it.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for an unknown AFI: its length is not known, so the message ends here
    /// (RFC 9301 §5). An unknown LCAF type is none, it has a length (RFC 9306 §3).
    pub fn read(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Self::read_nested(r, field, MAX_DEPTH)
    }

    fn read_nested(r: &mut Reader<'_>, field: &'static str, depth: usize) -> Result<Self, DecodeError> {
        match r.u16(field)? {
            AFI_NONE => Ok(Self::NoAddress),
            AFI_IPV4 => Ok(Self::Ip(r.ipv4(field)?.into())),
            AFI_IPV6 => Ok(Self::Ip(r.ipv6(field)?.into())),
            AFI_LCAF => match depth.checked_sub(1) {
                Some(depth) => Self::read_lcaf(r, field, depth),
                None => Err(DecodeError::Depth { field, limit: MAX_DEPTH }),
            },
            afi => Err(DecodeError::Invalid { field, value: u64::from(afi) }),
        }
    }

    fn read_lcaf(r: &mut Reader<'_>, field: &'static str, depth: usize) -> Result<Self, DecodeError> {
        let [reserved1, flags, lcaf_type, reserved2] = r.array(field)?;
        let length = usize::from(r.u16(field)?);
        let mut body = r.sub(length, field)?;
        match lcaf_type {
            LCAF_INSTANCE_ID => {
                let instance_id = InstanceId(body.u32("LCAF instance ID")?);
                let address = Self::read_nested(&mut body, field, depth)?;
                body.finish("LCAF instance ID")?;
                Ok(Self::within(instance_id, reserved2, address))
            }
            LCAF_AFI_LIST => {
                let mut list = Vec::new();
                while body.remaining() > 0 {
                    list.push(Self::read_nested(&mut body, field, depth)?);
                }
                Ok(Self::AfiList(list))
            }
            _ => Ok(Self::UnknownLcaf { lcaf_type, reserved1, flags, reserved2, body: body.rest().to_vec() }),
        }
    }

    fn within(instance_id: InstanceId, mask_len: u8, address: Self) -> Self {
        match address {
            Self::Ip(_) if instance_id == InstanceId(0) => address,
            _ => Self::InstanceId { instance_id, mask_len, address: Box::new(address) },
        }
    }

    /// Appends the AFI and the address.
    ///
    /// # Errors
    /// When an LCAF is longer than 65 535 octets or nested deeper than a reader takes, or an unknown LCAF carries a
    /// type that is known.
    pub fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        self.write_nested(w, MAX_DEPTH)
    }

    fn write_nested(&self, w: &mut Writer, depth: usize) -> Result<(), EncodeError> {
        match self {
            Self::NoAddress => w.u16(AFI_NONE),
            Self::Ip(ip) => write_ip(*ip, w),
            Self::InstanceId { instance_id: InstanceId(0), address, .. }
                if matches!(**address, Self::Ip(_)) =>
            {
                address.write_nested(w, depth)?;
            }
            lcaf => match depth.checked_sub(1) {
                Some(depth) => lcaf.write_as_lcaf(w, depth)?,
                None => {
                    let (value, limit) = (MAX_DEPTH + 1, MAX_DEPTH);
                    return Err(EncodeError::TooLarge { field: "LCAF nesting", value, limit });
                }
            },
        }
        Ok(())
    }

    fn write_as_lcaf(&self, w: &mut Writer, depth: usize) -> Result<(), EncodeError> {
        let mut body = Writer::new();
        let header = match self {
            Self::InstanceId { instance_id, mask_len, address } => {
                body.u32(instance_id.0);
                address.write_nested(&mut body, depth)?;
                [0, 0, LCAF_INSTANCE_ID, *mask_len]
            }
            Self::AfiList(list) => {
                list.iter().try_for_each(|address| address.write_nested(&mut body, depth))?;
                [0, 0, LCAF_AFI_LIST, 0]
            }
            Self::UnknownLcaf { lcaf_type: lcaf_type @ (LCAF_AFI_LIST | LCAF_INSTANCE_ID), .. } => {
                return Err(EncodeError::Invalid { field: "LCAF type", value: u64::from(*lcaf_type) });
            }
            Self::UnknownLcaf { lcaf_type, reserved1, flags, reserved2, body: kept } => {
                body.bytes(kept);
                [*reserved1, *flags, *lcaf_type, *reserved2]
            }
            Self::NoAddress | Self::Ip(_) => return self.write_nested(w, depth),
        };
        write_lcaf(w, header, &body.into_vec())
    }

    /// The order that locators have in a record: by {AFI, address} (RFC 9301 §5.5, RFC 8060 §3).
    #[must_use]
    pub fn wire_order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Ip(a), Self::Ip(b)) => a.cmp(b),
            _ => self.sort_key().cmp(&other.sort_key()),
        }
    }

    fn sort_key(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self.write(&mut w) {
            Ok(()) => w.into_vec(),
            // It has no encoding, so neither has the record: any place will do.
            Err(_) => Vec::new(),
        }
    }
}

impl EidPrefix {
    /// Whether it holds all of `inner`, in the same instance.
    #[must_use]
    pub fn covers(&self, inner: &Self) -> bool {
        self.instance_id == inner.instance_id && self.prefix.covers(&inner.prefix)
    }

    /// Whether one of the two covers the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Reads the AFI and address that follow a mask length.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for an EID that is not an IP address, alone or inside one instance: unlike a locator
    /// it cannot be skipped (RFC 9306 §3).
    pub(super) fn read(mask_len: u8, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        const FIELD: &str = "EID-prefix";
        let (instance_id, address) = match Address::read(r, FIELD)? {
            Address::InstanceId { instance_id, address, .. } => (instance_id, *address),
            address => (InstanceId(0), address),
        };
        let ip = match address {
            Address::Ip(ip) => ip,
            Address::NoAddress => {
                return Err(DecodeError::Invalid { field: "EID-prefix AFI", value: u64::from(AFI_NONE) });
            }
            Address::InstanceId { .. } => return Err(unknown_eid(LCAF_INSTANCE_ID)),
            Address::AfiList(_) => return Err(unknown_eid(LCAF_AFI_LIST)),
            Address::UnknownLcaf { lcaf_type, .. } => return Err(unknown_eid(lcaf_type)),
        };
        let prefix = IpPrefix::new(ip, mask_len)
            .map_err(|_| DecodeError::Invalid { field: "EID mask-len", value: u64::from(mask_len) })?;
        Ok(Self { instance_id, prefix })
    }

    /// Appends the AFI and address; the mask length stands elsewhere.
    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        if self.instance_id == InstanceId(0) {
            write_ip(self.prefix.address(), w);
            return Ok(());
        }
        let mut body = Writer::new();
        body.u32(self.instance_id.0);
        write_ip(self.prefix.address(), &mut body);
        write_lcaf(w, [0, 0, LCAF_INSTANCE_ID, 0], &body.into_vec())
    }
}

fn unknown_eid(lcaf_type: u8) -> DecodeError {
    DecodeError::Invalid { field: "EID-prefix LCAF type", value: u64::from(lcaf_type) }
}

fn write_ip(ip: IpAddr, w: &mut Writer) {
    w.u16(if ip.is_ipv4() { AFI_IPV4 } else { AFI_IPV6 });
    w.ip(ip);
}

fn write_lcaf(w: &mut Writer, header: [u8; 4], body: &[u8]) -> Result<(), EncodeError> {
    w.u16(AFI_LCAF);
    w.bytes(&header);
    w.length16(body.len(), "LCAF length")?;
    w.bytes(body);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::octets;

    fn read(hex: &str) -> Result<Address, DecodeError> {
        let bytes = octets(hex);
        let mut r = Reader::new(&bytes);
        let address = Address::read(&mut r, "address")?;
        r.finish("address")?;
        Ok(address)
    }

    fn write(address: &Address) -> Vec<u8> {
        let mut w = Writer::new();
        address.write(&mut w).unwrap();
        w.into_vec()
    }

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    fn lists(depth: usize) -> Address {
        (1..depth).fold(Address::AfiList(Vec::new()), |inner, _| Address::AfiList([inner].into()))
    }

    #[test]
    fn an_unknown_afi_ends_the_message() {
        let invalid = DecodeError::Invalid { field: "address", value: 16389 };
        assert_eq!(read("4005 0102 0304 0506"), Err(invalid));
        assert_eq!(read("4003 0000 0100 0008 4005 0102 0304 0506"), Err(invalid));
    }

    #[test]
    fn an_unknown_lcaf_is_kept_whole() {
        let hex = "4003 0102 0a03 0004 deadbeef";
        let kept = Address::UnknownLcaf {
            lcaf_type: 10,
            reserved1: 1,
            flags: 2,
            reserved2: 3,
            body: octets("deadbeef"),
        };
        assert_eq!(read(hex), Ok(kept.clone()));
        assert_eq!(write(&kept), octets(hex));
        assert_eq!(kept.ip(), None);
    }

    #[test]
    fn instance_zero_is_the_plain_address_and_is_written_plain() {
        assert_eq!(read("4003 0000 0200 000a 00000000 0001 c0000201"), Ok(ip("192.0.2.1")));
        let zero = Address::InstanceId {
            instance_id: InstanceId(0),
            mask_len: 0,
            address: Box::new(ip("192.0.2.1")),
        };
        assert_eq!(write(&zero), octets("0001 c0000201"));
    }

    #[test]
    fn an_instance_holds_one_address_and_no_more() {
        let trailing = DecodeError::Trailing { field: "LCAF instance ID", count: 1 };
        assert_eq!(read("4003 0000 0200 000b 00000007 0001 c0000201 ff"), Err(trailing));
        let short = DecodeError::Truncated { field: "address", needed: 4, available: 3 };
        assert_eq!(read("4003 0000 0200 0009 00000007 0001 c0000201"), Err(short));
    }

    #[test]
    fn a_length_beyond_the_message_is_truncated() {
        let truncated = DecodeError::Truncated { field: "address", needed: 65535, available: 2 };
        for lcaf_type in ["01", "02", "0a"] {
            assert_eq!(read(&alloc::format!("4003 0000 {lcaf_type}00 ffff 0000")), Err(truncated));
        }
    }

    #[test]
    fn nesting_is_bounded_in_both_directions() {
        assert_eq!(Address::read(&mut Reader::new(&write(&lists(4))), "address"), Ok(lists(4)));
        let five =
            octets("4003000001000020 4003000001000018 4003000001000010 4003000001000008 4003000001000000");
        let too_deep = DecodeError::Depth { field: "address", limit: 4 };
        assert_eq!(Address::read(&mut Reader::new(&five), "address"), Err(too_deep));
        let error = lists(5).write(&mut Writer::new());
        assert_eq!(error, Err(EncodeError::TooLarge { field: "LCAF nesting", value: 5, limit: 4 }));
    }

    #[test]
    fn an_unknown_lcaf_cannot_claim_a_known_type() {
        let (reserved1, flags, reserved2) = (0, 0, 0);
        for lcaf_type in [LCAF_AFI_LIST, LCAF_INSTANCE_ID] {
            let address = Address::UnknownLcaf { lcaf_type, reserved1, flags, reserved2, body: Vec::new() };
            let error = EncodeError::Invalid { field: "LCAF type", value: u64::from(lcaf_type) };
            assert_eq!(address.write(&mut Writer::new()), Err(error));
        }
    }

    #[test]
    fn ipv4_sorts_before_ipv6_and_lcaf_last() {
        let mut sorted = [lists(1), ip("2001:db8::1"), ip("192.0.2.9"), Address::NoAddress, ip("10.0.0.200")];
        sorted.sort_by(Address::wire_order);
        assert_eq!(
            sorted,
            [Address::NoAddress, ip("10.0.0.200"), ip("192.0.2.9"), ip("2001:db8::1"), lists(1)]
        );
    }
}
