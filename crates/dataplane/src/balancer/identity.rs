//! Whose an index is, in a form that survives the process.

use bpf_abi::balancer::VipKey;

/// FNV-1a with 128 bits (draft-eastlake-fnv): offset basis and prime. Two of 65 535 names meet with a probability
/// of 2^-97; nobody gains from making them meet, since names are the operator's.
const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// Identity of a VIP's backend, never 0. Fixed for as long as the layout of the maps is.
pub(crate) fn identity(vip: &VipKey, backend: &str) -> u128 {
    let key = vip.address.into_iter().chain(vip.segment.to_be_bytes()).chain(vip.port).chain([vip.protocol]);
    let octets = key.chain(backend.bytes());
    octets.fold(BASIS, |hash, octet| (hash ^ u128::from(octet)).wrapping_mul(PRIME)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_fixed_and_tell_vips_and_names_apart() {
        let vip = VipKey { address: [1; 16], segment: 2, port: [0, 80], protocol: 6, pad: 0 };
        let a = identity(&vip, "a");
        assert_ne!(a, identity(&vip, "b"));
        assert_ne!(a, identity(&VipKey { protocol: 17, ..vip }, "a"));
        // Published test vector of FNV-1a-128 for no octets at all, then one step.
        assert_eq!((BASIS ^ u128::from(b'a')).wrapping_mul(PRIME), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }
}
