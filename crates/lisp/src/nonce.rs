//! Nonces: unpredictable ones for requests, growing ones for authenticated messages.

use core::time::Duration;

use sha2::{Digest, Sha256};

/// An unpredictable sequence from a 256-bit seed: SHA-256 in counter mode.
///
/// A Map-Reply is believed because it knows the nonce, so an off-path sender must not be able to guess it.
#[derive(Clone)]
pub struct NonceGenerator {
    seed: [u8; 32],
    counter: u64,
}

impl core::fmt::Debug for NonceGenerator {
    /// The seed would tell every later nonce.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("NonceGenerator").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl NonceGenerator {
    /// A generator; the seed comes from the operating system and is never used twice.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// 64 unpredictable bits.
    pub fn next_u64(&mut self) -> u64 {
        let block = Sha256::new().chain_update(self.seed).chain_update(self.counter.to_be_bytes()).finalize();
        self.counter += 1;
        block.iter().take(8).fold(0, |word, octet| word << 8 | u64::from(*octet))
    }

    /// A number below `bound`, 0 if `bound` is 0; for jitter and choices, not exactly uniform.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }

    /// Less than an eighth of `time`: machines that were started together or lost the same peer do not stay in step.
    pub(crate) fn jitter(&mut self, time: Duration) -> Duration {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(nanos / 8))
    }

    /// A nonce to start a growing series at: Unix time in seconds above 31 random bits.
    ///
    /// A series that was lost with its disk starts above the lost one as long as it grew by fewer than 2^31 a
    /// second; being below 2^63, it does not wrap.
    pub fn series_start(&mut self, unix_seconds: u64) -> u64 {
        (unix_seconds & 0xffff_ffff) << 31 | self.next_u64() >> 33
    }
}

/// A growing nonce whose persisted value runs ahead of what was used.
///
/// Storage is written once per [`RESERVE`](Self::RESERVE) nonces instead of once per message, and a crash never
/// leads to a value being used twice: the series resumes at the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedNonce {
    last: u64,
    mark: u64,
}

impl ReservedNonce {
    /// Nonces that one write covers.
    pub const RESERVE: u64 = 10_000;

    /// Resumes at what storage holds.
    #[must_use]
    pub const fn resume(mark: u64) -> Self {
        Self { last: mark, mark }
    }

    /// The last nonce that was used or seen.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// What storage holds, or is to hold.
    #[must_use]
    pub const fn mark(&self) -> u64 {
        self.mark
    }

    /// The next nonce, and the mark to store before it is used.
    #[must_use]
    pub fn advance(&mut self) -> (u64, Option<u64>) {
        let next = self.last.saturating_add(1);
        let mark = self.raise(next);
        (next, mark)
    }

    /// Takes over a greater nonce that the peer used; returns the mark to store.
    #[must_use]
    pub fn raise(&mut self, seen: u64) -> Option<u64> {
        self.last = self.last.max(seen);
        if self.last <= self.mark {
            return None;
        }
        self.mark = self.last.saturating_add(Self::RESERVE);
        Some(self.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seeds_two_sequences() {
        let mut a = NonceGenerator::new([1; 32]);
        let mut b = NonceGenerator::new([2; 32]);
        let first = a.next_u64();
        assert_ne!(first, b.next_u64());
        assert_ne!(first, a.next_u64());
        assert_eq!(first, NonceGenerator::new([1; 32]).next_u64());
    }

    #[test]
    fn a_series_never_repeats_over_a_crash() {
        let mut nonce = ReservedNonce::resume(7);
        let (first, mark) = nonce.advance();
        assert_eq!((first, mark), (8, Some(10_008)));
        for _ in 0..10_000 {
            assert_eq!(nonce.advance().1, None);
        }
        assert_eq!(nonce.advance(), (10_009, Some(20_009)));
        assert_eq!(ReservedNonce::resume(20_009).advance().0, 20_010);
    }

    #[test]
    fn a_later_start_is_above_an_earlier_series() {
        let mut random = NonceGenerator::new([3; 32]);
        let early = random.series_start(1_800_000_000);
        assert!(random.series_start(1_800_000_001) > early);
        assert!(early < 1 << 63);
    }
}
