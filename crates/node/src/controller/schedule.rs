//! When to decide next.

use std::time::Duration;

use codec::Instant;

/// The first multiple of `interval` after `start` that lies after `now`.
///
/// Ticks stay in phase with the start: a tick that took long shortens the wait for the next one and
/// does not shift it, and ticks that were missed are left out instead of made up for.
pub(super) fn next_tick(start: Instant, interval: Duration, now: Instant) -> Instant {
    let passed = now.saturating_since(start).as_nanos() / interval.as_nanos().max(1);
    let nanos = interval.as_nanos().saturating_mul(passed + 1);
    start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn next(now_millis: u64) -> u64 {
        let next = next_tick(Instant::from_millis(7), INTERVAL, Instant::from_millis(now_millis));
        next.as_nanos() / 1_000_000
    }

    #[test]
    fn ticks_do_not_drift() {
        let mut now = 7;
        for tick in 1..1000 {
            // Every tick takes between 0 and 96 ms.
            now = next(now + (tick * 31) % 97);
            assert_eq!(now, 7 + tick * 100);
        }
    }

    #[test]
    fn missed_ticks_are_left_out() {
        assert_eq!(next(107), 207);
        assert_eq!(next(106), 107);
        assert_eq!(next(457), 507);
        assert_eq!(next(0), 107);
    }
}
