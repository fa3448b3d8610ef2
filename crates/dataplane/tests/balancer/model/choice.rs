//! Rule 8: the backend.

use bpf_abi::balancer::{
    BACKEND_USABLE, BalancedFlowValue, CHUNKS, FlowHash, VIP_FLOW_TABLE, VipValue, slot,
};
use bpf_abi::{BalancerReason, FlowKey};

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
        let hash = FlowHash::of_seed(self.node.seed).of(&flow);
        if !made(vip, hash) {
            return Err(BalancerReason::DropNotReady);
        }
        let current = self.named(vip.table, vip.size, hash);
        let previous = self.named(vip.previous_table, vip.previous_size, hash);
        let drains = vip.previous_size > 0;
        let moved = |index: &u32| drains && Some(*index) != current && self.usable(*index);
        let previous = previous.filter(moved);
        let remembers = vip.flags & VIP_FLOW_TABLE != 0;

        let known = if first || !(remembers || drains) { None } else { self.known(&flow, vip, remembers) };
        let (backend, reason, remember) = match (known, previous) {
            (Some(known), _) => (known, BalancerReason::ForwardedFlow, false),
            (None, Some(previous)) if !first => (previous, BalancerReason::ForwardedPrevious, remembers),
            _ => {
                let current =
                    current.filter(|index| self.usable(*index)).ok_or(BalancerReason::DropNoBackend)?;
                // Without a flow table: a first packet, so that what is not remembered is older than the drain.
                (current, BalancerReason::Forwarded, remembers || drains && first)
            }
        };
        let value = || {
            let serial = self.backend(backend).serial;
            BalancedFlowValue { backend, serial, drain: vip.drain, pad: 0 }
        };
        let remembered = (remember && !quoted).then(|| (flow, value()));
        Ok(Choice { vip: vip.id, backend, reason, remembered })
    }

    /// The backend in the flow's slot.
    fn named(&self, table: u32, size: u32, hash: u32) -> Option<u32> {
        if size == 0 {
            return None;
        }
        let slot = slot(hash, size);
        let octet = |at: u32| {
            let chunk = self.chunks.get(&(first(table) + at / 64)).copied().unwrap_or_default();
            chunk[(at % 64 / 2) as usize].to_ne_bytes()[(at % 2) as usize]
        };
        let index = |at: u32| u32::from(u16::from_ne_bytes([octet(at), octet(at + 1)]));
        if !has_palette(table) {
            return Some(index(2 * slot));
        }
        let palette = 64 * size.div_ceil(64);
        Some(index(palette + 2 * u32::from(octet(slot))))
    }

    fn usable(&self, index: u32) -> bool {
        self.backend(index).flags & BACKEND_USABLE != 0
    }

    /// Where the flow is remembered, since this drain began or for good, if that backend is still the same and usable.
    fn known(&self, flow: &FlowKey, vip: &VipValue, for_good: bool) -> Option<u32> {
        let remembered = self.flows.get(flow).filter(|flow| for_good || flow.drain == vip.drain)?;
        let same = self.backend(remembered.backend).serial == remembered.serial;
        (same && self.usable(remembered.backend)).then_some(remembered.backend)
    }
}

/// The flow's slot is within the memory of tables.
fn made(vip: &VipValue, hash: u32) -> bool {
    let slots_in_a_chunk = if has_palette(vip.table) { 64 } else { 32 };
    ((first(vip.table) + slot(hash, vip.size) / slots_in_a_chunk) as usize) < CHUNKS
}

const fn has_palette(table: u32) -> bool {
    table >= 1 << 28
}

const fn first(table: u32) -> u32 {
    table % (1 << 28)
}
