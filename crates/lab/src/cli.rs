//! `weir lab …`: the commands of the lab.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::bench::rfc2544::{self, Settings};
use crate::calibrate::calibrate;
use crate::delay_line::{self, DelayLineArgs};
use crate::lab::Lab;
use crate::model_service::{self, ModelServiceArgs};
use crate::progress::Progress;
use crate::state::DIRECTORY;
use crate::topology::{ServiceKind, Topology};
use crate::{bench, down, interrupt, load, paper, report, requirements};

/// The commands under `weir lab`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum LabCommand {
    /// Run an experiment on this machine and report on it
    Run(RunArgs),
    /// Build a topology and leave it running
    Up(UpArgs),
    /// Take down what `up`, a crash or a power cut left
    Down(DownArgs),
    /// Measure data path and control path beside their references
    Bench(bench::Args),
    /// Hold frames between pairs of interfaces
    #[command(hide = true)]
    DelayLine(DelayLineArgs),
    /// Offer load at its moments and record what became of every request
    #[command(hide = true)]
    Load(load::Args),
    /// Serve one page with a fixed service time
    #[command(hide = true)]
    ModelService(ModelServiceArgs),
}

/// Experiments that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Overload spills to neighbouring edges, beside the published figures
    Paper,
    /// Frames per second through the site balancer, beside bare XDP, iptables and nftables
    Rfc2544,
}

/// `weir lab run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// What to run
    pub scenario: Scenario,
    /// Topology file; the paper's without one
    pub topology: Option<PathBuf>,
    /// The short form: at most 90 s of load (paper), or about a minute (rfc2544)
    #[arg(long)]
    pub quick: bool,
    /// Where result.json, plots and logs go
    #[arg(long, default_value = "lab-out")]
    pub out: PathBuf,
    /// Print result.json instead of the table
    #[arg(long)]
    pub json: bool,
    /// What serves at the edges, whatever the file says
    #[arg(long)]
    pub service: Option<ServiceKind>,
    /// Keep connections open instead of one per request
    #[arg(long)]
    pub keepalive: bool,
}

/// `weir lab up`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpArgs {
    /// Topology file; the paper's without one
    pub topology: Option<PathBuf>,
    /// What serves at the edges, whatever the file says
    #[arg(long)]
    pub service: Option<ServiceKind>,
    /// Route to the first edge without an overlay: the network and the services alone
    #[arg(long)]
    pub plain: bool,
}

/// `weir lab down`.
#[derive(Clone, Debug, clap::Args)]
pub struct DownArgs {
    /// Only this lab; without it, every lab that no running process looks after
    pub id: Option<String>,
}

/// Runs one of them. Blocking: the lab starts programs and threads in namespaces, not tasks.
pub fn run(command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Run(arguments) => {
            interrupt::catch();
            run_scenario(&arguments)
        }
        LabCommand::Up(arguments) => {
            interrupt::catch();
            up(&arguments)
        }
        LabCommand::Down(arguments) => down::down(arguments.id.as_deref()),
        LabCommand::Bench(arguments) => {
            interrupt::catch();
            bench::run(&arguments)
        }
        LabCommand::DelayLine(arguments) => delay_line::run(&arguments),
        LabCommand::Load(arguments) => load::run(&arguments),
        LabCommand::ModelService(arguments) => model_service::run(&arguments),
    }
}

fn run_scenario(arguments: &RunArgs) -> Result<()> {
    match arguments.scenario {
        Scenario::Paper => run_paper(arguments),
        Scenario::Rfc2544 => run_rfc2544(arguments),
    }
}

fn run_rfc2544(arguments: &RunArgs) -> Result<()> {
    if arguments.topology.is_some() || arguments.service.is_some() || arguments.keepalive {
        bail!("rfc2544 has its own path: a topology, --service and --keepalive mean nothing to it");
    }
    let settings = if arguments.quick { Settings::quick() } else { Settings::full() };
    let result = rfc2544::run(&settings, &Progress::new())?;
    rfc2544::write(&result, &arguments.out)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print!("{}", rfc2544::table(&result));
        println!("{}: result.json, plots", arguments.out.display());
    }
    anyhow::ensure!(result.skipped.is_empty(), "not everything could be measured");
    Ok(())
}

