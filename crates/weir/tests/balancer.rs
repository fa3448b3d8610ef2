//! A balancer as a process on a port of its own network namespace: start, changes, a kill, a restart, the end.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const TOKEN: &str = "0123456789abcdef";
const VIPS: &str = r#"
[[vips]]
name = "web"
address = "192.0.2.10"
port = 80
drain = "1s"
[[vips.backends]]
name = "a"
address = "10.0.0.11"
mac = "02:00:00:00:00:0b"
[[vips.backends]]
name = "b"
address = "10.0.0.12"
mac = "02:00:00:00:00:0c"
"#;

/// A namespace with a port; it ends with the value.
struct Namespace(String);

impl Namespace {
    fn new(test: &str) -> Self {
        let namespace = Self(format!("weir-{test}-{}", std::process::id()));
        let name = namespace.0.as_str();
        run(&["ip", "netns", "add", name]);
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"],
            &["address", "add", "10.0.0.5/24", "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["link", "set", "eth1", "up"],
        ] {
            run(&[&["ip", "-n", name][..], arguments].concat());
        }
        namespace
    }

    /// A command in the namespace that sees the machine's own mounts: what is pinned outlives it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&["ip", "netns", "delete", &self.0]);
        // Of a test that failed; otherwise nothing is there.
        let _ = std::fs::remove_dir_all(Path::new("/sys/fs/bpf/weir").join(&self.0));
    }
}

#[track_caller]
fn run(arguments: &[&str]) {
    let status = Command::new(arguments[0]).args(&arguments[1..]).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

struct Balancer<'a> {
    child: Child,
    namespace: &'a Namespace,
    directory: &'a Path,
    server: String,
}

/// A balancer on the port of the namespace, as far as its configuration.
fn command(namespace: &Namespace, directory: &Path, mode: &str, on_stop: &str) -> Command {
    let config = format!(
        "[node]\nname = \"{}\"\nstate_dir = \"state\"\n[log]\nformat = \"json\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         token_file = \"token\"\n[balancer]\ninterface = \"eth0\"\nmode = \"{mode}\"\non_stop = \"{on_stop}\"\n\
         services = \"vips.toml\"\nflow_entries = 1024\ntable_memory_mib = 1\n",
        namespace.0
    );
    write(&directory.join("balancer.toml"), &config);
    let mut command = namespace.command(env!("CARGO_BIN_EXE_weir"));
    command.args(["balancer", "--config"]).arg(directory.join("balancer.toml"));
    command
}

impl<'a> Balancer<'a> {
    fn start(namespace: &'a Namespace, directory: &'a Path, on_stop: &str, more: &[&str]) -> Self {
        Self::run(namespace, directory, command(namespace, directory, "generic", on_stop).args(more))
    }

    fn run(namespace: &'a Namespace, directory: &'a Path, command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let server = log.by_ref().map(Result::unwrap).find_map(|line| {
            said.push_str(&line);
            let line: serde_json::Value = serde_json::from_str(&line).ok()?;
            (line["message"] == "started").then(|| format!("http://{}", line["api"].as_str().unwrap()))
        });
        // Somebody must read on, or the role writes into a closed pipe.
        std::thread::spawn(move || log.for_each(drop));
        let server = server.unwrap_or_else(|| panic!("it did not start: {said}"));
        Self { child, namespace, directory, server }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_weir"));
        command.args(arguments).args(["--server", &self.server, "--token-file"]);
        command.arg(self.directory.join("token")).output().unwrap()
    }

    #[track_caller]
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.said(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    fn end(mut self, signal: &str) -> Option<i32> {
        run(&["kill", signal, &self.child.id().to_string()]);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Balancer<'_> {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const FLOW: [&str; 6] =
    ["explain", "flow", "--source", "198.51.100.7:40000", "--destination", "192.0.2.10:80"];

#[test]
fn a_balancer_lives_is_changed_and_ends() {
    let namespace = Namespace::new("bal");
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("token"), TOKEN);
    write(&directory.path().join("vips.toml"), VIPS);
    let balancer = Balancer::start(&namespace, directory.path(), "keep", &[]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], &status["in_step"]), (&"file".into(), &true.into()), "{status}");
    let slots = |status: &serde_json::Value, backend: usize| {
        status["vips"][0]["backends"][backend]["slots"].as_u64().unwrap()
    };
    assert!(slots(&status, 0).abs_diff(slots(&status, 1)) <= 1, "{status}");
    let before = balancer.json(&FLOW);
    assert_eq!((&before["vip"], &before["verdict"]), (&"web".into(), &"forwarded".into()), "{before}");

