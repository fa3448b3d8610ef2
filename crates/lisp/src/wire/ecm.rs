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
            (IpAddr::V4(_), IpAddr::V4(_)) => w.bytes(&ipv4_header(source, destination, datagram.len())?),
            (IpAddr::V6(_), IpAddr::V6(_)) => w.bytes(&ipv6_header(source, destination, datagram.len())?),
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

fn ipv4_header(source: IpAddr, destination: IpAddr, payload: usize) -> Result<Vec<u8>, EncodeError> {
    let mut w = Writer::new();
    w.bytes(&[0x45, 0]);
    w.length16(IPV4_HEADER + payload, "inner IPv4 length")?;
    w.bytes(&[0, 0, 0, 0, HOP_LIMIT, PROTOCOL_UDP, 0, 0]);
    w.ip(source);
    w.ip(destination);
    let mut header = w.into_vec();
    let checksum = !Checksum::default().add(&header).fold();
    header.splice(10..12, checksum.to_be_bytes());
    Ok(header)
}

fn ipv6_header(source: IpAddr, destination: IpAddr, payload: usize) -> Result<Vec<u8>, EncodeError> {
    let mut w = Writer::new();
    w.u32(0x6000_0000);
    w.length16(payload, "inner IPv6 length")?;
    w.bytes(&[PROTOCOL_UDP, HOP_LIMIT]);
    w.ip(source);
    w.ip(destination);
    Ok(w.into_vec())
}

