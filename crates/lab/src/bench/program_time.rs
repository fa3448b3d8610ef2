//! Nanoseconds per packet of each program by itself: BPF_PROG_TEST_RUN, one run per call, beside the empty program
//! timed the same way, because the clock is read around every run.

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::Program;
use dataplane::maps::Maps;
use dataplane::object::{ETR, ETR_XDP, ITR, ITR_XDP, MapOptions, load, load_bench, load_program};
use dataplane::test_run::{Metadata, TC_REDIRECT, XDP_REDIRECT, run, time_program};

use super::overlay::{Hook, fill_etr_for_test_run, fill_itr_for_test_run};
use super::packet_rate::headers;
use super::path::BenchPath;
use super::row::Row;
use crate::netns::Netns;
use crate::stats::sorted;

/// Runs of one program in one round.
const RUNS: usize = 20_000;
const FRAME: usize = 60;

/// Two rows per program: the median and the minimum.
pub(super) fn rows(path: &BenchPath, rounds: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for hook in [Hook::Tc, Hook::Xdp] {
        rows.extend(hook_rows(path, hook, rounds).with_context(|| format!("{hook:?}"))?);
    }
    Ok(rows)
}

/// Encapsulation and decapsulation of one packet, and nothing at all.
struct Programs<'a> {
    path: &'a BenchPath,
    itr: Ebpf,
    etr: Ebpf,
    empty: Ebpf,
    names: [&'static str; 3],
    packet: Vec<u8>,
    encapsulated: Vec<u8>,
    /// The programs read them.
    _maps: [Maps; 2],
}

fn hook_rows(path: &BenchPath, hook: Hook, rounds: usize) -> Result<Vec<Row>> {
    let programs = Programs::load(path, hook)?;
    let labels =
        [format!("ITR encapsulation, {}", hook.name()), format!("ETR decapsulation, {}", hook.name())];
    let mut medians: [Vec<f64>; 3] = Default::default();
    let mut minima: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        for (index, (netns, program, frame)) in programs.all()?.into_iter().enumerate() {
            let timing = netns.run(|| Ok(time_program(program, frame, RUNS)?))?;
            medians[index].push(timing.median.as_nanos() as f64);
            minima[index].push(timing.minimum.as_nanos() as f64);
        }
    }
    let mut rows = Vec::new();
    for (index, label) in labels.into_iter().enumerate() {
        let name = format!("{label}, median");
        let (runs, empty) = (medians[index].clone(), medians[2].clone());
        rows.push(Row::beside(&name, "ns/packet", runs, "empty program, median", empty));
        let name = format!("{label}, minimum");
        // The minimum over all rounds is the figure, not their median.
        let runs = vec![smallest(&minima[index])];
        rows.push(Row::beside(
            &name,
            "ns/packet",
            runs,
            "empty program, minimum",
            vec![smallest(&minima[2])],
        ));
    }
    Ok(rows)
}

fn smallest(values: &[f64]) -> f64 {
    sorted(values).first().copied().unwrap_or_default()
}

impl<'a> Programs<'a> {
    fn load(path: &'a BenchPath, hook: Hook) -> Result<Self> {
        let (names, redirect) = match hook {
            Hook::Tc => ([ITR, ETR, "empty"], TC_REDIRECT),
            Hook::Xdp => ([ITR_XDP, ETR_XDP, "empty_xdp"], XDP_REDIRECT),
        };
        let [itr_name, etr_name, empty_name] = names;
        let options = MapOptions { flows: Some(1024), ..MapOptions::default() };
        let (mut itr, mut etr, mut empty) = (load(options)?, load(options)?, load_bench()?);
        load_program(&mut itr, itr_name)?;
        load_program(&mut etr, etr_name)?;
        load_program(&mut empty, empty_name)?;
        // The programs ask the kernel's routes and neighbours.
        let maps = [
            path.itr.run(|| fill_itr_for_test_run(&mut itr))?,
            path.etr.run(|| fill_etr_for_test_run(&mut etr))?,
        ];
        let mut packet = headers().to_vec();
        packet.resize(FRAME, 0);
        // The device of a test run is loopback, whose address is zero.
        packet[..6].fill(0);
        let itr_run = || process(program(&itr, itr_name)?, &packet, redirect).context("ITR");
        let encapsulated = path.itr.run(itr_run)?;
        let etr_run = || process(program(&etr, etr_name)?, &encapsulated, redirect).context("ETR");
        let delivered = path.etr.run(etr_run)?;
        ensure!(delivered[34..] == packet[34..], "the packet did not come out as it went in");
        Ok(Self { path, itr, etr, empty, names, packet, encapsulated, _maps: maps })
    }

    fn all(&self) -> Result<[(&Netns, &Program, &[u8]); 3]> {
        let [itr, etr, empty] = self.names;
        Ok([
            (&self.path.itr, program(&self.itr, itr)?, &self.packet),
            (&self.path.etr, program(&self.etr, etr)?, &self.encapsulated),
            (&self.path.etr, program(&self.empty, empty)?, &self.packet),
        ])
    }
}

fn program<'a>(object: &'a Ebpf, name: &str) -> Result<&'a Program> {
    object.program(name).with_context(|| format!("the object has no program {name}"))
}

/// What a program makes of a packet that it is to send on.
fn process(program: &Program, packet: &[u8], redirect: u32) -> Result<Vec<u8>> {
    let outcome = run(program, packet, Metadata::default())?;
    ensure!(outcome.action == redirect, "verdict {} instead of {redirect}", outcome.action);
    Ok(outcome.packet)
}
