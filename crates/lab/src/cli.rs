//! `weir lab …`: the commands of the lab.

use std::path::PathBuf;

use anyhow::Result;

use crate::delay_line::{self, DelayLineArgs};
use crate::topology::ServiceKind;

/// The commands under `weir lab`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum LabCommand {
    /// Run an experiment on this machine and report on it
    Run(RunArgs),
    /// Build a topology and leave it running
    Up(UpArgs),
    /// Take down what `up`, a crash or a power cut left
    Down(DownArgs),
    /// Hold frames between pairs of interfaces
    #[command(hide = true)]
    DelayLine(DelayLineArgs),
}

/// Experiments that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Overload spills to neighbouring edges, beside the published figures
    Paper,
}

/// `weir lab run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// What to run
    pub scenario: Scenario,
    /// Topology file; the paper's without one
    pub topology: Option<PathBuf>,
    /// The same shape in at most 90 s of load
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
        LabCommand::DelayLine(arguments) => delay_line::run(&arguments),
        _ => anyhow::bail!("not there yet"),
    }
}
