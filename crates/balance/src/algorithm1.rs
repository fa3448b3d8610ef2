//! Algorithm 1 of "Cooperative Load Balancing of Neighboring Edge Clouds with LISP".

use alloc::vec;
use alloc::vec::Vec;

/// Requests per second that arrive at the gateway in front of the split; finite and not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct OfferedLoad(f64);

impl OfferedLoad {
    /// No request at all. Only a fresh measurement may say so.
    pub const ZERO: Self = Self(0.0);

    /// Refuses what is not a number of requests.
    ///
    /// # Errors
    /// [`LoadError`] for NaN, an infinity or a negative number.
    pub fn new(rps: f64) -> Result<Self, LoadError> {
        if !rps.is_finite() {
            return Err(LoadError::NotFinite);
        }
        if rps < 0.0 {
            return Err(LoadError::Negative(rps));
        }
        // -0.0 passes the comparison above and would print as a negative load.
        Ok(Self(rps + 0.0))
    }

    /// Requests per second.
    #[must_use]
    pub const fn rps(self) -> f64 {
        self.0
    }
}

/// Why a number is no offered load.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// NaN or an infinity.
    #[error("offered load is not a finite number")]
    NotFinite,
    /// Below zero.
    #[error("offered load {0} requests/s is negative")]
    Negative(f64),
}

/// C_i: requests per second that an edge serves stably; finite and not negative. Zero drains the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Capacity(f64);

impl Capacity {
    /// Refuses what is not a number of requests.
    ///
    /// # Errors
    /// [`CapacityError`] for NaN, an infinity or a negative number.
    pub fn new(rps: f64) -> Result<Self, CapacityError> {
        if rps.is_finite() && rps >= 0.0 { Ok(Self(rps + 0.0)) } else { Err(CapacityError(rps)) }
    }

    /// Requests per second.
    #[must_use]
    pub const fn rps(self) -> f64 {
        self.0
    }
}

/// Why a number is no capacity.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("capacity {0} requests/s is not a finite number of at least 0")]
pub struct CapacityError(pub f64);

