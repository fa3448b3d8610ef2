//! The map-cache against a list that is searched from front to back.
#![expect(clippy::unwrap_used, reason = "literals that are right")]

use core::time::Duration;

use codec::{Instant, IpPrefix};
use lisp::map_cache::{Due, Insertion, MapCache, MapCacheConfig, Origin};
use lisp::wire::{Action, Address, EidPrefix, EidRecord, InstanceId, LocatorRecord};
use proptest::prelude::*;

const CONFIG: MapCacheConfig = MapCacheConfig {
    max_entries: 12,
    max_negative: 4,
    max_ttl: Duration::from_secs(600),
    default_ttl: Duration::from_secs(120),
    idle: Duration::from_secs(90),
};

#[derive(Clone, Debug)]
enum Op {
    Insert { eid: EidPrefix, ttl: u32, negative: bool, published: bool },
    Remove(EidPrefix),
    Use(EidPrefix),
    Release(EidPrefix),
    Pass(u64),
}

/// Few prefixes in few lengths, so that they meet.
fn eids() -> impl Strategy<Value = EidPrefix> {
    let v4 =
        (0u32..3, 0u32..4, prop::sample::select(vec![8u8, 16, 24, 31, 32])).prop_map(|(i, host, length)| {
            let address = core::net::Ipv4Addr::from_bits(0x0a01_0100 | host);
            (i, IpPrefix::new(address.into(), length).unwrap())
        });
    let v6 =
        (0u32..2, 0u128..4, prop::sample::select(vec![32u8, 64, 127, 128])).prop_map(|(i, host, length)| {
            let address = core::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | host);
            (i, IpPrefix::new(address.into(), length).unwrap())
        });
    prop_oneof![3 => v4, 1 => v6].prop_map(|(i, prefix)| EidPrefix { instance_id: InstanceId(i), prefix })
}

fn ops() -> impl Strategy<Value = Op> {
    let ttl = prop_oneof![4 => 1u32..8, 1 => Just(0), 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1)];
    prop_oneof![
        6 => (eids(), ttl, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(eid, ttl, negative, published)| Op::Insert { eid, ttl, negative, published }),
        1 => eids().prop_map(Op::Remove),
        2 => eids().prop_map(Op::Use),
        1 => eids().prop_map(Op::Release),
        3 => (1u64..120).prop_map(Op::Pass),
    ]
}

fn record(eid: EidPrefix, ttl: u32, negative: bool) -> EidRecord {
    let locator = LocatorRecord::new(Address::Ip([192, 0, 2, 1].into()), 1, 100);
    let locators = if negative { vec![] } else { vec![locator] };
    EidRecord { ttl, action: Action::NativelyForward, authoritative: false, map_version: 0, eid, locators }
}

/// What must be in the cache, as a list; expiry and eviction are told to it by the cache and checked there.
#[derive(Default)]
struct Model {
    entries: Vec<(EidPrefix, bool, bool)>,
}

impl Model {
    fn remove(&mut self, eid: &EidPrefix) -> Option<(EidPrefix, bool, bool)> {
        let index = self.entries.iter().position(|(e, ..)| e == eid)?;
        Some(self.entries.remove(index))
    }

    fn longest_match(&self, probe: &EidPrefix) -> Option<EidPrefix> {
        let host = EidPrefix { prefix: IpPrefix::host(probe.prefix.address()), ..*probe };
        let covering = self.entries.iter().map(|e| e.0).filter(|e| e.covers(&host));
        covering.max_by_key(|e| e.prefix.length())
    }
}

struct Run {
    cache: MapCache,
    model: Model,
    now: Instant,
}

impl Run {
    fn insert(&mut self, eid: EidPrefix, ttl: u32, negative: bool, published: bool) {
        let origin = if published { Origin::Subscription } else { Origin::Request };
        let mut evicted = Vec::new();
        let result = self.cache.insert(self.now, &record(eid, ttl, negative), origin, &mut evicted);
        for victim in evicted {
            let (_, _, protected) = self.model.remove(&victim).expect("only what is there is evicted");
            assert!(!protected, "a publication was evicted for {eid:?}");
        }
        let known = self.model.remove(&eid);
        match result {
            Insertion::Removed | Insertion::NothingToRemove => {
                assert_eq!(ttl, 0);
                assert_eq!(result == Insertion::Removed, known.is_some());
            }
            Insertion::Full => assert!(known.is_none()),
            Insertion::Changed | Insertion::Renewed => {
                assert!(ttl != 0);
                let same = known.is_some_and(|(_, n, _)| n == negative);
                assert_eq!(result == Insertion::Renewed, same);
                self.model.entries.push((eid, negative, published));
            }
            Insertion::NoUsableLocator => panic!("the locator is usable"),
        }
    }

