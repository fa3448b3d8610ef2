//! EID-prefixes as map keys, and addresses as the maps hold them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use bpf_abi::EidKey;
use codec::IpPrefix;

/// Bits of the instance ID in front of the address.
const INSTANCE_BITS: u32 = 32;
/// Bits that the IPv4-mapped form puts in front of an IPv4 address.
const MAPPED_BITS: u32 = 96;

/// An EID-prefix in its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Eid {
    /// Instance ID.
    pub instance_id: u32,
    /// The prefix.
    pub prefix: IpPrefix,
}

impl Eid {
    /// Key of the LPM tries.
    #[must_use]
    pub fn key(&self) -> EidKey {
        let length = u32::from(self.prefix.length());
        let family = if self.prefix.address().is_ipv4() { MAPPED_BITS } else { 0 };
        EidKey {
            prefix_len: INSTANCE_BITS + family + length,
            instance_id: self.instance_id.to_be_bytes(),
            address: mapped(self.prefix.address()),
        }
    }

    /// The prefix behind a key; `None` if its length is no prefix of an instance's addresses.
    #[must_use]
    pub fn from_key(key: &EidKey) -> Option<Self> {
        let length = key.prefix_len.checked_sub(INSTANCE_BITS)?;
        let (address, length) = match unmapped(&key.address) {
            IpAddr::V4(v4) if length >= MAPPED_BITS => (IpAddr::V4(v4), length - MAPPED_BITS),
            _ => (IpAddr::V6(Ipv6Addr::from(key.address)), length),
        };
        let prefix = IpPrefix::new(address, u8::try_from(length).ok()?).ok()?;
        Some(Self { instance_id: u32::from_be_bytes(key.instance_id), prefix })
    }
}

impl fmt::Display for Eid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]{}", self.instance_id, self.prefix)
    }
}

/// 16 octets in network order, IPv4 as `::ffff:a.b.c.d`.
#[must_use]
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that [`mapped`] wrote.
#[must_use]
pub fn unmapped(octets: &[u8; 16]) -> IpAddr {
    Ipv6Addr::from(*octets).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        for text in ["10.1.0.0/16", "0.0.0.0/0", "10.1.2.3/32", "2001:db8::/32", "::/0", "2001:db8::1/128"] {
            let eid = Eid { instance_id: 7, prefix: text.parse().unwrap() };
            assert_eq!(Eid::from_key(&eid.key()), Some(eid), "{text}");
        }
    }

    #[test]
    fn ipv4_lengths_count_the_mapped_bits() {
        let key = Eid { instance_id: 0x0102_0304, prefix: "192.0.2.0/24".parse().unwrap() }.key();
        assert_eq!(key.prefix_len, 152);
        assert_eq!(key.instance_id, [1, 2, 3, 4]);
        assert_eq!(key.address, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 0]);
    }

    #[test]
    fn a_length_without_the_instance_is_no_eid() {
        let mut key = Eid { instance_id: 0, prefix: "::/0".parse().unwrap() }.key();
        key.prefix_len = 31;
        assert_eq!(Eid::from_key(&key), None);
    }
}
