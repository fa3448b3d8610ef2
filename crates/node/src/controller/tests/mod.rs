//! The controller against HTTP servers on loopback.

mod real_prometheus;
mod whole_node;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use lisp::wire::{EidPrefix, InstanceId};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tower::ServiceExt as _;

use super::source::unix_time;
use super::{Controller, DecisionView, ServiceView, WeightSet, api, start};
use crate::clock::Clock;
use crate::config::{self, LoadSource, Secret, Service, Source};
use crate::role::{Readiness, Setup};
use crate::signal::shutdown;
use crate::store::Store;

const TOKEN: &str = "a-token-for-the-map-server";
const QUERY: &str = "weir_gateway_offered_flows_per_second{eid=\"10.100.0.1/32\"}";

/// Serves on a free port of the loopback for as long as the runtime lives.
async fn serve(app: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A map server's weights API: what is put is listed, and refused without the token.
#[derive(Clone, Default)]
struct MapServer(Arc<Mutex<MapServerState>>);

#[derive(Default)]
struct MapServerState {
    weights: Vec<WeightSet>,
    puts: usize,
    /// Answers this instead of taking weights.
    refuse: Option<StatusCode>,
}

impl MapServer {
    async fn start(&self) -> SocketAddr {
        let app = Router::new().route("/v1/weights", get(Self::list).put(Self::put));
        serve(app.with_state(self.clone())).await
    }

    fn authorized(headers: &HeaderMap) -> bool {
        headers.get("authorization").is_some_and(|value| value == &format!("Bearer {TOKEN}"))
    }

    async fn list(State(this): State<Self>, headers: HeaderMap) -> Result<Json<Vec<WeightSet>>, StatusCode> {
        if !Self::authorized(&headers) {
            return Err(StatusCode::UNAUTHORIZED);
        }
        Ok(Json(this.0.lock().unwrap().weights.clone()))
    }

    async fn put(
        State(this): State<Self>,
        headers: HeaderMap,
        Json(set): Json<WeightSet>,
    ) -> Result<StatusCode, StatusCode> {
        if !Self::authorized(&headers) {
            return Err(StatusCode::UNAUTHORIZED);
        }
        let mut state = this.0.lock().unwrap();
        if let Some(status) = state.refuse {
            return Err(status);
        }
        state.weights.retain(|other| (&other.eid, &other.gateway) != (&set.eid, &set.gateway));
        state.weights.push(set);
        state.puts += 1;
        Ok(StatusCode::NO_CONTENT)
    }

    fn weights(&self) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        state.weights.iter().flat_map(|set| set.locators.iter().map(|l| l.weight)).collect()
    }

    fn puts(&self) -> usize {
        self.0.lock().unwrap().puts
    }

    fn refuse(&self, status: Option<StatusCode>) {
        self.0.lock().unwrap().refuse = status;
    }
}

/// What the source of load answers.
#[derive(Clone)]
enum Answer {
    /// This many requests per second, sampled this long ago.
    Load(f64, Duration),
    /// A status and a body.
    Raw(StatusCode, String),
    /// A body without an end.
    Endless,
    /// Nothing, ever.
    Silence,
}

/// A Prometheus as far as the query API goes.
#[derive(Clone)]
struct Prometheus(Arc<Mutex<Answer>>);

#[derive(Deserialize)]
struct Instant {
    query: String,
}

impl Prometheus {
    async fn start(&self) -> SocketAddr {
        serve(Router::new().route("/api/v1/query", get(Self::query)).with_state(self.clone())).await
    }

    fn answers(&self, answer: Answer) {
        *self.0.lock().unwrap() = answer;
    }

    async fn query(State(this): State<Self>, Query(instant): Query<Instant>) -> Response<Body> {
        let answer = this.0.lock().unwrap().clone();
        let now = unix_time(&Clock::start()).as_secs_f64();
        let (status, body) = match answer {
            Answer::Load(rps, age) => {
                let value = match instant.query.as_str() {
                    QUERY => rps,
                    _ => now - age.as_secs_f64(),
                };
                (StatusCode::OK, vector(&[(now, value)]).into())
            }
            Answer::Raw(status, body) => (status, body.into()),
            Answer::Endless => {
                let chunk = || Ok::<_, std::convert::Infallible>(Bytes::from_static(&[b' '; 65536]));
                (StatusCode::OK, Body::from_stream(futures_util::stream::repeat_with(chunk)))
            }
            Answer::Silence => std::future::pending().await,
        };
        Response::builder().status(status).body(body).unwrap()
    }
}

