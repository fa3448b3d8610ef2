//! Encapsulated Control Message (RFC 9301 §5.8).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-+-+-+-+-----------------------------------------------+
//! |Type=8 |S|D|E|M|              Reserved                         |
//! +-------+-+-+-+-+-----------------------------------------------+
//! |  inner IPv4 or IPv6 header                                    |
//! +-------------------------------+-------------------------------+
//! |  inner UDP source port        |  destination port             |
//! +-------------------------------+-------------------------------+
//! |  length                       |  checksum, never zero         |
//! +-------------------------------+-------------------------------+
//! |  LISP control message ...                                     |
//! +---------------------------------------------------------------+
//! ```
//! No kernel checks the inner headers, so lengths and checksums are checked here.

use core::net::{IpAddr, SocketAddr};

use alloc::vec::Vec;
use codec::{DecodeError, EncodeError, Reader, Writer};

use super::message::{MessageType, bit};
use super::{DATA_PORT, EncapsulatedControlMessage};

const SECURITY: u32 = 0x0800_0000;
const DDT: u32 = 0x0400_0000;
const PROTOCOL_UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
/// MF and fragment offset: part of a datagram is no message.
const IPV4_FRAGMENT: u16 = 0x3fff;

impl EncapsulatedControlMessage {
    pub(super) fn read(word: u32, r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if word & SECURITY != 0 {
            return Err(DecodeError::Invalid { field: "ECM S bit", value: 1 });
        }
        let (source, destination, datagram) = match r.rest().first().map_or(0, |octet| octet >> 4) {
            4 => read_ipv4(r)?,
            6 => read_ipv6(r)?,
            other => {
                return Err(DecodeError::Invalid { field: "inner IP version", value: u64::from(other) });
            }
        };
        r.clone().finish("inner IP packet")?;
        let (source_port, destination_port, message) = read_udp(source, destination, datagram)?;
        Ok(Self {
            security: false,
            ddt: word & DDT != 0,
            inner_source: SocketAddr::new(source, source_port),
            inner_destination: SocketAddr::new(destination, destination_port),
            message: message.to_vec(),
        })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), EncodeError> {
        if self.security {
            return Err(EncodeError::Invalid { field: "ECM S bit", value: 1 });
        }
        w.u32(MessageType::Encapsulated.word() | bit(self.ddt, DDT));
        let (source, destination) = (self.inner_source.ip(), self.inner_destination.ip());
        let datagram = self.udp(source, destination)?;
        match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let mut header = Writer::new();
                header.bytes(&[0x45, 0]);
                header.length16(IPV4_HEADER + datagram.len(), "inner IPv4 length")?;
                header.bytes(&[0, 0, 0, 0, HOP_LIMIT, PROTOCOL_UDP, 0, 0]);
                header.ip(source);
                header.ip(destination);
                let mut header = header.into_vec();
                let checksum = !Checksum::default().add(&header).fold();
                header.splice(10..12, checksum.to_be_bytes());
                w.bytes(&header);
            }
            (IpAddr::V6(_), IpAddr::V6(_)) => {
                w.u32(0x6000_0000);
                w.length16(datagram.len(), "inner IPv6 length")?;
                w.bytes(&[PROTOCOL_UDP, HOP_LIMIT]);
                w.ip(source);
                w.ip(destination);
            }
            _ => return Err(EncodeError::Invalid { field: "inner address families", value: 0 }),
        }
        w.bytes(&datagram);
        Ok(())
    }

    fn udp(&self, source: IpAddr, destination: IpAddr) -> Result<Vec<u8>, EncodeError> {
        let mut w = Writer::new();
        for port in [self.inner_source.port(), self.inner_destination.port()] {
            if port == DATA_PORT {
                return Err(EncodeError::Invalid { field: "inner UDP port", value: u64::from(port) });
            }
            w.u16(port);
        }
        w.length16(UDP_HEADER + self.message.len(), "inner UDP length")?;
        w.u16(0);
        w.bytes(&self.message);
        let mut datagram = w.into_vec();
        let checksum = match !udp_sum(source, destination, &datagram) {
            // Zero would mean "no checksum"; its complement says the same sum (RFC 768).
            0 => 0xffff_u16,
            sum => sum,
        };
        datagram.splice(6..8, checksum.to_be_bytes());
        Ok(datagram)
    }
}

type Addressed<'a> = (IpAddr, IpAddr, &'a [u8]);

