//! The VIPs of a moment ago: one cell in place of the VIP table, on one CPU, for as long as user space has changed
//! nothing (docs/decisions/0008 has the same in front of the gateway's flow table).

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE, btf_maps::Array, helpers::generated::bpf_get_smp_processor_id, macros::btf_map,
};
use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{VIP_CACHE_CELLS, VipValue};

use crate::headers::Address;
use crate::maps::VipWords;
use crate::verifier::Aligned;

/// A VIP's key and value. One cache line.
#[repr(C, align(8))]
struct VipCell {
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
    pad: [u32; 2],
}
const _: () = assert!(size_of::<VipCell>() == 64);

/// [`VIP_CACHE_CELLS`] for each CPU, which user space knows the number of. No per-CPU array, and mappable, because that
/// aligns it: asking for a VIP touches one line.
#[btf_map]
static VIP_CACHE: Array<VipCell, { VIP_CACHE_CELLS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The VIP's value by the table of `generation`: remembered, or asked for and then remembered.
#[inline(always)]
pub(crate) fn find(
    generation: u32,
    key: &Aligned<VipWords>,
    ask: impl FnOnce() -> Result<Option<VipValue>, Reason>,
) -> Result<Option<VipValue>, Reason> {
    // SAFETY: no memory is touched.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(cell) = VIP_CACHE.get_ptr_mut(cpu * VIP_CACHE_CELLS + index(&key.0)) else { return ask() };
    // SAFETY: this CPU's cell of an array, valid for the run of the program; programs do not preempt each other on a CPU.
    let cell = unsafe { &mut *cell };
    if generation != 0 && cell.generation == generation && cell.is_of(&key.0) {
        return Ok(Some(cell.value()));
    }
    let Some(value) = ask()? else { return Ok(None) };
    cell.note(generation, &key.0, &value);
    Ok(Some(value))
}

impl VipCell {
    #[inline(always)]
    fn is_of(&self, key: &VipWords) -> bool {
        self.address == key.address && self.segment == key.segment && self.port_protocol == key.port_protocol
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
    const fn note(&mut self, generation: u32, key: &VipWords, value: &VipValue) {
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
            pad: [0; 2],
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
