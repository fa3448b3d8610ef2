//! What the role asks of its data path, so that everything above it runs without a kernel.

use std::collections::{BTreeMap, BTreeSet};

use codec::Instant;
use dataplane::DataplaneError;
use dataplane::balancer::{
    Applied, Balancer, Explanation, FilteredVlans, FlowQuery, Followed, PacketKind, Vip, VipCounters, VipId,
};
use dataplane::netlink::Link;
use futures_util::future::BoxFuture;

use bpf_abi::BalancerReason;

/// Slots of a VIP's table that name a backend, by its name.
pub(super) type SlotCounts = BTreeMap<VipId, BTreeMap<String, u32>>;

/// See [`Balancer`], whose methods these are.
pub(super) trait Datapath: Send {
    /// Brings the kernel's maps in step.
    fn apply(&mut self, now: Instant, desired: &[Vip]) -> Result<Applied, DataplaneError>;
    /// Follows the port to what it is now.
    fn follow(&mut self, link: Option<&Link>) -> Result<Followed, DataplaneError>;
    /// When [`Self::handle_timeout`] has something to do.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Ends drains.
    fn handle_timeout(&mut self, now: Instant) -> Result<(), DataplaneError>;
    /// Frames and octets.
    fn counters(&self) -> Result<Vec<VipCounters>, DataplaneError>;
    /// Frames by reason.
    fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError>;
    /// Octets of tables.
    fn memory(&self) -> Vec<(VipId, u64)>;
    /// VLANs whose frames the port may drop.
    fn filtered(&self) -> Vec<FilteredVlans>;
    /// VIPs with a change younger than their drain.
    fn draining(&self) -> BTreeSet<VipId>;
    /// Slots in force; walks over every table.
    fn slots(&self) -> SlotCounts;
    /// What becomes of a packet of a flow, or about it.
    fn explain(&self, flow: &FlowQuery, packet: PacketKind) -> Result<Explanation, DataplaneError>;
    /// Ends the process's part in it.
    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<(), DataplaneError>>;
}

impl Datapath for Balancer {
    fn apply(&mut self, now: Instant, desired: &[Vip]) -> Result<Applied, DataplaneError> {
        Self::apply(self, now, desired)
    }

    fn follow(&mut self, link: Option<&Link>) -> Result<Followed, DataplaneError> {
        Self::follow(self, link)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Self::poll_timeout(self)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DataplaneError> {
        Self::handle_timeout(self, now)
    }

    fn counters(&self) -> Result<Vec<VipCounters>, DataplaneError> {
        Self::counters(self)
    }

    fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError> {
        Self::reasons(self)
    }

    fn memory(&self) -> Vec<(VipId, u64)> {
        Self::memory(self)
    }

    fn filtered(&self) -> Vec<FilteredVlans> {
        Self::filtered(self)
    }

    fn draining(&self) -> BTreeSet<VipId> {
        Self::draining(self).into_iter().collect()
    }

    fn slots(&self) -> SlotCounts {
        Self::slots(self).into_iter().map(|(vip, slots)| (vip, slots.into_iter().collect())).collect()
    }

    fn explain(&self, flow: &FlowQuery, packet: PacketKind) -> Result<Explanation, DataplaneError> {
        Self::explain_packet(self, flow, packet)
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<(), DataplaneError>> {
        Box::pin(async move { Self::stop(*self).await })
    }
}
