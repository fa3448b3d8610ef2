//! Configuration files of the gateways, the map server and the controller, written from the schema's own types.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use node::config::raw;

use crate::network::{CLIENT_PREFIX, CLIENT_RLOC, CONTROL, INSIDE, Network, SERVICE_PREFIX, UNDERLAY};
use crate::service::PROMETHEUS_PORT;
use crate::topology::{LoadSource, Topology};

/// API port of gateways, on their locator.
pub const GATEWAY_PORT: u16 = 9341;
/// API port of the map server, on the control host.
pub const MAPSERVER_PORT: u16 = 9342;
/// API port of the controller, on the control host.
pub const CONTROLLER_PORT: u16 = 9343;
/// Name of the client gateway for the map server and the controller.
pub const CLIENT_GATEWAY: &str = "client-gateway";

const KEY_FILE: &str = "lisp.key";
const TOKEN_FILE: &str = "token";

/// Writes configurations into one lab's directory.
#[derive(Debug)]
pub struct Roles<'a> {
    /// Identifies the lab in node names, which name pins of the whole machine.
    pub id: &'a str,
    /// What is to run.
    pub topology: &'a Topology,
    /// Where it is to run.
    pub network: &'a Network,
    /// Where files go.
    pub directory: &'a Path,
    /// Weir's log level.
    pub log_level: &'a str,
}

