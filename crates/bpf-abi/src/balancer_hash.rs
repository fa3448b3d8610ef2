//! The balancer's flow hash: the same in the kernel, in the reference model and in `weir explain flow`.
//!
//! Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014, section 2): the high half of
//! a sum of products, each with a key of its own. No product waits for another, which on the way from a header to its
//! table is what counts; and who does not know the seed cannot choose flows that collide.

use crate::FlowKey;

/// Words of a flow: addresses, segment, ports, protocol.
const WORDS: usize = 11;

/// Keys of the hash, made of a group's seed: one for each word of a flow, and the sum's start.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowHash {
    start: u64,
    keys: [u64; WORDS],
}

impl FlowHash {
    /// The keys of a seed, fixed for ever: balancers of different releases are in one group.
    #[must_use]
    pub const fn of_seed(seed: u32) -> Self {
        let mut keys = [0; WORDS];
        let mut index = 0;
        while index < WORDS {
            keys[index] = split_mix(seed, index as u64 + 1);
            index += 1;
        }
        Self { start: split_mix(seed, 0), keys }
    }

    /// Hash of a flow, whose instance is its segment.
    #[must_use]
    pub fn of(&self, key: &FlowKey) -> u32 {
        let [s0, s1] = key.source_port;
        let [d0, d1] = key.destination_port;
        let ports = u32::from_be_bytes([s0, s1, d0, d1]);
        self.of_words(words(&key.source), words(&key.destination), key.instance_id, ports, key.protocol)
    }

    /// [`of`](Self::of) a key in words: addresses as four big-endian numbers, source port in front of destination port.
    #[must_use]
    #[inline(always)]
    pub const fn of_words(
        &self,
        source: [u32; 4],
        destination: [u32; 4],
        segment: u32,
        ports: u32,
        protocol: u32,
    ) -> u32 {
        self.of_parts(self.destination_part(destination, segment, protocol), source, ports)
    }

    /// What all flows to a destination have in common, for [`of_parts`](Self::of_parts).
    #[must_use]
    #[inline(always)]
    pub const fn destination_part(&self, [d0, d1, d2, d3]: [u32; 4], segment: u32, protocol: u32) -> u64 {
        let [_, _, _, _, k4, k5, k6, k7, k8, _, k10] = self.keys;
        let destination = product(d0, k4).wrapping_add(product(d1, k5)).wrapping_add(product(d2, k6));
        let destination = destination.wrapping_add(product(d3, k7));
        let rest = product(segment, k8).wrapping_add(product(protocol, k10));
        self.start.wrapping_add(destination).wrapping_add(rest)
    }

    /// [`of_words`](Self::of_words) of the rest of a flow, and its [`destination_part`](Self::destination_part).
    #[must_use]
    #[inline(always)]
    pub const fn of_parts(&self, destination_part: u64, [s0, s1, s2, s3]: [u32; 4], ports: u32) -> u32 {
        let [k0, k1, k2, k3, _, _, _, _, _, k9, _] = self.keys;
        let source = product(s0, k0).wrapping_add(product(s1, k1)).wrapping_add(product(s2, k2));
        let source = source.wrapping_add(product(s3, k3));
        (destination_part.wrapping_add(source).wrapping_add(product(ports, k9)) >> 32) as u32
    }
}

#[inline(always)]
const fn product(word: u32, key: u64) -> u64 {
    (word as u64).wrapping_mul(key)
}

/// The `index`-th number of SplitMix64 (Steele, Lea and Flood, 2014), odd.
const fn split_mix(seed: u32, index: u64) -> u64 {
    let state = (seed as u64).wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ mixed >> 31) | 1
}

fn words(address: &[u8; 16]) -> [u32; 4] {
    let word =
        |at: usize| u32::from_be_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published: the first numbers of SplitMix64 from seed 1234567 (Rosetta Code), of which odd ones stay as they are.
    #[test]
    fn published_numbers() {
        let published: [u64; 3] =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (index, number) in (0..).zip(published) {
            assert_eq!(split_mix(1_234_567, index), number | 1);
        }
    }

    #[test]
    fn every_part_of_a_flow_counts() {
        let hash = FlowHash::of_seed(7);
        let flow = FlowKey { source: [1; 16], destination: [2; 16], protocol: 6, ..FlowKey::default() };
        let others = [
            FlowKey { source: [3; 16], ..flow },
            FlowKey { destination: [3; 16], ..flow },
            FlowKey { source_port: [0, 1], ..flow },
            FlowKey { destination_port: [0, 1], ..flow },
            FlowKey { protocol: 17, ..flow },
            FlowKey { instance_id: 1, ..flow },
        ];
        for other in others {
            assert_ne!(hash.of(&other), hash.of(&flow), "{other:?}");
        }
        assert_ne!(FlowHash::of_seed(8).of(&flow), hash.of(&flow));
    }

    /// Flows as they come: neighbouring addresses and ports, a few destinations.
    #[test]
    fn neighbouring_flows_spread() {
        let hash = FlowHash::of_seed(0);
        let mut buckets = [0_u32; 256];
        for port in 0..256_u32 {
            for host in 0..256_u32 {
                let (source, destination) = ([0, 0, 0xffff, 0x0a00_0000 | host], [0, 0, 0xffff, 0xc000_020a]);
                let slot = hash.of_words(source, destination, 0, (40_000 + port) << 16 | 80, 6) >> 24;
                buckets[slot as usize] += 1;
            }
        }
        // 256 each on average; a fair choice would leave this range once in ten thousand years of tests.
        assert!(buckets.iter().all(|hits| (128..=400).contains(hits)), "{buckets:?}");
    }
}
