//! Open-loop HTTP/1.1 load: every request has a moment at which it is due, whatever became of the ones before it.
//!
//! Response times count from that moment, so a client that waits is part of the figure ("coordinated omission" is
//! not possible), and what the generator itself is late by is recorded beside it.

mod connection;
mod generator;
mod poller;
mod record;
mod response;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

pub use connection::{Target, TargetError};
pub use generator::{LoadError, Plan, Progress, generate};
pub use record::{Header, Outcome, Record, RecordFile, RecordWriter, read_records};

use crate::priority::go_first;
use crate::schedule::Schedule;

/// Arguments of the load generator.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Load curve (TOML, or JSON when the name ends in .json)
    #[arg(long, value_name = "FILE")]
    pub schedule: PathBuf,
    /// Where requests go: http://ADDRESS/PATH, ADDRESS with a port if it is not 80
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// Source addresses, used in turn; the kernel's choice when absent
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS,…")]
    pub sources: Vec<IpAddr>,
    /// A request without a complete response this long after it was due is given up
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Reuse connections instead of opening one per request
    #[arg(long)]
    pub keepalive: bool,
    /// Requests under way at most; one that is due beyond is recorded as an error, never delayed
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub max_in_flight: usize,
    /// One JSON line per second on standard output
    #[arg(long)]
    pub progress: bool,
    /// Result: one JSON line per request, behind a line about the run
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Runs the generator to the end of its schedule.
///
/// # Errors
/// An unreadable schedule, an unwritable result, or a kernel that refuses epoll or file descriptors.
/// Requests that fail are results, not errors.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let plan = Plan {
        schedule: read_schedule(&args.schedule)?,
        target: args.target.clone(),
        sources: args.sources.clone(),
        timeout: args.timeout,
        keepalive: args.keepalive,
        max_in_flight: args.max_in_flight,
    };
    let file = fs::File::create(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let mut writer = RecordWriter::new(io::BufWriter::with_capacity(1 << 16, file), &Header::of(&plan))?;
    let mut stdout = io::stdout();
    let print = args.progress;
    go_first();
    generate(&plan, &mut |record| writer.write(&record), &mut |progress| {
        if print {
            // Whoever watched may be gone; the measurement goes on.
            let _ = writeln!(stdout, "{}", serde_json::json!(progress)).and_then(|()| stdout.flush());
        }
    })?;
    writer.finish().with_context(|| format!("cannot write {}", args.out.display()))
}

fn read_schedule(path: &std::path::Path) -> anyhow::Result<Schedule> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let schedule = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(anyhow::Error::from)
    } else {
        toml::from_str(&text).map_err(anyhow::Error::from)
    };
    schedule.with_context(|| format!("in {}", path.display()))
}
