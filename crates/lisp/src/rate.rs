//! Token buckets, one per peer, in bounded memory.

use alloc::collections::BTreeMap;
use core::time::Duration;

use codec::Instant;

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
    full_at: BTreeMap<K, Instant>,
}

impl<K: Ord + Copy> RateLimiter<K> {
    /// A limiter without history.
    #[must_use]
    pub const fn new(limit: RateLimit, max_keys: usize) -> Self {
        Self { limit, max_keys, full_at: BTreeMap::new() }
    }

    /// Takes one token of `key`'s bucket if there is one.
    pub fn allow(&mut self, now: Instant, key: K) -> bool {
        let whole = self.limit.interval.saturating_mul(self.limit.burst);
        let full_at = match self.full_at.get(&key) {
            Some(&at) => at.max(now),
            None => now,
        };
        let next = full_at + self.limit.interval;
        if self.limit.burst == 0 || next.saturating_since(now) > whole {
            return false;
        }
        if !self.full_at.contains_key(&key) && self.full_at.len() >= self.max_keys {
            self.full_at.retain(|_, at| *at > now);
            if self.full_at.len() >= self.max_keys {
                return false;
            }
        }
        self.full_at.insert(key, next);
        true
    }

    /// When [`allow`](Self::allow) will next say yes for `key`.
    #[must_use]
    pub fn ready_at(&self, now: Instant, key: K) -> Instant {
        let whole = self.limit.interval.saturating_mul(self.limit.burst.saturating_sub(1));
        match self.full_at.get(&key) {
            Some(&at) => now + at.saturating_since(now).saturating_sub(whole),
            None => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_PER_3S: RateLimit = RateLimit { burst: 2, interval: Duration::from_secs(3) };

    #[test]
    fn a_burst_then_one_per_interval() {
        let mut limiter = RateLimiter::new(TWO_PER_3S, 8);
        let t = Instant::from_secs(100);
        assert!(limiter.allow(t, 1) && limiter.allow(t, 1) && !limiter.allow(t, 1));
        assert_eq!(limiter.ready_at(t, 1), Instant::from_secs(103));
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
}
