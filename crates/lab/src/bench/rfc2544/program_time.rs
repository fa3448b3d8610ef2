//! The balancer's program by itself (BPF_PROG_TEST_RUN, one run per call, beside the empty program), and how long a
//! change takes to reach the kernel.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::Program;
use dataplane::balancer::{Protocol as VipProtocol, Vip};
use dataplane::object::{BALANCER, load_bench, load_program};
use dataplane::test_run::{Metadata, Timing, XDP_TX, run, time_frames};

use super::Settings;
use super::balancer::{Balanced, check, vips};
use super::frames::{Protocol, Size, Stream};
use super::lane::{D0, Pair, T0};
use super::scenario::{MANY_VIPS, ONE_VIP, Scenario};
use crate::bench::row::Row;
use crate::interrupt;
use crate::priority::stay_on_one_processor;
use crate::stats::{median, sorted};

/// Most flows of a measurement: every run has another.
const FLOWS: u32 = 1 << 19;
/// Frames whose bytes are looked at before any is timed.
const CHECKED: u32 = 1000;
/// As many VIPs as are counted, with a few servers each.
const MOST_VIPS: Scenario = Scenario { vips: 4096, backends: 16_384 };
/// The VIP that is changed.
const CHANGED: Scenario = Scenario { vips: 1, backends: 4000 };
/// Milliseconds that a change may take.
const LIMIT_MS: f64 = 50.0;

/// What one row is about.
struct Case {
    name: &'static str,
    scenario: Scenario,
    /// Another flow for every run.
    many_flows: bool,
}

const CASES: [Case; 4] = [
    Case { name: "1 VIP x 255, one flow", scenario: ONE_VIP, many_flows: false },
    Case { name: "1 VIP x 255, many flows", scenario: ONE_VIP, many_flows: true },
    Case { name: "128 VIPs x 4000, many flows", scenario: MANY_VIPS, many_flows: true },
    Case { name: "4096 VIPs x 16384, many flows", scenario: MOST_VIPS, many_flows: true },
];

/// All rows.
pub(super) fn rows(settings: &Settings) -> Result<Vec<Row>> {
    let pair = Pair::build("program")?;
    let mut balanced = Balanced::start(&pair)?;
    let mut rows = Vec::new();
    for case in &CASES {
        interrupt::check()?;
        balanced.pass_time()?;
        balanced.apply(&vips(case.scenario, &[VipProtocol::Udp])).context(case.name)?;
        let mut object = balanced.second_program()?;
        rows.extend(timed(load_program(&mut object, BALANCER)?, case, settings).context(case.name)?);
    }
    rows.extend(change(&mut balanced, settings)?);
    Ok(rows)
}

/// Median and minimum of a case.
fn timed(program: &Program, case: &Case, settings: &Settings) -> Result<[Row; 2]> {
    let frames = frames(case, settings.runs);
    for frame in frames.iter().take(CHECKED as usize) {
        let outcome = run(program, frame, Metadata::default())?;
        ensure!(outcome.action == XDP_TX, "verdict {} instead of {XDP_TX}", outcome.action);
        check(frame, &outcome.packet, case.scenario)?;
    }
    let mut empty = load_bench()?;
    let empty = load_program(&mut empty, "empty_xdp")?;
    let mut timings: [Vec<Timing>; 2] = Default::default();
    for _ in 0..settings.trials.max(1) {
        interrupt::check()?;
        for (program, timings) in [program, &*empty].into_iter().zip(&mut timings) {
            timings.push(on_one_processor(|| Ok(time_frames(program, frames.iter().map(Vec::as_slice))?))?);
        }
    }
    let nanoseconds = |of: fn(&Timing) -> u128| {
        timings.each_ref().map(|runs| runs.iter().map(|run| of(run) as f64).collect())
    };
    let [medians, empty_medians]: [Vec<f64>; 2] = nanoseconds(|run| run.median.as_nanos());
    let [minima, empty_minima]: [Vec<f64>; 2] = nanoseconds(|run| run.minimum.as_nanos());
    let name = |what: &str| format!("balancer's program, {}, {what}", case.name);
    let smallest = |runs: &[f64]| sorted(runs).first().copied().into_iter().collect();
    Ok([
        Row::beside(&name("median"), "ns/frame", medians, "empty program, median", empty_medians),
        // The minimum over all rounds is the figure, not their median.
        Row::beside(
            &name("minimum"),
            "ns/frame",
            smallest(&minima),
            "empty program, minimum",
            smallest(&empty_minima),
        ),
    ])
}

fn frames(case: &Case, runs: usize) -> Vec<Vec<u8>> {
    let stream = Stream {
        size: Size::Octets(64),
        protocol: Protocol::Udp,
        tagged: true,
        flows: FLOWS,
        vips: case.scenario.vips,
        macs: [D0.mac, T0.mac],
    };
    let number = |run: u32| if case.many_flows { run } else { 0 };
    (0..FLOWS).take(runs.max(1)).map(|run| stream.frame(number(run))).collect()
}

fn on_one_processor<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let timing = scope.spawn(|| {
            stay_on_one_processor()?;
            work()
        });
        timing.join().map_err(|_| anyhow!("the timing thread panicked"))?
    })
}

/// From a VIP with another weight, and from one with a server less, to the kernel forwarding by it.
fn change(balanced: &mut Balanced, settings: &Settings) -> Result<[Row; 2]> {
    let plain = vips(CHANGED, &[VipProtocol::Udp]);
    let (mut heavier, mut fewer) = (plain.clone(), plain.clone());
    heavier[0].backends[1000].weight = 2;
    fewer[0].backends.remove(1000);
    let (mut weight, mut removal) = (Vec::new(), Vec::new());
    balanced.pass_time()?;
    balanced.apply(&plain)?;
    for _ in 0..settings.trials.max(1) * 3 {
        interrupt::check()?;
        weight.push(milliseconds(balanced, &heavier)?);
        balanced.apply(&plain)?;
        removal.push(milliseconds(balanced, &fewer)?);
        balanced.apply(&plain)?;
    }
    let row = |what: &str, runs: Vec<f64>| {
        let value = median(&runs).unwrap_or_default();
        let name = format!("apply {what}, 1 VIP x 4000");
        Row::published(&name, "ms", (value, runs), "limit; the paper's control chain takes 3 s", LIMIT_MS)
    };
    Ok([row("another weight", weight), row("a server less", removal)])
}

fn milliseconds(balanced: &mut Balanced, vips: &[Vip]) -> Result<f64> {
    balanced.pass_time()?;
    let start = Instant::now();
    balanced.apply(vips)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
