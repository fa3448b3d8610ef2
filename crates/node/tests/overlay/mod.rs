//! Namespaces: client `c` — `i`, hosts `s` — `e` and `t` — `f`, map server `m`; `i`, `e`, `f`, `m` on a bridge in `k`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use dataplane::bpffs;
use dataplane::netns::NetnsGuard;
use node::clock::Clock;
use node::config::Config;
use node::role::{Readiness, Running, Setup};
use node::signal::{Trigger, shutdown};
use node::store::Store;
use node::{gateway, mapserver, metrics};
use tower::ServiceExt as _;

pub(crate) const PORT: u16 = 8080;
const SERVICE: &str = "10.100.0.1";
const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACES: [&str; 7] = ["k", "c", "i", "e", "f", "s", "t"];

/// Waits for a condition that another thread brings about.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes what it made when dropped, also after a failed test.
pub(crate) struct Overlay {
    prefix: String,
    directory: tempfile::TempDir,
    stopped: Arc<AtomicBool>,
    services: Vec<JoinHandle<()>>,
}

impl Overlay {
    pub(crate) fn new(test: &str) -> Self {
        let mut overlay = Self {
            prefix: format!("dpn-{}-{test}", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
            stopped: Arc::default(),
            services: Vec::new(),
        };
        for namespace in NAMESPACES.iter().chain(&["m"]) {
            run("ip", &["netns", "add", &overlay.name(namespace)]);
            overlay.ip(namespace, &["link", "set", "lo", "up"]);
        }
        overlay.ip("k", &["link", "add", "br0", "type", "bridge"]);
        overlay.ip("k", &["link", "set", "br0", "up"]);
        for (namespace, address) in
            [("i", "10.0.0.1"), ("e", "10.0.0.2"), ("f", "10.0.0.3"), ("m", "10.0.0.10")]
        {
            let port = format!("p-{namespace}");
            overlay.link((namespace, "u0", &format!("{address}/24")), ("k", &port, ""));
            overlay.ip("k", &["link", "set", &port, "master", "br0"]);
        }
        overlay.link(("c", "c0", "10.200.0.2/24"), ("i", "h0", "10.200.0.1/24"));
        overlay.link(("e", "h0", "10.100.0.254/24"), ("s", "s0", "10.100.0.1/24"));
        overlay.link(("f", "h0", "10.100.0.254/24"), ("t", "s0", "10.100.0.1/24"));
        for (namespace, gateway) in [("c", "10.200.0.1"), ("s", "10.100.0.254"), ("t", "10.100.0.254")] {
            overlay.ip(namespace, &["route", "add", "default", "via", gateway]);
        }
        let key = overlay.directory.path().join("key");
        std::fs::write(&key, "a-secret-of-the-test").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        for (namespace, name) in [("s", b'e'), ("t", b'f')] {
            let listener = overlay.within(namespace, || TcpListener::bind((SERVICE, PORT)).unwrap());
            let stopped = Arc::clone(&overlay.stopped);
            overlay.services.push(std::thread::spawn(move || serve(&listener, name, &stopped)));
        }
        overlay
    }

    fn link(&self, a: (&str, &str, &str), b: (&str, &str, &str)) {
        let (a_ns, b_ns) = (self.name(a.0), self.name(b.0));
        run("ip", &["link", "add", a.1, "netns", &a_ns, "type", "veth", "peer", "name", b.1, "netns", &b_ns]);
        for (namespace, name, address) in [a, b] {
            if !address.is_empty() {
                self.ip(namespace, &["addr", "add", address, "dev", name]);
            }
            self.ip(namespace, &["link", "set", name, "up"]);
        }
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    fn ip(&self, namespace: &str, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name(namespace)], arguments].concat())
    }

    fn within<T>(&self, namespace: &str, run: impl FnOnce() -> T) -> T {
        let _there = NetnsGuard::enter(&self.name(namespace)).unwrap();
        run()
    }

    /// A connection of the client to the service.
    pub(crate) fn connect(&self) -> TcpStream {
        let address = SocketAddr::new(SERVICE.parse().unwrap(), PORT);
        let stream = self.within("c", || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Nothing of weir's is in the namespace or pinned for its node.
    pub(crate) fn assert_clean(&self, namespace: &str) {
        let links = self.ip(namespace, &["-o", "link"]);
        assert!(!links.contains("weir-"), "{links}");
        assert_eq!(self.ip(namespace, &["route", "show", "proto", "233"]), "");
        assert!(!std::path::Path::new(&self.pins(namespace)).exists());
        assert!(!std::path::Path::new("/run/weir").join(self.name(namespace)).exists());
    }

    fn pins(&self, namespace: &str) -> String {
        format!("{}/weir/{}", bpffs::MOUNT_POINT, self.name(namespace))
    }

    pub(crate) fn mapserver(&self) -> Node {
        self.node(
            "m",
            r#"[mapserver]
listen = ["10.0.0.10"]
[[mapserver.site]]
name = "edges"
site_id = 1
key_id = 1
key_file = "key"
eid_prefixes = [{ prefix = "10.100.0.1/32" }, { prefix = "10.200.0.0/24" }]
[[mapserver.subscriber]]
name = "client-gateway"
xtr_id = "00000000000000000000000000000069"
site_id = 1
key_id = 2
key_file = "key"
[[mapserver.subscriber]]
name = "edge-e"
xtr_id = "00000000000000000000000000000065"
site_id = 1
key_id = 2
key_file = "key"
[[mapserver.subscriber]]
name = "edge-f"
xtr_id = "00000000000000000000000000000066"
site_id = 1
key_id = 2
key_file = "key"
"#,
        )
    }

    pub(crate) fn client_gateway(&self, on_stop: &str) -> Node {
        self.gateway("i", "10.0.0.1", "10.200.0.0/24", &["10.100.0.1/32"], on_stop)
    }

    /// `subscribe`: what it asks the map server for before a packet does.
    pub(crate) fn edge_gateway(&self, namespace: &str, rloc: &str, subscribe: &[&str]) -> Node {
        self.gateway(namespace, rloc, "10.100.0.1/32", subscribe, "detach")
    }

    fn gateway(&self, namespace: &str, rloc: &str, eid: &str, subscribe: &[&str], on_stop: &str) -> Node {
        let xtr_id = format!("{:032x}", namespace.as_bytes()[0]);
        let section = format!(
            r#"[gateway]
rlocs = ["{rloc}"]
xtr_id = "{xtr_id}"
site_id = 1
map_resolvers = ["10.0.0.10"]
eid_space = ["10.100.0.0/16", "10.200.0.0/16"]
subscribe = {subscribe:?}
on_stop = "{on_stop}"
rloc_probe_interval = "200ms"
[[gateway.map_server]]
address = "10.0.0.10"
key_id = 1
key_file = "key"
[[gateway.interface]]
name = "h0"
role = "eid"
[[gateway.interface]]
name = "u0"
role = "underlay"
[[gateway.eid]]
prefix = "{eid}"
interface = "h0"
[gateway.pubsub]
key_id = 2
key_file = "key"
"#
        );
        self.node(namespace, &section)
    }

    fn node(&self, namespace: &str, section: &str) -> Node {
        let name = self.name(namespace);
        let text = format!("[node]\nname = \"{name}\"\nstate_dir = \"state-{namespace}\"\n{section}");
        let config = Config::parse(&text, self.directory.path()).unwrap_or_else(|e| panic!("{e}"));
        Node::start(name, config)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.services.drain(..).for_each(|service| drop(service.join()));
        for namespace in NAMESPACES.iter().chain(&["m"]) {
            let _ = Command::new("ip").args(["netns", "del", &self.name(namespace)]).status();
            let _ = std::fs::remove_dir_all(self.pins(namespace));
            let _ = std::fs::remove_dir_all(format!("/run/weir/{}", self.name(namespace)));
        }
    }
}

/// Says its name to each connection, then sends back what it gets.
fn serve(listener: &TcpListener, name: u8, stopped: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !stopped.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            let mut length = stream.write(&[name])?;
            while length > 0 {
                length = stream.read(&mut buffer)?;
                stream.write_all(&buffer[..length])?;
            }
            Ok::<(), std::io::Error>(())
        });
    }
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Graceful,
    Crash,
}