fn vector(points: &[(f64, f64)]) -> String {
    let series: Vec<String> =
        points.iter().map(|(at, value)| format!(r#"{{"metric":{{}},"value":[{at},"{value}"]}}"#)).collect();
    format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, series.join(","))
}

/// The service of these tests, in front of three edges.
pub(super) fn service(source: Source) -> Service {
    let edge = |(i, capacity): (u8, f64)| config::Edge {
        name: format!("edge{i}"),
        rloc: IpAddr::from([10, 0, i + 1, 1]),
        capacity,
    };
    Service {
        name: "web".into(),
        eid: EidPrefix { instance_id: InstanceId(0), prefix: "10.100.0.1/32".parse().unwrap() },
        gateway: Some("client-gateway".into()),
        dead_band: 0.01,
        source,
        edges: [(1, 400.0), (2, 800.0), (3, 1600.0)].map(edge).to_vec(),
    }
}

fn prometheus_source(address: SocketAddr, query: &str) -> Source {
    Source {
        kind: LoadSource::Prometheus { query: query.into() },
        url: format!("http://{address}"),
        token: None,
        max_age: Duration::from_secs(5),
        timeout: Duration::from_millis(500),
    }
}

fn controller(mapserver: SocketAddr, source: Source) -> Controller {
    let config = config::Controller {
        interval: Duration::from_secs(1),
        mapserver_url: format!("http://{mapserver}"),
        mapserver_token: Some(Secret::new(TOKEN)),
        services: vec![service(source)],
    };
    Controller::new(&config, Clock::start()).unwrap()
}

impl Controller {
    /// One tick of the first service, without waiting for its time.
    async fn tick(&self) -> ServiceView {
        self.services[0].tick().await;
        self.get::<Vec<ServiceView>>("/v1/services").await.remove(0)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.raw(path).await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    async fn raw(&self, path: &str) -> (StatusCode, Bytes) {
        let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
        let response = api::router(self.services.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap())
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }
}

fn load(rps: f64) -> Answer {
    Answer::Load(rps, Duration::from_millis(20))
}

struct Fixture {
    mapserver: MapServer,
    prometheus: Prometheus,
    controller: Controller,
}

async fn fixture() -> Fixture {
    let (mapserver, prometheus) = (MapServer::default(), Prometheus(Arc::new(Mutex::new(load(100.0)))));
    let source = prometheus_source(prometheus.start().await, QUERY);
    let controller = controller(mapserver.start().await, source);
    Fixture { mapserver, prometheus, controller }
}

#[tokio::test]
async fn a_spill_and_its_end() {
    let Fixture { mapserver, prometheus, controller } = fixture().await;
    let view = controller.tick().await;
    assert_eq!((view.state.as_str(), mapserver.weights()), ("fresh", vec![255, 0, 0]));
    prometheus.answers(load(1000.0));
    let view = controller.tick().await;
    assert_eq!(mapserver.weights(), [102, 153, 0]);
    let decision = view.decision.unwrap();
    assert_eq!(
        (decision.outcome.as_str(), decision.effect.as_str()),
        ("changed-edge-over-capacity", "written")
    );
    assert!(decision.written_at_unix_ns >= Some(decision.at_unix_ns));
    assert_eq!(decision.edges[1].rps, Some(600.0));
    assert_eq!(decision.edges[1].reason, "takes the 600.0 requests/s left, which fit");
    for _ in 0..5 {
        controller.tick().await;
    }
    assert_eq!(mapserver.puts(), 2, "a steady load changes nothing");
    prometheus.answers(load(100.0));
    controller.tick().await;
    assert_eq!(mapserver.weights(), [255, 0, 0]);
}

#[tokio::test]
async fn no_answer_is_zero_load() {
    let Fixture { mapserver, prometheus, controller } = fixture().await;
    prometheus.answers(load(1000.0));
    controller.tick().await;
    let ok = |body: &str| Answer::Raw(StatusCode::OK, body.into());
    let outcomes = [
        ("stale", Answer::Load(0.0, Duration::from_secs(6))),
        ("from-the-future", Answer::Load(0.0, Duration::ZERO)),
        ("empty", ok(&vector(&[]))),
        ("not-a-number", Answer::Load(f64::NAN, Duration::ZERO)),
        ("negative", Answer::Load(-1.0, Duration::ZERO)),
        ("several-series", ok(&vector(&[(1.0, 0.0), (1.0, 0.0)]))),
        ("incomplete", ok(&vector(&[(1.0, 0.0)]).replace("\"data\"", "\"warnings\":[\"x\"],\"data\""))),
        ("http-error", Answer::Raw(StatusCode::INTERNAL_SERVER_ERROR, "out of memory".into())),
        ("http-error", Answer::Raw(StatusCode::FOUND, String::new())),
        ("timeout", Answer::Silence),
        ("malformed", ok("<html>")),
        ("malformed", Answer::Endless),
    ];
    for (kind, answer) in outcomes {
        let answer = if kind == "from-the-future" { ok(&future()) } else { answer };
        prometheus.answers(answer);
        let view = controller.tick().await;
        let decision = view.decision.unwrap();
        assert_eq!((view.state.as_str(), decision.measurement.kind.as_str()), ("held", kind));
        assert_eq!(mapserver.weights(), [102, 153, 0], "{kind}");
        assert!(!controller.metrics().contains("weir_controller_offered_requests_per_second{"), "{kind}");
        prometheus.answers(load(1000.0));
        assert_eq!(controller.tick().await.state, "fresh", "recovers from {kind}");
    }
    assert_eq!(mapserver.puts(), 1);
}

/// Both queries get this: evaluated at 1, a timestamp far ahead of it.
fn future() -> String {
    vector(&[(1.0, 1e6)])
}

#[tokio::test]
async fn a_source_that_is_gone_is_unreachable() {
    let mapserver = MapServer::default();
    let closed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let controller = controller(mapserver.start().await, prometheus_source(closed, QUERY));
    let decision = controller.tick().await.decision.unwrap();
    assert_eq!(decision.measurement.kind, "unreachable");
    assert_eq!(mapserver.puts(), 0, "nothing is written before a first load is known");
}

#[tokio::test]
async fn a_restart_takes_over_what_is_in_place() {
    let Fixture { mapserver, prometheus, controller } = fixture().await;
    prometheus.answers(load(1000.0));
    controller.tick().await;
    let source = prometheus_source(prometheus.start().await, QUERY);
    let restarted = super::tests::controller(mapserver.start().await, source);
    let decision = restarted.tick().await.decision.unwrap();
    assert_eq!((decision.outcome.as_str(), mapserver.puts()), ("held-same-weights", 1));
    prometheus.answers(Answer::Raw(StatusCode::BAD_GATEWAY, String::new()));
    assert_eq!(restarted.tick().await.state, "held");
    assert_eq!(mapserver.weights(), [102, 153, 0]);
}

#[tokio::test]
async fn the_map_server_refuses_and_recovers() {
    let Fixture { mapserver, prometheus, controller } = fixture().await;
    controller.tick().await;
    mapserver.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    prometheus.answers(load(1000.0));
    let view = controller.tick().await;
    assert_eq!(view.state, "unapplied");
    let decision = view.decision.unwrap();
    assert_eq!(
        (decision.effect.as_str(), decision.error.as_deref()),
        ("write-failed", Some("HTTP status 503"))
    );
    assert_eq!(mapserver.weights(), [255, 0, 0]);
    mapserver.refuse(None);
    assert_eq!(controller.tick().await.state, "fresh");
    assert_eq!(mapserver.weights(), [102, 153, 0]);
}

#[tokio::test]
async fn a_wrong_token_is_an_error_and_not_an_empty_list() {
    let Fixture { mapserver, prometheus, .. } = fixture().await;
    let source = prometheus_source(prometheus.start().await, QUERY);
    let mut config = config::Controller {
        interval: Duration::from_secs(1),
        mapserver_url: format!("http://{}", mapserver.start().await),
        mapserver_token: None,
        services: vec![service(source)],
    };
    let view = Controller::new(&config, Clock::start()).unwrap().tick().await;
    assert_eq!((view.state.as_str(), mapserver.puts()), ("unapplied", 0));
    let words = "HTTP status 401: token_file is missing or names another token";
    assert_eq!(view.decision.unwrap().error.as_deref(), Some(words));
    let readiness = Readiness::default();
    let (_trigger, mut stop) = shutdown();
    let controller = Controller::new(&config, Clock::start()).unwrap();
    let not_ready = async {
        let told = |reason: &Option<String>| reason.as_ref().is_some_and(|why| why.contains("token_file"));
        while !readiness.conditions().values().any(told) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = controller.run(readiness.condition("controller", "starting"), stop.clone()) => ended.unwrap(),
        () = stop.requested() => {}
        () = not_ready => {}
    }
    config.mapserver_token = Some(Secret::new(TOKEN));
    assert_eq!(Controller::new(&config, Clock::start()).unwrap().tick().await.state, "fresh");
}

#[tokio::test]
async fn the_gateways_own_counters_are_a_source() {
    async fn list(headers: HeaderMap) -> Result<String, StatusCode> {
        if headers.get("authorization").is_none_or(|value| value != "Bearer gateway-token") {
            return Err(StatusCode::UNAUTHORIZED);
        }
        let now = unix_time(&Clock::start()).as_nanos();
        Ok(format!(
            r#"[{{"eid":"10.100.0.1/32","instance_id":0,"flows_total":7,"flows_per_second":800.0,
                 "packets_total":9,"bytes_total":9,"measured_at_unix_ns":{now}}}]"#
        ))
    }
    let gateway = serve(Router::new().route("/v1/load", get(list))).await;
    let mapserver = MapServer::default();
    let source = |token: &str| Source {
        kind: LoadSource::Gateway,
        token: Some(Secret::new(token)),
        ..prometheus_source(gateway, "")
    };
    let wrong = controller(mapserver.start().await, source("wrong")).tick().await;
    assert_eq!(wrong.decision.unwrap().measurement.kind, "http-error");
    let view = controller(mapserver.start().await, source("gateway-token")).tick().await;
    assert_eq!((view.state.as_str(), mapserver.weights()), ("fresh", vec![128, 127, 0]));
}

