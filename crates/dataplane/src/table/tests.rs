use std::net::Ipv4Addr;

use bpf_abi::{BUCKETS, NO_MEMBER};
use proptest::prelude::*;

use super::*;

fn eid(n: u8) -> Eid {
    Eid { instance_id: 0, prefix: format!("10.100.0.{n}/32").parse().unwrap() }
}

fn rloc(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, n))
}

fn locator(n: u8, weight: u8) -> Locator {
    Locator { rloc: rloc(n), priority: 1, weight, usable: true, gpe: false }
}

fn path(n: u8) -> (IpAddr, Path) {
    let source = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 254));
    (rloc(n), Path { source, next_hop: rloc(n), ifindex: 3, mtu: 1500, macs: None })
}

fn desired(mappings: impl IntoIterator<Item = (Eid, Mapping)>) -> Desired {
    Desired {
        mappings: mappings.into_iter().collect(),
        paths: (0..=255).map(path).collect(),
        ..Desired::default()
    }
}

/// Makes the writes of a plan, and holds what must hold before each of them.
fn apply(observed: &mut Observed, plan: &Plan) {
    for write in &plan.writes {
        match write {
            MapWrite::Slot(index, _) => {
                let named = |m: &&MappingValue| m.action == ACTION_ENCAPSULATE && m.slot == *index;
                assert_eq!(observed.map_cache.values().filter(named).count(), 0, "slot {index} in use");
            }
            MapWrite::Mapping(_, value) if value.action == ACTION_ENCAPSULATE => {
                let slot = &observed.slots[&value.slot];
                for member in slot.members.iter().filter(|m| m.locator != NO_LOCATOR) {
                    assert!(observed.locators.contains_key(&member.locator));
                    let counter = TrafficKey { id: value.mapping_id, locator: member.locator };
                    assert!(observed.traffic.contains(&counter));
                }
            }
            _ => {}
        }
        observed.record(write);
    }
    let changed = plan.writes.iter().any(MapWrite::outdates);
    if changed {
        assert!(matches!(plan.writes.last(), Some(MapWrite::Node(_))), "the generation is written last");
    }
}

fn reconcile(observed: &mut Observed, desired: &Desired) {
    let first = plan(desired, observed);
    let generation = observed.node.generation;
    apply(observed, &first);
    let changed = first.writes.iter().any(MapWrite::outdates);
    assert!(!changed || observed.node.generation != generation, "programs have to ask again");
    assert_ne!(observed.node.generation, 0);
    let again = plan(desired, observed);
    assert_eq!(again.writes, [], "a second plan has nothing to do");
}

fn slot(observed: &Observed, eid: &Eid) -> SlotValue {
    *observed.slots[&observed.map_cache[eid].slot]
}

/// What a restarted process reads: everything but what only memory held.
fn restarted(observed: &Observed) -> Observed {
    let mut read = Observed { retired: BTreeMap::new(), last_id: 0, last_slot: 0, ..observed.clone() };
    read.continue_numbering();
    read
}

fn share(observed: &Observed, eid: &Eid, n: u8) -> usize {
    let slot = slot(observed, eid);
    let holds = |b: &&u8| {
        let member = slot.members.get(usize::from(**b));
        member.is_some_and(|m| observed.rloc(m.locator) == Some(rloc(n)))
    };
    slot.buckets.iter().filter(holds).count()
}

#[test]
fn a_weight_change_moves_only_what_it_asks_for() {
    let mut observed = Observed::default();
    let set = |a, b| desired([(eid(1), Mapping::Encapsulate(vec![locator(1, a), locator(2, b)]))]);
    reconcile(&mut observed, &set(100, 0));
    let (before, mapping) = (slot(&observed, &eid(1)), observed.map_cache[&eid(1)]);
    reconcile(&mut observed, &set(75, 25));
    let (after, replaced) = (slot(&observed, &eid(1)), observed.map_cache[&eid(1)]);
    assert_eq!(before.buckets.iter().zip(&after.buckets).filter(|(a, b)| a != b).count(), BUCKETS / 4);
    assert_eq!(before.members, after.members);
    assert_eq!(mapping.mapping_id, replaced.mapping_id);
    assert_ne!(mapping.slot, replaced.slot);
    assert_eq!(observed.slots.len(), 1);
}

