//! The frames of the benchmark: sizes, mix, headers; addresses of RFC 2544's range, 198.18.0.0/15.

use std::fmt;

use bpf_abi::tester::{HEADERS, MIX, TAGGED, TesterValue, UNTAGGED};
use serde::{Deserialize, Serialize};

/// Octets of Ethernet's frame check sequence: counted in every size, never in a buffer.
pub(super) const FCS: u16 = 4;
/// Preamble and gap between frames, in octets: what a link carries besides frames.
pub(super) const GAP: u16 = 20;
/// First address of the clients, 198.18.0.1.
pub(super) const CLIENTS: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// First VIP, 198.19.0.1.
pub(super) const VIPS: u32 = u32::from_be_bytes([198, 19, 0, 1]);
/// Destination port of every frame.
pub(super) const PORT: u16 = 80;
/// VLAN id with which tagged frames arrive.
pub(super) const VID: u16 = 100;
/// The shortest frame of Ethernet, without check sequence.
const SHORTEST: u16 = 60;
const MIX_LENGTH: u32 = 12;
const _: () = assert!(SHORTEST as usize == HEADERS && MIX_LENGTH as usize == MIX);
/// Packets of the mix in octets, so that 7 are of 40, 4 of 576 and 1 of 1500.
const IMIX: [u16; MIX] = [40, 576, 40, 40, 576, 40, 40, 576, 40, 40, 576, 1500];

/// Length of the frames of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Size {
    /// Octets of every frame, a tag and the check sequence included; 64 to 1518.
    Octets(u16),
    /// Packets of 40, 576 and 1500 octets, 7 to 4 to 1.
    Imix,
}

/// Protocol of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// SYNs.
    Tcp,
}

/// All that makes one stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) size: Size,
    pub(super) protocol: Protocol,
    /// With an 802.1Q tag, or without.
    pub(super) tagged: bool,
    /// Flows: a power of two.
    pub(super) flows: u32,
    /// VIPs that they go to.
    pub(super) vips: u32,
    /// Destination and source.
    pub(super) macs: [[u8; 6]; 2],
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Octets(octets) => write!(f, "{octets}"),
            Self::Imix => f.write_str("IMIX"),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "IMIX" {
            return Ok(Self::Imix);
        }
        let octets = text.parse().ok().filter(|octets| (64..=1518).contains(octets));
        octets.map(Self::Octets).ok_or_else(|| format!("{text:?} is neither IMIX nor 64 to 1518"))
    }
}

impl Protocol {
    /// As tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

impl Stream {
    /// What the kernel's generator is told.
    pub(super) fn value(&self) -> TesterValue {
        let (octets, l4) = (self.headers(), self.network() + 20);
        let mut headers = [0; 8];
        for (word, octets) in headers.iter_mut().zip(octets.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*octets);
        }
        let transport = if self.protocol == Protocol::Udp { 8 } else { 20 };
        let packets = self.packets();
        TesterValue {
            headers,
            lengths: packets.map(|packet| self.frame_of(packet)),
            packets,
            flows: self.flows,
            vips: self.vips,
            sources: CLIENTS,
            destinations: VIPS,
            protocol: self.protocol.number().into(),
            network_sum: sum(&octets[self.network()..l4]),
            transport_sum: sum(&octets[l4..l4 + transport]) + u32::from(self.protocol.number()),
            pad: 0,
        }
    }

    /// The longest frame, without check sequence.
    pub(super) fn longest(&self) -> usize {
        self.packets().iter().map(|packet| usize::from(self.frame_of(*packet))).max().unwrap_or(HEADERS)
    }

    /// The frame of this number as the generator sends it.
    pub(super) fn frame(&self, number: u32) -> Vec<u8> {
        let (value, place) = (self.value(), number % MIX_LENGTH);
        let mut headers = self.headers().first_chunk::<HEADERS>().copied().unwrap_or([0; HEADERS]);
        match self.tagged {
            true => value.write::<TAGGED>(number, place, &mut headers),
            false => value.write::<UNTAGGED>(number, place, &mut headers),
        }
        let mut frame = headers.to_vec();
        frame.resize(value.length(place).into(), 0);
        frame
    }

    /// Offset of the IPv4 header.
    pub(super) fn network(&self) -> usize {
        if self.tagged { TAGGED } else { UNTAGGED }
    }

    fn packets(&self) -> [u16; MIX] {
        match self.size {
            // Offsets are below 20.
            Size::Octets(octets) => [octets - FCS - u16::try_from(self.network()).unwrap_or_default(); MIX],
            Size::Imix => IMIX,
        }
    }

    /// Octets of a packet's frame, without check sequence: at least Ethernet's least.
    fn frame_of(&self, packet: u16) -> u16 {
        (packet + u16::try_from(self.network()).unwrap_or_default()).max(SHORTEST)
    }

