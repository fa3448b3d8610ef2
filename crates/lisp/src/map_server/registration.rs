//! Who registered what, until when.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use codec::{DecodeError, EncodeError, Instant, Reader, Writer};

use super::output::{Registrant, RegistrationView};
use crate::prefix_map::PrefixMap;
use crate::saved::{self, Kind};
use crate::timers::Timers;
use crate::wire::{EidPrefix, EidRecord, LocatorRecord};

/// What one xTR registered for one prefix.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    pub(super) site: String,
    pub(super) record: EidRecord,
    pub(super) proxy_reply: bool,
    pub(super) merge: bool,
    pub(super) lifetime: Duration,
    pub(super) refreshed_at: Option<Instant>,
    pub(super) expires_at: Instant,
}

impl Registration {
    /// Whether it would be published like `other`.
    fn says_the_same(&self, other: &Self) -> bool {
        (self.proxy_reply, self.merge) == (other.proxy_reply, other.merge) && self.record == other.record
    }
}

/// Registrations by prefix and xTR.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    table: PrefixMap<BTreeMap<Registrant, Registration>>,
    timers: Timers<(EidPrefix, Registrant)>,
    count: usize,
}

impl Registrations {
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) const fn table(&self) -> &PrefixMap<BTreeMap<Registrant, Registration>> {
        &self.table
    }

    pub(super) fn contains(&self, eid: &EidPrefix, registrant: &Registrant) -> bool {
        self.table.get(eid).is_some_and(|all| all.contains_key(registrant))
    }

    /// Takes a registration over; returns whether it differs from the one before, and whom it replaces.
    ///
    /// RFC 9301 §5.6: sets are merged only if each xTR asks for it (a), otherwise the last one stands alone.
    pub(super) fn apply(
        &mut self,
        eid: EidPrefix,
        registrant: Registrant,
        new: Registration,
    ) -> (bool, Vec<Registrant>) {
        let replaced: Vec<Registrant> = self.table.get(&eid).map_or_else(Vec::new, |all| {
            let others = all.iter().filter(|(r, _)| **r != registrant);
            others.filter(|(_, old)| !(new.merge && old.merge)).map(|(r, _)| *r).collect()
        });
        for other in &replaced {
            self.remove(&eid, other);
        }
        self.timers.set((eid, registrant), Some(new.expires_at));
        if self.table.get(&eid).is_none() {
            self.table.insert(eid, BTreeMap::new());
        }
        let all = self.table.get_mut(&eid).expect("inserted above");
        let changed = !all.get(&registrant).is_some_and(|old| old.says_the_same(&new));
        self.count += usize::from(all.insert(registrant, new).is_none());
        (changed || !replaced.is_empty(), replaced)
    }

    /// Ends a registration; whether there was one.
    pub(super) fn remove(&mut self, eid: &EidPrefix, registrant: &Registrant) -> bool {
        let Some(all) = self.table.get_mut(eid) else { return false };
        let removed = all.remove(registrant).is_some();
        if all.is_empty() {
            self.table.remove(eid);
        }
        self.timers.set((*eid, *registrant), None);
        self.count -= usize::from(removed);
        removed
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Ends the registrations that were not refreshed in time.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(EidPrefix, Registrant)> {
        let due = self.timers.take_due(now);
        for (eid, registrant) in &due {
            self.remove(eid, registrant);
        }
        due
    }

    /// Whether any xTR of the prefix lets the Map-Server answer (RFC 9301 §8.3).
    pub(super) fn proxy_reply(&self, eid: &EidPrefix) -> bool {
        self.table.get(eid).is_some_and(|all| all.values().any(|r| r.proxy_reply))
    }

    /// The union of the registered locators, sorted, and the shortest TTL.
    pub(super) fn merged(&self, eid: &EidPrefix) -> Option<EidRecord> {
        let all = self.table.get(eid)?;
        let first = &all.values().next()?.record;
        let mut merged = EidRecord { authoritative: false, locators: Vec::new(), ..first.clone() };
        for registration in all.values() {
            merged.ttl = merged.ttl.min(registration.record.ttl);
            // Different versions mean that the xTRs disagree; none is the right one (RFC 9302 §6).
            if merged.map_version != registration.record.map_version {
                merged.map_version = 0;
            }
            registration.record.locators.iter().for_each(|l| merge_locator(&mut merged.locators, l));
        }
        merged.sort_locators();
        Some(merged)
    }

    pub(super) fn views(&self) -> Vec<RegistrationView> {
        let pairs = self.table.iter().flat_map(|(eid, all)| all.iter().map(move |(r, reg)| (eid, r, reg)));
        pairs
            .map(|(eid, registrant, registration)| RegistrationView {
                eid,
                registrant: *registrant,
                site: registration.site.clone(),
                locators: registration.record.locators.clone(),
                ttl: registration.record.ttl,
                proxy_reply: registration.proxy_reply,
                merge: registration.merge,
                refreshed_at: registration.refreshed_at,
                expires_at: registration.expires_at,
            })
            .collect()
    }
}

