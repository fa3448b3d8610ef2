//! A running lab: what is built and started, and how it goes away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::api::Api;
use crate::cgroup::{Cgroup, Hierarchy, Quota};
use crate::interrupt;
use crate::netns::Netns;
use crate::network::{CLIENT_RLOC, CONTROL, Delay, Network};
use crate::process::{Process, ProcessId};
use crate::roles::{CONTROLLER_PORT, GATEWAY_PORT, MAPSERVER_PORT, Roles};
use crate::service::{self, PROMETHEUS_PORT};
use crate::state::{DIRECTORY, State};
use crate::topology::{ServiceKind, Topology};

/// Pins of a gateway lie below its node name.
const PINS: &str = "/sys/fs/bpf/weir";
/// So do the settings that it is to put back.
const SETTINGS: &str = "/run/weir";
/// The group of programs that have no quota.
const EVERYTHING_ELSE: &str = "control";
const READY_LIMIT: Duration = Duration::from_secs(20);
const WEIR_LOG_LEVEL: &str = "info";

/// A lab. Dropping it takes it down, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    network: Network,
    delay: Delay,
    state: State,
    directory: PathBuf,
    logs: PathBuf,
    /// One per edge, then that of [`EVERYTHING_ELSE`]; none for services without a quota.
    cgroups: Vec<Cgroup>,
    /// In the order of their start; stopped in reverse.
    processes: Vec<Process>,
    kept: bool,
}

impl Lab {
    /// Builds the network and the cgroups; nothing is served yet. `logs` is where every program writes to.
    pub fn build(id: &str, topology: Topology, logs: &Path) -> Result<Self> {
        if State::path(id).exists() {
            bail!("a lab {id} is there already; `weir lab down` takes it down");
        }
        let network = Network::new(id, &topology);
        let directory = Path::new(DIRECTORY).join(id);
        let hierarchy = match topology.service.kind {
            ServiceKind::Nginx => Some(Hierarchy::find()?),
            ServiceKind::Model => None,
        };
        let edges = topology.edges.iter().map(|edge| edge.name.as_str());
        let groups: Vec<String> =
            edges.chain([EVERYTHING_ELSE]).map(|name| format!("weir-{id}-{name}")).collect();
        let mut lab = Self {
            state: planned(id, &network, &topology, &directory, hierarchy.as_ref(), &groups),
            delay: Delay::DelayLine,
            topology,
            network,
            directory,
            logs: logs.to_owned(),
            cgroups: Vec::new(),
            processes: Vec::new(),
            kept: false,
        };
        lab.state.save()?;
        fs::create_dir_all(&lab.directory)?;
        fs::create_dir_all(&lab.logs).with_context(|| lab.logs.display().to_string())?;
        lab.delay = lab.network.create(&lab.topology)?;
        if let Some(hierarchy) = hierarchy {
            lab.cgroups = groups.iter().map(|group| hierarchy.create(group)).collect::<Result<_>>()?;
            lab.cgroups.iter().try_for_each(Cgroup::favour)?;
            lab.cgroups.last().into_iter().for_each(Cgroup::allow_real_time);
        }
        if lab.delay == Delay::DelayLine {
            lab.start_delay_line()?;
        }
        lab.roles().write_secrets()?;
        Ok(lab)
    }

    /// What it was built from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Its namespaces.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What delays packets between the sites.
    pub fn delay(&self) -> Delay {
        self.delay
    }

