use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use balance::maglev::{Base, NO_MEMBER, TableSize};
use bpf_abi::balancer::{BackendValue, TableChunk, VIP_BY_ADDRESSES, VIP_ECHO, VipKey, VipValue};
use proptest::prelude::*;

use super::*;
use crate::balancer::desired::HashBy;
use crate::balancer::error::VipError;
use crate::balancer::identity::identity;
use crate::balancer::observed::{address_of, fragments_of, is_vip};
use crate::balancer::samples::vip;
use crate::balancer::table::{Table, current, tables_of};

const CHUNKS: u32 = 512;

/// Maps that mind what a program could be reading.
#[derive(Clone, Default)]
struct Kernel {
    now: Rc<Cell<Instant>>,
    /// How long a write takes.
    delay: Duration,
    chunks: Vec<TableChunk>,
    vips: BTreeMap<VipKey, VipValue>,
    backends: BTreeMap<u16, BackendValue>,
    identities: BTreeMap<u16, u128>,
    /// Until when a program may go on reading what is not named any more: chunks, and indices.
    read_until: Vec<(Instant, std::ops::Range<usize>)>,
    named_until: HashMap<u16, Instant>,
    writes: Vec<Write>,
    /// Fails at this write.
    refuse_after: Option<usize>,
}

impl Memory for Kernel {
    fn chunks(&self, first: u32, count: u32) -> Option<&[TableChunk]> {
        self.chunks.get(first as usize..(first + count) as usize)
    }
}

impl Kernel {
    fn new() -> Self {
        Self { chunks: vec![TableChunk::default(); CHUNKS as usize], ..Self::default() }
    }

    fn places(value: &VipValue) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        tables_of(value).map(place)
    }

    /// A table that is named before it is written, or names a backend that is nobody's, is a packet lost.
    fn publish(&mut self, key: &VipKey, value: &VipValue) {
        assert_eq!(*value, value.stamped(key, value.generation));
        assert!(self.vips.values().all(|other| other.generation != value.generation), "a second {value:?}");
        for index in tables_of(value).flat_map(|table| self.slots(table).unwrap()) {
            assert!(self.identities.contains_key(&index), "{index} has no owner");
            assert_ne!(self.backends[&index].serial, 0);
        }
    }

    fn withdraw(&mut self, value: Option<VipValue>) {
        let until = self.now.get() + GRACE;
        for table in value.iter().flat_map(tables_of) {
            for index in self.slots(table).unwrap() {
                self.named_until.insert(index, until);
            }
            self.read_until.push((until, place(table)));
        }
    }

    fn named(&self) -> BTreeSet<u16> {
        let tables = self.vips.values().flat_map(tables_of);
        tables.flat_map(|table| self.slots(table).unwrap()).collect()
    }
}

fn place(table: Table) -> std::ops::Range<usize> {
    let first = table.first() as usize;
    first..first + table.chunks() as usize
}

impl Target for Kernel {
    type Memory = Self;

    fn memory(&self) -> &Self {
        self
    }

    fn write(&mut self, write: &Write) -> Result<(), DataplaneError> {
        if self.refuse_after == Some(self.writes.len()) {
            return Err(DataplaneError::system("refuse", "", std::io::Error::other("as told")));
        }
        self.now.set(self.now.get() + self.delay);
        match write {
            Write::Identity(index, identity) => {
                assert!(!self.named().contains(index), "{index} is named by a table");
                let until = self.named_until.get(index).copied().unwrap_or_default();
                assert!(until <= self.now.get(), "{index} may be in the hands of a program");
                self.identities.remove(index);
                if *identity != 0 {
                    assert!(self.identities.values().all(|other| other != identity));
                    self.identities.insert(*index, *identity);
                }
            }
            Write::Backend(index, value) => {
                assert!(self.identities.contains_key(index));
                let known = self.backends.values().map(|backend| backend.serial).max().unwrap_or(0);
                let before = self.backends.insert(*index, *value).map(|backend| backend.serial);
                assert!(before == Some(value.serial) || value.serial > known, "{value:?} after {before:?}");
            }
            Write::Table(table, chunks) => {
                let range = place(*table);
                let overlaps =
                    |other: &std::ops::Range<usize>| range.start < other.end && other.start < range.end;
                assert!(!self.vips.values().flat_map(Self::places).any(|live| overlaps(&live)), "{write:?}");
                let now = self.now.get();
                assert!(!self.read_until.iter().any(|(until, read)| *until > now && overlaps(read)));
                self.chunks[range].copy_from_slice(chunks);
            }
            Write::Vip(key, value) => {
                self.publish(key, value);
                let before = self.vips.insert(*key, *value);
                self.withdraw(before);
            }
            Write::RemoveVip(key) => {
                let before = self.vips.remove(key);
                self.withdraw(before);
            }
            Write::Tunnel(..) | Write::ResetBackend(_) | Write::ResetVip(_) => {}
        }
        self.writes.push(write.clone());
        Ok(())
    }
}

