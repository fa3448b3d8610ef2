//! A client, its router, a switch, a balancer and servers, each in a namespace.
//!
//! ```text
//! client ── router ══ switch ── balancer (one port)
//!     (one link per   ║
//!      segment)       ╠═ s1
//!                     ╚═ s2 ...
//! ```
//! The router sends what is for the service into the front segment, to the balancer. Servers have the service's address
//! on loopback and answer through the router, past the balancer. [`vlans`] and [`tunnels`] say how segments come about.

mod tunnels;
mod vlans;

use std::path::{Path, PathBuf};

use aya::programs::{Program, XdpMode};
use lab::link::{End, offloads_off, veth};
use lab::netns::Netns;
use lab::process::ProcessId;
use lab::state::State;

use crate::site::{CLIENTS, Family, Server, Site};
use crate::switch::Switch;
use crate::vtep::Vtep;

/// The balancer's port.
pub(crate) const TRUNK: &str = "trunk";
/// The balancer's link-layer address.
pub(crate) const BALANCER_MAC: &str = "02:00:00:00:00:1b";
/// The other end of that link.
pub(crate) const TO_BALANCER: &str = "to-balancer";

/// Links that add something to packets have room for two tags, or for tunnels over IPv6.
const ROOM: u32 = 100;
/// Of the router's link to the client: answers of the servers do not fit, and the router says so to the service.
const NARROW_MTU: u32 = 1280;

/// Everything a test has on the machine; gone when it is dropped, also after a failure.
pub(crate) struct Network {
    /// What was built.
    pub(crate) site: Site,
    state: State,
    /// The trunk's end at the switch takes frames that a program sends back only if it has a program itself.
    _trunk: Option<aya::Ebpf>,
    _switch: Switch,
    _vteps: Vec<Vtep>,
}

impl Network {
    /// Builds it.
    pub(crate) fn create(site: Site) -> Self {
        let state = prepare(&site);
        let hosts = Hosts { id: state.id.clone() };
        connect_client(&hosts, &site);
        link(
            (&hosts.get("balancer"), TRUNK, None),
            (&hosts.get("switch"), TO_BALANCER, None),
            site.mtu + ROOM,
        );
        hosts.get("balancer").ip(&["link", "set", TRUNK, "address", BALANCER_MAC]).unwrap();
        let (ports, vteps) = if site.has_tunnels() {
            tunnels::build(&hosts, &site)
        } else {
            (vlans::build(&hosts, &site), vec![])
        };
        let native = !site.is_jumbo();
        let trunk = native.then(|| hosts.get("switch").run(|| Ok(pass_frames(TO_BALANCER))).unwrap());
        let switch = Switch::start(&hosts.get("switch"), ports);
        Self { site, state, _trunk: trunk, _switch: switch, _vteps: vteps }
    }

    /// The namespace of a host.
    pub(crate) fn host(&self, name: &str) -> Netns {
        Hosts { id: self.state.id.clone() }.get(name)
    }

    /// Where configurations and logs are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.state.directories[0].clone()
    }

    /// Name of the balancer's node; pins are named after it, so it is unique on the machine.
    pub(crate) fn node_name(&self) -> &str {
        &self.state.id
    }

    /// Takes a server's link down, or up again.
    pub(crate) fn set_server_link(&self, server: &str, state: &str) {
        self.host("switch").ip(&["link", "set", &to(server), state]).unwrap();
    }
}

impl Drop for Network {
    /// After a failure the directory stays: its logs tell why.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs: {}", self.directory().display());
            self.state.directories.clear();
        }
        if let Err(error) = self.state.teardown() {
            eprintln!("{error:#}");
        }
    }
}

/// Namespaces by the names of their hosts.
struct Hosts {
    id: String,
}

impl Hosts {
    fn get(&self, name: &str) -> Netns {
        Netns::existing(&format!("weir-{}-{name}", self.id))
    }
}

