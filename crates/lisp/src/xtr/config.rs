//! What an xTR is configured with.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use crate::auth::Key;
use crate::map_cache::MapCacheConfig;
use crate::wire::{EidPrefix, XtrIdentity};

/// Configuration of an xTR.
#[derive(Clone, Debug)]
pub struct XtrConfig {
    /// Own identity.
    pub identity: XtrIdentity,
    /// Own locators.
    pub rlocs: Vec<IpAddr>,
    /// Map-Resolvers in the order in which they are tried.
    pub map_resolvers: Vec<IpAddr>,
    /// Map-Servers to register with.
    pub map_servers: Vec<MapServerPeer>,
    /// Destinations that LISP handles; answers that cover more are narrowed to it.
    pub eid_space: Vec<EidPrefix>,
    /// Mappings to subscribe to.
    pub subscribe: Vec<EidPrefix>,
    /// Key of publications; without it nothing is subscribed to.
    pub pubsub_key: Option<Key>,
    /// What to register.
    pub local_eids: Vec<LocalEid>,
    /// RLOC probing.
    pub probing: ProbingConfig,
    /// Bounds of the map-cache.
    pub map_cache: MapCacheConfig,
    /// EIDs that may be waited for at a time.
    pub max_pending: usize,
    /// Unix time at construction: nonce series whose storage was lost restart above the lost ones.
    pub unix_seconds: u64,
}

/// A Map-Server to register with.
#[derive(Clone, Debug)]
pub struct MapServerPeer {
    /// Its address.
    pub address: IpAddr,
    /// The site's key.
    pub key: Key,
    /// P: it may answer Map-Requests for us; needed for subscriptions.
    pub proxy_reply: bool,
}

/// An EID-prefix that this xTR registers with all its locators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEid {
    /// The prefix.
    pub eid: EidPrefix,
    /// Priority of each locator.
    pub priority: u8,
    /// Weight of each locator.
    pub weight: u8,
    /// Record TTL in minutes.
    pub ttl: u32,
    /// a: merge with what other xTRs register for the prefix.
    pub merge: bool,
}

/// RLOC probing (RFC 9301 §7.1).
#[derive(Clone, Copy, Debug)]
pub struct ProbingConfig {
    /// Time between two probes of a locator, 20 ms at least; `None` switches probing off.
    pub interval: Option<Duration>,
    /// Unanswered probes in a row that make a locator down.
    pub down_after: u32,
    /// Answered probes in a row that make it up again.
    pub up_after: u32,
    /// How long a locator stays down at least after it went down again soon; doubles with every such time.
    pub hold_down: Duration,
    /// Upper bound of the hold-down.
    pub max_hold_down: Duration,
}

impl Default for ProbingConfig {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(1)),
            down_after: 3,
            up_after: 2,
            hold_down: Duration::from_secs(5),
            max_hold_down: Duration::from_secs(120),
        }
    }
}
