//! Link-layer addresses of the next hops of a moment ago.
//!
//! `bpf_redirect_neigh` finds the neighbour anew for every packet, which costs as much as all of a program's own work.
//! A cell repeats what the kernel said for an eighth of a second. The packet that asks still goes through the kernel's
//! neighbour, so the kernel sees that it is in use, probes it and resolves it as ever.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_FIB_LOOKUP_OUTPUT},
    btf_maps::Array,
    helpers::generated::bpf_get_smp_processor_id,
    macros::btf_map,
};
use bpf_abi::NEIGHBOUR_CELLS;

use crate::clock::{ticks, ticks_per_second};
use crate::headers::Address;
use crate::maps::MAPPABLE;
use crate::routes::{self, Macs};

/// A next hop on an interface. One cache line.
#[repr(C, align(8))]
struct NeighbourCell {
    address: Address,
    ifindex: u32,
    /// In ticks.
    asked: u32,
    /// 0: leave the packet to the kernel.
    known: u32,
    macs: Macs,
    pad: [u32; 6],
}
const _: () = assert!(size_of::<NeighbourCell>() == 64);

/// [`NEIGHBOUR_CELLS`] for each CPU; no per-CPU array for the reasons of the flow cache.
#[btf_map]
static NEIGHBOURS: Array<NeighbourCell, { NEIGHBOUR_CELLS as usize }, MAPPABLE> = Array::new();

/// MACs for a frame to `address` out of `ifindex`; `None` leaves them to the kernel.
///
/// # Safety
/// `context` is the context of this run.
#[inline(always)]
pub(crate) unsafe fn macs(context: *mut __sk_buff, ifindex: u32, address: &Address) -> Option<Macs> {
    // SAFETY: no memory is touched.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let cell = NEIGHBOURS.get_ptr_mut(cpu * NEIGHBOUR_CELLS + index(address))?;
    // SAFETY: this CPU's cell of an array, valid for the run of the program.
    let cell = unsafe { &mut *cell };
    let now = ticks() as u32;
    if now.wrapping_sub(cell.asked) < ticks_per_second() / 8 {
        // Next hops that share a cell do not take it from each other: asking costs more than it saves.
        let ours = cell.address == *address && cell.ifindex == ifindex && cell.known != 0;
        return ours.then_some(cell.macs);
    }
    // SAFETY: the caller's.
    let hop = unsafe { routes::ask(context.cast(), ifindex, address, BPF_FIB_LOOKUP_OUTPUT) };
    // Another way than the one that was asked for is none.
    let hop = hop.filter(|hop| hop.ifindex == ifindex && hop.address == *address);
    *cell = NeighbourCell {
        address: *address,
        ifindex,
        asked: now,
        known: u32::from(hop.is_some()),
        macs: hop.map_or([0; 3], |hop| hop.macs),
        pad: [0; 6],
    };
    None
}

#[inline(always)]
const fn index(address: &Address) -> u32 {
    let [a, b, c, d] = *address;
    (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1) >> (u32::BITS - NEIGHBOUR_CELLS.ilog2())
}
