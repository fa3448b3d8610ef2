//! The `[controller]` section.

use std::net::IpAddr;
use std::time::Duration;

use lisp::wire::EidPrefix;

use super::checks::Checks;
use super::{Secret, raw, transpose};
use crate::controller::timestamp_query;

/// Reads offered load, decides, writes weights.
#[derive(Clone, Debug)]
pub struct Controller {
    /// Time between two decisions.
    pub interval: Duration,
    /// Base URL of the map server's API, without a final `/`.
    pub mapserver_url: String,
    /// Its bearer token.
    pub mapserver_token: Option<Secret>,
    /// What is balanced, at least one.
    pub services: Vec<Service>,
}

/// A service that several edges offer under one EID.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name of the service.
    pub name: String,
    /// EID-prefix of the service.
    pub eid: EidPrefix,
    /// Gateway whose load is split; all of them without.
    pub gateway: Option<String>,
    /// Smallest change of a share that is published.
    pub dead_band: f64,
    /// Where its load is read.
    pub source: Source,
    /// Edges in order of preference, at least one.
    pub edges: Vec<Edge>,
}

/// Where the load of a service is read.
#[derive(Clone, Debug)]
pub struct Source {
    /// What is asked.
    pub kind: LoadSource,
    /// Base URL without a final `/`.
    pub url: String,
    /// Bearer token.
    pub token: Option<Secret>,
    /// Older samples are stale.
    pub max_age: Duration,
    /// An answer must come within.
    pub timeout: Duration,
}

/// What is asked for the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadSource {
    /// An instant query to Prometheus.
    Prometheus {
        /// PromQL; one number, new flows per second.
        query: String,
    },
    /// `/v1/load` of a gateway.
    Gateway,
}

/// An edge of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// Name of the edge.
    pub name: String,
    /// Its locator.
    pub rloc: IpAddr,
    /// Largest stable load, new flows per second; positive and finite.
    pub capacity: f64,
}

const HOUR: Duration = Duration::from_secs(3600);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MILLISECOND: Duration = Duration::from_millis(1);

impl Checks {
    pub(super) fn controller(&mut self, controller: raw::Controller) -> Option<Controller> {
        let interval = self.duration("controller.interval", &controller.interval, MIN_INTERVAL..=HOUR);
        let mapserver_url = self.url("controller.mapserver.url", &controller.mapserver.url);
        let mapserver_token =
            controller.mapserver.token_file.map(|file| self.token("controller.mapserver.token_file", &file));
        self.some("controller.service", &controller.service, "at least one [[controller.service]]");
        let services = self.each("controller.service", controller.service, Self::service);
        self.distinct("controller.service", "name", &services, |s| s.name.clone());
        self.distinct("controller.service", "eid and gateway", &services, |s| (s.eid, s.gateway.clone()));
        Some(Controller {
            interval: interval?,
            mapserver_url: mapserver_url?,
            mapserver_token: transpose(mapserver_token)?,
            services: services?,
        })
    }

    fn service(&mut self, path: &str, service: raw::Service) -> Option<Service> {
        let name = self.name(&format!("{path}.name"), service.name);
        let eid = self.eid(path, "eid", &service.eid, service.instance_id);
        let gateway = service.gateway.map(|name| self.name(&format!("{path}.gateway"), name));
        let dead_band = self.share(&format!("{path}.dead_band"), service.dead_band);
        let source = self.source(&format!("{path}.source"), service.source);
        let edges_path = format!("{path}.edge");
        self.some(&edges_path, &service.edge, "at least one [[controller.service.edge]]");
        let edges = self.each(&edges_path, service.edge, Self::edge);
        self.distinct(&edges_path, "name", &edges, |edge| edge.name.clone());
        self.distinct(&edges_path, "rloc", &edges, |edge| edge.rloc);
        Some(Service {
            name: name?,
            eid: eid?,
            gateway: transpose(gateway)?,
            dead_band: dead_band?,
            source: source?,
            edges: edges?,
        })
    }

    fn share(&mut self, path: &str, share: f64) -> Option<f64> {
        if !(0.0..1.0).contains(&share) {
            self.problem(path, format!("{share} is not a share: 0 up to, but not, 1"));
            return None;
        }
        Some(share)
    }

    fn source(&mut self, path: &str, source: raw::Source) -> Option<Source> {
        let url = self.url(&format!("{path}.url"), &source.url);
        let token = source.token_file.map(|file| self.token(&format!("{path}.token_file"), &file));
        let max_age = self.duration(&format!("{path}.max_age"), &source.max_age, MILLISECOND * 10..=HOUR);
        let timeout = self.duration(&format!("{path}.timeout"), &source.timeout, MILLISECOND..=HOUR);
        let kind = self.load_source(&format!("{path}.query"), source.kind, source.query);
        Some(Source {
            kind: kind?,
            url: url?,
            token: transpose(token)?,
            max_age: max_age?,
            timeout: timeout?,
        })
    }

    fn load_source(
        &mut self,
        path: &str,
        kind: raw::SourceKind,
        query: Option<String>,
    ) -> Option<LoadSource> {
        match (kind, query.filter(|query| !query.trim().is_empty())) {
            (raw::SourceKind::Prometheus, Some(query)) => match timestamp_query(&query) {
                Ok(_) => Some(LoadSource::Prometheus { query }),
                Err(unknown) => {
                    self.problem(path, format!("{unknown}; its age cannot be told"));
                    None
                }
            },
            (raw::SourceKind::Prometheus, None) => {
                let example = "sum(weir_gateway_offered_flows_per_second{eid=\"10.100.0.1/32\"})";
                self.problem(path, format!("required with kind = \"prometheus\", e.g. {example}"));
                None
            }
            (raw::SourceKind::Gateway, None) => Some(LoadSource::Gateway),
            (raw::SourceKind::Gateway, Some(_)) => {
                self.problem(path, "has no meaning with kind = \"gateway\"; remove it");
                None
            }
        }
    }

    fn edge(&mut self, path: &str, edge: raw::Edge) -> Option<Edge> {
        let name = self.name(&format!("{path}.name"), edge.name);
        let rloc = self.unicast(&format!("{path}.rloc"), &edge.rloc);
        let positive = edge.capacity.is_finite() && edge.capacity > 0.0;
        if !positive {
            let message = "required: the largest stable load in new flows per second, greater than 0";
            self.problem(&format!("{path}.capacity"), message);
        }
        Some(Edge { name: name?, rloc: rloc?, capacity: positive.then_some(edge.capacity)? })
    }
}
