//! The flow hash: the same in the kernel, in the reference model and in `weir explain`.

use crate::FlowKey;

/// 32 bits over every octet of the key, MurmurHash3's rounds and finalizer; fixed for ever
/// (the tests hold published vectors), because bucket and outer source port of running flows depend on it.
#[must_use]
#[inline(always)]
pub fn flow_hash(key: &FlowKey) -> u32 {
    let mut hash = 0x9e37_79b9_u32;
    hash = mix(hash, fold_address(&key.source));
    hash = mix(hash, fold_address(&key.destination));
    hash = mix(hash, key.instance_id);
    let [s0, s1] = key.source_port;
    let [d0, d1] = key.destination_port;
    hash = mix(hash, u32::from_be_bytes([s0, s1, d0, d1]));
    hash = mix(hash, key.protocol);
    finish(hash)
}

/// An address folded to 32 bits, each word mixed in.
#[must_use]
#[inline(always)]
pub fn fold_address(address: &[u8; 16]) -> u32 {
    let mut hash = word(address, 0);
    hash = mix(hash, word(address, 4));
    hash = mix(hash, word(address, 8));
    mix(hash, word(address, 12))
}

#[inline(always)]
fn word(a: &[u8; 16], at: usize) -> u32 {
    u32::from_be_bytes([a[at], a[at + 1], a[at + 2], a[at + 3]])
}

/// One round of MurmurHash3's 32-bit body.
#[inline(always)]
fn mix(hash: u32, word: u32) -> u32 {
    let k = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ k).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// MurmurHash3's 32-bit finalizer.
#[inline(always)]
fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
