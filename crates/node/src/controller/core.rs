//! One service under control, without clock or sockets: observations in, weights to write out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use balance::{Capacity, DeadBand, Decision, Edge, Edges, Measurement, decide};
use lisp::wire::EidPrefix;

use super::ControllerError;
use super::fetch::FetchError;
use super::history::{Effect, History, Record, State};
use super::weights::WeightSet;
use crate::config::Service;

/// Which service it is, at one gateway or at all of them.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) eid: EidPrefix,
    pub(super) gateway: Option<String>,
    /// Of its edges, in priority order.
    pub(super) rlocs: Vec<IpAddr>,
}

/// How a service stood at one moment. Made of pointers: it is taken under a lock that the loop waits for.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) subject: Arc<Subject>,
    pub(super) state: State,
    pub(super) state_since: Duration,
    pub(super) changed_at: Option<Duration>,
    /// Newest first, as many as were asked for.
    pub(super) records: Vec<Arc<Record>>,
}

/// One service under control. Times are since the Unix epoch.
#[derive(Debug)]
pub(super) struct ServiceCore {
    subject: Arc<Subject>,
    edges: Edges,
    dead_band: DeadBand,
    /// As last read from or written to the map server.
    in_force: Option<Vec<u8>>,
    /// Decided, and the map server has not answered yet.
    writing: Option<(Duration, Decision)>,
    history: History,
    state: State,
    state_since: Duration,
    changed_at: Option<Duration>,
}

impl ServiceCore {
    pub(super) fn new(service: &Service, now: Duration) -> Result<Self, ControllerError> {
        let refused = |why: String| ControllerError::Service { service: service.name.clone(), why };
        let edge = |edge: &crate::config::Edge| {
            Ok(Edge { name: edge.name.clone(), capacity: Capacity::new(edge.capacity)? })
        };
        let edges: Result<Vec<Edge>, balance::CapacityError> = service.edges.iter().map(edge).collect();
        let edges = edges.map_err(|e| refused(e.to_string()))?;
        let subject = Subject {
            name: service.name.clone(),
            eid: service.eid,
            gateway: service.gateway.clone(),
            rlocs: service.edges.iter().map(|edge| edge.rloc).collect(),
        };
        Ok(Self {
            subject: Arc::new(subject),
            edges: Edges::new(edges).map_err(|e| refused(e.to_string()))?,
            dead_band: DeadBand::new(service.dead_band).map_err(|e| refused(e.to_string()))?,
            in_force: None,
            writing: None,
            history: History::default(),
            state: State::Starting,
            state_since: now,
            changed_at: None,
        })
    }

    /// Decides from what was measured and what is in place; the weights to write, if any, are answered
    /// by [`Self::handle_written`]. Without knowing what is in place nothing is written.
    pub(super) fn handle_observation(
        &mut self,
        at: Duration,
        measurement: Measurement,
        in_place: Result<Vec<WeightSet>, FetchError>,
    ) -> Option<WeightSet> {
        let unread = match in_place {
            Ok(sets) => {
                self.in_force = self.ours(&sets);
                None
            }
            Err(error) => Some(error),
        };
        let decision = decide(&self.edges, self.dead_band, measurement, self.in_force.as_deref());
        let weights = decision.weights.clone().filter(|_| decision.is_change());
        match (unread, weights) {
            (Some(error), _) => self.record(at, decision, Effect::NotRead(error)),
            (None, None) => self.record(at, decision, Effect::NothingToWrite),
            (None, Some(weights)) => {
                self.writing = Some((at, decision));
                let Subject { eid, gateway, rlocs, .. } = &*self.subject;
                let (prefix, instance_id) = (eid.prefix, eid.instance_id.0);
                return Some(WeightSet::new(prefix, instance_id, gateway.as_deref(), rlocs, &weights));
            }
        }
        None
    }

