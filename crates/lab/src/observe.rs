//! What the control path says of itself during a run: offered load, first flows, publications, decisions.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use node::controller::DecisionView;
use node::mapserver::api::Publication;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::lab::url;
use crate::report::{Control, Percentiles, WeightSample};

/// Short against the interval that the reaction is measured in.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// The rings hold more than what happens meanwhile.
const RING_INTERVAL: Duration = Duration::from_secs(1);
const OFFERED: &str = "weir_gateway_offered_flows_per_second";
const FLOWS: &str = "weir_gateway_flows_total";

/// What is looked at.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Token of the APIs.
    pub(crate) token: String,
    /// The service.
    pub(crate) eid: String,
    /// Locators of the edges, in order.
    pub(crate) rlocs: Vec<String>,
    /// The controller runs.
    pub(crate) controlled: bool,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Observed {
    /// In order of time.
    pub(crate) samples: Vec<Sample>,
    /// Nonce to moments.
    publications: BTreeMap<u64, Publication>,
    /// Nonce to the moment when the gateway's table was in force.
    applied: BTreeMap<u64, u64>,
    /// First moment of a decision to its newest repetition.
    decisions: BTreeMap<u64, DecisionView>,
    /// Calls that failed.
    failures: u64,
}

/// The gateway's counters at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    at_unix_ns: u64,
    /// New flows per second in front of the split.
    offered: f64,
    /// New flows per edge so far.
    flows: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct Applied {
    nonce: u64,
    applied_at_unix_ns: u64,
}

/// Looks until `stop`. To be run in the control namespace. `latest` is a word about now.
pub(crate) fn observe(subject: &Subject, stop: &AtomicBool, latest: &Mutex<String>) -> Result<Observed> {
    let api = Api::new(&subject.token)?;
    let mut observed = Observed::default();
    let mut rings_at = SystemTime::now();
    while !stop.load(Ordering::Relaxed) {
        let began = SystemTime::now();
        observed.sample(&api, subject, latest);
        if rings_at <= began {
            rings_at = began + RING_INTERVAL;
            observed.rings(&api, subject);
        }
        thread::sleep(SAMPLE_INTERVAL.saturating_sub(began.elapsed().unwrap_or_default()));
    }
    observed.rings(&api, subject);
    Ok(observed)
}

impl Observed {
    fn sample(&mut self, api: &Api, subject: &Subject, latest: &Mutex<String>) {
        let Ok(text) = api.text(&url::client_gateway("/metrics")) else {
            self.failures += 1;
            return;
        };
        let sample = Sample::read(&text, unix_ns(), subject);
        if let (Some(sample), Ok(mut latest)) = (&sample, latest.lock()) {
            *latest = format!("{:.0} requests/s offered", sample.offered);
        }
        self.samples.extend(sample);
    }

    fn rings(&mut self, api: &Api, subject: &Subject) {
        let ours = |publication: &Publication| publication.eid.0.to_string() == subject.eid;
        match api.json::<Vec<Publication>>(&url::mapserver("/v1/publications")) {
            Ok(ring) => {
                self.publications.extend(ring.into_iter().filter(ours).map(|entry| (entry.nonce, entry)))
            }
            Err(_) => self.failures += 1,
        }
        match api.json::<Vec<Applied>>(&url::client_gateway("/v1/applied")) {
            Ok(ring) => self.applied.extend(ring.iter().map(|entry| (entry.nonce, entry.applied_at_unix_ns))),
            Err(_) => self.failures += 1,
        }
        if !subject.controlled {
            return;
        }
        match api.json::<Vec<DecisionView>>(&url::controller("/v1/decisions?limit=1000")) {
            Ok(history) => {
                self.decisions.extend(history.into_iter().map(|entry| (entry.first_at_unix_ns, entry)))
            }
            Err(_) => self.failures += 1,
        }
    }

    /// The figures of the control path. `stable` is C of the first edge, which the schedule reaches after `crossing_s`.
    pub(crate) fn control(&self, started_at_unix_ns: u64, stable: f64, crossing_s: Option<f64>) -> Control {
        let publish_to_applied_ms = self.publish_to_applied_ms();
        Control {
            publications: publish_to_applied_ms.len(),
            decisions: self
                .decisions
                .values()
                .map(|entry| usize::try_from(entry.repeats).unwrap_or(0).max(1))
                .sum(),
            publish_to_applied_ms: Percentiles::of(&publish_to_applied_ms),
            reaction_ms: crossing_s.and_then(|crossing_s| {
                let first = first_flow_at_second_edge(&self.samples, started_at_unix_ns)?;
                Some(milliseconds(started_at_unix_ns, first) - crossing_s * 1e3)
            }),
            measured_reaction_ms: measured_reaction_ms(&self.samples, started_at_unix_ns, stable),
        }
    }

    fn publish_to_applied_ms(&self) -> Vec<f64> {
        let joined = self.publications.iter().filter_map(|(nonce, publication)| {
            let applied = self.applied.get(nonce)?;
            Some(milliseconds(publication.published_at_unix_ns, *applied))
        });
        joined.collect()
    }