#[test]
fn a_restart_continues_from_what_is_pinned() {
    let mut observed = Observed::default();
    let wanted =
        desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 60), locator(2, 40), locator(3, 0)]))]);
    reconcile(&mut observed, &wanted);
    let mut read = restarted(&observed);
    let kept = desired([(eid(1), Mapping::Keep)]);
    assert_eq!(plan(&kept, &read).writes, []);
    assert_eq!(plan(&wanted, &read).writes, []);
    let more = desired([
        (eid(1), wanted.mappings[&eid(1)].clone()),
        (eid(2), Mapping::Encapsulate(vec![locator(9, 1)])),
    ]);
    reconcile(&mut read, &more);
    assert_eq!(read.map_cache[&eid(1)], observed.map_cache[&eid(1)]);
    assert_ne!(read.map_cache[&eid(2)].mapping_id, observed.map_cache[&eid(1)].mapping_id);
}

#[test]
fn a_mapping_that_comes_back_finds_its_places_again() {
    let mut observed = Observed::default();
    let wanted = desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 50), locator(2, 50)]))]);
    reconcile(&mut observed, &wanted);
    let before = (observed.map_cache[&eid(1)].mapping_id, slot(&observed, &eid(1)));
    reconcile(&mut observed, &desired([(eid(1), Mapping::Drop)]));
    reconcile(&mut observed, &desired([]));
    reconcile(&mut observed, &desired([(eid(2), Mapping::Encapsulate(vec![locator(2, 1)]))]));
    reconcile(&mut observed, &wanted);
    assert_eq!(before, (observed.map_cache[&eid(1)].mapping_id, slot(&observed, &eid(1))));
}

#[test]
fn a_locator_without_a_way_is_not_usable_and_keeps_its_place() {
    let mut observed = Observed::default();
    let mut wanted = desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 50), locator(2, 50)]))]);
    reconcile(&mut observed, &wanted);
    wanted.paths.remove(&rloc(1));
    reconcile(&mut observed, &wanted);
    assert_eq!((share(&observed, &eid(1), 1), share(&observed, &eid(1), 2)), (0, BUCKETS));
    assert_eq!(slot(&observed, &eid(1)).members[0].usable, 0);
    wanted.paths.clear();
    reconcile(&mut observed, &wanted);
    assert!(slot(&observed, &eid(1)).buckets.iter().all(|&b| b == NO_MEMBER));
}

#[test]
fn priority_255_is_never_usable() {
    let mut observed = Observed::default();
    let never = Locator { priority: 255, ..locator(1, 100) };
    reconcile(&mut observed, &desired([(eid(1), Mapping::Encapsulate(vec![never]))]));
    assert_eq!(slot(&observed, &eid(1)).members[0].usable, 0);
}

#[test]
fn a_weight_of_zero_keeps_the_flows_it_has() {
    let mut observed = Observed::default();
    let wanted = desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 0), locator(2, 50)]))]);
    reconcile(&mut observed, &wanted);
    assert_eq!(slot(&observed, &eid(1)).members[0].usable, 1);
    assert_eq!(share(&observed, &eid(1), 1), 0);
}

#[test]
fn a_changed_way_rewrites_the_locator_in_place() {
    let mut observed = Observed::default();
    let mut wanted = desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 1)]))]);
    reconcile(&mut observed, &wanted);
    wanted.paths.get_mut(&rloc(1)).unwrap().mtu = 9000;
    wanted.mappings.insert(eid(1), Mapping::Keep);
    let plan = plan(&wanted, &observed);
    assert!(matches!(
        plan.writes[..],
        [MapWrite::Locator(0, LocatorValue { mtu: 9000, .. }), MapWrite::Node(_)]
    ));
}

/// The writes of a plan may end after any of them: by a refusal of the kernel, or with the process.
#[test]
fn the_generation_is_made_up_for() {
    let wanted = desired([(eid(1), Mapping::Encapsulate(vec![locator(1, 1)]))]);
    let mut observed = Observed::default();
    reconcile(&mut observed, &desired([]));
    let whole = plan(&wanted, &observed).writes;
    for made in 1..whole.len() {
        let mut here = observed.clone();
        whole[..made].iter().for_each(|write| here.record(write));
        let mut again = Observed { outdated: true, ..here.clone() };
        for observed in [&mut here, &mut again] {
            let generation = observed.node.generation;
            reconcile(observed, &wanted);
            assert_ne!(observed.node.generation, generation, "{made} writes made");
        }
    }
    assert_eq!(plan(&desired([]), &Observed::new(observed.node)).writes.len(), 1);
    let mut last = observed.clone();
    last.node.generation = u32::MAX;
    reconcile(&mut last, &wanted);
    assert_eq!(last.node.generation, 1, "0 is of nobody");
}