    /// Generated files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the programs' output goes.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    fn roles(&self) -> Roles<'_> {
        Roles {
            id: &self.state.id,
            topology: &self.topology,
            network: &self.network,
            directory: &self.directory,
            log_level: WEIR_LOG_LEVEL,
        }
    }

    /// The bearer token of its APIs.
    pub fn token(&self) -> Result<String> {
        self.roles().token()
    }

    /// The service's EID-prefix.
    pub fn service_eid(&self) -> String {
        self.roles().service_eid()
    }

    fn start_delay_line(&mut self) -> Result<()> {
        let mut command = service::own_program()?;
        command.args(["lab", "delay-line"]).args(self.network.line_arguments(&self.topology));
        command.arg(format!("--frame-bytes={}", self.topology.underlay_mtu + 100));
        command.arg("--report").arg(self.logs.join("delay-line.json"));
        // The whole of it runs at a real-time priority, more than the budget of a v1 group.
        self.spawn("delay-line", command, &self.network.line.clone(), Group::None)
    }

    /// Starts a program and writes it down.
    fn spawn(&mut self, name: &str, command: Command, netns: &Netns, group: Group) -> Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        let cgroup = match group {
            Group::None => None,
            Group::Edge(index) => self.cgroups.get(index),
            Group::EverythingElse => self.cgroups.last(),
        };
        let process = Process::spawn(name, command, netns, cgroup, &log)?;
        self.state.processes.push(process.id());
        self.processes.push(process);
        self.state.save()
    }

    /// Stops a program that runs under this name; without one, nothing.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let Some(index) = self.processes.iter().position(|process| process.name() == name) else {
            return Ok(());
        };
        let process = self.processes.remove(index);
        let id = process.id();
        process.stop();
        self.state.processes.retain(|recorded| *recorded != id);
        self.state.save()
    }

    /// Starts a program that ends by itself and waits for that; `tick` hears how long it has run.
    pub fn run_to_end(
        &mut self,
        name: &str,
        command: Command,
        netns: &Netns,
        limit: Duration,
        mut tick: impl FnMut(Duration),
    ) -> Result<()> {
        self.spawn(name, command, netns, Group::EverythingElse)?;
        let started = Instant::now();
        let ended = interrupt::wait(limit, || {
            tick(started.elapsed());
            self.has_ended(name)
        })?;
        self.stop(name)?;
        if !ended {
            bail!("{name} has not ended after {limit:?}");
        }
        Ok(())
    }

    /// Whether this program has ended well, while all others still run.
    fn has_ended(&mut self, name: &str) -> Result<bool> {
        let process = self.processes.iter_mut().find(|process| process.name() == name);
        let status = process.map(Process::try_wait).transpose()?.flatten();
        match status {
            Some(status) if status.success() => Ok(true),
            _ => self.check_processes().map(|()| false),
        }
    }

    /// An error if a program that should run has ended, with the end of its log.
    pub fn check_processes(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.try_wait()? {
                let log =
                    fs::read_to_string(self.logs.join(format!("{}.log", process.name()))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(8)..].join("\n");
                bail!("{} has ended ({status}):\n{tail}", process.name());
            }
        }
        Ok(())
    }

    /// Gives each edge its share of a CPU, in proportion to the ratio; `share` is that of ratio 1.
    pub fn limit_edges(&self, share: f64) -> Result<Vec<Quota>> {
        let quotas = self.topology.edges.iter().map(|edge| Quota::from_share(share * edge.capacity_ratio));
        let quotas: Vec<Quota> = quotas.collect();
        for (cgroup, quota) in self.cgroups.iter().zip(&quotas) {
            cgroup.limit(*quota)?;
        }
        Ok(quotas)
    }

    /// Starts the service at one edge and waits until it answers.
    pub fn start_service(&mut self, index: usize) -> Result<()> {
        let edge = self.topology.edges[index].clone();
        let rate = self.topology.calibration.saturation * edge.capacity_ratio;
        let service_time = Duration::from_secs_f64(1.0 / rate);
        let command =
            service::edge_command(&self.topology.service, &edge.name, &self.directory, service_time)?;
        let host = self.network.edges[index].host.clone();
        self.spawn(&edge.name, command, &host, Group::Edge(index))?;
        let url = format!("http://{}:{}/", self.topology.service.address, self.topology.service.port);
        self.wait_for(&host, &[(edge.name, url)])
    }

    /// Starts the service at every edge.
    pub fn start_services(&mut self) -> Result<()> {
        (0..self.topology.edges.len()).try_for_each(|index| self.start_service(index))
    }

    /// Stops the service everywhere.
    pub fn stop_services(&mut self) -> Result<()> {
        let names: Vec<String> = self.topology.edges.iter().map(|edge| edge.name.clone()).collect();
        names.iter().try_for_each(|name| self.stop(name))
    }

    /// Starts the map server, Prometheus and the gateways, each once the one before says that it is ready.
    pub fn start_overlay(&mut self) -> Result<()> {
        let gateways = service::gateways(&self.network, &self.topology);
        let control = self.network.control.clone();
        let mapserver = weir("mapserver", &self.roles().mapserver()?)?;
        self.spawn("mapserver", mapserver, &control, Group::EverythingElse)?;
        self.wait_for(&control, &[ready("mapserver", CONTROL.to_string(), MAPSERVER_PORT)])?;
        let prometheus = service::prometheus_command(&self.topology, &gateways, &self.directory)?;
        self.spawn("prometheus", prometheus, &control, Group::EverythingElse)?;
        let url = format!("http://{CONTROL}:{PROMETHEUS_PORT}/-/ready");
        self.wait_for(&control, &[("prometheus".into(), url)])?;
        let mut namespaces = vec![self.network.client_gateway.clone()];
        namespaces.extend(self.network.edges.iter().map(|edge| edge.gateway.clone()));
        // One after the other, the subscriber last: the kernel loads programs without a pause, and here all gateways have
        // the processors of one machine.
        for (index, ((name, address), netns)) in gateways.iter().zip(&namespaces).enumerate().rev() {
            let file = match index.checked_sub(1) {
                None => self.roles().client_gateway()?,
                Some(edge) => self.roles().edge_gateway(edge)?,
            };
            self.spawn(name, weir("gateway", &file)?, netns, Group::EverythingElse)?;
            self.wait_for(&control, &[(name.clone(), format!("http://{address}/readyz"))])?;
        }
        Ok(())
    }

    /// Starts the controller and waits until it says it is ready.
    pub fn start_controller(&mut self) -> Result<()> {
        let control = self.network.control.clone();
        let command = weir("controller", &self.roles().controller()?)?;
        self.spawn("controller", command, &control, Group::EverythingElse)?;
        self.wait_for(&control, &[ready("controller", CONTROL.to_string(), CONTROLLER_PORT)])
    }

    /// Waits, in a namespace, until every URL answers 200.
    fn wait_for(&mut self, netns: &Netns, urls: &[(String, String)]) -> Result<()> {
        let token = self.token().unwrap_or_default();
        let netns = netns.clone();
        let mut missing: Vec<_> = urls.to_vec();
        let came = interrupt::wait(READY_LIMIT, || {
            self.check_processes()?;
            missing = netns.run(|| {
                let api = Api::new(&token)?;
                Ok(missing.drain(..).filter(|(_, url)| !api.is_ok(url)).collect())
            })?;
            Ok(missing.is_empty())
        })?;
        if !came {
            let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
            bail!("not ready after {READY_LIMIT:?}: {}; see {}", names.join(", "), self.logs.display());
        }
        Ok(())
    }

    /// Leaves everything running when the lab is dropped; `weir lab down` takes it away.
    pub fn keep(mut self) -> Result<State> {
        self.state.owner = None;
        self.state.save()?;
        self.kept = true;
        Ok(self.state.clone())
    }

    /// Takes it down and says what could not be taken away.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        // The delay line goes last, so that what the programs say at their end still arrives.
        while let Some(process) = self.processes.pop() {
            process.stop();
        }
        self.state.teardown()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.take_down()
        {
            eprintln!("{error:#}");
        }
    }
}

