//! What the kernel's maps hold, noted write by write, and what has to be waited for.

use std::collections::{BTreeMap, HashMap};

use bpf_abi::balancer::{BACKEND_USABLE, BackendValue, TableChunk, TunnelValue, VipKey, VipValue};
use codec::Instant;

use crate::balancer::chunks::Chunks;
use crate::balancer::table::{Table, tables_of};

/// One write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Set the owner of a backend's index; 0 for none.
    Identity(u16, u128),
    /// Zero the counters of an index that had another owner.
    ResetBackend(u16),
    /// Replace an entry of `TUNNELS`.
    Tunnel(u16, TunnelValue),
    /// Replace an entry of `BACKENDS`.
    Backend(u16, BackendValue),
    /// Zero the counters of an id that may have had another VIP.
    ResetVip(u32),
    /// Fill the free chunks of a table.
    Table(Table, Vec<TableChunk>),
    /// Insert into `BALANCER_VIPS`, or replace.
    Vip(VipKey, VipValue),
    /// Remove from `BALANCER_VIPS`.
    RemoveVip(VipKey),
}

/// The state of the kernel's maps.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) vips: BTreeMap<VipKey, VipValue>,
    /// By index, those that are not all zero. A former backend keeps its serial.
    pub(crate) backends: BTreeMap<u16, BackendValue>,
    pub(crate) tunnels: BTreeMap<u16, TunnelValue>,
    owners: BTreeMap<u16, u128>,
    indices: HashMap<u128, u16>,
    pub(crate) chunks: Chunks,
    /// When previous tables are given up.
    pub(crate) drains: BTreeMap<VipKey, Instant>,
    /// Indices of former backends, and when they are free if nothing cools down then.
    pub(crate) retired: BTreeMap<u16, Instant>,
    pub(crate) last_serial: u32,
    pub(crate) last_generation: u32,
}

/// Key of the entry that takes the fragments of a VIP's address.
pub(crate) const fn fragments_of(key: &VipKey) -> VipKey {
    VipKey { port: [0; 2], ..*key }
}

/// Key of the entry of a VIP's address.
pub(crate) const fn address_of(key: &VipKey) -> VipKey {
    VipKey { port: [0; 2], protocol: 0, ..*key }
}

/// Whether an entry is a VIP's own.
pub(crate) fn is_vip(key: &VipKey) -> bool {
    key.port != [0; 2]
}

impl Observed {
    /// Empty maps with room for `chunks` chunks of tables.
    pub(crate) fn new(chunks: u32) -> Self {
        Self {
            vips: BTreeMap::new(),
            backends: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            owners: BTreeMap::new(),
            indices: HashMap::new(),
            chunks: Chunks::new(chunks),
            drains: BTreeMap::new(),
            retired: BTreeMap::new(),
            last_serial: 0,
            last_generation: 0,
        }
    }

    /// Notes an entry that was found in place.
    pub(crate) fn found(&mut self, key: VipKey, value: VipValue) {
        for table in tables_of(&value) {
            self.chunks.take(table.first(), table.chunks());
        }
        self.record(&Write::Vip(key, value), Instant::ZERO);
    }

    /// Notes a write that was made.
    pub(crate) fn record(&mut self, write: &Write, now: Instant) {
        match write {
            Write::Identity(index, identity) => self.record_owner(*index, *identity),
            Write::Tunnel(index, value) => drop(self.tunnels.insert(*index, *value)),
            Write::Backend(index, value) => {
                self.last_serial = self.last_serial.max(value.serial);
                self.backends.insert(*index, *value);
            }
            Write::Table(table, _) => drop(self.chunks.take(table.first(), table.chunks())),
            Write::Vip(key, value) => {
                self.last_generation = self.last_generation.max(value.generation);
                let before = self.vips.insert(*key, *value);
                // First the new ones, so that a table that stays is never without an entry.
                tables_of(value).for_each(|table| self.chunks.publish(table.first()));
                self.withdraw(before, now);
                if value.previous_size == 0 {
                    self.drains.remove(key);
                }
            }
            Write::RemoveVip(key) => {
                let before = self.vips.remove(key);
                self.withdraw(before, now);
                self.drains.remove(key);
            }
            Write::ResetBackend(_) | Write::ResetVip(_) => {}
        }
    }

    fn record_owner(&mut self, index: u16, identity: u128) {
        if let Some(before) = self.owners.remove(&index) {
            self.indices.remove(&before);
        }
        self.retired.remove(&index);
        if identity != 0 {
            self.owners.insert(index, identity);
            self.indices.insert(identity, index);
        }
    }

    fn withdraw(&mut self, before: Option<VipValue>, now: Instant) {
        for table in before.iter().flat_map(tables_of) {
            self.chunks.withdraw(table.first(), now);
        }
    }

    /// The index that a backend has.
    pub(crate) fn index(&self, identity: u128) -> Option<u16> {
        self.indices.get(&identity).copied()
    }

    /// Indices with an owner, and the owners.
    pub(crate) const fn owners(&self) -> &BTreeMap<u16, u128> {
        &self.owners
    }

    /// Whether packets may be sent to the backend of an index.
    pub(crate) fn is_usable(&self, index: u16) -> bool {
        self.backends.get(&index).is_some_and(|backend| backend.flags & BACKEND_USABLE != 0)
    }

    /// When [`expired`](Self::expired) has something to say or chunks have cooled down.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let drained = self.drains.values().min().copied();
        let retired = || self.retired.values().min().copied();
        let free = self.chunks.cooled_at().or_else(retired);
        drained.into_iter().chain(free).min()
    }

    /// The writes that end drains and free indices whose time has come.
    pub(crate) fn expired(&self, now: Instant) -> Vec<Write> {
        let mut writes = Vec::new();
        let mut generation = self.last_generation;
        for (key, _) in self.drains.iter().filter(|(_, end)| **end <= now) {
            let fragments = fragments_of(key);
            let of_vip = self.vips.get(key).map(|value| (*key, *value));
            let of_fragments = self.vips.get(&fragments).map(|value| (fragments, *value));
            let same =
                |(_, fragments): &(VipKey, VipValue)| of_vip.is_some_and(|(_, v)| v.id == fragments.id);
            // The VIP's own entry last: while it is not written, the drain counts as not ended.
            for (key, value) in of_fragments.filter(same).into_iter().chain(of_vip) {
                generation = generation.wrapping_add(1);
                let over = VipValue { previous_table: 0, previous_size: 0, drain: 0, ..value };
                writes.push(Write::Vip(key, over.stamped(&key, generation)));
            }
        }
        // A drain may have ended late, and a table that cools down may name an index whose time has come.
        if writes.is_empty() && self.chunks.cooled_at().is_none() {
            let over = self.retired.iter().filter(|(_, at)| **at <= now);
            writes.extend(over.map(|(index, _)| Write::Identity(*index, 0)));
        }
        writes
    }
}