/// Source, destination and the UDP datagram between them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Message, octets};

    const IPV4: &str = "80000000 4500003c 00000000 4011669c 0a090005 0a010007 ee4810f6 00287ab0
        10000001 1122334455667788 0001 0a090005 0001 cb007109 0020 0001 0a010007";

    fn ecm(source: &str, destination: &str, message: &[u8]) -> EncapsulatedControlMessage {
        EncapsulatedControlMessage {
            security: false,
            ddt: false,
            inner_source: source.parse().unwrap(),
            inner_destination: destination.parse().unwrap(),
            message: message.to_vec(),
        }
    }

    /// The vector with octets replaced and the IPv4 header checksum made right again.
    fn changed(at: usize, with: &[u8]) -> Vec<u8> {
        let mut bytes = octets(IPV4);
        bytes.splice(at..at + with.len(), with.iter().copied());
        bytes.splice(14..16, [0, 0]);
        let header_length = usize::from(bytes[4] & 0xf) * 4;
        let checksum = !Checksum::default().add(&bytes[4..4 + header_length]).fold();
        bytes.splice(14..16, checksum.to_be_bytes());
        bytes
    }

    fn invalid(field: &'static str, value: u64) -> Result<Message, DecodeError> {
        Err(DecodeError::Invalid { field, value })
    }

    #[test]
    fn headers_that_carry_no_whole_udp_datagram_are_refused() {
        assert!(Message::decode(&octets(IPV4)).is_ok());
        for (at, with, field, value) in [
            (0, [0x88, 0].as_slice(), "ECM S bit", 1),
            (4, &[0x55], "inner IP version", 5),
            (4, &[0x44], "inner IPv4 IHL", 16),
            (6, &[0x00, 0x13], "inner IPv4 length", 0x13),
            (10, &[0x20, 0x00], "inner IPv4 fragment offset", 0x2000),
            (10, &[0x00, 0x01], "inner IPv4 fragment offset", 1),
            (13, &[6], "inner IPv4 protocol", 6),
            (28, &[0x00, 0x29], "inner UDP length", 0x29),
            (28, &[0x00, 0x07], "inner UDP length", 7),
            (30, &[0, 0], "inner UDP checksum", 0),
            (30, &[0x7a, 0xb1], "inner UDP checksum", 0x7ab1),
            (40, &[0xff], "inner UDP checksum", 0x7ab0),
        ] {
            assert_eq!(Message::decode(&changed(at, with)), invalid(field, value), "{at} {with:02x?}");
        }
    }

    #[test]
    fn dont_fragment_is_no_fragment() {
        assert!(Message::decode(&changed(10, &[0x40, 0x00])).is_ok());
    }

    #[test]
    fn a_wrong_header_checksum_is_refused() {
        let mut bytes = octets(IPV4);
        bytes[12] = 0x3f;
        assert!(matches!(
            Message::decode(&bytes),
            Err(DecodeError::Invalid { field: "inner IPv4 checksum", .. })
        ));
    }

    #[test]
    fn lengths_that_disagree_with_the_message_are_refused() {
        let mut longer = octets(IPV4);
        longer.push(0);
        let trailing = DecodeError::Trailing { field: "inner IP packet", count: 1 };
        assert_eq!(Message::decode(&longer), Err(trailing));
        let bytes = octets(IPV4);
        (4..bytes.len()).for_each(|length| assert!(Message::decode(&bytes[..length]).is_err(), "{length}"));
    }

    #[test]
    fn ipv4_options_are_skipped() {
        let mut bytes = octets(IPV4);
        bytes.splice(24..24, [1, 1, 1, 0]);
        bytes[4] = 0x46;
        bytes[7] += 4;
        bytes.splice(14..16, [0, 0]);
        let checksum = !Checksum::default().add(&bytes[4..28]).fold();
        bytes.splice(14..16, checksum.to_be_bytes());
        assert_eq!(Message::decode(&bytes), Message::decode(&octets(IPV4)));
    }

    #[test]
    fn odd_lengths_and_ipv6_go_both_ways() {
        for message in [[].as_slice(), &[1], &[1, 2], &[1, 2, 3]] {
            for (source, destination) in
                [("10.9.0.5:61000", "10.1.0.7:4342"), ("[2001:db8::5]:61000", "[2001:db8:1::7]:4342")]
            {
                let sent = Message::Encapsulated(ecm(source, destination, message));
                assert_eq!(Message::decode(&sent.encode().unwrap()), Ok(sent));
            }
        }
    }

    #[test]
    fn ipv6_headers_are_checked_as_well() {
        let sent = ecm("[2001:db8::5]:61000", "[2001:db8:1::7]:4342", &[1, 2, 3]);
        let bytes = Message::Encapsulated(sent).encode().unwrap();
        let mut extension = bytes.clone();
        extension[10] = 0;
        assert_eq!(Message::decode(&extension), invalid("inner IPv6 next header", 0));
        let mut long = bytes.clone();
        long[9] += 1;
        let truncated = DecodeError::Truncated { field: "inner IPv6 payload", needed: 12, available: 11 };
        assert_eq!(Message::decode(&long), Err(truncated));
        let mut damaged = bytes;
        damaged[30] ^= 1;
        assert!(matches!(
            Message::decode(&damaged),
            Err(DecodeError::Invalid { field: "inner UDP checksum", .. })
        ));
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_all_ones() {
        let message = (0..=u16::MAX)
            .map(|n| ecm("10.9.0.5:61000", "10.1.0.7:4342", &n.to_be_bytes()))
            .find(|m| m.udp(m.inner_source.ip(), m.inner_destination.ip()).unwrap()[6..8] == [0xff, 0xff])
            .unwrap();
        let sent = Message::Encapsulated(message);
        assert_eq!(Message::decode(&sent.encode().unwrap()), Ok(sent));
    }

    #[test]
    fn what_no_receiver_takes_is_not_sent() {
        let security =
            EncapsulatedControlMessage { security: true, ..ecm("10.9.0.5:61000", "10.1.0.7:4342", &[]) };
        for (message, field, value) in [
            (security, "ECM S bit", 1),
            (ecm("10.9.0.5:4341", "10.1.0.7:4342", &[]), "inner UDP port", 4341),
            (ecm("10.9.0.5:4342", "10.1.0.7:4341", &[]), "inner UDP port", 4341),
            (ecm("10.9.0.5:4342", "[2001:db8::7]:4342", &[]), "inner address families", 0),
        ] {
            assert_eq!(Message::Encapsulated(message).encode(), Err(EncodeError::Invalid { field, value }));
        }
        let huge = ecm("10.9.0.5:4342", "10.1.0.7:4342", &alloc::vec![0; 65_516]);
        let too_large = EncodeError::TooLarge { field: "inner IPv4 length", value: 65_544, limit: 0xffff };
        assert_eq!(Message::Encapsulated(huge).encode(), Err(too_large));
    }
}
