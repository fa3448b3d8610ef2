//! How many slots a table has.

/// The number of slots of a table: a prime, so that every step through it visits every slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

/// The primes below the powers of two: the sizes that are taken when none is configured.
const DEFAULTS: [u32; 11] =
    [1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573];

/// With 100 slots per member rounding is at most 1 % of an average member's share, and the paper's figure 12
/// has little left to gain from more.
const SLOTS_PER_MEMBER: usize = 100;

impl TableSize {
    /// The smallest table.
    pub const MIN: Self = Self(251);
    /// The largest table.
    pub const MAX: Self = Self(1_048_573);

    /// Refuses what is no prime from 251 to 1048573.
    ///
    /// # Errors
    /// [`TableSizeError`], with the nearest size that would do.
    pub const fn new(slots: u32) -> Result<Self, TableSizeError> {
        if slots < Self::MIN.0 {
            return Err(TableSizeError::TooSmall(slots));
        }
        if slots > Self::MAX.0 {
            return Err(TableSizeError::TooLarge(slots));
        }
        if !is_prime(slots) {
            return Err(TableSizeError::NotPrime { slots, next: next_prime(slots) });
        }
        Ok(Self(slots))
    }

    /// The smallest prime below a power of two that has 100 slots per member, from 1021; the largest there is
    /// if none has.
    #[must_use]
    pub fn default_for(members: usize) -> Self {
        let wanted = members.saturating_mul(SLOTS_PER_MEMBER);
        DEFAULTS.into_iter().find(|slots| *slots as usize >= wanted).map_or(Self::MAX, Self)
    }

    /// Slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Why a number is no size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableSizeError {
    /// Below the smallest.
    #[error("{0} slots are too few, the smallest table has 251")]
    TooSmall(u32),
    /// Above the largest.
    #[error("{0} slots are too many, the largest table has 1048573")]
    TooLarge(u32),
    /// Some step would not visit every slot.
    #[error("{slots} slots are not a prime number, the next one is {next}")]
    NotPrime {
        /// The number refused.
        slots: u32,
        /// The smallest prime above it.
        next: u32,
    },
}

/// For numbers from 251 to below the largest table: it is prime itself, so there is a next one in range.
const fn next_prime(mut n: u32) -> u32 {
    while !is_prime(n) {
        n += 1;
    }
    n
}

/// For numbers from 2 to 2^20: at most 1024 divisions.
const fn is_prime(n: u32) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= n {
        if n.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn primes_in_range_are_sizes() {
        for slots in DEFAULTS.into_iter().chain([251, 65_537, 1_048_573]) {
            assert_eq!(TableSize::new(slots).unwrap().get(), slots);
        }
        assert_eq!((TableSize::MIN.get(), TableSize::MAX.get()), (251, 1_048_573));
    }

    #[test]
    fn what_is_refused_names_the_way_out() {
        let message = |slots| TableSize::new(slots).unwrap_err().to_string();
        assert_eq!(message(0), "0 slots are too few, the smallest table has 251");
        assert_eq!(message(250), "250 slots are too few, the smallest table has 251");
        assert_eq!(message(1_048_574), "1048574 slots are too many, the largest table has 1048573");
        assert_eq!(message(u32::MAX), "4294967295 slots are too many, the largest table has 1048573");
        assert_eq!(message(65_536), "65536 slots are not a prime number, the next one is 65537");
        assert_eq!(message(1_048_572), "1048572 slots are not a prime number, the next one is 1048573");
    }

    #[test]
    fn a_hundred_slots_per_member_as_long_as_there_are() {
        let of = |members| TableSize::default_for(members).get();
        assert_eq!([of(0), of(1), of(10), of(11)], [1021, 1021, 1021, 2039]);
        assert_eq!([of(255), of(655), of(656), of(4000)], [32_749, 65_521, 131_071, 524_287]);
        assert_eq!([of(10_485), of(10_486), of(65_535), of(usize::MAX)], [1_048_573; 4]);
    }
}
