//! The `[mapserver]` section.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use lisp::map_server::Limits;
use lisp::rate::RateLimit;
use lisp::wire::{CONTROL_PORT, EidPrefix, SiteId, XtrIdentity};

use super::checks::Checks;
use super::{NonceCheck, SharedKey, raw};

/// Map-Server and Map-Resolver.
#[derive(Clone, Debug)]
pub struct MapServer {
    /// Where it listens, at least one.
    pub listen: Vec<SocketAddr>,
    /// Who may register what.
    pub sites: Vec<Site>,
    /// Who may subscribe.
    pub subscribers: Vec<Subscriber>,
    /// Bounds of work per peer.
    pub limits: Limits,
}

/// Who may register what.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name of the site.
    pub name: String,
    /// What its registrations must carry, if given.
    pub site_id: Option<SiteId>,
    /// Key of its registrations.
    pub key: SharedKey,
    /// How nonces are checked.
    pub nonce_check: NonceCheck,
    /// What it may register.
    pub eid_prefixes: Vec<SitePrefix>,
}

/// An EID-prefix of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SitePrefix {
    /// The prefix.
    pub eid: EidPrefix,
    /// Longer ones inside may be registered too.
    pub more_specifics: bool,
}

/// A gateway that may subscribe.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Name of the gateway, in weights too.
    pub name: String,
    /// Who it is in messages.
    pub identity: XtrIdentity,
    /// PubSubKey.
    pub key: SharedKey,
}

impl Checks {
    pub(super) fn mapserver(&mut self, mapserver: raw::MapServer) -> Option<MapServer> {
        self.some("mapserver.listen", &mapserver.listen, "addresses to listen on, e.g. [\"10.0.0.10\"]");
        let listen = self.each("mapserver.listen", mapserver.listen, |c, path, text| {
            c.endpoint(path, &text, CONTROL_PORT)
        });
        let sites = self.each("mapserver.site", mapserver.site, Self::site);
        let subscribers = self.each("mapserver.subscriber", mapserver.subscriber, Self::subscriber);
        self.distinct("mapserver.listen", "address", &listen, |address| *address);
        self.distinct("mapserver.site", "name", &sites, |site| site.name.clone());
        self.distinct("mapserver.subscriber", "name", &subscribers, |s| s.name.clone());
        self.distinct("mapserver.subscriber", "xtr_id", &subscribers, |s| s.identity);
        self.one_owner(sites.as_deref());
        let map_request = self.rate("map_request", mapserver.map_request_rate, mapserver.map_request_burst);
        let map_reply = self.rate("map_reply", mapserver.map_reply_rate, mapserver.map_reply_burst);
        let limits = Limits { map_request: map_request?, map_reply: map_reply?, ..Limits::default() };
        Some(MapServer { listen: listen?, sites: sites?, subscribers: subscribers?, limits })
    }

    /// `rate` per second after `burst` at once.
    fn rate(&mut self, name: &str, rate: u32, burst: u32) -> Option<RateLimit> {
        const MAX: u32 = 1_000_000;
        for (key, value) in [("rate", rate), ("burst", burst)] {
            if !(1..=MAX).contains(&value) {
                let path = format!("mapserver.{name}_{key}");
                self.problem(&path, format!("{value} is out of range: 1 to {MAX}"));
            }
        }
        let within = (1..=MAX).contains(&rate) && (1..=MAX).contains(&burst);
        within.then(|| RateLimit { burst, interval: Duration::from_secs(1) / rate })
    }

    fn site(&mut self, path: &str, site: raw::Site) -> Option<Site> {
        let name = self.name(&format!("{path}.name"), site.name);
        let key = self.shared_key(path, site.key_id, site.algorithm, &site.key_file);
        let prefixes = format!("{path}.eid_prefixes");
        self.some(
            &prefixes,
            &site.eid_prefixes,
            "what the site may register, e.g. [{ prefix = \"10.100.0.0/16\" }]",
        );
        let eid_prefixes = self.each(&prefixes, site.eid_prefixes, |c, path, p| {
            let eid = c.eid(path, "prefix", &p.prefix, p.instance_id)?;
            Some(SitePrefix { eid, more_specifics: p.more_specifics })
        });
        Some(Site {
            name: name?,
            site_id: site.site_id.map(SiteId),
            key: key?,
            nonce_check: site.nonce_check,
            eid_prefixes: eid_prefixes?,
        })
    }

    fn subscriber(&mut self, path: &str, subscriber: raw::Subscriber) -> Option<Subscriber> {
        let name = self.name(&format!("{path}.name"), subscriber.name);
        let identity = self.identity(path, &subscriber.xtr_id, subscriber.site_id);
        let key = self.shared_key(path, subscriber.key_id, subscriber.algorithm, &subscriber.key_file);
        Some(Subscriber { name: name?, identity: identity?, key: key? })
    }

    /// The EID-prefix of a registration decides whose key verifies it: it must belong to one site.
    fn one_owner(&mut self, sites: Option<&[Site]>) {
        let mut owners = BTreeMap::new();
        for (s, site) in sites.unwrap_or_default().iter().enumerate() {
            for (p, prefix) in site.eid_prefixes.iter().enumerate() {
                let path = format!("mapserver.site[{s}].eid_prefixes[{p}]");
                if let Some(owner) = owners.insert(prefix.eid, path.clone()) {
                    let message = format!("same prefix as {owner}; it can belong to one site only");
                    self.problem(&path, message);
                }
            }
        }
    }
}
