//! The header in front of an encapsulated packet (RFC 9300 §5.3).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+---+-----------------------------------------------+
//! |N|L|E|V|I|R|K K|  Nonce, or Source and Dest Map-Version        |
//! +-+-+-+-+-+-+---+-----------------------------------------------+
//! |  Locator-Status-Bits, or Instance ID (24) and LSBs (8) if I   |
//! +---------------------------------------------------------------+
//! ```

use codec::{DecodeError, EncodeError, Reader, Writer};

use super::InstanceId;
use super::message::bit;

const NONCE: u32 = 0x8000_0000;
const LOCATOR_STATUS: u32 = 0x4000_0000;
const ECHO_NONCE: u32 = 0x2000_0000;
const MAP_VERSION: u32 = 0x1000_0000;
const INSTANCE_ID: u32 = 0x0800_0000;
const KEY: u32 = 0x0300_0000;
const LOW_24: u32 = 0x00ff_ffff;
const LOW_12: u32 = 0x0fff;

/// What the low 24 bits of the first word say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LowField {
    /// Nothing.
    #[default]
    Empty,
    /// N.
    Nonce {
        /// 24 bits.
        nonce: u32,
        /// E: to be echoed.
        echo: bool,
    },
    /// V (RFC 9302 §5).
    MapVersion {
        /// Version of the source EID's mapping, 12 bits.
        source: u16,
        /// Version of the destination EID's mapping, 12 bits.
        destination: u16,
    },
}

/// The 8 octets between UDP and the inner packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DataHeader {
    /// Nonce or map-versions.
    pub low_field: LowField,
    /// 24 bits, with the I bit.
    pub instance_id: Option<InstanceId>,
    /// With the L bit; 8 bits if there is an instance ID.
    pub locator_status: Option<u32>,
}

impl DataHeader {
    /// Octets that the header takes.
    pub const LENGTH: usize = 8;

    /// Reads the header and leaves the inner packet.
    ///
    /// The R bit is ignored, N wins over V, and E without N means nothing (RFC 9300 §5.3).
    ///
    /// # Errors
    /// When cut short, or encrypted (KK, RFC 8061), which weir does not do.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let first = r.u32("data header flags")?;
        let second = r.u32("data header instance ID")?;
        if first & KEY != 0 {
            return Err(DecodeError::Invalid { field: "KK", value: u64::from((first & KEY) >> 24) });
        }
        let low_field = if first & NONCE != 0 {
            LowField::Nonce { nonce: first & LOW_24, echo: first & ECHO_NONCE != 0 }
        } else if first & MAP_VERSION != 0 {
            LowField::MapVersion { source: low_12(first >> 12), destination: low_12(first) }
        } else {
            LowField::Empty
        };
        let instance_id = (first & INSTANCE_ID != 0).then_some(InstanceId(second >> 8));
        let status_mask = if instance_id.is_some() { 0xff } else { u32::MAX };
        let locator_status = (first & LOCATOR_STATUS != 0).then_some(second & status_mask);
        Ok(Self { low_field, instance_id, locator_status })
    }

    /// The header as it is sent.
    ///
    /// # Errors
    /// When a value has more bits than its place.
    pub fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        let low = match self.low_field {
            LowField::Empty => 0,
            LowField::Nonce { nonce, echo } => {
                NONCE | bit(echo, ECHO_NONCE) | fits("data nonce", nonce, LOW_24)?
            }
            LowField::MapVersion { source, destination } => {
                let source = fits("source map-version", u32::from(source), LOW_12)?;
                MAP_VERSION | source << 12 | fits("dest map-version", u32::from(destination), LOW_12)?
            }
        };
        let flags =
            bit(self.locator_status.is_some(), LOCATOR_STATUS) | bit(self.instance_id.is_some(), INSTANCE_ID);
        let status = self.locator_status.unwrap_or(0);
        let second = match self.instance_id {
            Some(InstanceId(id)) => {
                fits("data instance ID", id, LOW_24)? << 8 | fits("locator-status-bits", status, 0xff)?
            }
            None => status,
        };
        w.u32(low | flags);
        w.u32(second);
        Ok(())
    }
}

fn low_12(word: u32) -> u16 {
    let [_, _, high, low] = (word & LOW_12).to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn fits(field: &'static str, value: u32, mask: u32) -> Result<u32, EncodeError> {
    if value > mask { Err(EncodeError::Invalid { field, value: u64::from(value) }) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(first: u32, second: u32) -> Result<DataHeader, DecodeError> {
        let bytes = (u64::from(first) << 32 | u64::from(second)).to_be_bytes();
        DataHeader::read(&mut Reader::new(&bytes))
    }

    #[test]
    fn nonce_wins_over_map_version_and_echo_needs_a_nonce() {
        let nonce = LowField::Nonce { nonce: 0x0012_3456, echo: false };
        assert_eq!(read(0x9012_3456, 0).unwrap().low_field, nonce);
        assert_eq!(read(0x2012_3456, 0).unwrap(), DataHeader::default());
        let version = LowField::MapVersion { source: 0x123, destination: 0x456 };
        assert_eq!(read(0x3012_3456, 0).unwrap().low_field, version);
    }

    #[test]
    fn fields_without_their_bit_are_ignored_and_so_is_r() {
        assert_eq!(read(0x04ff_ffff, 0xffff_ffff).unwrap(), DataHeader::default());
        let header = read(0x0800_0000, 0x0000_07ff).unwrap();
        assert_eq!((header.instance_id, header.locator_status), (Some(InstanceId(7)), None));
        let header = read(0x4800_0000, 0x0000_07ff).unwrap();
        assert_eq!((header.instance_id, header.locator_status), (Some(InstanceId(7)), Some(0xff)));
    }

    #[test]
    fn encrypted_packets_are_refused() {
        for kk in 1..4 {
            assert_eq!(read(kk << 24, 0), Err(DecodeError::Invalid { field: "KK", value: u64::from(kk) }));
        }
    }

    #[test]
    fn a_header_cut_short_is_refused() {
        let error = DecodeError::Truncated { field: "data header instance ID", needed: 4, available: 3 };
        assert_eq!(DataHeader::read(&mut Reader::new(&[0; 7])), Err(error));
    }

    #[test]
    fn values_with_too_many_bits_are_not_written() {
        let large = InstanceId(0x0100_0000);
        let nonce = LowField::Nonce { nonce: 0x0100_0000, echo: true };
        let version = LowField::MapVersion { source: 1, destination: 4096 };
        for header in [
            DataHeader { instance_id: Some(large), ..DataHeader::default() },
            DataHeader { low_field: nonce, ..DataHeader::default() },
            DataHeader { low_field: version, ..DataHeader::default() },
            DataHeader {
                instance_id: Some(InstanceId(1)),
                locator_status: Some(256),
                ..DataHeader::default()
            },
        ] {
            assert!(
                matches!(header.write(&mut Writer::new()), Err(EncodeError::Invalid { .. })),
                "{header:?}"
            );
        }
    }
}
