//! The bodies of the gateway's API, also read by `weir get`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `GET /v1/mappings`: one entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MappingBody {
    /// Instance ID.
    pub instance_id: u32,
    /// EID-prefix.
    pub eid: String,
    /// `encapsulate`, `resolve`, `native` or `drop`.
    pub action: String,
    /// `configured`, `request`, `subscription`, or `unconfirmed` when an earlier process left it.
    pub origin: String,
    /// Seconds until it expires, without subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
    /// In use beyond its TTL because nobody answered.
    pub stale: bool,
    /// Its locators.
    pub locators: Vec<LocatorBody>,
}

/// A locator of a mapping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocatorBody {
    /// Its address.
    pub rloc: IpAddr,
    /// Lower wins; unknown while unconfirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Share as it was told; unknown while unconfirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    /// Whether flows may use it.
    pub usable: bool,
    /// Share of new flows, 0 to 1.
    pub share: f64,
}

/// `GET /v1/flows?limit=`: one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowBody {
    /// Instance ID.
    pub instance_id: u32,
    /// Source EID and port; port 0 where ports do not count.
    pub source: SocketAddr,
    /// Destination EID and port.
    pub destination: SocketAddr,
    /// IP protocol, 0 where it does not count.
    pub protocol: u8,
    /// Its locator.
    pub rloc: Option<IpAddr>,
    /// Milliseconds without a packet, to about a second.
    pub idle_ms: u64,
}

/// `GET /v1/load`: one entry. A prefix that was not yet measured for a whole window has none: no data is not zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadBody {
    /// EID-prefix.
    pub eid: String,
    /// Instance ID.
    pub instance_id: u32,
    /// New flows since the counters were made, in front of the split.
    pub flows_total: u64,
    /// Likewise per second over the last window.
    pub flows_per_second: f64,
    /// Packets encapsulated.
    pub packets_total: u64,
    /// Octets of the inner packets.
    pub bytes_total: u64,
    /// When it was measured.
    pub measured_at_unix_ns: u64,
}

/// `GET /v1/applied`: one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedBody {
    /// Nonce of the publication.
    pub nonce: u64,
    /// EID-prefix.
    pub eid: String,
    /// When the data path had it.
    pub applied_at_unix_ns: u64,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusBody {
    /// `tc` or `xdp`.
    pub hook: String,
    /// Why that one.
    pub hook_reason: String,
    /// Own RLOCs.
    pub rlocs: Vec<IpAddr>,
    /// Mappings in the map-cache.
    pub map_cache_entries: usize,
    /// Prefixes that an earlier process left and that are not confirmed yet.
    pub unconfirmed: Vec<String>,
    /// Packets that wait for their EID.
    pub held_packets: usize,
    /// Map-Servers.
    pub map_servers: Vec<MapServerBody>,
    /// Subscriptions.
    pub subscriptions: Vec<SubscriptionBody>,
    /// What probing knows.
    pub locators: Vec<ProbedBody>,
}

/// A Map-Server in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapServerBody {
    /// Its address.
    pub address: IpAddr,
    /// Milliseconds since it confirmed everything; `null` if it has not.
    pub confirmed_ms_ago: Option<u64>,
}

/// A subscription in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionBody {
    /// EID-prefix.
    pub eid: String,
    /// Instance ID.
    pub instance_id: u32,
    /// Whether the Map-Server confirmed it.
    pub active: bool,
    /// Last nonce used or seen.
    pub nonce: u64,
}

/// A probed locator in the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbedBody {
    /// Its address.
    pub rloc: IpAddr,
    /// Whether it is believed to work.
    pub up: bool,
    /// Smoothed round-trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Unanswered probes in a row.
    pub misses: u32,
}
