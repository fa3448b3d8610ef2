//! `docs/reference/api.md`: every route with an example made from the type that it answers with.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use node::address::Prefix;
use node::balancer::body::{BackendStatus, BalancerStatus, FlowExplanation, SlotBody, VipStatus};
use node::config::services::raw;
use node::controller::{DecisionView, EdgeView, MeasurementView, ServiceView};
use node::gateway::body::{
    AppliedBody, FlowBody, LoadBody, LocatorBody, MapServerBody, MappingBody, ProbedBody, StatusBody,
    SubscriptionBody,
};
use node::http::{ConditionBody, ErrorBody, ReadinessBody};
use node::mapserver::api::{
    Locator, Publication, RegisteredLocator, Registration, Subscription, Weights, WeightsKey,
};
use serde::Serialize;

/// A route.
struct Route {
    method: &'static str,
    path: &'static str,
    words: &'static str,
    request: Option<String>,
    answer: Option<String>,
}

impl Route {
    fn get(path: &'static str, words: &'static str, answer: impl Serialize) -> Self {
        Self { method: "GET", path, words, request: None, answer: Some(json(answer)) }
    }
}

fn json(value: impl Serialize) -> String {
    serde_json::to_string_pretty(&value).expect("examples are plain values")
}

const INTRODUCTION: &str = "\
JSON over plain HTTP on `http.listen` (loopback by default). With `http.token_file` every request but `/metrics`, \
`/healthz` and `/readyz` needs `Authorization: Bearer TOKEN`. Bodies are at most 64 KiB (32 MiB for documents of VIPs) and have \
`Content-Type: application/json`; unknown fields are refused. Nothing changes when a request is refused.

A refusal has a status and a body; `field` is left out where there is none. Refusals are counted in \
`weir_http_refusals_total{reason}` by `error`.

| error | status |
|---|---|
| `unauthorized` | 401 |
| `not_found` | 404 |
| `method_not_allowed` | 405 |
| `conflict`, `already_exists` | 409 |
| `invalid_field`, `invalid_body` | 400 |
| `body_too_large` | 413 |
| `unsupported_media_type` | 415 |
| `refused` | 422 |
| `unavailable` | 503 |
| `timeout` | 504 |

";

pub(super) fn api() -> String {
    let mut text = format!("# HTTP API\n\n{}{INTRODUCTION}", super::GENERATED);
    let refusal = ErrorBody {
        error: "invalid_field".into(),
        field: Some("locators[0].rloc".into()),
        message: "invalid IP address syntax at line 1 column 52".into(),
        problems: Vec::new(),
    };
    let _ = write!(text, "```json\n{}\n```\n\n", json(refusal));
    let roles = [
        ("All roles", all()),
        ("Gateway", gateway()),
        ("Map server", mapserver()),
        ("Controller", controller()),
        ("Balancer", balancer()),
    ];
    for (role, routes) in roles {
        let _ = write!(text, "## {role}\n\n");
        for route in routes {
            describe(&mut text, &route);
        }
    }
    text
}

fn describe(text: &mut String, route: &Route) {
    let _ = write!(text, "### {} {}\n\n{}\n\n", route.method, route.path, route.words);
    for (title, body) in [("Request", &route.request), ("Answer", &route.answer)] {
        if let Some(body) = body {
            let _ = write!(text, "{title}:\n\n```json\n{body}\n```\n\n");
        }
    }
}

fn all() -> Vec<Route> {
    let readiness = ReadinessBody {
        ready: false,
        conditions: vec![ConditionBody {
            name: "mapserver".into(),
            ready: false,
            reason: Some("starting".into()),
        }],
    };
    let open = |path, words| Route { method: "GET", path, words, request: None, answer: None };
    vec![
        open("/metrics", "OpenMetrics text, see [metrics](metrics.md). Open."),
        open("/healthz", "`ok` while the process answers. Open."),
        Route::get(
            "/readyz",
            "200 when every condition holds, 503 with the reasons when not. Open.",
            readiness,
        ),
    ]
}