impl Roles<'_> {
    /// Keys and token, fresh for every lab, readable by root only.
    pub fn write_secrets(&self) -> Result<()> {
        for name in [KEY_FILE, TOKEN_FILE] {
            let mut random = [0; 32];
            fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
            let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            let path = self.directory.join(name);
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// The bearer token of every API of this lab.
    pub fn token(&self) -> Result<String> {
        let path = self.directory.join(TOKEN_FILE);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// The gateway in front of the clients: splits the service over the edges.
    pub fn client_gateway(&self) -> Result<PathBuf> {
        let gateway = raw::Gateway {
            subscribe: vec![self.service_eid()],
            load_window: self.load_window(),
            eid_space: vec![SERVICE_PREFIX.into()],
            ..self.gateway(CLIENT_RLOC, 1, CLIENT_PREFIX, None)
        };
        self.write(CLIENT_GATEWAY, &format!("{CLIENT_RLOC}:{GATEWAY_PORT}"), |file| {
            file.gateway = Some(gateway)
        })
    }

    /// A fifth of the controller's interval: what is measured lags by half of it.
    fn load_window(&self) -> String {
        let fifth = self.topology.control.interval / 5;
        format!("{}ms", fifth.as_millis().clamp(100, 1000))
    }

    /// The gateway in front of one edge.
    pub fn edge_gateway(&self, index: usize) -> Result<PathBuf> {
        let edge = &self.network.edges[index];
        let prefix = self.service_eid();
        let gateway = raw::Gateway {
            eid_space: vec![CLIENT_PREFIX.into()],
            ..self.gateway(edge.rloc, index + 2, &prefix, Some(edge.next_hop))
        };
        let name = format!("{}-gateway", self.topology.edges[index].name);
        self.write(&name, &format!("{}:{GATEWAY_PORT}", edge.rloc), |file| file.gateway = Some(gateway))
    }

    /// The map server.
    pub fn mapserver(&self) -> Result<PathBuf> {
        let subscriber = raw::Subscriber {
            name: CLIENT_GATEWAY.into(),
            xtr_id: xtr_id(1),
            site_id: 1,
            key_file: self.file(KEY_FILE),
            ..raw::Subscriber::default()
        };
        let site = |name: &str, site_id: u64, prefix: &str| raw::Site {
            name: name.into(),
            site_id: Some(site_id),
            key_file: self.file(KEY_FILE),
            eid_prefixes: vec![raw::SitePrefix { prefix: prefix.into(), ..raw::SitePrefix::default() }],
            ..raw::Site::default()
        };
        // Every edge registers the service, so they are one site to the map server (RFC 9301 §5.6, merge).
        let mapserver = raw::MapServer {
            listen: vec![CONTROL.to_string()],
            site: vec![site("clients", 1, CLIENT_PREFIX), site("edges", 2, &self.service_eid())],
            subscriber: vec![subscriber],
            ..raw::MapServer::default()
        };
        self.write("mapserver", &format!("{CONTROL}:{MAPSERVER_PORT}"), |file| {
            file.mapserver = Some(mapserver)
        })
    }

    /// The controller.
    pub fn controller(&self) -> Result<PathBuf> {
        let control = &self.topology.control;
        let edges = self.topology.edges.iter().zip(&self.network.edges);
        let edges = edges.map(|(edge, network)| raw::Edge {
            name: edge.name.clone(),
            rloc: network.rloc.to_string(),
            capacity: self.topology.capacity(edge),
        });
        let service = raw::Service {
            name: "page".into(),
            eid: self.service_eid(),
            gateway: Some(CLIENT_GATEWAY.into()),
            dead_band: control.dead_band,
            source: self.load_source(),
            edge: edges.collect(),
            ..raw::Service::default()
        };
        let controller = raw::Controller {
            interval: humantime::format_duration(control.interval).to_string(),
            mapserver: raw::ControllerMapServer {
                url: format!("http://{CONTROL}:{MAPSERVER_PORT}"),
                token_file: Some(self.file(TOKEN_FILE)),
            },
            service: vec![service],
        };
        self.write("controller", &format!("{CONTROL}:{CONTROLLER_PORT}"), |file| {
            file.controller = Some(controller)
        })
    }

    /// EID-prefix of the service.
    pub fn service_eid(&self) -> String {
        format!("{}/32", self.topology.service.address)
    }

    /// Name of a node, unique on the machine.
    pub fn node_name(&self, role: &str) -> String {
        format!("lab-{}-{role}", self.id)
    }

    fn load_source(&self) -> raw::Source {
        let eid = self.service_eid();
        match self.topology.control.source {
            LoadSource::Prometheus => raw::Source {
                kind: raw::SourceKind::Prometheus,
                url: format!("http://{CONTROL}:{PROMETHEUS_PORT}"),
                query: Some(format!(
                    "weir_gateway_offered_flows_per_second{{instance=\"{CLIENT_GATEWAY}\",eid=\"{eid}\"}}"
                )),
                ..raw::Source::default()
            },
            LoadSource::Gateway => raw::Source {
                kind: raw::SourceKind::Gateway,
                url: format!("http://{CLIENT_RLOC}:{GATEWAY_PORT}"),
                token_file: Some(self.file(TOKEN_FILE)),
                ..raw::Source::default()
            },
        }
    }

    fn gateway(
        &self,
        rloc: Ipv4Addr,
        number: usize,
        prefix: &str,
        next_hop: Option<Ipv4Addr>,
    ) -> raw::Gateway {
        let interface = |name: &str, role| raw::Interface { name: name.into(), role, instance_id: 0 };
        let site_id = if number == 1 { 1 } else { 2 };
        raw::Gateway {
            rlocs: vec![rloc.to_string()],
            xtr_id: xtr_id(number),
            site_id,
            map_resolvers: vec![CONTROL.to_string()],
            on_stop: raw::OnStop::Detach,
            map_server: vec![raw::GatewayMapServer {
                address: CONTROL.to_string(),
                key_file: self.file(KEY_FILE),
                ..raw::GatewayMapServer::default()
            }],
            pubsub: Some(raw::PubSub { key_file: self.file(KEY_FILE), ..raw::PubSub::default() }),
            interface: vec![
                interface(INSIDE, raw::InterfaceRole::Eid),
                interface(UNDERLAY, raw::InterfaceRole::Underlay),
            ],
            eid: vec![raw::GatewayEid {
                prefix: prefix.into(),
                interface: INSIDE.into(),
                next_hop: next_hop.map(|address| address.to_string()),
                ..raw::GatewayEid::default()
            }],
            ..raw::Gateway::default()
        }
    }

    fn write(&self, role: &str, listen: &str, fill: impl FnOnce(&mut raw::File)) -> Result<PathBuf> {
        let mut file = raw::File {
            node: raw::Node { name: self.node_name(role), state_dir: self.file(&format!("state-{role}")) },
            log: raw::Log { level: self.log_level.into(), ..raw::Log::default() },
            http: raw::Http { listen: listen.into(), token_file: Some(self.file(TOKEN_FILE)) },
            ..raw::File::default()
        };
        fill(&mut file);
        let path = self.directory.join(format!("{role}.toml"));
        fs::write(&path, file.to_toml()).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

fn xtr_id(number: usize) -> String {
    format!("{number:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::PAPER;

    #[test]
    fn every_generated_file_is_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let topology = Topology::parse(PAPER, true).unwrap();
        let network = Network::new("t", &topology);
        let roles = Roles {
            id: "t",
            topology: &topology,
            network: &network,
            directory: directory.path(),
            log_level: "info",
        };
        roles.write_secrets().unwrap();
        let mut files =
            vec![roles.client_gateway().unwrap(), roles.mapserver().unwrap(), roles.controller().unwrap()];
        files.extend((0..3).map(|index| roles.edge_gateway(index).unwrap()));
        for file in files {
            if let Err(error) = node::config::Config::load(&file) {
                panic!("{error}\n{}", fs::read_to_string(file).unwrap());
            }
        }
    }
}
