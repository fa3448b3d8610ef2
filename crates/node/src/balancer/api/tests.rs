use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use codec::Instant;
use dataplane::DataplaneError;
use dataplane::balancer::{Applied, FilteredVlans, Followed, Verdict, Vip, VipCounters, VipId};
use dataplane::netlink::Link;
use futures_util::future::BoxFuture;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::*;
use crate::balancer::core::{BackendKey, Core, Health};
use crate::balancer::datapath::{Datapath, SlotCounts};
use crate::balancer::metrics::Metrics;
use crate::balancer::shell::{Event, Parts, Settings, Sources};
use crate::clock::Clock;
use crate::config;
use crate::role::{Readiness, RoleError};
use crate::signal::{Trigger, shutdown};
use crate::store::{KeyValue as _, Store, WriteBehind};

const TOKEN: &str = "0123456789abcdef";

/// A kernel that takes everything, and what it was told last.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Vec<Vip>>>);

impl Datapath for Kernel {
    fn apply(&mut self, _: Instant, desired: &[Vip]) -> Result<Applied, DataplaneError> {
        *self.0.lock().unwrap() = desired.to_vec();
        Ok(Applied::default())
    }

    fn follow(&mut self, link: Option<&Link>) -> Result<Followed, DataplaneError> {
        Ok(if link.is_some() { Followed::Attached } else { Followed::Away })
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _: Instant) -> Result<(), DataplaneError> {
        Ok(())
    }

    fn counters(&self) -> Result<Vec<VipCounters>, DataplaneError> {
        Ok(Vec::new())
    }

    fn reasons(&self) -> Result<Vec<(bpf_abi::BalancerReason, u64)>, DataplaneError> {
        Ok(Vec::new())
    }

    fn memory(&self) -> Vec<(VipId, u64)> {
        self.0.lock().unwrap().iter().map(|vip| (vip.id, 2048)).collect()
    }

    fn filtered(&self) -> Vec<FilteredVlans> {
        let feature = "rx-vlan-filter";
        vec![FilteredVlans { interface: "eth0".into(), feature, vlans: vec![100], device: "vlan" }]
    }

    fn draining(&self) -> BTreeSet<VipId> {
        BTreeSet::new()
    }

    fn slots(&self) -> SlotCounts {
        SlotCounts::new()
    }