/// A process and the kernel.
struct World {
    state: State<Kernel>,
}

impl World {
    fn new() -> Self {
        Self { state: State::new(Kernel::new(), Observed::new(CHUNKS)) }
    }

    /// The state, and the clock that goes on with every write.
    fn at(&mut self, now: Instant) -> (&mut State<Kernel>, impl Fn() -> Instant + use<>) {
        self.state.maps.now.set(now);
        self.state.maps.writes.clear();
        let clock = Rc::clone(&self.state.maps.now);
        (&mut self.state, move || clock.get())
    }

    fn try_apply(&mut self, now: Instant, desired: &[Vip]) -> Result<Applied, DataplaneError> {
        let (state, clock) = self.at(now);
        state.apply(&clock, desired, &[])
    }

    fn apply(&mut self, now: Instant, desired: &[Vip]) -> Applied {
        self.try_apply(now, desired).unwrap()
    }

    fn time_out(&mut self, now: Instant) {
        let (state, clock) = self.at(now);
        state.handle_timeout(&clock).unwrap();
    }

    fn writes(&self) -> &[Write] {
        &self.state.maps.writes
    }

    /// Another process finds what this one left.
    fn restart(&mut self) {
        let kernel = self.state.maps.clone();
        let mut observed = Observed::new(CHUNKS);
        kernel.vips.iter().for_each(|(key, value)| observed.found(*key, *value));
        for (index, value) in &kernel.backends {
            observed.record(&Write::Backend(*index, *value), Instant::ZERO);
        }
        for (index, identity) in &kernel.identities {
            observed.record(&Write::Identity(*index, *identity), Instant::ZERO);
        }
        self.state = State::new(kernel, observed);
    }

    fn value(&self, vip: &Vip) -> VipValue {
        self.state.maps.vips[&vip.id.key()]
    }

    fn table(&self, vip: &Vip) -> Vec<u16> {
        self.state.maps.slots(current(&self.value(vip))).unwrap()
    }

    fn index(&self, vip: &Vip, backend: &str) -> u16 {
        let identity = identity(&vip.id.key(), backend);
        *self.state.maps.identities.iter().find(|(_, owner)| **owner == identity).unwrap().0
    }

    /// The table that a VIP has by its definition, with the kernel's indices.
    fn expected(&self, vip: &Vip) -> Vec<u16> {
        let names: Vec<&str> = vip.backends.iter().map(|b| b.name.as_str()).collect();
        let weights: Vec<u32> = vip.backends.iter().map(|b| b.weight).collect();
        let down: Vec<bool> = vip.backends.iter().map(|b| !b.usable).collect();
        let size = vip.table_size.unwrap_or_else(|| TableSize::default_for(names.len()));
        let table = Base::new(size, &names).unwrap().table_with_down(&weights, &down);
        let members = table.into_iter().take_while(|member| *member != NO_MEMBER);
        members.map(|member| self.index(vip, names[usize::from(member)])).collect()
    }

    fn check(&self, desired: &[Vip]) {
        let kernel = &self.state.maps;
        for vip in desired.iter().filter(|vip| !vip.backends.is_empty()) {
            assert_eq!(self.table(vip), self.expected(vip), "{}", vip.id);
        }
        assert_eq!(kernel.vips.keys().filter(|key| is_vip(key)).count(), desired.len());
        let usable: usize = desired.iter().flat_map(|vip| &vip.backends).filter(|b| b.usable).count();
        assert_eq!(kernel.backends.values().filter(|backend| backend.flags != 0).count(), usable);
        let ids: BTreeSet<_> = kernel.vips.iter().filter(|(key, _)| is_vip(key)).map(|(_, v)| v.id).collect();
        assert_eq!(ids.len(), desired.len(), "each VIP counts for itself");
    }
}

