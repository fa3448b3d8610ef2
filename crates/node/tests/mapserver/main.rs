//! The map server as a whole, with real xTR machines on real sockets, in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod namespace;
mod server;
mod xtr;

use lisp::mapping::TableDelta;
use serde_json::{Value, json};

use crate::namespace::in_namespace;
use crate::server::Server;
use crate::xtr::{Peer, peer};

const SERVICE: &str = "10.100.0.1/32";
const EDGE1: &str = "10.0.2.1";
const EDGE2: &str = "10.0.3.1";

/// Locator and weight of those that new flows go to.
fn usable(delta: &TableDelta) -> Vec<(String, u8)> {
    let TableDelta::Set { locators, .. } = delta else { return Vec::new() };
    let best = locators.iter().map(|l| l.priority).min();
    locators.iter().filter(|l| Some(l.priority) == best).map(|l| (l.rloc.to_string(), l.weight)).collect()
}

fn shares(weights: &[(&str, u8)]) -> Vec<(String, u8)> {
    weights.iter().map(|(rloc, weight)| ((*rloc).to_owned(), *weight)).collect()
}

fn weights(gateway: Value, locators: &[(&str, u8)]) -> Value {
    let locator = |(rloc, weight): &(&str, u8)| json!({"rloc": rloc, "priority": 1, "weight": weight});
    let locators: Vec<Value> = locators.iter().map(locator).collect();
    json!({"eid": SERVICE, "instance_id": 0, "gateway": gateway, "locators": locators})
}

async fn edges() -> (Peer, Peer) {
    (peer(EDGE1).registering(SERVICE).start().await, peer(EDGE2).registering(SERVICE).start().await)
}

#[test]
fn a_weight_change_reaches_the_subscriber_and_survives_a_restart() {
    in_namespace(async {
        let mut server = Server::new().await;
        let (_edge1, _edge2) = edges().await;
        server.until("/v1/registrations", |list| list.as_array().unwrap().len() == 2).await;
        let mut client = peer("10.0.1.1").subscribing(SERVICE).start().await;
        client.until(|delta| usable(delta) == shares(&[(EDGE1, 100), (EDGE2, 100)])).await;
        server.until("/v1/subscriptions", |list| list[0]["subscriber"] == "gateway-1").await;

        let wanted = weights(json!("gateway-1"), &[(EDGE1, 70), (EDGE2, 30)]);
        assert_eq!(server.put("/v1/weights", &wanted).await, (200, wanted.clone()));
        client.until(|delta| usable(delta) == shares(&[(EDGE1, 70), (EDGE2, 30)])).await;
        let acknowledged = |list: &Value| {
            let last = list.as_array().unwrap().last().unwrap();
            last["subscriber"] == "gateway-1"
                && last["acked_at_unix_ns"].as_u64() >= last["published_at_unix_ns"].as_u64()
        };
        let publications = server.until("/v1/publications", acknowledged).await;
        let nonce = publications.as_array().unwrap().last().unwrap()["nonce"].as_u64().unwrap();

        server.restart().await;
        assert_eq!(server.get("/v1/weights").await, (200, json!([wanted])));
        // Whatever the subscriber has, it gets the mapping again, under a nonce that it has not seen.
        let republished =
            |list: &Value| list.as_array().unwrap().iter().any(|p| p["nonce"].as_u64().unwrap() > nonce);
        server.until("/v1/publications", republished).await;

        // Only edge 2 is named: edge 1 is drained, for all gateways without weights of their own.
        assert_eq!(server.delete("/v1/weights", &json!({"eid": SERVICE, "gateway": "gateway-1"})).await, 204);
        client.until(|delta| usable(delta) == shares(&[(EDGE1, 100), (EDGE2, 100)])).await;
        assert_eq!(server.put("/v1/weights", &weights(Value::Null, &[(EDGE2, 255)])).await.0, 200);
        client.until(|delta| usable(delta) == shares(&[(EDGE2, 255)])).await;
        server.stop().await;
    });
}

#[test]
fn weights_of_a_removed_subscriber_are_not_those_of_all() {
    in_namespace(async {
        let mut server = Server::new().await;
        let own = weights(json!("gateway-1"), &[(EDGE1, 70)]);
        assert_eq!(server.put("/v1/weights", &own).await.0, 200);
        server.restart_without_gateway_1().await;
        let name = json!("xtr-id:0a000101000000000000000000000000/1");
        assert_eq!(server.get("/v1/weights").await, (200, json!([weights(name.clone(), &[(EDGE1, 70)])])));
        let (status, answer) = server.put("/v1/weights", &weights(name.clone(), &[(EDGE1, 1)])).await;
        assert_eq!((status, &answer["field"]), (400, &json!("gateway")), "{answer}");
        assert_eq!(server.delete("/v1/weights", &json!({"eid": SERVICE, "gateway": name})).await, 204);
        assert_eq!(server.get("/v1/weights").await, (200, json!([])));
        server.stop().await;
    });
}