#[test]
fn too_many_locators_leave_the_old_ones_in_place() {
    let mut observed = Observed::default();
    let set = |n| desired([(eid(1), Mapping::Encapsulate((0..n).map(|i| locator(i, 1)).collect()))]);
    reconcile(&mut observed, &set(2));
    let plan = plan(&set(33), &observed);
    assert_eq!(plan.refused, [Refusal::TooManyLocators { eid: eid(1), count: 33 }]);
    assert_eq!(plan.writes, []);
}

#[test]
fn a_full_locator_table_reuses_idle_indices_and_their_counters() {
    let mut observed = Observed::default();
    let one = |a: u16| {
        let [_, _, _, last] = u32::from(a).to_be_bytes();
        let third = if a > 255 { 2 } else { 1 };
        Locator { rloc: IpAddr::V4(Ipv4Addr::new(10, 0, third, last)), ..locator(0, 1) }
    };
    for n in 0..300 {
        let mut wanted = desired([(eid(1), Mapping::Encapsulate(vec![one(n)]))]);
        wanted.paths.insert(one(n).rloc, path(1).1);
        reconcile(&mut observed, &wanted);
    }
    assert_eq!(observed.locators.len(), LOCATOR_COUNT as usize);
    assert_eq!(observed.map_cache[&eid(1)].mapping_id, 1);
}

#[derive(Debug, Clone)]
enum Step {
    Want(BTreeMap<u8, Vec<(u8, u8, u8, bool)>>, BTreeSet<u8>),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = (0_u8..40, prop_oneof![Just(1_u8), Just(2), Just(255)], 0_u8..=100, any::<bool>());
    let mapping = proptest::collection::vec(one, 0..6);
    let want = (
        proptest::collection::btree_map(0_u8..6, mapping, 0..5),
        proptest::collection::btree_set(0_u8..40, 0..20),
    )
        .prop_map(|(mappings, unrouted)| Step::Want(mappings, unrouted));
    proptest::collection::vec(prop_oneof![5 => want, 1 => Just(Step::Restart)], 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_asked_ids_places_and_slots_hold(steps in steps()) {
        let mut observed = Observed::default();
        let mut ids: BTreeMap<u32, Eid> = BTreeMap::new();
        for step in steps {
            let Step::Want(mappings, unrouted) = step else {
                observed = restarted(&observed);
                ids.retain(|id, _| observed.map_cache.values().any(|m| m.mapping_id == *id));
                continue;
            };
            let mappings = mappings.into_iter().map(|(e, locators)| {
                let locators = locators.into_iter();
                let locators = locators.map(|(n, priority, weight, usable)| Locator { priority, usable, ..locator(n, weight) });
                (eid(e), Mapping::Encapsulate(locators.collect()))
            });
            let mut wanted = desired(mappings);
            wanted.paths.retain(|r, _| !unrouted.iter().any(|n| rloc(*n) == *r));
            let before = observed.clone();
            reconcile(&mut observed, &wanted);
            let slots: BTreeSet<u32> = observed.map_cache.values().map(|m| m.slot).collect();
            prop_assert_eq!(slots.len(), observed.map_cache.len(), "one slot each");
            for (eid, mapping) in &observed.map_cache {
                prop_assert_eq!(*ids.entry(mapping.mapping_id).or_insert(*eid), *eid, "ids are not reused");
                let Some(old) = before.map_cache.get(eid) else { continue };
                prop_assert_eq!(old.mapping_id, mapping.mapping_id);
                let (was, is) = (&before.slots[&old.slot], &observed.slots[&mapping.slot]);
                for (place, member) in was.members.iter().enumerate().filter(|(_, m)| m.locator != NO_LOCATOR) {
                    let now = is.members.iter().position(|m| m.locator == member.locator);
                    prop_assert!(now.is_none_or(|now| now == place), "members keep their place");
                }
            }
        }
    }
}
