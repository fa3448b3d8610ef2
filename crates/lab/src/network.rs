//! Namespaces, links, addresses and routes of a topology.
//!
//! ```text
//! client ── client-gateway ── core ══ delay ══ edgeN-gateway ── edgeN
//!                              │
//!                           control
//! ```
//! The core knows locators only: a packet to an EID that nobody encapsulates is lost there, not routed.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::link::{self, End};
use crate::netns::Netns;
use crate::topology::{Edge, Topology};

/// Addresses of clients.
pub const CLIENT_PREFIX: &str = "10.200.0.0/16";
/// Addresses of services.
pub const SERVICE_PREFIX: &str = "10.100.0.0/16";
/// Map server, controller and Prometheus.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// Locator of the client gateway.
pub const CLIENT_RLOC: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

/// Interface towards the core, on every gateway and on the control host.
pub const UNDERLAY: &str = "core";
/// Interface towards the hosts, on every gateway.
pub const INSIDE: &str = "hosts";
const UPLINK: &str = "gateway";
/// Links that carry no outer header.
const INSIDE_MTU: u32 = 1500;

/// Namespaces of one lab. Having one of these does not mean that they exist.
#[derive(Clone, Debug)]
pub struct Network {
    /// Clients.
    pub client: Netns,
    /// The xTR in front of the clients.
    pub client_gateway: Netns,
    /// Routes between locators.
    pub core: Netns,
    /// Map server, controller, Prometheus.
    pub control: Netns,
    /// Both ends of the delay, where the kernel has no netem.
    pub line: Netns,
    /// Per edge.
    pub edges: Vec<EdgeNetwork>,
}

/// Namespaces of one edge.
#[derive(Clone, Debug)]
pub struct EdgeNetwork {
    /// Runs the service.
    pub host: Netns,
    /// The xTR in front of it.
    pub gateway: Netns,
    /// Locator of that xTR.
    pub rloc: Ipv4Addr,
    /// Address of the host on the link to its gateway.
    pub next_hop: Ipv4Addr,
    number: u8,
}

/// How links get their delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// The kernel's queueing discipline.
    Netem,
    /// [`crate::delay_line`].
    DelayLine,
}

impl Delay {
    /// As in the result.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netem => "netem",
            Self::DelayLine => "delay-line",
        }
    }
}

impl Network {
    /// Names for a lab.
    pub fn new(id: &str, topology: &Topology) -> Self {
        let netns = |name: &str| Netns::existing(&format!("weir-{id}-{name}"));
        let edge = |(number, edge): (u8, &Edge)| EdgeNetwork {
            host: netns(&edge.name),
            gateway: netns(&format!("{}-gateway", edge.name)),
            rloc: Ipv4Addr::new(10, 0, 10 + number, 1),
            next_hop: Ipv4Addr::new(10, 110, number, 2),
            number,
        };
        Self {
            client: netns("client"),
            client_gateway: netns("client-gateway"),
            core: netns("core"),
            control: netns("control"),
            line: netns("line"),
            edges: (1..).zip(&topology.edges).map(edge).collect(),
        }
    }

