//! Measuring the load of a service: Prometheus or the gateway itself.

use std::time::Duration;

use balance::Measurement;
use codec::IpPrefix;
use lisp::wire::EidPrefix;
use reqwest::Method;
use serde::Deserialize;

use super::fetch::{self, FetchError, Peer};
use super::{prometheus, promql};
use crate::clock::Clock;
use crate::config::{LoadSource, Source};

/// A source that can be asked.
#[derive(Debug)]
pub(super) struct LoadMeter {
    peer: Peer,
    question: Question,
    max_age: Duration,
    timeout: Duration,
    clock: Clock,
}

#[derive(Debug)]
enum Question {
    Prometheus { query: String, timestamp_query: Result<String, promql::AgeUnknown> },
    Gateway { eid: EidPrefix },
}

/// One row of the gateway's `GET /v1/load`.
#[derive(Deserialize)]
struct Load {
    eid: String,
    #[serde(default)]
    instance_id: u32,
    flows_per_second: f64,
    measured_at_unix_ns: u64,
}

impl LoadMeter {
    pub(super) fn new(source: &Source, eid: EidPrefix, clock: Clock) -> Result<Self, reqwest::Error> {
        let question = match &source.kind {
            LoadSource::Prometheus { query } => {
                Question::Prometheus { query: query.clone(), timestamp_query: promql::timestamp_query(query) }
            }
            LoadSource::Gateway => Question::Gateway { eid },
        };
        let peer = Peer::new(&source.url, source.token.clone())?;
        Ok(Self { peer, question, max_age: source.max_age, timeout: source.timeout, clock })
    }

    pub(super) async fn measure(&self) -> Measurement {
        match &self.question {
            Question::Prometheus { query, timestamp_query: Ok(timestamp_query) } => {
                self.prometheus(query, timestamp_query).await
            }
            Question::Prometheus { timestamp_query: Err(unknown), .. } => {
                Measurement::Malformed { what: unknown.to_string() }
            }
            Question::Gateway { eid } => self.gateway(*eid).await,
        }
    }

    async fn prometheus(&self, query: &str, timestamp_query: &str) -> Measurement {
        let ask = |query: &str| {
            let request = self.peer.request(Method::GET, "/api/v1/query").query(&[("query", query)]);
            fetch::body(request, self.timeout)
        };
        let (value, timestamp) = tokio::join!(ask(query), ask(timestamp_query));
        let value = value.map_err(no_answer).and_then(|body| prometheus::sample(&body));
        let timestamp = timestamp.map_err(no_answer).and_then(|body| prometheus::sample(&body));
        match (value, timestamp) {
            (Ok(value), Ok(timestamp)) => prometheus::judge(value, timestamp, self.max_age),
            (Err(measurement), _) | (_, Err(measurement)) => measurement,
        }
    }

    async fn gateway(&self, eid: EidPrefix) -> Measurement {
        let request = self.peer.request(Method::GET, "/v1/load");
        match fetch::json::<Vec<Load>>(request, self.timeout).await {
            Ok(rows) => of_gateway(&rows, eid, unix_time(&self.clock), self.max_age),
            Err(error) => no_answer(error),
        }
    }
}

/// The Unix time here.
pub(super) fn unix_time(clock: &Clock) -> Duration {
    Duration::from_nanos(clock.unix_nanos(clock.now()))
}

fn of_gateway(rows: &[Load], eid: EidPrefix, now: Duration, max_age: Duration) -> Measurement {
    let ours = |row: &&Load| {
        row.instance_id == eid.instance_id.0 && row.eid.parse::<IpPrefix>().is_ok_and(|p| p == eid.prefix)
    };
    let mut found = rows.iter().filter(ours);
    match (found.next(), found.count()) {
        (None, _) => Measurement::Empty,
        (Some(row), 0) => {
            let sampled_at = Duration::from_nanos(row.measured_at_unix_ns);
            Measurement::judge_at(row.flows_per_second, sampled_at, now, max_age)
        }
        (Some(_), more) => Measurement::SeveralSeries { count: more + 1 },
    }
}

fn no_answer(error: FetchError) -> Measurement {
    match error {
        FetchError::Timeout { after } => Measurement::Timeout { after },
        FetchError::Unreachable(error) => Measurement::Unreachable { error },
        FetchError::Status { status, message } => Measurement::HttpError { status, message },
        error @ (FetchError::TooLong | FetchError::Malformed(_)) => {
            Measurement::Malformed { what: error.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balance::MeasurementKind;
    use lisp::wire::InstanceId;

    const NOW: Duration = Duration::from_secs(1_795_350_596);

    fn eid(prefix: &str, instance_id: u32) -> EidPrefix {
        EidPrefix { instance_id: InstanceId(instance_id), prefix: prefix.parse().unwrap() }
    }

    fn rows(text: &str) -> Vec<Load> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_row_of_the_eid_is_taken() {
        let rows = rows(
            r#"[{"eid":"10.100.0.1/32","instance_id":7,"flows_per_second":1,"measured_at_unix_ns":0},
                {"eid":"10.100.0.1/32","instance_id":0,"flows_total":9,"flows_per_second":412.5,"packets_total":1,
                 "bytes_total":1,"measured_at_unix_ns":1795350595900000000}]"#,
        );
        let of = |eid| of_gateway(&rows, eid, NOW, Duration::from_secs(1));
        let ours = of(eid("10.100.0.1/32", 0));
        assert!(
            matches!(ours, Measurement::Fresh { load, age } if load.rps() == 412.5 && age.as_millis() == 100)
        );
        assert_eq!(of(eid("10.100.0.1/32", 7)).kind(), MeasurementKind::Stale);
        assert_eq!(of(eid("10.100.0.2/32", 0)), Measurement::Empty);
    }

    #[test]
    fn one_eid_twice_is_refused() {
        let row = r#"{"eid":"10.100.0.1/32","flows_per_second":1,"measured_at_unix_ns":0}"#;
        let rows = rows(&format!("[{row},{row}]"));
        let measurement = of_gateway(&rows, eid("10.100.0.1/32", 0), NOW, Duration::from_secs(1));
        assert_eq!(measurement, Measurement::SeveralSeries { count: 2 });
    }
}
