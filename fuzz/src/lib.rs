//! What the targets share.

use lisp::wire::{EidRecord, Message};

/// Brings the locators into the order in which they are sent, the one thing that encoding changes.
pub fn sort_locators(message: &mut Message) {
    let records: &mut [EidRecord] = match message {
        Message::MapRequest(m) => m.map_reply.as_mut_slice(),
        Message::MapReply(m) => &mut m.records,
        Message::MapRegister(m) => &mut m.records,
        Message::MapNotify(m) | Message::MapNotifyAck(m) => &mut m.records,
        _ => &mut [],
    };
    records.iter_mut().for_each(EidRecord::sort_locators);
}

/// Makes lengths and checksums of an ECM right, as far as it has the headers for it.
pub fn repair_ecm(packet: &mut [u8]) {
    let Some(inner) = packet.get_mut(4..) else { return };
    match inner.first().map(|octet| octet >> 4) {
        Some(4) => repair_ipv4(inner),
        Some(6) => repair_ipv6(inner),
        _ => {}
    }
}

/// A header shorter than a header can be gets its checksum as well: the decoder is to refuse it for its length.
fn repair_ipv4(inner: &mut [u8]) {
    let header_length = usize::from(inner[0] & 0xf) * 4;
    if header_length < 12 || inner.len() < header_length {
        return;
    }
    let Ok(length) = u16::try_from(inner.len()) else { return };
    inner[2..4].copy_from_slice(&length.to_be_bytes());
    inner[10..12].fill(0);
    let checksum = !fold(sum(&inner[..header_length]));
    inner[10..12].copy_from_slice(&checksum.to_be_bytes());
    if header_length >= 20 && inner.len() >= header_length + 8 {
        let addresses = sum(&inner[12..20]);
        repair_udp(&mut inner[header_length..], addresses);
    }
}

fn repair_ipv6(inner: &mut [u8]) {
    let Some(Ok(length)) = inner.len().checked_sub(40).map(u16::try_from) else { return };
    if length < 8 {
        return;
    }
    inner[4..6].copy_from_slice(&length.to_be_bytes());
    let addresses = sum(&inner[8..40]);
    repair_udp(&mut inner[40..], addresses);
}

fn repair_udp(datagram: &mut [u8], addresses: u64) {
    let Ok(length) = u16::try_from(datagram.len()) else { return };
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    datagram[6..8].fill(0);
    let checksum = match !fold(addresses + 17 + u64::from(length) + sum(datagram)) {
        0 => 0xffff_u16,
        checksum => checksum,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// Written apart from the decoder's own, which it checks.
fn sum(octets: &[u8]) -> u64 {
    octets.iter().enumerate().map(|(i, &octet)| u64::from(octet) << if i % 2 == 0 { 8 } else { 0 }).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
