//! A role as a process: logs, readiness, the client commands against it, the service manager, the end.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const TOKEN: &str = "0123456789abcdef";
const CONFIG: &str = r#"
[node]
name = "control"
state_dir = "state"
[log]
format = "json"
[http]
listen = "127.0.0.1:0"
token_file = "token"
[mapserver]
listen = ["127.0.0.1:0"]
[[mapserver.site]]
name = "edges"
key_id = 1
key_file = "token"
eid_prefixes = [{ prefix = "10.100.0.0/16" }]
"#;

struct Role {
    child: Child,
    directory: tempfile::TempDir,
    manager: UnixDatagram,
    server: String,
}

fn secret(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Role {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        secret(&directory.path().join("token"), TOKEN);
        std::fs::write(directory.path().join("weir.toml"), CONFIG).unwrap();
        let notify = directory.path().join("notify");
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["mapserver", "--config"])
            .arg(directory.path().join("weir.toml"))
            .env("NOTIFY_SOCKET", &notify)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let server = log
            .by_ref()
            .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap())
            .find(|line| line["message"] == "started")
            .map(|line| format!("http://{}", line["api"].as_str().unwrap()))
            .unwrap();
        // Somebody must read on, or the role writes into a closed pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, directory, manager, server }
    }

    fn said(&self) -> String {
        let mut buffer = [0; 64];
        let length = self.manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn token(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    fn ask(&self, arguments: &[&str], with_token: bool) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(arguments).args(["--server", &self.server]);
        if with_token {
            command.arg("--token-file").arg(self.token());
        }
        command.output().unwrap()
    }

    fn stop(mut self) -> Option<i32> {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        self.child.wait().unwrap().code()
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

#[test]
fn a_role_lives_and_ends() {
    let role = Role::start();
    assert_eq!(role.said(), "READY=1");
    let output = role.ask(&["get", "weights"], true);
    assert_eq!(text(&output.stdout), "EID  INSTANCE  GATEWAY  LOCATORS\n", "{}", text(&output.stderr));
    let output = role.ask(&["get", "registrations", "-o", "json"], true);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "[]\n".to_owned()));
    let output = role.ask(&["get", "weights"], false);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("see --token-file"), "{}", text(&output.stderr));
    let output = role.ask(&["get", "mappings"], true);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/v1/mappings is asked of a gateway"), "{}", text(&output.stderr));
    let output = role.ask(&["explain", "web"], true);
    assert_eq!(output.status.code(), Some(1));
    let manager = role.manager.try_clone().unwrap();
    assert_eq!(role.stop(), Some(0));
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"STOPPING=1");
}

#[test]
fn a_second_role_on_the_same_state_is_refused() {
    let role = Role::start();
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["mapserver", "--config"])
        .arg(role.directory.path().join("weir.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("mapserver.redb"), "{}", text(&output.stderr));
    assert_eq!(role.stop(), Some(0));
}
