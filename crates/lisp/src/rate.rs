//! Token buckets, one per peer, in bounded memory.

use core::time::Duration;

use codec::Instant;

use crate::timers::Timers;

/// How many in a burst, and how long until one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens of a full bucket; 0 refuses everything.
    pub burst: u32,
    /// Time in which one token comes back.
    pub interval: Duration,
}

/// Buckets by key.
///
/// A full bucket says the same as no bucket, so those are dropped first; beyond `max_keys` busy peers, new peers
/// share the verdict of an empty bucket: a flood of made-up addresses cannot grow the table.
#[derive(Clone, Debug)]
pub struct RateLimiter<K> {
    limit: RateLimit,
    max_keys: usize,
    /// Time at which the bucket will be full again.
    full_at: Timers<K>,
}

impl<K: Ord + Copy> RateLimiter<K> {
    /// A limiter without history.
    #[must_use]
    pub const fn new(limit: RateLimit, max_keys: usize) -> Self {
        Self { limit, max_keys, full_at: Timers::new() }
    }

    /// Whether `key`'s bucket had a token, which is taken.
    pub fn allow(&mut self, now: Instant, key: K) -> bool {
        self.take(now, key).is_ok()
    }

    /// Takes one token of `key`'s bucket.
    ///
    /// # Errors
    /// If there is none: when to try again, always later than `now`; `None` if there will never be one.
    pub fn take(&mut self, now: Instant, key: K) -> Result<(), Option<Instant>> {
        let RateLimit { burst, interval } = self.limit;
        let Some(others) = burst.checked_sub(1) else { return Err(None) };
        let known = self.full_at.get(&key);
        let missing = known.map_or(Duration::ZERO, |at| at.saturating_since(now));
        let ready_in = missing.saturating_sub(interval.saturating_mul(others));
        if !ready_in.is_zero() {
            return Err(Some(now + ready_in));
        }
        if known.is_none() && !self.has_place(now) {
            // Not earlier than after one interval: those who wait must not all wake for every place that becomes free.
            return Err(self.full_at.first().map(|at| at.max(now + interval)));
        }
        self.full_at.set(key, Some(now + missing + interval));
        Ok(())
    }

    fn has_place(&mut self, now: Instant) -> bool {
        while self.full_at.len() >= self.max_keys {
            if self.full_at.pop_due(now).is_none() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_refusal_names_a_later_time_at_which_a_lone_peer_is_allowed(
            (burst, interval, max_keys) in (0u32..3, 0u64..4, 0usize..3),
            takes in prop::collection::vec((0u64..3, 0u8..5), 1..60),
        ) {
            let limit = RateLimit { burst, interval: Duration::from_secs(interval) };
            let mut limiter = RateLimiter::new(limit, max_keys);
            let mut now = Instant::ZERO;
            for (pass, key) in takes {
                now = now + Duration::from_secs(pass);
                match limiter.take(now, key) {
                    Ok(()) => prop_assert!(limiter.full_at.len() <= max_keys),
                    Err(None) => prop_assert!(burst == 0 || max_keys == 0),
                    Err(Some(at)) => {
                        prop_assert!(at > now);
                        prop_assert_eq!(limiter.clone().take(at, key), Ok(()));
                    }
                }
            }
        }
    }

    const TWO_PER_3S: RateLimit = RateLimit { burst: 2, interval: Duration::from_secs(3) };

    #[test]
    fn a_burst_then_one_per_interval() {
        let mut limiter = RateLimiter::new(TWO_PER_3S, 8);
        let t = Instant::from_secs(100);
        assert!(limiter.allow(t, 1) && limiter.allow(t, 1) && !limiter.allow(t, 1));
        assert_eq!(limiter.take(t, 1), Err(Some(Instant::from_secs(103))));
        assert!(!limiter.allow(Instant::from_millis(102_999), 1));
        assert!(limiter.allow(Instant::from_secs(103), 1) && !limiter.allow(Instant::from_secs(103), 1));
        assert!(limiter.allow(t, 2), "another peer has its own bucket");
    }

    #[test]
    fn made_up_keys_do_not_grow_the_table() {
        let mut limiter = RateLimiter::new(TWO_PER_3S, 4);
        let t = Instant::from_secs(1);
        let allowed = (0..100).filter(|k| limiter.allow(t, *k)).count();
        assert_eq!((allowed, limiter.full_at.len()), (4, 4));
        assert!(limiter.allow(Instant::from_secs(9), 99), "old buckets make room");
    }

    #[test]
    fn a_refused_key_waits_for_its_token_or_for_a_place() {
        let t = Instant::from_secs;
        let mut limiter = RateLimiter::new(TWO_PER_3S, 2);
        assert!(limiter.allow(t(10), 1) && limiter.allow(t(10), 1) && limiter.allow(t(11), 2));
        assert_eq!(limiter.take(t(11), 1), Err(Some(t(13))), "its token");
        assert_eq!(limiter.take(t(11), 3), Err(Some(t(14))), "the bucket of 2 is full");
        assert_eq!(limiter.take(t(12), 3), Err(Some(t(15))), "not before one interval");
        assert_eq!(limiter.take(t(15), 3), Ok(()));
    }

    #[test]
    fn what_is_never_allowed_is_told_so() {
        let t = Instant::from_secs(1);
        let none = RateLimit { burst: 0, ..TWO_PER_3S };
        assert_eq!(RateLimiter::new(none, 8).take(t, 1), Err(None));
        assert_eq!(RateLimiter::new(TWO_PER_3S, 0).take(t, 1), Err(None));
        let mut unlimited = RateLimiter::new(RateLimit { burst: 1, interval: Duration::ZERO }, 1);
        assert!((0..9).all(|key| unlimited.allow(t, key)), "no interval is no limit");
    }
}
