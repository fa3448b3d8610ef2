//! What a Map-Server is configured with.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use crate::auth::Key;
use crate::rate::RateLimit;
use crate::wire::{EidPrefix, SiteId, XtrIdentity};

/// Configuration of a Map-Server and Map-Resolver.
#[derive(Clone, Debug)]
pub struct MapServerConfig {
    /// Own addresses; the ITR-RLOCs of the SMRs that this server sends.
    pub listen: Vec<IpAddr>,
    /// Who may register what.
    pub sites: Vec<Site>,
    /// Who may subscribe.
    pub subscribers: Vec<Subscriber>,
    /// Bounds.
    pub limits: Limits,
}

/// Replay protection of a site's registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonceCheck {
    /// A nonce must be greater than the last one (RFC 9301 §5.6).
    #[default]
    Strict,
    /// A nonce must not be among the last 64: for xTRs that draw their nonces at random.
    Compat,
}

/// A site: keys and the EID-prefixes that they may register.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name in events; unique.
    pub name: String,
    /// If given, a registration that carries another Site-ID is refused.
    pub site_id: Option<SiteId>,
    /// Keys, so that one can be changed while the other still works.
    pub keys: Vec<Key>,
    /// Replay protection.
    pub nonce_check: NonceCheck,
    /// What it may register.
    pub eid_prefixes: Vec<AllowedPrefix>,
}

/// An EID-prefix that a site may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedPrefix {
    /// The prefix.
    pub eid: EidPrefix,
    /// Whether parts of it may be registered too.
    pub more_specifics: bool,
}

impl AllowedPrefix {
    /// Whether `eid` may be registered under this.
    #[must_use]
    pub fn allows(&self, eid: &EidPrefix) -> bool {
        self.eid == *eid || self.more_specifics && self.eid.covers(eid)
    }
}

/// An xTR that may subscribe to mappings (RFC 9437).
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Name in the API; unique.
    pub name: String,
    /// Identity it subscribes with.
    pub identity: XtrIdentity,
    /// PubSubKey (RFC 9437 §7.1).
    pub key: Key,
}

/// Bounds of state and of work per peer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Map-Requests per asking address.
    pub map_request: RateLimit,
    /// Map-Replies per ITR-RLOC. RFC 9301 §5.4 recommends one per 3 s, which a gateway that asks for many EIDs at its
    /// start cannot live with.
    pub map_reply: RateLimit,
    /// Map-Notifies per subscriber, publications and retransmissions (RFC 9437 §5).
    pub map_notify: RateLimit,
    /// SMRs per destination; RFC 9301 §6.1 recommends one per 3 s.
    pub smr: RateLimit,
    /// Peers whose Map-Requests and Map-Replies are tracked; while that many are busy, others are refused.
    pub max_peers: usize,
    /// Registered (EID-prefix, xTR) pairs.
    pub max_registrations: usize,
    /// Subscriptions of one xTR.
    pub max_subscriptions: usize,
    /// Remembered (EID-prefix, ITR-RLOC) pairs that get SMRs.
    pub max_requesters: usize,
    /// Time after which a registration that was not refreshed is dropped (RFC 9301 §8.2), unless it set the T bit.
    pub registration_timeout: Duration,
    /// How long a requester is remembered if the TTL it was given is longer.
    pub requester_timeout: Duration,
    /// TTL in minutes of the mappings that are answered and published, if the registered one is longer.
    pub max_ttl: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            map_request: RateLimit { burst: 1000, interval: Duration::from_millis(1) },
            map_reply: RateLimit { burst: 200, interval: Duration::from_millis(10) },
            map_notify: RateLimit { burst: 200, interval: Duration::from_millis(2) },
            smr: RateLimit { burst: 1, interval: Duration::from_secs(3) },
            max_peers: 4096,
            max_registrations: 65_536,
            max_subscriptions: 1024,
            max_requesters: 8192,
            registration_timeout: Duration::from_secs(180),
            requester_timeout: Duration::from_secs(3600),
            max_ttl: 1440,
        }
    }
}
