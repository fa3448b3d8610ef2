//! The roles' HTTP APIs and `weir get`, asked from inside their namespaces; and waiting for what they tell.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::netns::Netns;
use serde_json::Value;

/// Longer than anything takes on a busy machine; only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const ADDRESS: &str = "127.0.0.1:9341";

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Metrics by name and labels as they are written.
pub(crate) type Metrics = BTreeMap<String, f64>;

/// One role's API.
pub(crate) struct Api {
    netns: Netns,
    token_file: Option<PathBuf>,
}

impl Api {
    pub(crate) fn new(netns: Netns, token_file: Option<PathBuf>) -> Self {
        Self { netns, token_file }
    }

    /// The answer to a GET, if the role is there and well.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let (status, body) = self.request("GET", path, None, self.token().as_deref())?;
        (status == 200).then(|| serde_json::from_str(&body).unwrap())
    }

    /// Status and body of a PUT.
    pub(crate) fn put(&self, path: &str, body: &Value, token: Option<&str>) -> (u16, String) {
        self.request("PUT", path, Some(body), token).expect("the role answers")
    }

    /// Status and body of a DELETE.
    pub(crate) fn delete(&self, path: &str, body: &Value, token: Option<&str>) -> (u16, String) {
        self.request("DELETE", path, Some(body), token).expect("the role answers")
    }

    /// The token of this API.
    pub(crate) fn token(&self) -> Option<String> {
        self.token_file.as_ref().map(|file| std::fs::read_to_string(file).unwrap())
    }

    /// Waits until the role says that it is ready.
    pub(crate) fn wait_ready(&self) {
        let what = format!("{} is ready", self.netns.name());
        wait_for(&what, || self.request("GET", "/readyz", None, None).filter(|(status, _)| *status == 200));
    }

    /// What `weir get` prints as JSON.
    pub(crate) fn weir_get(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("get").args(arguments).args(["-o", "json"]);
        if let Some(file) = &self.token_file {
            command.arg("--token-file").arg(file);
        }
        // A child is in the namespace of the thread that started it.
        let output = self.netns.run(|| Ok(command.output()?)).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "weir get {arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// All metrics.
    pub(crate) fn metrics(&self) -> Metrics {
        let (_, text) = self.request("GET", "/metrics", None, None).expect("the role answers");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: Option<&str>,
    ) -> Option<(u16, String)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n{token}\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let ask = || -> anyhow::Result<()> {
            let mut stream = TcpStream::connect(ADDRESS)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)?;
            Ok(())
        };
        self.netns.run(ask).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

/// The sum of the samples of a metric whose labels contain `labels`.
pub(crate) fn sum(metrics: &Metrics, name: &str, labels: &str) -> f64 {
    let matches = |key: &&String| {
        key.strip_prefix(name).is_some_and(|rest| !rest.starts_with('_') && rest.contains(labels))
    };
    metrics.iter().filter(|(key, _)| matches(key)).map(|(_, value)| value).sum()
}
