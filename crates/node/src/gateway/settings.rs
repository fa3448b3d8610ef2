//! From the configuration to what the xTR machine and the data path are made with.

use dataplane::{DataplaneConfig, Eid, Hook, Interface, LocalPrefix, OnStop, Role};
use lisp::map_cache::MapCacheConfig;
use lisp::wire::EidPrefix;
use lisp::xtr::{LocalEid, MapServerPeer, ProbingConfig, XtrConfig};

use crate::config::{self, InterfaceRole};

/// EIDs that the machine may wait for at a time.
const PENDING_MAX: usize = 1024;

/// The machine's configuration.
pub(super) fn xtr(gateway: &config::Gateway, unix_seconds: u64) -> XtrConfig {
    XtrConfig {
        identity: gateway.identity,
        rlocs: gateway.rlocs.clone(),
        map_resolvers: gateway.map_resolvers.iter().map(std::net::SocketAddr::ip).collect(),
        map_servers: gateway.map_servers.iter().map(map_server).collect(),
        eid_space: gateway.eid_space.clone(),
        subscribe: gateway.subscribe.clone(),
        pubsub_key: gateway.pubsub.as_ref().map(config::SharedKey::lisp),
        local_eids: gateway.eids.iter().map(local_eid).collect(),
        probing: ProbingConfig { interval: Some(gateway.rloc_probe_interval), ..ProbingConfig::default() },
        map_cache: MapCacheConfig::default(),
        max_pending: PENDING_MAX,
        unix_seconds,
    }
}

/// The data path's configuration.
pub(super) fn dataplane(node: &str, gateway: &config::Gateway) -> DataplaneConfig {
    DataplaneConfig {
        node: node.to_owned(),
        rlocs: gateway.rlocs.clone(),
        interfaces: gateway.interfaces.iter().map(interface).collect(),
        eid_space: gateway.eid_space.iter().map(eid).collect(),
        local_eids: gateway.eids.iter().map(local_prefix).collect(),
        hook: match gateway.hook {
            config::Hook::Auto => Hook::Auto,
            config::Hook::Tc => Hook::Tc,
            config::Hook::Xdp => Hook::Xdp,
        },
        flow_idle: gateway.flow_idle,
        flow_entries: None,
    }
}

/// What becomes of the data path.
pub(super) const fn on_stop(gateway: &config::Gateway) -> OnStop {
    match gateway.on_stop {
        config::OnStop::Keep => OnStop::Keep,
        config::OnStop::Detach => OnStop::Detach,
    }
}

/// The same prefix in the data path's words.
pub(super) const fn eid(eid: &EidPrefix) -> Eid {
    Eid { instance_id: eid.instance_id.0, prefix: eid.prefix }
}

fn map_server(peer: &config::MapServerPeer) -> MapServerPeer {
    MapServerPeer { address: peer.address.ip(), key: peer.key.lisp(), proxy_reply: peer.proxy_reply }
}

fn local_eid(configured: &config::Eid) -> LocalEid {
    LocalEid {
        eid: configured.eid,
        priority: configured.priority,
        weight: configured.weight,
        ttl: configured.ttl_minutes,
        merge: configured.merge,
    }
}

fn interface(configured: &config::Interface) -> Interface {
    Interface {
        name: configured.name.clone(),
        role: match configured.role {
            InterfaceRole::Eid => Role::Itr,
            InterfaceRole::Underlay => Role::Etr,
        },
        instance_id: configured.instance_id.0,
    }
}

fn local_prefix(configured: &config::Eid) -> LocalPrefix {
    LocalPrefix {
        eid: eid(&configured.eid),
        interface: configured.interface.clone(),
        next_hop: configured.next_hop,
    }
}
