//! The controller and the map server in one node, as the control host runs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::config::Config;

const NODE: &str = r#"
[node]
name = "control"
state_dir = "state"
[http]
listen = "API"
token_file = "token"
[mapserver]
listen = ["LISP"]
[[mapserver.site]]
name = "edges"
site_id = 1
key_id = 1
key_file = "key"
eid_prefixes = [{ prefix = "10.100.0.1/32" }]
[[mapserver.subscriber]]
name = "client-gateway"
xtr_id = "000102030405060708090a0b0c0d0e0f"
key_id = 2
key_file = "key"
[controller]
interval = "100ms"
[controller.mapserver]
url = "http://API"
token_file = "token"
[[controller.service]]
name = "web"
eid = "10.100.0.1/32"
gateway = "client-gateway"
[controller.service.source]
url = "http://PROMETHEUS"
query = 'weir_gateway_offered_flows_per_second{eid="10.100.0.1/32"}'
[[controller.service.edge]]
name = "edge1"
rloc = "10.0.2.1"
capacity = 400
[[controller.service.edge]]
name = "edge2"
rloc = "10.0.3.1"
capacity = 800
"#;

struct Node {
    directory: tempfile::TempDir,
    config: String,
    api: SocketAddr,
}

impl Node {
    fn new(prometheus: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        secret(&directory.path().join("token"));
        secret(&directory.path().join("key"));
        let api = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let lisp = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let config = NODE
            .replace("API", &api.to_string())
            .replace("LISP", &lisp.to_string())
            .replace("PROMETHEUS", &prometheus.to_string());
        Self { directory, config, api }
    }

    /// Runs until the handle is aborted; what the node started ends with it.
    fn start(&self) -> tokio::task::JoinHandle<Result<(), crate::RunError>> {
        tokio::spawn(crate::run(Config::parse(&self.config, self.directory.path()).unwrap()))
    }

    /// Ends a node and waits until its state can be opened again.
    async fn stop(&self, node: tokio::task::JoinHandle<Result<(), crate::RunError>>) {
        node.abort();
        assert!(node.await.unwrap_err().is_cancelled());
        until(|| {
            Store::open(&self.directory.path().join("state")).and_then(|s| s.table("mapserver")).is_ok()
        })
        .await;
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("http://{}{path}", self.api)).bearer_auth(TOKEN);
        request.send().await.ok()?.error_for_status().ok()?.json().await.ok()
    }

    async fn until_weights(&self, expected: &[u8]) {
        let give_up = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let sets: Vec<WeightSet> = self.get("/v1/weights").await.unwrap_or_default();
            let weights: Vec<u8> = sets.iter().flat_map(|s| s.locators.iter().map(|l| l.weight)).collect();
            if weights == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < give_up, "{weights:?} instead of {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Decisions, oldest first, once there is one.
    async fn decisions(&self) -> Vec<DecisionView> {
        let give_up = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let mut decisions: Vec<DecisionView> = self.get("/v1/decisions").await.unwrap_or_default();
            if !decisions.is_empty() {
                decisions.reverse();
                return decisions;
            }
            assert!(tokio::time::Instant::now() < give_up, "no decision in 30 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn secret(path: &Path) {
    std::fs::write(path, TOKEN).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn weights_reach_the_map_server_and_outlive_both() {
    let prometheus = Prometheus(Arc::new(Mutex::new(load(100.0))));
    let node = Node::new(prometheus.start().await);
    let running = node.start();
    node.until_weights(&[255, 0]).await;
    prometheus.answers(load(1000.0));
    node.until_weights(&[102, 153]).await;
    node.stop(running).await;

    prometheus.answers(Answer::Raw(StatusCode::SERVICE_UNAVAILABLE, String::new()));
    let running = node.start();
    let first = node.decisions().await.remove(0);
    assert_eq!((first.outcome.as_str(), first.effect.as_str()), ("held-no-fresh-load", "nothing-to-write"));
    assert_eq!(first.edges[1].weight, Some(153), "read from the map server");
    node.until_weights(&[102, 153]).await;
    node.stop(running).await;
}
