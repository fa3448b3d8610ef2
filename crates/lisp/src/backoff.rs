//! Sending again what nobody answers: how often it was sent, and how long to wait this time.

use core::time::Duration;

/// The waits for an answer. They double, so that what does not answer because it is overloaded is asked less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// After the first transmission.
    pub(crate) first: Duration,
    /// Upper bound.
    pub(crate) longest: Duration,
    /// Transmissions at the same distance before it doubles; at least 1.
    pub(crate) at_same: u32,
}

impl Backoff {
    /// A wait that doubles with every transmission.
    pub(crate) const fn doubling(first: Duration, longest: Duration) -> Self {
        Self { first, longest, at_same: 1 }
    }
}

/// Transmissions of a request since it was last answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempts(u32);

impl Attempts {
    /// Nothing sent since the last answer.
    pub(crate) const NONE: Self = Self(0);

    /// How many there were.
    pub(crate) const fn made(self) -> u32 {
        self.0
    }

    /// Counts one more and tells how long to wait for its answer.
    pub(crate) fn next(&mut self, backoff: &Backoff) -> Duration {
        let doublings = self.0 / backoff.at_same.max(1);
        self.0 = self.0.saturating_add(1);
        doubled(backoff.first, doublings, backoff.longest)
    }
}

/// `time` doubled so many times, `longest` at most.
pub(crate) fn doubled(time: Duration, times: u32, longest: Duration) -> Duration {
    time.saturating_mul(1 << times.min(u32::BITS - 1)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn waits(backoff: Backoff, count: usize) -> Vec<u64> {
        let mut attempts = Attempts::NONE;
        (0..count).map(|_| attempts.next(&backoff).as_secs()).collect()
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        assert_eq!(waits(Backoff::doubling(secs(1), secs(30)), 7), [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn waits_double_after_several_at_the_same_distance() {
        let backoff = Backoff { first: secs(1), longest: secs(8), at_same: 3 };
        assert_eq!(waits(backoff, 11), [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8]);
    }

    #[test]
    fn attempts_start_again_after_an_answer() {
        let backoff = Backoff::doubling(secs(1), secs(60));
        let mut attempts = Attempts::NONE;
        assert_eq!(
            (attempts.next(&backoff), attempts.next(&backoff), attempts.made()),
            (secs(1), secs(2), 2)
        );
        attempts = Attempts::NONE;
        assert_eq!((attempts.made(), attempts.next(&backoff)), (0, secs(1)));
    }

    #[test]
    fn any_number_of_attempts_has_a_wait() {
        let mut attempts = Attempts(u32::MAX);
        assert_eq!(attempts.next(&Backoff { at_same: 0, ..Backoff::doubling(secs(1), secs(30)) }), secs(30));
        assert_eq!(attempts.made(), u32::MAX);
        assert_eq!(doubled(Duration::MAX, u32::MAX, Duration::MAX), Duration::MAX);
        assert_eq!(doubled(Duration::ZERO, 3, secs(1)), Duration::ZERO);
    }
}