    /// What the map server said to the weights of the last [`Self::handle_observation`].
    pub(super) fn handle_written(&mut self, at: Duration, result: Result<(), FetchError>) {
        let Some((decided_at, decision)) = self.writing.take() else { return };
        let effect = match result {
            Ok(()) => {
                self.in_force = decision.weights.clone();
                self.changed_at = Some(at);
                Effect::Written { at }
            }
            Err(error) => Effect::WriteFailed(error),
        };
        self.record(decided_at, decision, effect);
    }

    fn ours(&self, sets: &[WeightSet]) -> Option<Vec<u8>> {
        let Subject { eid, gateway, rlocs, .. } = &*self.subject;
        let ours = |set: &&WeightSet| set.is_for(eid.prefix, eid.instance_id.0, gateway.as_deref());
        sets.iter().find(ours)?.weights_of(rlocs)
    }

    fn record(&mut self, at: Duration, decision: Decision, effect: Effect) {
        let record = Record { first_at: at, at, repeats: 1, decision, effect };
        let state = record.state();
        if state != self.state {
            self.state = state;
            self.state_since = at;
        }
        let outcome = record.decision.outcome.to_string();
        let (measurement, error) = (record.decision.measurement.to_string(), record.effect.error().cloned());
        let (changed, weights) = (record.decision.is_change(), record.decision.weights.clone());
        if !self.history.push(record) {
            return;
        }
        let service = self.name();
        match error {
            Some(error) => tracing::warn!(service, %outcome, %measurement, %error, "weights not applied"),
            None if changed => tracing::info!(service, %outcome, %measurement, ?weights, "weights changed"),
            None if state == State::Held => tracing::warn!(service, %measurement, ?weights, "weights held"),
            None => tracing::debug!(service, %outcome, %measurement, "weights stand"),
        }
    }
}

