//! Rule 3: what is well-formed, and what a well-formed packet says.

use std::net::Ipv4Addr;

use bpf_abi::BalancerReason;

use super::{ICMP, ICMPV6, SCTP, TCP, UDP, be16};

/// What may be read behind the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Whole,
    Fragment,
    /// IPv6 with an extension header other than Fragment.
    Extension,
}

/// A packet within its own length.
pub(super) struct Packet<'a> {
    pub(super) v6: bool,
    pub(super) kind: Kind,
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
    pub(super) protocol: u8,
    /// Octets of the network header.
    pub(super) header: usize,
    /// What is behind it, up to the packet's end.
    payload: &'a [u8],
}

/// The packet that an ICMP error is about.
pub(super) struct Quote {
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
    pub(super) protocol: u8,
    pub(super) source_port: [u8; 2],
    pub(super) destination_port: [u8; 2],
}

const FRAGMENT: u8 = 44;
const EXTENSIONS: [u8; 5] = [0, 43, 51, 60, 135];

fn mapped(bytes: &[u8]) -> [u8; 16] {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).to_ipv6_mapped().octets()
}

fn sixteen(bytes: &[u8]) -> [u8; 16] {
    bytes[..16].try_into().unwrap()
}

impl<'a> Packet<'a> {
    /// `bytes` from the network header to where the packet has to end at the latest.
    pub(super) fn parse(v6: bool, bytes: &'a [u8]) -> Result<Self, BalancerReason> {
        let packet = if v6 { Self::parse_v6(bytes) } else { Self::parse_v4(bytes) };
        packet.filter(Self::has_transport).ok_or(BalancerReason::PassMalformed)
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < 20 || bytes[0] >> 4 != 4 {
            return None;
        }
        let header = usize::from(bytes[0] & 15) * 4;
        let length = usize::from(be16(bytes, 2));
        if header < 20 || length < header || length > bytes.len() {
            return None;
        }
        let fragment = be16(bytes, 6) & 0x3fff != 0;
        Some(Self {
            v6: false,
            kind: if fragment { Kind::Fragment } else { Kind::Whole },
            source: mapped(&bytes[12..]),
            destination: mapped(&bytes[16..]),
            protocol: bytes[9],
            header,
            payload: &bytes[header..length],
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < 40 || bytes[0] >> 4 != 6 {
            return None;
        }
        let payload = bytes[40..].get(..usize::from(be16(bytes, 4)))?;
        let kind = match bytes[6] {
            FRAGMENT => Kind::Fragment,
            next if EXTENSIONS.contains(&next) => Kind::Extension,
            _ => Kind::Whole,
        };
        if kind == Kind::Fragment && payload.len() < 8 {
            return None;
        }
        Some(Self {
            v6: true,
            kind,
            source: sixteen(&bytes[8..]),
            destination: sixteen(&bytes[24..]),
            protocol: if kind == Kind::Fragment { payload[0] } else { bytes[6] },
            header: 40,
            payload,
        })
    }

    fn has_transport(&self) -> bool {
        let required = match self.protocol {
            _ if self.kind != Kind::Whole => 0,
            TCP => 20,
            UDP => 8,
            SCTP => 12,
            _ if self.is_icmp() => 8,
            _ => 0,
        };
        self.payload.len() >= required
    }

    /// ICMP over IPv4, ICMPv6 over IPv6.
    pub(super) fn is_icmp(&self) -> bool {
        self.protocol == if self.v6 { ICMPV6 } else { ICMP }
    }

    pub(super) fn is_echo_request(&self) -> bool {
        self.payload[0] == if self.v6 { 128 } else { 8 }
    }

    /// Source and destination port.
    pub(super) fn ports(&self) -> [[u8; 2]; 2] {
        ports(self.payload)
    }

    /// Begins a connection (rule 8).
    pub(super) fn is_first(&self) -> bool {
        match self.protocol {
            TCP => self.payload[13] & 0x12 == 0x02,
            SCTP => self.payload[4..8] == [0; 4],
            _ => false,
        }
    }

    /// The quoted packet, if this is an error and the quote has ports.
    pub(super) fn quote(&self) -> Option<Quote> {
        let errors: &[u8] = if self.v6 { &[1, 2, 3, 4] } else { &[3, 11, 12] };
        if !errors.contains(&self.payload[0]) {
            return None;
        }
        let quote = if self.v6 { quote_v6(&self.payload[8..]) } else { quote_v4(&self.payload[8..]) };
        quote.filter(|quote| [TCP, UDP, SCTP].contains(&quote.protocol))
    }
}

fn ports(transport: &[u8]) -> [[u8; 2]; 2] {
    [[transport[0], transport[1]], [transport[2], transport[3]]]
}

fn quote_v4(bytes: &[u8]) -> Option<Quote> {
    if bytes.len() < 20 || bytes[0] >> 4 != 4 || bytes[0] & 15 < 5 || be16(bytes, 6) & 0x1fff != 0 {
        return None;
    }
    let transport = bytes.get(usize::from(bytes[0] & 15) * 4..)?.get(..4)?;
    let [source_port, destination_port] = ports(transport);
    Some(Quote {
        source: mapped(&bytes[12..]),
        destination: mapped(&bytes[16..]),
        protocol: bytes[9],
        source_port,
        destination_port,
    })
}

fn quote_v6(bytes: &[u8]) -> Option<Quote> {
    if bytes.len() < 44 || bytes[0] >> 4 != 6 {
        return None;
    }
    let [source_port, destination_port] = ports(&bytes[40..]);
    Some(Quote {
        source: sixteen(&bytes[8..]),
        destination: sixteen(&bytes[24..]),
        protocol: bytes[6],
        source_port,
        destination_port,
    })
}
