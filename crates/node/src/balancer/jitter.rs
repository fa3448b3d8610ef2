//! What keeps many timers out of step: random enough, and the same again from the same seed.

use std::time::Duration;

/// A sequence of spans (splitmix64).
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Something from nothing to just below `most`.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // Spans of more than 584 years do not come up.
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let share = (u128::from(bits) * u128::from(most)) >> 64;
        Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_even_and_below_the_most() {
        let (mut jitter, most) = (Jitter::new(0), Duration::from_secs(1));
        let spans: Vec<Duration> = (0..1000).map(|_| jitter.up_to(most)).collect();
        assert!(spans.iter().all(|span| *span < most));
        let mean = spans.iter().sum::<Duration>() / 1000;
        assert!((450..550).contains(&mean.as_millis()), "{mean:?}");
        assert_eq!(jitter.up_to(Duration::ZERO), Duration::ZERO);
        assert_ne!(Jitter::new(1).up_to(most), Jitter::new(2).up_to(most));
    }
}
