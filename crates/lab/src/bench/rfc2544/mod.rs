//! RFC 2544 and IMIX on one machine, as the paper of the layer-2 balancer measured it: a tester and a device under
//! test, joined by one link; every frame that is sent comes back.

mod balancer;
mod dnat;
mod frames;
mod lane;
mod measure;
mod paper;
mod program_time;
pub(crate) mod result;
mod scenario;
mod table;
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

pub use frames::{Protocol, Size};
pub use paper::{PaperRates, paper_rates};
pub use result::{Cell, Figures, Rfc2544Result, Trial, Way};
pub use table::table;

use super::path::remove_leftovers;
use crate::progress::Progress;
use crate::report::Machine;
use crate::requirements;
use dnat::Rules;
use scenario::MANY_VIPS;

/// How much is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The short form.
    pub quick: bool,
    /// Lengths of frames.
    pub sizes: Vec<Size>,
    /// Trials of each size and protocol; the median is the figure.
    pub trials: usize,
    /// How long each way is measured in a trial, by the clock on the wall.
    pub time: Duration,
    /// Bursts after which it ends earlier.
    pub bursts: u32,
    /// Runs of the program by itself.
    pub runs: usize,
}

impl Settings {
    /// The paper's sizes; less than ten minutes.
    #[must_use]
    pub fn full() -> Self {
        let sizes = [64, 128, 256, 512, 1024, 1280, 1510].map(Size::Octets).into_iter().chain([Size::Imix]);
        Self {
            quick: false,
            sizes: sizes.collect(),
            trials: 3,
            time: Duration::from_millis(1200),
            bursts: u32::MAX,
            runs: 300_000,
        }
    }

    /// As the other benchmarks are told: not more trials than rounds; of a single round, as many bursts.
    #[must_use]
    pub fn limited(quick: bool, rounds: usize, bursts: u32) -> Self {
        let settings = if quick { Self::quick() } else { Self::full() };
        if rounds > 1 {
            return Self { trials: settings.trials.min(rounds), ..settings };
        }
        Self { trials: 1, bursts: bursts.max(1), runs: 1000, ..settings }
    }

    /// The corners; about a minute.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            quick: true,
            sizes: vec![Size::Octets(64), Size::Octets(128), Size::Imix],
            time: Duration::from_millis(250),
            runs: 100_000,
            ..Self::full()
        }
    }
}

/// Programs that are started.
pub(crate) const PROGRAMS: [&str; 4] = ["ip", "ethtool", "iptables-restore", "nft"];

/// Measures everything. What cannot be measured is named in the result.
///
/// # Errors
/// The path cannot be built, frames are lost however often they are sent, or a signal came.
pub(crate) fn run(settings: &Settings, progress: &Progress) -> Result<Rfc2544Result> {
    requirements::check(&PROGRAMS, false)?;
    remove_leftovers()?;
    balancer::remove_leftovers()?;
    crate::priority::go_first();
    progress.step("building the paths: a tester and a device under test for each way");
    let mut skipped = Vec::new();
    let mut lanes = measure::lanes(&mut skipped)?;
    let cells = measure::cells(&mut lanes, settings, progress)?;
    drop(lanes);
    progress.step("the balancer's program by itself, and changes");
    let programs = program_time::rows(settings)?;
    Ok(Rfc2544Result {
        scenario: "rfc2544".into(),
        quick: settings.quick,
        machine: Machine::here(),
        method: method(settings),
        versions: versions(),
        targets: targets::rows(&cells),
        cells,
        programs,
        skipped,
    })
}

/// Writes `result.json` and the figures.
///
/// # Errors
/// Unwritable directory, or no font for the PNG.
pub(crate) fn write(result: &Rfc2544Result, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let file = out.join("result.json");
    let text = serde_json::to_string_pretty(result)?;
    fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    crate::plot::write_rfc2544(result, out)?;
    Ok(())
}

fn method(settings: &Settings) -> Vec<String> {
    vec![
        "Tester and device under test are two network namespaces joined by a veth. A generator in the kernel sends, one \
         processor does everything: a rate is the inverse of what the whole chain costs per frame, and no frame is lost \
         in what is counted (a burst that loses one is repeated). Time is the kernel's own, which stops while another \
         process has the processor."
            .into(),
        "In the paper the tester is a machine of its own and the link is full from 128 octets on; here the generator is \
         part of every rate, the link of none. Hence the second table: what the device under test adds to the \
         generator, its way back and the sink included."
            .into(),
        format!(
            "{} trials of {:.2} s for each way, in turns of {} frames; the paper: three of 60 s. Figures are medians, \
             ratios are the median of the turns' ratios.",
            settings.trials,
            settings.time.as_secs_f64(),
            lane::BURST
        ),
        "Sizes count the frame check sequence, L1 also preamble and gap. The paper's bits per second divided by its \
         frames per second are 4 octets more than its sizes."
            .into(),
        "IMIX: packets of 40, 576 and 1500 octets, 7 to 4 to 1 (58.333, 33.333, 8.333 %), shortest frame 64 octets."
            .into(),
        format!(
            "UDP: {} flows, which DNAT tracks already when time starts. TCP: SYNs of {} flows, and DNAT forgets its \
             connections before every turn: each SYN opens one. Destinations are drawn by a hash of the flow.",
            measure::UDP_FLOWS,
            measure::TCP_FLOWS
        ),
        format!(
            "DNAT has {} VIPs and {} servers with permanent neighbours; frames without a tag, because not every kernel \
             has VLAN devices. Checksums are not verified by connection tracking, as behind a network card. The \
             balancer and the bounce get frames of the same length with an 802.1Q tag; the balancer writes another \
             VLAN id.",
            MANY_VIPS.vips, MANY_VIPS.backends
        ),
    ]
}

fn versions() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("weir".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("iptables".to_owned(), dnat::version(Rules::Iptables)),
        ("nftables".to_owned(), dnat::version(Rules::Nftables)),
    ])
}