fn small(mut vip: Vip) -> Vip {
    vip.table_size = Some(TableSize::MIN);
    vip
}

fn web(backends: &[(&str, u32)]) -> Vip {
    small(vip("192.0.2.10:80/tcp", backends))
}

#[test]
fn what_an_entry_names_is_written_before_it() {
    let mut world = World::new();
    let web = web(&[("a", 1), ("b", 1)]);
    let applied = world.apply(Instant::ZERO, std::slice::from_ref(&web));
    let kinds: Vec<_> = world.writes().iter().map(std::mem::discriminant).collect();
    let order: Vec<_> = [
        Write::Identity(0, 1),
        Write::Backend(0, BackendValue::default()),
        Write::Identity(0, 1),
        Write::Backend(0, BackendValue::default()),
        Write::ResetVip(0),
        Write::Table(Table::default(), Vec::new()),
        Write::Vip(VipKey::default(), VipValue::default()),
        Write::Vip(VipKey::default(), VipValue::default()),
    ]
    .iter()
    .map(std::mem::discriminant)
    .collect();
    assert_eq!(kinds, order);
    assert_eq!(applied, Applied { writes: 8, tables: 1, moved_slots: 251 });
    world.check(std::slice::from_ref(&web));
    let address = world.state.maps.vips[&address_of(&web.id.key())];
    assert_eq!((address.flags, address.size), (VIP_ECHO, 0));
}

#[test]
fn a_steady_state_is_not_written() {
    let mut world = World::new();
    let desired = [web(&[("a", 1), ("b", 3)]), vip("192.0.2.10:53/udp@802.1q:5", &[("a", 1)])];
    world.apply(Instant::ZERO, &desired);
    assert_eq!(world.apply(Instant::from_secs(1), &desired), Applied::default());
    world.restart();
    assert_eq!(world.apply(Instant::ZERO, &desired), Applied::default());
    assert_eq!(world.writes(), []);
    let swapped = [desired[1].clone(), desired[0].clone()];
    assert_eq!(world.apply(Instant::ZERO, &swapped), Applied::default());
    assert_eq!(world.state.observed.poll_timeout(), None);
}

#[test]
fn a_change_keeps_the_table_before_the_drain() {
    let mut world = World::new();
    world.apply(Instant::ZERO, &[web(&[("a", 1), ("b", 1)])]);
    let first = world.value(&web(&[]));
    assert_eq!((first.previous_size, first.drain), (0, 0));
    world.apply(Instant::from_secs(1), &[web(&[("a", 1), ("b", 1), ("c", 1)])]);
    let second = world.value(&web(&[]));
    assert_eq!((second.previous_table, second.previous_size), (first.table, 251));
    assert_ne!(second.drain, 0);
    let third_desired = [web(&[("a", 1), ("b", 1), ("c", 2)])];
    world.apply(Instant::from_secs(5), &third_desired);
    let third = world.value(&web(&[]));
    assert_eq!((third.previous_table, third.drain), (first.table, second.drain), "the oldest stays");
    assert_eq!(
        world.state.observed.poll_timeout(),
        Some(Instant::from_millis(5100)),
        "the second table cools down"
    );
    world.time_out(Instant::from_millis(5100));
    assert_eq!(world.state.observed.poll_timeout(), Some(Instant::from_secs(15)), "begun anew");
    world.time_out(Instant::from_secs(15));
    let over = world.value(&web(&[]));
    assert_eq!((over.previous_size, over.drain, over.table), (0, 0, third.table));
    assert_eq!(world.writes().len(), 1);
    assert_eq!(world.apply(Instant::from_secs(16), &third_desired), Applied::default());
    world.apply(Instant::from_secs(17), &[web(&[("a", 1), ("b", 1)])]);
    let fourth = world.value(&web(&[]));
    assert_eq!(fourth.previous_table, third.table);
    assert!(![0, second.drain].contains(&fourth.drain), "another drain, another number");
}