#[tokio::test]
async fn decisions_are_listed_newest_first() {
    let Fixture { prometheus, controller, .. } = fixture().await;
    for rps in [100.0, 100.0, 100.0, 1000.0] {
        prometheus.answers(load(rps));
        controller.tick().await;
    }
    let decisions: Vec<DecisionView> = controller.get("/v1/decisions?service=web").await;
    let told: Vec<(&str, u64)> = decisions.iter().map(|d| (d.outcome.as_str(), d.repeats)).collect();
    assert_eq!(
        told,
        [("changed-edge-over-capacity", 1), ("held-same-weights", 2), ("changed-nothing-in-force", 1)]
    );
    assert_eq!(controller.get::<Vec<DecisionView>>("/v1/decisions?limit=1").await, decisions[..1]);
    assert_eq!(controller.raw("/v1/decisions?service=mail").await.0, StatusCode::NOT_FOUND);
    assert_eq!(controller.raw("/v1/decisions?limit=many").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn metrics_tell_load_weights_and_state() {
    let Fixture { prometheus, controller, .. } = fixture().await;
    prometheus.answers(load(1600.0));
    controller.tick().await;
    prometheus.answers(Answer::Raw(StatusCode::OK, vector(&[])));
    let before = controller.metrics();
    controller.tick().await;
    let after = controller.metrics();
    let has = |text: &str, line: &str| assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    has(&before, r#"weir_controller_offered_requests_per_second{service="web"} 1600.0"#);
    has(&before, r#"weir_controller_state{service="web",state="fresh"} 1"#);
    has(&after, r#"weir_controller_state{service="web",state="fresh"} 0"#);
    has(&after, r#"weir_controller_state{service="web",state="held"} 1"#);
    has(&after, r#"weir_controller_measurements_total{service="web",outcome="empty"} 1"#);
    has(&after, r#"weir_controller_decisions_total{service="web",outcome="held-no-fresh-load"} 1"#);
    has(&after, r#"weir_controller_writes_total{service="web",outcome="written"} 1"#);
    assert!(after.contains(r#"weir_controller_weight_ratio{service="web",edge="edge1"} 0.25098"#), "{after}");
    assert!(after.contains("weir_controller_last_change_timestamp_seconds{service=\"web\"} "));
}

#[tokio::test]
async fn the_role_runs_until_it_is_told_to_stop() {
    let Fixture { mapserver, prometheus, .. } = fixture().await;
    let source = prometheus_source(prometheus.start().await, QUERY);
    let config = config::Controller {
        interval: Duration::from_millis(100),
        mapserver_url: format!("http://{}", mapserver.start().await),
        mapserver_token: Some(Secret::new(TOKEN)),
        services: vec![service(source)],
    };
    let directory = tempfile::tempdir().unwrap();
    let (trigger, shutdown) = shutdown();
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let mut setup = Setup {
        node: &config::Node { name: "control".into(), state_dir: directory.path().into() },
        registry: &mut registry,
        readiness: &readiness,
        store: &Store::open(directory.path()).unwrap(),
        shutdown,
        clock: Clock::start(),
    };
    let running = start(config, &mut setup).await.unwrap();
    assert!(readiness.conditions()["controller"].is_some());
    until(|| mapserver.weights() == [255, 0, 0]).await;
    until(|| readiness.conditions()["controller"].is_none()).await;
    prometheus.answers(load(1000.0));
    until(|| mapserver.weights() == [102, 153, 0]).await;
    trigger.request();
    running.task.await.unwrap().unwrap();
    assert_eq!(mapserver.weights(), [102, 153, 0], "weights stand after the end");
}

/// Waits for what happens in another task or process; the bound is for a test that fails.
async fn until(mut done: impl FnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(tokio::time::Instant::now() < give_up, "did not happen in 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
