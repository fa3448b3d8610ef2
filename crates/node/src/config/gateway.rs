//! The `[gateway]` section.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp::wire::{EidPrefix, InstanceId, XtrIdentity};

use super::checks::Checks;
use super::{Hook, InterfaceRole, OnStop, SharedKey, raw, transpose};

/// An xTR.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Own locators, at least one.
    pub rlocs: Vec<IpAddr>,
    /// Who the xTR is.
    pub identity: XtrIdentity,
    /// Map-Resolvers.
    pub map_resolvers: Vec<SocketAddr>,
    /// Destinations that LISP handles.
    pub eid_space: Vec<EidPrefix>,
    /// EID-prefixes to subscribe to, each inside the EID space.
    pub subscribe: Vec<EidPrefix>,
    /// Where the data path hooks in.
    pub hook: Hook,
    /// What becomes of the data path.
    pub on_stop: OnStop,
    /// A flow without packets for this long may be placed anew.
    pub flow_idle: Duration,
    /// Offered load is new flows over this long.
    pub load_window: Duration,
    /// Packets held per unresolved EID-prefix.
    pub hold_packets: usize,
    /// Time between two probes of a locator.
    pub rloc_probe_interval: Duration,
    /// Where EID-prefixes are registered.
    pub map_servers: Vec<MapServerPeer>,
    /// PubSubKey; present if anything is subscribed.
    pub pubsub: Option<SharedKey>,
    /// Interfaces with programs.
    pub interfaces: Vec<Interface>,
    /// EID-prefixes behind the gateway.
    pub eids: Vec<Eid>,
}

/// A Map-Server from the registering side.
#[derive(Clone, Debug)]
pub struct MapServerPeer {
    /// Where it listens.
    pub address: SocketAddr,
    /// The key of our registrations.
    pub key: SharedKey,
    /// Let it answer Map-Requests.
    pub proxy_reply: bool,
}

/// An interface with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name in the kernel.
    pub name: String,
    /// Side of the gateway.
    pub role: InterfaceRole,
    /// Instance of the EIDs behind it.
    pub instance_id: InstanceId,
}

/// An EID-prefix behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eid {
    /// The prefix.
    pub eid: EidPrefix,
    /// Interface towards its hosts.
    pub interface: String,
    /// Router towards its hosts, on-link without.
    pub next_hop: Option<IpAddr>,
    /// Priority of our locators.
    pub priority: u8,
    /// Weight of our locators.
    pub weight: u8,
    /// Lifetime in caches, minutes as in messages.
    pub ttl_minutes: u32,
    /// Merge with others' registrations.
    pub merge: bool,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// Held packets are copies in memory.
const MAX_HOLD: u32 = 4096;

impl Checks {
    pub(super) fn gateway(&mut self, gateway: raw::Gateway) -> Option<Gateway> {
        self.gateway_needs(&gateway);
        let identity = self.identity("gateway", &gateway.xtr_id, gateway.site_id);
        let rlocs = self.each("gateway.rlocs", gateway.rlocs, |c, path, text| c.unicast(path, &text));
        let map_resolvers = self.each("gateway.map_resolvers", gateway.map_resolvers, |c, path, text| {
            c.control_port(path, &text)
        });
        let eid_space =
            self.each("gateway.eid_space", gateway.eid_space, |c, path, text| c.eid_text(path, &text));
        let subscribe =
            self.each("gateway.subscribe", gateway.subscribe, |c, path, text| c.eid_text(path, &text));
        let flow_idle = self.duration("gateway.flow_idle", &gateway.flow_idle, SECOND..=DAY);
        let load_window =
            self.duration("gateway.load_window", &gateway.load_window, MILLISECOND * 100..=SECOND * 60);
        let rloc_probe_interval = self.duration(
            "gateway.rloc_probe_interval",
            &gateway.rloc_probe_interval,
            MILLISECOND * 10..=DAY,
        );
        let hold_packets = self.hold_packets(gateway.hold_packets);
        let map_servers = self.each("gateway.map_server", gateway.map_server, Self::map_server_peer);
        let pubsub = gateway
            .pubsub
            .map(|key| self.shared_key("gateway.pubsub", key.key_id, key.algorithm, &key.key_file));
        let interfaces = self.each("gateway.interface", gateway.interface, Self::interface);
        let eids = self.each("gateway.eid", gateway.eid, Self::gateway_eid);
        self.distinct("gateway.rlocs", "address", &rlocs, |rloc| *rloc);
        if let Some(count) = rlocs.as_ref().map(Vec::len).filter(|count| *count > bpf_abi::OWN_RLOCS) {
            let message = format!("{count} addresses; at most {} are supported", bpf_abi::OWN_RLOCS);
            self.problem("gateway.rlocs", message);
        }
        self.distinct("gateway.map_server", "address", &map_servers, |peer| peer.address);
        self.distinct("gateway.interface", "name", &interfaces, |i| i.name.clone());
        self.distinct("gateway.eid", "prefix", &eids, |eid| eid.eid);
        self.subscribed_inside(eid_space.as_deref(), subscribe.as_deref());
        self.eids_reachable(interfaces.as_deref(), eids.as_deref());
        Some(Gateway {
            rlocs: rlocs?,
            identity: identity?,
            map_resolvers: map_resolvers?,
            eid_space: eid_space?,
            subscribe: subscribe?,
            hook: gateway.hook,
            on_stop: gateway.on_stop,
            flow_idle: flow_idle?,
            load_window: load_window?,
            hold_packets: hold_packets?,
            rloc_probe_interval: rloc_probe_interval?,
            map_servers: map_servers?,
            pubsub: transpose(pubsub)?,
            interfaces: interfaces?,
            eids: eids?,
        })
    }

