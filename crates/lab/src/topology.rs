//! The topology file: what is written in TOML, checked once, into what the lab builds.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The experiment of the paper, as the file that ships with the program.
pub const PAPER: &str = include_str!("../topologies/paper.toml");

/// Third octets 11 to 250 of 10.0.x.0/24 number the edges' underlay links.
const MAX_EDGES: usize = 240;
/// Client addresses come out of one /24.
const MAX_SOURCES: u8 = 200;
const RESERVED_NAMES: [&str; 5] = ["client", "client-gateway", "core", "control", "line"];

/// A checked topology.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Scenario name, as in the result.
    pub name: String,
    /// The service that every edge runs.
    pub service: Service,
    /// How an edge's quota is found.
    pub calibration: Calibration,
    /// Edges in order of priority.
    pub edges: Vec<Edge>,
    /// Offered load.
    pub load: Load,
    /// Controller and Prometheus.
    pub control: Control,
    /// MTU of the links between gateways.
    pub underlay_mtu: u32,
}

/// One service address, the same on every edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// What serves.
    pub kind: ServiceKind,
    /// The service EID.
    pub address: Ipv4Addr,
    /// TCP port.
    pub port: u16,
    /// Length of the one page.
    pub page_bytes: usize,
    /// KiB that nginx digests per request, so that a request has a cost of its own.
    pub digest_kib: usize,
}

/// What serves the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// Debian's nginx under a CPU quota.
    Nginx,
    /// This program's own server with a fixed service time per request.
    Model,
}

/// Saturation and stable rate of an edge of ratio 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Requests/s at which the edge saturates.
    pub saturation: f64,
    /// C of ratio 1.
    pub stable: f64,
    /// Relative error at which the search stops.
    pub tolerance: f64,
    /// The search takes no longer.
    pub limit: Duration,
}

/// One edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// Name, as in the result.
    pub name: String,
    /// Capacity relative to ratio 1.
    pub capacity_ratio: f64,
    /// Round-trip time from the clients.
    pub rtt: Duration,
}

/// Offered load over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Corners of the piecewise-linear rate: time and requests/s.
    pub points: Vec<(Duration, f64)>,
    /// Number of client addresses.
    pub sources: u8,
    /// A request without an answer after this time is an error.
    pub timeout: Duration,
    /// Several requests per connection.
    pub keepalive: bool,
}

/// Controller settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// Time between two decisions.
    pub interval: Duration,
    /// Where offered load is read.
    pub source: LoadSource,
    /// Prometheus' interval.
    pub scrape_interval: Duration,
    /// Weight changes below this are not published.
    pub dead_band: f64,
}

/// Where the controller reads the offered load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadSource {
    /// A query to Prometheus, which scrapes the gateways.
    Prometheus,
    /// The client gateway's own API.
    Gateway,
}

/// Why a topology file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{path}: {message}")]
    Syntax {
        /// Path of the key.
        path: String,
        /// The parser's words.
        message: String,
    },
    /// Well-formed, but it cannot be built: everything that is wrong, at once.
    #[error("{0}")]
    Invalid(Problems),
}

/// Everything wrong with a file, each with its path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<(String, String)>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (path, message)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{path}: {message}")?;
        }
        Ok(())
    }
}

impl Problems {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push((path.into(), message.into()));
    }

    fn require(&mut self, holds: bool, path: &str, message: impl Into<String>) {
        if !holds {
            self.add(path, message);
        }
    }

    fn duration(&mut self, path: &str, text: &str) -> Duration {
        match humantime::parse_duration(text) {
            Ok(duration) => duration,
            Err(error) => {
                self.add(path, format!("{text:?} is not a duration: {error}"));
                Duration::ZERO
            }
        }
    }
}

impl Topology {
    /// Reads and checks a file; without one, the paper's.
    pub fn load(path: Option<&Path>, quick: bool) -> Result<Self, TopologyError> {
        let Some(path) = path else { return Self::parse(PAPER, quick) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| TopologyError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text, quick)
    }

    /// Checks the text of a topology file. `quick` applies its `[quick]` table.
    pub fn parse(text: &str, quick: bool) -> Result<Self, TopologyError> {
        let document = toml::Deserializer::parse(text)
            .map_err(|error| TopologyError::Syntax { path: "topology".into(), message: error.to_string() })?;
        let file: File =
            serde_path_to_error::deserialize(document).map_err(|error| TopologyError::Syntax {
                path: error.path().to_string(),
                message: error.into_inner().message().to_owned(),
            })?;
        let mut problems = Problems::default();
        let mut topology = file.check(&mut problems);
        if quick {
            file.quick.apply(&mut topology, &mut problems);
        }
        if problems.0.is_empty() { Ok(topology) } else { Err(TopologyError::Invalid(problems)) }
    }

