//! The writes that lead from what the kernel's maps hold to what is wanted.
//!
//! Everything here is a value. A program never finds a table, a backend or a tunnel that is not there yet: what an
//! entry of the VIP table names is written before the entry, and goes after it. A new table is written where no program
//! reads, and becomes visible with the one write that replaces the entry.

use std::collections::{BTreeMap, BTreeSet};

use balance::maglev::MaglevError;
use bpf_abi::balancer::{
    BACKEND_USABLE, BACKENDS, BackendValue, TableChunk, TunnelValue, VIP_BY_ADDRESSES, VIP_ECHO,
    VIP_FLOW_TABLE, VIPS, VipKey, VipValue,
};
use codec::Instant;

use crate::balancer::bases::Bases;
use crate::balancer::chunks::{Chunks, GRACE};
use crate::balancer::desired::{Backend, HashBy, Vip};
use crate::balancer::error::VipError;
use crate::balancer::identity::identity;
use crate::balancer::observed::{Observed, Write, address_of, fragments_of, is_vip};
use crate::balancer::table::{self, Form, Memory, Table, tables_of};
use crate::eid::mapped;

/// Octets of a chunk.
pub(crate) const CHUNK_OCTETS: u64 = size_of::<TableChunk>() as u64;

/// A VIP as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// As it was wanted.
    pub(crate) vip: Vip,
    /// Indices of its backends, in their order.
    pub(crate) indices: Vec<u16>,
}

/// What is in force, by VIP.
pub(crate) type InForce = BTreeMap<VipKey, Placed>;

/// Writes in the order in which they are to be made, and what holds once they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<Write>,
    /// VIPs that are placed anew.
    pub(crate) placed: Vec<(VipKey, Placed)>,
    /// [`Observed::drains`].
    pub(crate) drains: BTreeMap<VipKey, Instant>,
    /// [`Observed::retired`].
    pub(crate) retired: BTreeMap<u16, Instant>,
    /// VIPs whose table is replaced.
    pub(crate) tables: usize,
    /// Slots of these that name another backend.
    pub(crate) moved_slots: u64,
}

