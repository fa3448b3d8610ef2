//! `result.json`.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::load::{Outcome, Record};
use crate::stats::{Summary, per_second, percentile, sorted};

/// Everything an experiment found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabResult {
    /// Name of the experiment.
    pub scenario: String,
    /// The short form was run.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// What delayed packets between the sites.
    pub link_delay: LinkDelay,
    /// What served at the edges.
    pub service: String,
    /// Connections were reused.
    pub keepalive: bool,
    /// Capacity per edge in requests per second, as the controller had it.
    pub capacities: BTreeMap<String, f64>,
    /// What was found when the edges' quotas were set; free-form per experiment.
    pub calibration: serde_json::Value,
    /// Versions of the programs that took part.
    pub versions: BTreeMap<String, String>,
    /// Corners of the load curve: seconds, requests per second.
    pub offered: Vec<[f64; 2]>,
    /// Both runs.
    pub runs: Runs,
    /// What balancing saved.
    pub reduction: Reduction,
    /// How the control path did, in the run with balancing.
    pub control: Control,
    /// Weights over time, in the run with balancing.
    pub weights: Vec<WeightSample>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors online.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// What delayed packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkDelay {
    /// The kernel's queueing discipline.
    Netem,
    /// The lab's own.
    DelayLine,
}

/// The two runs of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// Everything goes to the first edge.
    pub without: RunResult,
    /// With balancing.
    pub with: RunResult,
}

/// One run. Response times are those of good responses, from the moment a request was due.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Requests that were due.
    pub requests: usize,
    /// Requests without a good response, time-outs included.
    pub errors: usize,
    /// Of these, given up by the clock.
    pub timeouts: usize,
    /// How many requests ended how.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// Mean response time.
    pub mean_ms: f64,
    /// Standard deviation.
    pub deviation_ms: f64,
    /// Minimum.
    pub min_ms: f64,
    /// 25th percentile.
    pub p25_ms: f64,
    /// Median.
    pub median_ms: f64,
    /// 75th percentile.
    pub p75_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Maximum.
    pub max_ms: f64,
    /// The generator was late by this much at most: above a few milliseconds the figures include it.
    pub max_late_ms: f64,
    /// By edge that answered.
    pub edges: BTreeMap<String, EdgeResult>,
}

/// What one edge answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeResult {
    /// Good responses.
    pub requests: usize,
    /// Good responses per second: seconds since the start, rate.
    pub series: Vec<[f64; 2]>,
}

/// 1 − with/without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reduction {
    /// Of the median.
    pub median: f64,
    /// Of the 75th percentile.
    pub p75: f64,
}

/// The control path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Decisions taken.
    pub decisions: usize,
    /// Publications that were seen from one end to the other: not every decision is a change.
    #[serde(default)]
    pub publications: usize,
    /// From a publication's sending to the gateway's new table in force; absent when nothing was published.
    pub publish_to_applied_ms: Option<Percentiles>,
    /// From the offered load, as scheduled, crossing the first edge's capacity to the first new flow at the second
    /// edge.
    pub reaction_ms: Option<f64>,
    /// The same from the crossing that the gateway measured, which lags by half its window.
    pub measured_reaction_ms: Option<f64>,
}

/// Points of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

/// The weights that hold from a moment on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightSample {
    /// Seconds since the start of the load.
    pub t_s: f64,
    /// Share of new flows per edge, 0 to 1.
    pub weights: BTreeMap<String, f64>,
}

impl RunResult {
    /// Sums up a run. Every name in `edges` appears, answered or not.
    #[must_use]
    pub fn of(records: &[Record], edges: &[String]) -> Self {
        let good = || records.iter().filter(|record| record.outcome == Outcome::Ok);
        let latencies: Vec<f64> = good().map(|record| milliseconds(record.latency_us)).collect();
        let summary = Summary::of(&latencies).unwrap_or_default();
        let mut outcomes = BTreeMap::new();
        for record in records {
            *outcomes.entry(record.outcome).or_default() += 1;
        }
        let late = records.iter().map(|record| record.late_us).max().unwrap_or_default();
        Self {
            requests: records.len(),
            errors: records.iter().filter(|record| record.outcome.is_error()).count(),
            timeouts: records.iter().filter(|record| record.outcome.is_timeout()).count(),
            outcomes,
            mean_ms: summary.mean,
            deviation_ms: summary.deviation,
            min_ms: summary.min,
            p25_ms: summary.p25,
            median_ms: summary.median,
            p75_ms: summary.p75,
            p99_ms: summary.p99,
            max_ms: summary.max,
            max_late_ms: milliseconds(late),
            edges: by_edge(records, edges),
        }
    }
}

