//! `weir balancer` in a namespace of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use aya::programs::xdp::{Xdp, XdpMode};
use dataplane::netns::NetnsGuard;
use dataplane::object::load_bench;

const TOKEN: &str = "0123456789abcdef";
pub(crate) const VIPS: &str = r#"
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

/// A directory with everything that a balancer reads but its configuration.
pub(crate) fn directory(vips: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("token"), TOKEN);
    write(&directory.path().join("vips.toml"), vips);
    directory
}

/// A namespace with a port; it ends with the value.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(test: &str) -> Self {
        let namespace = Self(format!("weir-bal-{}-{test}", std::process::id()));
        let name = namespace.0.as_str();
        run(&["ip", "netns", "add", name]);
        namespace.ip("link set lo up");
        namespace.make_port();
        namespace
    }

    /// The port, and what is connected to it.
    pub(crate) fn make_port(&self) {
        for arguments in [
            "link add eth0 type veth peer name eth1",
            "address add 10.0.0.5/24 dev eth0",
            "link set eth0 up",
            "link set eth1 up",
        ] {
            self.ip(arguments);
        }
    }

    pub(crate) fn ip(&self, arguments: &str) {
        run(&["ip", "-n", &self.0].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>());
    }

    /// What the port shows, such as its program and address.
    pub(crate) fn port(&self) -> String {
        let shown = Command::new("ip").args(["-n", &self.0, "link", "show", "eth0"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap()
    }

    /// Somebody else's program on an interface, until it is dropped.
    pub(crate) fn attach_other(&self, interface: &str) -> aya::Ebpf {
        let mut object = load_bench().unwrap();
        let program: &mut Xdp = object.program_mut("empty_xdp").unwrap().try_into().unwrap();
        program.load().unwrap();
        let _there = NetnsGuard::enter(&self.0).unwrap();
        program.attach(interface, XdpMode::Skb).unwrap();
        object
    }

    /// A command in the namespace that sees the machine's own mounts: what is pinned outlives it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&["ip", "netns", "delete", &self.0]);
        // Of a test that failed; otherwise nothing is there.
        for root in ["/sys/fs/bpf/weir", "/run/weir"] {
            let _ = std::fs::remove_dir_all(Path::new(root).join(&self.0));
        }
    }
}

#[track_caller]
pub(crate) fn run(arguments: &[&str]) {
    let status = Command::new(arguments[0]).args(&arguments[1..]).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

pub(crate) fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) struct Balancer<'a> {
    child: Child,
    namespace: &'a Namespace,
    directory: &'a Path,
    server: String,
}

/// A balancer on the port of the namespace, as far as its configuration. Lines of `more.toml` in the directory, if it is
/// there, are the configuration's last.
pub(crate) fn command(namespace: &Namespace, directory: &Path, mode: &str, on_stop: &str) -> Command {
    let more = std::fs::read_to_string(directory.join("more.toml")).unwrap_or_default();
    let config = format!(
        "[node]\nname = \"{}\"\nstate_dir = \"state\"\n[log]\nformat = \"json\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         token_file = \"token\"\n[balancer]\ninterface = \"eth0\"\nmode = \"{mode}\"\non_stop = \"{on_stop}\"\n\
         services = \"vips.toml\"\nflow_entries = 1024\ntable_memory_mib = 1\n{more}",
        namespace.0
    );
    write(&directory.join("balancer.toml"), &config);
    let mut command = namespace.command(env!("CARGO_BIN_EXE_weir"));
    command.args(["balancer", "--config"]).arg(directory.join("balancer.toml"));
    command
}

impl<'a> Balancer<'a> {
    pub(crate) fn start(namespace: &'a Namespace, directory: &'a Path, on_stop: &str, more: &[&str]) -> Self {
        Self::run(namespace, directory, command(namespace, directory, "generic", on_stop).args(more))
    }

    pub(crate) fn run(namespace: &'a Namespace, directory: &'a Path, command: &mut Command) -> Self {
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
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// An open path of the API, with its status line and headers.
    pub(crate) fn open(&self, path: &str) -> String {
        let _there = NetnsGuard::enter(&self.namespace.0).unwrap();
        let mut stream = TcpStream::connect(self.server.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The value of a metric; `None` if it is not shown.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.open("/metrics");
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.said(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    pub(crate) fn end(mut self, signal: &str) -> Option<i32> {
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
