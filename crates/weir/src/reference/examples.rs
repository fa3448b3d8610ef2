//! A file per role, written with the types that read it.

use node::config::raw::{
    Balancer, Controller, ControllerMapServer, Edge, File, Gateway, GatewayEid, GatewayMapServer, Http,
    Interface, InterfaceRole, MapServer, Node, PubSub, Service, Site, SitePrefix, Source, Subscriber,
};
use node::config::services::raw::{Backend, CheckKind, Health, Services, Vip};

const CLIENT_XTR: &str = "0000000000000000000000000a000101";
const SERVICE: &str = "10.100.0.1/32";

/// Title and file.
pub(super) fn examples() -> [(&'static str, File); 5] {
    [
        ("A gateway in front of clients", client_gateway()),
        ("A gateway at an edge", edge_gateway()),
        ("A map server", map_server()),
        ("A controller", controller()),
        ("A balancer", balancer()),
    ]
}

/// What a balancer's file of VIPs holds.
pub(super) fn services() -> Services {
    let backend = |name: &str, address: &str| Backend {
        name: name.into(),
        address: address.into(),
        ..Backend::default()
    };
    let health = Health { kind: CheckKind::Http, path: Some("/healthz".into()), ..Health::default() };
    let vip = Vip {
        name: "web".into(),
        address: "192.0.2.10".into(),
        port: 80,
        health: Some(health),
        backends: vec![backend("web1", "10.0.100.11"), backend("web2", "10.0.100.12")],
        ..Vip::default()
    };
    Services { generation: None, vips: vec![vip] }
}

fn balancer() -> File {
    let balancer = Balancer { interface: "eth0".into(), seed: 2_779_096_485, ..Balancer::default() };
    File { balancer: Some(balancer), ..file("balancer") }
}

fn file(name: &str) -> File {
    let http = Http { token_file: Some("token".into()), ..Http::default() };
    File { node: Node { name: name.into(), ..Node::default() }, http, ..File::default() }
}

fn interfaces() -> Vec<Interface> {
    let interface = |name: &str, role| Interface { name: name.into(), role, ..Interface::default() };
    vec![interface("eth1", InterfaceRole::Eid), interface("eth0", InterfaceRole::Underlay)]
}

fn registering() -> Vec<GatewayMapServer> {
    let key_file = "site.key".into();
    vec![GatewayMapServer { address: "10.0.0.10".into(), key_id: 1, key_file, ..GatewayMapServer::default() }]
}

fn gateway_eid(prefix: &str) -> Vec<GatewayEid> {
    vec![GatewayEid { prefix: prefix.into(), interface: "eth1".into(), ..GatewayEid::default() }]
}

fn client_gateway() -> File {
    let gateway = Gateway {
        rlocs: vec!["10.0.1.1".into()],
        xtr_id: CLIENT_XTR.into(),
        site_id: 1,
        map_resolvers: vec!["10.0.0.10".into()],
        eid_space: vec!["10.100.0.0/16".into()],
        subscribe: vec![SERVICE.into()],
        map_server: registering(),
        pubsub: Some(PubSub { key_id: 2, key_file: "pubsub.key".into(), ..PubSub::default() }),
        interface: interfaces(),
        eid: gateway_eid("10.200.0.0/24"),
        ..Gateway::default()
    };
    File { gateway: Some(gateway), ..file("client-gateway") }
}

fn edge_gateway() -> File {
    let gateway = Gateway {
        rlocs: vec!["10.0.2.1".into()],
        xtr_id: "0000000000000000000000000a000201".into(),
        site_id: 1,
        map_resolvers: vec!["10.0.0.10".into()],
        eid_space: vec!["10.200.0.0/16".into()],
        map_server: registering(),
        interface: interfaces(),
        eid: gateway_eid(SERVICE),
        ..Gateway::default()
    };
    File { gateway: Some(gateway), ..file("edge1-gateway") }
}

fn map_server() -> File {
    let prefix = |prefix: &str| SitePrefix { prefix: prefix.into(), ..SitePrefix::default() };
    let site = Site {
        name: "edges".into(),
        key_id: 1,
        key_file: "site.key".into(),
        eid_prefixes: vec![prefix("10.100.0.0/16"), prefix("10.200.0.0/16")],
        ..Site::default()
    };
    let subscriber = Subscriber {
        name: "client-gateway".into(),
        xtr_id: CLIENT_XTR.into(),
        site_id: 1,
        key_id: 2,
        key_file: "pubsub.key".into(),
        ..Subscriber::default()
    };
    let mapserver = MapServer {
        listen: vec!["10.0.0.10".into()],
        site: vec![site],
        subscriber: vec![subscriber],
        ..MapServer::default()
    };
    File { mapserver: Some(mapserver), ..file("map-server") }
}

fn controller() -> File {
    let edge = |name: &str, rloc: &str, capacity| Edge { name: name.into(), rloc: rloc.into(), capacity };
    let source = Source {
        url: "http://127.0.0.1:9090".into(),
        query: Some(format!("sum(weir_gateway_offered_flows_per_second{{eid=\"{SERVICE}\"}})")),
        ..Source::default()
    };
    let service = Service {
        name: "web".into(),
        eid: SERVICE.into(),
        gateway: Some("client-gateway".into()),
        source,
        edge: vec![
            edge("edge1", "10.0.2.1", 400.0),
            edge("edge2", "10.0.3.1", 800.0),
            edge("edge3", "10.0.4.1", 1600.0),
        ],
        ..Service::default()
    };
    let mapserver =
        ControllerMapServer { url: "http://127.0.0.1:9341".into(), token_file: Some("token".into()) };
    let controller = Controller { mapserver, service: vec![service], ..Controller::default() };
    let mut file = file("controller");
    file.http.listen = "127.0.0.1:9342".into();
    File { controller: Some(controller), ..file }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::config::Config;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn examples_are_right() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["token", "site.key", "pubsub.key"] {
            let path = directory.path().join(name);
            std::fs::write(&path, "0123456789abcdef").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        for (title, file) in examples() {
            let text = file.to_toml();
            let read = Config::parse(&text, directory.path());
            assert!(read.is_ok(), "{title}:\n{text}\n{}", read.unwrap_err());
        }
        node::config::services::parse(&services().to_toml(), None).unwrap();
    }
}