    fn pass(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        while let Some(at) = self.cache.next_wake().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            while let Some(due) = self.cache.take_due(self.now) {
                match due {
                    Due::Expired(eid) => {
                        let (_, _, protected) = self.model.remove(&eid).expect("only what is there expires");
                        assert!(!protected, "a publication expired");
                    }
                    Due::Refresh(eid) | Due::Stale(eid) => {
                        let mapping = self.cache.get(&eid).expect("it is asked about what is there");
                        assert!(mapping.used_at.is_some() && !mapping.is_negative());
                    }
                }
            }
        }
        self.now = end;
    }

    fn check(&self, probes: &[EidPrefix]) {
        let mut listed: Vec<EidPrefix> = self.cache.iter().map(|(e, _)| e).collect();
        let mut expected: Vec<EidPrefix> = self.model.entries.iter().map(|e| e.0).collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        assert_eq!(self.cache.len(), expected.len());
        assert!(self.cache.len() <= CONFIG.max_entries);
        let asked = self.cache.iter().filter(|(_, m)| m.is_negative() && m.origin == Origin::Request);
        assert!(asked.count() <= CONFIG.max_negative);
        for probe in probes {
            let found = self.cache.lookup(probe.instance_id, probe.prefix.address()).map(|(e, _)| e);
            assert_eq!(found, self.model.longest_match(probe));
        }
        for (eid, mapping) in self.cache.iter() {
            let idle_for = mapping.used_at.map(|at| self.now.saturating_since(at));
            let kept = mapping.origin == Origin::Subscription
                || !mapping.is_negative() && idle_for.is_some_and(|d| d < CONFIG.idle * 2);
            let due = self.cache.next_wake().is_some_and(|at| at <= self.now);
            assert!(mapping.expires_at > self.now || kept || due, "{eid:?} outlived its TTL unused");
            assert!(mapping.expires_at <= self.now + CONFIG.max_ttl);
        }
        assert!(self.cache.is_empty() == self.cache.next_wake().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_cache_holds_what_the_list_holds(
        ops in prop::collection::vec(ops(), 1..120),
        probes in prop::collection::vec(eids(), 8),
    ) {
        let mut run = Run { cache: MapCache::new(CONFIG), model: Model::default(), now: Instant::from_secs(1) };
        for op in ops {
            match op {
                Op::Insert { eid, ttl, negative, published } => run.insert(eid, ttl, negative, published),
                Op::Remove(eid) => assert_eq!(run.cache.remove(&eid), run.model.remove(&eid).is_some()),
                Op::Use(eid) => run.cache.mark_used(run.now, &eid),
                Op::Release(eid) => {
                    if run.cache.release(run.now, &eid) {
                        let (_, negative, published) = run.model.remove(&eid).expect("it was there");
                        assert!(negative && published);
                    }
                    run.model.entries.iter_mut().filter(|e| e.0 == eid).for_each(|e| e.2 = false);
                }
                Op::Pass(secs) => run.pass(secs),
            }
            run.check(&probes);
        }
    }
}

fn eid(prefix: &str) -> EidPrefix {
    EidPrefix { instance_id: InstanceId(0), prefix: prefix.parse().unwrap() }
}

/// RFC 9301 §5.5: a less specific mapping that comes later does not outlive the more specific ones.
#[test]
fn a_later_less_specific_mapping_ends_with_the_more_specific_one() {
    let mut cache = MapCache::new(CONFIG);
    let start = Instant::from_secs(1);
    let mut insert = |prefix: &str, ttl| {
        cache.insert(start, &record(eid(prefix), ttl, false), Origin::Request, &mut Vec::new());
        cache.get(&eid(prefix)).unwrap().expires_at
    };
    assert_eq!(insert("10.1.1.0/24", 2), Instant::from_secs(121));
    assert_eq!(insert("10.1.0.0/16", 9), Instant::from_secs(121));
    assert_eq!(insert("10.1.2.0/24", 5), Instant::from_secs(301), "a later more specific one keeps its own");
}

#[test]
fn ttls_are_clamped_and_host_bits_do_not_count() {
    let mut cache = MapCache::new(CONFIG);
    let start = Instant::from_secs(0);
    for (ttl, expires) in [(u32::MAX, 120), (u32::MAX - 1, 600), (3, 180)] {
        cache.insert(start, &record(eid("10.1.1.77/24"), ttl, false), Origin::Request, &mut Vec::new());
        assert_eq!(cache.get(&eid("10.1.1.0/24")).unwrap().expires_at, Instant::from_secs(expires));
    }
    assert_eq!(cache.len(), 1);
}

/// A scan over unused EIDs evicts its own traces, not the mappings that carry traffic.
#[test]
fn a_scan_evicts_negative_mappings_only() {
    let mut cache = MapCache::new(CONFIG);
    let now = Instant::from_secs(1);
    let mut evicted = Vec::new();
    cache.insert(now, &record(eid("10.0.0.1/32"), 1, false), Origin::Request, &mut evicted);
    for n in 0..200 {
        let negative = record(eid(&format!("10.2.0.{n}/32")), 1, true);
        cache.insert(now + Duration::from_millis(n), &negative, Origin::Request, &mut evicted);
    }
    assert!(cache.get(&eid("10.0.0.1/32")).is_some());
    assert_eq!(cache.len(), 1 + CONFIG.max_negative);
}

/// Multicast, broadcast, loopback and unspecified addresses are not locators; the older mapping stays.
#[test]
fn a_mapping_without_usable_locator_changes_nothing() {
    let mut cache = MapCache::new(CONFIG);
    let now = Instant::from_secs(1);
    let good = record(eid("10.0.0.1/32"), 5, false);
    cache.insert(now, &good, Origin::Request, &mut Vec::new());
    for bad in ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "ff02::1", "::"] {
        let mut record = good.clone();
        record.locators[0].rloc = Address::Ip(bad.parse().unwrap());
        let result = cache.insert(now, &record, Origin::Request, &mut Vec::new());
        assert_eq!(result, Insertion::NoUsableLocator, "{bad}");
    }
    assert_eq!(cache.get(&good.eid).unwrap().locators.len(), 1);
}
