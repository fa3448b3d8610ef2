//! Writing a message front to back into a growing buffer.

use alloc::vec::Vec;
use core::net::IpAddr;

use thiserror::Error;

/// Why a value has no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A list or length does not fit its counter.
    #[error("{field}: {value} exceeds the {limit} that the field can say")]
    TooLarge {
        /// Field being written.
        field: &'static str,
        /// What was to be written.
        value: usize,
        /// What fits.
        limit: usize,
    },
    /// `field` cannot hold this value.
    #[error("{field}: {value:#x} cannot be sent")]
    Invalid {
        /// Field being written.
        field: &'static str,
        /// What was to be written.
        value: u64,
    },
}

/// Appends fields in network byte order.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// An empty message.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Octets written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The message.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }

    /// Appends octets as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Appends one octet.
    pub fn u8(&mut self, value: u8) {
        self.buffer.push(value);
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends the 4 or 16 octets of an address.
    pub fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.bytes(&a.octets()),
            IpAddr::V6(a) => self.bytes(&a.octets()),
        }
    }

    /// Appends a count in 8 bits.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] above 255.
    pub fn count8(&mut self, value: usize, field: &'static str) -> Result<(), EncodeError> {
        let octet = u8::try_from(value).map_err(|_| EncodeError::TooLarge { field, value, limit: 255 })?;
        self.u8(octet);
        Ok(())
    }

    /// Appends a length in 16 bits.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] above 65 535.
    pub fn length16(&mut self, value: usize, field: &'static str) -> Result<(), EncodeError> {
        let length =
            u16::try_from(value).map_err(|_| EncodeError::TooLarge { field, value, limit: 0xffff })?;
        self.u16(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_big_endian() {
        let mut w = Writer::new();
        w.u8(1);
        w.u16(0x0203);
        w.ip("192.0.2.1".parse().unwrap());
        assert_eq!(w.into_vec(), [1, 2, 3, 192, 0, 2, 1]);
    }

    #[test]
    fn a_count_that_does_not_fit_is_an_error() {
        let limit = EncodeError::TooLarge { field: "records", value: 256, limit: 255 };
        assert_eq!(Writer::new().count8(256, "records"), Err(limit));
    }
}