#[test]
fn an_edge_that_leaves_is_withdrawn_at_once() {
    in_namespace(async {
        let mut server = Server::new().await;
        let (edge1, _edge2) = edges().await;
        server.until("/v1/registrations", |list| list.as_array().unwrap().len() == 2).await;
        let mut client = peer("10.0.1.1").subscribing(SERVICE).start().await;
        client.until(|delta| usable(delta).len() == 2).await;
        edge1.withdraw().await;
        client.until(|delta| usable(delta) == shares(&[(EDGE2, 100)])).await;
        server
            .until("/metrics", |text| text.as_str().unwrap().contains("weir_mapserver_registrations 1\n"))
            .await;
        server.stop().await;
    });
}

#[test]
fn replays_are_refused_after_a_restart() {
    in_namespace(async {
        let mut server = Server::new().await;
        let edge = peer(EDGE1).registering(SERVICE).start().await;
        server.until("/v1/registrations", |list| list.as_array().unwrap().len() == 1).await;
        let first = edge.sent_registers().await.remove(0);
        edge.withdraw().await;
        server.until("/v1/registrations", |list| list == &json!([])).await;
        server.restart().await;
        server.inject(EDGE1, &first).await;
        server.counted("weir_mapserver_reasons_total{reason=\"replayed\"}", 1).await;
        assert_eq!(server.get("/v1/registrations").await, (200, json!([])));
        server.stop().await;
    });
}

#[test]
fn bad_datagrams_are_counted_and_change_nothing() {
    in_namespace(async {
        let mut server = Server::new().await;
        let edge = peer(EDGE1).registering(SERVICE).start().await;
        let before = server.until("/v1/registrations", |list| list.as_array().unwrap().len() == 1).await;
        let mut forged = edge.sent_registers().await.remove(0);
        *forged.last_mut().unwrap() ^= 1;
        server.inject(EDGE2, &forged).await;
        server.counted("weir_mapserver_reasons_total{reason=\"bad_authentication\"}", 1).await;
        for datagram in [&b""[..], b"\x30", b"\xff\xff\xff\xff", &[0x10; 11]] {
            server.inject(EDGE2, datagram).await;
        }
        server.counted("weir_mapserver_reasons_total{reason=\"malformed\"}", 3).await;
        server.counted("weir_mapserver_reasons_total{reason=\"unknown_message\"}", 1).await;
        let (_, after) = server.get("/v1/registrations").await;
        assert_eq!(after[0]["locators"], before[0]["locators"]);
        server.stop().await;
    });
}

#[test]
fn bad_calls_are_refused_counted_and_change_nothing() {
    in_namespace(async {
        let mut server = Server::new().await;
        let right = weights(Value::Null, &[(EDGE1, 100)]);
        assert_eq!(server.put("/v1/weights", &right).await.0, 200);
        let with = |key: &str, value: Value| {
            let mut changed = right.clone();
            changed[key] = value;
            changed
        };
        let locator = |rloc: &str| json!({"rloc": rloc, "priority": 1, "weight": 1});
        let cases = [
            (with("eid", json!("10.99.0.1/32")), 422, "refused", "eid"),
            (with("instance_id", json!(9)), 422, "refused", "eid"),
            (with("eid", json!("10.100.0.1/24")), 400, "invalid_field", "eid"),
            (with("eid", json!(7)), 400, "invalid_field", "eid"),
            (with("gateway", json!("nobody")), 400, "invalid_field", "gateway"),
            (with("locators", json!([])), 400, "invalid_field", "locators"),
            (
                with("locators", json!([locator(EDGE1), locator(EDGE1)])),
                400,
                "invalid_field",
                "locators[1].rloc",
            ),
            (with("locators", json!([locator("edge1")])), 400, "invalid_field", "locators[0].rloc"),
            (with("weight", json!(1)), 400, "invalid_field", "weight"),
            (json!({}), 400, "invalid_body", ""),
        ];
        for (body, status, error, field) in &cases {
            let (found, answer) = server.put("/v1/weights", body).await;
            assert_eq!((i32::from(found), &answer["error"]), (*status, &json!(error)), "{body}: {answer}");
            assert_eq!(answer["field"].as_str().unwrap_or_default(), *field, "{body}: {answer}");
        }
        server.counted("weir_http_refusals_total{reason=\"invalid_field\"}", 7).await;
        server.counted("weir_http_refusals_total{reason=\"refused\"}", 2).await;
        assert_eq!(server.get("/v1/weights").await, (200, json!([right])));
        assert_eq!(server.without_token("/v1/weights").await, 401);
        server.stop().await;
    });
}
