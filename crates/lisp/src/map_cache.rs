//! The mappings that an ITR knows (RFC 9301 §5.4, §5.5).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use codec::Instant;

use crate::mapping::Locator;
use crate::prefix_map::PrefixMap;
use crate::wire::{Action, EidPrefix, EidRecord, InstanceId, LocatorRecord};

/// Bounds of a map-cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapCacheConfig {
    /// Mappings in all.
    pub max_entries: usize,
    /// Negative mappings that were asked for: a scan over unused EIDs evicts its own traces only.
    pub max_negative: usize,
    /// Longer TTLs are cut to this; also keeps minutes times 60 from overflowing.
    pub max_ttl: Duration,
    /// For TTL `u32::MAX`, which leaves it to the receiver.
    pub default_ttl: Duration,
    /// A mapping counts as in use for this long after a packet.
    pub idle: Duration,
}

impl Default for MapCacheConfig {
    fn default() -> Self {
        Self {
            max_entries: 10_000,
            max_negative: 2_000,
            max_ttl: Duration::from_secs(24 * 3600),
            default_ttl: Duration::from_secs(3600),
            idle: Duration::from_secs(180),
        }
    }
}

/// Where a mapping came from; decides whether it may be evicted and whether it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A Map-Reply.
    Request,
    /// A publication: stays until the Map-Server takes it back.
    Subscription,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Sorted by address; `usable` says nothing about probing here. Empty for a negative mapping.
    pub locators: Vec<Locator>,
    /// What to do with packets when there are no locators.
    pub action: Action,
    /// Where it came from.
    pub origin: Origin,
    /// End of its TTL.
    pub expires_at: Instant,
    /// When a record last confirmed it.
    pub renewed_at: Instant,
    /// Last packet that the data path told of.
    pub used_at: Option<Instant>,
    /// Its TTL has passed while it was in use and nobody answered.
    pub stale: bool,
    /// When the timer looks at it next.
    wake_at: Instant,
    /// The refresh before expiry was asked for.
    refreshing: bool,
}

impl Mapping {
    /// Whether it has no locators.
    #[must_use]
    pub const fn is_negative(&self) -> bool {
        self.locators.is_empty()
    }

    fn is_pulled_negative(&self) -> bool {
        self.is_negative() && self.origin == Origin::Request
    }

    fn in_use(&self, now: Instant, idle: Duration) -> bool {
        self.used_at.is_some_and(|at| now.saturating_since(at) < idle)
    }
}

/// What [`MapCache::insert`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// The mapping is new or its locators or action changed.
    Changed,
    /// Only its TTL was renewed.
    Renewed,
    /// TTL 0 removed it.
    Removed,
    /// TTL 0, and there was no such mapping.
    NothingToRemove,
    /// It has locators but none that packets can go to; an older mapping stays.
    NoUsableLocator,
    /// The cache is full of mappings that may not be evicted.
    Full,
}

/// What the timer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Ask again: in use and close to expiry.
    Refresh(EidPrefix),
    /// Expired and removed.
    Expired(EidPrefix),
    /// Expired, but in use and unanswered: kept.
    Stale(EidPrefix),
}

/// Mappings by EID-prefix.
#[derive(Clone, Debug)]
pub struct MapCache {
    config: MapCacheConfig,
    mappings: PrefixMap<Mapping>,
    wakes: BTreeSet<(Instant, EidPrefix)>,
    negative: usize,
}

impl MapCache {
    /// An empty cache.
    #[must_use]
    pub const fn new(config: MapCacheConfig) -> Self {
        Self { config, mappings: PrefixMap::new(), wakes: BTreeSet::new(), negative: 0 }
    }

    /// Number of mappings.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// The most specific mapping for an address.
    #[must_use]
    pub fn lookup(&self, instance_id: InstanceId, address: IpAddr) -> Option<(EidPrefix, &Mapping)> {
        self.mappings.longest_match(instance_id, address)
    }

    /// The most specific mapping that covers all of a prefix.
    #[must_use]
    pub fn covering(&self, eid: EidPrefix) -> Option<(EidPrefix, &Mapping)> {
        self.mappings.covering(eid).next()
    }