fn by_edge(records: &[Record], edges: &[String]) -> BTreeMap<String, EdgeResult> {
    let mut ends: BTreeMap<&str, Vec<f64>> = edges.iter().map(|edge| (edge.as_str(), Vec::new())).collect();
    for record in records.iter().filter(|record| record.outcome == Outcome::Ok) {
        let edge = record.edge.as_deref().unwrap_or("unknown");
        ends.entry(edge).or_default().push((record.at_us + record.latency_us) as f64 / 1e6);
    }
    // One end for all edges, so that the series can be added up.
    let last = ends.values().flatten().copied().fold(0.0, f64::max);
    ends.into_iter()
        .map(|(edge, times)| {
            let requests = times.len();
            (edge.to_owned(), EdgeResult { requests, series: per_second(times, last.floor() + 1.0) })
        })
        .collect()
}

impl Reduction {
    /// Of the balanced run against the other.
    #[must_use]
    pub fn between(without: &RunResult, with: &RunResult) -> Self {
        let reduction = |without: f64, with: f64| if without > 0.0 { 1.0 - with / without } else { 0.0 };
        Self {
            median: reduction(without.median_ms, with.median_ms),
            p75: reduction(without.p75_ms, with.p75_ms),
        }
    }
}

impl Percentiles {
    /// Of a sample; `None` when it is empty.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let &max = sorted.last()?;
        Some(Self { p50: percentile(&sorted, 50.0), p99: percentile(&sorted, 99.0), max })
    }
}

impl Machine {
    /// This machine, as far as /proc tells.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib.unwrap_or_default() / 1024,
        }
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn record(at_us: u64, latency_us: u64, outcome: Outcome, edge: Option<&str>) -> Record {
        let edge = edge.map(Into::into);
        Record { at_us, late_us: 20, connect_us: None, latency_us, outcome, status: None, edge, source: 0 }
    }

    #[test]
    fn a_run_in_figures() {
        let records = [
            record(0, 50_000, Outcome::Ok, Some("edge1")),
            record(500_000, 60_000, Outcome::Ok, Some("edge2")),
            record(990_000, 70_000, Outcome::Ok, Some("edge1")),
            record(995_000, 10_000_000, Outcome::ReadTimeout, None),
            record(999_000, 1_000, Outcome::ConnectRefused, None),
        ];
        let run = RunResult::of(&records, &["edge1".into(), "edge2".into(), "edge3".into()]);
        assert_eq!((run.requests, run.errors, run.timeouts), (5, 2, 1));
        assert_eq!((run.min_ms, run.median_ms, run.max_ms, run.max_late_ms), (50.0, 60.0, 70.0, 0.02));
        assert_eq!(run.outcomes[&Outcome::Ok], 3);
        assert_eq!(run.edges["edge1"].series, [[0.0, 1.0], [1.0, 1.0]]);
        assert_eq!(run.edges["edge2"].series, [[0.0, 1.0], [1.0, 0.0]]);
        assert_eq!(run.edges["edge3"].requests, 0);
    }

    #[test]
    fn the_file_has_the_keys_that_are_promised() {
        let run = RunResult::of(&[record(0, 50_000, Outcome::Ok, Some("edge1"))], &[]);
        let mut result = result(run.clone(), run);
        result.control.publish_to_applied_ms = Percentiles::of(&[1.0, 2.0]);
        result.control.reaction_ms = Some(900.0);
        let json = serde_json::to_value(&result).unwrap();
        for key in ["scenario", "quick", "machine", "link_delay", "runs", "reduction", "control"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["link_delay"], "delay-line");
        for key in
            "requests errors mean_ms deviation_ms min_ms p25_ms median_ms p75_ms p99_ms max_ms".split(' ')
        {
            assert!(
                json["runs"]["without"][key].is_number() && json["runs"]["with"][key].is_number(),
                "{key}"
            );
        }
        assert_eq!(json["runs"]["with"]["edges"]["edge1"]["series"][0][1], 1.0);
        assert_eq!(json["control"]["publish_to_applied_ms"]["p99"], 1.99);
        assert_eq!(serde_json::from_value::<LabResult>(json).unwrap(), result);
    }

    pub(crate) fn result(without: RunResult, with: RunResult) -> LabResult {
        LabResult {
            scenario: "paper".into(),
            quick: true,
            machine: Machine::here(),
            link_delay: LinkDelay::DelayLine,
            service: "nginx".into(),
            keepalive: false,
            capacities: BTreeMap::from([("edge1".into(), 400.0)]),
            calibration: serde_json::Value::Null,
            versions: BTreeMap::new(),
            offered: vec![[0.0, 0.0], [40.0, 1800.0], [80.0, 0.0]],
            reduction: Reduction::between(&without, &with),
            runs: Runs { without, with },
            control: Control::default(),
            weights: Vec::new(),
        }
    }
}
