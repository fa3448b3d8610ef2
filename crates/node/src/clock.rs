//! The one place that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use codec::Instant;

/// Monotonic time since the node's start, as the protocol machines take it. Copies share the origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: tokio::time::Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }

    /// Time since the origin.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.origin.elapsed()
    }

    /// The same point for timers.
    #[must_use]
    pub fn deadline(&self, at: Instant) -> tokio::time::Instant {
        self.origin + at.saturating_since(Instant::ZERO)
    }

    /// Nanoseconds since the Unix epoch at a point in the past. The wall clock is read now and not at the start,
    /// because it is set and slewed while a node runs.
    #[must_use]
    pub fn unix_nanos(&self, at: Instant) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let then = wall.saturating_sub(self.now().saturating_since(at));
        u64::try_from(then.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// What the process has used of its processors, in user and system mode.
pub(crate) fn process_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// What the calling thread has used of its processor, likewise.
pub(crate) fn thread_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives for the call; an error leaves it at zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let nanos = time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn points_map_back_and_forth() {
        let clock = Clock::start();
        let later = Instant::from_secs(5);
        assert_eq!(clock.deadline(later) - clock.deadline(Instant::ZERO), Duration::from_secs(5));
        let now = clock.now();
        assert!(clock.unix_nanos(Instant::ZERO) <= clock.unix_nanos(now));
    }
}
