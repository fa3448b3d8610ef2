//! The flow hash: the same in the kernel, in the reference model and in `weir explain`.

use crate::{BUCKETS, FlowKey};

/// 32 bits over every octet of the key, MurmurHash3's rounds and finalizer; fixed for ever
/// (the tests hold published vectors), because bucket and outer source port of running flows depend on it.
#[must_use]
#[inline(always)]
pub fn flow_hash(key: &FlowKey) -> u32 {
    let [s0, s1] = key.source_port;
    let [d0, d1] = key.destination_port;
    let ports = u32::from_be_bytes([s0, s1, d0, d1]);
    hash_words(words(&key.source), words(&key.destination), key.instance_id, ports, key.protocol)
}

/// [`flow_hash`] of a key in words: addresses as four big-endian numbers, source port in front of destination port.
#[must_use]
#[inline(always)]
pub const fn hash_words(
    source: [u32; 4],
    destination: [u32; 4],
    instance_id: u32,
    ports: u32,
    protocol: u32,
) -> u32 {
    let mut hash = 0x9e37_79b9_u32;
    hash = mix(hash, fold(source));
    hash = mix(hash, fold(destination));
    hash = mix(hash, instance_id);
    hash = mix(hash, ports);
    hash = mix(hash, protocol);
    finish(hash)
}

/// Bucket of a new flow.
#[must_use]
#[inline(always)]
pub const fn bucket(hash: u32) -> usize {
    hash as usize % BUCKETS
}

/// Outer UDP source port of a flow (RFC 9300 §12), in 49152..=65535; other bits than the bucket's.
#[must_use]
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    0xc000 | (hash >> 16) as u16
}

/// An address folded to 32 bits, each word mixed in.
#[must_use]
#[inline(always)]
pub fn fold_address(address: &[u8; 16]) -> u32 {
    fold(words(address))
}

#[inline(always)]
const fn fold([a, b, c, d]: [u32; 4]) -> u32 {
    mix(mix(mix(a, b), c), d)
}

#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    let word =
        |at: usize| u32::from_be_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// One round of MurmurHash3's 32-bit body.
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let k = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ k).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// MurmurHash3's 32-bit finalizer.
#[inline(always)]
const fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(address: [u8; 4]) -> [u8; 16] {
        let mut all = [0; 16];
        all[10..12].fill(0xff);
        all[12..].copy_from_slice(&address);
        all
    }

    /// Independent of this code: MurmurHash3_x86_32 (seed 0x9e3779b9) without the length in the finalizer.
    #[test]
    fn published_vectors() {
        let key = FlowKey {
            source: mapped([192, 0, 2, 1]),
            destination: mapped([198, 51, 100, 7]),
            instance_id: 0,
            source_port: 40000u16.to_be_bytes(),
            destination_port: 80u16.to_be_bytes(),
            protocol: 6,
        };
        assert_eq!(flow_hash(&key), 0x163d_3d1b);
        assert_eq!(flow_hash(&FlowKey { instance_id: 0x00ff_ffff, ..key }), 0x73d7_c2ec);
        assert_eq!(
            flow_hash(&FlowKey { source_port: [0, 0], destination_port: [0, 0], protocol: 0, ..key }),
            0xde83_2d9b
        );
        assert_eq!(flow_hash(&FlowKey { source: [0x20; 16], destination: [0xfe; 16], ..key }), 0x0c69_bdd2);
    }

    #[test]
    fn port_and_bucket_use_different_bits() {
        assert_eq!(bucket(0xffff_0000), 0);
        assert_eq!(source_port(0x0000_ffff), 0xc000);
        assert_eq!(source_port(0xffff_0000), 0xffff);
    }
}
