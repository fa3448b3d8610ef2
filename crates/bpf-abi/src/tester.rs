//! What the benchmarks' generator of frames is told, and how it makes one frame differ from the next.
//!
//! The kernel's generator and user space's tests run the same code: whatever is sent can be predicted.

/// Octets of headers that are written into every frame: the least that Ethernet carries, without check sequence.
pub const HEADERS: usize = 60;
/// Frames after which the mix of lengths repeats.
pub const MIX: usize = 12;
/// First source port of a flow.
pub const FIRST_PORT: u16 = 1024;
/// Ports that a source address uses.
const PORTS: u32 = 1024;

/// IPv4 header, behind Ethernet and one tag if there is one.
pub const UNTAGGED: usize = 14;
/// Likewise, behind one tag.
pub const TAGGED: usize = 18;
/// Octets of an IPv4 header without options.
const IPV4: usize = 20;
const IPV4_OCTETS: u32 = 20;
const UDP_NUMBER: u32 = 17;

/// One entry: all that the generator knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TesterValue {
    /// [`HEADERS`] octets in native words, and four that are not written. What varies is zero in it: total length,
    /// checksums, addresses, source port, UDP length.
    pub headers: [u64; 8],
    /// Octets of the frame without check sequence, by place in the mix.
    pub lengths: [u16; MIX],
    /// IPv4 total length, by place in the mix. What is behind the packet in its frame is padding.
    pub packets: [u16; MIX],
    /// Flows: a power of two.
    pub flows: u32,
    /// Destination addresses, at least one.
    pub vips: u32,
    /// First source address.
    pub sources: u32,
    /// First destination address.
    pub destinations: u32,
    /// 6 or 17.
    pub protocol: u32,
    /// Ones' complement sum of the IPv4 header's constant words.
    pub network_sum: u32,
    /// Likewise of the transport header's, and of the protocol in the pseudo header.
    pub transport_sum: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// What tells one flow from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TesterFlow {
    /// Source address.
    pub source: u32,
    /// Source port.
    pub port: u16,
    /// Destination address.
    pub destination: u32,
}

impl TesterValue {
    /// Flow of the frame of this number. A flow keeps to a destination, which is drawn by a hash of the flow.
    #[must_use]
    #[inline(always)]
    pub const fn flow(&self, number: u32) -> TesterFlow {
        let flow = number & self.flows.wrapping_sub(1);
        let vip = ((scatter(flow) as u64 * self.vips as u64) >> 32) as u32;
        TesterFlow {
            source: self.sources.wrapping_add(flow / PORTS),
            port: FIRST_PORT + (flow % PORTS) as u16,
            destination: self.destinations.wrapping_add(vip),
        }
    }

    /// Octets of the frame at this place of the mix, without check sequence.
    #[must_use]
    #[inline(always)]
    pub fn length(&self, place: u32) -> u16 {
        self.lengths.get(place as usize).copied().unwrap_or_default()
    }

    /// Writes what varies into the headers of the frame of this number at this place of the mix, whose IPv4 header
    /// starts at `L3`.
    #[inline(always)]
    pub fn write<const L3: usize>(&self, number: u32, place: u32, headers: &mut [u8; HEADERS]) {
        let TesterFlow { source, port, destination } = self.flow(number);
        let addresses = halves(source) + halves(destination);
        let packet = self.packets.get(place as usize).copied().unwrap_or_default();
        let length = packet as u32;
        put(headers, L3 + 2, length);
        put(headers, L3 + 10, !fold(self.network_sum + addresses + length));
        put(headers, L3 + 12, source >> 16);
        put(headers, L3 + 14, source);
        put(headers, L3 + 16, destination >> 16);
        put(headers, L3 + 18, destination);
        let l4 = L3 + IPV4;
        put(headers, l4, port as u32);
        let payload = length.wrapping_sub(IPV4_OCTETS);
        let sum = self.transport_sum + addresses + port as u32 + payload;
        if self.protocol == UDP_NUMBER {
            put(headers, l4 + 4, payload);
            // Its length counts twice, and 0 would say that there is no checksum.
            let check = !fold(sum + payload);
            put(headers, l4 + 6, if check & 0xffff == 0 { 0xffff } else { check });
        } else {
            put(headers, l4 + 16, !fold(sum));
        }
    }
}

/// MurmurHash3's finalizer.
const fn scatter(value: u32) -> u32 {
    let value = (value ^ (value >> 16)).wrapping_mul(0x85eb_ca6b);
    let value = (value ^ (value >> 13)).wrapping_mul(0xc2b2_ae35);
    value ^ (value >> 16)
}

const fn halves(address: u32) -> u32 {
    (address >> 16) + (address & 0xffff)
}

/// In the low 16 bits.
const fn fold(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    (once & 0xffff) + (once >> 16)
}

/// Writes the low 16 bits.
#[inline(always)]
fn put(headers: &mut [u8; HEADERS], at: usize, value: u32) {
    let [_, _, high, low] = value.to_be_bytes();
    if let Some([first, second]) = headers.get_mut(at..at + 2) {
        (*first, *second) = (high, low);
    }
}

crate::sizes! {
    TesterValue = 64 + 24 + 24 + 32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_is_another_and_every_vip_is_drawn_about_as_often() {
        let value = TesterValue {
            flows: 1 << 16,
            vips: 128,
            sources: 100,
            destinations: 7,
            ..TesterValue::default()
        };
        let mut hits = [0_u32; 128];
        for number in 0..value.flows {
            let flow = value.flow(number);
            assert_eq!(flow.source, 100 + number / 1024);
            assert_eq!(u32::from(flow.port), 1024 + number % 1024);
            assert_eq!(flow, value.flow(number + value.flows));
            hits[(flow.destination - 7) as usize] += 1;
        }
        assert!(hits.iter().all(|hits| (400..=630).contains(hits)), "{hits:?}");
    }
}
