//! Round-trip times and the retransmission time-out that follows from them (RFC 6298, RFC 8085 §3.1.1).

use core::time::Duration;

use crate::backoff::doubled;

/// Smoothed round-trip time to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RttEstimator {
    /// Smoothed RTT and its variation, once measured.
    estimate: Option<(Duration, Duration)>,
}

/// Time-out without a measurement (RFC 8085 §3.1.1).
pub const INITIAL_RTO: Duration = Duration::from_secs(1);
/// Below this, timer granularity and scheduling at the peer would be mistaken for loss.
pub const MIN_RTO: Duration = Duration::from_millis(20);
/// Upper bound of any time-out.
pub const MAX_RTO: Duration = Duration::from_secs(60);

impl RttEstimator {
    /// Nothing measured yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { estimate: None }
    }

    /// Takes a sample; the caller leaves out answers to retransmitted messages (Karn).
    pub fn sample(&mut self, rtt: Duration) {
        self.estimate = Some(match self.estimate {
            None => (rtt, rtt / 2),
            Some((srtt, var)) => ((srtt * 7 + rtt) / 8, (var * 3 + srtt.abs_diff(rtt)) / 4),
        });
    }

    /// The smoothed round-trip time, if one was measured.
    #[must_use]
    pub fn srtt(&self) -> Option<Duration> {
        self.estimate.map(|(srtt, _)| srtt)
    }

    /// How long to wait for an answer before the first retransmission.
    #[must_use]
    pub fn rto(&self) -> Duration {
        match self.estimate {
            None => INITIAL_RTO,
            Some((srtt, var)) => (srtt + var * 4).clamp(MIN_RTO, MAX_RTO),
        }
    }

    /// [`rto`](Self::rto) doubled `retransmissions` times.
    #[must_use]
    pub fn backed_off(&self, retransmissions: u32) -> Duration {
        doubled(self.rto(), retransmissions, MAX_RTO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_until_measured_then_close_to_the_path() {
        let mut rtt = RttEstimator::default();
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        assert_eq!(rtt.backed_off(3), Duration::from_secs(8));
        for _ in 0..64 {
            rtt.sample(Duration::from_millis(40));
        }
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(40)));
        assert!(rtt.rto() < Duration::from_millis(45));
        assert_eq!(rtt.backed_off(40), MAX_RTO);
    }
}
