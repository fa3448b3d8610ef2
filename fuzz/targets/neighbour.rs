//! ARP and Neighbour Discovery in Ethernet frames.
#![no_main]

use codec::neighbour::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let repaired = repair_icmpv6(bytes);
    for bytes in [bytes, &repaired] {
        let Ok(frame) = Frame::decode(bytes) else { continue };
        let _ = frame.claim();
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }
});

/// The frame with the checksum made right, behind no tag, one or two, so that noise gets past it.
fn repair_icmpv6(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    let mut at = 12;
    while at < 20 && matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        at += 4;
    }
    let Some(packet) = frame.get_mut(at + 2..) else { return frame };
    let Some(&[high, low]) = packet.get(4..6) else { return frame };
    let end = 40 + usize::from(u16::from_be_bytes([high, low]));
    if end < 44 || packet.len() < end {
        return frame;
    }
    packet[42..44].fill(0);
    let word = |(i, &octet): (usize, &u8)| u64::from(octet) << if i % 2 == 0 { 8 } else { 0 };
    let mut sum = packet[8..end].iter().enumerate().map(word).sum::<u64>() + (end as u64 - 40) + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[42..44].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}
