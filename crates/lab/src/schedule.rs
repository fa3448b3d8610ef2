//! Offered load over time, and the exact moments at which an open-loop generator sends.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Offered load: straight lines between points, requests per second over seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "Unchecked")]
pub struct Schedule {
    points: Vec<Point>,
    arrivals: Arrivals,
}

/// One corner of the load curve. Two points at the same time make a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Seconds since the start.
    pub at_s: f64,
    /// Requests per second offered at that time.
    pub rps: f64,
}

/// How requests are spread within the load curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "process", rename_all = "lowercase", deny_unknown_fields)]
pub enum Arrivals {
    /// Request n is sent when the curve's integral reaches n + ½.
    #[default]
    Even,
    /// A Poisson process of the curve's rate; the same seed gives the same moments.
    Poisson {
        /// Seed of the generator.
        seed: u64,
    },
}

/// Why a load curve is refused.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ScheduleError {
    /// A line needs two ends.
    #[error("schedule: {0} points, at least 2 are needed")]
    TooFewPoints(usize),
    /// Time must start at zero.
    #[error("schedule.points[0].at_s: {0}, must be 0")]
    StartsLate(f64),
    /// Time runs backwards or is not a number.
    #[error("schedule.points[{index}].at_s: {at_s} follows {previous}")]
    Unordered {
        /// Index of the point.
        index: usize,
        /// Its time.
        at_s: f64,
        /// Time of the point before it.
        previous: f64,
    },
    /// A rate below zero or not finite.
    #[error("schedule.points[{index}].rps: {rps}, must be a finite number not below 0")]
    Rate {
        /// Index of the point.
        index: usize,
        /// Its rate.
        rps: f64,
    },
}

impl Schedule {
    /// A checked load curve.
    ///
    /// # Errors
    /// Fewer than two points, times that do not start at zero or run backwards, rates below zero.
    pub fn new(points: Vec<Point>, arrivals: Arrivals) -> Result<Self, ScheduleError> {
        let [first, _, ..] = points.as_slice() else {
            return Err(ScheduleError::TooFewPoints(points.len()));
        };
        if first.at_s != 0.0 {
            return Err(ScheduleError::StartsLate(first.at_s));
        }
        let mut previous = 0.0;
        for (index, &Point { at_s, rps }) in points.iter().enumerate() {
            if !at_s.is_finite() || at_s < previous {
                return Err(ScheduleError::Unordered { index, at_s, previous });
            }
            if !rps.is_finite() || rps < 0.0 {
                return Err(ScheduleError::Rate { index, rps });
            }
            previous = at_s;
        }
        Ok(Self { points, arrivals })
    }

    /// The same load from start to end, evenly spaced.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn constant(rps: f64, duration_s: f64) -> Result<Self, ScheduleError> {
        Self::new(vec![Point { at_s: 0.0, rps }, Point { at_s: duration_s, rps }], Arrivals::Even)
    }

    /// The corners.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Length in seconds.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.points.last().map_or(0.0, |point| point.at_s)
    }

    /// Offered load at a time; zero before the start and after the end.
    #[must_use]
    pub fn rate_at(&self, at_s: f64) -> f64 {
        self.segments()
            .filter(|line| line.from.at_s <= at_s && at_s <= line.to.at_s)
            .last()
            .map_or(0.0, |line| line.from.rps + line.slope() * (at_s - line.from.at_s))
    }

    /// First time at which the load reaches `rps` from below.
    #[must_use]
    pub fn first_reaches(&self, rps: f64) -> Option<f64> {
        if self.points[0].rps >= rps {
            return Some(0.0);
        }
        self.segments()
            .find(|line| line.to.rps >= rps)
            .map(|line| line.from.at_s + (rps - line.from.rps).max(0.0) / line.slope())
            .filter(|at| at.is_finite())
    }

    /// Requests under the curve, a real number.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.segments().map(|line| line.area()).sum()
    }

    /// Intended sending times in seconds, in order.
    pub fn arrivals(&self) -> impl Iterator<Item = f64> + '_ {
        let mut lines = self.segments();
        let mut line = lines.next();
        let mut below = 0.0;
        let mut ordinates = Ordinates::new(self.arrivals);
        std::iter::from_fn(move || {
            let target = ordinates.next_ordinate();
            while let Some(current) = line {
                if target < below + current.area() {
                    return Some(current.invert(target - below));
                }
                below += current.area();
                line = lines.next();
            }
            None
        })
    }

    fn segments(&self) -> impl Iterator<Item = Line> + '_ {
        self.points
            .iter()
            .zip(self.points.iter().skip(1))
            .filter(|(from, to)| to.at_s > from.at_s)
            .map(|(&from, &to)| Line { from, to })
    }
}

/// What a file says, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    points: Vec<Point>,
    #[serde(default)]
    arrivals: Arrivals,
}

impl TryFrom<Unchecked> for Schedule {
    type Error = ScheduleError;

    fn try_from(file: Unchecked) -> Result<Self, ScheduleError> {
        Self::new(file.points, file.arrivals)
    }
}

/// One straight piece of the curve, longer than nothing.
#[derive(Clone, Copy)]
struct Line {
    from: Point,
    to: Point,
}

impl Line {
    fn length(self) -> f64 {
        self.to.at_s - self.from.at_s
    }

    fn slope(self) -> f64 {
        (self.to.rps - self.from.rps) / self.length()
    }

    fn area(self) -> f64 {
        (self.from.rps + self.to.rps) / 2.0 * self.length()
    }

