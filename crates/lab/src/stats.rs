//! What a run's response times and throughputs come down to.

use serde::{Deserialize, Serialize};

/// Exact statistics of a sample, in the unit of the sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Values in the sample.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1).
    pub deviation: f64,
    /// Smallest value.
    pub min: f64,
    /// 25th percentile.
    pub p25: f64,
    /// Median.
    pub median: f64,
    /// 75th percentile.
    pub p75: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
}

impl Summary {
    /// Statistics of `values`; `None` when there are none, because no value is not zero.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self {
            count: sorted.len(),
            mean,
            deviation: deviation(&sorted, mean),
            min,
            p25: percentile(&sorted, 25.0),
            median: percentile(&sorted, 50.0),
            p75: percentile(&sorted, 75.0),
            p99: percentile(&sorted, 99.0),
            max,
        })
    }
}

/// Ascending copy; the total order keeps a NaN from hiding in the middle.
#[must_use]
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// Percentile of an ascending sample, interpolated between the two nearest ranks; 0 for an empty one.
#[must_use]
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let rank = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let below = rank.floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= rank <= last")]
    let index = below as usize;
    let above = sorted[(index + 1).min(last)];
    sorted[index] + (above - sorted[index]) * (rank - below)
}

/// Median of an unordered sample; `None` when it is empty.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| percentile(&sorted(values), 50.0))
}

/// Events per second in windows of one second: `[window start, events]`, from 0 to `duration_s`, empty windows included.
#[must_use]
pub fn per_second(times_s: impl IntoIterator<Item = f64>, duration_s: f64) -> Vec<[f64; 2]> {
    let mut windows: Vec<[f64; 2]> = Vec::new();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a run is seconds to hours long"
    )]
    let count = duration_s.max(0.0).ceil() as usize;
    windows.extend((0..count).map(|second| [second as f64, 0.0]));
    for time in times_s {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "index is checked by get_mut"
        )]
        let second = time.max(0.0) as usize;
        if let Some(window) = windows.get_mut(second) {
            window[1] += 1.0;
        }
    }
    windows
}

fn deviation(values: &[f64], mean: f64) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sample() {
        // Figures of the same sample from Python's statistics (quantiles, method = "inclusive", and stdev).
        let summary = Summary::of(&[9.0, 2.0, 5.0, 4.0, 12.0, 7.0, 8.0, 11.0, 9.0, 3.0]).unwrap();
        assert_eq!((summary.count, summary.min, summary.max), (10, 2.0, 12.0));
        assert_eq!((summary.mean, summary.p25, summary.median, summary.p75), (7.0, 4.25, 7.5, 9.0));
        assert!((summary.p99 - 11.91).abs() < 1e-9);
        assert!((summary.deviation - 3.399_346_342_395_19).abs() < 1e-12);
    }

    #[test]
    fn one_value_and_none() {
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.median, one.p99, one.deviation), (3.0, 3.0, 0.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn windows_hold_every_event_once_and_keep_empty_seconds() {
        let series = per_second([0.0, 0.999, 1.0, 3.5, 3.6], 4.5);
        assert_eq!(series, [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [3.0, 2.0], [4.0, 0.0]]);
    }
}
