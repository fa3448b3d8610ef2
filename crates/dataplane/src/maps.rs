//! The kernel's maps: reading what is in place, making the planned writes, reading counters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use bpf_abi::{
    ACTION_ENCAPSULATE, EidKey, FlowKey, FlowValue, InterfaceValue, LocalEidValue, LocatorValue,
    MappingValue, NodeValue, Reason, SlotValue, TrafficKey, TrafficValue,
};

use crate::counters::Counters;
use crate::eid::{Eid, unmapped};
use crate::error::DataplaneError;
use crate::table::{LOCATOR_COUNT, MapWrite, Observed};

/// Instance and address of an [`EidKey`], which the trie's length stands in front of.
type EidBits = [u8; 20];

/// The maps of one node.
pub struct Maps {
    interfaces: HashMap<MapData, u32, InterfaceValue>,
    map_cache: LpmTrie<MapData, EidBits, MappingValue>,
    slots: Array<MapData, SlotValue>,
    locators: Array<MapData, LocatorValue>,
    local_eids: LpmTrie<MapData, EidBits, LocalEidValue>,
    traffic: Counters,
    reasons: PerCpuArray<MapData, u64>,
    node: Array<MapData, NodeValue>,
}

/// A flow in the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Instance ID.
    pub instance_id: u32,
    /// Source EID.
    pub source: IpAddr,
    /// Destination EID.
    pub destination: IpAddr,
    /// Source port, 0 without ports.
    pub source_port: u16,
    /// Destination port, 0 without ports.
    pub destination_port: u16,
    /// IP protocol, 0 if the ports do not count.
    pub protocol: u8,
    /// Its locator; `None` if the index is of none any more.
    pub rloc: Option<IpAddr>,
    /// Time since a recent packet, to about a second.
    pub idle: Duration,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// [`DataplaneError::Object`] if one is missing, [`DataplaneError::Map`] if one has another type or size.
    pub fn take(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            interfaces: take(object, "INTERFACES", HashMap::try_from)?,
            map_cache: take(object, "MAP_CACHE", LpmTrie::try_from)?,
            slots: take(object, "SLOTS", Array::try_from)?,
            locators: take(object, "LOCATORS", Array::try_from)?,
            local_eids: take(object, "LOCAL_EIDS", LpmTrie::try_from)?,
            traffic: Counters::new(take(object, "TRAFFIC", PerCpuArray::try_from)?)?,
            reasons: take(object, "REASONS", PerCpuArray::try_from)?,
            node: take(object, "NODE", Array::try_from)?,
        })
    }

    /// Reads what is in place. Entries that name no EID-prefix are removed.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn observe(&mut self) -> Result<Observed, DataplaneError> {
        let mut observed = Observed::new(self.node.get(&0, 0).map_err(of("NODE"))?);
        for entry in self.interfaces.iter() {
            let (ifindex, value) = entry.map_err(of("INTERFACES"))?;
            observed.interfaces.insert(ifindex, value);
        }
        observed.map_cache = read_trie("MAP_CACHE", &mut self.map_cache)?;
        observed.local_eids = read_trie("LOCAL_EIDS", &mut self.local_eids)?;
        for mapping in observed.map_cache.values().filter(|m| m.action == ACTION_ENCAPSULATE) {
            if let Ok(slot) = self.slots.get(&mapping.slot, 0) {
                observed.slots.insert(mapping.slot, Box::new(slot));
            }
        }
        for index in 0..LOCATOR_COUNT {
            let locator = self.locators.get(&index, 0).map_err(of("LOCATORS"))?;
            if locator.destination != [0; 16] {
                observed.locators.insert(index, locator);
            }
        }
        observed.traffic = self.traffic.keys().collect();
        observed.continue_numbering();
        Ok(observed)
    }

    /// Makes one write.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn write(&mut self, write: &MapWrite) -> Result<(), DataplaneError> {
        match write {
            MapWrite::Node(value) => self.node.set(0, value, 0).map_err(of("NODE")),
            MapWrite::Interface(ifindex, value) => {
                self.interfaces.insert(ifindex, value, 0).map_err(of("INTERFACES"))
            }
            MapWrite::RemoveInterface(ifindex) => absent(self.interfaces.remove(ifindex), "INTERFACES"),
            MapWrite::Locator(index, value) => self.locators.set(*index, value, 0).map_err(of("LOCATORS")),
            MapWrite::Traffic(key) => self.traffic.create(*key),
            MapWrite::RemoveTraffic(key) => self.traffic.remove(key),
            MapWrite::Slot(index, value) => self.slots.set(*index, **value, 0).map_err(of("SLOTS")),
            MapWrite::Mapping(eid, value) => {
                self.map_cache.insert(&trie_key(eid), value, 0).map_err(of("MAP_CACHE"))
            }
            MapWrite::RemoveMapping(eid) => absent(self.map_cache.remove(&trie_key(eid)), "MAP_CACHE"),
            MapWrite::LocalEid(eid, value) => {
                self.local_eids.insert(&trie_key(eid), value, 0).map_err(of("LOCAL_EIDS"))
            }
            MapWrite::RemoveLocalEid(eid) => absent(self.local_eids.remove(&trie_key(eid)), "LOCAL_EIDS"),
        }
    }

    /// Counters of `key`, over all CPUs; `None` if there are none.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn traffic(&self, key: &TrafficKey) -> Result<Option<TrafficValue>, DataplaneError> {
        self.traffic.get(key)
    }

    /// Packets by reason, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DataplaneError> {
        by_reason(&self.reasons, "REASONS", Reason::ALL)
    }
}