    /// Time at which the area since the start of the line is `area`: the root of `rps·t + slope·t²/2 = area`,
    /// in the form that does not cancel for small slopes.
    fn invert(self, area: f64) -> f64 {
        let root = (self.from.rps * self.from.rps + 2.0 * self.slope() * area).max(0.0).sqrt();
        let denominator = self.from.rps + root;
        let offset = if denominator > 0.0 { 2.0 * area / denominator } else { 0.0 };
        self.from.at_s + offset.min(self.length())
    }
}

/// Values of the curve's integral at which requests are sent.
enum Ordinates {
    Even { next: f64 },
    Poisson { last: f64, state: u64 },
}

impl Ordinates {
    fn new(arrivals: Arrivals) -> Self {
        match arrivals {
            Arrivals::Even => Self::Even { next: 0.5 },
            Arrivals::Poisson { seed } => Self::Poisson { last: 0.0, state: seed },
        }
    }

    fn next_ordinate(&mut self) -> f64 {
        match self {
            Self::Even { next } => {
                let ordinate = *next;
                *next += 1.0;
                ordinate
            }
            // A process of varying rate is a unit-rate one whose time runs along the integral.
            Self::Poisson { last, state } => {
                *last -= unit_interval(state).ln();
                *last
            }
        }
    }
}

/// SplitMix64, mapped to (0, 1].
fn unit_interval(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((z >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn triangle() -> Schedule {
        let points = [(0.0, 0.0), (10.0, 100.0), (20.0, 0.0)].map(|(at_s, rps)| Point { at_s, rps }).to_vec();
        Schedule::new(points, Arrivals::Even).unwrap()
    }

    #[test]
    fn constant_load_is_evenly_spaced() {
        let schedule = Schedule::constant(200.0, 2.0).unwrap();
        let times: Vec<f64> = schedule.arrivals().collect();
        assert_eq!(times.len(), 400);
        for (n, time) in times.iter().enumerate() {
            assert!((time - (n as f64 + 0.5) / 200.0).abs() < 1e-9, "request {n} at {time}");
        }
    }

    #[test]
    fn rates_and_crossings_follow_the_lines() {
        let schedule = triangle();
        assert_eq!(schedule.total(), 1000.0);
        assert_eq!(schedule.rate_at(5.0), 50.0);
        assert_eq!(schedule.rate_at(15.0), 50.0);
        assert_eq!(schedule.rate_at(20.5), 0.0);
        assert_eq!(schedule.first_reaches(40.0), Some(4.0));
        assert_eq!(schedule.first_reaches(101.0), None);
    }

    #[test]
    fn a_step_takes_effect_at_its_time() {
        let points =
            [(0.0, 10.0), (1.0, 10.0), (1.0, 30.0), (2.0, 30.0)].map(|(at_s, rps)| Point { at_s, rps });
        let schedule = Schedule::new(points.to_vec(), Arrivals::Even).unwrap();
        assert_eq!(schedule.arrivals().filter(|&t| t < 1.0).count(), 10);
        assert_eq!(schedule.arrivals().count(), 40);
        assert_eq!(schedule.rate_at(1.0), 30.0);
    }

    #[test]
    fn poisson_is_repeatable_and_has_the_mean() {
        let points = [(0.0, 1000.0), (100.0, 1000.0)].map(|(at_s, rps)| Point { at_s, rps });
        let schedule = Schedule::new(points.to_vec(), Arrivals::Poisson { seed: 7 }).unwrap();
        let times: Vec<f64> = schedule.arrivals().collect();
        assert_eq!(times, schedule.arrivals().collect::<Vec<_>>());
        // Five standard deviations of a Poisson count of 100 000.
        assert!((times.len() as f64 - 100_000.0).abs() < 5.0 * 100_000_f64.sqrt(), "{}", times.len());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.02,
            "gaps are not exponential: {}",
            variance.sqrt() / mean
        );
    }

    #[test]
    fn files_round_trip_and_unknown_keys_are_refused() {
        let text = "points = [{ at_s = 0, rps = 1 }, { at_s = 9, rps = 2.5 }]\narrivals = { process = \"poisson\", seed = 3 }\n";
        let schedule: Schedule = toml::from_str(text).unwrap();
        let json = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
        assert!(
            toml::from_str::<Schedule>("points = []\nrate = 3\n").unwrap_err().message().contains("rate")
        );
    }

    #[test]
    fn impossible_curves_are_refused() {
        let curve = |points: &[(f64, f64)]| {
            let points = points.iter().map(|&(at_s, rps)| Point { at_s, rps }).collect();
            Schedule::new(points, Arrivals::Even).unwrap_err()
        };
        assert_eq!(curve(&[(0.0, 1.0)]), ScheduleError::TooFewPoints(1));
        assert_eq!(curve(&[(1.0, 1.0), (2.0, 1.0)]), ScheduleError::StartsLate(1.0));
        assert_eq!(curve(&[(0.0, 1.0), (1.0, -1.0)]), ScheduleError::Rate { index: 1, rps: -1.0 });
        assert!(matches!(curve(&[(0.0, 1.0), (f64::NAN, 1.0)]), ScheduleError::Unordered { index: 1, .. }));
    }

    proptest! {
        #[test]
        fn as_many_arrivals_as_the_curve_holds(
            corners in prop::collection::vec((0.0..20.0_f64, 0.0..500.0_f64), 1..6),
            first in 0.0..500.0_f64,
        ) {
            let mut at_s = 0.0;
            let mut points = vec![Point { at_s, rps: first }];
            for (step, rps) in corners {
                at_s += step;
                points.push(Point { at_s, rps });
            }
            let schedule = Schedule::new(points, Arrivals::Even).unwrap();
            let times: Vec<f64> = schedule.arrivals().collect();
            prop_assert!((times.len() as f64 - schedule.total()).abs() <= 0.5 + 1e-6);
            prop_assert!(times.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(times.iter().all(|&t| (0.0..=schedule.duration_s()).contains(&t)));
        }
    }
}
