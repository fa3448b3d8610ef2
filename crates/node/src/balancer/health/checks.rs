//! The monitor at work: probes run as tasks, their results come back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep_until;

use super::failure::Failure;
use super::monitor::{Changed, Monitor, NotSent, Output, Pace, State};
use super::probe::{Check, Endpoint, probe};
use crate::clock::Clock;

/// What is checked of a target, and how.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What it has to do.
    pub check: Check,
    /// How it is reached.
    pub endpoint: Endpoint,
    /// Longest time for one probe.
    pub timeout: Duration,
    /// When, and how often it must have been seen.
    pub pace: Pace,
}

/// What happened to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News<K> {
    /// Its state changed.
    Changed(Changed<K>),
    /// Its probes cannot be sent, or can again.
    NotSent(NotSent<K>),
}

/// Probes of all targets.
#[derive(Debug)]
pub struct Checks<K> {
    clock: Clock,
    monitor: Monitor<K>,
    watched: BTreeMap<K, Watched>,
    /// Only of probes that have not ended: a handle keeps all memory of its task.
    running: BTreeMap<K, AbortHandle>,
    probes: JoinSet<(K, u64, Result<(), Failure>)>,
}

impl<K: Ord + Clone + Send + 'static> Checks<K> {
    /// Watches nothing yet; `random` keeps nodes out of step.
    #[must_use]
    pub fn new(clock: Clock, random: u64) -> Self {
        let (watched, running) = (BTreeMap::new(), BTreeMap::new());
        Self { clock, monitor: Monitor::new(random), watched, running, probes: JoinSet::new() }
    }

    /// Watches exactly these; those that stay keep their state.
    pub fn watch(&mut self, watched: BTreeMap<K, Watched>) {
        let paces = watched.iter().map(|(id, watched)| (id.clone(), watched.pace));
        self.monitor.set_targets(self.clock.now(), paces);
        let gone = self.running.extract_if(.., |id, _| !watched.contains_key(id));
        gone.for_each(|(_, probe)| probe.abort());
        self.watched = watched;
    }

    /// The state of a target; `None` if it is not watched.
    #[must_use]
    pub fn state(&self, id: &K) -> Option<State> {
        self.monitor.state(id)
    }

    /// Why the last probe of a target could not be sent; `None` if it was.
    #[must_use]
    pub fn not_sent(&self, id: &K) -> Option<&Failure> {
        self.monitor.not_sent(id)
    }

    /// Runs probes until something happens to a target. Cancelling loses nothing, but probes only go on while somebody
    /// waits here.
    pub async fn changed(&mut self) -> News<K> {
        loop {
            while let Some(output) = self.monitor.poll_output() {
                match output {
                    Output::Probe { id, run } => self.start(id, run),
                    Output::Changed(changed) => return News::Changed(changed),
                    Output::NotSent(not_sent) => return News::NotSent(not_sent),
                }
            }
            let idle = self.clock.now() + Duration::from_secs(3600);
            let wake = self.clock.deadline(self.monitor.poll_timeout().unwrap_or(idle));
            tokio::select! {
                // Results that are there come before timeouts: a busy node is no failure of a backend.
                biased;
                Some(ended) = self.probes.join_next() => {
                    // Probes do not panic, and one that was aborted is of no interest.
                    if let Ok((id, run, result)) = ended {
                        self.forget_ended(&id);
                        self.monitor.handle_result(self.clock.now(), &id, run, result);
                    }
                }
                () = sleep_until(wake) => self.monitor.handle_timeout(self.clock.now()),
            }
        }
    }

    fn start(&mut self, id: K, run: u64) {
        let Some(Watched { check, endpoint, timeout, .. }) = self.watched.get(&id).cloned() else { return };
        let key = id.clone();
        let probe = self.probes.spawn(async move {
            let result = probe(&check, &endpoint, timeout).await;
            (id, run, result)
        });
        if let Some(older) = self.running.insert(key, probe) {
            older.abort();
        }
    }

    /// A probe that was given up may end after a newer one began, which goes on then.
    fn forget_ended(&mut self, id: &K) {
        if self.running.get(id).is_some_and(AbortHandle::is_finished) {
            self.running.remove(id);
        }
    }
}
