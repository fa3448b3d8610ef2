//! The running roles as one thing: weights in, mappings out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lab::process::Process;
use serde_json::{Value, json};

use crate::api::{Api, wait_for};
use crate::network::{EDGES, edge_rloc};
use crate::roles::{CLIENT_GATEWAY, Roles, SERVICE_EID};

/// Priority and weight of an edge.
pub(crate) type Weight = (u8, u8);

const WEIGHTS: &str = "/v1/weights";

/// The roles.
pub(crate) struct Overlay {
    /// API of the map server.
    pub(crate) control: Arc<Api>,
    /// API of the client gateway.
    pub(crate) client: Arc<Api>,
    /// APIs of the edges' gateways.
    pub(crate) edges: Vec<Api>,
    mapserver: Option<Process>,
    client_gateway: Option<Process>,
    others: Vec<Process>,
    /// Publications and applications that earlier processes remembered, in milliseconds.
    remembered_ms: Vec<f64>,
}

/// Everything about the service that a stranger could want to change.
#[derive(Debug, PartialEq)]
pub(crate) struct OverlayState {
    registrations: Vec<Value>,
    weights: Value,
    subscribers: Vec<Value>,
    mapping: Vec<(String, Weight, bool)>,
}

impl Overlay {
    /// Starts all roles and waits until every registration and subscription stands.
    pub(crate) fn start(roles: &Roles<'_>) -> Self {
        let nginx = EDGES.iter().map(|edge| roles.start_nginx(*edge));
        let gateways = EDGES.iter().map(|edge| roles.start_edge_gateway(*edge));
        let others = nginx.chain(gateways).collect();
        let overlay = Self {
            control: Arc::new(roles.api("control")),
            client: Arc::new(roles.api("client-gateway")),
            edges: EDGES.iter().map(|edge| roles.api(&format!("edge{edge}-gateway"))).collect(),
            mapserver: Some(roles.start_mapserver()),
            client_gateway: Some(roles.start_client_gateway()),
            others,
            remembered_ms: Vec::new(),
        };
        overlay.control.wait_ready();
        overlay.client.wait_ready();
        overlay.edges.iter().for_each(Api::wait_ready);
        overlay.wait_registered();
        overlay.wait_subscribed();
        overlay
    }

    /// Sets the weights of the first edges for the client gateway and drains the others; when that was in force, Unix
    /// time in nanoseconds.
    pub(crate) fn set_weights(&self, weights: &[Weight]) -> u64 {
        let locators: Vec<Value> = EDGES.iter().zip(weights).map(|(edge, (priority, weight))| {
            json!({"rloc": edge_rloc(*edge), "priority": priority, "weight": weight})
        }).collect();
        let body =
            json!({"eid": SERVICE_EID, "instance_id": 0, "gateway": CLIENT_GATEWAY, "locators": locators});
        assert_eq!(self.control.put(WEIGHTS, &body, None).0, 401, "weights want the token");
        let last = self.last_publication();
        let (status, answer) = self.control.put(WEIGHTS, &body, self.control.token().as_deref());
        assert_eq!(status, 200, "{answer}");
        wait_for("the publication is in force", || {
            let nonce = self.last_publication().filter(|nonce| Some(*nonce) > last)?;
            self.applied_ns(nonce)
        })
    }

    /// Leaves the weights to the registrations.
    pub(crate) fn clear_weights(&self) {
        let body = json!({"eid": SERVICE_EID, "instance_id": 0, "gateway": CLIENT_GATEWAY});
        let (status, answer) = self.control.delete(WEIGHTS, &body, self.control.token().as_deref());
        assert_eq!(status, 204, "{answer}");
    }

    /// Waits until the client gateway's data path splits new flows so.
    pub(crate) fn wait_for_shares(&self, expected: &[f64; 3]) {
        // Buckets are whole: a share is off by at most one of them.
        let near =
            |(share, expected): (&f64, &f64)| (share - expected).abs() <= 1.0 / bpf_abi::BUCKETS as f64;
        wait_for(&format!("shares {expected:?}; the mapping is {:?}", self.mapping()), || {
            let shares: Vec<f64> = self.locators()?.iter().map(|locator| locator.share).collect();
            (shares.len() == 3 && shares.iter().zip(expected).all(near)).then_some(())
        });
    }

