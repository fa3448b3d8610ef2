//! Frames that the data path hands up because their destination has no mapping.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_abi::INSTANCE_MAC;

const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// One address in its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Host {
    /// Instance ID.
    pub(super) instance_id: u32,
    /// The address.
    pub(super) address: IpAddr,
}

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    /// Destination EID.
    pub(super) destination: Host,
    /// It opens a TCP connection. Of other protocols one packet alone does not tell.
    pub(super) opens: bool,
}

/// Reads the headers; `None` if it is no frame that the ITR handed up.
pub(super) fn headers(frame: &[u8]) -> Option<Headers> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let instance: [u8; 4] = ethernet.get(6..12)?.strip_prefix(&INSTANCE_MAC)?.try_into().ok()?;
    let (address, protocol, transport) = match ethernet.get(12..14)? {
        [0x08, 0x00] => v4(packet)?,
        [0x86, 0xdd] => v6(packet)?,
        _ => return None,
    };
    const SYN_OF_SYN_ACK: (u8, u8) = (0x02, 0x12);
    let flags = transport.get(13).copied().unwrap_or(0);
    let opens = protocol == TCP && flags & SYN_OF_SYN_ACK.1 == SYN_OF_SYN_ACK.0;
    Some(Headers { destination: Host { instance_id: u32::from_be_bytes(instance), address }, opens })
}

fn v4(packet: &[u8]) -> Option<(IpAddr, u8, &[u8])> {
    let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let header = usize::from(packet[0] & 0x0f) * 4;
    let first = packet[6] & 0x1f == 0 && packet[7] == 0;
    let transport = if first { packet.get(header..).unwrap_or_default() } else { &[] };
    Some((IpAddr::V4(Ipv4Addr::from(destination)), packet[9], transport))
}

fn v6(packet: &[u8]) -> Option<(IpAddr, u8, &[u8])> {
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    Some((IpAddr::V6(Ipv6Addr::from(destination)), packet[6], packet.get(40..).unwrap_or_default()))
}

/// Addresses the frame to the device it is written back to; the stack ignores frames to others.
pub(super) fn address_to(frame: &mut [u8], mac: [u8; 6]) {
    if let Some(destination) = frame.first_chunk_mut() {
        *destination = mac;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCP segment to `address` in instance 7.
    pub(crate) fn frame(address: [u8; 4], flags: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 40];
        frame[6..8].copy_from_slice(&INSTANCE_MAC);
        frame[8..12].copy_from_slice(&7_u32.to_be_bytes());
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[23] = TCP;
        frame[30..34].copy_from_slice(&address);
        frame[47] = flags;
        frame
    }

    #[test]
    fn a_syn_opens_and_a_syn_ack_does_not() {
        let destination = Host { instance_id: 7, address: "10.100.0.1".parse().unwrap() };
        for (flags, opens) in [(0x02, true), (0xc2, true), (0x12, false), (0x10, false)] {
            let headers = headers(&frame([10, 100, 0, 1], flags)).unwrap();
            assert_eq!(headers, Headers { destination, opens });
        }
    }

    #[test]
    fn a_later_fragment_opens_nothing() {
        let mut later = frame([10, 100, 0, 1], 0x02);
        later[21] = 185;
        assert!(!headers(&later).unwrap().opens);
    }

    proptest! {
        #[test]
        fn no_octets_are_too_strange(mut octets in proptest::collection::vec(any::<u8>(), 0..80), ours in any::<bool>()) {
            if let (true, Some(mac)) = (ours, octets.get_mut(6..8)) {
                mac.copy_from_slice(&INSTANCE_MAC);
            }
            let _ = headers(&octets);
            address_to(&mut octets, [1; 6]);
        }
    }
}
