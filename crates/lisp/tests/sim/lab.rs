//! The paper's topology: a client gateway, three edge gateways, one Map-Server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp::auth::{Algorithm, Key};
use lisp::map_cache::MapCacheConfig;
use lisp::map_server::{
    AllowedPrefix, Command, Limits, LocatorWeight, MapServerConfig, NonceCheck, Site, Subscriber,
};
use lisp::wire::{
    Address, CONTROL_PORT, EidPrefix, InstanceId, MapRequest, Message, SiteId, XtrId, XtrIdentity,
};
use lisp::xtr::{LocalEid, MapServerPeer, ProbingConfig, XtrConfig};

use crate::world::{Datagram, World};

pub(crate) const SERVER: IpAddr = ip(10, 0, 0, 10);
pub(crate) const GATEWAY: IpAddr = ip(10, 0, 1, 1);
pub(crate) const EDGES: [IpAddr; 3] = [ip(10, 0, 2, 1), ip(10, 0, 3, 1), ip(10, 0, 4, 1)];

pub(crate) const fn ip(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn eid_in(instance: u32, prefix: &str) -> EidPrefix {
    EidPrefix { instance_id: InstanceId(instance), prefix: prefix.parse().unwrap() }
}

pub(crate) fn eid(prefix: &str) -> EidPrefix {
    eid_in(0, prefix)
}

pub(crate) fn service() -> EidPrefix {
    eid("10.100.0.1/32")
}

pub(crate) fn key(id: u8, secret: &str) -> Key {
    Key::new(id, Algorithm::HmacSha256Hkdf, secret.as_bytes().to_vec().into()).unwrap()
}

pub(crate) fn identity(n: u8) -> XtrIdentity {
    XtrIdentity { xtr_id: XtrId([n; 16]), site_id: SiteId(u64::from(n)) }
}

pub(crate) fn server_config() -> MapServerConfig {
    let site = |n: u8| Site {
        name: format!("edge{n}"),
        site_id: Some(SiteId(u64::from(n))),
        keys: vec![key(1, &format!("edge-secret-{n}"))],
        nonce_check: NonceCheck::Strict,
        eid_prefixes: vec![
            AllowedPrefix { eid: eid("10.100.0.0/16"), more_specifics: true },
            AllowedPrefix { eid: eid_in(1, "10.0.0.0/24"), more_specifics: false },
            AllowedPrefix { eid: eid_in(2, "10.0.0.0/24"), more_specifics: false },
        ],
    };
    let subscriber = |n: u8| Subscriber {
        name: format!("gateway{n}"),
        identity: identity(n),
        key: key(7, &format!("gateway-secret-{n}")),
    };
    MapServerConfig {
        listen: vec![SERVER],
        sites: (1..=3).map(site).collect(),
        subscribers: (11..=12).map(subscriber).collect(),
        limits: Limits::default(),
    }
}

pub(crate) fn local(eid: EidPrefix) -> LocalEid {
    LocalEid { eid, priority: 1, weight: 100, ttl: 1, merge: true }
}

pub(crate) fn edge_config(n: u8) -> XtrConfig {
    XtrConfig {
        identity: identity(n),
        rlocs: vec![EDGES[usize::from(n) - 1]],
        map_resolvers: vec![SERVER],
        map_servers: vec![MapServerPeer {
            address: SERVER,
            key: key(1, &format!("edge-secret-{n}")),
            proxy_reply: true,
        }],
        eid_space: vec![],
        subscribe: vec![],
        pubsub_key: None,
        local_eids: vec![local(service())],
        probing: ProbingConfig::default(),
        map_cache: MapCacheConfig::default(),
        max_pending: 64,
        unix_seconds: 1_800_000_000,
    }
}

/// A gateway that subscribes to the service.
pub(crate) fn gateway_config(n: u8) -> XtrConfig {
    XtrConfig {
        identity: identity(n),
        rlocs: vec![if n == 11 { GATEWAY } else { ip(10, 0, 1, n) }],
        map_servers: vec![],
        local_eids: vec![],
        eid_space: vec![eid("10.100.0.0/16"), eid_in(1, "10.0.0.0/8"), eid_in(2, "10.0.0.0/8")],
        subscribe: vec![service()],
        pubsub_key: Some(key(7, &format!("gateway-secret-{n}"))),
        ..edge_config(1)
    }
}

/// A gateway that only asks.
pub(crate) fn puller_config() -> XtrConfig {
    XtrConfig { subscribe: vec![], pubsub_key: None, ..gateway_config(11) }
}

/// Everything but the gateway.
pub(crate) fn backbone(seed: u64) -> World {
    let mut world = World::new(seed);
    world.start_server(SERVER, server_config());
    for n in 1..=3 {
        world.start_xtr(EDGES[usize::from(n) - 1], edge_config(n));
    }
    world
}

/// Everything, settled.
pub(crate) fn settled(seed: u64) -> World {
    settled_with(seed, gateway_config(11))
}

/// Everything, settled, with a gateway of another configuration.
pub(crate) fn settled_with(seed: u64, config: XtrConfig) -> World {
    let mut world = backbone(seed);
    world.start_xtr(GATEWAY, config);
    world.run(secs(5));
    world
}

/// Everything, with a gateway that only asks and does not probe; it has not asked yet.
pub(crate) fn puller(seed: u64) -> World {
    let mut world = backbone(seed);
    let mut config = puller_config();
    config.probing.interval = None;
    world.start_xtr(GATEWAY, config);
    world.run(secs(2));
    world
}

pub(crate) fn weights(values: &[(usize, u8, u8)]) -> Command {
    weights_for(None, values)
}

pub(crate) fn weights_for(gateway: Option<XtrIdentity>, values: &[(usize, u8, u8)]) -> Command {
    let locator = |(edge, priority, weight): &(usize, u8, u8)| LocatorWeight {
        rloc: EDGES[*edge - 1],
        priority: *priority,
        weight: *weight,
    };
    Command::SetWeights { eid: service(), gateway, locators: values.iter().map(locator).collect() }
}

/// A Solicit-Map-Request about the service, to the gateway.
pub(crate) fn smr(from: IpAddr) -> Datagram {
    let request = MapRequest {
        smr: true,
        no_map_reply: true,
        source_eid: Address::Ip(service().prefix.address()),
        ..MapRequest::new(1, vec![Address::Ip(from)], service())
    };
    let bytes = Message::MapRequest(request).encode().unwrap();
    let at = |ip| SocketAddr::new(ip, CONTROL_PORT);
    Datagram { from: at(from), to: at(GATEWAY), bytes }
}

/// Priority, weight and usability of every locator that a gateway has for the service.
pub(crate) fn split(world: &World, gateway: IpAddr) -> Vec<(u8, u8, bool)> {
    let table = &world.gateways[&gateway].table;
    let entry = table.get(&service());
    entry.map_or_else(Vec::new, |(locators, _)| {
        locators.iter().map(|l| (l.priority, l.weight, l.usable)).collect()
    })
}

pub(crate) fn weights_of(world: &World, gateway: IpAddr) -> Vec<u8> {
    split(world, gateway).into_iter().map(|(_, weight, _)| weight).collect()
}
