//! The controller's weights over the registered ones.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use codec::{DecodeError, Reader, Writer};

use super::output::{LocatorWeight, WeightsError, WeightsView};
use crate::saved::{self, Kind};
use crate::wire::{EidPrefix, LocatorRecord, XtrIdentity};

/// Priority of a locator that is never used: the flows that it has go elsewhere too (RFC 9301 §5.4).
const NEVER: u8 = 255;
/// Priority and weight of a registered locator that the weights do not name: usable, so that its flows stay, but new
/// ones go there only when every named locator is gone.
const DRAINED: (u8, u8) = (254, 0);
/// Locators that a record can hold.
const MAX_LOCATORS: usize = 255;

/// Weights by prefix and gateway.
#[derive(Debug, Default)]
pub(super) struct Weights {
    table: BTreeMap<(EidPrefix, Option<XtrIdentity>), Vec<LocatorWeight>>,
}

impl Weights {
    /// Sets weights; whether they differ from those before.
    pub(super) fn set(
        &mut self,
        eid: EidPrefix,
        gateway: Option<XtrIdentity>,
        locators: Vec<LocatorWeight>,
    ) -> bool {
        self.table.insert((eid, gateway), locators.clone()).is_none_or(|old| old != locators)
    }

    /// Clears weights; whether there were any.
    pub(super) fn clear(&mut self, eid: EidPrefix, gateway: Option<XtrIdentity>) -> bool {
        self.table.remove(&(eid, gateway)).is_some()
    }

    /// Replaces priorities and weights of registered locators by those for `gateway`, or those for all.
    pub(super) fn overlay(
        &self,
        eid: EidPrefix,
        gateway: Option<XtrIdentity>,
        locators: &mut [LocatorRecord],
    ) {
        let own = gateway.and_then(|_| self.table.get(&(eid, gateway)));
        let Some(weights) = own.or_else(|| self.table.get(&(eid, None))) else { return };
        let of = |l: &LocatorRecord| weights.iter().find(|w| Some(w.rloc) == l.rloc.ip());
        let carries = |w: &LocatorWeight| w.priority != NEVER;
        let intended = weights.iter().any(carries);
        // The chosen edges are all gone: the others, drained or not, are better than none.
        if intended && !locators.iter().any(|l| of(l).is_some_and(carries)) {
            return;
        }
        for locator in locators {
            let (priority, weight) = of(locator).map_or(DRAINED, |w| (w.priority, w.weight));
            (locator.priority, locator.weight) = (priority, weight);
        }
    }

    pub(super) fn views(&self) -> Vec<WeightsView> {
        let view = |(&(eid, gateway), locators): (&(EidPrefix, Option<XtrIdentity>), &Vec<LocatorWeight>)| {
            WeightsView { eid, gateway, locators: locators.clone() }
        };
        self.table.iter().map(view).collect()
    }
}

pub(super) fn check(locators: &[LocatorWeight]) -> Result<(), WeightsError> {
    let mut seen = BTreeSet::new();
    match locators.iter().find(|l| !seen.insert(l.rloc)) {
        Some(twice) => Err(WeightsError::DuplicateLocator { rloc: twice.rloc }),
        None if locators.is_empty() => Err(WeightsError::Empty),
        None if locators.len() > MAX_LOCATORS => {
            Err(WeightsError::TooMany { count: locators.len(), limit: MAX_LOCATORS })
        }
        None => Ok(()),
    }
}

pub(super) fn saved_key(eid: &EidPrefix, gateway: Option<XtrIdentity>) -> Writer {
    let mut w = saved::key(Kind::Weights);
    saved::write_eid(&mut w, eid);
    if let Some(gateway) = gateway {
        saved::write_identity(&mut w, &gateway);
    }
    w
}

pub(super) fn saved_value(locators: &[LocatorWeight]) -> Vec<u8> {
    let mut w = Writer::new();
    for locator in locators {
        saved::write_ip(&mut w, locator.rloc);
        w.u8(locator.priority);
        w.u8(locator.weight);
    }
    w.into_vec()
}