    /// C of one edge in requests/s.
    pub fn capacity(&self, edge: &Edge) -> f64 {
        self.calibration.stable * edge.capacity_ratio
    }
}

impl Load {
    /// Length of the load.
    pub fn duration(&self) -> Duration {
        self.points.last().map_or(Duration::ZERO, |(at, _)| *at)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    service: ServiceTable,
    calibration: CalibrationTable,
    edge: Vec<EdgeTable>,
    load: LoadTable,
    control: ControlTable,
    underlay: UnderlayTable,
    quick: QuickTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceTable {
    kind: ServiceKind,
    address: Ipv4Addr,
    port: u16,
    page_bytes: usize,
    digest_kib: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CalibrationTable {
    saturation: f64,
    stable: f64,
    tolerance: f64,
    limit: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EdgeTable {
    name: String,
    capacity_ratio: f64,
    rtt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadTable {
    points: Vec<PointTable>,
    sources: u8,
    timeout: String,
    keepalive: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointTable {
    at: String,
    rps: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlTable {
    interval: String,
    source: LoadSource,
    scrape_interval: String,
    dead_band: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnderlayTable {
    mtu: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuickTable {
    duration: String,
    interval: String,
    scrape_interval: String,
}

impl File {
    fn check(&self, problems: &mut Problems) -> Topology {
        problems.require(is_name(&self.name), "name", "letters, digits and '-', at most 24");
        let mtu = self.underlay.mtu;
        problems.require(
            (1316..=9000).contains(&mtu),
            "underlay.mtu",
            "1316 (1280 and the outer headers) to 9000",
        );
        Topology {
            name: self.name.clone(),
            service: self.service.check(problems),
            calibration: self.calibration.check(problems),
            edges: check_edges(&self.edge, problems),
            load: self.load.check(problems),
            control: self.control.check(problems),
            underlay_mtu: mtu,
        }
    }
}

impl ServiceTable {
    fn check(&self, problems: &mut Problems) -> Service {
        let usable = self.address.octets()[..2] == [10, 100];
        problems.require(usable, "service.address", "must lie in 10.100.0.0/16, the EID space of services");
        problems.require(self.port > 0, "service.port", "must not be 0");
        let page = self.page_bytes;
        problems.require((1..=1 << 20).contains(&page), "service.page_bytes", "1 to 1048576");
        // 4 characters per KiB must fit one nginx token.
        problems.require(self.digest_kib <= 1000, "service.digest_kib", "at most 1000");
        Service {
            kind: self.kind,
            address: self.address,
            port: self.port,
            page_bytes: page,
            digest_kib: self.digest_kib,
        }
    }
}

impl CalibrationTable {
    fn check(&self, problems: &mut Problems) -> Calibration {
        let limit = problems.duration("calibration.limit", &self.limit);
        problems.require(self.saturation > 0.0, "calibration.saturation", "must be above 0 requests/s");
        let stable = self.stable > 0.0 && self.stable <= self.saturation;
        problems.require(stable, "calibration.stable", "must be above 0 and at most the saturation");
        let tolerance = (0.001..=0.5).contains(&self.tolerance);
        problems.require(tolerance, "calibration.tolerance", "0.001 to 0.5");
        Calibration { saturation: self.saturation, stable: self.stable, tolerance: self.tolerance, limit }
    }
}

fn check_edges(tables: &[EdgeTable], problems: &mut Problems) -> Vec<Edge> {
    let fits = (1..=MAX_EDGES).contains(&tables.len());
    problems.require(fits, "edge", format!("1 to {MAX_EDGES} edges, not {}", tables.len()));
    let mut names = BTreeSet::new();
    let check = |(index, table): (usize, &EdgeTable)| {
        let at = |key: &str| format!("edge[{index}].{key}");
        let name = table.name.as_str();
        problems.require(is_name(name), &at("name"), "letters, digits and '-', at most 24");
        let free = !RESERVED_NAMES.contains(&name) && !name.ends_with("-gateway");
        problems.require(free, &at("name"), format!("{name:?} is the name of another host"));
        problems.require(names.insert(name.to_owned()), &at("name"), format!("{name:?} is there twice"));
        let ratio = table.capacity_ratio;
        problems.require((0.01..=1000.0).contains(&ratio), &at("capacity_ratio"), "0.01 to 1000");
        let rtt = problems.duration(&at("rtt"), &table.rtt);
        problems.require(rtt <= Duration::from_secs(10), &at("rtt"), "at most 10s");
        Edge { name: name.to_owned(), capacity_ratio: ratio, rtt }
    };
    tables.iter().enumerate().map(check).collect()
}

impl LoadTable {
    fn check(&self, problems: &mut Problems) -> Load {
        let mut points: Vec<(Duration, f64)> = Vec::new();
        for (index, point) in self.points.iter().enumerate() {
            let at = problems.duration(&format!("load.points[{index}].at"), &point.at);
            let rate = point.rps >= 0.0 && point.rps <= 1e6;
            problems.require(rate, &format!("load.points[{index}].rps"), "0 to 1000000");
            let later = match points.last() {
                Some((before, _)) => at > *before,
                None => at.is_zero(),
            };
            problems.require(later, &format!("load.points[{index}].at"), "the first is 0s, times rise");
            points.push((at, point.rps));
        }
        problems.require(points.len() >= 2, "load.points", "at least two");
        let sources = (1..=MAX_SOURCES).contains(&self.sources);
        problems.require(sources, "load.sources", format!("1 to {MAX_SOURCES}"));
        let timeout = problems.duration("load.timeout", &self.timeout);
        problems.require(!timeout.is_zero(), "load.timeout", "must be above 0s");
        Load { points, sources: self.sources, timeout, keepalive: self.keepalive }
    }
}

impl ControlTable {
    fn check(&self, problems: &mut Problems) -> Control {
        let control = Control {
            interval: problems.duration("control.interval", &self.interval),
            source: self.source,
            scrape_interval: problems.duration("control.scrape_interval", &self.scrape_interval),
            dead_band: self.dead_band,
        };
        check_intervals(&control, "control", problems);
        problems.require((0.0..1.0).contains(&self.dead_band), "control.dead_band", "0 to below 1");
        control
    }
}

impl QuickTable {
    fn apply(&self, topology: &mut Topology, problems: &mut Problems) {
        let duration = problems.duration("quick.duration", &self.duration);
        let length = topology.load.duration();
        problems.require(duration >= Duration::from_secs(1), "quick.duration", "at least 1s");
        if !length.is_zero() {
            let factor = duration.as_secs_f64() / length.as_secs_f64();
            for (at, _) in &mut topology.load.points {
                *at = at.mul_f64(factor);
            }
        }
        topology.control.interval = problems.duration("quick.interval", &self.interval);
        topology.control.scrape_interval = problems.duration("quick.scrape_interval", &self.scrape_interval);
        check_intervals(&topology.control, "quick", problems);
    }
}

fn check_intervals(control: &Control, table: &str, problems: &mut Problems) {
    let least = Duration::from_millis(100);
    problems.require(control.interval >= least, &format!("{table}.interval"), "at least 100ms");
    let scrape = control.scrape_interval;
    problems.require(
        scrape >= Duration::from_millis(50),
        &format!("{table}.scrape_interval"),
        "at least 50ms",
    );
}

/// Names become parts of namespace, cgroup and file names.
fn is_name(name: &str) -> bool {
    (1..=24).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_is_as_printed() {
        let paper = Topology::parse(PAPER, false).unwrap();
        let capacities: Vec<f64> = paper.edges.iter().map(|edge| paper.capacity(edge)).collect();
        assert_eq!(capacities, [400.0, 800.0, 1600.0]);
        let rtts: Vec<u128> = paper.edges.iter().map(|edge| edge.rtt.as_millis()).collect();
        assert_eq!(rtts, [40, 50, 30]);
        assert_eq!(paper.control.interval, Duration::from_secs(10));
    }

    #[test]
    fn quick_keeps_the_shape_and_two_runs_stay_under_90_s() {
        let paper = Topology::parse(PAPER, false).unwrap();
        let quick = Topology::parse(PAPER, true).unwrap();
        assert!(quick.load.duration() * 2 <= Duration::from_secs(90));
        let rates = |load: &Load| load.points.iter().map(|(_, rps)| *rps).collect::<Vec<_>>();
        assert_eq!(rates(&paper.load), rates(&quick.load));
        assert_eq!(quick.load.points[1].0 * 2, quick.load.duration());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_path() {
        let text = PAPER.replace("sources = 16", "sources = 16\nburst = 3");
        let error = Topology::parse(&text, false).unwrap_err().to_string();
        assert!(error.starts_with("load"), "{error}");
        assert!(error.contains("burst"), "{error}");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = PAPER
            .replace("rtt = \"40ms\"", "rtt = \"40 parsec\"")
            .replace("name = \"edge2\"", "name = \"edge1\"")
            .replace("mtu = 1600", "mtu = 900")
            .replace("capacity_ratio = 4.0", "capacity_ratio = nan");
        let TopologyError::Invalid(Problems(problems)) = Topology::parse(&text, false).unwrap_err() else {
            panic!("not refused as invalid")
        };
        let paths: Vec<&str> = problems.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["underlay.mtu", "edge[0].rtt", "edge[1].name", "edge[2].capacity_ratio"]);
    }
}
