//! What the API and the scraper may read at any time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bpf_abi::Reason;
use dataplane::{Eid, Traffic};
use lisp::machine::Counter;

use super::body::{AppliedBody, LoadBody};

/// Publications remembered as applied.
const APPLIED_MAX: usize = 4096;

/// State behind a lock that is never held across an await.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

/// The last measurement and the counters.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Kernel counters by prefix and locator.
    pub(super) traffic: Vec<Traffic>,
    /// Kernel counters by reason.
    pub(super) reasons: Vec<(Reason, u64)>,
    /// Load by prefix.
    pub(super) load: Vec<Load>,
    /// Publications in force.
    pub(super) applied: VecDeque<AppliedBody>,
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
    /// The state; callers do not keep it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every field is valid by itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes that a publication is in force.
    pub(super) fn apply(&mut self, applied: AppliedBody) {
        self.applied.push_back(applied);
        if self.applied.len() > APPLIED_MAX {
            self.applied.pop_front();
        }
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
