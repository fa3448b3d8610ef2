//! The kernel's maps of a balancer: reading what is in place, making the planned writes, reading counters and flows.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use bpf_abi::balancer::{
    BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, FlowHash, TableChunk, TunnelValue,
    VipKey, VipValue,
};
use bpf_abi::{BalancerReason, FlowKey};
use codec::Instant;

use crate::balancer::observed::{Observed, Write};
use crate::balancer::table::Memory;
use crate::error::DataplaneError;
use crate::maps::{absent, by_reason, of, take};

/// The maps of one balancer.
pub(crate) struct Maps {
    vips: HashMap<MapData, VipKey, VipValue>,
    tables: TableMemory,
    backends: Array<MapData, BackendValue>,
    tunnels: Array<MapData, TunnelValue>,
    flows: HashMap<MapData, FlowKey, BalancedFlowValue>,
    vip_counters: PerCpuArray<MapData, BalancedValue>,
    backend_counters: PerCpuArray<MapData, BalancedValue>,
    reasons: PerCpuArray<MapData, u64>,
    node: Array<MapData, BalancerNodeValue>,
    identities: Array<MapData, u128>,
    cpus: usize,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// [`DataplaneError::Object`] if one is missing, [`DataplaneError::Map`] if one has another type or size.
    pub(crate) fn take(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(what, source)| DataplaneError::system("read", what, source))?;
        Ok(Self {
            vips: take(object, "BALANCER_VIPS", HashMap::try_from)?,
            tables: take(object, "TABLES", Ok).and_then(|map| TableMemory::map(&map))?,
            backends: take(object, "BACKENDS", Array::try_from)?,
            tunnels: take(object, "TUNNELS", Array::try_from)?,
            flows: take(object, "BALANCED_FLOWS", HashMap::try_from)?,
            vip_counters: take(object, "VIP_COUNTERS", PerCpuArray::try_from)?,
            backend_counters: take(object, "BACKEND_COUNTERS", PerCpuArray::try_from)?,
            reasons: take(object, "BALANCER_REASONS", PerCpuArray::try_from)?,
            node: take(object, "BALANCER_NODE", Array::try_from)?,
            identities: take(object, "IDENTITIES", Array::try_from)?,
            cpus,
        })
    }

    /// Reads what is in place. Entries of the VIP table that name tables which cannot be are taken for what they are:
    /// the next plan replaces them.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub(crate) fn observe(&self) -> Result<Observed, DataplaneError> {
        let mut observed = Observed::new(self.tables.chunks);
        for entry in self.vips.iter() {
            let (key, value) = entry.map_err(of("BALANCER_VIPS"))?;
            observed.found(key, value);
        }
        for index in 0..=u16::MAX {
            let at = u32::from(index);
            let backend = self.backends.get(&at, 0).map_err(of("BACKENDS"))?;
            let identity = self.identities.get(&at, 0).map_err(of("IDENTITIES"))?;
            if backend != BackendValue::default() {
                observed.record(&Write::Backend(index, backend), Instant::ZERO);
            }
            if identity != 0 {
                observed.record(&Write::Identity(index, identity), Instant::ZERO);
                let tunnel = self.tunnels.get(&at, 0).map_err(of("TUNNELS"))?;
                if tunnel != TunnelValue::default() {
                    observed.record(&Write::Tunnel(index, tunnel), Instant::ZERO);
                }
            }
        }
        Ok(observed)
    }

    /// Makes one write.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn write(&mut self, write: &Write) -> Result<(), DataplaneError> {
        match write {
            Write::Identity(index, identity) => {
                self.identities.set(u32::from(*index), identity, 0).map_err(of("IDENTITIES"))
            }
            Write::ResetBackend(index) => {
                let zero = zero(self.cpus)?;
                self.backend_counters.set(u32::from(*index), zero, 0).map_err(of("BACKEND_COUNTERS"))
            }
            Write::Tunnel(index, value) => {
                self.tunnels.set(u32::from(*index), value, 0).map_err(of("TUNNELS"))
            }
            Write::Backend(index, value) => {
                self.backends.set(u32::from(*index), value, 0).map_err(of("BACKENDS"))
            }
            Write::ResetVip(id) => {
                let zero = zero(self.cpus)?;
                self.vip_counters.set(*id, zero, 0).map_err(of("VIP_COUNTERS"))
            }
            Write::Table(table, chunks) => self.tables.fill(table.first(), chunks),
            // At once: what is written next may be what no program may see that goes by the old value.
            Write::Vip(key, value) => {
                self.vips.insert(key, value, 0).map_err(of("BALANCER_VIPS"))?;
                self.new_generation()
            }
            Write::RemoveVip(key) => {
                absent(self.vips.remove(key), "BALANCER_VIPS")?;
                self.new_generation()
            }
        }
    }

    /// What the program knows of its node.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn node(&self) -> Result<BalancerNodeValue, DataplaneError> {
        self.node.get(&0, 0).map_err(of("BALANCER_NODE"))
    }

    /// Tells the program of its node, and that whatever it remembers is old.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn set_node(&mut self, value: &BalancerNodeValue) -> Result<(), DataplaneError> {
        let before = self.node()?;
        let flow_hash = FlowHash::of_seed(value.seed);
        if before.flow_hash != flow_hash {
            // A program that reads while the value is written may find keys of both seeds. What it makes of them may be
            // remembered under no generation that is in force.
            let nothing_is_remembered = BalancerNodeValue { generation: 0, ..before };
            self.node.set(0, nothing_is_remembered, 0).map_err(of("BALANCER_NODE"))?;
            let new_keys = BalancerNodeValue { generation: 0, flow_hash, ..*value };
            self.node.set(0, new_keys, 0).map_err(of("BALANCER_NODE"))?;
        }
        self.publish(BalancerNodeValue { generation: before.generation, flow_hash, ..*value })
    }

    fn new_generation(&mut self) -> Result<(), DataplaneError> {
        let value = self.node()?;
        self.publish(value)
    }

    /// Writes the value with the generation after its own.
    fn publish(&mut self, value: BalancerNodeValue) -> Result<(), DataplaneError> {
        let generation = value.generation.wrapping_add(1).max(1);
        self.node.set(0, BalancerNodeValue { generation, ..value }, 0).map_err(of("BALANCER_NODE"))
    }

    /// The memory of tables.
    pub(crate) const fn tables(&self) -> &TableMemory {
        &self.tables
    }

    /// An entry of the VIP table; `None` if there is none.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn vip(&self, key: &VipKey) -> Result<Option<VipValue>, DataplaneError> {
        found(self.vips.get(key, 0), "BALANCER_VIPS")
    }

    /// The backend of an index.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn backend(&self, index: u16) -> Result<BackendValue, DataplaneError> {
        self.backends.get(&u32::from(index), 0).map_err(of("BACKENDS"))
    }

    /// Where a flow is remembered; `None` if it is not.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn flow(&self, key: &FlowKey) -> Result<Option<BalancedFlowValue>, DataplaneError> {
        found(self.flows.get(key, 0), "BALANCED_FLOWS")
    }

    /// What was sent for the VIP of an id, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn sent_for(&self, id: u32) -> Result<BalancedValue, DataplaneError> {
        self.vip_counters.get(&id, 0).map(|values| sum(&values)).map_err(of("VIP_COUNTERS"))
    }

    /// What was sent to the backend of an index, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn sent_to(&self, index: u16) -> Result<BalancedValue, DataplaneError> {
        let index = u32::from(index);
        self.backend_counters.get(&index, 0).map(|values| sum(&values)).map_err(of("BACKEND_COUNTERS"))
    }

    /// Frames by reason, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError> {
        by_reason(&self.reasons, "BALANCER_REASONS", BalancerReason::ALL)
    }
}

