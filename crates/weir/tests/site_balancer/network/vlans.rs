//! Segments are VLANs of the switch: router and servers have access ports, the balancer has the trunk.

use super::{BALANCER_MAC, Hosts, TO_BALANCER, become_server, link, route_to_service, server_mac, to};
use crate::site::{Site, tags};
use crate::switch::Port;

/// Connects router and servers; the ports of the switch.
pub(super) fn build(hosts: &Hosts, site: &Site) -> Vec<Port> {
    let switch = hosts.get("switch");
    let mut ports = vec![Port { interface: TO_BALANCER.into(), access: None }];
    for (index, segment) in site.segments().into_iter().enumerate() {
        let (device, port) = (device(index), to(&format!("router{index}")));
        let address = site.family.on_link(site.router(segment));
        link((&hosts.get("router"), &device, Some(&address)), (&switch, &port, None), site.mtu);
        ports.push(Port { interface: port, access: Some(tags(segment)) });
    }
    route_to_service(&hosts.get("router"), site, &device(0), BALANCER_MAC);
    for server in site.servers {
        let (host, port) = (hosts.get(server.name), to(server.name));
        let address = site.family.on_link(site.server(server));
        link((&host, "eth0", Some(&address)), (&switch, &port, None), site.mtu);
        host.ip(&["link", "set", "eth0", "address", &server_mac(server)]).unwrap();
        become_server(&host, site, server.segment);
        ports.push(Port { interface: port, access: Some(tags(server.segment)) });
    }
    ports
}

/// The router's in a segment.
fn device(index: usize) -> String {
    format!("segment{index}")
}