    /// Priorities and weights as the client gateway has them.
    pub(crate) fn weights_at_gateway(&self) -> Vec<Weight> {
        self.mapping().into_iter().map(|(_, weight, _)| weight).collect()
    }

    /// What the map server and the client gateway tell about the service is the same, and is as it should be.
    pub(crate) fn assert_views_agree(&self, weights: &[Weight; 3]) {
        let rloc = |value: &Value| value["rloc"].as_str().unwrap_or_default().to_owned();
        let told = |locators: &Value| -> BTreeSet<(String, u64, u64)> {
            let of = |l: &Value| (rloc(l), l["priority"].as_u64().unwrap(), l["weight"].as_u64().unwrap());
            locators.as_array().unwrap().iter().map(of).collect()
        };
        let expected: BTreeSet<(String, u64, u64)> = EDGES
            .iter()
            .zip(weights)
            .map(|(edge, (p, w))| (edge_rloc(*edge).to_string(), u64::from(*p), u64::from(*w)))
            .collect();
        let set = self.control.weir_get(&["weights"]);
        assert_eq!(told(&entry(&set, SERVICE_EID).unwrap()["locators"]), expected);
        let mappings = self.client.weir_get(&["mappings"]);
        let mapping = entry(&mappings, SERVICE_EID).unwrap();
        assert_eq!(told(&mapping["locators"]), expected, "{mapping}");
        assert_eq!((&mapping["action"], &mapping["origin"]), (&json!("encapsulate"), &json!("subscription")));
        let registrations = self.control.weir_get(&["registrations"]);
        let registered: BTreeSet<String> = registrations
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["eid"] == SERVICE_EID)
            .map(|entry| rloc(&entry["locators"][0]))
            .collect();
        assert_eq!(registered, EDGES.iter().map(|edge| edge_rloc(*edge).to_string()).collect());
    }

    /// Waits until all four gateways are registered.
    pub(crate) fn wait_registered(&self) {
        self.control.wait_ready();
        wait_for("four registrations", || {
            let registrations = self.control.get("/v1/registrations")?;
            (registrations.as_array()?.len() == 4).then_some(())
        });
    }

    /// Waits until the client gateway is told of changes, and nothing of an earlier process is left to confirm.
    pub(crate) fn wait_subscribed(&self) {
        self.client.wait_ready();
        wait_for("the subscription is active", || {
            let status = self.client.get("/v1/status")?;
            let active = status["subscriptions"].as_array()?.iter().all(|s| s["active"] == true);
            (active && status["unconfirmed"] == json!([])).then_some(())
        });
    }

    /// Registrations, weights, subscribers and the mapping in force.
    pub(crate) fn state(&self) -> OverlayState {
        let list = |path: &str, timeless: &[&str]| -> Vec<Value> {
            let mut list = self.control.get(path).unwrap().as_array().unwrap().clone();
            let objects = list.iter_mut().filter_map(Value::as_object_mut);
            objects.for_each(|object| object.retain(|key, _| timeless.contains(&key.as_str())));
            list
        };
        OverlayState {
            registrations: list(
                "/v1/registrations",
                &["eid", "site", "xtr_id", "site_id", "address", "locators", "ttl_minutes"],
            ),
            weights: self.control.get(WEIGHTS).unwrap(),
            subscribers: list("/v1/subscriptions", &["subscriber", "eid", "itr_rlocs"]),
            mapping: self.mapping(),
        }
    }

    /// Ends the map server as a power cut does.
    pub(crate) fn kill_mapserver(mut self) -> Self {
        self.remembered_ms = self.publish_to_applied_ms();
        self.mapserver.take().unwrap().kill();
        self
    }

    /// Starts it again.
    pub(crate) fn restart_mapserver(mut self, roles: &Roles<'_>) -> Self {
        self.mapserver = Some(roles.start_mapserver());
        self
    }

    /// Ends the client gateway, which leaves its data path running either way.
    pub(crate) fn end_client_gateway(mut self, end: fn(Process)) -> Self {
        self.remembered_ms = self.publish_to_applied_ms();
        end(self.client_gateway.take().unwrap());
        self
    }

    /// Starts it again.
    pub(crate) fn restart_client_gateway(mut self, roles: &Roles<'_>) -> Self {
        self.client_gateway = Some(roles.start_client_gateway());
        self
    }

    /// Stops everything.
    pub(crate) fn stop(self) {
        let all = self.client_gateway.into_iter().chain(self.others).chain(self.mapserver);
        all.for_each(Process::stop);
    }

    /// Packets that the client gateway has sent to the service, measured after a moment.
    pub(crate) fn packets_encapsulated(&self, after_ns: u64) -> usize {
        wait_for("a measurement", || {
            let load = self.client.get("/v1/load")?;
            let load = entry(&load, SERVICE_EID)?;
            let fresh = load["measured_at_unix_ns"].as_u64()? > after_ns;
            fresh.then(|| usize::try_from(load["packets_total"].as_u64().unwrap()).unwrap())
        })
    }

    /// From publication to application, of every publication so far that both ends remember.
    pub(crate) fn publish_to_applied_ms(&self) -> Vec<f64> {
        let publications = self.control.get("/v1/publications").unwrap();
        let span = |publication: &Value| {
            let applied = self.applied_ns(publication["nonce"].as_u64()?)?;
            let published = publication["published_at_unix_ns"].as_u64()?;
            Some((applied as f64 - published as f64) / 1e6)
        };
        let now = publications.as_array().unwrap().iter().filter_map(span);
        self.remembered_ms.iter().copied().chain(now).collect()
    }

    /// Notes every set of weights that the client gateway has from now on.
    pub(crate) fn watch_weights(&self) -> Watch {
        let (client, stop) = (Arc::clone(&self.client), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopping.load(Ordering::Relaxed) {
                let locators = locators(&client).unwrap_or_default();
                seen.insert(locators.iter().map(|locator| locator.weight).collect());
                thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        Watch { stop, thread }
    }

    fn last_publication(&self) -> Option<u64> {
        let publications = self.control.get("/v1/publications")?;
        let ours = |publication: &&Value| publication["eid"] == SERVICE_EID;
        publications.as_array()?.iter().rev().find(ours)?["nonce"].as_u64()
    }

    fn applied_ns(&self, nonce: u64) -> Option<u64> {
        let applied = self.client.get("/v1/applied")?;
        applied.as_array()?.iter().find(|applied| applied["nonce"] == nonce)?["applied_at_unix_ns"].as_u64()
    }

    fn mapping(&self) -> Vec<(String, Weight, bool)> {
        let locators = self.locators().unwrap_or_default();
        locators.into_iter().map(|locator| (edge_of(&locator.rloc), locator.weight, locator.usable)).collect()
    }

    fn locators(&self) -> Option<Vec<Locator>> {
        locators(&self.client)
    }
}

/// What was seen meanwhile.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<Vec<Weight>>>,
}

