//! A map server of the crate, started from a configuration file, and its API.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use node::clock::Clock;
use node::config::Config;
use node::role::{Readiness, Setup};
use node::signal::Trigger;
use node::store::Store;
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const TOKEN: &str = "0123456789abcdef";
pub(crate) const LISTEN: &str = "10.0.0.10:4342";
/// What does not happen within this does not happen.
const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: &str = r#"
[node]
name = "control"
state_dir = "state"
[http]
listen = "10.0.0.10:9341"
token_file = "token"
[mapserver]
listen = ["127.0.0.1", "10.0.0.10"]
[[mapserver.site]]
name = "edges"
key_id = 1
key_file = "key"
eid_prefixes = [{ prefix = "10.100.0.0/16" }]
[[mapserver.subscriber]]
name = "gateway-1"
xtr_id = "0a000101000000000000000000000000"
site_id = 1
key_id = 2
key_file = "key"
"#;

pub(crate) struct Server {
    directory: tempfile::TempDir,
    client: reqwest::Client,
    running: Option<Running>,
}

struct Running {
    trigger: Trigger,
    role: JoinHandle<Result<(), node::role::RoleError>>,
    http: JoinHandle<()>,
}

fn secret(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn start(directory: &Path, config: &str) -> Running {
    let config = Config::parse(config, directory).unwrap();
    let mut registry = node::metrics::registry(&config.node.name);
    let (trigger, shutdown) = node::signal::shutdown();
    let (readiness, store) = (Readiness::default(), Store::open(&config.node.state_dir).unwrap());
    let server = node::http::Server::bind(config.http.clone(), &mut registry).await.unwrap();
    let mut setup = Setup {
        node: &config.node,
        registry: &mut registry,
        readiness: &readiness,
        store: &store,
        shutdown: shutdown.clone(),
        clock: Clock::start(),
    };
    let running = node::mapserver::start(config.mapserver.unwrap(), &mut setup).await.unwrap();
    let http = tokio::spawn(server.serve(running.api, registry, readiness, shutdown));
    Running { trigger, role: running.task, http }
}

impl Server {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        secret(&directory.path().join("key"), super::xtr::SECRET);
        secret(&directory.path().join("token"), TOKEN);
        let running = Some(start(directory.path(), CONFIG).await);
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        Self { directory, client, running }
    }

    pub(crate) async fn stop(&mut self) {
        let Running { trigger, role, http } = self.running.take().unwrap();
        trigger.request();
        role.await.unwrap().unwrap();
        http.await.unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.restart_with(CONFIG).await;
    }

    /// Restarts under a configuration in which `gateway-1` has another name and another identity.
    pub(crate) async fn restart_without_gateway_1(&mut self) {
        self.restart_with(&CONFIG.replace("gateway-1", "gateway-2").replace("0a000101", "0a000102")).await;
    }

    async fn restart_with(&mut self, config: &str) {
        self.stop().await;
        self.running = Some(start(self.directory.path(), config).await);
    }

    fn url(path: &str) -> String {
        format!("http://10.0.0.10:9341{path}")
    }

    async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        Self::answer(self.client.get(Self::url(path)).bearer_auth(TOKEN)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        Self::answer(self.client.put(Self::url(path)).bearer_auth(TOKEN).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str, body: &Value) -> u16 {
        Self::answer(self.client.delete(Self::url(path)).bearer_auth(TOKEN).json(body)).await.0
    }

    pub(crate) async fn without_token(&self, path: &str) -> u16 {
        Self::answer(self.client.get(Self::url(path))).await.0
    }

    /// Asks until the answer is as wanted, and returns it.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asking = async {
            loop {
                last = self.get(path).await.1;
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, asking).await.is_ok(), "{path} is {last}");
        last
    }

    /// Waits for a counter to have exactly this value.
    pub(crate) async fn counted(&self, sample: &str, value: u64) {
        let line = format!("\n{sample} {value}\n");
        self.until("/metrics", |text| text.as_str().unwrap().contains(&line)).await;
    }

    /// Sends a datagram to the map server from an address that no xTR holds on to.
    pub(crate) async fn inject(&self, from: &str, datagram: &[u8]) {
        let socket = UdpSocket::bind(SocketAddr::new(from.parse().unwrap(), 0)).await.unwrap();
        socket.send_to(datagram, LISTEN).await.unwrap();
    }
}
