//! ICMP and ICMPv6.

use std::net::IpAddr;

use super::{Ip, sum};
use crate::model::{ICMP, ICMPV6};

/// Type and code, the second word, what follows; with its checksum, in an IP packet.
pub(crate) fn message(ip: &Ip, kind: u8, code: u8, word: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word);
    message.extend(body);
    match ip.source {
        IpAddr::V4(_) => {
            let checksum = !sum(&[&message]);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
            ip.packet(ICMP, &message)
        }
        IpAddr::V6(_) => {
            ip.checksum(ICMPV6, &mut message, 2);
            ip.packet(ICMPV6, &message)
        }
    }
}

pub(crate) fn echo_request(ip: &Ip) -> Vec<u8> {
    let kind = if ip.source.is_ipv4() { 8 } else { 128 };
    message(ip, kind, 0, [0x12, 0x34, 0, 1], b"abcdefgh")
}

/// What a router on the way says about a packet that the VIP sent.
pub(crate) fn error(kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let v6 = quote[0] >> 4 == 6;
    let router: IpAddr = if v6 { "2001:db8:f::1" } else { "203.0.113.1" }.parse().unwrap();
    message(&Ip::new(router, super::vip(v6)), kind, code, [0, 0, 5, 0], quote)
}

/// Packet Too Big: Fragmentation Needed over IPv4.
pub(crate) fn too_big(quote: &[u8]) -> Vec<u8> {
    if quote[0] >> 4 == 6 { error(2, 0, quote) } else { error(3, 4, quote) }
}
