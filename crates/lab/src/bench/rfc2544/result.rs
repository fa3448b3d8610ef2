//! `result.json` of the benchmark.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::frames::{FCS, GAP, Protocol, Size};
use crate::bench::row::Row;
use crate::report::Machine;
use crate::stats::median;

/// Everything that was found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rfc2544Result {
    /// Name of the experiment.
    pub scenario: String,
    /// The short form was run.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// How it was measured, in sentences.
    pub method: Vec<String>,
    /// Versions of the programs that took part.
    pub versions: BTreeMap<String, String>,
    /// One entry per size and protocol.
    pub cells: Vec<Cell>,
    /// What was aimed at, beside the references.
    pub targets: Vec<Row>,
    /// Nanoseconds per packet of the program by itself, and milliseconds of a change.
    pub programs: Vec<Row>,
    /// What could not be measured here, and why.
    pub skipped: Vec<String>,
}

/// What stands between the tester's sending and receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Nothing: the device counts and drops what arrives.
    Generator,
    /// A program that swaps the MAC addresses.
    Bounce,
    /// Destination NAT by iptables.
    Iptables,
    /// Destination NAT by nftables.
    Nftables,
    /// The balancer with 1 VIP and 255 servers.
    OneVip,
    /// The balancer with 128 VIPs and 4 000 servers.
    ManyVips,
}

/// Frames of one size and protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Length of the frames.
    pub size: Size,
    /// Their protocol.
    pub protocol: Protocol,
    /// Each way's figures.
    pub ways: BTreeMap<Way, Figures>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Frames per second: the median of the trials, like all that follows.
    pub pps: f64,
    /// Bits per second of the frames with their check sequence.
    pub bps_l2: f64,
    /// Likewise with preamble and gap.
    pub bps_l1: f64,
    /// Nanoseconds per frame of the whole chain on one processor, generator and sink included.
    pub chain_ns: f64,
    /// The trials.
    pub trials: Vec<Trial>,
}

/// One trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Frames that came back: all that were sent.
    pub packets: u64,
    /// Their octets without check sequence.
    pub octets: u64,
    /// How long the kernel was at it.
    pub seconds: f64,
    /// Bursts that were repeated because frames were lost.
    pub repeated: u32,
    /// Nanoseconds per frame of each turn. In a turn every way has its burst, shortly after another's.
    pub turns_ns: Vec<f64>,
}

impl Way {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Generator, Self::Bounce, Self::Iptables, Self::Nftables, Self::OneVip, Self::ManyVips];

    /// As tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator alone",
            Self::Bounce => "XDP_TX bounce",
            Self::Iptables => "iptables DNAT",
            Self::Nftables => "nftables DNAT",
            Self::OneVip => "weir 1x255",
            Self::ManyVips => "weir 128x4000",
        }
    }
}

impl Figures {
    /// Of at least one trial.
    #[must_use]
    pub fn of(trials: Vec<Trial>) -> Self {
        let middle =
            |of: fn(&Trial) -> f64| median(&trials.iter().map(of).collect::<Vec<_>>()).unwrap_or_default();
        let bits = |trial: &Trial, more: u16| {
            (trial.octets as f64 + trial.packets as f64 * f64::from(more)) * 8.0 / trial.seconds
        };
        let bps = |more: u16| {
            median(&trials.iter().map(|trial| bits(trial, more)).collect::<Vec<_>>()).unwrap_or_default()
        };
        Self {
            pps: middle(Trial::pps),
            bps_l2: bps(FCS),
            bps_l1: bps(FCS + GAP),
            chain_ns: middle(|trial| 1e9 / trial.pps()),
            trials,
        }
    }
}

impl Trial {
    /// Frames per second.
    #[must_use]
    pub fn pps(&self) -> f64 {
        self.packets as f64 / self.seconds
    }
}

impl Cell {
    /// Rate of one way as a share of another's: the median over all turns that both had.
    #[must_use]
    pub fn ratio(&self, way: Way, of: Way) -> Option<f64> {
        median(&self.pairs(way, of)?.map(|(way, of)| of / way).collect::<Vec<_>>())
    }

    /// Nanoseconds per frame that are not the generator's: the device under test, and the way back.
    #[must_use]
    pub fn device_ns(&self, way: Way) -> Option<f64> {
        median(&self.device_turns(way)?)
    }

    /// The same for each turn.
    pub(super) fn device_turns(&self, way: Way) -> Option<Vec<f64>> {
        Some(self.pairs(way, Way::Generator)?.map(|(way, alone)| way - alone).collect())
    }

    /// Nanoseconds per frame of both in the same turns.
    fn pairs(&self, a: Way, b: Way) -> Option<impl Iterator<Item = (f64, f64)>> {
        let (a, b) = (self.ways.get(&a)?, self.ways.get(&b)?);
        let trials = a.trials.iter().zip(&b.trials);
        Some(trials.flat_map(|(a, b)| a.turns_ns.iter().copied().zip(b.turns_ns.iter().copied())))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn trial(pps: u64, octets: u64) -> Trial {
        Trial {
            packets: pps,
            octets: pps * octets,
            seconds: 1.0,
            repeated: 0,
            turns_ns: vec![1e9 / pps as f64; 4],
        }
    }

    /// Every way at its own rate.
    pub(crate) fn result() -> Rfc2544Result {
        let rates = [2_000_000, 1_000_000, 300_000, 400_000, 800_000, 784_000].into_iter().zip(Way::ALL);
        let cell = |size, protocol, octets| Cell {
            size,
            protocol,
            ways: rates.clone().map(|(pps, way)| (way, Figures::of(vec![trial(pps, octets); 3]))).collect(),
        };
        Rfc2544Result {
            scenario: "rfc2544".into(),
            quick: true,
            machine: Machine::default(),
            method: vec!["One.".into(), "Two.".into()],
            versions: BTreeMap::new(),
            cells: vec![
                cell(Size::Octets(64), Protocol::Udp, 60),
                cell(Size::Octets(64), Protocol::Tcp, 60),
                cell(Size::Octets(128), Protocol::Udp, 124),
                cell(Size::Imix, Protocol::Udp, 362),
            ],
            targets: Vec::new(),
            programs: Vec::new(),
            skipped: vec!["nothing: really".into()],
        }
    }

    #[test]
    fn figures_count_check_sequence_preamble_and_gap() {
        let figures = Figures::of(vec![trial(100, 60), trial(1000, 60), trial(2000, 60)]);
        assert_eq!((figures.pps, figures.bps_l2, figures.bps_l1), (1000.0, 512_000.0, 672_000.0));
        assert_eq!(figures.chain_ns, 1e6);
    }

    #[test]
    fn what_the_generator_costs_is_not_the_devices() {
        let cell = &result().cells[0];
        assert!((cell.ratio(Way::OneVip, Way::Bounce).unwrap() - 0.8).abs() < 1e-9);
        assert_eq!(cell.device_ns(Way::OneVip), Some(750.0));
        assert_eq!(cell.device_ns(Way::Generator), Some(0.0));
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let json = serde_json::to_value(result()).unwrap();
        assert_eq!(json["cells"][0]["size"], "64");
        assert_eq!(json["cells"][0]["protocol"], "UDP");
        assert!(json["cells"][0]["ways"]["one-vip"]["pps"].is_number());
        assert_eq!(serde_json::from_value::<Rfc2544Result>(json).unwrap(), result());
    }
}
