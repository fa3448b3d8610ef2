//! Just enough of pcap and pcapng, Ethernet, IP and UDP to get at the payloads.

/// A UDP datagram of a capture.
pub(crate) struct Datagram {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: Vec<u8>,
}

const PCAP: u32 = 0xa1b2_c3d4;
const PCAPNG_SECTION: u32 = 0x0a0d_0d0a;
const PCAPNG_INTERFACE: u32 = 1;
const PCAPNG_PACKET: u32 = 6;
const LINK_ETHERNET: u32 = 1;
const LINK_RAW_IP: u32 = 101;

/// The UDP datagrams of a little-endian capture file, those inside ICMP errors not counted.
pub(crate) fn datagrams(file: &[u8]) -> Vec<Datagram> {
    let frames = match u32_at(file, 0) {
        PCAP => pcap_frames(file),
        PCAPNG_SECTION => pcapng_frames(file),
        magic => panic!("capture file with magic {magic:#x}"),
    };
    frames.into_iter().filter_map(|(link, frame)| udp(ip_packet(link, frame)?)).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn pcap_frames(file: &[u8]) -> Vec<(u32, &[u8])> {
    let link = u32_at(file, 20);
    let mut frames = Vec::new();
    let mut rest = &file[24..];
    while rest.len() >= 16 {
        let (length, original) = (u32_at(rest, 8) as usize, u32_at(rest, 12) as usize);
        assert_eq!(length, original, "captured whole");
        frames.push((link, &rest[16..16 + length]));
        rest = &rest[16 + length..];
    }
    frames
}

fn pcapng_frames(file: &[u8]) -> Vec<(u32, &[u8])> {
    let mut links = Vec::new();
    let mut frames = Vec::new();
    let mut rest = file;
    while rest.len() >= 12 {
        let length = u32_at(rest, 4) as usize;
        match u32_at(rest, 0) {
            PCAPNG_INTERFACE => links.push(u32_at(rest, 8) & 0xffff),
            PCAPNG_PACKET => {
                let interface = u32_at(rest, 8) as usize;
                let captured = u32_at(rest, 20) as usize;
                frames.push((links[interface], &rest[28..28 + captured]));
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    frames
}

fn ip_packet(link: u32, frame: &[u8]) -> Option<&[u8]> {
    match link {
        LINK_RAW_IP => Some(frame),
        LINK_ETHERNET if matches!(be16_at(frame, 12), 0x0800 | 0x86dd) => Some(&frame[14..]),
        LINK_ETHERNET => None,
        other => panic!("link type {other}"),
    }
}

fn udp(packet: &[u8]) -> Option<Datagram> {
    let (protocol, header, length) = match packet[0] >> 4 {
        4 => (packet[9], usize::from(packet[0] & 0xf) * 4, usize::from(be16_at(packet, 2))),
        _ => (packet[6], 40, 40 + usize::from(be16_at(packet, 4))),
    };
    let datagram = &packet[header..length];
    (protocol == 17).then(|| Datagram {
        source_port: be16_at(datagram, 0),
        destination_port: be16_at(datagram, 2),
        payload: datagram[8..usize::from(be16_at(datagram, 4))].to_vec(),
    })
}
