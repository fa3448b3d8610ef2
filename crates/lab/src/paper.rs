//! The experiment: the same load without balancing and with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use node::mapserver::api::{Publication, Registration, Subscription};
use serde_json::json;

use crate::api::Api;
use crate::calibrate::{Calibrated, calibrate};
use crate::interrupt;
use crate::lab::{Lab, url};
use crate::load::{RecordFile, read_records};
use crate::network::{Delay, client_sources};
use crate::observe::{Observed, Subject, observe};
use crate::progress::Progress;
use crate::report::{LabResult, LinkDelay, Machine, Reduction, RunResult, Runs};
use crate::roles::CLIENT_GATEWAY;
use crate::schedule::{Arrivals, Point, Schedule};
use crate::service;
use crate::topology::{ServiceKind, Topology};

const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// After the last answer the generator still writes its file.
const LOAD_SLACK: Duration = Duration::from_secs(15);

/// One run as it was recorded.
struct Run {
    records: RecordFile,
    observed: Observed,
}

/// Runs both and puts the figures together. Records and logs go to `out`.
pub(crate) fn run(lab: &mut Lab, quick: bool, out: &Path, progress: &Progress) -> Result<LabResult> {
    progress.step("starting services, map server, gateways and Prometheus");
    lab.start_services()?;
    lab.start_overlay()?;
    begin(lab)?;
    progress.step("calibrating: the quota at which edge 1 saturates");
    let calibrated = calibrate(lab, |text| progress.step(text))?;
    progress.step(&format!("edge 1 saturates at {:.0} requests/s", calibrated.saturation));

    let without = load(lab, "without", false, out, progress)?;
    // A queue that the first run left behind is not the second run's.
    lab.stop_services()?;
    lab.start_services()?;
    progress.step("starting the controller");
    lab.start_controller()?;
    let with = load(lab, "with", true, out, progress)?;
    lab.stop("controller")?;
    Ok(result(lab, quick, &calibrated, &without, &with))
}

/// Waits for the overlay to be whole and sends everything to the first edge.
pub(crate) fn begin(lab: &mut Lab) -> Result<()> {
    await_registrations(lab)?;
    set_first_edge_only(lab)
}

/// The load curve of a topology.
fn schedule(topology: &Topology) -> Result<Schedule> {
    let points = topology.load.points.iter().map(|(at, rps)| Point { at_s: at.as_secs_f64(), rps: *rps });
    Ok(Schedule::new(points.collect(), Arrivals::Even)?)
}

fn load(lab: &mut Lab, name: &str, controlled: bool, out: &Path, progress: &Progress) -> Result<Run> {
    let length = lab.topology().load.duration();
    let limit = length + lab.topology().load.timeout + LOAD_SLACK;
    let records = out.join(format!("requests-{name}.jsonl"));
    let command = load_command(lab, &records)?;
    let subject = subject(lab, controlled)?;
    let (control, client) = (lab.network().control.clone(), lab.network().client.clone());
    let (stop, latest) = (AtomicBool::new(false), Mutex::new(String::new()));
    let mut bar = progress.bar(name, length);
    let observed = thread::scope(|scope| {
        let observer = scope.spawn(|| control.run(|| observe(&subject, &stop, &latest)));
        let ended = lab.run_to_end(&format!("load-{name}"), command, &client, limit, |elapsed| {
            let words = latest.lock().map(|words| words.clone()).unwrap_or_default();
            bar.at(elapsed.min(length), &words);
        });
        stop.store(true, Ordering::Relaxed);
        let observed = observer.join().map_err(|_| anyhow::anyhow!("the observer panicked"))?;
        ended.and(observed)
    })?;
    fs::write(out.join(format!("observed-{name}.json")), serde_json::to_vec(&observed)?)?;
    Ok(Run { records: read_records(&records)?, observed })
}

fn load_command(lab: &Lab, records: &Path) -> Result<Command> {
    let topology = lab.topology();
    let file = lab.directory().join("schedule.json");
    fs::write(&file, serde_json::to_vec(&schedule(topology)?)?)?;
    let sources: Vec<String> =
        client_sources(topology.load.sources).iter().map(ToString::to_string).collect();
    let mut command = service::own_program()?;
    command.args(["lab", "load", "--progress", "--schedule"]).arg(file);
    command.arg(format!("--target=http://{}:{}/", topology.service.address, topology.service.port));
    command.arg(format!("--sources={}", sources.join(",")));
    command.arg(format!("--timeout={}ms", topology.load.timeout.as_millis()));
    command.arg("--out").arg(records);
    if topology.load.keepalive {
        command.arg("--keepalive");
    }
    Ok(command)
}

fn subject(lab: &Lab, controlled: bool) -> Result<Subject> {
    Ok(Subject {
        token: lab.token()?,
        eid: lab.service_eid(),
        rlocs: lab.network().edges.iter().map(|edge| edge.rloc.to_string()).collect(),
        controlled,
    })
}

