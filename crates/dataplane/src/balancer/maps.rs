//! The kernel's maps of a balancer: reading what is in place, making the planned writes, reading counters and flows.

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use bpf_abi::balancer::{
    BACKENDS, BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, FlowHash, TableChunk,
    TunnelValue, VIPS, VipKey, VipValue,
};
use bpf_abi::{BalancerReason, FlowKey};
use codec::Instant;

use crate::balancer::mapped::Mapped;
use crate::balancer::observed::{Observed, Write};
use crate::balancer::table::Memory;
use crate::error::DataplaneError;
use crate::maps::{absent, by_reason, of, take};

/// The memory of tables: only this process writes it, and programs find nothing in it that no entry names.
pub(crate) type TableMemory = Mapped<TableChunk>;

/// The maps of one balancer.
pub(crate) struct Maps {
    vips: HashMap<MapData, VipKey, VipValue>,
    tables: TableMemory,
    backends: Mapped<BackendValue>,
    tunnels: Mapped<TunnelValue>,
    flows: HashMap<MapData, FlowKey, BalancedFlowValue>,
    vip_counters: Sent,
    backend_counters: Sent,
    reasons: PerCpuArray<MapData, u64>,
    node: Array<MapData, BalancerNodeValue>,
    identities: Mapped<u128>,
}

/// What was sent: a row of as many counters for each CPU.
struct Sent {
    counters: Mapped<BalancedValue>,
    row: usize,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// [`DataplaneError::Object`] if one is missing, [`DataplaneError::Map`] if one has another type or size.
    pub(crate) fn take(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            vips: take(object, "BALANCER_VIPS", HashMap::try_from)?,
            tables: mapped(object, "TABLES")?,
            backends: mapped(object, "BACKENDS")?,
            tunnels: mapped(object, "TUNNELS")?,
            flows: take(object, "BALANCED_FLOWS", HashMap::try_from)?,
            vip_counters: Sent { counters: mapped(object, "VIP_COUNTERS")?, row: VIPS },
            backend_counters: Sent { counters: mapped(object, "BACKEND_COUNTERS")?, row: BACKENDS },
            reasons: take(object, "BALANCER_REASONS", PerCpuArray::try_from)?,
            node: take(object, "BALANCER_NODE", Array::try_from)?,
            identities: mapped(object, "IDENTITIES")?,
        })
    }

    /// Reads what is in place. Entries of the VIP table that name tables which cannot be are taken for what they are:
    /// the next plan replaces them.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub(crate) fn observe(&self) -> Result<Observed, DataplaneError> {
        let mut observed = Observed::new(self.tables.entries());
        for entry in self.vips.iter() {
            let (key, value) = entry.map_err(of("BALANCER_VIPS"))?;
            observed.found(key, value);
        }
        for index in 0..=u16::MAX {
            let at = u32::from(index);
            let backend = self.backends.get(at)?;
            let identity = self.identities.get(at)?;
            if backend != BackendValue::default() {
                observed.record(&Write::Backend(index, backend), Instant::ZERO);
            }
            if identity != 0 {
                observed.record(&Write::Identity(index, identity), Instant::ZERO);
                let tunnel = self.tunnels.get(at)?;
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
            Write::Identity(index, identity) => self.identities.set(u32::from(*index), identity),
            Write::ResetBackend(index) => self.backend_counters.reset(u32::from(*index)),
            Write::Tunnel(index, value) => self.tunnels.set(u32::from(*index), value),
            Write::Backend(index, value) => self.backends.set(u32::from(*index), value),
            Write::ResetVip(id) => self.vip_counters.reset(*id),
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
        self.backends.get(index.into())
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
        self.vip_counters.sum(id)
    }

    /// What was sent to the backend of an index, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn sent_to(&self, index: u16) -> Result<BalancedValue, DataplaneError> {
        self.backend_counters.sum(index.into())
    }

    /// Frames by reason, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub(crate) fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError> {
        by_reason(&self.reasons, "BALANCER_REASONS", BalancerReason::ALL)
    }
}

impl Sent {
    fn sum(&self, index: u32) -> Result<BalancedValue, DataplaneError> {
        self.cells(index).try_fold(BalancedValue::default(), |sum, cell| {
            let value = self.counters.get(cell)?;
            let packets = sum.packets.wrapping_add(value.packets);
            Ok(BalancedValue { packets, bytes: sum.bytes.wrapping_add(value.bytes) })
        })
    }

    fn reset(&mut self, index: u32) -> Result<(), DataplaneError> {
        self.cells(index).try_for_each(|cell| self.counters.set(cell, &BalancedValue::default()))
    }

    /// Where a counter stands in the row of each CPU.
    fn cells(&self, index: u32) -> impl Iterator<Item = u32> + use<> {
        (index..self.counters.entries()).step_by(self.row)
    }
}

fn mapped<V: Pod>(object: &mut Ebpf, name: &'static str) -> Result<Mapped<V>, DataplaneError> {
    take(object, name, Ok).and_then(|map| Mapped::map(&map, name))
}

fn found<V>(result: Result<V, MapError>, map: &'static str) -> Result<Option<V>, DataplaneError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(None),
        result => result.map(Some).map_err(of(map)),
    }
}

impl Memory for TableMemory {
    fn chunks(&self, first: u32, count: u32) -> Option<&[TableChunk]> {
        self.slice(first, count)
    }
}