/// The share of `r` that goes to each edge, the edges in priority order.
///
/// Edges are filled to their C_i one after the other; what is left when all are full goes to the first.
/// The shares sum to 1, and there are as many as edges (none for none).
///
/// For r = 0 the seed's line 7 divides zero by zero. The limit for r towards 0 from above is taken: all
/// to the first edge that has any capacity, or to edge 1 when none has.
#[must_use]
pub fn algorithm1(r: OfferedLoad, capacities: &[Capacity]) -> Vec<f64> {
    let mut weights = vec![0.0; capacities.len()];
    let r = r.rps();
    if r == 0.0 {
        let first = capacities.iter().position(|c| c.rps() > 0.0).unwrap_or(0);
        if let Some(weight) = weights.get_mut(first) {
            *weight = 1.0;
        }
        return weights;
    }
    let mut r_left = r;
    for (weight, capacity) in weights.iter_mut().zip(capacities) {
        if r_left > capacity.rps() {
            *weight = capacity.rps() / r;
            r_left -= capacity.rps();
        } else {
            *weight = r_left / r;
            r_left = 0.0;
            break;
        }
    }
    if r_left > 0.0
        && let Some(first) = weights.first_mut()
    {
        *first += r_left / r;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capacities(rps: &[f64]) -> Vec<Capacity> {
        rps.iter().map(|&c| Capacity::new(c).unwrap()).collect()
    }

    fn shares(r: f64, c: &[f64]) -> Vec<f64> {
        algorithm1(OfferedLoad::new(r).unwrap(), &capacities(c))
    }

    #[test]
    fn table_iii_of_the_seed() {
        let c = [400.0, 800.0, 1600.0];
        assert_eq!(shares(399.0, &c), [1.0, 0.0, 0.0]);
        assert_eq!(shares(400.0, &c), [1.0, 0.0, 0.0]);
        assert_eq!(shares(800.0, &c), [0.5, 0.5, 0.0]);
        assert_eq!(shares(1600.0, &c), [0.25, 0.5, 0.25]);
        assert_eq!(shares(2800.0, &c), [400.0 / 2800.0, 800.0 / 2800.0, 1600.0 / 2800.0]);
        // 3200 offered, 2800 of capacity: the 400 beyond stay at edge 1.
        assert_eq!(shares(3200.0, &c), [0.25, 0.25, 0.5]);
    }

    #[test]
    fn no_load_is_the_limit_of_little_load() {
        assert_eq!(shares(0.0, &[400.0, 800.0]), [1.0, 0.0]);
        assert_eq!(shares(0.0, &[0.0, 800.0]), shares(1e-9, &[0.0, 800.0]));
        assert_eq!(shares(0.0, &[0.0, 0.0]), [1.0, 0.0]);
        assert_eq!(shares(5.0, &[0.0, 0.0]), [1.0, 0.0]);
        assert!(shares(0.0, &[]).is_empty());
        assert!(shares(1.0, &[]).is_empty());
    }

    #[test]
    fn what_is_no_load_is_refused() {
        for r in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(OfferedLoad::new(r), Err(LoadError::NotFinite));
            assert!(Capacity::new(r).is_err());
        }
        assert_eq!(OfferedLoad::new(-1.0), Err(LoadError::Negative(-1.0)));
        assert_eq!(Capacity::new(-1.0), Err(CapacityError(-1.0)));
        assert!(OfferedLoad::new(-0.0).unwrap().rps().is_sign_positive());
    }

    fn load() -> impl Strategy<Value = f64> {
        prop_oneof![0.0..5e3, 0.0..1e12, Just(0.0), Just(f64::MIN_POSITIVE), Just(1e300)]
    }

    fn capacity_list() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![4 => 0.0..2e3, 1 => Just(0.0), 1 => 0.0..1e9], 1..12)
    }

    /// What rounding of `f64` may add to a load: relative to r, not to C_i, for weights are shares of r.
    fn slack(r: f64) -> f64 {
        1e-9 * r
    }

    proptest! {
        #[test]
        fn shares_sum_to_one(r in load(), c in capacity_list()) {
            let w = shares(r, &c);
            prop_assert_eq!(w.len(), c.len());
            prop_assert!(w.iter().all(|x| (0.0..=1.0 + 1e-9).contains(x)), "{:?}", w);
            prop_assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{:?}", w);
        }

        #[test]
        fn no_edge_over_its_capacity_while_another_has_room(r in load(), c in capacity_list()) {
            let w = shares(r, &c);
            let over = w.iter().zip(&c).any(|(w, c)| w * r > c + slack(r));
            let room = w.iter().zip(&c).any(|(w, c)| w * r + slack(r) < *c);
            prop_assert!(!(over && room), "r {} c {:?} w {:?}", r, c, w);
        }

        #[test]
        fn an_edge_is_used_only_when_all_before_it_are_full(r in load(), c in capacity_list()) {
            let w = shares(r, &c);
            for i in 1..w.len() {
                if w[i] > 0.0 && r > 0.0 {
                    for j in 0..i {
                        prop_assert!(w[j] * r + slack(r) >= c[j], "edge {} has room, edge {} is used", j, i);
                    }
                }
            }
        }

        #[test]
        fn the_excess_beyond_all_capacity_goes_to_edge_1(c in capacity_list(), beyond in 1.0f64..1e4) {
            let r: f64 = c.iter().sum::<f64>() + beyond;
            let w = shares(r, &c);
            prop_assert!((w[0] * r - (c[0] + beyond)).abs() <= slack(r));
            for i in 1..c.len() {
                prop_assert!((w[i] * r - c[i]).abs() <= slack(r));
            }
        }

        #[test]
        fn more_load_never_lowers_the_load_of_any_edge(c in capacity_list(), r in 0.0..5e3, more in 0.0..5e3) {
            let before = shares(r, &c);
            let after = shares(r + more, &c);
            for i in 0..c.len() {
                prop_assert!(after[i] * (r + more) + slack(r + more) >= before[i] * r);
            }
        }

        #[test]
        fn more_capacity_at_an_edge_never_lowers_its_share(
            first in 0.0..2e3, others in capacity_list(), i: prop::sample::Index, r in 1.0..5e3, more in 0.0..1e3,
        ) {
            // Edge 1 is left out: it also carries the excess, which room elsewhere takes off it.
            let i = 1 + i.index(others.len());
            let c: Vec<f64> = core::iter::once(first).chain(others).collect();
            let mut larger = c.clone();
            larger[i] += more;
            prop_assert!(shares(r, &larger)[i] + 1e-9 >= shares(r, &c)[i]);
        }

        #[test]
        fn only_the_ratio_of_load_to_capacity_counts(c in capacity_list(), r in 1.0..5e3, k in 0.01..100.0) {
            let scaled: Vec<f64> = c.iter().map(|x| x * k).collect();
            for (a, b) in shares(r, &c).iter().zip(shares(r * k, &scaled)) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }
    }
}
