//! Rule 8: the backend.

use bpf_abi::balancer::{
    BACKEND_USABLE, BalancedFlowValue, CHUNK_SLOTS, CHUNKS, NO_BACKEND, VIP_FLOW_TABLE, VipValue, slot,
};
use bpf_abi::{BalancerReason, FlowKey, flow_hash_from};

use super::{Choice, State};

impl State {
    /// `quoted`: the packet is an ICMP error about the flow.
    pub(super) fn choose(
        &self,
        vip: &VipValue,
        flow: FlowKey,
        first: bool,
        quoted: bool,
    ) -> Result<Choice, BalancerReason> {
        let hash = flow_hash_from(self.node.seed, &flow);
        let current = self.named(vip.table, vip.size, hash);
        let previous = self.named(vip.previous_table, vip.previous_size, hash);
        let moved = vip.previous_size > 0 && previous != current;
        let previous = previous.filter(|index| moved && self.usable(*index));
        let remembers = vip.flags & VIP_FLOW_TABLE != 0;

        let known = (!first && (remembers || moved)).then(|| self.known(&flow)).flatten();
        let (backend, reason, remember) = match (known, previous) {
            (Some(known), _) => (known, BalancerReason::ForwardedFlow, false),
            (None, Some(previous)) if !first => (previous, BalancerReason::ForwardedPrevious, remembers),
            _ => {
                if !made(vip, hash) {
                    return Err(BalancerReason::DropNotReady);
                }
                let current =
                    current.filter(|index| self.usable(*index)).ok_or(BalancerReason::DropNoBackend)?;
                // Without a flow table: a first packet whose successors would go to the previous backend.
                (current, BalancerReason::Forwarded, remembers || moved && first)
            }
        };
        let value = || BalancedFlowValue { backend, serial: self.backend(backend).serial };
        let remembered = (remember && !quoted).then(|| (flow, value()));
        Ok(Choice { vip: vip.id, backend, reason, remembered })
    }

    /// The backend in the flow's slot.
    fn named(&self, table: u32, size: u32, hash: u32) -> Option<u32> {
        if size == 0 {
            return None;
        }
        let slot = slot(hash, size);
        let slots = self.chunks.get(&(table + slot / CHUNK_SLOTS)).copied().unwrap_or_default();
        let index = slots[(slot % CHUNK_SLOTS) as usize];
        (index != NO_BACKEND).then_some(index.into())
    }

    fn usable(&self, index: u32) -> bool {
        self.backend(index).flags & BACKEND_USABLE != 0
    }

    /// Where the flow is remembered, if that backend is still the same and usable.
    fn known(&self, flow: &FlowKey) -> Option<u32> {
        let remembered = self.flows.get(flow)?;
        let same = self.backend(remembered.backend).serial == remembered.serial;
        (same && self.usable(remembered.backend)).then_some(remembered.backend)
    }
}

/// The flow's slot is within the memory of tables.
fn made(vip: &VipValue, hash: u32) -> bool {
    ((vip.table + slot(hash, vip.size) / CHUNK_SLOTS) as usize) < CHUNKS
}
