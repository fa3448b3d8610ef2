//! `weir balancer` as a user runs it: its files, its process and its API.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use lab::process::Process;
use node::config::{raw, services};
use serde_json::{Value, json};

use crate::api::{Api, wait_for};
use crate::network::{Network, TRUNK, server_mac};
use crate::site::{Server, Site};
use crate::traffic::PORT;

/// Name of the VIP.
pub(crate) const NAME: &str = "web";
const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// The balancer of the site.
pub(crate) struct Agent<'a> {
    network: &'a Network,
    directory: PathBuf,
    /// Its API.
    pub(crate) api: Api,
    process: Option<Process>,
}

impl<'a> Agent<'a> {
    /// Writes its files and starts it.
    pub(crate) fn start(network: &'a Network, weights: &[(&str, u32)]) -> Self {
        let directory = network.directory();
        let token = directory.join("token");
        let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&token).unwrap();
        write!(file, "token-for-the-namespaces-of-a-test").unwrap();
        let api = Api::new(network.host("balancer"), Some(token));
        let mut agent = Self { network, directory, api, process: None };
        fs::write(agent.file("services.toml"), document(&network.site, weights).to_toml()).unwrap();
        fs::write(agent.file("balancer.toml"), agent.configuration().to_toml()).unwrap();
        agent.run();
        agent
    }

    /// Starts the process again, with what it finds in place.
    pub(crate) fn run(&mut self) {
        let mut command = Command::new(WEIR);
        command.arg("balancer").arg("--config").arg(self.file("balancer.toml"));
        let (netns, log) = (self.network.host("balancer"), self.file("balancer.log"));
        self.process = Some(Process::spawn("balancer", command, &netns, None, &log).unwrap());
        self.api.wait_ready();
    }

    /// Ends the process; its data path stays.
    pub(crate) fn end(&mut self, how: fn(Process)) {
        how(self.process.take().unwrap());
    }

    /// Waits until a backend's status says so.
    pub(crate) fn wait_for(&self, backend: &str, what: &str, says: impl Fn(&Value) -> bool) {
        wait_for(&format!("{backend} is {what}"), || says(&self.backend(backend)?).then_some(()));
    }

    /// Waits until every server may be sent to.
    pub(crate) fn wait_usable(&self) {
        for server in self.network.site.servers {
            self.wait_for(server.name, "usable", |status| status["usable"] == true && status["slots"] != 0);
        }
    }

    /// Gives a backend another weight, as an operator does.
    pub(crate) fn set_weight(&self, backend: &str, weight: u32) {
        let path = format!("/v1/vips/{NAME}/backends/{backend}");
        let mut body = self.api.get(&path).unwrap();
        body["weight"] = json!(weight);
        let (status, said) = self.api.put(&path, &body, self.api.token().as_deref());
        assert_eq!(status, 200, "{said}");
    }

    /// Frames by reason.
    pub(crate) fn reasons(&self) -> BTreeMap<String, f64> {
        let metrics = self.api.metrics();
        let prefix = "weir_balancer_packets_total{reason=\"";
        let of = |(key, value): (&String, &f64)| {
            Some((key.strip_prefix(prefix)?.strip_suffix("\"}")?.to_owned(), *value))
        };
        metrics.iter().filter_map(of).collect()
    }

    /// Waits until so many frames are counted for a reason; the agent reads the counters now and then.
    pub(crate) fn wait_counted(&self, reason: &str, least: usize) {
        let counted = || (self.reasons()[reason] >= least as f64).then_some(());
        wait_for(&format!("{least} frames {reason}"), counted);
    }

    /// What `weir explain flow` says about a connection of the client.
    pub(crate) fn explain(&self, source: &str) -> Value {
        let site = &self.network.site;
        let destination = SocketAddr::new(site.vip(), PORT).to_string();
        let mut command = Command::new(WEIR);
        command.args(["explain", "flow", "--source", source, "--destination", &destination]);
        command.args(["--segment", site.front, "-o", "json", "--token-file"]).arg(self.file("token"));
        let output = self.network.host("balancer").run(|| Ok(command.output()?)).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn backend(&self, name: &str) -> Option<Value> {
        let status = self.api.get("/v1/status")?;
        let backends = status["vips"].as_array()?.first()?["backends"].as_array()?;
        backends.iter().find(|backend| backend["name"] == name).cloned()
    }

    fn configuration(&self) -> raw::File {
        let balancer = raw::Balancer {
            interface: TRUNK.into(),
            mode: if self.network.site.is_jumbo() { raw::XdpMode::Generic } else { raw::XdpMode::Native },
            on_stop: raw::OnStop::Keep,
            seed: 0x5eed,
            vteps: self.vteps(),
            services: Some(self.file("services.toml").display().to_string()),
            ..raw::Balancer::default()
        };
        let state_dir = self.file("state").display().to_string();
        raw::File {
            node: raw::Node { name: self.network.node_name().into(), state_dir },
            http: raw::Http {
                token_file: Some(self.file("token").display().to_string()),
                ..raw::Http::default()
            },
            balancer: Some(balancer),
            ..raw::File::default()
        }
    }

    fn vteps(&self) -> Vec<String> {
        let site = &self.network.site;
        if site.has_tunnels() { vec![site.balancer_vtep().to_string()] } else { Vec::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// One VIP in the front segment, its servers in theirs. In VLANs they are resolved and checked by neighbour messages, and
/// the machine has no device for any; behind tunnels they are written down, and checked by their underlay address.
fn document(site: &Site, weights: &[(&str, u32)]) -> services::raw::Services {
    let backend = |server: &Server| {
        let weight = weights.iter().find(|(of, _)| *of == server.name).map_or(100, |(_, weight)| *weight);
        backend(site, server, weight)
    };
    let kind = if site.has_tunnels() { services::raw::CheckKind::Tcp } else { services::raw::CheckKind::Arp };
    let health = services::raw::Health {
        kind,
        interval: "500ms".into(),
        timeout: "400ms".into(),
        ..services::raw::Health::default()
    };
    let vip = services::raw::Vip {
        name: NAME.into(),
        address: site.vip().to_string(),
        port: PORT,
        segment: site.front.into(),
        drain: "1h".into(),
        health: Some(health),
        backends: site.servers.iter().map(backend).collect(),
        ..services::raw::Vip::default()
    };
    services::raw::Services { vips: vec![vip], ..services::raw::Services::default() }
}

fn backend(site: &Site, server: &Server, weight: u32) -> services::raw::Backend {
    let of_vlan = services::raw::Backend {
        name: server.name.into(),
        address: site.server(server).to_string(),
        segment: Some(server.segment.into()),
        weight,
        ..services::raw::Backend::default()
    };
    if !site.has_tunnels() {
        return of_vlan;
    }
    let vtep = site.server_vtep(server).to_string();
    services::raw::Backend {
        address: vtep.clone(),
        mac: Some(server_mac(server)),
        vtep: Some(vtep),
        ..of_vlan
    }
}
