//! What a source of offered load answered, and whether a decision may rest on it.

use crate::algorithm1::{LoadError, OfferedLoad};
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// How far ahead of the asker's clock a sample may be stamped. Clocks of two hosts kept by NTP differ by
/// less; beyond it, the stamp says nothing about the sample's age.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// One answer, or the lack of one. Only [`Measurement::Fresh`] carries a load to decide from; every
/// other case means "not known", which is never the same as no load.
#[derive(Clone, Debug, PartialEq)]
pub enum Measurement {
    /// A load that may be acted on.
    Fresh {
        /// Requests per second in front of the split.
        load: OfferedLoad,
        /// Time since it was sampled.
        age: Duration,
    },
    /// A load, but too old.
    Stale {
        /// Requests per second in front of the split, then.
        load: OfferedLoad,
        /// Time since it was sampled.
        age: Duration,
        /// The oldest that is acted on.
        max_age: Duration,
    },
    /// A sample stamped later than now by more than clocks differ.
    FromTheFuture {
        /// By how much.
        ahead: Duration,
    },
    /// The answer holds no series.
    Empty,
    /// NaN or an infinity.
    NotANumber,
    /// A negative number of requests per second.
    Negative {
        /// As answered.
        rps: f64,
    },
    /// More than one series: adding them up or picking one would be a guess.
    SeveralSeries {
        /// How many.
        count: usize,
    },
    /// A number, but the source warns that it could not look at everything: what it left out is load too.
    Incomplete {
        /// The source's words.
        warning: String,
    },
    /// The source answered with an HTTP status other than 200.
    HttpError {
        /// The status code.
        status: u16,
        /// What the source says about it, shortened; empty if nothing.
        message: String,
    },
    /// No connection, or it broke.
    Unreachable {
        /// The transport's words.
        error: String,
    },
    /// No answer in time.
    Timeout {
        /// The time given.
        after: Duration,
    },
    /// An answer that does not have the form the source promises.
    Malformed {
        /// Which part.
        what: String,
    },
}

impl Measurement {
    /// Judges a number that a source answered for a sample `age` old.
    #[must_use]
    pub fn judge(rps: f64, age: Duration, max_age: Duration) -> Self {
        match OfferedLoad::new(rps) {
            Err(LoadError::NotFinite) => Self::NotANumber,
            Err(LoadError::Negative(rps)) => Self::Negative { rps },
            Ok(load) if age > max_age => Self::Stale { load, age, max_age },
            Ok(load) => Self::Fresh { load, age },
        }
    }

    /// Judges a number sampled at `sampled_at` by someone else's clock, both since the same epoch.
    #[must_use]
    pub fn judge_at(rps: f64, sampled_at: Duration, now: Duration, max_age: Duration) -> Self {
        let ahead = sampled_at.saturating_sub(now);
        if ahead > CLOCK_TOLERANCE {
            return Self::FromTheFuture { ahead };
        }
        Self::judge(rps, now.saturating_sub(sampled_at), max_age)
    }

    /// The load, if a decision may rest on it.
    #[must_use]
    pub const fn fresh(&self) -> Option<OfferedLoad> {
        match self {
            Self::Fresh { load, .. } => Some(*load),
            _ => None,
        }
    }

    /// Which case it is, for counting.
    #[must_use]
    pub const fn kind(&self) -> MeasurementKind {
        match self {
            Self::Fresh { .. } => MeasurementKind::Fresh,
            Self::Stale { .. } => MeasurementKind::Stale,
            Self::FromTheFuture { .. } => MeasurementKind::FromTheFuture,
            Self::Empty => MeasurementKind::Empty,
            Self::NotANumber => MeasurementKind::NotANumber,
            Self::Negative { .. } => MeasurementKind::Negative,
            Self::SeveralSeries { .. } => MeasurementKind::SeveralSeries,
            Self::Incomplete { .. } => MeasurementKind::Incomplete,
            Self::HttpError { .. } => MeasurementKind::HttpError,
            Self::Unreachable { .. } => MeasurementKind::Unreachable,
            Self::Timeout { .. } => MeasurementKind::Timeout,
            Self::Malformed { .. } => MeasurementKind::Malformed,
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh { load, age } => {
                write!(f, "{:.1} requests/s, measured {} ms ago", load.rps(), age.as_millis())
            }
            Self::Stale { load, age, max_age } => write!(
                f,
                "the newest measurement ({:.1} requests/s) is {} ms old, more than the {} ms allowed",
                load.rps(),
                age.as_millis(),
                max_age.as_millis()
            ),
            Self::FromTheFuture { ahead } => {
                write!(f, "the measurement is stamped {} ms ahead of now: clocks differ", ahead.as_millis())
            }
            Self::Empty => f.write_str("the source knows no such series"),
            Self::NotANumber => f.write_str("the source answered NaN or an infinity"),
            Self::Negative { rps } => write!(f, "the source answered {rps} requests/s, less than none"),
            Self::SeveralSeries { count } => {
                write!(f, "the source answered {count} series where one is needed")
            }
            Self::Incomplete { warning } => {
                write!(f, "the source warns that its answer is incomplete: {warning}")
            }
            Self::HttpError { status, message } if message.is_empty() => {
                write!(f, "the source answered HTTP status {status}")
            }
            Self::HttpError { status, message } => {
                write!(f, "the source answered HTTP status {status}: {message}")
            }
            Self::Unreachable { error } => write!(f, "the source cannot be reached: {error}"),
            Self::Timeout { after } => write!(f, "the source did not answer within {} ms", after.as_millis()),
            Self::Malformed { what } => write!(f, "the source's answer is malformed: {what}"),
        }
    }
}