/// Reads the flow table through its pin, beside the process that writes the maps.
pub struct FlowReader {
    flows: HashMap<MapData, FlowKey, FlowValue>,
    locators: Array<MapData, LocatorValue>,
}

impl FlowReader {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let pinned = |name| MapData::from_pin(directory.join(name)).map_err(of(name));
        let flows = Map::LruHashMap(pinned("FLOWS")?);
        let locators = Map::Array(pinned("LOCATORS")?);
        Ok(Self {
            flows: flows.try_into().map_err(of("FLOWS"))?,
            locators: locators.try_into().map_err(of("LOCATORS"))?,
        })
    }

    /// At most `limit` flows, in no order. An entry that goes away while it is read is left out.
    #[must_use]
    pub fn flows(&self, limit: usize) -> Vec<Flow> {
        let now = monotonic_nanos();
        let flows = self.flows.iter().filter_map(Result::ok).take(limit);
        flows.map(|(key, value)| self.flow(now, &key, &value)).collect()
    }

    fn flow(&self, now: u64, key: &FlowKey, value: &FlowValue) -> Flow {
        let locator = self.locators.get(&value.locator, 0).ok();
        Flow {
            instance_id: key.instance_id,
            source: unmapped(&key.source),
            destination: unmapped(&key.destination),
            source_port: u16::from_be_bytes(key.source_port),
            destination_port: u16::from_be_bytes(key.destination_port),
            protocol: u8::try_from(key.protocol).unwrap_or(0),
            rloc: locator.filter(|l| l.destination != [0; 16]).map(|l| unmapped(&l.destination)),
            idle: Duration::from_nanos(now.saturating_sub(value.last_seen)),
        }
    }
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call; an error leaves it at zero.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let nanos = time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec);
    u64::try_from(nanos).unwrap_or(0)
}

/// Counters of every reason, in their order, over all CPUs.
pub(crate) fn by_reason<R: Copy>(
    counters: &PerCpuArray<MapData, u64>,
    map: &'static str,
    all: &[R],
) -> Result<Vec<(R, u64)>, DataplaneError> {
    let sum = |(index, reason): (u32, &R)| {
        let values = counters.get(&index, 0).map_err(of(map))?;
        Ok((*reason, values.iter().fold(0_u64, |sum, v| sum.wrapping_add(*v))))
    };
    (0_u32..).zip(all).map(sum).collect()
}

pub(crate) fn take<T>(
    object: &mut Ebpf,
    name: &'static str,
    typed: impl FnOnce(Map) -> Result<T, MapError>,
) -> Result<T, DataplaneError> {
    let missing = || DataplaneError::Object { what: "map", name: name.to_owned() };
    typed(object.take_map(name).ok_or_else(missing)?).map_err(of(name))
}

pub(crate) fn of(map: &'static str) -> impl FnOnce(MapError) -> DataplaneError {
    move |source| DataplaneError::Map { map, source }
}

/// Removing what is not there has succeeded.
pub(crate) fn absent(result: Result<(), MapError>, map: &'static str) -> Result<(), DataplaneError> {
    match result {
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        result => result.map_err(of(map)),
    }
}

fn trie_key(eid: &Eid) -> Key<EidBits> {
    let key = eid.key();
    let mut bits = [0; 20];
    bits[..4].copy_from_slice(&key.instance_id);
    bits[4..].copy_from_slice(&key.address);
    Key::new(key.prefix_len, bits)
}

fn eid(key: &Key<EidBits>) -> Option<Eid> {
    let (instance_id, address) =
        key.data().split_first_chunk().map(|(i, rest)| (*i, rest.try_into().ok()))?;
    Eid::from_key(&EidKey { prefix_len: key.prefix_len(), instance_id, address: address? })
}

fn read_trie<V: aya::Pod>(
    map: &'static str,
    trie: &mut LpmTrie<MapData, EidBits, V>,
) -> Result<BTreeMap<Eid, V>, DataplaneError> {
    let mut entries = BTreeMap::new();
    let mut foreign = Vec::new();
    for entry in trie.iter() {
        let (key, value) = entry.map_err(of(map))?;
        match eid(&key) {
            Some(eid) => drop(entries.insert(eid, value)),
            None => foreign.push(key),
        }
    }
    for key in foreign {
        absent(trie.remove(&key), map)?;
    }
    Ok(entries)
}