#[test]
fn a_drain_goes_on_after_a_restart() {
    let mut world = World::new();
    world.apply(Instant::ZERO, &[web(&[("a", 1)])]);
    let desired = [web(&[("b", 1)])];
    world.apply(Instant::ZERO, &desired);
    world.restart();
    assert_eq!(world.apply(Instant::ZERO, &desired), Applied::default());
    assert_eq!(world.state.observed.poll_timeout(), Some(Instant::from_secs(10)));
    assert!(world.state.maps.identities.len() == 2, "the previous table names a");
    world.time_out(Instant::from_secs(10));
    assert_eq!(world.value(&desired[0]).previous_size, 0);
    let later = Instant::from_secs(10) + GRACE;
    world.time_out(later);
    assert_eq!(world.state.maps.identities.len(), 1);
}

#[test]
fn a_vip_without_a_backend_for_new_flows_keeps_the_old_ones() {
    let mut world = World::new();
    world.apply(Instant::ZERO, &[web(&[("a", 1), ("b", 1)])]);
    let first = world.value(&web(&[]));
    let drained = [web(&[("a", 0), ("b", 0)])];
    world.apply(Instant::ZERO, &drained);
    let second = world.value(&drained[0]);
    assert_eq!((second.size, second.previous_table), (0, first.table));
    assert_eq!(world.apply(Instant::ZERO, &drained), Applied::default());
    world.apply(Instant::ZERO, &[web(&[("a", 1), ("b", 0)])]);
    assert_eq!(world.value(&drained[0]).previous_table, first.table, "the oldest stays");
    world.apply(Instant::ZERO, &[web(&[])]);
    assert_eq!(world.value(&drained[0]).previous_size, 0, "nobody is left");
}

#[test]
fn without_a_drain_nothing_is_kept() {
    let mut world = World::new();
    world.apply(Instant::ZERO, &[web(&[("a", 1)])]);
    world.apply(Instant::ZERO, &[Vip { drain: Duration::ZERO, ..web(&[("b", 1)]) }]);
    assert_eq!(world.value(&web(&[])).previous_size, 0);
    assert_eq!(world.state.observed.poll_timeout(), Some(Instant::ZERO + GRACE));
}

#[test]
fn a_backend_that_fails_is_marked_after_its_slots_are_gone() {
    let mut world = World::new();
    let mut desired = [web(&[("a", 1), ("b", 1), ("c", 2)])];
    world.apply(Instant::ZERO, &desired);
    let before = world.table(&desired[0]);
    desired[0].backends[1].usable = false;
    let applied = world.apply(Instant::ZERO, &desired);
    let failed = world.index(&desired[0], "b");
    let last = world.writes().last().unwrap().clone();
    assert!(matches!(last, Write::Backend(index, value) if index == failed && value.flags == 0), "{last:?}");
    let after = world.table(&desired[0]);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(before, _)| *before == failed), "only its own slots move");
    assert_eq!(applied.moved_slots, moved.count() as u64);
    desired[0].backends[1].usable = true;
    world.apply(Instant::from_secs(1), &desired);
    assert_eq!(world.table(&desired[0]), before);
    assert!(matches!(world.writes()[0], Write::Backend(index, _) if index == failed));
}

#[test]
fn an_index_is_its_owners_until_no_table_names_it() {
    let mut world = World::new();
    world.apply(Instant::ZERO, &[web(&[("a", 1), ("b", 1)])]);
    let (a, serial) = (world.index(&web(&[]), "a"), world.state.maps.backends[&0].serial);
    world.apply(Instant::ZERO, &[web(&[("b", 1)])]);
    world.apply(Instant::from_secs(1), &[web(&[("b", 1), ("c", 1)])]);
    assert_ne!(world.index(&web(&[]), "c"), a);
    world.apply(Instant::from_secs(2), &[web(&[("a", 1), ("b", 1), ("c", 1)])]);
    assert_eq!(world.index(&web(&[]), "a"), a, "back before the drain was over");
    assert_eq!(world.state.maps.backends[&a].serial, serial, "and still the same");
    world.apply(Instant::from_secs(3), &[web(&[("b", 1), ("c", 1)])]);
    for now in [13, 14] {
        world.time_out(Instant::from_secs(now));
    }
    world.restart();
    world.apply(Instant::from_secs(15), &[web(&[("d", 1), ("b", 1), ("c", 1)])]);
    assert_eq!(world.index(&web(&[]), "d"), a);
    assert!(world.state.maps.backends[&a].serial > 3, "no flow that knew a is d's");
    assert!(world.writes().contains(&Write::ResetBackend(a)));
}

