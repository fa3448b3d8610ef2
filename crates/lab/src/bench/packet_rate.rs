//! Packets of 64 octets per second through both gateways, beside plain routing on the same path.
//!
//! Every burst is timed by the kernel, and the ways take turns in short rounds, of which each gives a ratio of its own.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, DevMap};
use dataplane::object::{load_bench, load_program};

use super::live_frames::{Frames, Rig};
use super::overlay::{Hook, Overlay, attach};
use super::path::{BenchPath, C0, CLIENT, I0, S0, SERVER, ifindex};
use super::row::Row;
use crate::interrupt;
use crate::priority::stay_on_one_processor;

/// What the path does without weir.
pub(super) const ROUTING: &str = "plain routing, same path and rounds";
/// Frames of one system call.
const BURST: u32 = 65_536;
/// Bursts of one way in one round; more rounds say more than longer ones.
const BURSTS_OF_TURN: u32 = 4;
/// A frame of 64 octets on the wire, without its check sequence.
const FRAME: usize = 60;
const FRAMES: Frames<'static> = Frames { program: "generator_xdp", longest: FRAME, count: BURST };
/// Headers, which the generator's program writes anew for every frame.
const HEADERS: usize = 48;

/// One row per hook. `rounds` rounds of `bursts` bursts are spread over more and shorter ones, in which the ways take turns:
/// what disturbs the machine for a while is then in all of them.
pub(super) fn rows(path: &BenchPath, rounds: usize, bursts: u32) -> Result<Vec<Row>> {
    let rig = rig(path)?;
    let turns = (rounds * usize::try_from(bursts)?).div_ceil(usize::try_from(BURSTS_OF_TURN)?);
    let mut routing = Vec::new();
    let mut hooks = [(Hook::Tc, Vec::new()), (Hook::Xdp, Vec::new())];
    for _ in 0..turns {
        interrupt::check()?;
        routing.push(rate(path, &rig).context("plain routing")?);
        for (hook, rates) in &mut hooks {
            let overlay = Overlay::attach(path, *hook)?;
            rates.push(rate(path, &rig).with_context(|| format!("{hook:?}: {}", overlay.reasons()))?);
        }
    }
    let rows = hooks.into_iter().map(|(hook, rates)| {
        let name = format!("64-octet packets through two xTRs, {}", hook.name());
        Row::beside(&name, "packets/s", rates, ROUTING, routing.clone())
    });
    Ok(rows.collect())
}

/// Generator at the client, sink at the server.
fn rig(path: &BenchPath) -> Result<Rig> {
    let generator = path.client.run(generator)?;
    let sink = path.server.run(|| {
        let mut object = load_bench()?;
        attach(load_program(&mut object, "sink")?, S0)?;
        Ok(object)
    })?;
    Ok(Rig { generator, sink })
}

/// Packets per second of the kernel's own time, by bursts of which every packet reached the sink.
fn rate(path: &BenchPath, rig: &Rig) -> Result<f64> {
    path.client.run(|| {
        stay_on_one_processor().context("affinity of the generator")?;
        // Caches and neighbours are as they will be.
        rig.send(FRAMES)?;
        let mut elapsed = Duration::ZERO;
        for _ in 0..BURSTS_OF_TURN {
            elapsed += rig.burst(FRAMES, || Ok(()))?.elapsed;
        }
        Ok(f64::from(BURST) * f64::from(BURSTS_OF_TURN) / elapsed.as_secs_f64())
    })
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