/// A role with a thread, a runtime and a namespace of its own.
pub(crate) struct Node {
    api: Router,
    end: mpsc::SyncSender<Ending>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Stands for a node that is not there.
    pub(crate) fn gone() -> Self {
        Self { api: Router::new(), end: mpsc::sync_channel(1).0, thread: None }
    }

    fn start(namespace: String, config: Config) -> Self {
        let (end, ended) = mpsc::sync_channel(1);
        let (ready, api) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let _there = NetnsGuard::enter(&namespace).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(live(&config, &ready, ended));
        });
        let api = api.recv_timeout(PATIENCE).expect("the node starts");
        Self { api, end, thread: Some(thread) }
    }

    pub(crate) fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let body = self.ask(Request::get(path).body(Body::empty()).unwrap());
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) fn put(&self, path: &str, body: &serde_json::Value) {
        let request = Request::put(path).header("content-type", "application/json");
        self.ask(request.body(Body::from(body.to_string())).unwrap());
    }

    fn ask(&self, request: Request<Body>) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = self.api.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert!(status.is_success() || status == StatusCode::NO_CONTENT, "{status} {body:?}");
            body.to_vec()
        })
    }

    pub(crate) fn end(mut self, ending: Ending) {
        if let Some(thread) = self.thread.take() {
            self.end.send(ending).unwrap();
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.end.send(Ending::Crash);
            let _ = thread.join();
        }
    }
}

async fn live(config: &Config, ready: &mpsc::SyncSender<Router>, ended: mpsc::Receiver<Ending>) {
    let (trigger, shutdown): (Trigger, _) = shutdown();
    let store = Store::open(&config.node.state_dir).unwrap();
    let mut registry = metrics::registry(&config.node.name);
    let mut setup = Setup {
        node: &config.node,
        registry: &mut registry,
        readiness: &Readiness::default(),
        store: &store,
        shutdown,
        clock: Clock::start(),
    };
    let running: Running = match (&config.gateway, &config.mapserver) {
        (Some(section), _) => gateway::start(section.clone(), &mut setup).await.unwrap(),
        (_, Some(section)) => mapserver::start(section.clone(), &mut setup).await.unwrap(),
        _ => panic!("the test configures a role"),
    };
    ready.send(running.api).unwrap();
    match tokio::task::spawn_blocking(move || ended.recv()).await.unwrap() {
        Ok(Ending::Graceful) => {
            trigger.request();
            running.task.await.unwrap().unwrap();
        }
        _ => {
            running.task.abort();
            let _ = running.task.await;
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}
