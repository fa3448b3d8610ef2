//! Frames that the kernel itself sends (BPF_PROG_TEST_RUN with live frames): no socket and no copy stands between a figure
//! and what is measured. One processor does everything, so a rate is the inverse of the whole chain's cost per frame.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::PerCpuArray;
use aya::programs::{Program, TestRun, TestRunAttrs, TestRunOptions, Xdp};

use crate::interrupt;

/// Frames redirected at once: a veth's ring holds 256.
const BATCH: u32 = 64;
/// Tries of one burst until nothing else disturbs it.
const TRIES: u32 = 30;
/// What the kernel's own threads get to work off what a disturbed try has left.
const SETTLE: Duration = Duration::from_millis(50);

/// Generator and sink.
pub(super) struct Rig {
    /// Has the programs that send.
    pub(super) generator: Ebpf,
    /// Counts in its map `SINK`.
    pub(super) sink: Ebpf,
}

/// What is sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames<'a> {
    /// The program that writes the frames.
    pub(super) program: &'a str,
    /// Octets of the longest, without check sequence.
    pub(super) longest: usize,
    /// How many.
    pub(super) count: u32,
}

/// A burst of which every frame arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Burst {
    /// Octets, without check sequences.
    pub(super) octets: u64,
    /// How long the kernel was at it.
    pub(super) elapsed: Duration,
    /// Tries before it that were disturbed.
    pub(super) disturbed: u32,
}

impl Rig {
    /// How long the kernel was at it, by its own clock, which stops while another process has the processor.
    pub(super) fn send(&self, frames: Frames<'_>) -> Result<Duration> {
        let frame = vec![0_u8; frames.longest];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = frames.count;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let program: &Xdp = match self.generator.program(frames.program) {
            Some(Program::Xdp(program)) => program,
            _ => return Err(anyhow!("the object has no generator")),
        };
        let sent = program.test_run(options);
        // A signal ends the call early.
        interrupt::check()?;
        Ok(sent.context("generator")?.duration * frames.count)
    }

    /// One burst; `before` makes ready for each try. The calling thread keeps to one processor.
    ///
    /// The sink sees a frame before the generator goes on, unless another process made the kernel put the path's work
    /// off to a thread of its own: the rings then overflow, the try says nothing of the path, and there is another.
    pub(super) fn burst(&self, frames: Frames<'_>, mut before: impl FnMut() -> Result<()>) -> Result<Burst> {
        let mut most = 0;
        for disturbed in 0..TRIES {
            before()?;
            let [packets, octets] = self.received()?;
            let elapsed = self.send(frames)?;
            let received = self.received()?;
            if received[0] - packets == u64::from(frames.count) {
                return Ok(Burst { octets: received[1] - octets, elapsed, disturbed });
            }
            most = most.max(received[0] - packets);
            interrupt::check()?;
            thread::sleep(SETTLE);
        }
        bail!("at most {most} of {} frames arrived in {TRIES} tries", frames.count)
    }

    /// Frames and octets, without check sequence.
    fn received(&self) -> Result<[u64; 2]> {
        let map = self.sink.map("SINK").ok_or_else(|| anyhow!("the object has no map SINK"))?;
        let counters: PerCpuArray<_, [u64; 2]> = PerCpuArray::try_from(map)?;
        let of_each = counters.get(&0, 0)?;
        Ok(of_each.iter().fold([0, 0], |sum, each| [sum[0] + each[0], sum[1] + each[1]]))
    }
}
