//! What the API and the scraper may read at any time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bpf_abi::Reason;
use dataplane::{Eid, Traffic};
use lisp::machine::Counter;

use super::body::{AppliedBody, LoadBody};

/// Publications remembered as applied.
const APPLIED_MAX: usize = 4096;

/// State behind locks that nobody holds for longer than it takes to copy some pointers: the gateway's task needs them to
/// go on, and it runs before its readers.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Publications in force.
    applied: Mutex<VecDeque<Arc<AppliedBody>>>,
}

/// The last measurement and the counters. What may be long is replaced and not changed, so that a copy is short.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Kernel counters by prefix and locator.
    pub(super) traffic: Arc<[Traffic]>,
    /// Kernel counters by reason.
    pub(super) reasons: Arc<[(Reason, u64)]>,
    /// Load by prefix.
    pub(super) load: Arc<[Load]>,
    /// Counters of the machine.
    pub(super) control: BTreeMap<Counter, u64>,
    /// Packets to unresolved EIDs.
    pub(super) held: HeldCounters,
    /// Mappings in the map-cache.
    pub(super) map_cache_entries: usize,
    /// Changes of the table that could not be made.
    pub(super) refused_mappings: u64,
}

/// What became of packets to unresolved EIDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldCounters {
    /// Waiting now.
    pub(super) waiting: usize,
    /// Sent on their way after the mapping came.
    pub(super) released: u64,
    /// Given up.
    pub(super) dropped: u64,
}

/// Load of one prefix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// The prefix.
    pub(super) eid: Eid,
    /// New flows in front of the split.
    pub(super) flows: u64,
    /// Per second, once a window was seen.
    pub(super) rate: Option<f64>,
    /// Packets encapsulated.
    pub(super) packets: u64,
    /// Their octets.
    pub(super) bytes: u64,
    /// When.
    pub(super) measured_at_unix_ns: u64,
}

impl Shared {
    /// The state, for the gateway's task to change.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every field is valid by itself, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody holds the state.
    #[cfg(test)]
    pub(super) fn is_locked(&self) -> bool {
        matches!(self.state.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }

    /// The state as it is now, to be read at leisure.
    pub(super) fn snapshot(&self) -> State {
        self.lock().clone()
    }

    /// Notes that a publication is in force.
    pub(super) fn apply(&self, applied: AppliedBody) {
        let mut ring = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        ring.push_back(Arc::new(applied));
        if ring.len() > APPLIED_MAX {
            ring.pop_front();
        }
    }

    /// The latest publications in force, oldest first.
    pub(super) fn applied(&self) -> Vec<Arc<AppliedBody>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Load {
    /// For the API, once a window was seen.
    pub(super) fn body(&self) -> Option<LoadBody> {
        Some(LoadBody {
            eid: self.eid.prefix.to_string(),
            instance_id: self.eid.instance_id,
            flows_total: self.flows,
            flows_per_second: self.rate?,
            packets_total: self.packets,
            bytes_total: self.bytes,
            measured_at_unix_ns: self.measured_at_unix_ns,
        })
    }
}
