//! Segments are in tunnels: router and servers have an endpoint and a device per segment, the balancer an endpoint only.
//!
//! ```text
//! router ══ switch ── balancer          one underlay without VLANs, and a second one behind its router
//!           ║
//!           ╠═ s1
//!           ╚═ far ── s2
//! ```

use std::net::IpAddr;

use lab::netns::Netns;

use super::{Hosts, ROOM, TRUNK, become_server, forward, link, route_to_service, server_mac, to};
use crate::site::{Server, Site};
use crate::switch::Port;
use crate::vtep::{Device, Vtep};

/// The underlay's router.
pub(super) const FAR: &str = "far";
/// What frames to the balancer have inside; it does not look at it.
const STAND_IN_MAC: &str = "02:00:00:00:01:1b";
const UNDERLAY: &str = "underlay";

/// Connects router and servers; the ports of the switch, and the endpoints.
pub(super) fn build(hosts: &Hosts, site: &Site) -> (Vec<Port>, Vec<Vtep>) {
    connect_underlay(hosts, site);
    let mut vteps = vec![router(&hosts.get("router"), site)];
    vteps.extend(site.servers.iter().map(|of| server(&hosts.get(of.name), site, of)));
    let near = site.servers.iter().filter(|server| !server.is_far).map(|server| server.name);
    let near = ["balancer", "router", FAR].into_iter().chain(near).map(to);
    (near.map(|interface| Port { interface, access: Some(Vec::new()) }).collect(), vteps)
}

fn connect_underlay(hosts: &Hosts, site: &Site) {
    let (switch, far) = (hosts.get("switch"), hosts.get(FAR));
    let on_link = |address: IpAddr| site.underlay.on_link(address);
    let [near, behind] = site.underlay_router();
    link(
        (&hosts.get("router"), UNDERLAY, Some(&on_link(site.router_vtep()))),
        (&switch, &to("router"), None),
        site.mtu + ROOM,
    );
    link((&far, "near", Some(&on_link(near))), (&switch, &to(FAR), None), site.mtu + ROOM);
    forward(&far);
    let balancer = hosts.get("balancer");
    balancer.ip(&["address", "add", &on_link(site.balancer_vtep()), "dev", TRUNK]).unwrap();
    for host in [&balancer, &hosts.get("router")] {
        host.ip(&["route", "add", &site.far_underlay(), "via", &near.to_string()]).unwrap();
    }
    for server in site.servers {
        let (host, address) = (hosts.get(server.name), on_link(site.server_vtep(server)));
        let here = (&host, UNDERLAY, Some(address.as_str()));
        if server.is_far {
            link(here, (&far, &to(server.name), Some(&on_link(behind))), site.mtu + ROOM);
            host.ip(&["route", "add", &site.near_underlay(), "via", &behind.to_string()]).unwrap();
        } else {
            link(here, (&switch, &to(server.name), None), site.mtu + ROOM);
        }
    }
}

/// A device per segment; what is for the service goes to the balancer's endpoint.
fn router(netns: &Netns, site: &Site) -> Vtep {
    let device = |(index, segment): (usize, &'static str)| {
        let servers = site.servers.iter().filter(|server| server.segment == segment);
        Device {
            name: format!("segment{index}"),
            mac: format!("02:00:00:00:02:{index:02x}"),
            segment,
            flood: servers.map(|server| site.server_vtep(server)).collect(),
            fixed: (index == 0).then(|| (STAND_IN_MAC.to_owned(), site.balancer_vtep())),
        }
    };
    let devices: Vec<Device> = site.segments().into_iter().enumerate().map(device).collect();
    let vtep = Vtep::start(netns, site.router_vtep(), &devices, site.mtu);
    for device in &devices {
        let address = site.family.on_link(site.router(device.segment));
        netns.ip(&["address", "add", &address, "dev", &device.name]).unwrap();
    }
    route_to_service(netns, site, &devices[0].name, STAND_IN_MAC);
    vtep
}

fn server(netns: &Netns, site: &Site, server: &Server) -> Vtep {
    let device = Device {
        name: "segment".into(),
        mac: server_mac(server),
        segment: server.segment,
        flood: vec![site.router_vtep()],
        fixed: None,
    };
    let vtep = Vtep::start(netns, site.server_vtep(server), std::slice::from_ref(&device), site.mtu);
    let address = site.family.on_link(site.server(server));
    netns.ip(&["address", "add", &address, "dev", &device.name]).unwrap();
    become_server(netns, site, server.segment);
    vtep
}