fn gateway() -> Vec<Route> {
    let load = LoadBody {
        eid: "10.100.0.1/32".into(),
        instance_id: 0,
        flows_total: 51_200,
        flows_per_second: 498.0,
        packets_total: 512_000,
        bytes_total: 240_000_000,
        measured_at_unix_ns: AT,
    };
    let applied = AppliedBody { nonce: 7, eid: "10.100.0.1/32".into(), applied_at_unix_ns: AT + 300_000 };
    vec![
        Route::get("/v1/mappings", "The map-cache as the data path has it.", [mapping()]),
        Route::get("/v1/flows?limit=", "Flows and their locators; 100 unless told otherwise.", [flow()]),
        Route::get("/v1/load", "Offered load per EID-prefix, in front of the split.", [load]),
        Route::get("/v1/applied", "The latest publications and when the data path had them.", [applied]),
        Route::get("/v1/status", "Hook, map servers, subscriptions, probes.", status()),
    ]
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn mapping() -> MappingBody {
    let locator = LocatorBody {
        rloc: address("10.0.2.1"),
        priority: Some(1),
        weight: Some(255),
        usable: true,
        share: 1.0,
    };
    MappingBody {
        instance_id: 0,
        eid: "10.100.0.1/32".into(),
        action: "encapsulate".into(),
        origin: "subscription".into(),
        expires_in_s: None,
        stale: false,
        locators: vec![locator],
    }
}

fn flow() -> FlowBody {
    FlowBody {
        instance_id: 0,
        source: SocketAddr::new(address("10.200.0.2"), 40_000),
        destination: SocketAddr::new(address("10.100.0.1"), 80),
        protocol: 6,
        rloc: Some(address("10.0.2.1")),
        idle_ms: 12,
    }
}

fn status() -> StatusBody {
    let subscription =
        SubscriptionBody { eid: "10.100.0.1/32".into(), instance_id: 0, active: true, nonce: 7 };
    StatusBody {
        hook: "tc".into(),
        hook_reason: "auto: the interfaces are veth".into(),
        rlocs: vec![address("10.0.1.1")],
        map_cache_entries: 1,
        unconfirmed: Vec::new(),
        held_packets: 0,
        map_servers: vec![MapServerBody { address: address("10.0.0.10"), confirmed_ms_ago: Some(1200) }],
        subscriptions: vec![subscription],
        locators: vec![ProbedBody { rloc: address("10.0.2.1"), up: true, rtt_ms: Some(40.2), misses: 0 }],
    }
}

fn prefix() -> Prefix {
    Prefix("10.100.0.1/32".parse().expect("a prefix"))
}

const XTR_ID: &str = "000102030405060708090a0b0c0d0e0f";
const AT: u64 = 1_790_000_000_000_000_000;

fn mapserver() -> Vec<Route> {
    let rloc = address("10.0.2.1");
    let weights = Weights {
        eid: prefix(),
        instance_id: 0,
        gateway: Some("client-gateway".into()),
        locators: vec![Locator { rloc, priority: 1, weight: 255 }],
    };
    let key = WeightsKey { eid: prefix(), instance_id: 0, gateway: Some("client-gateway".into()) };
    vec![
        Route::get("/v1/registrations", "Who has registered what.", [registration()]),
        Route::get("/v1/weights", "The weights in force.", [&weights]),
        Route {
            method: "PUT",
            path: "/v1/weights",
            words: "Sets the weights of an EID-prefix for one gateway, or with `gateway` null for all that have none \
                    of their own, and publishes them. `instance_id` and `gateway` may be left out. Locators that are \
                    not named are drained. Answers when the weights are on the disk.",
            request: Some(json(&weights)),
            answer: Some(json(&weights)),
        },
        Route {
            method: "DELETE",
            path: "/v1/weights",
            words: "Removes weights; those of all gateways, or the registered ones, apply again. 204, also if there \
                    were none.",
            request: Some(json(key)),
            answer: None,
        },
        Route::get(
            "/v1/subscriptions",
            "Which gateway is told of which changes (RFC 9437).",
            [subscription()],
        ),
        Route::get("/v1/publications", "The latest 4096 publications, oldest first.", [publication()]),
    ]
}

fn registration() -> Registration {
    let rloc = address("10.0.2.1");
    Registration {
        eid: prefix(),
        instance_id: 0,
        site: "edges".into(),
        xtr_id: Some(XTR_ID.into()),
        site_id: Some(1),
        address: None,
        locators: vec![RegisteredLocator { rloc: Some(rloc), priority: 1, weight: 100, reachable: true }],
        ttl_minutes: 1,
        proxy_reply: true,
        merge: true,
        refreshed_at_unix_ns: Some(AT),
        expires_in_seconds: 170,
    }
}

fn subscription() -> Subscription {
    Subscription {
        subscriber: "client-gateway".into(),
        xtr_id: XTR_ID.into(),
        site_id: 1,
        eid: prefix(),
        instance_id: 0,
        itr_rlocs: vec![address("10.0.1.1")],
        nonce: 7,
        unacknowledged: false,
        rtt_ms: Some(0.4),
    }
}

fn publication() -> Publication {
    Publication {
        nonce: 7,
        eid: prefix(),
        instance_id: 0,
        subscriber: "client-gateway".into(),
        published_at_unix_ns: AT,
        acked_at_unix_ns: Some(AT + 400_000),
    }
}

fn controller() -> Vec<Route> {
    let service = ServiceView {
        service: "web".into(),
        eid: "10.100.0.1/32".into(),
        instance_id: 0,
        gateway: Some("client-gateway".into()),
        state: "fresh".into(),
        state_since_unix_ns: AT,
        last_change_unix_ns: Some(AT),
        decision: None,
    };
    vec![
        Route::get("/v1/services", "How every service stands, with its newest decision.", [service]),
        Route::get(
            "/v1/decisions?service=&limit=",
            "The latest decisions, newest first, with their inputs and reasons; of one service if named, at most 100 \
             unless told otherwise.",
            [decision()],
        ),
    ]
}

fn decision() -> DecisionView {
    DecisionView {
        service: "web".into(),
        eid: "10.100.0.1/32".into(),
        instance_id: 0,
        gateway: Some("client-gateway".into()),
        at_unix_ns: AT,
        repeats: 1,
        first_at_unix_ns: AT,
        changed: true,
        outcome: "changed-edge-over-capacity".into(),
        reason: "changed: edge1 would get 500.0 requests/s with the weights in force, its capacity is 400.0"
            .into(),
        effect: "written".into(),
        written_at_unix_ns: Some(AT),
        error: None,
        measurement: MeasurementView {
            kind: "fresh".into(),
            rps: Some(500.0),
            age_seconds: Some(0.2),
            words: "500.0 requests/s, 0.2 s old".into(),
        },
        dead_band: 0.01,
        edges: vec![EdgeView {
            name: "edge1".into(),
            rloc: address("10.0.2.1"),
            capacity: 400.0,
            in_force: Some(1.0),
            target: Some(0.8),
            weight: Some(204),
            share: Some(0.8),
            rps: Some(400.0),
            reason: "filled to its capacity".into(),
        }],
    }
}

const CHANGES: &str = "Every VIP, as it is desired. Of changes here and below: `?dry_run=true` answers as if and changes nothing. `ETag` of every answer is the generation; a change \
                       with `If-Match`, or with `generation` in its body, is refused with 409 if there is another one. \
                       Every mistake in a body is told at once, in `problems`. Described in OpenAPI 3.1: \
                       [balancer-openapi.json](balancer-openapi.json).";

fn balancer() -> Vec<Route> {
    let services = super::examples::services();
    let written = raw::Services { generation: Some(7), ..services.clone() };
    let vip = services.vips.first().cloned().expect("the example has a VIP");
    let stored = raw::Vip { generation: Some(7), ..vip.clone() };
    let backend = vip.backends.first().cloned().expect("the example has a backend");
    let drained = raw::Backend { weight: 0, ..backend.clone() };
    let mut routes = vec![
        Route::get("/v1/vips", CHANGES, &written),
        change("POST", "/v1/vips", "Makes a VIP that must not be there.", &vip, &stored),
        change("PUT", "/v1/vips", "Makes these VIPs all there are, in one change.", &services, &written),
        delete("/v1/vips", "Removes every VIP. 204."),
        Route::get("/v1/vips/{vip}", "A VIP, as it is desired.", &stored),
        change(
            "PUT",
            "/v1/vips/{vip}",
            "Makes a VIP as it is written; what is left out gets its default.",
            &vip,
            &stored,
        ),
        delete("/v1/vips/{vip}", "Removes a VIP. 204."),
        Route::get("/v1/vips/{vip}/backends", "Its backends, as they are desired.", [&backend]),
        change(
            "POST",
            "/v1/vips/{vip}/backends",
            "Adds a backend that must not be there.",
            &backend,
            &backend,
        ),
        Route::get("/v1/vips/{vip}/backends/{backend}", "A backend, as it is desired.", &backend),
    ];
    let words = "Makes a backend as it is written. Weight 0 drains it: no new flows come.";
    routes.push(change("PUT", "/v1/vips/{vip}/backends/{backend}", words, &drained, &drained));
    routes.push(delete("/v1/vips/{vip}/backends/{backend}", "Removes a backend. 204."));
    routes.push(Route::get("/v1/status", "How every VIP and backend stands, and why.", balancer_status()));
    routes.push(Route::get(
        "/v1/explain?source=&destination=&protocol=&segment=&first=&packet=",
        "What the data path would do with a packet now, and why. `protocol` is `tcp` and `segment` `none` unless told \
         otherwise; `first=true` is for the packet that begins a connection, which no other kind does. `packet=fragment` asks about a fragment \
         from the source, `packet=icmp-error` about an ICMP error to the VIP that quotes a packet to the source, \
         `packet=echo-request` about an ICMP echo request.",
        explanation(),
    ));
    routes
}

fn change(
    method: &'static str,
    path: &'static str,
    words: &'static str,
    request: impl Serialize,
    answer: impl Serialize,
) -> Route {
    Route { method, path, words, request: Some(json(request)), answer: Some(json(answer)) }
}

const fn delete(path: &'static str, words: &'static str) -> Route {
    Route { method: "DELETE", path, words, request: None, answer: None }
}

fn balancer_status() -> BalancerStatus {
    let backend = BackendStatus {
        name: "web1".into(),
        address: address("10.0.100.11"),
        health: Some("up".into()),
        since_unix_ns: AT,
        said: Some("answers".into()),
        not_sent: None,
        weight: 100,
        usable: true,
        slots: 511,
        mac: Some("02:00:00:00:00:0b".into()),
        why: "working".into(),
    };
    let vip = VipStatus {
        name: "web".into(),
        vip: "192.0.2.10:80/tcp".into(),
        generation: 7,
        all_fail: false,
        draining: false,
        table_bytes: 2048,
        backends: vec![backend],
    };
    BalancerStatus {
        interface: "eth0".into(),
        mode: "native".into(),
        port: "taken".into(),
        generation: 7,
        source: "api".into(),
        in_step: true,
        error: None,
        warnings: Vec::new(),
        vips: vec![vip],
    }
}

fn explanation() -> FlowExplanation {
    let slot = SlotBody { size: 1021, slot: 402, backend: Some("web1".into()), usable: true };
    FlowExplanation {
        vip: Some("web".into()),
        hash: Some(1_693_451_122),
        current: Some(slot),
        previous: None,
        remembered: None,
        verdict: "forwarded".into(),
        backend: Some("web1".into()),
        because: "the VIP's table names it".into(),
    }
}
