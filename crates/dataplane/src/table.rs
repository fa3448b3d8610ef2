//! What the data path is to do, what the kernel's maps hold, and the writes that lead from one to the other.
//!
//! Everything here is a value. [`plan`] never touches what a program may be reading in place: a changed locator-set
//! goes to a free slot and becomes visible with the one write that replaces the [`MappingValue`]. A locator keeps its
//! index, a member its place and a mapping its id for as long as somebody remembers them, because flows do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bpf_abi::{
    ACTION_DROP, ACTION_ENCAPSULATE, ACTION_NATIVE, ACTION_RESOLVE, DECAPSULATED, InterfaceValue,
    LOCATOR_GPE, LOCATOR_MAC_RESOLVED, LocalEidValue, LocatorValue, MEMBERS, MappingValue, NodeValue,
    OFFERED, SlotValue, TrafficKey,
};

use crate::eid::{Eid, mapped, unmapped};
use crate::members::{NO_LOCATOR, Placed, fill_slot};

/// Entries of the `SLOTS` array.
pub const SLOT_COUNT: u32 = 512;
/// Entries of the `LOCATORS` array.
pub const LOCATOR_COUNT: u32 = 256;
const _: () = assert!(SLOT_COUNT as usize == bpf_abi::SLOTS && LOCATOR_COUNT as usize == bpf_abi::LOCATORS);
/// Removed mappings whose id and members are remembered in case they come back.
const RETIRED_MAX: usize = 128;

/// One locator of a mapping, as the control plane wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// Address of the ETR.
    pub rloc: IpAddr,
    /// Lower wins; 255 is never used.
    pub priority: u8,
    /// Share among the locators of the best priority.
    pub weight: u8,
    /// R bit set and not found down.
    pub usable: bool,
    /// The ETR announced LISP-GPE.
    pub gpe: bool,
}

/// What to do with packets to an EID-prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Encapsulate to these locators.
    Encapsulate(Vec<Locator>),
    /// Hand packets to user space.
    Resolve,
    /// Leave packets to the stack.
    Native,
    /// Drop packets.
    Drop,
    /// Whatever is in place: found at start-up and not yet confirmed by the mapping system.
    Keep,
}

/// Where decapsulated packets to a local EID-prefix go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEid {
    /// Interface towards the hosts; 0 leaves the packets to the stack.
    pub ifindex: u32,
    /// Next hop on it; `None` when the hosts are on-link.
    pub next_hop: Option<IpAddr>,
}

/// The way to an RLOC, as the kernel's routes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our address towards it.
    pub source: IpAddr,
    /// Next hop; the RLOC itself when on-link.
    pub next_hop: IpAddr,
    /// Interface.
    pub ifindex: u32,
    /// Largest outer packet.
    pub mtu: u32,
    /// MAC addresses of the next hop and of the interface, once the kernel knows both.
    pub macs: Option<([u8; 6], [u8; 6])>,
}

/// The desired table.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Node-wide values.
    pub node: NodeValue,
    /// By ifindex.
    pub interfaces: BTreeMap<u32, InterfaceValue>,
    /// EID space, map-cache and local exceptions.
    pub mappings: BTreeMap<Eid, Mapping>,
    /// Prefixes that are decapsulated here.
    pub local_eids: BTreeMap<Eid, LocalEid>,
    /// Ways to RLOCs; one that is missing makes the locator unusable.
    pub paths: BTreeMap<IpAddr, Path>,
}