    /// What is the same in all frames.
    fn headers(&self) -> [u8; 64] {
        let mut headers = [0; 64];
        headers[..6].copy_from_slice(&self.macs[0]);
        headers[6..12].copy_from_slice(&self.macs[1]);
        if self.tagged {
            headers[12..14].copy_from_slice(&[0x81, 0x00]);
            headers[14..16].copy_from_slice(&VID.to_be_bytes());
        }
        let (l3, l4) = (self.network(), self.network() + 20);
        headers[l3 - 2..l3].copy_from_slice(&[0x08, 0x00]);
        headers[l3] = 0x45;
        // Don't fragment.
        headers[l3 + 6] = 0x40;
        headers[l3 + 8..l3 + 10].copy_from_slice(&[64, self.protocol.number()]);
        headers[l4 + 2..l4 + 4].copy_from_slice(&PORT.to_be_bytes());
        if self.protocol == Protocol::Tcp {
            // Sequence number, header length, SYN, window.
            headers[l4 + 4..l4 + 8].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
            headers[l4 + 12..l4 + 16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        }
        headers
    }
}

fn sum(octets: &[u8]) -> u32 {
    octets.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aya::programs::Program;
    use dataplane::object::{load_bench, load_program};

    use super::*;

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]];

    fn streams() -> Vec<Stream> {
        let sizes = [64, 65, 128, 1510, 1518].map(Size::Octets).into_iter().chain([Size::Imix]);
        let kinds =
            [(Protocol::Udp, false), (Protocol::Udp, true), (Protocol::Tcp, false), (Protocol::Tcp, true)];
        let of = |size| {
            kinds.map(|(protocol, tagged)| Stream {
                size,
                protocol,
                tagged,
                flows: 1 << 20,
                vips: 128,
                macs: MACS,
            })
        };
        sizes.flat_map(of).collect()
    }

    fn folded(sum: u32) -> u32 {
        let once = (sum & 0xffff) + (sum >> 16);
        (once & 0xffff) + (once >> 16)
    }

    /// Pads an odd octet.
    fn whole(octets: &[u8]) -> u32 {
        let last = if octets.len() % 2 == 1 { u32::from(octets[octets.len() - 1]) << 8 } else { 0 };
        sum(octets) + last
    }

    #[test]
    fn frames_have_their_length_and_checksums_that_hold() {
        for stream in streams() {
            for number in [0, 1, 2, 11, 12, 1023, 1024, 700_001, u32::MAX] {
                let frame = stream.frame(number);
                if let Size::Octets(octets) = stream.size {
                    assert_eq!(frame.len(), usize::from(octets - FCS));
                }
                let l3 = stream.network();
                let packet = usize::from(u16::from_be_bytes([frame[l3 + 2], frame[l3 + 3]]));
                assert_eq!(frame.len(), (l3 + packet).max(60), "{stream:?}");
                assert_eq!(folded(sum(&frame[l3..l3 + 20])), 0xffff, "{stream:?}");
                let (addresses, l4) = (sum(&frame[l3 + 12..l3 + 20]), &frame[l3 + 20..l3 + packet]);
                let pseudo = addresses + u32::from(frame[l3 + 9]) + u32::try_from(l4.len()).unwrap();
                assert_eq!(folded(pseudo + whole(l4)), 0xffff, "{stream:?}");
                if stream.protocol == Protocol::Udp {
                    assert_eq!(usize::from(u16::from_be_bytes([l4[4], l4[5]])), l4.len());
                    assert_ne!(l4[6..8], [0, 0], "no checksum is not what is meant");
                } else {
                    assert_eq!(l4[13], 0x02, "SYN and nothing else");
                }
            }
        }
    }

    #[test]
    fn the_mix_is_exact() {
        for stream in streams().iter().filter(|stream| stream.size == Size::Imix) {
            let mut counts = BTreeMap::new();
            for number in 0..super::super::lane::BURST {
                let packet = stream.frame(number)[stream.network() + 2..][..2].to_vec();
                *counts.entry(u16::from_be_bytes([packet[0], packet[1]])).or_insert(0) += 1;
            }
            let twelfth = super::super::lane::BURST / 12;
            assert_eq!(counts, BTreeMap::from([(40, 7 * twelfth), (576, 4 * twelfth), (1500, twelfth)]));
        }
    }

    #[test]
    fn the_kernel_sends_what_is_predicted() {
        for stream in streams() {
            let mut object = load_bench().unwrap();
            super::super::lane::tell(&mut object, &stream).unwrap();
            let program = load_program(&mut object, super::super::lane::generator_name(&stream)).unwrap();
            for number in 0..24 {
                let outcome =
                    dataplane::test_run::run(program, &vec![0; stream.longest()], Default::default())
                        .unwrap();
                // There is no device to send to, but the frame is made before that is known.
                assert_eq!(outcome.packet, stream.frame(number), "{stream:?} {number}");
            }
            assert!(matches!(program, Program::Xdp(_)));
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for size in [Size::Octets(64), Size::Octets(1518), Size::Imix] {
            assert_eq!(Size::try_from(size.to_string()), Ok(size));
        }
        assert!(Size::try_from("63".to_owned()).is_err() && Size::try_from("imix".to_owned()).is_err());
    }
}