    fn explain(&self, flow: &FlowQuery, packet: PacketKind) -> Result<Explanation, DataplaneError> {
        let vips = self.0.lock().unwrap();
        let vip = vips.iter().find(|vip| vip.id.address == flow.destination);
        let choice = SlotChoice { size: 1021, slot: 7, index: Some(3), name: Some("a".into()), usable: true };
        Ok(Explanation {
            vip: vip.map(|vip| vip.id),
            hash: Some(42),
            current: vip.map(|_| choice),
            previous: None,
            remembered: None,
            verdict: if vip.is_some() { Verdict::Forwarded } else { Verdict::PassNoVip },
            backend: vip.map(|_| "a".into()),
            because: format!("{packet} of port {}", flow.source_port),
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, Result<(), DataplaneError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Says this once, and then nothing.
struct Told(VecDeque<Event>);

impl Sources for Told {
    fn watch(&mut self, _: &Core) {}

    fn look_at_port(&mut self) {}

    async fn next(&mut self) -> Result<Event, RoleError> {
        match self.0.pop_front() {
            Some(event) => Ok(event),
            None => std::future::pending().await,
        }
    }
}

fn key() -> BackendKey {
    BackendKey { vip: "web".into(), backend: "a".into() }
}

fn works() -> Event {
    Event::Health { key: key(), health: Health::Up, said: "connected".into() }
}

struct Node {
    base: String,
    kernel: Kernel,
    readiness: Readiness,
    directory: tempfile::TempDir,
    trigger: Trigger,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

const START: &str = r#"
[[vips]]
name = "web"
address = "192.0.2.10"
port = 80
[vips.health]
[[vips.backends]]
name = "a"
address = "10.0.0.1"
mac = "02:00:00:00:00:01"
"#;

impl Node {
    async fn start() -> Self {
        Self::told([works()]).await
    }

    /// A node whose sources say this.
    async fn told(events: impl IntoIterator<Item = Event>) -> Self {
        let told = Told(events.into_iter().collect());
        let directory = tempfile::tempdir().unwrap();
        let table = Store::open(directory.path()).unwrap().table("balancer").unwrap();
        let desired = Desired::new(services::parse(START, None).unwrap());
        let (clock, kernel, readiness) = (Clock::start(), Kernel::default(), Readiness::default());
        let mut registry = crate::metrics::registry("a");
        let shared = Arc::default();
        let metrics = Metrics::register(&mut registry, Arc::clone(&shared));
        let shell = Shell::new(Parts {
            source: "file",
            datapath: Box::new(kernel.clone()),
            core: Core::new(clock.now(), desired.list(), |_, _| None),
            slots: SlotCounts::new(),
            desired,
            store: WriteBehind::start(table).unwrap(),
            settings: Settings { interface: "eth0".into(), mode: "native", vteps: Vec::new() },
            clock,
            shared,
            metrics,
            condition: readiness.condition("balancer", "starting"),
        });
        let (trigger, shutdown) = shutdown();
        let (sender, jobs) = mpsc::channel(8);
        let http =
            config::Http { listen: "127.0.0.1:0".parse().unwrap(), token: Some(config::Secret::new(TOKEN)) };
        let server = crate::http::Server::bind(http, &mut registry).await.unwrap();
        let base = format!("http://{}", server.local_addr().unwrap());
        let serving = server.serve(router(sender), registry, readiness.clone(), shutdown.clone());
        let loops = shell.serve(told, jobs, shutdown);
        let tasks = vec![tokio::spawn(serving), tokio::spawn(async { loops.await.unwrap() })];
        Self { base, kernel, readiness, directory, trigger, tasks }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask_for(method, path, body, None).await
    }

    async fn ask_for(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        if_match: Option<&str>,
    ) -> Answer {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = http.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(tag) = if_match {
            request = request.header("If-Match", tag);
        }
        let response = request.send().await.unwrap();
        let tag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        let status = response.status();
        let text = response.text().await.unwrap();
        Answer { status, tag, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    async fn stop(self) -> tempfile::TempDir {
        self.trigger.request();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.directory
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    tag: Option<String>,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    fn fields(&self) -> Vec<&str> {
        let problems = self.body["problems"].as_array().unwrap();
        problems.iter().map(|problem| problem["field"].as_str().unwrap()).collect()
    }
}

fn vip(port: u16) -> Value {
    json!({
        "name": "dns", "address": "192.0.2.53", "port": port, "protocol": "udp",
        "backends": [{"name": "b", "address": "10.0.0.2", "mac": "02:00:00:00:00:02"}],
    })
}

#[tokio::test]
async fn a_vip_is_made_changed_and_removed() {
    let node = Node::start().await;
    let made = node.ask(Method::POST, "/v1/vips", Some(vip(53))).await.is(201);
    assert_eq!((made.tag.as_deref(), made.body["generation"].as_u64()), (Some("\"2\""), Some(2)));
    assert_eq!(made.body["drain"], "60s");
    assert_eq!(node.kernel.0.lock().unwrap()[0].id.to_string(), "192.0.2.53:53/udp");
    let got = node.get("/v1/vips/dns").await.is(200);
    assert_eq!(got.body, made.body);
    // What was got can be put as it is.
    node.ask(Method::PUT, "/v1/vips/dns", Some(got.body)).await.is(200);
    let changed = node.ask(Method::PUT, "/v1/vips/dns", Some(vip(54))).await.is(200);
    assert_eq!(changed.tag.as_deref(), Some("\"3\""));
    let list = node.get("/v1/vips").await.is(200);
    assert_eq!(list.tag.as_deref(), Some("\"3\""));
    assert_eq!(list.body["vips"].as_array().unwrap().len(), 2);
    node.ask(Method::DELETE, "/v1/vips/dns", None).await.is(204);
    node.get("/v1/vips/dns").await.is(404);
    assert_eq!(node.kernel.0.lock().unwrap().len(), 1);
    let directory = node.stop().await;
    let saved = Store::open(directory.path()).unwrap().table("balancer").unwrap().load().unwrap();
    let stored = crate::balancer::saved::read(&saved, &[]).unwrap().unwrap();
    assert_eq!((stored.generation(), stored.vips().len()), (4, 1));
}

#[tokio::test]
async fn backends_are_drained_one_by_one() {
    let node = Node::start().await;
    let path = "/v1/vips/web/backends";
    let body = json!({"name": "b", "address": "10.0.0.2", "mac": "02:00:00:00:00:02"});
    node.ask(Method::POST, path, Some(body.clone())).await.is(201);
    node.ask(Method::POST, path, Some(body)).await.is(409);
    let drain = json!({"address": "10.0.0.2", "mac": "02:00:00:00:00:02", "weight": 0});
    let put = node.ask(Method::PUT, &format!("{path}/b"), Some(drain)).await.is(200);
    assert_eq!((put.body["name"].as_str(), put.body["weight"].as_u64()), (Some("b"), Some(0)));
    assert_eq!(node.get(path).await.is(200).body.as_array().unwrap().len(), 2);
    node.get(&format!("{path}/b")).await.is(200);
    node.ask(Method::DELETE, &format!("{path}/b"), None).await.is(204);
    node.get(&format!("{path}/b")).await.is(404);
    node.stop().await;
}

#[tokio::test]
async fn a_stale_change_is_a_conflict() {
    let node = Node::start().await;
    node.ask(Method::PUT, "/v1/vips/dns", Some(vip(53))).await.is(201);
    let if_match = |tag| node.ask_for(Method::PUT, "/v1/vips/dns", Some(vip(54)), Some(tag));
    let refused = if_match("\"1\"").await.is(409);
    assert_eq!(refused.body["error"], "conflict");
    assert!(refused.body["message"].as_str().unwrap().contains("has generation 2"), "{refused:?}");
    assert_eq!(if_match("x").await.is(400).body["field"], "If-Match");
    if_match("\"2\"").await.is(200);
    let delete = |tag| node.ask_for(Method::DELETE, "/v1/vips/dns", None, Some(tag));
    delete("\"2\"").await.is(409);
    delete("\"3\"").await.is(204);
    let all = json!({"generation": 1, "vips": []});
    node.ask(Method::PUT, "/v1/vips", Some(all)).await.is(409);
    node.stop().await;
}

#[tokio::test]
async fn everything_wrong_is_said_at_once_and_nothing_changes() {
    let node = Node::start().await;
    let wrong =
        json!({"name": "dns", "address": "x", "port": 0, "backends": [{"name": "b", "address": "y"}]});
    let refused = node.ask(Method::POST, "/v1/vips", Some(wrong.clone())).await.is(400);
    assert_eq!(refused.fields(), ["address", "port", "backends[0].address"]);
    assert_eq!(
        (&refused.body["error"], &refused.body["field"]),
        (&json!("invalid_field"), &json!("address"))
    );
    let refused = node.ask(Method::PUT, "/v1/vips", Some(json!({"vips": [wrong]}))).await.is(400);
    assert_eq!(refused.fields(), ["vips[0].address", "vips[0].port", "vips[0].backends[0].address"]);
    let refused = node.ask(Method::POST, "/v1/vips", Some(json!({"nam": 1, "port": "80"}))).await.is(400);
    assert_eq!(refused.fields(), ["nam", "port"]);
    let backend = json!({"address": "10.0.0.1", "wieght": 1});
    let refused = node.ask(Method::PUT, "/v1/vips/web/backends/b", Some(backend)).await.is(400);
    assert_eq!(refused.fields(), ["wieght"]);
    node.ask(Method::PUT, "/v1/vips/x/backends/b", Some(json!({"address": "10.0.0.1"}))).await.is(404);
    node.ask(Method::PATCH, "/v1/vips/web", None).await.is(405);
    assert_eq!(node.get("/v1/vips").await.body["generation"], 1);
    node.stop().await;
}

#[tokio::test]
async fn a_dry_run_answers_and_changes_nothing() {
    let node = Node::start().await;
    let made = node.ask(Method::POST, "/v1/vips?dry_run=true", Some(vip(53))).await.is(201);
    assert_eq!(made.body["generation"], 2);
    node.ask(Method::POST, "/v1/vips?dry_run=true", Some(vip(0))).await.is(400);
    node.ask(Method::DELETE, "/v1/vips?dry_run=true", None).await.is(204);
    node.ask(Method::POST, "/v1/vips?dryrun=true", Some(vip(53))).await.is(400);
    assert_eq!(node.get("/v1/vips").await.body["generation"], 1);
    let directory = node.stop().await;
    assert_eq!(Store::open(directory.path()).unwrap().table("balancer").unwrap().load().unwrap(), []);
}

#[tokio::test]
async fn the_token_is_needed() {
    let node = Node::start().await;
    for path in ["/v1/vips", "/v1/vips/web", "/v1/status", "/v1/explain"] {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = http.get(format!("{}{path}", node.base)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn the_status_says_why() {
    let node = Node::start().await;
    let mut status: BalancerStatus =
        serde_json::from_value(node.get("/v1/status").await.is(200).body).unwrap();
    for _ in 0..100 {
        if status.vips[0].backends[0].usable {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        status = serde_json::from_value(node.get("/v1/status").await.is(200).body).unwrap();
    }
    assert_eq!((status.source.as_str(), status.in_step, status.generation), ("file", true, 1));
    let backend = &status.vips[0].backends[0];
    assert_eq!((backend.health.as_deref(), backend.why.as_str()), (Some("up"), "working"));
    assert_eq!(
        (backend.said.as_deref(), backend.mac.as_deref()),
        (Some("connected"), Some("02:00:00:00:00:01"))
    );
    assert_eq!((status.vips[0].table_bytes, status.vips[0].vip.as_str()), (2048, "192.0.2.10:80/tcp"));
    assert!(node.readiness.conditions()["balancer"].is_none());
    node.ask(Method::DELETE, "/v1/vips", None).await.is(204);
    assert_eq!(node.get("/v1/status").await.body["source"], "api");
    node.stop().await;
}

#[tokio::test]
async fn the_status_says_what_cannot_be_checked_and_that_the_port_is_away() {
    let reason = "10.0.0.1:80: could not be asked: find a route: no route".to_owned();
    let not_sent = Event::NotSent { key: key(), reason: Some(reason.clone()) };
    let node = Node::told([works(), not_sent, Event::Port(None)]).await;
    let status = loop {
        let status = node.get("/v1/status").await.is(200).body;
        if status["port"] == "away" {
            break status;
        }
        tokio::task::yield_now().await;
    };
    let backend = &status["vips"][0]["backends"][0];
    assert_eq!((&backend["usable"], &backend["why"]), (&json!(true), &json!("check-not-sent")));
    assert_eq!((&backend["health"], &backend["not_sent"]), (&json!("up"), &json!(reason)));
    assert_eq!(status["in_step"], false);
    let why = status["error"].as_str().unwrap().to_owned();
    assert!(why.contains("no interface eth0"), "{why}");
    assert_eq!(node.readiness.conditions()["balancer"], Some(why));
    let metrics = node.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("weir_balancer_port_taken 0"), "{metrics}");
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.contains("eth0 has rx-vlan-filter on"), "{warning}");
    node.stop().await;
}

#[tokio::test]
async fn flows_are_explained() {
    let node = Node::start().await;
    let explain = |query: &'static str| node.get(query);
    let found = explain("/v1/explain?source=198.51.100.7:40000&destination=192.0.2.10:80").await.is(200);
    assert_eq!((&found.body["vip"], &found.body["verdict"]), (&json!("web"), &json!("forwarded")));
    assert_eq!(
        (&found.body["because"], &found.body["current"]["backend"]),
        (&json!("transport of port 40000"), &json!("a"))
    );
    let none =
        explain("/v1/explain?source=198.51.100.7:40000&destination=192.0.2.11:80&protocol=udp").await.is(200);
    assert_eq!((&none.body["vip"], &none.body["verdict"]), (&Value::Null, &json!("pass_no_vip")));
    let wrong = explain("/v1/explain?source=x&destination=[::1]:80&protocol=icmp&segment=vlan").await.is(400);
    assert_eq!(wrong.fields(), ["source", "protocol", "segment"]);
    let wrong = explain("/v1/explain?source=192.0.2.1:1&destination=[::1]:80").await.is(400);
    assert_eq!(wrong.fields(), ["destination"]);
    explain("/v1/explain?source=192.0.2.1:1").await.is(400);
    let fragment = "/v1/explain?source=198.51.100.7&destination=192.0.2.10&packet=fragment";
    assert_eq!(explain(fragment).await.is(200).body["because"], "fragment of port 0");
    let error = "/v1/explain?source=198.51.100.7&destination=192.0.2.10:80&packet=icmp-error";
    assert_eq!(explain(error).await.is(400).fields(), ["source"], "its quote has ports");
    let wrong = "/v1/explain?source=192.0.2.1:1&destination=192.0.2.10:80&packet=ping";
    assert_eq!(explain(wrong).await.is(400).fields(), ["packet"]);
    explain("/v1/explain?source=192.0.2.1:1&destination=192.0.2.10:80&packet=transport&first=true")
        .await
        .is(200);
    for kind in ["fragment", "icmp-error", "echo-request"] {
        let ends = "source=192.0.2.1:1&destination=192.0.2.10:80";
        let wrong = node.get(&format!("/v1/explain?{ends}&packet={kind}&first=true")).await.is(400);
        assert_eq!(wrong.fields(), ["first"], "{kind}");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_is_described_is_there() {
    let node = Node::start().await;
    for (method, path) in crate::balancer::openapi::operations() {
        let path = path.replace("{vip}", "web").replace("{backend}", "a");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let body = (method != Method::GET && method != Method::DELETE).then(|| json!([]));
        let answer = node.ask(method.clone(), &format!("{path}?dry_run=true"), body).await;
        assert!(![404, 405, 500].contains(&answer.status.as_u16()), "{method} {path}: {answer:?}");
    }
    node.stop().await;
}
