//! The network header.

use std::net::IpAddr;

use super::{octets, sum};

/// Where a fragment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// In octets, a multiple of 8.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

/// An IPv6 extension header of 8 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extension(pub(crate) u8);

/// A network header.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// TOS or traffic class.
    pub(crate) tos: u8,
    /// IPv4 options, a multiple of 4 octets.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers, in front of a Fragment header.
    pub(crate) extensions: Vec<Extension>,
    /// A Fragment header over IPv6; offset and flag over IPv4.
    pub(crate) fragment: Option<Fragment>,
}

impl Ip {
    pub(crate) fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            ttl: 57,
            tos: 0x2e << 2,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
        }
    }

    /// Puts the checksum with the pseudo header into the transport header.
    pub(crate) fn checksum(&self, protocol: u8, transport: &mut [u8], at: usize) {
        transport[at..at + 2].fill(0);
        let length = (transport.len() as u32).to_be_bytes();
        let pseudo = [octets(self.source), octets(self.destination)].concat();
        let checksum = match !sum(&[&pseudo, &length, &[0, 0, 0, protocol], transport]) {
            0 => 0xffff,
            checksum => checksum,
        };
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// The packet around a payload.
    pub(crate) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self.source {
            IpAddr::V4(_) => self.packet_v4(protocol, payload),
            IpAddr::V6(_) => self.packet_v6(protocol, payload),
        }
    }

    fn packet_v4(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let fragment = self.fragment.map_or(0, |f| (u16::from(f.more) << 13) | (f.offset / 8));
        let mut packet = vec![0x40 | (header / 4) as u8, self.tos];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.ttl, protocol, 0, 0]);
        packet.extend(octets(self.source));
        packet.extend(octets(self.destination));
        packet.extend(&self.options);
        packet.extend(payload);
        fix_ipv4(&mut packet);
        packet
    }

    fn packet_v6(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut chain: Vec<u8> = self.extensions.iter().map(|extension| extension.0).collect();
        chain.extend(self.fragment.map(|_| 44));
        chain.push(protocol);
        let length = 8 * (chain.len() - 1) + payload.len();
        let mut packet = vec![0x60 | (self.tos >> 4), (self.tos << 4) | 5, 0x43, 0x21];
        packet.extend((length as u16).to_be_bytes());
        packet.extend([chain[0], self.ttl]);
        packet.extend(octets(self.source));
        packet.extend(octets(self.destination));
        for next in &chain[1..=self.extensions.len()] {
            // PadN over the rest.
            packet.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
        }
        if let Some(fragment) = self.fragment {
            packet.extend([protocol, 0]);
            packet.extend((fragment.offset | u16::from(fragment.more)).to_be_bytes());
            packet.extend([0, 0, 0x12, 0x34]);
        }
        packet.extend(payload);
        packet
    }
}

/// Puts the right checksum into the IPv4 header at the start.
pub(crate) fn fix_ipv4(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let checksum = !sum(&[&packet[..header]]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}
