//! A client, its router, a switch with VLANs, a balancer on the trunk and three servers, each in a namespace.
//!
//! ```text
//! client ── router ══ switch ── balancer (trunk, no addresses)
//!          VLANs 100, ║
//!          200, 300   ╠═ s1, s2 (VLAN 200)
//!                     ╚═ s3     (VLAN 300)
//! ```
//! The router sends what is for the VIP into VLAN 100, to the balancer's MAC address. Servers have the VIP on loopback
//! and answer through the router, past the balancer.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use aya::programs::{Program, XdpMode};
use lab::link::{End, offloads_off, veth};
use lab::netns::Netns;
use lab::process::ProcessId;
use lab::state::State;

use crate::switch::{Port, Switch};

/// The service.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// VLAN in which the VIP's frames arrive.
pub(crate) const FRONT: u16 = 100;
/// The balancer's port.
pub(crate) const TRUNK: &str = "trunk";
/// Servers, their VLANs and last octets of their addresses.
pub(crate) const SERVERS: [(&str, u16, u8); 3] = [("s1", 200, 11), ("s2", 200, 12), ("s3", 300, 13)];
/// Addresses of the client.
pub(crate) const CLIENTS: u8 = 16;

const BALANCER_MAC: &str = "02:00:00:00:00:1b";
const MTU: u32 = 1500;
/// Of the router's link to the client: answers of the servers do not fit, and the router says so to the VIP.
pub(crate) const NARROW_MTU: u32 = 1280;

/// Everything the test has on the machine; gone when it is dropped, also after a failure.
pub(crate) struct Network {
    state: State,
    _switch: Switch,
    /// The trunk's end at the switch takes frames that a program sends back only if it has a program itself.
    _trunk: aya::Ebpf,
}

impl Network {
    /// Builds it.
    pub(crate) fn create() -> Self {
        let id = format!("site-{}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&id);
        std::fs::create_dir_all(&directory).unwrap();
        let hosts = ["client", "router", "switch", "balancer", "s1", "s2", "s3"];
        let state = State {
            owner: ProcessId::of(std::process::id()),
            namespaces: hosts.iter().map(|host| format!("weir-{id}-{host}")).collect(),
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
            Netns::create(namespace).unwrap();
        }
        let host = |name: &str| Netns::existing(&format!("weir-{}-{name}", state.id));
        connect_router(&host("client"), &host("router"), &host("switch"));
        connect_balancer(&host("balancer"), &host("switch"));
        for server in SERVERS {
            connect_server(&host(server.0), &host("switch"), server);
        }
        let trunk = host("switch").run(|| Ok(pass_frames("to-balancer"))).unwrap();
        let switch = Switch::start(&host("switch"), ports());
        Self { state, _switch: switch, _trunk: trunk }
    }

    /// The namespace of a host.
    pub(crate) fn host(&self, name: &str) -> Netns {
        Netns::existing(&format!("weir-{}-{name}", self.state.id))
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
        self.host("switch").ip(&["link", "set", &format!("to-{server}"), state]).unwrap();
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

/// Address of a server in its VLAN.
pub(crate) fn server_address(vlan: u16, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, u8::try_from(vlan / 100).unwrap(), 0, last)
}

fn ports() -> Vec<Port> {
    let router = [100, 200, 300].map(|vlan| Port { interface: format!("to-router{vlan}"), vlan: Some(vlan) });
    let servers = SERVERS.map(|(name, vlan, _)| Port { interface: format!("to-{name}"), vlan: Some(vlan) });
    let trunk = Port { interface: "to-balancer".to_owned(), vlan: None };
    router.into_iter().chain(servers).chain([trunk]).collect()
}

/// A link without offloads: a packet socket would see frames without checksums, and longer than the MTU.
fn link(a: (&Netns, &str, Option<&str>), b: (&Netns, &str, Option<&str>)) {
    let [(end_a, name_a), (end_b, name_b)] = [(a.0, a.1), (b.0, b.1)];
    let [a, b] = [a, b].map(|(netns, name, address)| End { netns, name, address });
    veth(a, b, MTU).unwrap();
    offloads_off(end_a, name_a).unwrap();
    offloads_off(end_b, name_b).unwrap();
}

fn connect_router(client: &Netns, router: &Netns, switch: &Netns) {
    link((client, "router", Some("10.4.0.1/24")), (router, "client", Some("10.4.0.254/24")));
    for last in 2..=CLIENTS {
        client.ip(&["address", "add", &format!("10.4.0.{last}/24"), "dev", "router"]).unwrap();
    }
    client.ip(&["route", "add", "default", "via", "10.4.0.254"]).unwrap();
    router.ip(&["link", "set", "client", "mtu", &NARROW_MTU.to_string()]).unwrap();
    router.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")]).unwrap();
    for vlan in [100_u16, 200, 300] {
        let (name, address) = (format!("vlan{vlan}"), format!("10.{}.0.254/24", vlan / 100));
        link((router, &name, Some(&address)), (switch, &format!("to-router{vlan}"), None));
    }
    // The balancer has no address: its MAC address stands for one.
    let neighbour =
        ["neigh", "add", "10.1.0.5", "lladdr", BALANCER_MAC, "dev", "vlan100", "nud", "permanent"];
    router.ip(&neighbour).unwrap();
    router.ip(&["route", "add", &format!("{VIP}/32"), "via", "10.1.0.5", "dev", "vlan100"]).unwrap();
}

fn connect_balancer(balancer: &Netns, switch: &Netns) {
    link((balancer, TRUNK, None), (switch, "to-balancer", None));
    balancer.ip(&["link", "set", TRUNK, "address", BALANCER_MAC]).unwrap();
}

fn connect_server(server: &Netns, switch: &Netns, (name, vlan, last): (&str, u16, u8)) {
    let address = format!("{}/24", server_address(vlan, last));
    link((server, "eth0", Some(&address)), (switch, &format!("to-{name}"), None));
    let settings = [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];
    server.sysctl(&settings).unwrap();
    server.ip(&["address", "add", &format!("{VIP}/32"), "dev", "lo"]).unwrap();
    let router = server_address(vlan, 254).to_string();
    server.ip(&["route", "add", "default", "via", &router]).unwrap();
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
