//! The measurement: all ways take turns, burst by burst.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use dataplane::object::{load_bench, load_program};

use super::Settings;
use super::balancer::Balanced;
use super::dnat::{Dnat, Rules};
use super::frames::{Protocol, Size, Stream};
use super::lane::{D0, Device, Lane, Pair, T0, Tally};
use super::result::{Cell, Figures, Trial, Way};
use super::scenario::{MANY_VIPS, ONE_VIP, Scenario};
use crate::bench::overlay::attach;
use crate::interrupt;
use crate::priority::stay_on_one_processor;
use crate::progress::Progress;

/// Flows of datagrams.
pub(super) const UDP_FLOWS: u32 = 1 << 16;
/// Flows of SYNs.
pub(super) const TCP_FLOWS: u32 = 1 << 20;

/// Every way, each on a path of its own, so that nothing is attached or detached while it is measured.
pub(super) fn lanes(skipped: &mut Vec<String>) -> Result<Vec<(Way, Lane)>> {
    let mut lanes = Vec::new();
    for way in Way::ALL {
        interrupt::check()?;
        match lane(way) {
            Ok(lane) => lanes.push((way, lane)),
            // A kernel may lack one or the other kind of NAT.
            Err(error) if matches!(way, Way::Iptables | Way::Nftables) => {
                skipped.push(format!("{}: {error:#}", way.name()));
            }
            Err(error) => return Err(error.context(way.name())),
        }
    }
    Ok(lanes)
}

fn lane(way: Way) -> Result<Lane> {
    let dnat = |pair: Pair, rules| -> Result<Lane> {
        let device = Dnat::install(&pair, rules, MANY_VIPS)?;
        Lane::returning(pair, Box::new(device), false, MANY_VIPS.vips)
    };
    let balanced = |pair: Pair, scenario: Scenario| -> Result<Lane> {
        let device = Balanced::serving(&pair, scenario)?;
        Lane::returning(pair, Box::new(device), true, scenario.vips)
    };
    Ok(match way {
        Way::Generator => Lane::dropping(Pair::build("drop")?, MANY_VIPS.vips)?,
        Way::Bounce => {
            let pair = Pair::build("bounce")?;
            let device = Bounce::attach(&pair)?;
            Lane::returning(pair, Box::new(device), true, MANY_VIPS.vips)?
        }
        Way::Iptables => dnat(Pair::build("iptables")?, Rules::Iptables)?,
        Way::Nftables => dnat(Pair::build("nftables")?, Rules::Nftables)?,
        Way::OneVip => balanced(Pair::build("one-vip")?, ONE_VIP)?,
        Way::ManyVips => balanced(Pair::build("many-vips")?, MANY_VIPS)?,
    })
}

/// What a device under test costs that decides nothing.
struct Bounce {
    /// Attached for as long as it lives.
    _object: Ebpf,
}

impl Device for Bounce {}

impl Bounce {
    fn attach(pair: &Pair) -> Result<Self> {
        let object = pair.device.run(|| {
            let mut object = load_bench()?;
            attach(load_program(&mut object, "bounce_xdp")?, D0)?;
            Ok(object)
        })?;
        Ok(Self { _object: object })
    }
}

/// Every size and protocol in every trial, so that what disturbs the machine for a while disturbs a part of all.
pub(super) fn cells(
    lanes: &mut [(Way, Lane)],
    settings: &Settings,
    progress: &Progress,
) -> Result<Vec<Cell>> {
    // The whole measurement keeps to one processor, and only it.
    thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            stay_on_one_processor().context("affinity of the generator")?;
            trials(lanes, settings, progress)
        });
        measuring.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

fn trials(lanes: &mut [(Way, Lane)], settings: &Settings, progress: &Progress) -> Result<Vec<Cell>> {
    let kinds = kinds(&settings.sizes);
    let mut found: Vec<BTreeMap<Way, Vec<Trial>>> = vec![BTreeMap::new(); kinds.len()];
    for number in 1..=settings.trials.max(1) {
        for (&(size, protocol), found) in kinds.iter().zip(&mut found) {
            let measured = trial(lanes, size, protocol, settings)
                .with_context(|| format!("{size} octets, {}", protocol.name()))?;
            let rates =
                measured.iter().map(|(way, trial)| format!("{} {:.2}", way.name(), trial.pps() / 1e6));
            progress.step(&format!(
                "trial {number} of {}, {size} {}, Mpps: {}",
                settings.trials.max(1),
                protocol.name(),
                rates.collect::<Vec<_>>().join(", ")
            ));
            for (way, trial) in measured {
                found.entry(way).or_default().push(trial);
            }
        }
    }
    let cells = kinds.into_iter().zip(found).map(|((size, protocol), found)| Cell {
        size,
        protocol,
        ways: found.into_iter().map(|(way, trials)| (way, Figures::of(trials))).collect(),
    });
    Ok(cells.collect())
}

/// The paper measures its mix with one protocol. All datagrams come first: connections stay tracked meanwhile.
fn kinds(sizes: &[Size]) -> Vec<(Size, Protocol)> {
    let udp = sizes.iter().map(|size| (*size, Protocol::Udp));
    let tcp = sizes.iter().filter(|size| **size != Size::Imix).map(|size| (*size, Protocol::Tcp));
    udp.chain(tcp).collect()
}

fn trial(
    lanes: &mut [(Way, Lane)],
    size: Size,
    protocol: Protocol,
    settings: &Settings,
) -> Result<Vec<(Way, Trial)>> {
    let streams: Vec<Stream> = lanes.iter().map(|(_, lane)| stream(lane, size, protocol)).collect();
    let mut tallies = vec![Tally::default(); lanes.len()];
    for ((way, lane), stream) in lanes.iter_mut().zip(&streams) {
        lane.begin(stream).with_context(|| way.name())?;
    }
    for round in 0..settings.bursts.max(1) {
        let mut done = true;
        for (((way, lane), stream), tally) in lanes.iter_mut().zip(&streams).zip(&mut tallies) {
            interrupt::check()?;
            if round > 0 && tally.spent >= settings.time {
                continue;
            }
            lane.burst(stream, tally).with_context(|| way.name())?;
            done &= tally.spent >= settings.time;
        }
        if done {
            break;
        }
    }
    Ok(lanes.iter().map(|(way, _)| *way).zip(tallies.into_iter().map(Tally::into_trial)).collect())
}

impl Tally {
    fn into_trial(self) -> Trial {
        Trial {
            packets: self.packets,
            octets: self.octets,
            seconds: self.elapsed.as_secs_f64(),
            repeated: self.disturbed,
            turns_ns: self.bursts_ns,
        }
    }
}

fn stream(lane: &Lane, size: Size, protocol: Protocol) -> Stream {
    let flows = match protocol {
        Protocol::Udp => UDP_FLOWS,
        Protocol::Tcp => TCP_FLOWS,
    };
    Stream { size, protocol, tagged: lane.tagged, flows, vips: lane.vips, macs: [D0.mac, T0.mac] }
}
