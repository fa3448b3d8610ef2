//! The maps user space fills; `ARCHITECTURE.md` tells who writes which.
//!
//! BTF definitions, so that bpftool and libbpf can load the object too.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, lpm_trie::Key},
    macros::btf_map,
};
use bpf_abi::{
    EidKey, FlowKey, FlowValue, InterfaceValue, LocalEidValue, LocatorValue, MappingValue, NodeValue, Reason,
    SlotValue, TrafficKey, TrafficValue,
};

/// [`EidKey`] without its length: instance and address.
pub(crate) type EidBits = [u8; 20];

const REASONS_COUNT: usize = Reason::ALL.len();

#[btf_map]
pub(crate) static INTERFACES: HashMap<u32, InterfaceValue, 256> = HashMap::new();
#[btf_map]
pub(crate) static MAP_CACHE: LpmTrie<EidBits, MappingValue, 65536> = LpmTrie::new();
#[btf_map]
pub(crate) static SLOTS: Array<SlotValue, { bpf_abi::SLOTS }> = Array::new();
#[btf_map]
pub(crate) static LOCATORS: Array<LocatorValue, { bpf_abi::LOCATORS }> = Array::new();
#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowValue, 262_144> = LruHashMap::new();
#[btf_map]
pub(crate) static LOCAL_EIDS: LpmTrie<EidBits, LocalEidValue, 4096> = LpmTrie::new();
#[btf_map]
pub(crate) static TRAFFIC: PerCpuHashMap<TrafficKey, TrafficValue, 16384> = PerCpuHashMap::new();
#[btf_map]
pub(crate) static REASONS: PerCpuArray<u64, REASONS_COUNT> = PerCpuArray::new();
#[btf_map]
pub(crate) static NODE: Array<NodeValue, 1> = Array::new();

/// Longest prefix of `trie` that holds an address of an instance.
#[inline(always)]
pub(crate) fn longest<V, const N: usize, const F: usize>(
    trie: &'static LpmTrie<EidBits, V, N, F>,
    instance_id: u32,
    address: [u8; 16],
) -> Option<&'static V> {
    let key = EidKey::host(instance_id, address);
    // SAFETY: EidKey is repr(C) with the layout of the kernel's bpf_lpm_trie_key, which Key<EidBits> is as well:
    // a u32 and 20 octets, without padding; the target's alignment is not above the source's.
    trie.get(unsafe { &*(&raw const key).cast::<Key<EidBits>>() })
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
    if let Some(value) = TRAFFIC.get_ptr_mut(&key) {
        // SAFETY: this CPU's value; user space deletes entries only, which keeps the memory for a grace period.
        unsafe {
            (*value).flows = (*value).flows.wrapping_add(flows);
            (*value).packets = (*value).packets.wrapping_add(packets);
            (*value).bytes = (*value).bytes.wrapping_add(bytes);
        }
    }
}