fn read_ipv4<'a>(r: &mut Reader<'a>) -> Result<Addressed<'a>, DecodeError> {
    let packet = r.rest();
    let [version_ihl, _] = r.array("inner IPv4 header")?;
    let header_length = usize::from(version_ihl & 0xf) * 4;
    if header_length < IPV4_HEADER {
        return Err(DecodeError::Invalid { field: "inner IPv4 IHL", value: header_length as u64 });
    }
    let total_length = r.u16("inner IPv4 length")?;
    let header = Reader::new(packet).bytes(header_length, "inner IPv4 header")?;
    let _identification = r.u16("inner IPv4 identification")?;
    let fragment = r.u16("inner IPv4 fragment offset")?;
    let [_, protocol] = r.array("inner IPv4 protocol")?;
    let _checksum = r.u16("inner IPv4 checksum")?;
    let source = r.ipv4("inner IPv4 source")?;
    let destination = r.ipv4("inner IPv4 destination")?;
    expect("inner IPv4 fragment offset", fragment & IPV4_FRAGMENT, 0)?;
    expect("inner IPv4 protocol", protocol.into(), PROTOCOL_UDP.into())?;
    expect("inner IPv4 checksum", Checksum::default().add(header).fold(), 0xffff)?;
    r.bytes(header_length - IPV4_HEADER, "inner IPv4 options")?;
    let Some(payload_length) = usize::from(total_length).checked_sub(header_length) else {
        return Err(DecodeError::Invalid { field: "inner IPv4 length", value: total_length.into() });
    };
    let payload = r.bytes(payload_length, "inner IPv4 payload")?;
    Ok((source.into(), destination.into(), payload))
}

/// Extension headers are refused: no deployed sender has any here.
fn read_ipv6<'a>(r: &mut Reader<'a>) -> Result<Addressed<'a>, DecodeError> {
    let _version_class_label = r.u32("inner IPv6 header")?;
    let payload_length = r.u16("inner IPv6 length")?;
    let [next_header, _] = r.array("inner IPv6 next header")?;
    let source = r.ipv6("inner IPv6 source")?;
    let destination = r.ipv6("inner IPv6 destination")?;
    expect("inner IPv6 next header", next_header.into(), PROTOCOL_UDP.into())?;
    let payload = r.bytes(usize::from(payload_length), "inner IPv6 payload")?;
    Ok((source.into(), destination.into(), payload))
}

fn read_udp(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> Result<(u16, u16, &[u8]), DecodeError> {
    let mut r = Reader::new(datagram);
    let source_port = r.u16("inner UDP source port")?;
    let destination_port = r.u16("inner UDP destination port")?;
    let length = r.u16("inner UDP length")?;
    let checksum = r.u16("inner UDP checksum")?;
    if usize::from(length) != datagram.len() {
        return Err(DecodeError::Invalid { field: "inner UDP length", value: length.into() });
    }
    if checksum == 0 || udp_sum(source, destination, datagram) != 0xffff {
        return Err(DecodeError::Invalid { field: "inner UDP checksum", value: checksum.into() });
    }
    for port in [source_port, destination_port] {
        if port == DATA_PORT {
            return Err(DecodeError::Invalid { field: "inner UDP port", value: port.into() });
        }
    }
    Ok((source_port, destination_port, r.rest()))
}

fn expect(field: &'static str, value: u16, wanted: u16) -> Result<(), DecodeError> {
    if value == wanted { Ok(()) } else { Err(DecodeError::Invalid { field, value: value.into() }) }
}

/// One's complement sum of the pseudo header and the datagram (RFC 768, RFC 8200 §8.1).
fn udp_sum(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> u16 {
    let mut pseudo = Writer::new();
    pseudo.ip(source);
    pseudo.ip(destination);
    pseudo.u8(0);
    pseudo.u8(PROTOCOL_UDP);
    // The length of the UDP header: a datagram that exceeds 16 bits was refused or will be.
    pseudo.u16(u16::try_from(datagram.len()).unwrap_or(u16::MAX));
    Checksum::default().add(&pseudo.into_vec()).add(datagram).fold()
}

/// Internet checksum (RFC 1071); every part but the last has an even length.
#[derive(Clone, Copy, Default)]
struct Checksum(u64);

impl Checksum {
    fn add(self, bytes: &[u8]) -> Self {
        let words = bytes.chunks(2).map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [last] => u64::from(last) << 8,
            _ => 0,
        });
        Self(self.0 + words.sum::<u64>())
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }
}