fn zero(cpus: usize) -> Result<PerCpuValues<BalancedValue>, DataplaneError> {
    PerCpuValues::try_from(vec![BalancedValue::default(); cpus])
        .map_err(|source| DataplaneError::system("count", "CPUs", source))
}

fn sum(values: &PerCpuValues<BalancedValue>) -> BalancedValue {
    values.iter().fold(BalancedValue::default(), |sum, value| BalancedValue {
        packets: sum.packets.wrapping_add(value.packets),
        bytes: sum.bytes.wrapping_add(value.bytes),
    })
}

fn found<V>(result: Result<V, MapError>, map: &'static str) -> Result<Option<V>, DataplaneError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(None),
        result => result.map(Some).map_err(of(map)),
    }
}

/// The tables of slots, in this process's memory. Only this process writes them; programs only read.
pub(crate) struct TableMemory {
    start: NonNull<TableChunk>,
    chunks: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and it is changed only through `&mut`.
unsafe impl Send for TableMemory {}
// SAFETY: as above.
unsafe impl Sync for TableMemory {}

impl TableMemory {
    /// Maps `TABLES`. Its size is the map's own word: one that was pinned before may have another than was asked for.
    fn map(map: &Map) -> Result<Self, DataplaneError> {
        let Map::Array(data) = map else {
            return Err(DataplaneError::Object { what: "array", name: "TABLES".to_owned() });
        };
        let info = data.info().map_err(of("TABLES"))?;
        if info.value_size() as usize != size_of::<TableChunk>() {
            return Err(DataplaneError::Object { what: "table memory", name: "TABLES".to_owned() });
        }
        let chunks = info.max_entries();
        let octets = chunks as usize * size_of::<TableChunk>();
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, data.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping of an open map, of the size that the kernel says it has; it aliases nothing of ours.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), octets, protection, libc::MAP_SHARED, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(DataplaneError::last("map", "TABLES"));
        }
        let start = NonNull::new(address.cast()).ok_or_else(|| DataplaneError::last("map", "TABLES"))?;
        Ok(Self { start, chunks })
    }

    /// Octets of all tables together.
    pub(crate) const fn octets(&self) -> u64 {
        self.chunks as u64 * size_of::<TableChunk>() as u64
    }

    fn fill(&mut self, first: u32, chunks: &[TableChunk]) -> Result<(), DataplaneError> {
        let beyond = || DataplaneError::Map {
            map: "TABLES",
            source: MapError::OutOfBounds { index: first, max_entries: self.chunks },
        };
        let start = self.at(first, chunks.len()).ok_or_else(beyond)?;
        // SAFETY: `at` checked that the chunks are within the mapping; the source is memory of Rust's, elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(chunks.as_ptr(), start.as_ptr(), chunks.len()) };
        // The entry that names the table is replaced by a system call after this.
        fence(Ordering::Release);
        Ok(())
    }

    /// Address of a chunk, if it and those behind it, `count` in all, are within the mapping.
    fn at(&self, first: u32, count: usize) -> Option<NonNull<TableChunk>> {
        let end = (first as usize).checked_add(count)?;
        if end > self.chunks as usize {
            return None;
        }
        // SAFETY: within the mapping, as was just checked.
        Some(unsafe { self.start.add(first as usize) })
    }
}

impl Memory for TableMemory {
    fn chunks(&self, first: u32, count: u32) -> Option<&[TableChunk]> {
        let start = self.at(first, count as usize)?;
        // SAFETY: within the mapping, aligned as chunks are, and written only through `&mut self`: programs only read.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), count as usize) })
    }
}

impl Drop for TableMemory {
    fn drop(&mut self) {
        let octets = self.chunks as usize * size_of::<TableChunk>();
        // SAFETY: the mapping that `map` made, of that size; no slice outlives its borrow of this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), octets) };
    }
}
