//! Packets of 64 octets per second through both gateways, beside plain routing on the same path.
//!
//! The generator is in the kernel (BPF_PROG_TEST_RUN with live frames): no socket and no copy stands between the
//! figure and the path. One CPU does everything, so a rate is the inverse of the whole chain's cost per packet.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::{Program, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use dataplane::object::{load_bench, load_program};

use super::overlay::{Hook, Overlay, attach};
use super::path::{BenchPath, C0, CLIENT, I0, S0, SERVER, ifindex};
use super::row::Row;
use crate::interrupt;
use crate::priority::stay_on_one_processor;

/// What the path does without weir.
pub(super) const ROUTING: &str = "plain routing, same path and rounds";
/// Frames of one system call.
const BURST: u32 = 65_536;
/// Frames redirected at once: a veth's ring holds 256.
const BATCH: u32 = 64;
/// Tries of one rate until nothing else disturbs it.
const TRIES: u32 = 20;
/// What the kernel's own threads get to work off what a disturbed try has left.
const SETTLE: Duration = Duration::from_millis(100);
/// A frame of 64 octets on the wire, without its check sequence.
const FRAME: usize = 60;
/// Headers, which the generator's program writes anew for every frame.
const HEADERS: usize = 48;

/// One row per hook, from `rounds` rounds of `bursts` bursts each.
pub(super) fn rows(path: &BenchPath, rounds: usize, bursts: u32) -> Result<Vec<Row>> {
    let rig = Rig::new(path)?;
    let mut routing = Vec::new();
    let mut hooks = [(Hook::Tc, Vec::new()), (Hook::Xdp, Vec::new())];
    for _ in 0..rounds {
        interrupt::check()?;
        routing.push(rig.rate(bursts).context("plain routing")?);
        for (hook, rates) in &mut hooks {
            let overlay = Overlay::attach(path, *hook)?;
            rates.push(rig.rate(bursts).with_context(|| format!("{hook:?}: {}", overlay.reasons()))?);
        }
    }
    let rows = hooks.into_iter().map(|(hook, rates)| {
        let name = format!("64-octet packets through two xTRs, {}", hook.name());
        Row::beside(&name, "packets/s", rates, ROUTING, routing.clone())
    });
    Ok(rows.collect())
}

/// Generator at the client, sink at the server.
struct Rig<'a> {
    path: &'a BenchPath,
    generator: Ebpf,
    sink: Ebpf,
}

impl<'a> Rig<'a> {
    fn new(path: &'a BenchPath) -> Result<Self> {
        let generator = path.client.run(generator)?;
        let sink = path.server.run(|| {
            let mut object = load_bench()?;
            attach(load_program(&mut object, "sink")?, S0)?;
            Ok(object)
        })?;
        Ok(Self { path, generator, sink })
    }

    /// Packets per second that reached the sink.
    ///
    /// The sink sees a packet before the generator goes on, unless another process made the kernel put the path's work
    /// off to a thread of its own: the rings then overflow, the try says nothing of the path, and there is another.
    fn rate(&self, bursts: u32) -> Result<f64> {
        let sent = u64::from(bursts) * u64::from(BURST);
        let mut most = 0;
        for _ in 0..TRIES {
            let (received, elapsed) = self.path.client.run(|| self.attempt(bursts))?;
            if received >= sent / 100 * 99 {
                return Ok(received as f64 / elapsed.as_secs_f64());
            }
            most = most.max(received);
            interrupt::check()?;
            thread::sleep(SETTLE);
        }
        bail!("at most {most} of {sent} packets arrived in {TRIES} tries")
    }

    /// Packets that arrived of `bursts` bursts, and how long those took.
    fn attempt(&self, bursts: u32) -> Result<(u64, Duration)> {
        stay_on_one_processor().context("affinity of the generator")?;
        self.burst()?;
        let before = self.received()?;
        let start = Instant::now();
        (0..bursts).try_for_each(|_| self.burst())?;
        Ok((self.received()? - before, start.elapsed()))
    }

    fn burst(&self) -> Result<()> {
        let frame = [0_u8; FRAME];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = BURST;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let program: &Xdp = match self.generator.program("generator_xdp") {
            Some(Program::Xdp(program)) => program,
            _ => return Err(anyhow!("the object has no generator")),
        };
        program.test_run(options)?;
        Ok(())
    }

    fn received(&self) -> Result<u64> {
        let map = self.sink.map("SINK").ok_or_else(|| anyhow!("the object has no map SINK"))?;
        let counters: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
        Ok(counters.get(&0, 0)?.iter().map(|[packets, _]| packets).sum())
    }
}

fn generator() -> Result<Ebpf> {
    let mut object = load_bench()?;
    load_program(&mut object, "generator_xdp")?;
    let map = |object: &mut Ebpf, name: &str| object.take_map(name).ok_or_else(|| anyhow!("no map {name}"));
    // Entries of a device map are looked up in the namespace of whoever writes them.
    DevMap::try_from(map(&mut object, "GENERATOR")?)?.set(0, ifindex(C0)?, None, 0)?;
    let template: [u8; HEADERS] = headers();
    let mut words = [0_u64; HEADERS / 8];
    for (word, octets) in words.iter_mut().zip(template.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*octets);
    }
    Array::<_, [u64; HEADERS / 8]>::try_from(map(&mut object, "TEMPLATE")?)?.set(0, words, 0)?;
    Ok(object)
}

/// Ethernet, IPv4 and UDP of a packet from the client to the server.
pub(super) fn headers() -> [u8; HEADERS] {
    let mut frame = [0; HEADERS];
    frame[..6].copy_from_slice(&I0.mac);
    frame[6..12].copy_from_slice(&C0.mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..34].copy_from_slice(&ipv4(FRAME - 14));
    frame[34..38].copy_from_slice(&[0x04, 0x00, 0x00, 0x09]);
    let length = u16::try_from(FRAME - 34).unwrap_or_default();
    frame[38..40].copy_from_slice(&length.to_be_bytes());
    frame
}

fn ipv4(length: usize) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&u16::try_from(length).unwrap_or_default().to_be_bytes());
    header[8..10].copy_from_slice(&[64, 17]);
    header[12..16].copy_from_slice(&CLIENT);
    header[16..20].copy_from_slice(&SERVER);
    let words = header.as_chunks::<2>().0;
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_checksum_holds() {
        let words = ipv4(46);
        let sum: u32 = words.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