#[test]
fn fragments_have_the_entry_of_the_vip_that_takes_them() {
    let mut world = World::new();
    let by = |hash, port: &str| Vip { hash, ..small(vip(&format!("192.0.2.10:{port}/udp"), &[("a", 1)])) };
    let fragments = |world: &World| {
        world.state.maps.vips.get(&fragments_of(&by(HashBy::FiveTuple, "1").id.key())).copied()
    };
    let unstamped = |value: VipValue| VipValue { generation: 0, generation_again: 0, ..value };
    world.apply(Instant::ZERO, &[by(HashBy::FiveTuple, "1"), by(HashBy::FiveTuple, "2")]);
    assert_eq!(fragments(&world), None);
    world.apply(Instant::ZERO, &[by(HashBy::Addresses, "1"), by(HashBy::FiveTuple, "2")]);
    let value = world.value(&by(HashBy::Addresses, "1"));
    assert_eq!(value.flags, VIP_BY_ADDRESSES);
    assert_eq!(fragments(&world).map(unstamped), Some(unstamped(value)));
    world.apply(Instant::ZERO, &[by(HashBy::FiveTuple, "1"), by(HashBy::Addresses, "2")]);
    let other = world.value(&by(HashBy::Addresses, "2"));
    assert_eq!(fragments(&world).map(unstamped), Some(unstamped(other)));
    world.apply(Instant::ZERO, &[by(HashBy::FiveTuple, "2")]);
    assert_eq!(fragments(&world), None);
    world.apply(Instant::ZERO, &[]);
    assert_eq!(world.state.maps.vips.len(), 0);
}

#[test]
fn fragments_drain_with_their_vip() {
    let mut world = World::new();
    let by = |backend| Vip { hash: HashBy::Addresses, ..web(&[(backend, 1)]) };
    world.apply(Instant::ZERO, &[by("a")]);
    world.apply(Instant::ZERO, &[by("b")]);
    world.time_out(Instant::from_secs(10));
    assert_eq!(world.writes().len(), 2);
    assert!(world.state.maps.vips.values().all(|value| value.previous_size == 0));
}

#[test]
fn what_is_wrong_changes_nothing() {
    let mut world = World::new();
    let good = web(&[("a", 1)]);
    world.apply(Instant::ZERO, std::slice::from_ref(&good));
    let before = world.state.maps.vips.clone();
    let mut large = small(vip("192.0.2.11:80/tcp", &[("a", 1)]));
    large.table_size = Some(TableSize::new(32_749).unwrap());
    let error = world.try_apply(SECOND_IN, &[web(&[("b", 1)]), large.clone()]).unwrap_err();
    assert!(error.to_string().contains("192.0.2.11:80/tcp: its table needs 32832 octets"), "{error}");
    assert!(matches!(&error, DataplaneError::Vips(errors)
        if matches!(errors[..], [VipError::TableMemory { needed: 32_832, all: 32_768, .. }])));
    let twice = [good.clone(), web(&[("c", 1)])];
    assert!(world.try_apply(SECOND_IN, &twice).is_err());
    assert_eq!(world.writes(), []);
    assert_eq!(world.state.maps.vips, before);
    assert_eq!(world.apply(SECOND_IN, &[good]), Applied::default());
}

const SECOND_IN: Instant = Instant::from_secs(1);

#[test]
fn a_refused_write_is_made_at_the_next_call() {
    let desired = [web(&[("b", 1), ("c", 1)]), small(vip("192.0.2.11:80/tcp", &[("a", 2)]))];
    let old = [Vip { hash: HashBy::Addresses, ..web(&[("a", 1), ("b", 1)]) }];
    for refused in 0..12 {
        let mut world = World::new();
        world.apply(Instant::ZERO, &old);
        world.state.maps.refuse_after = Some(refused);
        let failed = world.try_apply(SECOND_IN, &desired).is_err();
        assert!(failed, "the change has more than {refused} writes");
        world.state.maps.refuse_after = None;
        let later = Instant::from_secs(60);
        world.time_out(later);
        world.apply(later, &desired);
        world.check(&desired);
        assert_eq!(world.apply(later, &desired), Applied::default());
    }
}