    /// The mapping of exactly this prefix.
    #[must_use]
    pub fn get(&self, eid: &EidPrefix) -> Option<&Mapping> {
        self.mappings.get(eid)
    }

    /// Every mapping.
    pub fn iter(&self) -> impl Iterator<Item = (EidPrefix, &Mapping)> {
        self.mappings.iter()
    }

    /// Every mapping inside a prefix, itself included.
    pub fn within(&self, eid: EidPrefix) -> impl Iterator<Item = (EidPrefix, &Mapping)> {
        self.mappings.within(eid)
    }

    /// Takes over a record. `evicted` gets what had to go for it.
    pub fn insert(
        &mut self,
        now: Instant,
        record: &EidRecord,
        origin: Origin,
        evicted: &mut Vec<EidPrefix>,
    ) -> Insertion {
        let eid = record.eid;
        if record.ttl == 0 {
            return if self.remove(&eid) { Insertion::Removed } else { Insertion::NothingToRemove };
        }
        let locators = usable_addresses(&record.locators);
        if locators.is_empty() && !record.locators.is_empty() {
            return Insertion::NoUsableLocator;
        }
        let pulled_negative = locators.is_empty() && origin == Origin::Request;
        if !self.make_room(now, &eid, pulled_negative, evicted) {
            return Insertion::Full;
        }
        let expires_at = self.expiry(now, &eid, record.ttl);
        let old = self.take(&eid);
        let mapping = Mapping {
            action: if locators.is_empty() { record.action } else { Action::NoAction },
            locators,
            origin,
            expires_at,
            renewed_at: now,
            used_at: old.as_ref().and_then(|m| m.used_at),
            stale: false,
            wake_at: refresh_at(now, expires_at),
            refreshing: false,
        };
        let same = old.is_some_and(|m| m.locators == mapping.locators && m.action == mapping.action);
        self.put(eid, mapping);
        if same { Insertion::Renewed } else { Insertion::Changed }
    }

    /// Takes a mapping out; whether there was one.
    pub fn remove(&mut self, eid: &EidPrefix) -> bool {
        self.take(eid).is_some()
    }

    /// Notes that packets use a mapping.
    pub fn mark_used(&mut self, now: Instant, eid: &EidPrefix) {
        if let Some(mapping) = self.mappings.get_mut(eid) {
            mapping.used_at = Some(now);
        }
    }

    /// A publication no longer feeds this mapping: from now on it lives by its TTL. A negative one is asked for again
    /// instead of counting as one that was; whether it was removed for that.
    pub fn release(&mut self, now: Instant, eid: &EidPrefix) -> bool {
        let Some(mut mapping) = self.take(eid) else { return false };
        if mapping.is_negative() && mapping.origin == Origin::Subscription {
            return true;
        }
        mapping.origin = Origin::Request;
        mapping.expires_at = mapping.expires_at.max(now);
        mapping.wake_at = refresh_at(now, mapping.expires_at);
        self.put(*eid, mapping);
        false
    }

    /// When [`take_due`](Self::take_due) has something next.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// The next mapping whose time has come.
    pub fn take_due(&mut self, now: Instant) -> Option<Due> {
        while let Some(&(at, eid)) = self.wakes.first() {
            if at > now {
                return None;
            }
            let due = self.wake(now, eid);
            if due.is_some() {
                return due;
            }
        }
        None
    }

    fn wake(&mut self, now: Instant, eid: EidPrefix) -> Option<Due> {
        let mut mapping = self.take(&eid)?;
        let in_use = mapping.in_use(now, self.config.idle);
        let kept = mapping.origin == Origin::Subscription || in_use && !mapping.is_negative();
        if mapping.expires_at > now {
            let pulled = mapping.origin == Origin::Request && !mapping.is_negative();
            let refresh = !mapping.refreshing && in_use && pulled;
            mapping.refreshing |= refresh;
            mapping.wake_at = mapping.expires_at;
            self.put(eid, mapping);
            return refresh.then_some(Due::Refresh(eid));
        }
        if !kept {
            return Some(Due::Expired(eid));
        }
        let newly_stale = !mapping.stale && mapping.origin == Origin::Request;
        mapping.stale |= newly_stale;
        mapping.wake_at = now + self.config.idle.max(Duration::from_secs(1));
        self.put(eid, mapping);
        newly_stale.then_some(Due::Stale(eid))
    }