/// The cases of [`Measurement`] without their figures: a bounded set of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeasurementKind {
    /// See [`Measurement::Fresh`].
    Fresh,
    /// See [`Measurement::Stale`].
    Stale,
    /// See [`Measurement::FromTheFuture`].
    FromTheFuture,
    /// See [`Measurement::Empty`].
    Empty,
    /// See [`Measurement::NotANumber`].
    NotANumber,
    /// See [`Measurement::Negative`].
    Negative,
    /// See [`Measurement::SeveralSeries`].
    SeveralSeries,
    /// See [`Measurement::Incomplete`].
    Incomplete,
    /// See [`Measurement::HttpError`].
    HttpError,
    /// See [`Measurement::Unreachable`].
    Unreachable,
    /// See [`Measurement::Timeout`].
    Timeout,
    /// See [`Measurement::Malformed`].
    Malformed,
}

impl MeasurementKind {
    /// Every case, in the order of declaration.
    pub const ALL: [Self; 12] = [
        Self::Fresh,
        Self::Stale,
        Self::FromTheFuture,
        Self::Empty,
        Self::NotANumber,
        Self::Negative,
        Self::SeveralSeries,
        Self::Incomplete,
        Self::HttpError,
        Self::Unreachable,
        Self::Timeout,
        Self::Malformed,
    ];

    /// The name in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::FromTheFuture => "from-the-future",
            Self::Empty => "empty",
            Self::NotANumber => "not-a-number",
            Self::Negative => "negative",
            Self::SeveralSeries => "several-series",
            Self::Incomplete => "incomplete",
            Self::HttpError => "http-error",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    const MAX_AGE: Duration = Duration::from_secs(5);

    #[test]
    fn a_sample_is_fresh_up_to_its_limit() {
        assert_eq!(Measurement::judge(7.0, MAX_AGE, MAX_AGE).kind(), MeasurementKind::Fresh);
        let late = Measurement::judge(7.0, MAX_AGE + Duration::from_millis(1), MAX_AGE);
        assert_eq!(late.kind(), MeasurementKind::Stale);
        assert_eq!(late.fresh(), None);
        assert_eq!(
            late.to_string(),
            "the newest measurement (7.0 requests/s) is 5001 ms old, more than the 5000 ms allowed"
        );
    }

    #[test]
    fn zero_is_a_load_only_when_fresh() {
        assert_eq!(Measurement::judge(0.0, Duration::ZERO, MAX_AGE).fresh(), Some(OfferedLoad::ZERO));
        assert_eq!(Measurement::judge(0.0, Duration::from_secs(6), MAX_AGE).fresh(), None);
    }

    #[test]
    fn a_stamp_ahead_of_the_clock_is_forgiven_by_a_second() {
        let now = Duration::from_secs(1000);
        let at = |millis: u64| Measurement::judge_at(1.0, Duration::from_millis(millis), now, MAX_AGE);
        assert_eq!(at(1_001_000).kind(), MeasurementKind::Fresh);
        assert_eq!(at(1_001_001).kind(), MeasurementKind::FromTheFuture);
        assert_eq!(at(994_999).kind(), MeasurementKind::Stale);
    }

    #[test]
    fn names_are_distinct() {
        let mut names = MeasurementKind::ALL.map(MeasurementKind::as_str);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    proptest! {
        #[test]
        fn only_a_finite_load_of_zero_or_more_is_fresh(bits: u64, age_ms in 0u64..10_000) {
            let rps = f64::from_bits(bits);
            let measurement = Measurement::judge(rps, Duration::from_millis(age_ms), MAX_AGE);
            let may = rps.is_finite() && rps >= 0.0 && age_ms <= 5000;
            prop_assert_eq!(measurement.fresh().is_some(), may);
        }
    }
}