/// Reads what [`saved_key`] (after the kind) and [`saved_value`] wrote.
pub(super) fn read_saved(
    key: &mut Reader<'_>,
    value: &[u8],
) -> Result<(EidPrefix, Option<XtrIdentity>, Vec<LocatorWeight>), DecodeError> {
    let eid = saved::read_eid(key)?;
    let gateway = if key.remaining() == 0 { None } else { Some(saved::read_identity(key)?) };
    let mut r = Reader::new(value);
    let mut locators = Vec::new();
    while r.remaining() > 0 {
        let rloc = saved::read_ip(&mut r)?;
        locators.push(LocatorWeight { rloc, priority: r.u8("priority")?, weight: r.u8("weight")? });
    }
    Ok((eid, gateway, locators))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Address, InstanceId, SiteId, XtrId};

    fn eid() -> EidPrefix {
        EidPrefix { instance_id: InstanceId(0), prefix: "10.100.0.1/32".parse().unwrap() }
    }

    fn rloc(n: u8) -> core::net::IpAddr {
        [10, 0, 1, n].into()
    }

    fn registered(n: u8) -> LocatorRecord {
        LocatorRecord::new(Address::Ip(rloc(n)), 1, 100)
    }

    fn weight(n: u8, priority: u8, weight: u8) -> LocatorWeight {
        LocatorWeight { rloc: rloc(n), priority, weight }
    }

    fn overlaid(weights: &Weights, gateway: Option<XtrIdentity>, registered_: &[u8]) -> Vec<(u8, u8)> {
        let mut locators: Vec<_> = registered_.iter().map(|n| registered(*n)).collect();
        weights.overlay(eid(), gateway, &mut locators);
        locators.iter().map(|l| (l.priority, l.weight)).collect()
    }

    #[test]
    fn a_gateway_sees_its_own_weights_and_the_others_the_common_ones() {
        let gateway = XtrIdentity { xtr_id: XtrId([1; 16]), site_id: SiteId(1) };
        let mut weights = Weights::default();
        weights.set(eid(), None, [weight(1, 1, 60), weight(2, 1, 40)].into());
        weights.set(eid(), Some(gateway), [weight(1, 1, 10), weight(2, 1, 90)].into());
        assert_eq!(overlaid(&weights, Some(gateway), &[1, 2]), [(1, 10), (1, 90)]);
        assert_eq!(overlaid(&weights, None, &[1, 2]), [(1, 60), (1, 40)]);
        weights.clear(eid(), Some(gateway));
        assert_eq!(overlaid(&weights, Some(gateway), &[1, 2]), [(1, 60), (1, 40)]);
    }

    #[test]
    fn unnamed_is_drained_and_unregistered_is_not_published() {
        let mut weights = Weights::default();
        weights.set(eid(), None, [weight(1, 1, 60), weight(9, 1, 40)].into());
        assert_eq!(overlaid(&weights, None, &[1, 2]), [(1, 60), (254, 0)]);
    }

    #[test]
    fn losing_every_chosen_edge_falls_back_to_the_registered_weights() {
        let mut weights = Weights::default();
        weights.set(eid(), None, [weight(1, 1, 100), weight(2, 255, 0)].into());
        assert_eq!(overlaid(&weights, None, &[2, 3]), [(1, 100), (1, 100)]);
        weights.set(eid(), None, [weight(2, 255, 0), weight(3, 255, 0)].into());
        assert_eq!(
            overlaid(&weights, None, &[2, 3]),
            [(255, 0), (255, 0)],
            "an explicit drain of all stands"
        );
    }

    #[test]
    fn weights_come_back_from_storage() {
        let gateway = XtrIdentity { xtr_id: XtrId([7; 16]), site_id: SiteId(3) };
        let locators = Vec::from([weight(1, 1, 60), weight(2, 255, 0)]);
        for gateway in [None, Some(gateway)] {
            let key = saved_key(&eid(), gateway).into_vec();
            let mut r = Reader::new(&key[1..]);
            let read = read_saved(&mut r, &saved_value(&locators)).unwrap();
            assert_eq!(read, (eid(), gateway, locators.clone()));
        }
    }
}