/// What the maps hold.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// `NODE`.
    pub node: NodeValue,
    /// `INTERFACES`.
    pub interfaces: BTreeMap<u32, InterfaceValue>,
    /// `MAP_CACHE`.
    pub map_cache: BTreeMap<Eid, MappingValue>,
    /// The entries of `SLOTS` that `MAP_CACHE` names.
    pub slots: BTreeMap<u32, Box<SlotValue>>,
    /// The entries of `LOCATORS` that have a destination.
    pub locators: BTreeMap<u32, LocatorValue>,
    /// `LOCAL_EIDS`.
    pub local_eids: BTreeMap<Eid, LocalEidValue>,
    /// Keys of `TRAFFIC`.
    pub traffic: BTreeSet<TrafficKey>,
    /// Tables were changed since the generation was.
    outdated: bool,
    retired: BTreeMap<Eid, (u32, Box<SlotValue>)>,
    last_id: u32,
    last_slot: u32,
}

/// Which EID-prefix each counter is of.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    remote: BTreeMap<u32, Eid>,
    local: BTreeMap<u32, Eid>,
}

impl Counted {
    /// The prefix, local or remote; `None` if nothing has that name any more.
    #[must_use]
    pub fn eid(&self, key: &TrafficKey) -> Option<Eid> {
        let names = if key.locator == DECAPSULATED { &self.local } else { &self.remote };
        names.get(&key.id).copied()
    }
}

/// One write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapWrite {
    /// Replace the entry of `NODE`.
    Node(NodeValue),
    /// Insert into `INTERFACES`.
    Interface(u32, InterfaceValue),
    /// Remove from `INTERFACES`.
    RemoveInterface(u32),
    /// Replace an entry of `LOCATORS`.
    Locator(u32, LocatorValue),
    /// Create zero counters.
    Traffic(TrafficKey),
    /// Remove counters that nothing names any more.
    RemoveTraffic(TrafficKey),
    /// Fill a free slot.
    Slot(u32, Box<SlotValue>),
    /// Insert into `MAP_CACHE`, or replace.
    Mapping(Eid, MappingValue),
    /// Remove from `MAP_CACHE`.
    RemoveMapping(Eid),
    /// Insert into `LOCAL_EIDS`, or replace.
    LocalEid(Eid, LocalEidValue),
    /// Remove from `LOCAL_EIDS`.
    RemoveLocalEid(Eid),
}

impl MapWrite {
    /// Whether programs must forget what they remember of the tables.
    const fn outdates(&self) -> bool {
        !matches!(self, Self::Node(_) | Self::Traffic(_) | Self::RemoveTraffic(_))
    }
}

/// Why a mapping could not be planned; what is in place stays in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer sent more locators than a mapping can hold.
    #[error("{eid}: {count} locators, at most {MEMBERS} are supported")]
    TooManyLocators {
        /// The prefix.
        eid: Eid,
        /// Locators wanted.
        count: usize,
    },
    /// Every index of `LOCATORS` is in use.
    #[error("{eid}: all {LOCATOR_COUNT} locators are in use")]
    LocatorsFull {
        /// The prefix.
        eid: Eid,
    },
    /// Every slot is in use.
    #[error("{eid}: all {SLOT_COUNT} slots are in use")]
    SlotsFull {
        /// The prefix.
        eid: Eid,
    },
}

/// Writes in the order in which they are to be made, and what was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes.
    pub writes: Vec<MapWrite>,
    /// Mappings left as they are.
    pub refused: Vec<Refusal>,
}

impl Observed {
    /// Empty tables beside the entry of `NODE`. An earlier process may have ended between a change and the generation.
    #[must_use]
    pub fn new(node: NodeValue) -> Self {
        Self { node, outdated: true, ..Self::default() }
    }

    /// Takes up numbering where an earlier process left it; call once after the maps were read.
    pub fn continue_numbering(&mut self) {
        let mappings = self.map_cache.values().map(|m| m.mapping_id);
        let locals = self.local_eids.values().map(|l| l.local_id);
        let counted = self.traffic.iter().map(|t| t.id);
        self.last_id = mappings.chain(locals).chain(counted).max().unwrap_or(0);
        self.last_slot = self.slots.keys().next_back().copied().unwrap_or(0);
    }