    /// Every namespace.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let edges = self.edges.iter().flat_map(|edge| [&edge.host, &edge.gateway]);
        [&self.client, &self.client_gateway, &self.core, &self.control, &self.line].into_iter().chain(edges)
    }

    /// Builds everything but the delay line's process, which is a program to be started on [`Self::line_arguments`].
    pub fn create(&self, topology: &Topology) -> Result<Delay> {
        for netns in self.namespaces() {
            Netns::create(netns.name())?;
            netns.sysctl(&[
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv4/ip_local_port_range", "1024 65535"),
                ("net/ipv4/tcp_tw_reuse", "1"),
                ("net/core/somaxconn", "4096"),
                ("net/ipv4/tcp_max_syn_backlog", "8192"),
            ])?;
        }
        let delay = self.delay();
        self.connect_clients(topology)?;
        self.connect_control(topology)?;
        for (edge, settings) in self.edges.iter().zip(&topology.edges) {
            self.connect_edge(edge, settings, topology, delay).with_context(|| settings.name.clone())?;
        }
        Ok(delay)
    }

    fn delay(&self) -> Delay {
        let probe = ["-n", self.line.name(), "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"];
        if link::command("tc", &probe).is_ok() { Delay::Netem } else { Delay::DelayLine }
    }

    fn connect_clients(&self, topology: &Topology) -> Result<()> {
        let address = format!("{}/16", client_sources(topology.load.sources)[0]);
        link::veth(
            End { netns: &self.client, name: UPLINK, address: Some(&address) },
            End { netns: &self.client_gateway, name: INSIDE, address: Some("10.200.255.254/16") },
            INSIDE_MTU,
        )?;
        for source in &client_sources(topology.load.sources)[1..] {
            self.client.ip(&["address", "add", &format!("{source}/16"), "dev", UPLINK])?;
        }
        self.client.ip(&["route", "add", "default", "via", "10.200.255.254"])?;
        link::veth(
            End { netns: &self.core, name: "clients", address: Some("10.0.1.254/24") },
            End { netns: &self.client_gateway, name: UNDERLAY, address: Some(&format!("{CLIENT_RLOC}/24")) },
            topology.underlay_mtu,
        )?;
        self.client_gateway.ip(&["route", "add", "10.0.0.0/16", "via", "10.0.1.254"])?;
        forward(&self.client_gateway)?;
        forward(&self.core)
    }

    fn connect_control(&self, topology: &Topology) -> Result<()> {
        link::veth(
            End { netns: &self.core, name: "control", address: Some("10.0.0.254/24") },
            End { netns: &self.control, name: UNDERLAY, address: Some(&format!("{CONTROL}/24")) },
            topology.underlay_mtu,
        )?;
        self.control.ip(&["route", "add", "10.0.0.0/16", "via", "10.0.0.254"])
    }

    fn connect_edge(
        &self,
        edge: &EdgeNetwork,
        settings: &Edge,
        topology: &Topology,
        delay: Delay,
    ) -> Result<()> {
        let (at_core, rloc) = (edge.core_address(), format!("{}/24", edge.rloc));
        let core_name = edge.core_interface();
        let core = End { netns: &self.core, name: &core_name, address: Some(&at_core) };
        let gateway = End { netns: &edge.gateway, name: UNDERLAY, address: Some(&rloc) };
        match delay {
            Delay::Netem => {
                link::veth(core, gateway, topology.underlay_mtu)?;
                let half = format!("{}us", (settings.rtt / 2).as_micros());
                for end in [core, gateway] {
                    let to = ["-n", end.netns.name(), "qdisc", "add", "dev", end.name, "root", "netem"];
                    link::command("tc", &[&to[..], &["limit", "65536", "delay", &half]].concat())?;
                }
            }
            Delay::DelayLine => {
                for (end, name) in [(core, edge.line_ends().0), (gateway, edge.line_ends().1)] {
                    link::veth(
                        end,
                        End { netns: &self.line, name: &name, address: None },
                        topology.underlay_mtu,
                    )?;
                    link::offloads_off(end.netns, end.name)?;
                    link::offloads_off(&self.line, &name)?;
                }
            }
        }
        let via_core = Ipv4Addr::new(10, 0, 10 + edge.number, 254).to_string();
        edge.gateway.ip(&["route", "add", "10.0.0.0/16", "via", &via_core])?;
        forward(&edge.gateway)?;
        self.connect_host(edge, topology)
    }

    fn connect_host(&self, edge: &EdgeNetwork, topology: &Topology) -> Result<()> {
        let (gateway, host) = (Ipv4Addr::new(10, 110, edge.number, 1), edge.next_hop.to_string());
        link::veth(
            End { netns: &edge.host, name: UPLINK, address: Some(&format!("{host}/24")) },
            End { netns: &edge.gateway, name: INSIDE, address: Some(&format!("{gateway}/24")) },
            INSIDE_MTU,
        )?;
        let service = format!("{}/32", topology.service.address);
        edge.host.ip(&["address", "add", &service, "dev", "lo"])?;
        edge.host.ip(&["route", "add", "default", "via", &gateway.to_string()])?;
        edge.gateway.ip(&["route", "add", &service, "via", &host])
    }

    /// Plain routing of clients to the first edge, for measuring without an overlay.
    pub fn route_plainly(&self, topology: &Topology) -> Result<()> {
        let service = format!("{}/32", topology.service.address);
        let edge = &self.edges[0];
        self.client_gateway.ip(&["route", "add", &service, "via", "10.0.1.254"])?;
        self.core.ip(&["route", "add", &service, "via", &edge.rloc.to_string()])?;
        self.core.ip(&["route", "add", CLIENT_PREFIX, "via", &CLIENT_RLOC.to_string()])?;
        let via_core = Ipv4Addr::new(10, 0, 10 + edge.number, 254).to_string();
        edge.gateway.ip(&["route", "add", CLIENT_PREFIX, "via", &via_core])
    }

    /// `--line` arguments of the delay line: the ends and half the round-trip time.
    pub fn line_arguments(&self, topology: &Topology) -> Vec<String> {
        let argument = |(edge, settings): (&EdgeNetwork, &Edge)| {
            let (core, gateway) = edge.line_ends();
            format!("--line={core},{gateway},{}", (settings.rtt / 2).as_micros())
        };
        self.edges.iter().zip(&topology.edges).map(argument).collect()
    }
}

impl EdgeNetwork {
    fn core_interface(&self) -> String {
        format!("edge{}", self.number)
    }

    fn core_address(&self) -> String {
        format!("10.0.{}.254/24", 10 + self.number)
    }

    fn line_ends(&self) -> (String, String) {
        (format!("core{}", self.number), format!("edge{}", self.number))
    }
}

/// Addresses that requests come from.
pub fn client_sources(count: u8) -> Vec<Ipv4Addr> {
    (1..=count).map(|host| Ipv4Addr::new(10, 200, 0, host)).collect()
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl(&[("net/ipv4/ip_forward", "1")])
}