/// Every edge has registered the service, and the client gateway wants to hear of it.
fn await_registrations(lab: &mut Lab) -> Result<()> {
    let eid = lab.service_eid();
    let edges = lab.network().edges.len();
    settle(lab, "edges to register and the client gateway to subscribe", |api| {
        let registrations: Vec<Registration> = api.json(&url::mapserver("/v1/registrations"))?;
        let subscriptions: Vec<Subscription> = api.json(&url::mapserver("/v1/subscriptions"))?;
        let registered = registrations.iter().filter(|entry| entry.eid.0.to_string() == eid).count();
        let subscribed =
            subscriptions.iter().any(|entry| entry.eid.0.to_string() == eid && !entry.unacknowledged);
        Ok(registered == edges && subscribed)
    })
}

/// The weights of the run without balancing: set once, and in force before the load begins.
fn set_first_edge_only(lab: &mut Lab) -> Result<()> {
    let eid = lab.service_eid();
    let edges = lab.network().edges.iter().enumerate();
    let locators = edges.map(|(index, edge)| {
        let weight = if index == 0 { 100 } else { 0 };
        json!({"rloc": edge.rloc, "priority": 1, "weight": weight})
    });
    let locators: Vec<_> = locators.collect();
    let weights = json!({"eid": eid, "instance_id": 0, "gateway": CLIENT_GATEWAY, "locators": locators});
    let token = lab.token()?;
    let control = lab.network().control.clone();
    control.run(|| Api::new(&token)?.put(&url::mapserver("/v1/weights"), &weights))?;
    settle(lab, "the client gateway to take the weights", |api| {
        let publications: Vec<Publication> = api.json(&url::mapserver("/v1/publications"))?;
        let newest = publications.iter().filter(|entry| entry.eid.0.to_string() == eid);
        let newest = newest.max_by_key(|entry| entry.published_at_unix_ns);
        Ok(newest.is_some_and(|entry| entry.acked_at_unix_ns.is_some()))
    })
}

fn settle(lab: &mut Lab, what: &str, holds: impl Fn(&Api) -> Result<bool> + Sync) -> Result<()> {
    let token = lab.token()?;
    let control = lab.network().control.clone();
    let came = interrupt::wait(SETTLE_LIMIT, || {
        lab.check_processes()?;
        control.run(|| holds(&Api::new(&token)?))
    })?;
    if !came {
        bail!("waited {SETTLE_LIMIT:?} for {what}; see {}", lab.logs().display());
    }
    Ok(())
}

fn result(lab: &Lab, quick: bool, calibrated: &Calibrated, without: &Run, with: &Run) -> LabResult {
    let topology = lab.topology();
    let edges: Vec<String> = topology.edges.iter().map(|edge| edge.name.clone()).collect();
    let started = with.records.header.started_at_unix_ns;
    let stable = topology.capacity(&topology.edges[0]);
    let crossing_s = schedule(topology).ok().and_then(|schedule| schedule.first_reaches(stable));
    let runs = Runs {
        without: RunResult::of(&without.records.records, &edges),
        with: RunResult::of(&with.records.records, &edges),
    };
    LabResult {
        scenario: topology.name.clone(),
        quick,
        machine: Machine::here(),
        link_delay: match lab.delay() {
            Delay::Netem => LinkDelay::Netem,
            Delay::DelayLine => LinkDelay::DelayLine,
        },
        service: match topology.service.kind {
            ServiceKind::Nginx => "nginx".into(),
            ServiceKind::Model => "model".into(),
        },
        keepalive: topology.load.keepalive,
        capacities: topology.edges.iter().map(|edge| (edge.name.clone(), topology.capacity(edge))).collect(),
        calibration: json!(calibrated),
        versions: versions(),
        offered: topology.load.points.iter().map(|(at, rps)| [at.as_secs_f64(), *rps]).collect(),
        reduction: Reduction::between(&runs.without, &runs.with),
        runs,
        control: with.observed.control(started, stable, crossing_s),
        weights: with.observed.weights(started),
    }
}

fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("weir".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    for (program, argument) in [("nginx", "-v"), ("prometheus", "--version")] {
        if let Ok(output) = Command::new(program).arg(argument).output() {
            let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            let said = String::from_utf8_lossy(&said);
            versions.insert(program.to_owned(), said.lines().next().unwrap_or_default().to_owned());
        }
    }
    versions
}

/// Writes `result.json` and the figures.
pub(crate) fn write(result: &LabResult, out: &Path) -> Result<()> {
    let file = out.join("result.json");
    let text = serde_json::to_string_pretty(result)?;
    fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
    crate::plot::write_all(result, out)?;
    Ok(())
}
