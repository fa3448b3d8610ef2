//! Weights in whole slots.

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// Slots per member, in the order of `weights`: they sum to `slots`, or to 0 if no member has a weight.
///
/// What the whole parts of the shares leave goes, one each, to members whose share has a fraction: first
/// to those that hold just the slot in question already, so that rounding alone moves little, then by
/// largest fraction, then by `ties`, then to the earlier. `held` are the slots each holds.
pub(super) fn quotas(slots: u32, weights: &[u32], held: &[u32], ties: &[u64]) -> Vec<u32> {
    let sum: u64 = weights.iter().copied().map(u64::from).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    // 20 bits of slots times 32 bits of weight.
    let product = |i: usize| u64::from(slots) * u64::from(weights[i]);
    let mut quotas: Vec<u32> = (0..weights.len()).map(|i| whole(product(i), sum)).collect();
    let mut fractions: Vec<usize> = (0..weights.len()).filter(|i| product(*i) % sum > 0).collect();
    fractions
        .sort_unstable_by_key(|i| (held[*i] != quotas[*i] + 1, Reverse(product(*i) % sum), ties[*i], *i));
    let missing = slots - quotas.iter().sum::<u32>();
    // The fractions sum to `missing`, each below 1: there are more of them than slots missing.
    for i in fractions.into_iter().take(missing as usize) {
        quotas[i] += 1;
    }
    quotas
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a weight is at most the sum, so a share at most all slots"
)]
fn whole(product: u64, sum: u64) -> u32 {
    (product / sum) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_fraction_gets_what_is_left() {
        assert_eq!(quotas(10, &[1, 1, 1], &[0; 3], &[3, 2, 1]), [3, 3, 4]);
        assert_eq!(quotas(10, &[5, 3, 1], &[0; 3], &[1, 2, 3]), [6, 3, 1]);
        assert_eq!(quotas(10, &[1, 0, 1], &[0; 3], &[1, 2, 3]), [5, 0, 5]);
        assert_eq!(quotas(10, &[0, 0], &[5, 5], &[1, 2]), [0, 0]);
        assert!(quotas(10, &[], &[], &[]).is_empty());
    }

    #[test]
    fn a_slot_that_is_held_stays() {
        assert_eq!(quotas(10, &[1, 1, 1], &[3, 4, 3], &[1, 2, 3]), [3, 4, 3]);
        assert_eq!(quotas(10, &[5, 3, 1], &[4, 4, 1], &[1, 2, 3]), [5, 4, 1]);
        // Nobody keeps more than the whole number above its share.
        assert_eq!(quotas(10, &[1, 1], &[6, 4], &[1, 2]), [5, 5]);
    }

    #[test]
    fn the_largest_numbers_fit() {
        let weights = vec![u32::MAX; 65_535];
        let quotas = quotas(1_048_573, &weights, &vec![0; 65_535], &vec![0; 65_535]);
        assert_eq!(quotas.iter().sum::<u32>(), 1_048_573);
        assert_eq!((quotas[0], quotas[65_534]), (17, 16));
    }
}
