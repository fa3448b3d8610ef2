//! The hashes of a member's name. They are fixed for ever: another hash is another table, and nodes of a
//! group that are updated one after the other would disagree.

/// First 64 bits of the fraction of pi; they and the next only have to differ.
const OFFSET: u64 = 0x243f_6a88_85a3_08d3;
/// The next 64.
const SKIP: u64 = 0x1319_8a2e_0370_7344;

/// Where the permutation of a member starts: from 0 to below `slots`.
pub(super) fn offset(name: &str, slots: u32) -> u32 {
    below(mix(fnv1a(name.as_bytes()) ^ OFFSET), slots)
}

/// By how much its permutation goes on: from 1 to below `slots`, prime to any prime number of slots.
pub(super) fn skip(name: &str, slots: u32) -> u32 {
    below(mix(fnv1a(name.as_bytes()) ^ SKIP), slots - 1) + 1
}

/// What decides between members that are equal otherwise, so that it is not always the first of the alphabet.
pub(super) fn tie(name: &str) -> u64 {
    mix(fnv1a(name.as_bytes()))
}

/// Spreads what differs in a few bits over all 64: the finalizer of MurmurHash3. One to one; 0 stays 0.
pub(super) const fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// FNV-1a with 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder of a u32 is one")]
fn below(hash: u64, bound: u32) -> u32 {
    (hash % u64::from(bound)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_of_its_authors_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn permutations_are_what_they_were() {
        let of = |name| (offset(name, 65_521), skip(name, 65_521), tie(name));
        assert_eq!(of(""), (55_299, 30_375, 0xefd0_1f60_ba99_2926));
        assert_eq!(of("edge-1"), (27_385, 44_475, 0x4c84_4b4e_075b_b0c5));
        assert_eq!(of("10.0.0.1"), (23_285, 10_649, 0xc879_e56d_dc6c_5c88));
    }
}