#[test]
fn all_vips_may_be_replaced_at_once() {
    let mut world = World::new();
    let generation = |octet: u8| -> Vec<Vip> {
        (1..=4096).map(|port| vip(&format!("192.0.2.{octet}:{port}/tcp"), &[])).collect()
    };
    world.apply(Instant::ZERO, &generation(1));
    world.apply(Instant::ZERO, &generation(2));
    world.check(&generation(2));
    assert!(world.state.maps.vips.values().all(|value| value.id < 4096));
}

/// Some of three VIPs with some of five backends.
fn desired() -> impl Strategy<Value = Vec<Vip>> {
    let backend = proptest::option::weighted(0.7, (0_u32..4, proptest::bool::weighted(0.8)));
    let backends = proptest::collection::vec(backend, 5);
    let one = (backends, any::<bool>(), 0_u64..3, proptest::bool::weighted(0.2));
    let one = proptest::option::weighted(0.8, one);
    proptest::collection::vec(one, 3).prop_map(|vips| {
        let some =
            vips.into_iter().zip(["192.0.2.10:80/tcp", "192.0.2.10:81/udp", "192.0.2.11:80/tcp@802.1q:7"]);
        some.filter_map(|(wanted, id)| {
            let (backends, addresses, drain, large) = wanted?;
            let mut vip = small(vip(id, &[]));
            for (backend, name) in backends.into_iter().zip(["a", "b", "c", "d", "e"]) {
                let Some((weight, usable)) = backend else { continue };
                let of = crate::balancer::samples::backend(name, weight);
                vip.backends.push(crate::balancer::desired::Backend {
                    usable,
                    segment: vip.id.segment,
                    ..of
                });
            }
            vip.hash = if addresses { HashBy::Addresses } else { HashBy::FiveTuple };
            vip.drain = Duration::from_millis(drain * 150);
            vip.table_size = if large { TableSize::new(1021).ok() } else { vip.table_size };
            Some(vip)
        })
        .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The kernel of this test panics when a program could read what is being written, or a backend's index gets
    /// another owner while something names it.
    #[test]
    fn every_sequence_of_changes_is_safe_and_gets_there(
        steps in proptest::collection::vec((desired(), 0_u64..200, 0_u8..6), 1..12),
        delay in 0_u64..30
    ) {
        let mut world = World::new();
        world.state.maps.delay = Duration::from_millis(delay);
        let mut now = Instant::ZERO;
        for (desired, pause, event) in steps {
            now = now + Duration::from_millis(pause);
            if event == 0 {
                // A new process takes longer to come than a program to go.
                now = now + GRACE;
                world.restart();
            }
            if event == 1 {
                world.state.maps.refuse_after = Some(usize::try_from(pause % 9).unwrap());
                let _ = world.try_apply(now, &desired);
                now = world.state.maps.now.get();
                world.state.maps.refuse_after = None;
            }
            if event > 2 {
                world.time_out(now);
                now = world.state.maps.now.get();
            }
            world.apply(now, &desired);
            now = world.state.maps.now.get();
            world.check(&desired);
            prop_assert_eq!(world.apply(now, &desired), Applied::default());
        }
        while let Some(next) = world.state.observed.poll_timeout() {
            now = world.state.maps.now.get().max(next);
            world.time_out(now);
        }
        let kernel = &world.state.maps;
        let live: u32 =
            kernel.vips.iter().filter(|(key, _)| is_vip(key)).map(|(_, v)| current(v).chunks()).sum();
        prop_assert_eq!(world.state.observed.chunks.free(), CHUNKS - live);
        prop_assert!(kernel.vips.values().all(|value| value.previous_size == 0));
        let wanted: usize = world.state.in_force.values().map(|placed| placed.indices.len()).sum();
        prop_assert_eq!(kernel.identities.len(), wanted);
    }
}
