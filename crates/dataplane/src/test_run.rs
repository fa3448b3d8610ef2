//! Programs run on one packet in memory (BPF_PROG_TEST_RUN): for tests, for the self-test before programs are
//! replaced, and for nanoseconds per packet.
//!
//! Always one run per call: with `repeat`, the kernel gives a program that rewrites the packet its own output again.

use std::time::Duration;

use aya::programs::{Program, ProgramError, TestRun, TestRunOptions};

/// Return value of a TC program that redirects.
pub const TC_REDIRECT: u32 = 7;
/// Return value of a TC program that leaves the packet to the stack.
pub const TC_OK: u32 = 0;
/// Return value of a TC program that drops.
pub const TC_SHOT: u32 = 2;
/// Return value of an XDP program that sends the packet back out of its port.
pub const XDP_TX: u32 = 3;
/// Return value of an XDP program that redirects.
pub const XDP_REDIRECT: u32 = 4;
/// Return value of an XDP program that leaves the packet to the stack.
pub const XDP_PASS: u32 = 2;
/// Return value of an XDP program that drops.
pub const XDP_DROP: u32 = 1;

/// Octets that encapsulation may add to the packet, and then some.
const ROOM: usize = 256;
/// `struct __sk_buff` up to and including `hwtstamp`.
const SK_BUFF: usize = 192;
/// Offset of `gso_segs` in it.
const SK_BUFF_GSO_SEGS: usize = 164;
/// Offset of `gso_size` in it.
const SK_BUFF_GSO_SIZE: usize = 176;

/// What the kernel takes for the packet's metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Payload octets of each segment, 0 if the packet is none of several (TC only).
    pub gso_size: u32,
    /// Segments, 0 if unknown (TC only).
    pub gso_segs: u32,
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's return value.
    pub action: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// How long the program ran.
    pub duration: Duration,
}

/// Why a run gave no outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestRunError {
    /// Only TC and XDP programs take packets.
    #[error("program is neither a TC nor an XDP program")]
    ProgramType,
    /// The kernel refused the run.
    #[error("test run: {0}")]
    Kernel(#[from] ProgramError),
}

/// Runs the program once on the frame, which comes in on the loopback device.
///
/// # Errors
/// If the program is not loaded, takes no packets, or the kernel refuses the frame.
pub fn run(program: &Program, frame: &[u8], metadata: Metadata) -> Result<Outcome, TestRunError> {
    let mut packet = vec![0; frame.len() + ROOM];
    let (action, length, duration) = run_into(program, frame, &mut packet, metadata)?;
    packet.truncate(length);
    Ok(Outcome { action, packet, duration })
}

fn run_into(
    program: &Program,
    frame: &[u8],
    packet: &mut [u8],
    metadata: Metadata,
) -> Result<(u32, usize, Duration), TestRunError> {
    let context = sk_buff(metadata);
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(packet);
    let result = match program {
        Program::SchedClassifier(classifier) => {
            if metadata != Metadata::default() {
                options.ctx_in = Some(&context);
            }
            classifier.test_run(options)?
        }
        Program::Xdp(xdp) => xdp.test_run(options)?,
        _ => return Err(TestRunError::ProgramType),
    };
    Ok((result.return_value, result.data_size_out as usize, result.duration))
}

fn sk_buff(metadata: Metadata) -> [u8; SK_BUFF] {
    let mut context = [0; SK_BUFF];
    context[SK_BUFF_GSO_SEGS..][..4].copy_from_slice(&metadata.gso_segs.to_ne_bytes());
    context[SK_BUFF_GSO_SIZE..][..4].copy_from_slice(&metadata.gso_size.to_ne_bytes());
    context
}

/// How long a program runs on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The shortest run.
    pub minimum: Duration,
    /// Half of the runs were not longer.
    pub median: Duration,
    /// Runs.
    pub runs: usize,
}

/// Runs the program `runs` times (at least once), each time on a fresh copy of the frame.
///
/// The kernel's clock is read around each run, so compare with an empty program timed the same way.
///
/// # Errors
/// As [`run`].
pub fn time_program(program: &Program, frame: &[u8], runs: usize) -> Result<Timing, TestRunError> {
    time_frames(program, (0..runs.max(1)).map(|_| frame))
}

/// Runs the program once on a copy of each frame; without a frame nothing takes any time.
///
/// # Errors
/// As [`run`].
pub fn time_frames<'a>(
    program: &Program,
    frames: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Timing, TestRunError> {
    let (mut packet, mut durations) = (Vec::new(), Vec::new());
    for frame in frames {
        packet.resize(frame.len() + ROOM, 0);
        durations.push(run_into(program, frame, &mut packet, Metadata::default())?.2);
    }
    durations.sort_unstable();
    let at = |index: usize| durations.get(index).copied().unwrap_or_default();
    Ok(Timing { minimum: at(0), median: at(durations.len() / 2), runs: durations.len() })
}