fn run_paper(arguments: &RunArgs) -> Result<()> {
    let progress = Progress::new();
    let mut topology = topology(arguments.topology.as_deref(), arguments.service, arguments.quick)?;
    topology.load.keepalive |= arguments.keepalive;
    require(&topology)?;
    take_down_stale(&progress)?;
    let out = prepare(&arguments.out)?;
    let id = fresh_id();
    progress.step(&format!("building lab {id}"));
    let mut lab = Lab::build(&id, topology, &out.join("logs"))?;
    let result = paper::run(&mut lab, arguments.quick, &out, &progress);
    progress.step("taking the lab down");
    lab.down()?;
    let result = result?;
    paper::write(&result, &out)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print!("{}", report::table(&result));
        println!("{}: result.json, plots, logs", out.display());
    }
    Ok(())
}

/// The output folder, without an earlier run's logs.
fn prepare(out: &Path) -> Result<PathBuf> {
    let logs = out.join("logs");
    match fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context(logs.display().to_string());
        }
        _ => {}
    }
    fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    // Programs are started with this path from anywhere.
    out.canonicalize().with_context(|| out.display().to_string())
}

fn take_down_stale(progress: &Progress) -> Result<()> {
    for id in down::take_down_stale()? {
        progress.step(&format!("lab {id}, whose process has died, taken down"));
    }
    Ok(())
}

fn topology(file: Option<&Path>, service: Option<ServiceKind>, quick: bool) -> Result<Topology> {
    let mut topology = Topology::load(file, quick)?;
    if let Some(kind) = service {
        topology.service.kind = kind;
    }
    Ok(topology)
}

/// Whether the machine has what the topology asks for.
fn require(topology: &Topology) -> Result<()> {
    let nginx = topology.service.kind == ServiceKind::Nginx;
    let mut programs = vec!["ip", "ethtool", "prometheus"];
    programs.extend(nginx.then_some("nginx"));
    requirements::check(&programs, nginx)
}

/// Ids of labs are short: they are part of every name.
fn fresh_id() -> String {
    format!("{:x}", std::process::id())
}

fn up(arguments: &UpArgs) -> Result<()> {
    let progress = Progress::new();
    let topology = topology(arguments.topology.as_deref(), arguments.service, false)?;
    require(&topology)?;
    take_down_stale(&progress)?;
    let id = fresh_id();
    progress.step(&format!("building lab {id}"));
    let mut lab = Lab::build(&id, topology, &Path::new(DIRECTORY).join(&id).join("logs"))?;
    lab.start_services()?;
    if arguments.plain {
        lab.network().route_plainly(lab.topology())?;
    } else {
        progress.step("starting the overlay");
        lab.start_overlay()?;
        paper::begin(&mut lab)?;
    }
    let calibrated = calibrate(&lab, |text| progress.step(text))?;
    progress.step(&format!("edge 1 saturates at {:.0} requests/s", calibrated.saturation));
    if !arguments.plain {
        lab.start_controller()?;
    }
    explain(&lab);
    lab.keep()?;
    Ok(())
}

fn explain(lab: &Lab) {
    let service = &lab.topology().service;
    println!(
        "lab {} is up; configuration in {}, logs in {}",
        lab.id(),
        lab.directory().display(),
        lab.logs().display()
    );
    for netns in lab.network().namespaces() {
        println!("    {}", netns.name());
    }
    println!(
        "try:  nsenter --net=/run/netns/{} curl -si http://{}:{}/",
        lab.network().client.name(),
        service.address,
        service.port
    );
    println!("end:  weir lab down {}", lab.id());
}