/// The writes that turn `observed` into `desired`, which [`check`](super::check::check) has nothing against. VIPs that
/// are `in_force` as they are wanted are not looked at again.
///
/// # Errors
/// What there is no room for.
pub(crate) fn plan(
    now: Instant,
    desired: &[Vip],
    in_force: &InForce,
    observed: &Observed,
    memory: &impl Memory,
    bases: &mut Bases,
) -> Result<Plan, Vec<VipError>> {
    let mut planner = Planner::new(now, desired, observed, memory, bases);
    let mut errors = Vec::new();
    for vip in desired {
        let key = vip.id.key();
        match in_force.get(&key).filter(|placed| placed.vip == *vip) {
            Some(placed) => planner.keep(key, placed),
            None => errors.extend(planner.vip(key, vip).err()),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    planner.addresses(desired);
    planner.removals();
    Ok(planner.finish())
}

struct Planner<'a, M> {
    now: Instant,
    observed: &'a Observed,
    memory: &'a M,
    bases: &'a mut Bases,
    chunks: Chunks,
    /// Indices of wanted backends.
    in_use: BTreeSet<u16>,
    /// Where to look for a free index.
    next_index: u32,
    /// Where to look for an id that no VIP has or had.
    next_id: usize,
    last_serial: u32,
    last_generation: u32,
    /// Entries of the VIP table that stay or come.
    entries: BTreeSet<VipKey>,
    /// Ids of VIPs that stay or come.
    ids: BTreeSet<u32>,
    /// Ids of VIPs that go.
    going: BTreeSet<u32>,
    tables: Vec<Write>,
    /// Changes that nobody may see before the entries are replaced.
    late: Vec<Write>,
    published: Vec<Write>,
    /// Previous tables that stay longer than was planned, and until when.
    extended: Vec<(Table, Instant)>,
    plan: Plan,
}

impl<'a, M: Memory> Planner<'a, M> {
    fn new(
        now: Instant,
        desired: &[Vip],
        observed: &'a Observed,
        memory: &'a M,
        bases: &'a mut Bases,
    ) -> Self {
        let stay: BTreeSet<VipKey> = desired.iter().map(|vip| vip.id.key()).collect();
        let vips = observed.vips.iter().filter(|(key, _)| is_vip(key));
        let (staying, going): (Vec<_>, Vec<_>) = vips.partition(|(key, _)| stay.contains(key));
        let ids = |vips: Vec<(&VipKey, &VipValue)>| vips.into_iter().map(|(_, value)| value.id).collect();
        Self {
            now,
            observed,
            memory,
            bases,
            chunks: observed.chunks.clone(),
            in_use: BTreeSet::new(),
            next_index: 0,
            next_id: 0,
            last_serial: observed.last_serial,
            last_generation: observed.last_generation,
            entries: BTreeSet::new(),
            ids: ids(staying),
            going: ids(going),
            tables: Vec::new(),
            late: Vec::new(),
            published: Vec::new(),
            extended: Vec::new(),
            plan: Plan::default(),
        }
    }

    /// A VIP that stays as it is.
    fn keep(&mut self, key: VipKey, placed: &Placed) {
        self.in_use.extend(&placed.indices);
        self.entries.insert(key);
        if placed.vip.hash == HashBy::Addresses {
            self.entries.insert(fragments_of(&key));
        }
        self.plan.drains.extend(self.observed.drains.get(&key).map(|end| (key, *end)));
    }

    fn vip(&mut self, key: VipKey, vip: &Vip) -> Result<(), VipError> {
        let indices = self.backends(key, vip)?;
        let value = self.value(key, vip, &indices)?;
        self.entry(key, value);
        if vip.hash == HashBy::Addresses {
            self.entry(fragments_of(&key), value);
        }
        self.plan.placed.push((key, Placed { vip: vip.clone(), indices }));
        Ok(())
    }

    fn backends(&mut self, key: VipKey, vip: &Vip) -> Result<Vec<u16>, VipError> {
        let mut indices = Vec::with_capacity(vip.backends.len());
        for backend in &vip.backends {
            let identity = identity(&key, &backend.name);
            let index = match self.observed.index(identity) {
                Some(index) => index,
                None => self.new_index(vip, identity)?,
            };
            self.in_use.insert(index);
            self.backend(index, backend);
            indices.push(index);
        }
        Ok(indices)
    }

    fn new_index(&mut self, vip: &Vip, identity: u128) -> Result<u16, VipError> {
        let owners = self.observed.owners();
        let all = (self.next_index..).take_while(|index| (*index as usize) < BACKENDS);
        let free =
            all.filter_map(|index| u16::try_from(index).ok()).find(|index| !owners.contains_key(index));
        let index = free.ok_or_else(|| VipError::TooManyBackends {
            vip: vip.id,
            count: self.in_use.len() + 1,
            waiting: u32::try_from(owners.len().saturating_sub(self.in_use.len())).unwrap_or(u32::MAX),
        })?;
        self.next_index = u32::from(index) + 1;
        self.plan.writes.push(Write::Identity(index, identity));
        if self.observed.backends.contains_key(&index) {
            self.plan.writes.push(Write::ResetBackend(index));
        }
        Ok(index)
    }

    fn backend(&mut self, index: u16, backend: &Backend) {
        if let Some(tunnel) = backend.tunnel {
            let value = TunnelValue { vtep: mapped(tunnel.vtep), mac: tunnel.mac, pad: [0; 2] };
            if self.observed.tunnels.get(&index) != Some(&value) {
                self.plan.writes.push(Write::Tunnel(index, value));
            }
        }
        let before = self.observed.backends.get(&index);
        let owned = self.observed.owners().contains_key(&index);
        let serial = before.filter(|_| owned).map(|b| b.serial).filter(|serial| *serial != 0);
        let flags = if backend.usable { BACKEND_USABLE } else { 0 };
        let segment = backend.segment.value();
        let serial = serial.unwrap_or_else(|| self.new_serial());
        let value = BackendValue { mac: backend.mac, flags, segment, serial };
        if before == Some(&value) {
            return;
        }
        // While the old table still sends there, it had better not be refused.
        let fails = !backend.usable && self.observed.is_usable(index);
        let writes = if fails { &mut self.late } else { &mut self.plan.writes };
        writes.push(Write::Backend(index, value));
    }

    fn new_serial(&mut self) -> u32 {
        self.last_serial = self.last_serial.checked_add(1).unwrap_or(1);
        self.last_serial
    }

    /// The entry of a VIP, but for its generation.
    fn value(&mut self, key: VipKey, vip: &Vip, indices: &[u16]) -> Result<VipValue, VipError> {
        let before = self.observed.vips.get(&key).copied();
        let current = before.as_ref().map_or_else(Table::default, table::current);
        let table = self.table(vip, indices, current)?;
        let (previous, drain) = self.drain(key, vip, before, current, table);
        let id = before.map_or_else(|| self.new_id(), |before| before.id);
        let mut flags = if vip.flow_table { VIP_FLOW_TABLE } else { 0 };
        if vip.hash == HashBy::Addresses {
            flags |= VIP_BY_ADDRESSES;
        }
        Ok(VipValue {
            id,
            flags,
            table: table.named,
            size: table.size,
            previous_table: previous.named,
            previous_size: previous.size,
            drain,
            ..VipValue::default()
        })
    }

    /// The table in place if it says what is wanted, or a new one; none if no backend takes new flows.
    fn table(&mut self, vip: &Vip, indices: &[u16], current: Table) -> Result<Table, VipError> {
        let wanted = match indices {
            [] => Vec::new(),
            indices => self.bases.slots(vip, indices).map_err(|error| refused(vip, error))?,
        };
        let is_there = self.observed.chunks.is_table(current.first());
        let there = Some(current).filter(|_| is_there).and_then(|current| self.memory.slots(current));
        let there = there.unwrap_or_default();
        if there == wanted {
            return Ok(if wanted.is_empty() { Table::default() } else { current });
        }
        self.plan.tables += 1;
        self.plan.moved_slots += moved(&there, &wanted);
        if wanted.is_empty() {
            return Ok(Table::default());
        }
        let form = Form::of(&wanted);
        let first = self.chunks.allocate(form.len()).ok_or_else(|| self.full(vip, form.len()))?;
        let table = form.at(first);
        self.tables.push(Write::Table(table, form.chunks));
        Ok(table)
    }

    /// The table that flows older than the drain keep to, and the drain's number.
    ///
    /// A change during a drain leaves it as it is: what has begun since is remembered where it is, so the oldest table is
    /// the right one for all that is not.
    fn drain(
        &mut self,
        key: VipKey,
        vip: &Vip,
        before: Option<VipValue>,
        current: Table,
        table: Table,
    ) -> (Table, u32) {
        let none = (Table::default(), 0);
        // Without backends there is none that a flow could keep to. With backends of which none takes new flows there is.
        let Some(before) = before.filter(|_| !vip.backends.is_empty()) else { return none };
        let previous = table::previous(&before);
        let drains = previous.size > 0 && self.observed.chunks.is_table(previous.first());
        if current == table {
            if drains {
                // Begun by an earlier process: nobody knows when.
                let end = self.observed.drains.get(&key).copied().unwrap_or(self.now + vip.drain);
                self.plan.drains.insert(key, end);
            }
            return (previous, before.drain);
        }
        if vip.drain.is_zero() {
            return none;
        }
        let kept = if drains {
            self.extended.push((previous, self.now + vip.drain));
            (previous, before.drain)
        } else if current.size > 0 && self.observed.chunks.is_table(current.first()) {
            (current, self.new_drain())
        } else {
            return none;
        };
        self.plan.drains.insert(key, self.now + vip.drain);
        kept
    }

    /// A number that no drain has or had: the generations', of which this change takes one.
    fn new_drain(&mut self) -> u32 {
        self.last_generation = self.last_generation.wrapping_add(1).max(1);
        self.last_generation
    }

    /// The lowest id that no VIP has or had a moment ago; if there is none, one of a VIP that goes: for as long as a
    /// program runs, both count for it.
    fn new_id(&mut self) -> u32 {
        let ids = || (0_u32..).take(VIPS);
        let is_free = |id: &u32| !self.ids.contains(id);
        let new = ids().skip(self.next_id).find(|id| is_free(id) && !self.going.contains(id));
        let id = new.or_else(|| ids().find(is_free)).unwrap_or(0);
        self.next_id = new.map_or(VIPS, |id| id as usize + 1);
        self.ids.insert(id);
        self.plan.writes.push(Write::ResetVip(id));
        id
    }

    fn full(&self, vip: &Vip, chunks: u32) -> VipError {
        let octets = |chunks: u32| u64::from(chunks) * CHUNK_OCTETS;
        let vips = self.observed.vips.iter().filter(|(key, _)| is_vip(key));
        let previous = vips.map(|(_, value)| table::previous(value).chunks());
        let waiting = previous.sum::<u32>() + self.chunks.cooling();
        VipError::TableMemory {
            vip: vip.id,
            needed: octets(chunks),
            free: octets(self.chunks.free()),
            waiting: octets(waiting),
            all: octets(self.chunks.total()),
        }
    }

    /// Publishes an entry unless it is there.
    fn entry(&mut self, key: VipKey, value: VipValue) {
        self.entries.insert(key);
        if self
            .observed
            .vips
            .get(&key)
            .is_some_and(|before| before.stamped(&key, 0) == value.stamped(&key, 0))
        {
            return;
        }
        self.last_generation = self.last_generation.wrapping_add(1);
        self.published.push(Write::Vip(key, value.stamped(&key, self.last_generation)));
    }

    /// The entries of addresses, by which programs tell that an address has VIPs.
    fn addresses(&mut self, desired: &[Vip]) {
        let mut echo: BTreeMap<VipKey, bool> = BTreeMap::new();
        for vip in desired {
            *echo.entry(address_of(&vip.id.key())).or_default() |= vip.echo;
        }
        for (key, echo) in echo {
            let flags = if echo { VIP_ECHO } else { 0 };
            self.entry(key, VipValue { flags, ..VipValue::default() });
        }
    }

    fn removals(&mut self) {
        let (observed, now) = (self.observed, self.now);
        let gone: Vec<VipKey> =
            observed.vips.keys().filter(|key| !self.entries.contains(key)).copied().collect();
        // An address has its entry for as long as it has a VIP.
        let (addresses, others): (Vec<_>, Vec<_>) = gone.into_iter().partition(|key| key.protocol == 0);
        self.published.extend(others.into_iter().chain(addresses).map(Write::RemoveVip));
        let drained = self.plan.drains.values().copied().fold(now, Instant::max) + GRACE;
        let former: Vec<u16> =
            observed.owners().keys().filter(|index| !self.in_use.contains(index)).copied().collect();
        let extended = if former.is_empty() { Vec::new() } else { self.named_longer() };
        for index in &former {
            let at = observed.retired.get(index).copied().unwrap_or(drained);
            let named =
                extended.iter().filter(|(named, _)| named.contains(index)).map(|(_, end)| *end + GRACE);
            self.plan.retired.insert(*index, named.fold(at, Instant::max));
            // The serial stays, so that no later owner gets one that flows remember.
            let before = observed.backends.get(index);
            let serial = before.map_or(0, |backend| backend.serial);
            let value = BackendValue { serial, ..BackendValue::default() };
            if before.is_some_and(|before| *before != value) {
                self.late.push(Write::Backend(*index, value));
            }
        }
    }

    /// Indices that tables name for longer than was planned when their backends went, and until when.
    fn named_longer(&self) -> Vec<(BTreeSet<u16>, Instant)> {
        let of = |(table, end): &(Table, Instant)| {
            let mut is_named = vec![false; usize::from(u16::MAX) + 1];
            for index in self.memory.slots(*table).unwrap_or_default() {
                is_named[usize::from(index)] = true;
            }
            let named = (0..=u16::MAX).filter(|index| is_named[usize::from(*index)]);
            (named.collect(), *end)
        };
        self.extended.iter().map(of).collect()
    }

    fn finish(mut self) -> Plan {
        self.plan.writes.append(&mut self.tables);
        self.plan.writes.append(&mut self.published);
        self.plan.writes.append(&mut self.late);
        self.plan
    }
}

fn refused(vip: &Vip, error: MaglevError) -> VipError {
    match error {
        MaglevError::Twice(backend) => VipError::BackendTwice { vip: vip.id, backend },
        MaglevError::TooManyMembers(count) => VipError::TooManyOfVip { vip: vip.id, count },
    }
}

/// Slots that name another backend than before; all of the larger table if the two have not the same size.
fn moved(before: &[u16], after: &[u16]) -> u64 {
    let same = before.len() == after.len();
    let moved = after.iter().zip(before).filter(|(after, before)| after != before).count();
    (if same { moved } else { before.len().max(after.len()) }) as u64
}

/// Octets of the tables of an entry.
pub(crate) fn table_octets(value: &VipValue) -> u64 {
    tables_of(value).map(|table| u64::from(table.chunks()) * CHUNK_OCTETS).sum()
}
