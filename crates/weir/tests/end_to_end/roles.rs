//! Configurations of the roles, and their processes.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use lab::process::Process;
use node::config::raw;

use crate::api::Api;
use crate::network::{CLIENT_RLOC, CONTROL, Network, SERVICE, edge_host, edge_rloc};

/// The EID-prefix that all edges register.
pub(crate) const SERVICE_EID: &str = "10.100.0.1/32";
/// Hosts behind the client gateway.
pub(crate) const CLIENT_EID: &str = "10.200.0.0/24";
/// The client gateway's name in weights.
pub(crate) const CLIENT_GATEWAY: &str = "client-gateway";
/// Time between two probes of a locator: short enough for a test, and so long that no pause of a busy machine looks like
/// a dead edge.
pub(crate) const PROBE_INTERVAL_MS: u64 = 500;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
const PAGE_BYTES: usize = 4096;

/// Writes configurations and starts processes.
pub(crate) struct Roles<'a> {
    network: &'a Network,
    directory: PathBuf,
}

impl<'a> Roles<'a> {
    /// Writes keys and the token of the map server's API.
    pub(crate) fn new(network: &'a Network) -> Self {
        let roles = Self { network, directory: network.directory() };
        for name in ["site.key", "pubsub.key", "token"] {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.create(true).write(true).mode(0o600).open(roles.directory.join(name)).unwrap();
            write!(file, "{name}-for-the-namespaces-of-a-test").unwrap();
        }
        roles
    }

    /// The map server.
    pub(crate) fn start_mapserver(&self) -> Process {
        let site = |name: &str, site_id, prefix: &str| raw::Site {
            name: name.into(),
            site_id: Some(site_id),
            key_file: self.file("site.key"),
            eid_prefixes: vec![raw::SitePrefix { prefix: prefix.into(), ..raw::SitePrefix::default() }],
            ..raw::Site::default()
        };
        let subscriber = raw::Subscriber {
            name: CLIENT_GATEWAY.into(),
            xtr_id: xtr_id(0),
            site_id: 1,
            key_file: self.file("pubsub.key"),
            ..raw::Subscriber::default()
        };
        let mapserver = raw::MapServer {
            listen: vec![CONTROL.to_string()],
            site: vec![site("clients", 1, CLIENT_EID), site("edges", 2, SERVICE_EID)],
            subscriber: vec![subscriber],
            ..raw::MapServer::default()
        };
        let token_file = Some(self.file("token"));
        self.start(
            "mapserver",
            "control",
            raw::File { mapserver: Some(mapserver), ..raw::File::default() },
            token_file,
        )
    }

    /// The gateway in front of the clients. It leaves its data path running when it stops.
    pub(crate) fn start_client_gateway(&self) -> Process {
        let gateway = raw::Gateway {
            site_id: 1,
            subscribe: vec![SERVICE_EID.into()],
            eid_space: vec!["10.100.0.0/16".into()],
            on_stop: raw::OnStop::Keep,
            ..self.gateway(0, CLIENT_RLOC, CLIENT_EID, None)
        };
        self.start_gateway("client-gateway", gateway)
    }

    /// The gateway in front of an edge. It resolves the clients when the first reply needs it.
    pub(crate) fn start_edge_gateway(&self, edge: u8) -> Process {
        let gateway = raw::Gateway {
            site_id: 2,
            eid_space: vec!["10.200.0.0/16".into()],
            on_stop: raw::OnStop::Detach,
            ..self.gateway(edge, edge_rloc(edge), SERVICE_EID, Some(edge_host(edge)))
        };
        self.start_gateway(&format!("edge{edge}-gateway"), gateway)
    }

    /// The service at an edge.
    pub(crate) fn start_nginx(&self, edge: u8) -> Process {
        let name = format!("edge{edge}");
        let root = self.directory.join(format!("nginx-{name}"));
        fs::create_dir_all(root.join("html")).unwrap();
        fs::write(root.join("html/index.html"), "weir ".repeat(PAGE_BYTES / 5)).unwrap();
        let path = root.display();
        let configuration = format!(
            "user root; worker_processes 1; daemon off; pid {path}/pid; error_log stderr error;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000; keepalive_timeout 300s; client_body_temp_path {path}/b;\n\
             proxy_temp_path {path}/p; fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
             server {{ listen {SERVICE}:80 backlog=511; root {path}/html; add_header X-Weir-Edge {name} always; }} }}\n"
        );
        fs::write(root.join("nginx.conf"), configuration).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-c").arg(root.join("nginx.conf"));
        self.spawn(&format!("nginx-{name}"), &name, command)
    }

    /// The API of a role.
    pub(crate) fn api(&self, host: &str) -> Api {
        let token_file = (host == "control").then(|| self.directory.join("token"));
        Api::new(self.network.host(host), token_file)
    }

    /// Starts a program in a host's namespace, its output in `<name>.log`.
    pub(crate) fn spawn(&self, name: &str, host: &str, command: Command) -> Process {
        let log = self.directory.join(format!("{name}.log"));
        Process::spawn(name, command, &self.network.host(host), None, &log).unwrap()
    }

    fn gateway(&self, number: u8, rloc: Ipv4Addr, prefix: &str, next_hop: Option<Ipv4Addr>) -> raw::Gateway {
        let interface = |name: &str, role| raw::Interface { name: name.into(), role, instance_id: 0 };
        let map_server = raw::GatewayMapServer {
            address: CONTROL.to_string(),
            key_file: self.file("site.key"),
            ..raw::GatewayMapServer::default()
        };
        let eid = raw::GatewayEid {
            prefix: prefix.into(),
            interface: "hosts".into(),
            next_hop: next_hop.map(|address| address.to_string()),
            ..raw::GatewayEid::default()
        };
        raw::Gateway {
            rlocs: vec![rloc.to_string()],
            xtr_id: xtr_id(number),
            map_resolvers: vec![CONTROL.to_string()],
            rloc_probe_interval: format!("{PROBE_INTERVAL_MS}ms"),
            map_server: vec![map_server],
            pubsub: Some(raw::PubSub { key_file: self.file("pubsub.key"), ..raw::PubSub::default() }),
            interface: vec![
                interface("hosts", raw::InterfaceRole::Eid),
                interface("core", raw::InterfaceRole::Underlay),
            ],
            eid: vec![eid],
            ..raw::Gateway::default()
        }
    }

    fn start_gateway(&self, host: &str, gateway: raw::Gateway) -> Process {
        self.start("gateway", host, raw::File { gateway: Some(gateway), ..raw::File::default() }, None)
    }

    fn start(&self, role: &str, host: &str, file: raw::File, token_file: Option<String>) -> Process {
        let name = if role == "gateway" { host } else { role };
        let state_dir = self.file(&format!("state-{name}"));
        let file = raw::File {
            node: raw::Node { name: self.network.node_name(host), state_dir },
            log: raw::Log { level: "info,lisp=debug".into(), ..raw::Log::default() },
            http: raw::Http { token_file, ..raw::Http::default() },
            ..file
        };
        let path = self.directory.join(format!("{name}.toml"));
        fs::write(&path, file.to_toml()).unwrap();
        let mut command = Command::new(WEIR);
        command.arg(role).arg("--config").arg(path);
        self.spawn(name, host, command)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

fn xtr_id(number: u8) -> String {
    format!("{:032x}", u16::from(number) + 1)
}
