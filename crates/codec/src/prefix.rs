//! IP prefixes with the host bits cleared.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use thiserror::Error;

/// An IPv4 or IPv6 prefix; equal prefixes compare equal because host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

/// Why a text or a pair of numbers is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// The length is longer than the address.
    #[error("prefix length {length} is longer than the {bits} bits of the address")]
    Length {
        /// The length given.
        length: u8,
        /// 32 or 128.
        bits: u8,
    },
    /// The text is not `ADDRESS/LENGTH` or `ADDRESS`.
    #[error("not an IP prefix (expected e.g. 10.1.0.0/24 or 2001:db8::/32)")]
    Syntax,
}

impl IpPrefix {
    /// The prefix of `length` bits around `address`; host bits are cleared.
    ///
    /// # Errors
    /// [`PrefixError::Length`] if `length` exceeds 32 (IPv4) or 128 (IPv6).
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if length > bits {
            return Err(PrefixError::Length { length, bits });
        }
        let address = match address {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask32(length))),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask128(length))),
        };
        Ok(Self { address, length })
    }

    /// The prefix that holds only `address`.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }

    /// The lowest address of the prefix.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Number of leading bits that count.
    #[must_use]
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` is of the same family and inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.length).is_ok_and(|p| p.address == self.address)
    }

    /// Whether every address of `other` is inside (a prefix covers itself).
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }
}

const fn mask32(length: u8) -> u32 {
    if length == 0 { 0 } else { u32::MAX << (32 - length) }
}

const fn mask128(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let Some((address, length)) = text.split_once('/') else {
            return text.parse().map(Self::host).map_err(|_| PrefixError::Syntax);
        };
        let address = address.parse().map_err(|_| PrefixError::Syntax)?;
        let length = length.parse().map_err(|_| PrefixError::Syntax)?;
        Self::new(address, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn host_bits_are_cleared() {
        let p: IpPrefix = "10.1.2.3/16".parse().unwrap();
        assert_eq!(p.to_string(), "10.1.0.0/16");
        assert!(p.contains("10.1.255.255".parse().unwrap()));
        assert!(!p.contains("10.2.0.0".parse().unwrap()));
        assert!(!p.contains("::ffff:10.1.0.1".parse().unwrap()));
    }

    #[test]
    fn zero_length_covers_its_family_only() {
        let all: IpPrefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.covers(&"192.0.2.0/24".parse().unwrap()));
        assert!(!all.covers(&"2001:db8::/32".parse().unwrap()));
        assert!(!IpPrefix::from_str("192.0.2.0/24").unwrap().covers(&all));
    }

    #[test]
    fn errors_carry_the_numbers() {
        assert_eq!("10.0.0.0/33".parse::<IpPrefix>(), Err(PrefixError::Length { length: 33, bits: 32 }));
        assert_eq!("10.0.0/8".parse::<IpPrefix>(), Err(PrefixError::Syntax));
    }
}
