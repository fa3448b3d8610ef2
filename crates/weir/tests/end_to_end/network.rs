//! Clients, their gateway, a core, three edges, a control host and a stranger, each in a network namespace.
//!
//! ```text
//! clients ── client-gateway ── core ── edgeN-gateway ── edgeN
//!                             │    │
//!                       control    stranger
//! ```
//! Links of the core carry what a wire would carry: no segment larger than the MTU, every checksum computed.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use lab::link::{End, offloads_off, veth};
use lab::netns::Netns;
use lab::process::ProcessId;
use lab::state::State;

/// Address of the service, the same at every edge.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
/// Map server.
pub(crate) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// Locator of the client gateway.
pub(crate) const CLIENT_RLOC: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// Somebody on the underlay who belongs to nobody.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);
/// Edges are numbered from 1.
pub(crate) const EDGES: [u8; 3] = [1, 2, 3];

const UNDERLAY_MTU: u32 = 1600;
const SOURCES: u8 = 16;

/// Locator of an edge's gateway.
pub(crate) const fn edge_rloc(edge: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 10 + edge, 1)
}

/// Address of an edge's host on the link to its gateway.
pub(crate) const fn edge_host(edge: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 110, edge, 2)
}

/// Addresses of the clients.
pub(crate) fn sources() -> Vec<Ipv4Addr> {
    (1..=SOURCES).map(|host| Ipv4Addr::new(10, 200, 0, host)).collect()
}

/// Interfaces of the core; every packet of the underlay enters it over exactly one of them.
pub(crate) fn core_links() -> Vec<String> {
    let edges = EDGES.iter().map(|edge| format!("edge{edge}"));
    ["clients", "control", "stranger"].map(str::to_owned).into_iter().chain(edges).collect()
}

/// Everything the test has on the machine; gone when it is dropped, also after a failure.
pub(crate) struct Network {
    state: State,
}

impl Network {
    /// Builds it.
    pub(crate) fn create() -> Self {
        let id = format!("e2e-{}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&id);
        std::fs::create_dir_all(&directory).unwrap();
        let hosts = ["clients", "client-gateway", "core", "control", "stranger"].map(str::to_owned);
        let edges = EDGES.iter().flat_map(|edge| [format!("edge{edge}"), format!("edge{edge}-gateway")]);
        let hosts: Vec<String> = hosts.into_iter().chain(edges).collect();
        let pins = hosts.iter().filter(|host| host.ends_with("-gateway"));
        // Pins, and the settings that a gateway which was killed did not put back.
        let roots =
            [Path::new(dataplane::bpffs::MOUNT_POINT).join("weir"), Path::new("/run/weir").to_owned()];
        let pins = pins.flat_map(|host| roots.each_ref().map(|root| root.join(node_name(&id, host))));
        let state = State {
            owner: ProcessId::of(std::process::id()),
            namespaces: hosts.iter().map(|host| format!("weir-{id}-{host}")).collect(),
            pins: pins.collect(),
            directories: vec![directory],
            id,
            ..State::default()
        };
        state.save().unwrap();
        let network = Self { state };
        for namespace in &network.state.namespaces {
            Netns::create(namespace).unwrap();
        }
        network.connect();
        network
    }

    /// The namespace of a host.
    pub(crate) fn host(&self, name: &str) -> Netns {
        Netns::existing(&format!("weir-{}-{name}", self.state.id))
    }

    /// Where configurations, logs and captures are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.state.directories[0].clone()
    }

    /// Name of a role's node; pins are named after it, so it is unique on the machine.
    pub(crate) fn node_name(&self, host: &str) -> String {
        node_name(&self.state.id, host)
    }

    /// Takes an edge's link to the core down, or up again.
    pub(crate) fn set_edge_link(&self, edge: u8, state: &str) {
        self.host("core").ip(&["link", "set", &format!("edge{edge}"), state]).unwrap();
    }

    fn connect(&self) {
        let (clients, gateway) = (self.host("clients"), self.host("client-gateway"));
        let first = format!("{}/24", sources()[0]);
        link((&clients, "gateway", &first), (&gateway, "hosts", "10.200.0.254/24"), 1500);
        for source in &sources()[1..] {
            clients.ip(&["address", "add", &format!("{source}/24"), "dev", "gateway"]).unwrap();
        }
        clients.ip(&["route", "add", "default", "via", "10.200.0.254"]).unwrap();
        self.host("core").sysctl(&[("net/ipv4/ip_forward", "1")]).unwrap();
        self.underlay("client-gateway", "clients", CLIENT_RLOC);
        self.underlay("control", "control", CONTROL);
        self.underlay("stranger", "stranger", STRANGER);
        for edge in EDGES {
            self.underlay(&format!("edge{edge}-gateway"), &format!("edge{edge}"), edge_rloc(edge));
            self.connect_host(edge);
        }
    }

    fn underlay(&self, host: &str, at_core: &str, address: Ipv4Addr) {
        let (netns, core) = (self.host(host), self.host("core"));
        let [a, b, c, _] = address.octets();
        let router = Ipv4Addr::new(a, b, c, 254).to_string();
        let (address, at_router) = (format!("{address}/24"), format!("{router}/24"));
        link((&netns, "core", &address), (&core, at_core, &at_router), UNDERLAY_MTU);
        netns.ip(&["route", "add", "10.0.0.0/16", "via", &router]).unwrap();
        offloads_off(&netns, "core").unwrap();
        offloads_off(&core, at_core).unwrap();
    }

    fn connect_host(&self, edge: u8) {
        let (host, gateway) = (self.host(&format!("edge{edge}")), self.host(&format!("edge{edge}-gateway")));
        let router = Ipv4Addr::new(10, 110, edge, 1).to_string();
        let (address, at_router) = (format!("{}/24", edge_host(edge)), format!("{router}/24"));
        link((&host, "gateway", &address), (&gateway, "hosts", &at_router), 1500);
        host.ip(&["address", "add", &format!("{SERVICE}/32"), "dev", "lo"]).unwrap();
        host.ip(&["route", "add", "default", "via", &router]).unwrap();
    }
}

impl Drop for Network {
    /// After a failure the directory stays: its logs and captures tell why.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and captures: {}", self.directory().display());
            self.state.directories.clear();
        }
        if let Err(error) = self.state.teardown() {
            eprintln!("{error:#}");
        }
    }
}

fn node_name(id: &str, host: &str) -> String {
    format!("{id}-{host}")
}

fn link(a: (&Netns, &str, &str), b: (&Netns, &str, &str), mtu: u32) {
    let [a, b] = [a, b].map(|(netns, name, address)| End { netns, name, address: Some(address) });
    veth(a, b, mtu).unwrap();
}
