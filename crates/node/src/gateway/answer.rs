//! Answers of the gateway's task to the API.

use codec::Instant;
use dataplane::table::{Locator, Mapping};
use dataplane::{Eid, Hook};
use lisp::map_cache::{Mapping as Cached, Origin};
use lisp::wire::{EidPrefix, InstanceId};

use super::api::Query;
use super::body::{LocatorBody, MapServerBody, MappingBody, ProbedBody, StatusBody, SubscriptionBody};
use super::shell::Shell;

impl Shell {
    /// Answers; who asked may have gone away.
    pub(super) fn answer(&self, query: Query) {
        match query {
            Query::Mappings(sender) => drop(sender.send(self.mappings())),
            Query::Status(sender) => drop(sender.send(self.status())),
        }
    }

    fn mappings(&self) -> Vec<MappingBody> {
        self.dataplane.mappings().map(|(eid, mapping)| self.mapping(eid, mapping)).collect()
    }

    fn mapping(&self, eid: &Eid, mapping: &Mapping) -> MappingBody {
        let prefix = EidPrefix { instance_id: InstanceId(eid.instance_id), prefix: eid.prefix };
        let cached = self.xtr.map_cache().get(&prefix);
        let (action, told): (_, &[Locator]) = match mapping {
            Mapping::Encapsulate(locators) => ("encapsulate", locators),
            Mapping::Keep => ("encapsulate", &[]),
            Mapping::Resolve => ("resolve", &[]),
            Mapping::Native => ("native", &[]),
            Mapping::Drop => ("drop", &[]),
        };
        MappingBody {
            instance_id: eid.instance_id,
            eid: eid.prefix.to_string(),
            action: action.to_owned(),
            origin: origin(mapping, cached).to_owned(),
            expires_in_s: cached.and_then(|cached| expiry(self.clock.now(), cached)),
            stale: cached.is_some_and(|cached| cached.stale),
            locators: self.locators(eid, told),
        }
    }

    fn locators(&self, eid: &Eid, told: &[Locator]) -> Vec<LocatorBody> {
        let body = |placed: &dataplane::PlacedLocator| {
            let told = told.iter().find(|locator| locator.rloc == placed.rloc);
            LocatorBody {
                rloc: placed.rloc,
                priority: told.map(|locator| locator.priority),
                weight: told.map(|locator| locator.weight),
                usable: placed.usable,
                share: f64::from(u32::try_from(placed.buckets).unwrap_or(0)) / BUCKETS,
            }
        };
        self.dataplane.placed(eid).iter().map(body).collect()
    }

    fn status(&self) -> StatusBody {
        let now = self.clock.now();
        let chosen = self.dataplane.hook();
        let map_server = |server: &lisp::xtr::MapServerView| MapServerBody {
            address: server.address,
            confirmed_ms_ago: server.confirmed_at.map(|at| millis(now.saturating_since(at))),
        };
        let subscription = |subscription: &lisp::xtr::SubscriptionView| SubscriptionBody {
            eid: subscription.eid.prefix.to_string(),
            instance_id: subscription.eid.instance_id.0,
            active: subscription.active,
            nonce: subscription.nonce,
        };
        let probed = |locator: &lisp::xtr::LocatorView| ProbedBody {
            rloc: locator.rloc,
            up: locator.up,
            rtt_ms: locator.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            misses: locator.misses,
        };
        StatusBody {
            hook: if chosen.hook == Hook::Xdp { "xdp" } else { "tc" }.to_owned(),
            hook_reason: chosen.reason.to_owned(),
            rlocs: self.dataplane.rlocs().to_vec(),
            map_cache_entries: self.xtr.map_cache().len(),
            unconfirmed: self.dataplane.unconfirmed().iter().map(ToString::to_string).collect(),
            held_packets: self.hold.len(),
            map_servers: self.xtr.map_servers().iter().map(map_server).collect(),
            subscriptions: self.xtr.subscriptions().iter().map(subscription).collect(),
            locators: self.xtr.locators().iter().map(probed).collect(),
        }
    }
}

/// [`bpf_abi::BUCKETS`] as a divisor.
const BUCKETS: f64 = bpf_abi::BUCKETS as f64;

const fn origin(mapping: &Mapping, cached: Option<&Cached>) -> &'static str {
    match (mapping, cached) {
        (Mapping::Keep, _) => "unconfirmed",
        (_, None) => "configured",
        (_, Some(Cached { origin: Origin::Request, .. })) => "request",
        (_, Some(Cached { origin: Origin::Subscription, .. })) => "subscription",
    }
}

fn expiry(now: Instant, cached: &Cached) -> Option<u64> {
    (cached.origin == Origin::Request).then(|| cached.expires_at.saturating_since(now).as_secs())
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