    /// Shares over time: what was decided, from the moment it was written.
    pub(crate) fn weights(&self, started_at_unix_ns: u64) -> Vec<WeightSample> {
        let sample = |entry: &DecisionView| {
            let weights = entry.edges.iter().filter_map(|edge| Some((edge.name.clone(), edge.share?)));
            let at = entry.written_at_unix_ns.unwrap_or(entry.first_at_unix_ns);
            WeightSample {
                t_s: milliseconds(started_at_unix_ns, at).max(0.0) / 1000.0,
                weights: weights.collect(),
            }
        };
        let samples = self.decisions.values().map(sample);
        samples.filter(|sample| !sample.weights.is_empty()).collect()
    }
}

impl Sample {
    fn read(metrics: &str, at_unix_ns: u64, subject: &Subject) -> Option<Self> {
        let eid = format!("eid=\"{}\"", subject.eid);
        let offered = value(metrics, OFFERED, &[&eid])?;
        let flows =
            |rloc: &String| value(metrics, FLOWS, &[&eid, &format!("locator=\"{rloc}\"")]).unwrap_or(0.0);
        Some(Self { at_unix_ns, offered, flows: subject.rlocs.iter().map(flows).collect() })
    }
}

/// The value of the first series of a metric that has all these labels.
fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let series =
        metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
    let mut matching =
        series.filter(|(set, _)| labels.iter().all(|label| set.split(',').any(|own| own == *label)));
    matching.next()?.1.trim().parse().ok()
}

/// From the measured load crossing `stable` to the first new flow at the second edge, both as the gateway counts them.
fn measured_reaction_ms(samples: &[Sample], started_at_unix_ns: u64, stable: f64) -> Option<f64> {
    let above = during(samples, started_at_unix_ns);
    let above = above.windows(2).find(|pair| pair[0].offered <= stable && pair[1].offered > stable)?;
    let (before, after) = (&above[0], &above[1]);
    let part = (stable - before.offered) / (after.offered - before.offered);
    let crossed = part * milliseconds(before.at_unix_ns, after.at_unix_ns);
    let first = first_flow_at_second_edge(samples, started_at_unix_ns)?;
    Some(milliseconds(before.at_unix_ns, first) - crossed)
}

/// When a sample first shows a new flow at the second edge, Unix nanoseconds.
fn first_flow_at_second_edge(samples: &[Sample], started_at_unix_ns: u64) -> Option<u64> {
    let during = during(samples, started_at_unix_ns);
    let at_start = *during.first()?.flows.get(1)?;
    let first = during.iter().find(|sample| sample.flows.get(1).is_some_and(|flows| *flows > at_start))?;
    Some(first.at_unix_ns)
}

/// The samples since the start of the load.
fn during(samples: &[Sample], started_at_unix_ns: u64) -> &[Sample] {
    &samples[samples.partition_point(|sample| sample.at_unix_ns < started_at_unix_ns)..]
}

/// Milliseconds from one moment to another, negative when it lies before.
fn milliseconds(from_unix_ns: u64, to_unix_ns: u64) -> f64 {
    let distance = from_unix_ns.abs_diff(to_unix_ns) as f64 / 1e6;
    if to_unix_ns >= from_unix_ns { distance } else { -distance }
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "# HELP weir_gateway_flows New flows.\n\
        weir_gateway_flows_total{instance_id=\"0\",eid=\"10.100.0.1/32\",locator=\"10.0.11.1\"} 12\n\
        weir_gateway_flows_total{instance_id=\"0\",eid=\"10.100.0.1/32\",locator=\"10.0.12.1\"} 3\n\
        weir_gateway_offered_flows_per_second{instance_id=\"0\",eid=\"10.100.0.2/32\"} 9\n\
        weir_gateway_offered_flows_per_second{instance_id=\"0\",eid=\"10.100.0.1/32\"} 401.5\n";

    fn subject() -> Subject {
        let rlocs = vec!["10.0.11.1".into(), "10.0.12.1".into(), "10.0.13.1".into()];
        Subject { token: String::new(), eid: "10.100.0.1/32".into(), rlocs, controlled: true }
    }

    #[test]
    fn the_services_own_series_are_read() {
        let sample = Sample::read(METRICS, 7, &subject()).unwrap();
        assert_eq!(sample, Sample { at_unix_ns: 7, offered: 401.5, flows: vec![12.0, 3.0, 0.0] });
    }

    #[test]
    fn reaction_runs_from_the_crossing_to_the_first_flow_after_the_start() {
        let sample = |ms: u64, offered: f64, second: f64| Sample {
            at_unix_ns: ms * 1_000_000,
            offered,
            flows: vec![0.0, second],
        };
        let samples = [
            sample(0, 500.0, 5.0),
            sample(100, 300.0, 7.0),
            sample(200, 380.0, 7.0),
            sample(300, 420.0, 7.0),
            sample(400, 460.0, 7.0),
            sample(500, 500.0, 8.0),
        ];
        assert_eq!(measured_reaction_ms(&samples, 100_000_000, 400.0), Some(250.0));
        assert_eq!(measured_reaction_ms(&samples[..4], 100_000_000, 400.0), None);
        assert_eq!(measured_reaction_ms(&[], 0, 400.0), None);
        assert_eq!(first_flow_at_second_edge(&samples, 100_000_000), Some(500_000_000));
    }
}