    // Drained by a file that is put into force.
    let drained = VIPS.replace("address = \"10.0.0.12\"", "address = \"10.0.0.12\"\nweight = 0");
    let file = directory.path().join("drained.toml");
    write(&file, &drained);
    let file = file.to_str().unwrap();
    assert_eq!(balancer.said(&["apply", file, "--dry-run"]), "web: would be changed\n");
    assert_eq!(balancer.said(&["apply", file]), "web: changed\n");
    assert_eq!(balancer.said(&["apply", file]), "nothing to change\n");
    let backends = balancer.said(&["get", "backends"]);
    let b = backends.lines().find(|line| line.starts_with("web  b")).unwrap();
    assert!(b.contains("drained") && b.contains("  0  "), "{backends}");
    assert_eq!(balancer.end("-KILL"), None);

    // What was changed holds, in the kernel and after a restart.
    let balancer = Balancer::start(&namespace, directory.path(), "keep", &[]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], &status["generation"]), (&"api".into(), &2.into()), "{status}");
    assert_eq!((slots(&status, 0), slots(&status, 1)), (1021, 0));
    // A connection that begins goes to who is left, one from before the change as soon as the drain is over.
    assert_eq!(balancer.json(&[&FLOW[..], &["--first"]].concat())["backend"], "a");
    let follows = || balancer.json(&FLOW)["backend"] == "a";
    assert!((0..50).any(|_| follows() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
    assert_eq!(balancer.end("-TERM"), Some(0));

    // Back to the file, and nothing is left behind.
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &["--reset-from-file"]);
    let status = balancer.json(&["get", "status"]);
    assert_eq!((&status["source"], slots(&status, 1) > 500), (&"file".into(), true), "{status}");
    assert_eq!(balancer.end("-TERM"), Some(0));
    let link = Command::new("ip").args(["-n", &namespace.0, "link", "show", "eth0"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&link.stdout).contains("xdp"));
}

#[test]
fn a_port_with_jumbo_frames_is_refused_with_a_way_out() {
    let namespace = Namespace::new("jumbo");
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("token"), TOKEN);
    write(&directory.path().join("vips.toml"), VIPS);
    for end in ["eth0", "eth1"] {
        run(&["ip", "-n", &namespace.0, "link", "set", end, "mtu", "9000"]);
    }
    let refused = command(&namespace, directory.path(), "native", "keep").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("eth0 (MTU 9000) refuses XDP") && said.contains("lower its MTU"), "{said}");
    let left = Path::new("/sys/fs/bpf/weir").join(&namespace.0);
    assert!(!left.exists(), "a start that fails leaves nothing");

    // The two ways out that it names.
    let balancer = Balancer::start(&namespace, directory.path(), "detach", &[]);
    assert_eq!(balancer.end("-TERM"), Some(0));
    for end in ["eth0", "eth1"] {
        run(&["ip", "-n", &namespace.0, "link", "set", end, "mtu", "3498"]);
    }
    let mut native = command(&namespace, directory.path(), "native", "detach");
    let balancer = Balancer::run(&namespace, directory.path(), &mut native);
    let link = Command::new("ip").args(["-n", &namespace.0, "link", "show", "eth0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&link.stdout).contains(" xdp "));
    assert_eq!(balancer.end("-TERM"), Some(0));
}

#[test]
fn a_stop_during_the_start_takes_down_what_was_built() {
    let namespace = Namespace::new("early");
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("token"), TOKEN);
    write(&directory.path().join("vips.toml"), VIPS);
    let mut command = command(&namespace, directory.path(), "generic", "detach");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.by_ref().any(|line| line.contains("VIPs read")), "it says what it starts with");
    run(&["kill", "-TERM", &child.id().to_string()]);
    let said: Vec<String> = log.collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said:#?}");
    assert!(!Path::new("/sys/fs/bpf/weir").join(&namespace.0).exists(), "{said:#?}");
}
