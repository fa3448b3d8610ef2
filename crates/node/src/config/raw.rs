//! The file as it is written: every key may be left out, and what means something is still text.
//!
//! Programs that write configurations fill in these types and serialise them ([`File::to_toml`]);
//! `docs/reference/config.md` is generated from [`SECTIONS`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Field, Section, Unset, choice, section};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// `[node]`
    pub node: Node,
    /// `[log]`
    pub log: Log,
    /// `[http]`
    pub http: Http,
    /// `[gateway]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// `[mapserver]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapserver: Option<MapServer>,
    /// `[controller]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
    /// `[balancer]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balancer: Option<Balancer>,
}

impl File {
    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("sections hold only what TOML can write")
    }
}

choice! {
    /// Form of the log on standard error.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

choice! {
    /// Where the data path hooks into the kernel.
    Hook {
        /// The best one the interfaces support.
        Auto = "auto",
        /// TC ingress: GSO packets stay whole.
        Tc = "tc",
        /// XDP: for physical NICs with native support.
        Xdp = "xdp",
    }
}

choice! {
    /// What a gateway or a balancer that stops does with its data path.
    OnStop {
        /// Leave it running on the last decision.
        Keep = "keep",
        /// Take it down.
        Detach = "detach",
    }
}

choice! {
    /// Where a driver runs the balancer's XDP program.
    XdpMode {
        /// In the driver, before the kernel makes a packet of the frame.
        Native = "native",
        /// In the stack: slower, on any interface.
        Generic = "generic",
    }
}

choice! {
    /// Authentication algorithm (RFC 9301 §12.5).
    Algorithm {
        /// HMAC-SHA-256-128 with a key derived per message, number 3.
        HmacSha256Hkdf = "hmac-sha-256-128-hkdf",
        /// HMAC-SHA-256-128, number 2.
        HmacSha256 = "hmac-sha-256-128",
    }
}

choice! {
    /// How a Map-Server treats the nonces of Map-Registers.
    NonceCheck {
        /// Each must be greater than the last (RFC 9301 §5.6).
        Strict = "strict",
        /// None may repeat: for ETRs whose nonces are random.
        Compat = "compat",
    }
}

choice! {
    /// Which side of the gateway an interface is.
    InterfaceRole {
        /// Hosts with EIDs are behind it.
        Eid = "eid",
        /// Locators are reached over it.
        Underlay = "underlay",
    }
}

choice! {
    /// Where offered load is read.
    SourceKind {
        /// A Prometheus instant query.
        Prometheus = "prometheus",
        /// The gateway's own `/v1/load`.
        Gateway = "gateway",
    }
}

section! {
    "[node]"
    /// The node itself. One process may run several roles.
    Node {
        /// Required. Name of the node in logs, metrics and pins: letters, digits and `-`, at most 63.
        name: String = String::new(),
        /// Directory for what must survive a restart (nonces, weights).
        state_dir: String = "/var/lib/weir".into(),
    }
}

section! {
    "[log]"
    /// Logs go to standard error.
    Log {
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text,
        /// `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,lisp=debug`.
        level: String = "info".into(),
    }
}

section! {
    "[http]"
    /// The API. `/metrics`, `/healthz` and `/readyz` are open, everything else wants the token.
    Http {
        /// Address and port.
        listen: String = "127.0.0.1:9341".into(),
        /// File with the bearer token (mode 0600, at least 16 characters). Required unless `listen` is a loopback
        /// address; without it the API on loopback is open.
        token_file: Option<String> = None,
    }
}

section! {
    "[gateway]"
    /// An xTR: splits flows over locators (ITR) and takes them out at the other end (ETR).
    Gateway {
        /// Required. Own locators, first of each family is the source of outer headers.
        rlocs: Vec<String> = Vec::new(),
        /// Required. Identity of the xTR, 32 hexadecimal digits, unique in its site.
        xtr_id: String = String::new(),
        /// Site of the xTR.
        site_id: u64 = 0,
        /// Addresses of Map-Resolvers. Required with `eid_space` or `subscribe`.
        map_resolvers: Vec<String> = Vec::new(),
        /// Destinations that LISP handles, `PREFIX` or `[INSTANCE]PREFIX`; all others go to the stack.
        eid_space: Vec<String> = Vec::new(),
        /// EID-prefixes to subscribe to at start (RFC 9437), each inside `eid_space`.
        subscribe: Vec<String> = Vec::new(),
        /// `auto`, `tc` or `xdp`.
        hook: Hook = Hook::Auto,
        /// `keep` or `detach`.
        on_stop: OnStop = OnStop::Keep,
        /// A flow without packets for this long may be placed anew.
        flow_idle: String = "300s".into(),
        /// Offered load is new flows over this long, `100ms` to `60s`: shorter reacts sooner, longer is steadier.
        load_window: String = "500ms".into(),
        /// Packets held per unresolved EID-prefix; 0 drops them.
        hold_packets: u32 = 64,
        /// Time between two probes of a locator (RFC 9301 §7.1).
        rloc_probe_interval: String = "1s".into(),
        /// `[[gateway.map_server]]`
        map_server: Vec<GatewayMapServer> = Vec::new(),
        /// `[gateway.pubsub]`
        pubsub: Option<PubSub> = None,
        /// `[[gateway.interface]]`
        interface: Vec<Interface> = Vec::new(),
        /// `[[gateway.eid]]`
        eid: Vec<GatewayEid> = Vec::new(),
    }
}

section! {
    "[[gateway.map_server]]"
    /// A Map-Server that the gateway's EID-prefixes are registered with.
    GatewayMapServer {
        /// Required. Its address.
        address: String = String::new(),
        /// Number of the shared key.
        key_id: u8 = 0,
        /// `hmac-sha-256-128-hkdf` or `hmac-sha-256-128`.
        algorithm: Algorithm = Algorithm::HmacSha256Hkdf,
        /// Required. File with the shared key (mode 0600).
        key_file: String = String::new(),
        /// Let the Map-Server answer Map-Requests.
        proxy_reply: bool = true,
    }
}

section! {
    "[gateway.pubsub]"
    /// The PubSubKey (RFC 9437 §7.1) that publications are authenticated with. Required with `subscribe`.
    PubSub {
        /// Number of the shared key.
        key_id: u8 = 0,
        /// `hmac-sha-256-128-hkdf` or `hmac-sha-256-128`.
        algorithm: Algorithm = Algorithm::HmacSha256Hkdf,
        /// Required. File with the shared key (mode 0600).
        key_file: String = String::new(),
    }
}

section! {
    "[[gateway.interface]]"
    /// An interface with a program on it.
    Interface {
        /// Required. Name of the interface.
        name: String = String::new(),
        /// `eid` or `underlay`.
        role: InterfaceRole = InterfaceRole::Eid,
        /// Instance of the EIDs behind it (24 bits).
        instance_id: u32 = 0,
    }
}

section! {
    "[[gateway.eid]]"
    /// An EID-prefix behind the gateway: registered, and decapsulated.
    GatewayEid {
        /// Required. The prefix.
        prefix: String = String::new(),
        /// Its instance (24 bits).
        instance_id: u32 = 0,
        /// Required. Interface towards its hosts, one with role `eid`.
        interface: String = String::new(),
        /// Router towards its hosts; on-link if left out.
        next_hop: Option<String> = None,
        /// Priority of the gateway's locators; lower wins, 255 is never used.
        priority: u8 = 1,
        /// Weight among locators of the same priority.
        weight: u8 = 100,
        /// Lifetime of the mapping in the caches of others, whole minutes.
        ttl: String = "1m".into(),
        /// Merge with other gateways' registrations of the prefix (RFC 9301 §5.6, a bit).
        merge: bool = true,
    }
}

section! {
    "[mapserver]"
    /// Map-Server and Map-Resolver: knows who is alive and what the controller wants.
    MapServer {
        /// Required. `ADDRESS` or `ADDRESS:PORT`.
        listen: Vec<String> = Vec::new(),
        /// Map-Requests per second that one address may send for long; the rest is dropped and counted.
        map_request_rate: u32 = 1000,
        /// Map-Requests that one address may send at once.
        map_request_burst: u32 = 1000,
        /// Map-Replies per second to one ITR-RLOC; RFC 9301 §5.4 recommends one in 3 s, too few for a gateway's start.
        map_reply_rate: u32 = 100,
        /// Map-Replies to one ITR-RLOC at once.
        map_reply_burst: u32 = 200,
        /// `[[mapserver.site]]`
        site: Vec<Site> = Vec::new(),
        /// `[[mapserver.subscriber]]`
        subscriber: Vec<Subscriber> = Vec::new(),
    }
}

section! {
    "[[mapserver.site]]"
    /// Who may register what.
    Site {
        /// Required. Name of the site.
        name: String = String::new(),
        /// Registrations that carry another Site-ID are refused; any is taken if left out.
        site_id: Option<u64> = None,
        /// Number of the shared key.
        key_id: u8 = 0,
        /// `hmac-sha-256-128-hkdf` or `hmac-sha-256-128`.
        algorithm: Algorithm = Algorithm::HmacSha256Hkdf,
        /// Required. File with the shared key (mode 0600).
        key_file: String = String::new(),
        /// `strict` or `compat`.
        nonce_check: NonceCheck = NonceCheck::Strict,
        /// Required. EID-prefixes that the site may register.
        eid_prefixes: Vec<SitePrefix> = Vec::new(),
    }
}

section! {
    "[[mapserver.site.eid_prefixes]]"
    /// An EID-prefix of a site, usually written inline.
    SitePrefix {
        /// Required. The prefix.
        prefix: String = String::new(),
        /// Its instance (24 bits).
        instance_id: u32 = 0,
        /// Longer prefixes inside may be registered too.
        more_specifics: bool = true,
    }
}

section! {
    "[[mapserver.subscriber]]"
    /// A gateway that may subscribe (RFC 9437); its name is the gateway name in weights.
    Subscriber {
        /// Required. Name of the gateway.
        name: String = String::new(),
        /// Required. Identity of the xTR, 32 hexadecimal digits.
        xtr_id: String = String::new(),
        /// Site of the xTR.
        site_id: u64 = 0,
        /// Number of the PubSubKey.
        key_id: u8 = 0,
        /// `hmac-sha-256-128-hkdf` or `hmac-sha-256-128`.
        algorithm: Algorithm = Algorithm::HmacSha256Hkdf,
        /// Required. File with the PubSubKey (mode 0600).
        key_file: String = String::new(),
    }
}

section! {
    "[controller]"
    /// Reads offered load, decides, writes weights to the map server.
    Controller {
        /// Time between two decisions, `100ms` to `1h`.
        interval: String = "10s".into(),
        /// `[controller.mapserver]`
        mapserver: ControllerMapServer = ControllerMapServer::default(),
        /// `[[controller.service]]`
        service: Vec<Service> = Vec::new(),
    }
}

section! {
    "[controller.mapserver]"
    /// The map server's API.
    ControllerMapServer {
        /// Base URL.
        url: String = "http://127.0.0.1:9341".into(),
        /// File with the bearer token (mode 0600).
        token_file: Option<String> = None,
    }
}

section! {
    "[[controller.service]]"
    /// A service that several edges offer under one EID.
    Service {
        /// Required. Name of the service.
        name: String = String::new(),
        /// Required. EID-prefix of the service.
        eid: String = String::new(),
        /// Its instance (24 bits).
        instance_id: u32 = 0,
        /// Gateway whose load is split; all gateways if left out.
        gateway: Option<String> = None,
        /// Weights are published when one of them moved by more than this share.
        dead_band: f64 = 0.01,
        /// `[controller.service.source]`
        source: Source = Source::default(),
        /// `[[controller.service.edge]]`
        edge: Vec<Edge> = Vec::new(),
    }
}

section! {
    "[controller.service.source]"
    /// Where the offered load of the service is read.
    Source {
        /// `prometheus` or `gateway`.
        kind: SourceKind = SourceKind::Prometheus,
        /// Required. Base URL.
        url: String = String::new(),
        /// Required for `prometheus`: the query; its result is one number, new flows per second.
        query: Option<String> = None,
        /// File with the bearer token (mode 0600).
        token_file: Option<String> = None,
        /// Samples older than this are stale.
        max_age: String = "5s".into(),
        /// An answer must come within.
        timeout: String = "500ms".into(),
    }
}

section! {
    "[[controller.service.edge]]"
    /// An edge that offers the service; the order in the file is the order of preference.
    Edge {
        /// Required. Name of the edge.
        name: String = String::new(),
        /// Required. Locator of the edge.
        rloc: String = String::new(),
        /// Required. Largest stable load, new flows per second.
        capacity: f64 = 0.0,
    }
}

section! {
    "[balancer]"
    /// A site balancer: sends what arrives for a VIP to one of its backends, by XDP on one port. Its VIPs are the
    /// document that `services` names and that the API changes; they are not in this file.
    Balancer {
        /// Required. Name of the interface that frames come in on, and leave by.
        interface: String = String::new(),
        /// `native` or `generic`.
        mode: XdpMode = XdpMode::Native,
        /// `keep` or `detach`.
        on_stop: OnStop = OnStop::Keep,
        /// Start of the flow hash: the same number on all balancers of a group, best a random one.
        seed: u32 = 0,
        /// Addresses of this node's own tunnel endpoints, for VIPs behind VXLAN or Geneve; at most 4.
        vteps: Vec<String> = Vec::new(),
        /// Flows that are remembered at most; of the older ones, the longest unused goes first.
        flow_entries: u32 = 262_144,
        /// Memory of all tables together in MiB, 1 to 64. A table costs an octet per slot, two if its VIP has more than
        /// 256 backends, and twice that while the VIP drains.
        table_memory_mib: u32 = 64,
        /// File with the VIPs to start with (TOML). What was changed over the API is stored and goes before it.
        services: Option<String> = None,
        /// `[[balancer.source]]`
        source: Vec<BalancerSource> = Vec::new(),
    }
}

section! {
    "[[balancer.source]]"
    /// An address that backends of a segment are asked from for their link-layer address, by ARP or Neighbour Discovery.
    /// Without one of its family, backends in `none` are asked from the port's own address, and backends in a VLAN by an
    /// ARP probe, whose sender is 0.0.0.0 (RFC 5227), or from the port's link-local address. Servers that answer only
    /// senders of their own subnet need it (`arp_ignore = 2`).
    BalancerSource {
        /// Required. Segment of the backends: `none`, `802.1q:VID`, `802.1ad:VID` or `802.1ad:VID.VID`.
        segment: String = String::new(),
        /// Required. Address in the segment that nobody else has; one of each family at most.
        address: String = String::new(),
    }
}

/// Every section in the order of the reference.
pub const SECTIONS: &[Section] = &[
    Node::SECTION,
    Log::SECTION,
    Http::SECTION,
    Gateway::SECTION,
    GatewayMapServer::SECTION,
    PubSub::SECTION,
    Interface::SECTION,
    GatewayEid::SECTION,
    MapServer::SECTION,
    Site::SECTION,
    SitePrefix::SECTION,
    Subscriber::SECTION,
    Controller::SECTION,
    ControllerMapServer::SECTION,
    Service::SECTION,
    Source::SECTION,
    Edge::SECTION,
    Balancer::SECTION,
    BalancerSource::SECTION,
];