/// Namespaces and a directory, written down first.
fn prepare(site: &Site) -> State {
    let id = format!("{}-{}", site.name, std::process::id());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&id);
    std::fs::create_dir_all(&directory).unwrap();
    let servers = site.servers.iter().map(|server| server.name);
    let hosts = ["client", "router", "switch", "balancer", tunnels::FAR].into_iter().chain(servers);
    let state = State {
        owner: ProcessId::of(std::process::id()),
        namespaces: hosts.map(|host| format!("weir-{id}-{host}")).collect(),
        pins: vec![
            Path::new(dataplane::bpffs::MOUNT_POINT).join("weir").join(&id),
            Path::new("/run/weir").join(&id),
        ],
        directories: vec![directory],
        id,
        ..State::default()
    };
    state.save().unwrap();
    for namespace in &state.namespaces {
        let netns = Netns::create(namespace).unwrap();
        if [site.family, site.underlay].contains(&Family::V6) {
            speak_ipv6(&netns);
        }
    }
    state
}

/// Addresses are there at once: nobody else has them.
fn speak_ipv6(netns: &Netns) {
    for of in ["all", "default"] {
        let key = |name: &str| format!("net/ipv6/conf/{of}/{name}");
        let settings = [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")];
        for (name, value) in settings {
            netns.sysctl(&[(&key(name), value)]).unwrap();
        }
    }
}

/// A link without offloads: a packet socket would see frames without checksums, and longer than the MTU.
fn link(a: (&Netns, &str, Option<&str>), b: (&Netns, &str, Option<&str>), mtu: u32) {
    let [(end_a, name_a), (end_b, name_b)] = [(a.0, a.1), (b.0, b.1)];
    let [a, b] = [a, b].map(|(netns, name, address)| End { netns, name, address });
    veth(a, b, mtu).unwrap();
    offloads_off(end_a, name_a).unwrap();
    offloads_off(end_b, name_b).unwrap();
}

/// A server's link-layer address in its segment.
pub(crate) fn server_mac(server: &Server) -> String {
    format!("02:00:00:00:01:{:02x}", server.host)
}

/// The end at the switch of a host's link.
fn to(host: &str) -> String {
    format!("to-{host}")
}

fn connect_client(hosts: &Hosts, site: &Site) {
    let (client, router) = (hosts.get("client"), hosts.get("router"));
    let [first, gateway] = [site.client(0), site.client_router()].map(|address| site.family.on_link(address));
    link((&client, "router", Some(&first)), (&router, "client", Some(&gateway)), site.mtu);
    for index in 1..CLIENTS {
        let address = site.family.on_link(site.client(index));
        client.ip(&["address", "add", &address, "dev", "router"]).unwrap();
    }
    client.ip(&["route", "add", "default", "via", &site.client_router().to_string()]).unwrap();
    // Neither does it take longer frames, and with jumbo frames it is those of the client that count.
    if !site.is_jumbo() {
        router.ip(&["link", "set", "client", "mtu", &NARROW_MTU.to_string()]).unwrap();
    }
    forward(&router);
}

fn forward(netns: &Netns) {
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ];
    netns.sysctl(&settings).unwrap();
}

/// The way to the service: through a device of the router, to a link-layer address that stands for the balancer.
fn route_to_service(router: &Netns, site: &Site, device: &str, mac: &str) {
    let stand_in = site.stand_in().to_string();
    router.ip(&["neigh", "add", &stand_in, "lladdr", mac, "dev", device, "nud", "permanent"]).unwrap();
    let service = format!("{}/{}", site.vip(), site.family.whole());
    router.ip(&["route", "add", &service, "via", &stand_in, "dev", device]).unwrap();
}

/// The service's address on a server, which does not tell anybody about it, and its way out.
fn become_server(server: &Netns, site: &Site, segment: &str) {
    let settings = [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];
    server.sysctl(&settings).unwrap();
    let service = format!("{}/{}", site.vip(), site.family.whole());
    server.ip(&["address", "add", &service, "dev", "lo"]).unwrap();
    server.ip(&["route", "add", "default", "via", &site.router(segment).to_string()]).unwrap();
}

/// Attaches the program that leaves every frame to the stack.
fn pass_frames(interface: &str) -> aya::Ebpf {
    let mut object = dataplane::object::load_bench().unwrap();
    match dataplane::object::load_program(&mut object, "empty_xdp").unwrap() {
        Program::Xdp(program) => program.attach(interface, XdpMode::Driver).unwrap(),
        _ => unreachable!("empty_xdp is an XDP program"),
    };
    object
}
