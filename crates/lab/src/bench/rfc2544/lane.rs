//! One way that is measured: a tester and a device under test, joined by a veth, and what the device runs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::{Program, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use bpf_abi::tester::TesterValue;
use dataplane::object::{load_bench, load_program};

use super::frames::Stream;
use crate::bench::overlay::attach;
use crate::bench::path::{Port, ifindex, name, port, text};
use crate::interrupt;
use crate::link::{End, veth};
use crate::netns::Netns;

/// Frames of one system call: a multiple of the mix, and of what is sent at once.
pub(super) const BURST: u32 = 49_152;
/// Frames redirected at once: a veth's ring holds 256.
const BATCH: u32 = 64;
/// Tries of one burst until nothing else disturbs it.
const TRIES: u32 = 30;
/// What the kernel's own threads get to work off what a disturbed try has left.
const SETTLE: Duration = Duration::from_millis(50);
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

/// Generator and sink.
struct Rig {
    generator: Ebpf,
    sink: Ebpf,
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
    ///
    /// The sink sees a frame before the generator goes on, unless another process made the kernel put the path's work
    /// off to a thread of its own: the rings then overflow, the try says nothing of the path, and there is another.
    pub(super) fn burst(&mut self, stream: &Stream, tally: &mut Tally) -> Result<()> {
        let mut most = 0;
        let start = Instant::now();
        for _ in 0..TRIES {
            // The ways take turns, and each leaves the processor's caches to the next as no trial of a minute finds them.
            self.rig.send(stream, BURST)?;
            self.device.before_burst(stream)?;
            let before = self.rig.received()?;
            let elapsed = self.rig.send(stream, BURST)?;
            let received = self.rig.received()?;
            let packets = received[0] - before[0];
            if packets == u64::from(BURST) {
                tally.packets += packets;
                tally.octets += received[1] - before[1];
                tally.elapsed += elapsed;
                tally.spent += start.elapsed();
                tally.bursts_ns.push(elapsed.as_nanos() as f64 / f64::from(BURST));
                return Ok(());
            }
            most = most.max(packets);
            tally.disturbed += 1;
            interrupt::check()?;
            thread::sleep(SETTLE);
        }
        bail!("at most {most} of {BURST} frames arrived in {TRIES} tries {}", self.device.explain())
    }
}

impl Tester<'_> {
    /// As many frames, whatever becomes of them.
    pub(super) fn send(&self, frames: u32) -> Result<()> {
        self.0.send(self.1, frames)?;
        Ok(())
    }
}

impl Rig {
    /// How long the kernel was at it, by its own clock, which stops while another process has the processor.
    fn send(&self, stream: &Stream, frames: u32) -> Result<Duration> {
        let frame = vec![0_u8; stream.longest()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = frames;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let program: &Xdp = match self.generator.program(generator_name(stream)) {
            Some(Program::Xdp(program)) => program,
            _ => return Err(anyhow!("the object has no generator")),
        };
        let sent = program.test_run(options);
        // A signal ends the call early.
        interrupt::check()?;
        Ok(sent.context("generator")?.duration * frames)
    }

    /// Frames and octets, without check sequence.
    fn received(&self) -> Result<[u64; 2]> {
        let map = self.sink.map("SINK").ok_or_else(|| anyhow!("the object has no map SINK"))?;
        let counters: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
        let of_each = counters.get(&0, 0)?;
        Ok(of_each.iter().fold([0, 0], |sum, each| [sum[0] + each[0], sum[1] + each[1]]))
    }
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
