//! What a scrape may read at any time: the last measurement.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bpf_abi::BalancerReason;
use bpf_abi::balancer::BalancedValue;

/// State behind a lock that is never held across an await.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Sample>);

/// The last measurement.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// Frames by reason.
    pub(super) reasons: Vec<(BalancerReason, u64)>,
    /// By name.
    pub(super) vips: Vec<VipSample>,
    /// The program is not on the port.
    pub(super) port_away: bool,
    /// VLANs whose frames the port may drop.
    pub(super) filtered_vlans: usize,
}

/// A VIP's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VipSample {
    /// Its name.
    pub(super) name: String,
    /// Frames sent to its backends; unknown before the data path has them.
    pub(super) sent: Option<BalancedValue>,
    /// Octets of its tables.
    pub(super) table_bytes: u64,
    /// All of its backends fail.
    pub(super) all_fail: bool,
    /// How often that began.
    pub(super) all_failed: u64,
    /// A change is younger than its drain.
    pub(super) draining: bool,
    /// Its backends.
    pub(super) backends: Vec<BackendSample>,
}

/// A backend's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendSample {
    /// Its name.
    pub(super) name: String,
    /// Frames sent to it; unknown before the data path has it.
    pub(super) sent: Option<BalancedValue>,
    /// The verdict of its checks, if there is one.
    pub(super) healthy: Option<bool>,
    /// Its checks cannot be sent, if it has any.
    pub(super) not_sent: Option<bool>,
    /// Slots that name it.
    pub(super) slots: u32,
    /// Weight in force.
    pub(super) weight: u32,
}

impl Shared {
    /// The sample; callers do not keep it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Sample> {
        // Every field is valid by itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
