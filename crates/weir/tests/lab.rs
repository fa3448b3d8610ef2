//! `weir lab` on a real kernel: what it builds has the delays it names, and nothing of it outlives `weir lab down`,
//! whatever happened before. Needs root, iproute2, ethtool, ping, nginx and prometheus.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// One edge, quickly calibrated and quickly over.
const SMALL: &str = r#"
name = "small"
[service]
kind = "nginx"
address = "10.100.0.1"
port = 80
page_bytes = 4096
digest_kib = 16
[calibration]
saturation = 800.0
stable = 600.0
tolerance = 0.2
limit = "8s"
[[edge]]
name = "edge1"
capacity_ratio = 1.0
rtt = "24ms"
[load]
points = [{ at = "0s", rps = 10.0 }, { at = "60s", rps = 10.0 }]
sources = 2
timeout = "5s"
keepalive = false
[control]
interval = "1s"
source = "gateway"
scrape_interval = "1s"
dead_band = 0.01
[underlay]
mtu = 1600
[quick]
duration = "60s"
interval = "1s"
scrape_interval = "1s"
"#;

/// A lab that is taken down when the test is over, also when it failed.
struct Guard {
    child: Child,
    id: String,
    directory: tempfile::TempDir,
}

impl Guard {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let topology = directory.path().join("small.toml");
        fs::write(&topology, SMALL).unwrap();
        let mut command = weir(arguments);
        command.arg(&topology).current_dir(directory.path());
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        // Labs are named after the process that builds them.
        let id = format!("{:x}", child.id());
        Self { child, id, directory }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn wait_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: not within 120 s\n{}", self.log());
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: {} before\n{}", ended.unwrap(), self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn state(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(format!("/run/weir-lab/{}.json", self.id)).ok()?).ok()
    }

    fn paths(&self, key: &str) -> Vec<String> {
        let state = self.state().expect("the state file");
        state[key].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect()
    }

    fn netns(&self, host: &str) -> String {
        format!("weir-{}-{host}", self.id)
    }

    /// Everything on the machine that carries the lab's name.
    fn left_over(&self) -> Vec<String> {
        let name = format!("weir-{}", self.id);
        let directories = ["/run/netns", "/sys/fs/cgroup", "/sys/fs/cgroup/cpu"].map(Path::new);
        let pins = (Path::new("/sys/fs/bpf/weir"), format!("lab-{}-", self.id));
        let states = (Path::new("/run/weir-lab"), self.id.clone());
        let places = directories.map(|place| (place, name.clone())).into_iter().chain([pins, states]);
        let mut left: Vec<String> = places.flat_map(|(place, name)| entries(place, &name)).collect();
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        left.extend(
            String::from_utf8_lossy(&links).lines().filter(|line| line.contains(&name)).map(str::to_owned),
        );
        left.extend(processes_of(&self.id));
        left
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = weir(&["lab", "down", &self.id]).output();
    }
}

fn weir(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn entries(place: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    names.map(|entry| entry.path().display().to_string()).collect()
}

/// Processes that name the lab's directory in their arguments, as all but the delay line do.
fn processes_of(id: &str) -> Vec<String> {
    let own = format!("/run/weir-lab/{id}/");
    let arguments = |entry: fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        Some(format!(
            "{}: {}",
            entry.path().display(),
            String::from_utf8_lossy(&arguments).replace('\0', " ")
        ))
    };
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(arguments);
    all.filter(|line| line.contains(&own)).collect()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn kill_9_of_a_running_lab_then_down_leaves_nothing() {
    let mut lab = Guard::start(&["lab", "run", "paper", "--quick"]);
    lab.wait_until("the load runs", |lab| lab.log().contains("without: 60 s of load"));
    assert!(!lab.paths("cgroups").is_empty());
    for path in lab.paths("cgroups").iter().chain(&lab.paths("pins")) {
        assert!(Path::new(path).exists(), "{path} is written down and not there");
    }
    lab.signal("-KILL");
    lab.child.wait().unwrap();
    assert!(processes_of(&lab.id).len() >= 5, "the programs outlive the lab: {:?}", processes_of(&lab.id));

    let down = weir(&["lab", "down", &lab.id]).output().unwrap();
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(lab.left_over(), Vec::<String>::new());
}

#[test]
fn an_interrupted_lab_takes_itself_down() {
    let mut lab = Guard::start(&["lab", "run", "paper", "--quick"]);
    lab.wait_until("the lab is being built", |lab| lab.log().contains("calibrating"));
    lab.signal("-INT");
    let status = lab.child.wait().unwrap();
    assert!(!status.success());
    assert!(lab.log().contains("interrupted"), "{}", lab.log());
    assert_eq!(lab.left_over(), Vec::<String>::new());
}

#[test]
fn up_stays_has_the_delay_it_names_and_goes_with_down() {
    let mut lab = Guard::start(&["lab", "up", "--plain"]);
    assert!(lab.child.wait().unwrap().success(), "{}", lab.log());
    assert_eq!(lab.state().unwrap()["owner"], serde_json::Value::Null);

    let netns = format!("/run/netns/{}", lab.netns("client"));
    let inside =
        |arguments: &[&str]| Command::new("nsenter").arg(format!("--net={netns}")).args(arguments).output();
    let ping = inside(&["ping", "-q", "-c", "40", "-i", "0.01", "10.100.0.1"]).unwrap();
    let answer = text(&ping);
    assert!(answer.contains("40 received"), "{answer}");
    let figures = answer.split(" = ").nth(1).unwrap_or_default();
    let least: f64 = figures.split('/').next().and_then(|figure| figure.parse().ok()).unwrap_or_default();
    assert!((24.0..24.5).contains(&least), "24 ms are {least} ms: {answer}");
    let page = inside(&["curl", "-sSi", "--max-time", "5", "http://10.100.0.1/"]).unwrap();
    assert!(text(&page).contains("X-Weir-Edge: edge1"), "{}", text(&page));

    let down = weir(&["lab", "down", &lab.id]).output().unwrap();
    assert!(down.status.success(), "{}", text(&down));
    assert_eq!(lab.left_over(), Vec::<String>::new());
}

#[test]
fn down_leaves_a_lab_alone_that_is_looked_after() {
    let mut lab = Guard::start(&["lab", "run", "paper", "--quick"]);
    lab.wait_until("the lab is there", |lab| lab.log().contains("calibrating"));
    let down = weir(&["lab", "down"]).output().unwrap();
    assert!(
        text(&down).contains(&format!("is running it; `weir lab down {}` stops that", lab.id)),
        "{}",
        text(&down)
    );
    assert!(lab.child.try_wait().unwrap().is_none(), "{}", lab.log());
    let down = weir(&["lab", "down", &lab.id]).output().unwrap();
    assert!(down.status.success(), "{}", text(&down));
    assert!(!lab.child.wait().unwrap().success());
    assert_eq!(lab.left_over(), Vec::<String>::new());
}
