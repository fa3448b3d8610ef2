//! What was decided about a service, newest last, bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use balance::{Decision, HoldReason, Outcome};

use super::fetch::FetchError;

/// Records kept of one service.
const KEPT: usize = 512;

/// A decision and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Time of the first decision of this kind, since the Unix epoch.
    pub(super) first_at: Duration,
    /// Time of `decision`, since the Unix epoch.
    pub(super) at: Duration,
    /// Decisions in a row that this record stands for.
    pub(super) repeats: u64,
    /// The newest of them.
    pub(super) decision: Decision,
    /// What became of it.
    pub(super) effect: Effect,
}

/// What became of a decision.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    /// There was nothing to write.
    NothingToWrite,
    /// The map server took the weights.
    Written {
        /// When it said so, since the Unix epoch.
        at: Duration,
    },
    /// The map server did not take them; the next tick decides anew.
    WriteFailed(FetchError),
    /// The weights in place could not be read; nothing is changed that is not known.
    NotRead(FetchError),
}

impl Effect {
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::NothingToWrite => "nothing-to-write",
            Self::Written { .. } => "written",
            Self::WriteFailed(_) => "write-failed",
            Self::NotRead(_) => "not-read",
        }
    }

    pub(super) const fn error(&self) -> Option<&FetchError> {
        match self {
            Self::WriteFailed(error) | Self::NotRead(error) => Some(error),
            Self::NothingToWrite | Self::Written { .. } => None,
        }
    }
}

/// How a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was decided yet.
    Starting,
    /// Decided from a fresh load, and the map server has it.
    Fresh,
    /// There is no fresh load; the weights in place stand.
    Held,
    /// There is a fresh load, but the map server cannot be read or written; its weights stand.
    Unapplied,
}

impl State {
    pub(super) const ALL: [Self; 4] = [Self::Starting, Self::Fresh, Self::Held, Self::Unapplied];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Fresh => "fresh",
            Self::Held => "held",
            Self::Unapplied => "unapplied",
        }
    }
}

impl Record {
    pub(super) fn state(&self) -> State {
        match (&self.decision.outcome, self.effect.error()) {
            (Outcome::Held(HoldReason::NoFreshLoad), _) => State::Held,
            (_, Some(_)) => State::Unapplied,
            (_, None) => State::Fresh,
        }
    }

    /// Whether `next` says the same again. Two changes never are the same.
    fn is_repeated_by(&self, next: &Self) -> bool {
        !matches!(next.effect, Effect::Written { .. })
            && self.effect.as_str() == next.effect.as_str()
            && self.decision.outcome.as_str() == next.decision.outcome.as_str()
            && self.decision.measurement.kind() == next.decision.measurement.kind()
            && self.decision.weights == next.decision.weights
    }
}

/// The newest records of one service. Whoever reads them takes pointers: none is changed once it is there.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Arc<Record>>);

impl History {
    /// Adds a record; a repetition joins the last one. Says whether it was something new.
    pub(super) fn push(&mut self, record: Record) -> bool {
        if let Some(last) = self.0.back_mut().filter(|last| last.is_repeated_by(&record)) {
            let (first_at, repeats) = (last.first_at, last.repeats.saturating_add(1));
            *last = Arc::new(Record { first_at, repeats, ..record });
            return false;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Arc::new(record));
        true
    }

    pub(super) fn newest(&self) -> Option<&Record> {
        self.0.back().map(Arc::as_ref)
    }

    /// Newest first.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Record>> {
        self.0.iter().rev()
    }
}
