//! `make bench`: what the parts cost, each figure beside its reference.

mod control;
mod live_frames;
mod overlay;
mod packet_rate;
mod path;
mod program_time;
pub mod rfc2544;
mod row;
mod tcp;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use self::path::BenchPath;
use self::rfc2544::Settings;
pub use row::{Bench, Row};

use crate::priority::go_first;
use crate::progress::Progress;
use crate::report::Machine;
use crate::requirements;

/// Arguments of the benchmarks.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where bench.json goes
    #[arg(long, default_value = "out/bench", value_name = "DIR")]
    pub out: PathBuf,
    /// Rounds of every figure, within which what is compared takes turns; packet rates and TCP have more and shorter
    /// ones, see --bursts and --tcp-seconds, and rfc2544 has 3 at most
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub rounds: usize,
    /// How long the packet rates run: --rounds * N / 4 rounds, rounded up, each of 4 bursts of 65 536 packets by every way
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub bursts: u32,
    /// How long TCP runs: --rounds * S turns of a second by either way
    #[arg(long, default_value_t = 3, value_name = "S")]
    pub tcp_seconds: u32,
    /// The short form of rfc2544: about a minute
    #[arg(long)]
    pub quick: bool,
    /// Only these groups
    #[arg(long, value_delimiter = ',', value_enum, value_name = "GROUP,…")]
    pub only: Vec<Group>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Nanoseconds per packet of each program
    Programs,
    /// Packets of 64 octets per second through two xTRs
    Packets,
    /// TCP throughput through two xTRs
    Tcp,
    /// Map-Requests and Map-Registers per second of a map server
    Control,
    /// Frames per second through the site balancer; up to ten minutes
    Rfc2544,
}

/// Measures, prints the table and writes `bench.json`. A group that fails is reported, the others still run.
///
/// # Errors
/// Nothing could be measured, one of the groups failed, or the result cannot be written.
pub fn run(args: &Args) -> Result<()> {
    requirements::check(&["ip", "ethtool"], false)?;
    go_first();
    let mut bench = Bench { machine: Machine::here(), rows: Vec::new(), skipped: Vec::new() };
    for group in [Group::Programs, Group::Packets, Group::Tcp, Group::Control, Group::Rfc2544] {
        if !args.only.is_empty() && !args.only.contains(&group) {
            continue;
        }
        match measure(group, args) {
            Ok(rows) => bench.rows.extend(rows),
            Err(error) => bench.skipped.push(format!("{group:?}: {error:#}")),
        }
    }
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let file = args.out.join("bench.json");
    let json = serde_json::to_string_pretty(&bench)?;
    fs::write(&file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    print(&bench.table())?;
    anyhow::ensure!(bench.skipped.is_empty(), "{} of the groups could not be measured", bench.skipped.len());
    Ok(())
}

fn measure(group: Group, args: &Args) -> Result<Vec<Row>> {
    let rounds = args.rounds.max(1);
    match group {
        Group::Programs => program_time::rows(&BenchPath::build()?, rounds),
        Group::Packets => packet_rate::rows(&BenchPath::build()?, rounds, args.bursts.max(1)),
        Group::Tcp => {
            let turns = rounds * usize::try_from(args.tcp_seconds.max(1))?;
            Ok(vec![tcp::row(&BenchPath::build()?, turns)?])
        }
        Group::Control => control::rows(rounds),
        Group::Rfc2544 => rfc2544_rows(args),
    }
}

/// Table, plots and result.json beside bench.json, which has the rows that are aimed at.
fn rfc2544_rows(args: &Args) -> Result<Vec<Row>> {
    let settings = Settings::limited(args.quick, args.rounds, args.bursts);
    let result = rfc2544::run(&settings, &Progress::new())?;
    rfc2544::write(&result, &args.out.join("rfc2544"))?;
    print(&rfc2544::table(&result))?;
    anyhow::ensure!(result.skipped.is_empty(), "{}", result.skipped.join("; "));
    Ok(result.targets.into_iter().chain(result.programs).collect())
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the table")
}