    /// Notes a write that was made.
    pub fn record(&mut self, write: &MapWrite) {
        self.outdated |= write.outdates();
        match write {
            MapWrite::Node(value) => {
                self.outdated &= value.generation == self.node.generation;
                self.node = *value;
            }
            MapWrite::Interface(ifindex, value) => drop(self.interfaces.insert(*ifindex, *value)),
            MapWrite::RemoveInterface(ifindex) => drop(self.interfaces.remove(ifindex)),
            MapWrite::Locator(index, value) => drop(self.locators.insert(*index, *value)),
            MapWrite::Traffic(key) => drop(self.traffic.insert(*key)),
            MapWrite::RemoveTraffic(key) => drop(self.traffic.remove(key)),
            MapWrite::Slot(index, value) => {
                self.last_slot = *index;
                self.slots.insert(*index, value.clone());
            }
            MapWrite::Mapping(eid, value) => {
                self.last_id = self.last_id.max(value.mapping_id);
                let before = self.map_cache.insert(*eid, *value);
                self.release(*eid, before, (value.action == ACTION_ENCAPSULATE).then_some(value.slot));
            }
            MapWrite::RemoveMapping(eid) => {
                let before = self.map_cache.remove(eid);
                self.release(*eid, before, None);
            }
            MapWrite::LocalEid(eid, value) => {
                self.last_id = self.last_id.max(value.local_id);
                self.local_eids.insert(*eid, *value);
            }
            MapWrite::RemoveLocalEid(eid) => drop(self.local_eids.remove(eid)),
        }
    }

    /// Frees the slot of `before` unless it is still `kept`, and remembers a locator-set that went away.
    fn release(&mut self, eid: Eid, before: Option<MappingValue>, kept: Option<u32>) {
        if kept.is_some() {
            self.retired.remove(&eid);
        }
        let Some(before) = before.filter(|b| b.action == ACTION_ENCAPSULATE && kept != Some(b.slot)) else {
            return;
        };
        if let Some(slot) = self.slots.remove(&before.slot).filter(|_| kept.is_none()) {
            self.retired.insert(eid, (before.mapping_id, slot));
        }
        while self.retired.len() > RETIRED_MAX {
            let oldest = self.retired.iter().min_by_key(|(_, (id, _))| *id).map(|(eid, _)| *eid);
            oldest.and_then(|eid| self.retired.remove(&eid));
        }
    }

    /// The mapping's id, and its slot, from what is in place or remembered.
    fn known(&self, eid: &Eid) -> Option<(u32, &SlotValue)> {
        let live = self.map_cache.get(eid).filter(|m| m.action == ACTION_ENCAPSULATE);
        let live = live.and_then(|m| Some((m.mapping_id, &**self.slots.get(&m.slot)?)));
        live.or_else(|| self.retired.get(eid).map(|(id, slot)| (*id, &**slot)))
    }

    /// The EID-prefixes that counters name.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let retired = self.retired.iter().map(|(eid, (id, _))| (*id, *eid));
        let live =
            self.map_cache.iter().filter(|(_, m)| m.mapping_id != 0).map(|(eid, m)| (m.mapping_id, *eid));
        let local = self.local_eids.iter().map(|(eid, l)| (l.local_id, *eid));
        Counted { remote: retired.chain(live).collect(), local: local.collect() }
    }

    /// The RLOC at a locator index.
    #[must_use]
    pub fn rloc(&self, index: u32) -> Option<IpAddr> {
        self.locators.get(&index).map(|l| unmapped(&l.destination))
    }

    /// RLOCs that mappings in place use.
    #[must_use]
    pub fn rlocs(&self) -> BTreeSet<IpAddr> {
        self.referenced().into_iter().filter_map(|index| self.rloc(index)).collect()
    }

    fn referenced(&self) -> BTreeSet<u32> {
        let slots = self.slots.values();
        slots.flat_map(|s| s.members).map(|m| m.locator).filter(|&l| l != NO_LOCATOR).collect()
    }
}