/// Which cgroup a program belongs to.
#[derive(Clone, Copy, Debug)]
enum Group {
    None,
    Edge(usize),
    EverythingElse,
}

/// What the lab will have, to be written down before anything is made.
fn planned(
    id: &str,
    network: &Network,
    topology: &Topology,
    directory: &Path,
    hierarchy: Option<&Hierarchy>,
    groups: &[String],
) -> State {
    let gateways = service::gateways(network, topology);
    State {
        id: id.to_owned(),
        owner: ProcessId::of(std::process::id()),
        namespaces: network.namespaces().map(|netns| netns.name().to_owned()).collect(),
        processes: Vec::new(),
        cgroups: hierarchy
            .into_iter()
            .flat_map(|found| groups.iter().map(|group| found.path(group)))
            .collect(),
        pins: gateways
            .iter()
            .flat_map(|(name, _)| {
                [PINS, SETTINGS].map(|root| Path::new(root).join(format!("lab-{id}-{name}")))
            })
            .collect(),
        directories: vec![directory.to_owned()],
    }
}

/// `weir ROLE --config FILE`.
fn weir(role: &str, file: &Path) -> Result<Command> {
    let mut command = service::own_program()?;
    command.arg(role).arg("--config").arg(file);
    Ok(command)
}

fn ready(name: &str, host: String, port: u16) -> (String, String) {
    (name.to_owned(), format!("http://{host}:{port}/readyz"))
}

/// Base URLs of the APIs, reached from the control namespace.
pub mod url {
    use super::{CLIENT_RLOC, CONTROL, CONTROLLER_PORT, GATEWAY_PORT, MAPSERVER_PORT};

    /// The client gateway.
    pub fn client_gateway(path: &str) -> String {
        format!("http://{CLIENT_RLOC}:{GATEWAY_PORT}{path}")
    }

    /// The map server.
    pub fn mapserver(path: &str) -> String {
        format!("http://{CONTROL}:{MAPSERVER_PORT}{path}")
    }

    /// The controller.
    pub fn controller(path: &str) -> String {
        format!("http://{CONTROL}:{CONTROLLER_PORT}{path}")
    }
}
