//! When to probe whom, and what results make of a target: pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use codec::Instant;

use super::failure::Failure;
use crate::balancer::jitter::Jitter;

/// How often a target is probed, and how many equal results in a row change its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From one probe to the next, lengthened by up to a tenth at random: a timeout may be as long as the interval.
    pub interval: Duration,
    /// Successes that make a target healthy; 0 is taken as 1.
    pub rise: u32,
    /// Failures that make a target unhealthy; 0 is taken as 1.
    pub fall: u32,
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not enough results: not the same as [`State::Unhealthy`].
    Unknown,
    /// The last change was to answering.
    Healthy,
    /// The last change was to not answering.
    Unhealthy,
}

/// What the monitor wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<K> {
    /// Probe the target; an older probe of it is of no interest any more.
    Probe {
        /// Which target.
        id: K,
        /// To be given back with the result.
        run: u64,
    },
    /// A target's state changed.
    Changed(Changed<K>),
    /// Probes of a target cannot be sent, or can again.
    NotSent(NotSent<K>),
}

/// Probes of a target cannot be sent, or can again: its state stands while they cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent<K> {
    /// Which target.
    pub id: K,
    /// Why not; `None` once one was sent.
    pub reason: Option<Failure>,
}

/// A target's state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<K> {
    /// Which target.
    pub id: K,
    /// What it is now.
    pub state: State,
    /// The failure that decided it.
    pub reason: Option<Failure>,
}

/// Probes targets in their pace and judges the results.
///
/// A result that says nothing about the target ([`Failure::is_local`]) does not change its state: data that is missing is
/// no failure. It is told once, until a probe says something again.
#[derive(Debug)]
pub struct Monitor<K> {
    jitter: Jitter,
    runs: u64,
    targets: BTreeMap<K, Target>,
    due: BTreeSet<(Instant, K)>,
    outputs: VecDeque<Output<K>>,
}

#[derive(Debug)]
struct Target {
    pace: Pace,
    state: State,
    /// Equal results in a row that speak against the state.
    streak: u32,
    streak_of_failures: bool,
    due: Instant,
    running: Option<Running>,
    not_sent: Option<Failure>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    run: u64,
    since: Instant,
}

impl<K: Ord + Clone> Monitor<K> {
    /// Watches nothing yet. Monitors with different `random` do not probe in step.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self {
            jitter: Jitter::new(random),
            runs: 0,
            targets: BTreeMap::new(),
            due: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Watches exactly these. Those that stay keep their state, and a new pace holds at once; new ones are first
    /// probed within a quarter of their interval.
    pub fn set_targets(&mut self, now: Instant, targets: impl IntoIterator<Item = (K, Pace)>) {
        let mut old = std::mem::take(&mut self.targets);
        self.due.clear();
        for (id, pace) in targets.into_iter().collect::<BTreeMap<_, _>>() {
            let target = match old.remove(&id) {
                Some(known) => Target { pace, due: known.due.min(now + pace.interval), ..known },
                None => Target::new(pace, now + self.jitter.up_to(pace.interval / 4)),
            };
            self.due.insert((target.due, id.clone()));
            self.targets.insert(id, target);
        }
        let targets = &self.targets;
        self.outputs.retain(|output| match output {
            Output::Probe { id, .. }
            | Output::Changed(Changed { id, .. })
            | Output::NotSent(NotSent { id, .. }) => targets.contains_key(id),
        });
    }

    /// The state of a target; `None` if it is not watched.
    #[must_use]
    pub fn state(&self, id: &K) -> Option<State> {
        self.targets.get(id).map(|target| target.state)
    }

    /// Why the last probe of a target could not be sent; `None` if it was.
    #[must_use]
    pub fn not_sent(&self, id: &K) -> Option<&Failure> {
        self.targets.get(id)?.not_sent.as_ref()
    }

    /// A probe ended. Results of probes that were given up come to nothing.
    pub fn handle_result(&mut self, _now: Instant, id: &K, run: u64, result: Result<(), Failure>) {
        let Some(target) = self.targets.get_mut(id) else { return };
        if target.running.is_none_or(|running| running.run != run) {
            return;
        }
        target.running = None;
        self.judge(id, result);
    }

    /// Starts what is due. A probe that is still running then has failed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.due.first().cloned().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id.clone()));
            let Some(target) = self.targets.get(&id) else { continue };
            let interval = target.pace.interval.max(Duration::from_millis(1));
            if let Some(running) = target.running {
                self.judge(&id, Err(Failure::Overdue { after: now - running.since }));
            }
            self.runs += 1;
            let due = now + interval + self.jitter.up_to(interval / 10);
            if let Some(target) = self.targets.get_mut(&id) {
                target.due = due;
                target.running = Some(Running { run: self.runs, since: now });
            }
            self.due.insert((due, id.clone()));
            self.outputs.push_back(Output::Probe { id, run: self.runs });
        }
    }

    /// When [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What there is to do; call until `None`.
    pub fn poll_output(&mut self) -> Option<Output<K>> {
        self.outputs.pop_front()
    }

    fn judge(&mut self, id: &K, result: Result<(), Failure>) {
        let Some(target) = self.targets.get_mut(id) else { return };
        let failure = result.err();
        let not_sent = failure.clone().filter(Failure::is_local);
        if target.not_sent != not_sent {
            target.not_sent.clone_from(&not_sent);
            self.outputs.push_back(Output::NotSent(NotSent { id: id.clone(), reason: not_sent.clone() }));
        }
        if not_sent.is_some() {
            return;
        }
        if let Some(state) = target.count(failure.is_some()) {
            let changed = Changed { id: id.clone(), state, reason: failure };
            self.outputs.push_back(Output::Changed(changed));
        }
    }
}

impl Target {
    const fn new(pace: Pace, due: Instant) -> Self {
        let (streak, streak_of_failures) = (0, false);
        Self { pace, state: State::Unknown, streak, streak_of_failures, due, running: None, not_sent: None }
    }

    /// One more result. The new state if it changed.
    fn count(&mut self, failed: bool) -> Option<State> {
        let (state, needed) = match failed {
            true => (State::Unhealthy, self.pace.fall),
            false => (State::Healthy, self.pace.rise),
        };
        if self.state == state {
            self.streak = 0;
            return None;
        }
        if self.streak_of_failures != failed {
            self.streak = 0;
        }
        self.streak_of_failures = failed;
        self.streak += 1;
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        self.state = state;
        Some(state)
    }
}

#[cfg(test)]
mod tests;
