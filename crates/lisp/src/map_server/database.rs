//! The mappings as they are answered and published: registrations, weights over them, and what is configured.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use codec::IpPrefix;

use super::config::Site;
use super::registration::Registrations;
use super::weights::Weights;
use crate::prefix_map::PrefixMap;
use crate::wire::{Action, EidPrefix, EidRecord, XtrIdentity};

/// TTL in minutes of a negative answer for a prefix that no site may register (RFC 9301 §8.3).
const TTL_UNKNOWN: u32 = 15;
/// TTL in minutes of a negative answer for a prefix that nobody registered yet (RFC 9301 §8.3).
const TTL_UNREGISTERED: u32 = 1;

#[derive(Debug)]
pub(super) struct Database {
    pub(super) registrations: Registrations,
    pub(super) weights: Weights,
    /// Which sites may register a prefix, and whether also parts of it.
    allowed: PrefixMap<Vec<(usize, bool)>>,
    max_ttl: u32,
}

/// Why there is no mapping, as a record to answer with.
pub(super) enum Answer {
    /// The longest match, and what is registered inside it.
    Mappings(EidPrefix),
    /// No mapping.
    Negative(EidRecord),
}

impl Database {
    pub(super) fn new(sites: &[Site], max_ttl: u32) -> Self {
        let mut allowed: PrefixMap<Vec<(usize, bool)>> = PrefixMap::new();
        for (index, site) in sites.iter().enumerate() {
            for prefix in &site.eid_prefixes {
                let entry = (index, prefix.more_specifics);
                match allowed.get_mut(&prefix.eid) {
                    Some(entries) => entries.push(entry),
                    None => drop(allowed.insert(prefix.eid, Vec::from([entry]))),
                }
            }
        }
        let (registrations, weights) = (Registrations::default(), Weights::default());
        Self { registrations, weights, allowed, max_ttl }
    }

    /// Indices of the sites that may register `eid`.
    pub(super) fn sites_of(&self, eid: &EidPrefix) -> impl Iterator<Item = usize> {
        let eid = *eid;
        self.allowed.covering(eid).flat_map(move |(prefix, entries)| {
            entries.iter().filter(move |(_, more)| *more || prefix == eid).map(|(site, _)| *site)
        })
    }

    /// Whether `eid` is inside what some site may register.
    pub(super) fn is_configured(&self, eid: &EidPrefix) -> bool {
        self.allowed.covering(*eid).next().is_some() || self.allowed.within(*eid).next().is_some()
    }

    /// One mapping as `gateway` gets it (proxied: A = 0, L = 0, RFC 9301 §8.3).
    pub(super) fn mapping(&self, eid: &EidPrefix, gateway: Option<XtrIdentity>) -> Option<EidRecord> {
        let mut record = self.registrations.merged(eid)?;
        record.ttl = record.ttl.min(self.max_ttl);
        record.action = Action::NoAction;
        self.weights.overlay(*eid, gateway, &mut record.locators);
        Some(record)
    }

    /// Every mapping that concerns an xTR which asked for or subscribed to `eid`: the longest match, and what is
    /// registered inside `eid` (RFC 9301 §5.5), all with the same TTL.
    pub(super) fn mappings(
        &self,
        eid: EidPrefix,
        gateway: Option<XtrIdentity>,
    ) -> BTreeMap<EidPrefix, EidRecord> {
        let table = self.registrations.table();
        let longest = table.covering(eid).map(|(e, _)| e).next();
        let inside = table.within(eid).map(|(e, _)| e);
        let keys = longest.into_iter().chain(inside);
        let mut found: BTreeMap<_, _> = keys.filter_map(|e| Some((e, self.mapping(&e, gateway)?))).collect();
        let ttl = found.values().map(|r| r.ttl).min().unwrap_or(0);
        found.values_mut().for_each(|record| record.ttl = ttl);
        found
    }

    /// The decision of RFC 9301 §8.3, §8.4 up to who answers.
    pub(super) fn answer(&self, asked: &EidPrefix) -> Answer {
        let (instance_id, address) = (asked.instance_id, asked.prefix.address());
        let table = self.registrations.table();
        let longest = table.covering(*asked).next().or_else(|| table.longest_match(instance_id, address));
        if let Some((eid, _)) = longest {
            return Answer::Mappings(eid);
        }
        let host = EidPrefix { instance_id, prefix: IpPrefix::host(address) };
        let configured = self.allowed.covering(host).next().map(|(eid, _)| eid);
        let gap = match configured {
            Some(_) => table.least_specific_gap(instance_id, address),
            None => self.allowed.least_specific_gap(instance_id, address),
        };
        let gap = EidPrefix { instance_id, prefix: gap.unwrap_or(host.prefix) };
        Answer::Negative(match configured {
            Some(limit) if gap.covers(&limit) => negative(limit, TTL_UNREGISTERED, Action::NativelyForward),
            Some(_) => negative(gap, TTL_UNREGISTERED, Action::NativelyForward),
            None => negative(gap, TTL_UNKNOWN, Action::NativelyForward),
        })
    }

    /// The part of `eid` around `asked` that holds nothing more specific: what a single record can truthfully say.
    pub(super) fn clear_part(&self, eid: &EidPrefix, asked: &EidPrefix) -> EidPrefix {
        let mut inside: PrefixMap<()> = PrefixMap::new();
        for (e, _) in self.registrations.table().within(*eid).filter(|(e, _)| e != eid) {
            inside.insert(e, ());
        }
        let gap = inside.least_specific_gap(eid.instance_id, asked.prefix.address());
        gap.filter(|gap| gap.length() > eid.prefix.length())
            .map_or(*eid, |prefix| EidPrefix { instance_id: eid.instance_id, prefix })
    }
}

/// A record without locators.
pub(super) const fn negative(eid: EidPrefix, ttl: u32, action: Action) -> EidRecord {
    EidRecord { ttl, action, authoritative: false, map_version: 0, eid, locators: Vec::new() }
}
