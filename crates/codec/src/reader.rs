//! Reading a message front to back without reading past its end.

use core::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Why a message could not be decoded; every variant names the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message ends inside `field`.
    #[error("{field}: needs {needed} octets, {available} left")]
    Truncated {
        /// Field being read.
        field: &'static str,
        /// Octets the field takes.
        needed: usize,
        /// Octets left.
        available: usize,
    },
    /// `field` holds a value that the format does not allow here.
    #[error("{field}: invalid value {value:#x}")]
    Invalid {
        /// Field being read.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// Octets are left after the end of `field`.
    #[error("{field}: {count} octets left over")]
    Trailing {
        /// What was read.
        field: &'static str,
        /// Octets left.
        count: usize,
    },
    /// Structures inside structures, deeper than allowed.
    #[error("{field}: nested deeper than {limit}")]
    Depth {
        /// Field being read.
        field: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// A cursor over a borrowed message.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Octets not yet read.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// What is not yet read, without consuming it.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `n` octets.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer are left; nothing is consumed then.
    pub fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(DecodeError::Truncated { field, needed: n, available: self.rest.len() });
        };
        self.rest = tail;
        Ok(head)
    }

    /// A reader bounded to the next `n` octets, which this reader skips.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer are left.
    pub fn sub(&mut self, n: usize, field: &'static str) -> Result<Self, DecodeError> {
        self.bytes(n, field).map(Self::new)
    }

    /// The next `N` octets as an array.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated { field, needed: N, available: self.rest.len() });
        };
        self.rest = tail;
        Ok(*head)
    }

    /// One octet.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[b]| b)
    }

    /// A big-endian 16-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer than 2 octets are left.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// A big-endian 32-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer than 4 octets are left.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// A big-endian 64-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer than 8 octets are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// An IPv4 address.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer than 4 octets are left.
    pub fn ipv4(&mut self, field: &'static str) -> Result<Ipv4Addr, DecodeError> {
        self.array::<4>(field).map(Ipv4Addr::from)
    }

    /// An IPv6 address.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer than 16 octets are left.
    pub fn ipv6(&mut self, field: &'static str) -> Result<Ipv6Addr, DecodeError> {
        self.array::<16>(field).map(Ipv6Addr::from)
    }

    /// States that nothing is left.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] with the count of what is.
    pub const fn finish(self, field: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { field, count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_names_the_field_and_consumes_nothing() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32("nonce"), Err(DecodeError::Truncated { field: "nonce", needed: 4, available: 3 }));
        assert_eq!(r.u16("port"), Ok(0x0102));
        assert_eq!(r.finish("message"), Err(DecodeError::Trailing { field: "message", count: 1 }));
    }

    #[test]
    fn a_child_reader_cannot_leave_its_bounds() {
        let mut r = Reader::new(&[1, 2, 3, 4]);
        let mut child = r.sub(2, "body").unwrap();
        assert!(child.u32("value").is_err());
        assert_eq!(r.u16("next"), Ok(0x0304));
    }
}
