//! The VIPs of a moment ago: one cell in place of the VIP table, on one CPU, for as long as user space has changed
//! nothing (docs/decisions/0008 has the same in front of the gateway's flow table).

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{BalancerNodeValue, VIP_CACHE_CELLS, VipValue};

use crate::headers::Address;
use crate::maps::{MAPPABLE, VipWords, cpu};
use crate::packet::native;
use crate::verifier::Aligned;

/// A VIP's key and value. One cache line.
#[repr(C, align(8))]
pub(crate) struct VipCell {
    address: Address,
    segment: u32,
    port_protocol: u32,
    /// Of the VIP table, read before it.
    generation: u32,
    id: u32,
    flags: u32,
    table: u32,
    size: u32,
    previous_table: u32,
    previous_size: u32,
    drain: u32,
    /// [`bpf_abi::balancer::FlowHash::destination_part`] of the VIP's flows.
    hash: u64,
}
const _: () = assert!(size_of::<VipCell>() == 64);

/// [`VIP_CACHE_CELLS`] for each CPU, which user space knows the number of. No per-CPU array, and mappable, because that
/// aligns it: asking for a VIP touches one line.
#[btf_map]
static VIP_CACHE: Array<VipCell, { VIP_CACHE_CELLS as usize }, MAPPABLE> = Array::new();

/// The VIP's value by the table of `generation`: remembered, or asked for and then remembered.
#[inline(always)]
pub(crate) fn find(
    node: &BalancerNodeValue,
    generation: u32,
    key: &Aligned<VipWords>,
    ask: impl FnOnce() -> Result<Option<VipValue>, Reason>,
) -> Result<Option<VipValue>, Reason> {
    let Some(cell) = cell(cpu(), &key.0) else { return ask() };
    // SAFETY: this CPU's cell of an array, valid for the run of the program; programs do not preempt each other on a CPU.
    let cell = unsafe { &mut *cell };
    if cell.is_of(generation, &key.0) {
        return Ok(Some(cell.value()));
    }
    let Some(value) = ask()? else { return Ok(None) };
    cell.note(node, generation, &key.0, &value);
    Ok(Some(value))
}

/// The VIP of a key, if it is remembered.
#[inline(always)]
pub(crate) fn remembered(cpu: u32, generation: u32, key: &VipWords) -> Option<&'static VipCell> {
    // SAFETY: as in `find`; nothing changes the cell while the reference is in use.
    let cell = unsafe { &*cell(cpu, key)? };
    cell.is_of(generation, key).then_some(cell)
}

#[inline(always)]
fn cell(cpu: u32, key: &VipWords) -> Option<*mut VipCell> {
    VIP_CACHE.get_ptr_mut(cpu * VIP_CACHE_CELLS + index(key))
}

impl VipCell {
    #[inline(always)]
    fn is_of(&self, generation: u32, key: &VipWords) -> bool {
        generation != 0
            && self.generation == generation
            && self.address == key.address
            && self.segment == key.segment
            && self.port_protocol == key.port_protocol
    }

    /// Index of its counters.
    #[inline(always)]
    pub(crate) const fn id(&self) -> u32 {
        self.id
    }

    /// The table and its size, if that is all there is to the choice of a backend.
    #[inline(always)]
    pub(crate) const fn only_table(&self) -> Option<(u32, u32)> {
        if self.flags | self.previous_size != 0 { None } else { Some((self.table, self.size)) }
    }

    /// [`bpf_abi::balancer::FlowHash::destination_part`].
    #[inline(always)]
    pub(crate) const fn destination_part(&self) -> u64 {
        self.hash
    }

    #[inline(always)]
    const fn value(&self) -> VipValue {
        VipValue {
            generation: 0,
            id: self.id,
            flags: self.flags,
            table: self.table,
            size: self.size,
            previous_table: self.previous_table,
            previous_size: self.previous_size,
            drain: self.drain,
            pad: 0,
            generation_again: 0,
        }
    }

    #[inline(always)]
    fn note(&mut self, node: &BalancerNodeValue, generation: u32, key: &VipWords, value: &VipValue) {
        let protocol = key.port_protocol >> 16 & 0xff;
        *self = Self {
            address: key.address,
            segment: key.segment,
            port_protocol: key.port_protocol,
            generation,
            id: value.id,
            flags: value.flags,
            table: value.table,
            size: value.size,
            previous_table: value.previous_table,
            previous_size: value.previous_size,
            drain: value.drain,
            hash: node.flow_hash.destination_part(native(key.address), key.segment, protocol),
        };
    }
}

#[inline(always)]
const fn index(key: &VipWords) -> u32 {
    let [a, b, c, d] = key.address;
    let mixed =
        (a ^ b ^ c ^ d ^ key.segment).wrapping_mul(0x9e37_79b1) ^ key.port_protocol.wrapping_mul(0x85eb_ca6b);
    mixed.wrapping_mul(0x9e37_79b1) >> (u32::BITS - VIP_CACHE_CELLS.ilog2())
}