    fn hold_packets(&mut self, count: u32) -> Option<usize> {
        if count > MAX_HOLD {
            self.problem("gateway.hold_packets", format!("{count} is more than {MAX_HOLD}"));
            return None;
        }
        usize::try_from(count).ok()
    }

    fn map_server_peer(&mut self, path: &str, peer: raw::GatewayMapServer) -> Option<MapServerPeer> {
        let address = self.control_port(&format!("{path}.address"), &peer.address);
        let key = self.shared_key(path, peer.key_id, peer.algorithm, &peer.key_file);
        Some(MapServerPeer { address: address?, key: key?, proxy_reply: peer.proxy_reply })
    }

    fn interface(&mut self, path: &str, interface: raw::Interface) -> Option<Interface> {
        let name = self.interface_name(&format!("{path}.name"), interface.name);
        let instance_id = self.instance(&format!("{path}.instance_id"), interface.instance_id);
        Some(Interface { name: name?, role: interface.role, instance_id: instance_id? })
    }

    fn gateway_eid(&mut self, path: &str, eid: raw::GatewayEid) -> Option<Eid> {
        let prefix = self.eid(path, "prefix", &eid.prefix, eid.instance_id);
        let interface = self.interface_name(&format!("{path}.interface"), eid.interface);
        let next_hop = eid.next_hop.map(|text| self.unicast(&format!("{path}.next_hop"), &text));
        let ttl = self.duration(&format!("{path}.ttl"), &eid.ttl, MINUTE..=DAY * 365);
        let ttl_minutes = ttl.and_then(|ttl| self.whole_minutes(&format!("{path}.ttl"), ttl));
        Some(Eid {
            eid: prefix?,
            interface: interface?,
            next_hop: transpose(next_hop)?,
            priority: eid.priority,
            weight: eid.weight,
            ttl_minutes: ttl_minutes?,
            merge: eid.merge,
        })
    }

    fn whole_minutes(&mut self, path: &str, ttl: Duration) -> Option<u32> {
        if !ttl.as_secs().is_multiple_of(60) || ttl.subsec_nanos() != 0 {
            let text = humantime::format_duration(ttl);
            self.problem(path, format!("{text} is not whole minutes, which is what messages carry"));
            return None;
        }
        u32::try_from(ttl.as_secs() / 60).ok()
    }

    fn subscribed_inside(&mut self, eid_space: Option<&[EidPrefix]>, subscribe: Option<&[EidPrefix]>) {
        let Some(eid_space) = eid_space else { return };
        for (index, subscribed) in subscribe.unwrap_or_default().iter().enumerate() {
            let inside = |space: &EidPrefix| {
                space.instance_id == subscribed.instance_id && space.prefix.covers(&subscribed.prefix)
            };
            if !eid_space.iter().any(inside) {
                let message = format!("{} is outside gateway.eid_space; add it there", subscribed.prefix);
                self.problem(&format!("gateway.subscribe[{index}]"), message);
            }
        }
    }

    fn eids_reachable(&mut self, interfaces: Option<&[Interface]>, eids: Option<&[Eid]>) {
        for (index, eid) in eids.unwrap_or_default().iter().enumerate() {
            let path = format!("gateway.eid[{index}]");
            let known = |i: &Interface| i.name == eid.interface && i.role == InterfaceRole::Eid;
            if interfaces.is_some_and(|interfaces| !interfaces.iter().any(known)) {
                let message = format!("`{}` is not a [[gateway.interface]] with role \"eid\"", eid.interface);
                self.problem(&format!("{path}.interface"), message);
            }
            if eid.next_hop.is_some_and(|hop| hop.is_ipv4() != eid.eid.prefix.address().is_ipv4()) {
                self.problem(&format!("{path}.next_hop"), "is of another address family than the prefix");
            }
        }
    }

    /// What one key asks of another.
    fn gateway_needs(&mut self, gateway: &raw::Gateway) {
        self.some("gateway.rlocs", &gateway.rlocs, "the gateway's own locators, e.g. [\"10.0.1.1\"]");
        if !gateway.eid_space.is_empty() {
            self.some("gateway.map_resolvers", &gateway.map_resolvers, "who resolves gateway.eid_space");
        }
        if !gateway.eid.is_empty() {
            self.some("gateway.map_server", &gateway.map_server, "where [[gateway.eid]] is registered");
        }
        if !gateway.subscribe.is_empty() && gateway.pubsub.is_none() {
            self.problem("gateway.pubsub", "required: the key that publications are authenticated with");
        }
        for role in [InterfaceRole::Eid, InterfaceRole::Underlay] {
            if !gateway.interface.iter().any(|i| i.role == role) {
                let message = format!("required: at least one [[gateway.interface]] with role \"{role}\"");
                self.problem("gateway.interface", message);
                return;
            }
        }
    }
}