impl Watch {
    /// Every set of weights that was seen.
    pub(crate) fn stop(self) -> BTreeSet<Vec<Weight>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A locator of the service at the client gateway.
#[derive(Debug)]
struct Locator {
    rloc: String,
    weight: Weight,
    usable: bool,
    share: f64,
}

/// The service's locators, in the order of edges.
fn locators(client: &Api) -> Option<Vec<Locator>> {
    let mappings = client.get("/v1/mappings")?;
    let number = |value: &Value| value.as_u64().and_then(|n| u8::try_from(n).ok());
    let locator = |value: &Value| {
        Some(Locator {
            rloc: value["rloc"].as_str()?.to_owned(),
            weight: (number(&value["priority"])?, number(&value["weight"])?),
            usable: value["usable"].as_bool()?,
            share: value["share"].as_f64()?,
        })
    };
    let mut locators: Vec<Locator> =
        entry(&mappings, SERVICE_EID)?["locators"].as_array()?.iter().map(locator).collect::<Option<_>>()?;
    locators.sort_by_key(|locator| locator.rloc.parse::<IpAddr>().ok());
    Some(locators)
}

/// Name of the edge behind a locator.
pub(crate) fn edge_of(rloc: &str) -> String {
    let edge = EDGES.iter().find(|edge| edge_rloc(**edge).to_string() == rloc);
    edge.map_or_else(|| rloc.to_owned(), |edge| format!("edge{edge}"))
}

fn entry<'a>(list: &'a Value, eid: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry["eid"] == eid)
}
