//! Where the EIDs of a moment ago were: one cell in place of the trie, on one CPU, for as long as user space has
//! changed nothing.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_get_smp_processor_id, macros::btf_map};
use bpf_abi::{EGRESS_CACHE_CELLS, LocalEidValue};

use crate::headers::Address;
use crate::maps::{LOCAL_EIDS, MAPPABLE, longest};

/// An EID of this site and its prefix's value. One cache line.
#[repr(C, align(8))]
struct EgressCell {
    destination: Address,
    instance_id: u32,
    generation: u32,
    value: LocalEidValue,
    pad: [u32; 4],
}
const _: () = assert!(size_of::<EgressCell>() == 64);

/// [`EGRESS_CACHE_CELLS`] for each CPU; no per-CPU array for the reasons of the flow cache.
#[btf_map]
static EGRESS_CACHE: Array<EgressCell, { EGRESS_CACHE_CELLS as usize }, MAPPABLE> = Array::new();

/// Value of the longest local EID-prefix that holds an address, by the tables of `generation`, which was read before
/// any of them.
#[inline(always)]
pub(crate) fn local_eid(
    generation: u32,
    instance_id: u32,
    destination: &Address,
) -> Option<&'static LocalEidValue> {
    // SAFETY: no memory is touched.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let cell = EGRESS_CACHE.get_ptr_mut(cpu * EGRESS_CACHE_CELLS + index(instance_id, destination))?;
    // SAFETY: this CPU's cell of an array, valid for the run of the program.
    let cell = unsafe { &mut *cell };
    if generation != 0
        && cell.generation == generation
        && cell.instance_id == instance_id
        && cell.destination == *destination
    {
        return Some(&cell.value);
    }
    let value = longest(&LOCAL_EIDS, instance_id, destination)?;
    *cell = EgressCell { destination: *destination, instance_id, generation, value: *value, pad: [0; 4] };
    Some(value)
}

#[inline(always)]
const fn index(instance_id: u32, address: &Address) -> u32 {
    let [a, b, c, d] = *address;
    (a ^ b ^ c ^ d ^ instance_id).wrapping_mul(0x9e37_79b1) >> (u32::BITS - EGRESS_CACHE_CELLS.ilog2())
}