/// Two xTRs behind one locator: it is reachable if one of them says so.
fn merge_locator(locators: &mut Vec<LocatorRecord>, new: &LocatorRecord) {
    match locators.iter_mut().find(|l| l.rloc == new.rloc) {
        Some(known) => known.reachable |= new.reachable,
        None => locators.push(LocatorRecord { local: false, probed: false, ..new.clone() }),
    }
}

pub(super) fn saved_key(eid: &EidPrefix, registrant: &Registrant) -> Writer {
    let mut w = saved::key(Kind::Registration);
    saved::write_eid(&mut w, eid);
    write_registrant(&mut w, registrant);
    w
}

pub(super) fn saved_value(registration: &Registration) -> Result<Vec<u8>, EncodeError> {
    let mut w = Writer::new();
    w.count8(registration.site.len(), "site name")?;
    w.bytes(registration.site.as_bytes());
    w.u8(u8::from(registration.proxy_reply) | u8::from(registration.merge) << 1);
    w.u64(registration.lifetime.as_secs());
    registration.record.write(&mut w)?;
    Ok(w.into_vec())
}

/// Reads what [`saved_key`] (after the kind) and [`saved_value`] wrote; it lives as long again as when it was new.
pub(super) fn read_saved(
    now: Instant,
    key: &mut Reader<'_>,
    value: &[u8],
) -> Result<(EidPrefix, Registrant, Registration), DecodeError> {
    let eid = saved::read_eid(key)?;
    let registrant = read_registrant(key)?;
    let mut r = Reader::new(value);
    let length = usize::from(r.u8("site name")?);
    let site = String::from_utf8_lossy(r.bytes(length, "site name")?).into_owned();
    let flags = r.u8("saved flags")?;
    let lifetime = Duration::from_secs(r.u64("saved lifetime")?);
    let record = EidRecord::read(&mut r)?;
    let registration = Registration {
        site,
        record,
        proxy_reply: flags & 1 != 0,
        merge: flags & 2 != 0,
        lifetime,
        refreshed_at: None,
        expires_at: now + lifetime,
    };
    Ok((eid, registrant, registration))
}

pub(super) fn write_registrant(w: &mut Writer, registrant: &Registrant) {
    match registrant {
        Registrant::Xtr(identity) => {
            w.u8(1);
            saved::write_identity(w, identity);
        }
        Registrant::Address(ip) => {
            w.u8(0);
            saved::write_ip(w, *ip);
        }
    }
}

fn read_registrant(r: &mut Reader<'_>) -> Result<Registrant, DecodeError> {
    match r.u8("saved registrant")? {
        1 => saved::read_identity(r).map(Registrant::Xtr),
        _ => saved::read_ip(r).map(Registrant::Address),
    }
}
