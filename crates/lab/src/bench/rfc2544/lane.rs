//! One way that is measured: a tester and a device under test, joined by a veth, and what the device runs.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, DevMap};
use bpf_abi::tester::TesterValue;
use dataplane::object::{load_bench, load_program};

use super::frames::Stream;
use crate::bench::live_frames::{Frames, Rig};
use crate::bench::overlay::attach;
use crate::bench::path::{Port, ifindex, name, port, text};
use crate::link::{End, veth};
use crate::netns::Netns;

/// Frames of one system call: a multiple of the mix, and of what is sent at once.
pub(super) const BURST: u32 = 49_152;
const MTU: u32 = 1500;

pub(super) const T0: Port = port("t0", 1);
pub(super) const D0: Port = port("d0", 2);

/// The two namespaces, until dropped.
pub(super) struct Pair {
    pub(super) tester: Netns,
    pub(super) device: Netns,
}

/// What the device under test runs; it is taken off when dropped.
pub(super) trait Device: Send {
    /// Makes ready for a series of bursts of this stream, of which none is timed yet.
    fn before_series(&mut self, _stream: &Stream, _lane: &Tester<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes ready for one burst, in time that is not counted.
    fn before_burst(&mut self, _stream: &Stream) -> Result<()> {
        Ok(())
    }

    /// What it has to say when frames are lost.
    fn explain(&self) -> String {
        String::new()
    }
}

/// A path with its device.
pub(super) struct Lane {
    device: Box<dyn Device>,
    rig: Rig,
    /// Frames that it takes: the kernel's own forwarding has no VLAN device here.
    pub(super) tagged: bool,
    /// VIPs that it serves.
    pub(super) vips: u32,
    // Last: devices are taken off while their interfaces are there.
    _pair: Pair,
}

/// Sends frames that nobody times.
pub(super) struct Tester<'a>(&'a Rig, &'a Stream);

/// What came back of bursts that were not disturbed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) packets: u64,
    pub(super) octets: u64,
    /// How long the kernel was at it.
    pub(super) elapsed: Duration,
    /// How long it took by the clock on the wall, repeated bursts and other processes' turns included.
    pub(super) spent: Duration,
    /// Bursts that were repeated, because another process made the kernel drop frames.
    pub(super) disturbed: u32,
    /// Nanoseconds per frame of each.
    pub(super) bursts_ns: Vec<f64>,
}

impl Pair {
    /// Builds it. Nothing has to be looked up, because nothing answers.
    pub(super) fn build(role: &str) -> Result<Self> {
        let [tester, device] = ["t", "d"].map(|end| Netns::create(&name(&format!("{role}-{end}"))));
        let pair = Self { tester: tester?, device: device? };
        veth(
            End { netns: &pair.tester, name: T0.name, address: None },
            End { netns: &pair.device, name: D0.name, address: None },
            MTU,
        )?;
        for (netns, port) in [(&pair.tester, T0), (&pair.device, D0)] {
            netns.ip(&["link", "set", port.name, "address", &text(port.mac)])?;
        }
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for netns in [&self.tester, &self.device] {
            if let Err(error) = netns.delete() {
                tracing::warn!(netns = netns.name(), %error, "left behind");
            }
        }
    }
}

impl Lane {
    /// A device that returns frames to the tester, which counts and drops them.
    pub(super) fn returning(pair: Pair, device: Box<dyn Device>, tagged: bool, vips: u32) -> Result<Self> {
        let sink = sink(&pair.tester, T0)?;
        let generator = pair.tester.run(generator)?;
        Ok(Self { device, rig: Rig { generator, sink }, tagged, vips, _pair: pair })
    }

    /// The generator alone: the device counts and drops.
    pub(super) fn dropping(pair: Pair, vips: u32) -> Result<Self> {
        struct Nothing;
        impl Device for Nothing {}
        let sink = sink(&pair.device, D0)?;
        let generator = pair.tester.run(generator)?;
        Ok(Self { device: Box::new(Nothing), rig: Rig { generator, sink }, tagged: true, vips, _pair: pair })
    }

    /// Prepares for bursts of this stream: caches and the processor's clock are as they will be.
    pub(super) fn begin(&mut self, stream: &Stream) -> Result<()> {
        tell(&mut self.rig.generator, stream)?;
        let tester = Tester(&self.rig, stream);
        self.device.before_series(stream, &tester)?;
        tester.send(BURST / 8)
    }

    /// One burst of the stream that was begun, added to `tally`. The calling thread keeps to one processor.
    pub(super) fn burst(&mut self, stream: &Stream, tally: &mut Tally) -> Result<()> {
        let start = Instant::now();
        let Self { device, rig, .. } = self;
        let frames = frames(stream, BURST);
        let ready = || {
            // The ways take turns, and each leaves the processor's caches to the next as no trial of a minute finds them.
            rig.send(frames)?;
            device.before_burst(stream)
        };
        let burst = rig
            .burst(frames, ready)
            .map_err(|error| error.context(format!("frames lost; {}", device.explain())))?;
        tally.packets += u64::from(BURST);
        tally.octets += burst.octets;
        tally.elapsed += burst.elapsed;
        tally.spent += start.elapsed();
        tally.disturbed += burst.disturbed;
        tally.bursts_ns.push(burst.elapsed.as_nanos() as f64 / f64::from(BURST));
        Ok(())
    }
}

impl Tester<'_> {
    /// As many frames, whatever becomes of them.
    pub(super) fn send(&self, count: u32) -> Result<()> {
        self.0.send(frames(self.1, count))?;
        Ok(())
    }
}

fn frames(stream: &Stream, count: u32) -> Frames<'static> {
    Frames { program: generator_name(stream), longest: stream.longest(), count }
}

fn sink(netns: &Netns, port: Port) -> Result<Ebpf> {
    netns.run(|| {
        let mut object = load_bench()?;
        attach(load_program(&mut object, "sink_xdp")?, port)?;
        Ok(object)
    })
}

fn generator() -> Result<Ebpf> {
    let mut object = load_bench()?;
    for name in GENERATORS {
        load_program(&mut object, name)?;
    }
    // Entries of a device map are looked up in the namespace of whoever writes them.
    let map = object.map_mut("GENERATOR").ok_or_else(|| anyhow!("no map GENERATOR"))?;
    DevMap::try_from(map)?.set(0, ifindex(T0)?, None, 0)?;
    Ok(object)
}

const GENERATORS: [&str; 2] = ["tester_xdp", "tester_tagged_xdp"];

/// The program that sends such a stream.
pub(super) fn generator_name(stream: &Stream) -> &'static str {
    GENERATORS[usize::from(stream.tagged)]
}

/// Tells a generator what to send.
pub(super) fn tell(object: &mut Ebpf, stream: &Stream) -> Result<()> {
    let map = object.map_mut("TESTER").ok_or_else(|| anyhow!("no map TESTER"))?;
    Array::<_, TesterValue>::try_from(map)?.set(0, stream.value(), 0)?;
    Ok(())
}