/// The writes that turn `observed` into `desired`. Empty when nothing differs.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut planner = Planner::new(desired, observed);
    planner.keep_locators();
    for (eid, mapping) in &desired.mappings {
        if let Err(refusal) = planner.mapping(*eid, mapping) {
            planner.refused.push(refusal);
        }
    }
    planner.local_eids();
    planner.interfaces();
    planner.removals();
    planner.finish()
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    locators: BTreeMap<IpAddr, u32>,
    taken_locators: BTreeSet<u32>,
    taken_slots: BTreeSet<u32>,
    last_slot: u32,
    last_id: u32,
    counters: BTreeSet<TrafficKey>,
    locator_writes: Vec<MapWrite>,
    writes: Vec<MapWrite>,
    refused: Vec<Refusal>,
}

impl<'a> Planner<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        Self {
            desired,
            observed,
            locators: observed.locators.iter().map(|(i, l)| (unmapped(&l.destination), *i)).collect(),
            taken_locators: observed.referenced(),
            taken_slots: observed.slots.keys().copied().collect(),
            last_slot: observed.last_slot,
            last_id: observed.last_id,
            counters: BTreeSet::new(),
            locator_writes: Vec::new(),
            writes: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Ways to the locators in use, also those of kept mappings.
    fn keep_locators(&mut self) {
        for index in self.taken_locators.clone() {
            if let Some(rloc) = self.observed.rloc(index) {
                let gpe = self.observed.locators[&index].flags & LOCATOR_GPE != 0;
                self.locator_value(index, rloc, gpe);
            }
        }
    }

    fn mapping(&mut self, eid: Eid, mapping: &Mapping) -> Result<(), Refusal> {
        let action = match mapping {
            Mapping::Encapsulate(locators) => return self.encapsulate(eid, locators),
            Mapping::Keep => {
                self.count_kept(&eid);
                return Ok(());
            }
            Mapping::Resolve => ACTION_RESOLVE,
            Mapping::Native => ACTION_NATIVE,
            Mapping::Drop => ACTION_DROP,
        };
        self.replace(eid, MappingValue { action, ..MappingValue::default() });
        Ok(())
    }

    fn count_kept(&mut self, eid: &Eid) {
        if let Some((id, slot)) = self.observed.known(eid) {
            let members = slot.members.iter().filter(|m| m.locator != NO_LOCATOR);
            self.counters.extend(members.map(|m| TrafficKey { id, locator: m.locator }));
            self.counters.insert(TrafficKey { id, locator: OFFERED });
        }
    }

    fn encapsulate(&mut self, eid: Eid, wanted: &[Locator]) -> Result<(), Refusal> {
        let mut locators: Vec<Locator> = Vec::with_capacity(wanted.len());
        for locator in wanted {
            if locators.iter().all(|l| l.rloc != locator.rloc) {
                locators.push(*locator);
            }
        }
        if locators.len() > MEMBERS {
            return Err(Refusal::TooManyLocators { eid, count: locators.len() });
        }
        let mut placed = Vec::with_capacity(locators.len());
        for locator in locators {
            let index = self.locator_index(&locator).ok_or(Refusal::LocatorsFull { eid })?;
            let routed = self.desired.paths.contains_key(&locator.rloc);
            placed.push(Placed {
                index,
                usable: locator.usable && routed && locator.priority != 255,
                locator,
            });
        }
        let known = self.observed.known(&eid);
        let slot = fill_slot(known.map(|(_, slot)| slot), &placed);
        let mapping_id = known.map_or_else(|| self.next_id(), |(id, _)| id);
        let current = self.observed.map_cache.get(&eid).filter(|m| m.action == ACTION_ENCAPSULATE);
        let unchanged = current.filter(|m| self.observed.slots.get(&m.slot).is_some_and(|s| **s == slot));
        if unchanged.is_none() {
            let free = self.free_slot().ok_or(Refusal::SlotsFull { eid })?;
            self.writes.push(MapWrite::Slot(free, Box::new(slot)));
            self.replace(eid, MappingValue { action: ACTION_ENCAPSULATE, slot: free, mapping_id, pad: 0 });
        }
        self.last_id = self.last_id.max(mapping_id);
        self.counters.extend(placed.iter().map(|p| TrafficKey { id: mapping_id, locator: p.index }));
        self.counters.insert(TrafficKey { id: mapping_id, locator: OFFERED });
        Ok(())
    }

    /// 0 names nothing.
    fn next_id(&self) -> u32 {
        self.last_id.checked_add(1).unwrap_or(1)
    }

    fn replace(&mut self, eid: Eid, value: MappingValue) {
        if self.observed.map_cache.get(&eid) != Some(&value) {
            self.writes.push(MapWrite::Mapping(eid, value));
        }
    }

    /// Its index: the one it has or had, else one never used, else one that nothing refers to.
    fn locator_index(&mut self, locator: &Locator) -> Option<u32> {
        let index = match self.locators.get(&locator.rloc) {
            Some(index) => *index,
            None => self.new_locator_index()?,
        };
        self.locators.retain(|rloc, i| *i != index || *rloc == locator.rloc);
        self.locators.insert(locator.rloc, index);
        self.taken_locators.insert(index);
        self.locator_value(index, locator.rloc, locator.gpe);
        Some(index)
    }

    fn new_locator_index(&mut self) -> Option<u32> {
        let unused = |i: &u32| !self.observed.locators.contains_key(i) && !self.taken_locators.contains(i);
        if let Some(index) = (0..LOCATOR_COUNT).find(unused) {
            return Some(index);
        }
        let wanted: BTreeSet<IpAddr> = self.wanted_rlocs().collect();
        let idle = |i: &u32| {
            !self.taken_locators.contains(i) && self.observed.rloc(*i).is_none_or(|r| !wanted.contains(&r))
        };
        let index = (0..LOCATOR_COUNT).find(idle)?;
        let stale = self.observed.traffic.iter().filter(|t| t.locator == index);
        self.locator_writes.extend(stale.map(|t| MapWrite::RemoveTraffic(*t)));
        Some(index)
    }

    fn wanted_rlocs(&self) -> impl Iterator<Item = IpAddr> {
        self.desired.mappings.values().flat_map(|mapping| {
            let locators: &[Locator] =
                if let Mapping::Encapsulate(locators) = mapping { locators } else { &[] };
            locators.iter().map(|l| l.rloc)
        })
    }

    /// Plans the locator's value; without a way the old one stays, its members are not usable.
    fn locator_value(&mut self, index: u32, rloc: IpAddr, gpe: bool) {
        let old = self.observed.locators.get(&index).filter(|l| l.destination == mapped(rloc));
        let value = match self.desired.paths.get(&rloc) {
            Some(path) => path_value(rloc, path, gpe),
            None if old.is_some() => return,
            None => LocatorValue { destination: mapped(rloc), ..LocatorValue::default() },
        };
        self.locator_writes.retain(|w| !matches!(w, MapWrite::Locator(i, _) if *i == index));
        if old != Some(&value) {
            self.locator_writes.push(MapWrite::Locator(index, value));
        }
    }

    /// The next free slot in turn, so that one freed a moment ago is not filled while a program still reads it.
    fn free_slot(&mut self) -> Option<u32> {
        let next = (1..=SLOT_COUNT).map(|step| (self.last_slot + step) % SLOT_COUNT);
        let slot = next.into_iter().find(|slot| !self.taken_slots.contains(slot))?;
        self.taken_slots.insert(slot);
        self.last_slot = slot;
        Some(slot)
    }

    fn local_eids(&mut self) {
        for (eid, local) in &self.desired.local_eids {
            let old = self.observed.local_eids.get(eid);
            let local_id = old.map_or_else(|| self.next_id(), |o| o.local_id);
            self.last_id = self.last_id.max(local_id);
            let value = LocalEidValue {
                ifindex: local.ifindex,
                next_hop: local.next_hop.map_or([0; 16], mapped),
                local_id,
            };
            self.counters.insert(TrafficKey { id: local_id, locator: DECAPSULATED });
            if old != Some(&value) {
                self.writes.push(MapWrite::LocalEid(*eid, value));
            }
        }
    }

    fn interfaces(&mut self) {
        for (ifindex, value) in &self.desired.interfaces {
            if self.observed.interfaces.get(ifindex) != Some(value) {
                self.writes.push(MapWrite::Interface(*ifindex, *value));
            }
        }
    }

    fn node(&self, writes: &[MapWrite]) -> Option<MapWrite> {
        let in_place = self.observed.node;
        let outdated = self.observed.outdated || writes.iter().any(MapWrite::outdates);
        // 0 is of nobody.
        let next = in_place.generation.checked_add(1).unwrap_or(1);
        let generation = if outdated || in_place.generation == 0 { next } else { in_place.generation };
        let wanted = NodeValue { generation, ..self.desired.node };
        (wanted != in_place).then_some(MapWrite::Node(wanted))
    }

    fn removals(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        let gone = observed.map_cache.keys().filter(|eid| !desired.mappings.contains_key(eid));
        self.writes.extend(gone.map(|eid| MapWrite::RemoveMapping(*eid)));
        let gone = observed.local_eids.keys().filter(|eid| !desired.local_eids.contains_key(eid));
        self.writes.extend(gone.map(|eid| MapWrite::RemoveLocalEid(*eid)));
        let gone = observed.interfaces.keys().filter(|i| !desired.interfaces.contains_key(i));
        self.writes.extend(gone.map(|ifindex| MapWrite::RemoveInterface(*ifindex)));
        let counted = observed.counted();
        let named = |t: &TrafficKey| self.counters.contains(t) || counted.eid(t).is_some();
        let gone: Vec<_> = observed.traffic.iter().filter(|t| !named(t)).collect();
        self.writes.extend(gone.into_iter().map(|key| MapWrite::RemoveTraffic(*key)));
    }

    /// Locators and counters come first: nothing may name them before they are there. The generation comes last: what
    /// is remembered under it has been read after all changes.
    fn finish(mut self) -> Plan {
        let mut writes = std::mem::take(&mut self.locator_writes);
        let dropped: BTreeSet<TrafficKey> = writes
            .iter()
            .chain(&self.writes)
            .filter_map(|w| if let MapWrite::RemoveTraffic(key) = w { Some(*key) } else { None })
            .collect();
        let missing = |t: &&TrafficKey| !self.observed.traffic.contains(t) || dropped.contains(t);
        writes.extend(self.counters.iter().filter(missing).map(|key| MapWrite::Traffic(*key)));
        let mut seen = BTreeSet::new();
        writes.append(&mut self.writes);
        writes.retain(|w| !matches!(w, MapWrite::RemoveTraffic(key) if !seen.insert(*key)));
        writes.extend(self.node(&writes));
        Plan { writes, refused: self.refused }
    }
}

fn path_value(rloc: IpAddr, path: &Path, gpe: bool) -> LocatorValue {
    let (next_hop_mac, source_mac) = path.macs.unwrap_or_default();
    LocatorValue {
        source: mapped(path.source),
        destination: mapped(rloc),
        next_hop: mapped(path.next_hop),
        ifindex: path.ifindex,
        mtu: path.mtu,
        family: if rloc.is_ipv4() { 4 } else { 6 },
        flags: if path.macs.is_some() { LOCATOR_MAC_RESOLVED } else { 0 } | if gpe { LOCATOR_GPE } else { 0 },
        next_hop_mac,
        source_mac,
        pad: 0,
    }
}

#[cfg(test)]
mod tests;
