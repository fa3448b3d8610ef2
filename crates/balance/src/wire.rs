//! Shares as the 8-bit weights of a LISP locator record (RFC 9301 section 5.4), and back.

use alloc::vec::Vec;

/// What the weights of one locator-set add up to. A fixed total keeps the weight of an edge whose share
/// did not change; the largest that one edge alone may need is the octet's own limit. One unit is 0.39 %
/// of the load, which bounds what rounding may put on an edge beyond its share.
pub const WIRE_TOTAL: u32 = 255;

/// Integer weights of one priority for `shares`, by largest remainder; ties go to the earlier edge.
///
/// An edge with a positive share gets at least 1, taken from the largest. A share of zero becomes weight
/// 0, which among locators of equal priority means "no new flows". All-zero weights would hand the
/// choice to the ITR (RFC 9300 section 9), so the result always sums to [`WIRE_TOTAL`]; shares that say
/// nothing (none positive and finite) put it all on the first edge.
///
/// Shares need not sum to 1: they are taken relative to their sum. Of more than [`WIRE_TOTAL`] edges
/// with a positive share, those after the 255 largest get 0.
#[must_use]
pub fn wire_weights(shares: &[f64]) -> Vec<u8> {
    let sum: f64 = shares.iter().filter_map(|s| positive(*s)).sum();
    let quotas: Vec<f64> = match positive(sum) {
        Some(sum) => {
            shares.iter().map(|s| positive(*s).map_or(0.0, |s| s / sum * f64::from(WIRE_TOTAL))).collect()
        }
        None => {
            shares.iter().enumerate().map(|(i, _)| if i == 0 { f64::from(WIRE_TOTAL) } else { 0.0 }).collect()
        }
    };
    let mut weights: Vec<u32> = quotas.iter().map(|q| whole(*q)).collect();
    hand_out_remainders(&mut weights, &quotas);
    lift_to_one(&mut weights, &quotas);
    weights.into_iter().map(|w| u8::try_from(w).unwrap_or(u8::MAX)).collect()
}

/// The shares that `weights` stand for; `None` if all are zero, which leaves the choice to the ITR.
#[must_use]
pub fn shares_of(weights: &[u8]) -> Option<Vec<f64>> {
    let sum: u32 = weights.iter().map(|w| u32::from(*w)).sum();
    (sum > 0).then(|| weights.iter().map(|w| f64::from(*w) / f64::from(sum)).collect())
}

fn positive(x: f64) -> Option<f64> {
    (x.is_finite() && x > 0.0).then_some(x)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a quota lies between 0 and WIRE_TOTAL; `as` saturates beyond"
)]
fn whole(quota: f64) -> u32 {
    (libm::floor(quota) as u32).min(WIRE_TOTAL)
}

fn hand_out_remainders(weights: &mut [u32], quotas: &[f64]) {
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    let remainder = |i: &usize| quotas[*i] - libm::floor(quotas[*i]);
    order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)));
    let missing = WIRE_TOTAL.saturating_sub(weights.iter().sum());
    let receivers = order.iter().filter(|i| quotas[**i] > 0.0);
    // The remainders sum to `missing`, each below 1: there are at least as many receivers as units,
    // but for the rounding of the sum itself, which the cycle covers.
    for i in receivers.cycle().take(missing as usize) {
        weights[*i] += 1;
    }
}

fn lift_to_one(weights: &mut [u32], quotas: &[f64]) {
    for i in 0..weights.len() {
        if weights[i] > 0 || quotas[i] <= 0.0 {
            continue;
        }
        // The first of the largest gives, so that equal input gives equal output.
        let largest = (0..weights.len()).rev().max_by_key(|j| weights[*j]).unwrap_or(i);
        if weights[largest] > 1 {
            weights[largest] -= 1;
            weights[i] = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_sets() {
        assert_eq!(wire_weights(&[1.0, 0.0, 0.0]), [255, 0, 0]);
        assert_eq!(wire_weights(&[0.5, 0.5]), [128, 127]);
        assert_eq!(wire_weights(&[0.25, 0.5, 0.25]), [64, 127, 64]);
        assert_eq!(wire_weights(&[0.999_9, 0.000_1]), [254, 1]);
        assert_eq!(wire_weights(&[1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0]), [36, 73, 146]);
        assert!(wire_weights(&[]).is_empty());
    }

    #[test]
    fn shares_that_say_nothing_go_to_the_first_edge() {
        assert_eq!(wire_weights(&[0.0, 0.0]), [255, 0]);
        assert_eq!(wire_weights(&[f64::NAN, f64::INFINITY, -1.0]), [255, 0, 0]);
    }

    #[test]
    fn the_weights_of_rfc_9301_section_5_4() {
        assert_eq!(shares_of(&[30, 20, 20, 10]).unwrap(), [0.375, 0.25, 0.25, 0.125]);
        assert_eq!(shares_of(&[0, 0]), None);
        assert_eq!(shares_of(&[]), None);
    }

    fn share_list() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![3 => 0.0..1.0, 1 => Just(0.0), 1 => 0.0..1e-6], 1..40)
    }

    proptest! {
        #[test]
        fn the_total_is_fixed(shares in share_list()) {
            let weights = wire_weights(&shares);
            prop_assert_eq!(weights.iter().map(|w| u32::from(*w)).sum::<u32>(), WIRE_TOTAL);
        }

        #[test]
        fn positive_stays_positive_and_zero_stays_zero(shares in share_list()) {
            prop_assume!(shares.iter().any(|s| *s > 0.0));
            for (weight, share) in wire_weights(&shares).iter().zip(&shares) {
                prop_assert_eq!(*weight > 0, *share > 0.0);
            }
        }

        #[test]
        fn no_edge_gets_a_whole_unit_more_than_its_share(shares in share_list()) {
            let sum: f64 = shares.iter().sum();
            prop_assume!(sum > 0.0);
            for (weight, share) in wire_weights(&shares).iter().zip(&shares) {
                let quota = share / sum * f64::from(WIRE_TOTAL);
                prop_assert!(f64::from(*weight) < quota + 1.0 + 1e-9);
            }
        }

        #[test]
        fn what_came_from_the_wire_goes_back_unchanged(shares in share_list()) {
            let weights = wire_weights(&shares);
            prop_assert_eq!(wire_weights(&shares_of(&weights).unwrap()), weights);
        }

        #[test]
        fn any_input_is_answered(bits in prop::collection::vec(any::<u64>(), 0..300)) {
            let shares: Vec<f64> = bits.into_iter().map(f64::from_bits).collect();
            let weights = wire_weights(&shares);
            prop_assert_eq!(weights.len(), shares.len());
            let sum: u32 = weights.iter().map(|w| u32::from(*w)).sum();
            prop_assert_eq!(sum, if shares.is_empty() { 0 } else { WIRE_TOTAL });
        }
    }
}