/// What the API and the metrics show.
impl ServiceCore {
    /// As it stands, with at most so many of its newest records.
    pub(super) fn snapshot(&self, records: usize) -> Snapshot {
        Snapshot {
            subject: Arc::clone(&self.subject),
            state: self.state,
            state_since: self.state_since,
            changed_at: self.changed_at,
            records: self.history.iter().take(records).cloned().collect(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.subject.name
    }

    pub(super) const fn history(&self) -> &History {
        &self.history
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Whose API asks for another token, in words: no later decision can help.
    pub(super) fn refused_token(&self) -> Option<String> {
        const UNAUTHORIZED: u16 = 401;
        let newest = self.history.newest()?;
        let service = self.name();
        match (newest.effect.error(), &newest.decision.measurement) {
            (Some(error @ FetchError::Status { status: UNAUTHORIZED, .. }), _) => {
                Some(format!("service {service}: the map server: {error}"))
            }
            (_, measurement @ Measurement::HttpError { status: UNAUTHORIZED, .. }) => {
                Some(format!("service {service}: {measurement}"))
            }
            _ => None,
        }
    }

    /// Time of the last change that the map server took.
    pub(super) const fn changed_at(&self) -> Option<Duration> {
        self.changed_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadSource, Source};
    use crate::controller::tests::service;

    fn core() -> ServiceCore {
        let source = Source {
            kind: LoadSource::Gateway,
            url: "http://127.0.0.1:1".into(),
            token: None,
            max_age: Duration::from_secs(5),
            timeout: Duration::from_millis(500),
        };
        ServiceCore::new(&service(source), Duration::ZERO).unwrap()
    }

    fn load(rps: f64) -> Measurement {
        Measurement::judge(rps, Duration::ZERO, Duration::from_secs(5))
    }

    const fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn refused() -> FetchError {
        FetchError::Unreachable("connection refused".into())
    }

    #[test]
    fn weights_in_place_are_taken_over_at_the_start() {
        let before = core().handle_observation(at(1), load(1000.0), Ok(vec![])).unwrap();
        let mut restarted = core();
        assert_eq!(restarted.state(), State::Starting);
        assert_eq!(restarted.handle_observation(at(2), load(1000.0), Ok(vec![before])), None);
        assert_eq!(restarted.state(), State::Fresh);
        assert_eq!(restarted.changed_at(), None);
    }

    #[test]
    fn what_cannot_be_read_is_not_changed() {
        let mut core = core();
        assert_eq!(core.handle_observation(at(1), load(1000.0), Err(refused())), None);
        assert_eq!(core.state(), State::Unapplied);
        assert_eq!(core.history().newest().unwrap().effect, Effect::NotRead(refused()));
        assert!(core.handle_observation(at(2), load(1000.0), Ok(vec![])).is_some());
    }

    #[test]
    fn a_failed_write_is_tried_again_and_the_old_weights_stand() {
        let mut core = core();
        let first = core.handle_observation(at(1), load(100.0), Ok(vec![])).unwrap();
        core.handle_written(at(1), Ok(()));
        let second = core.handle_observation(at(2), load(1000.0), Ok(vec![first.clone()])).unwrap();
        core.handle_written(at(2), Err(refused()));
        assert_eq!((core.state(), core.state_since), (State::Unapplied, at(2)));
        assert_eq!(core.handle_observation(at(3), load(1000.0), Ok(vec![first])), Some(second));
        core.handle_written(at(3), Ok(()));
        assert_eq!((core.state(), core.state_since, core.changed_at()), (State::Fresh, at(3), Some(at(3))));
    }

    #[test]
    fn weights_that_vanish_or_were_edited_are_put_back() {
        let mut core = core();
        let weights = core.handle_observation(at(1), load(1000.0), Ok(vec![])).unwrap();
        core.handle_written(at(1), Ok(()));
        assert_eq!(core.handle_observation(at(2), load(1000.0), Ok(vec![])), Some(weights.clone()));
        core.handle_written(at(2), Ok(()));
        let mut edited = weights.clone();
        edited.locators[0].weight = 255;
        assert_eq!(core.handle_observation(at(3), load(1000.0), Ok(vec![edited])), Some(weights));
    }

    #[test]
    fn repeated_holds_are_one_record() {
        let mut core = core();
        let weights = core.handle_observation(at(1), load(1000.0), Ok(vec![])).unwrap();
        core.handle_written(at(1), Ok(()));
        for tick in 2..1000 {
            assert_eq!(
                core.handle_observation(at(tick), Measurement::Empty, Ok(vec![weights.clone()])),
                None
            );
        }
        let records = core.snapshot(3).records;
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].first_at, records[0].at, records[0].repeats), (at(2), at(999), 998));
        assert_eq!((core.state(), core.state_since), (State::Held, at(2)));
    }

    #[test]
    fn a_snapshot_stays_as_it_was_taken() {
        let mut core = core();
        core.handle_observation(at(1), Measurement::Empty, Ok(vec![]));
        let snapshot = core.snapshot(1);
        core.handle_observation(at(2), Measurement::Empty, Ok(vec![]));
        core.handle_observation(at(3), load(1000.0), Ok(vec![])).unwrap();
        core.handle_written(at(3), Ok(()));
        let records: Vec<_> = snapshot.records.iter().map(|record| (record.at, record.repeats)).collect();
        assert_eq!((snapshot.state, records), (State::Held, vec![(at(1), 1)]));
        let records: Vec<_> =
            core.snapshot(9).records.iter().map(|record| (record.at, record.repeats)).collect();
        assert_eq!(records, [(at(3), 1), (at(2), 2)]);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut core = core();
        for tick in 0..2000u64 {
            let rps = if tick % 2 == 0 { 100.0 } else { 1000.0 };
            core.handle_observation(at(tick), load(rps), Ok(vec![])).unwrap();
            core.handle_written(at(tick), Ok(()));
        }
        assert_eq!(core.history().iter().count(), 512);
        assert_eq!(core.history().newest().unwrap().at, at(1999));
    }

    #[test]
    fn an_answer_that_nobody_asked_for_changes_nothing() {
        let mut core = core();
        core.handle_written(at(1), Ok(()));
        assert_eq!((core.state(), core.changed_at()), (State::Starting, None));
    }
}