    /// RFC 9301 §5.5: a less specific mapping that comes later must not outlive the more specific ones below it,
    /// or it would answer for them.
    fn expiry(&self, now: Instant, eid: &EidPrefix, ttl: u32) -> Instant {
        let ttl = if ttl == u32::MAX {
            self.config.default_ttl
        } else {
            Duration::from_secs(u64::from(ttl) * 60).min(self.config.max_ttl)
        };
        let more_specific = self.mappings.within(*eid).filter(|(e, _)| e != eid);
        let live = more_specific.map(|(_, m)| m.expires_at).filter(|at| *at > now);
        live.fold(now + ttl, Instant::min)
    }

    fn make_room(
        &mut self,
        now: Instant,
        eid: &EidPrefix,
        negative: bool,
        evicted: &mut Vec<EidPrefix>,
    ) -> bool {
        let old = self.mappings.get(eid);
        let (new, was_negative) = (old.is_none(), old.is_some_and(Mapping::is_pulled_negative));
        while negative && !was_negative && self.negative >= self.config.max_negative {
            let Some(victim) = self.victim(now, true) else { return false };
            self.remove(&victim);
            evicted.push(victim);
        }
        if new && self.len() >= self.config.max_entries {
            let victim = self.victim(now, true).or_else(|| self.victim(now, false));
            let Some(victim) = victim else { return false };
            self.remove(&victim);
            evicted.push(victim);
        }
        true
    }

    /// The negative mapping that expires first, or the pulled one that was unused for longest and is not in use.
    fn victim(&self, now: Instant, negative: bool) -> Option<EidPrefix> {
        let candidates = self.mappings.iter().filter(|(_, m)| m.origin == Origin::Request);
        if negative {
            return candidates
                .filter(|(_, m)| m.is_negative())
                .min_by_key(|(_, m)| m.expires_at)
                .map(|c| c.0);
        }
        let idle = candidates.filter(|(_, m)| !m.is_negative() && !m.in_use(now, self.config.idle));
        idle.min_by_key(|(_, m)| m.used_at).map(|c| c.0)
    }

    fn take(&mut self, eid: &EidPrefix) -> Option<Mapping> {
        let mapping = self.mappings.remove(eid)?;
        self.wakes.remove(&(mapping.wake_at, *eid));
        self.negative -= usize::from(mapping.is_pulled_negative());
        Some(mapping)
    }

    fn put(&mut self, eid: EidPrefix, mapping: Mapping) {
        self.wakes.insert((mapping.wake_at, eid));
        self.negative += usize::from(mapping.is_pulled_negative());
        self.mappings.insert(eid, mapping);
    }
}

/// A tenth of the TTL before expiry, at most 20 s: time for several retransmissions, and not much asked in vain.
fn refresh_at(now: Instant, expires_at: Instant) -> Instant {
    let ttl = expires_at.saturating_since(now);
    now + (ttl - (ttl / 10).min(Duration::from_secs(20)))
}

/// RFC 9301 §5.4: no broadcast, no multicast; and nothing that could only reach ourselves.
fn usable_addresses(records: &[LocatorRecord]) -> Vec<Locator> {
    let mut locators: Vec<Locator> = records
        .iter()
        .filter_map(|record| {
            let rloc = record.rloc.ip().filter(is_unicast)?;
            let usable = record.priority != 255 && record.reachable;
            Some(Locator { rloc, priority: record.priority, weight: record.weight, usable })
        })
        .collect();
    locators.sort_by_key(|l| l.rloc);
    locators.dedup_by_key(|l| l.rloc);
    locators
}

/// Whether an address can be a locator.
#[must_use]
pub fn is_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(broadcast || address.is_multicast() || address.is_unspecified() || address.is_loopback())
}
