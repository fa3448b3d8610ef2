//! The maps of the balancer, which user space fills.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::generated::bpf_get_smp_processor_id,
    macros::btf_map,
};
use bpf_abi::BalancerReason as Reason;
use bpf_abi::FlowKey;
use bpf_abi::balancer::{
    BACKENDS as BACKEND_COUNT, BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, CHUNKS,
    TableChunk, TunnelValue, VIP_ENTRIES, VIPS as VIP_COUNT, VipKey, VipValue,
};

use crate::headers::Address;

/// [`VipKey`] in words.
#[repr(C)]
pub(crate) struct VipWords {
    pub(crate) address: Address,
    pub(crate) segment: u32,
    /// Destination port in the first two octets of memory, protocol in the third.
    pub(crate) port_protocol: u32,
}
const _: () = assert!(size_of::<VipWords>() == size_of::<VipKey>());

/// [`FlowKey`] in words; the segment is its instance.
#[repr(C)]
pub(crate) struct FlowWords {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Source and destination port as in the packet.
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
    pub(crate) segment: u32,
}
const _: () = assert!(size_of::<FlowWords>() == size_of::<FlowKey>());

const REASONS_COUNT: usize = Reason::ALL.len();
/// User space reads and writes without a system call for each entry.
pub(crate) const MAPPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "BALANCER_VIPS")]
pub(crate) static VIPS: HashMap<VipWords, VipValue, VIP_ENTRIES> = HashMap::new();
#[btf_map]
pub(crate) static TABLES: Array<TableChunk, CHUNKS, MAPPABLE> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<BackendValue, BACKEND_COUNT, MAPPABLE> = Array::new();
#[btf_map]
pub(crate) static TUNNELS: Array<TunnelValue, BACKEND_COUNT, MAPPABLE> = Array::new();
#[btf_map(name = "BALANCED_FLOWS")]
pub(crate) static FLOWS: LruHashMap<FlowWords, BalancedFlowValue, 262_144> = LruHashMap::new();
/// A row of as many for each CPU, which user space knows the number of; so is the next. No per-CPU array: the kernel finds
/// an entry of one through a table of pointers, which is one more line of memory to wait for.
#[btf_map]
static VIP_COUNTERS: Array<BalancedValue, VIP_COUNT, MAPPABLE> = Array::new();
#[btf_map]
static BACKEND_COUNTERS: Array<BalancedValue, BACKEND_COUNT, MAPPABLE> = Array::new();
#[btf_map(name = "BALANCER_REASONS")]
static REASONS: PerCpuArray<u64, REASONS_COUNT> = PerCpuArray::new();
#[btf_map(name = "BALANCER_NODE")]
pub(crate) static NODE: Array<BalancerNodeValue, 1> = Array::new();
/// Whose index it is: user space alone reads and writes it, so that it can tell after a restart.
#[btf_map]
pub(crate) static IDENTITIES: Array<[u64; 2], BACKEND_COUNT, MAPPABLE> = Array::new();

/// Counts the one reason of this frame.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's counter, valid for the run of the program; programs do not preempt each other on a CPU.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// This CPU's number.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: no memory is touched.
    unsafe { bpf_get_smp_processor_id() }
}

/// Counts a frame that is sent to a VIP's backend.
#[inline(always)]
pub(crate) fn count_sent(cpu: u32, vip: u32, backend: u32, octets: u32) {
    let vip = VIP_COUNTERS.get_ptr_mut(cpu * VIP_COUNT as u32 + vip);
    let backend = BACKEND_COUNTERS.get_ptr_mut(cpu * BACKEND_COUNT as u32 + backend);
    for counters in [vip, backend] {
        let Some(counters) = counters else { continue };
        // SAFETY: as in `count`.
        let counters = unsafe { &mut *counters };
        counters.packets = counters.packets.wrapping_add(1);
        counters.bytes = counters.bytes.wrapping_add(u64::from(octets));
    }
}
