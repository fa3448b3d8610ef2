//! The maps user space fills; `ARCHITECTURE.md` tells who writes which.
//!
//! BTF definitions, so that bpftool and libbpf can load the object too.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use bpf_abi::{
    EidKey, FlowKey, FlowValue, InterfaceValue, LocalEidValue, LocatorValue, MappingValue, NodeValue, Reason,
    SlotValue, TRAFFIC_CELLS, TRAFFIC_PROBES, TrafficCell, TrafficKey, traffic_cell,
};

use crate::headers::Address;
use crate::verifier::Aligned;

/// [`EidKey`] without its length, in words: instance (network order) and address.
pub(crate) type EidBits = [u32; 5];
const _: () = assert!(size_of::<Key<EidBits>>() == size_of::<EidKey>());

/// [`FlowKey`] in words.
#[repr(C)]
pub(crate) struct FlowWords {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Source and destination port as in the packet.
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
    pub(crate) instance_id: u32,
}
const _: () = assert!(size_of::<FlowWords>() == size_of::<FlowKey>());

const REASONS_COUNT: usize = Reason::ALL.len();
/// The kernel aligns a mappable array to pages: an entry of one cache line is one line.
pub(crate) const MAPPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(crate) static INTERFACES: HashMap<u32, InterfaceValue, 256> = HashMap::new();
#[btf_map]
pub(crate) static MAP_CACHE: LpmTrie<EidBits, MappingValue, 65536> = LpmTrie::new();
#[btf_map]
pub(crate) static SLOTS: Array<SlotValue, { bpf_abi::SLOTS }> = Array::new();
#[btf_map]
pub(crate) static LOCATORS: Array<LocatorValue, { bpf_abi::LOCATORS }> = Array::new();
#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowWords, FlowValue, 262_144> = LruHashMap::new();
#[btf_map]
pub(crate) static LOCAL_EIDS: LpmTrie<EidBits, LocalEidValue, 4096> = LpmTrie::new();
#[btf_map]
pub(crate) static TRAFFIC: PerCpuArray<TrafficCell, { TRAFFIC_CELLS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static REASONS: PerCpuArray<u64, REASONS_COUNT> = PerCpuArray::new();
#[btf_map]
pub(crate) static NODE: Array<NodeValue, 1> = Array::new();

/// Longest prefix of `trie` that holds an address of an instance.
#[inline(always)]
pub(crate) fn longest<V, const N: usize, const F: usize>(
    trie: &'static LpmTrie<EidBits, V, N, F>,
    instance_id: u32,
    address: &Address,
) -> Option<&'static V> {
    let [a, b, c, d] = *address;
    let key = Aligned(Key::new(EidKey::HOST_LEN, [instance_id.to_be(), a, b, c, d]));
    trie.get(&key.0)
}

/// Counts the one reason of this packet.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's counter, valid for the run of the program; programs do not preempt each other on a CPU.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// Adds a packet to the counters of a mapping's locator or of a local EID-prefix; no entry, no counting.
#[inline(always)]
pub(crate) fn count_traffic(id: u32, locator: u32, flows: u64, packets: u64, bytes: u64) {
    let key = TrafficKey { id, locator };
    for probe in 0..TRAFFIC_PROBES {
        let Some(cell) = TRAFFIC.get_ptr_mut(traffic_cell(key, probe)) else { return };
        // SAFETY: this CPU's cell of an array, valid for the run of the program.
        let cell = unsafe { &mut *cell };
        if cell.key.id == id && cell.key.locator == locator {
            cell.value.flows = cell.value.flows.wrapping_add(flows);
            cell.value.packets = cell.value.packets.wrapping_add(packets);
            cell.value.bytes = cell.value.bytes.wrapping_add(bytes);
            return;
        }
    }
}
