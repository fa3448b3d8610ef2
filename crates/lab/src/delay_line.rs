//! A link with delay for kernels without netem: frames wait in a queue between two veth pairs.
//!
//! `Line` is the queue, with time as an argument; [`run`] moves frames between packet sockets.

mod packet_socket;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use packet_socket::{Batch, PacketSocket};

/// `weir lab delay-line`: started by the lab in a namespace of its own.
#[derive(Clone, Debug, clap::Args)]
pub struct DelayLineArgs {
    /// A link: interface, interface, one-way delay in microseconds
    #[arg(long = "line", value_name = "A,B,MICROSECONDS", required = true)]
    lines: Vec<LineArg>,
    /// Frames that one direction holds; later ones are dropped and counted
    #[arg(long, default_value_t = 65_536)]
    queue: usize,
    /// Longest frame
    #[arg(long, default_value_t = 1700)]
    frame_bytes: usize,
    /// Where the counters are written at the end
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct LineArg {
    a: String,
    b: String,
    delay: Duration,
}

impl std::str::FromStr for LineArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(',').collect();
        let [a, b, delay] = fields[..] else { return Err("three fields: A,B,MICROSECONDS".into()) };
        let delay: u64 = delay.parse().map_err(|error| format!("{delay:?}: {error}"))?;
        Ok(Self { a: a.into(), b: b.into(), delay: Duration::from_micros(delay) })
    }
}

/// What one direction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames handed on.
    pub forwarded: u64,
    /// Frames that found the queue full.
    pub dropped_full: u64,
    /// Frames that the far interface refused.
    pub dropped_send: u64,
    /// Frames longer than the buffers.
    pub dropped_long: u64,
    /// How late the latest frame left, in microseconds.
    pub latest_us: u64,
}

/// One direction of a link: first in, first out, each frame due a fixed time after it arrived.
#[derive(Debug)]
struct Line {
    delay: Duration,
    capacity: usize,
    waiting: VecDeque<(Duration, Vec<u8>)>,
    /// Buffers to be used again, so that a steady load does not allocate.
    free: Vec<Vec<u8>>,
    counters: Counters,
}

impl Line {
    fn new(delay: Duration, capacity: usize) -> Self {
        Self { delay, capacity, waiting: VecDeque::new(), free: Vec::new(), counters: Counters::default() }
    }

    /// Takes a copy of a frame that arrived at `arrival`.
    fn push(&mut self, arrival: Duration, frame: &[u8]) {
        if self.waiting.len() >= self.capacity {
            self.counters.dropped_full += 1;
            return;
        }
        let mut buffer = self.free.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(frame);
        // A clock step must not let a frame overtake an earlier one.
        let earliest = self.waiting.back().map_or(Duration::ZERO, |(due, _)| *due);
        self.waiting.push_back(((arrival + self.delay).max(earliest), buffer));
    }

    /// When the next frame is due.
    fn next_due(&self) -> Option<Duration> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// Up to `most` frames that are due at `now`, in order.
    fn due(&self, now: Duration, most: usize) -> impl Iterator<Item = &[u8]> {
        self.waiting
            .iter()
            .take(most)
            .take_while(move |(due, _)| *due <= now)
            .map(|(_, frame)| frame.as_slice())
    }

    /// Forgets the first `sent` frames, which left at `now`.
    fn forward(&mut self, now: Duration, sent: usize) {
        if let Some(due) = self.next_due() {
            let late = u64::try_from(now.saturating_sub(due).as_micros()).unwrap_or(u64::MAX);
            self.counters.latest_us = self.counters.latest_us.max(late);
        }
        self.discard(sent);
        self.counters.forwarded += sent as u64;
    }

    fn discard(&mut self, frames: usize) {
        self.free.extend(self.waiting.drain(..frames).map(|(_, buffer)| buffer));
    }
}

/// A direction with its two ends.
struct Direction {
    line: Line,
    from: PacketSocket,
    to: PacketSocket,
}

impl Direction {
    fn open(from: &str, to: &str, arguments: &LineArg, queue: usize) -> Result<Self> {
        let open = |name: &str| PacketSocket::open(name).with_context(|| format!("interface {name}"));
        Ok(Self { line: Line::new(arguments.delay, queue), from: open(from)?, to: open(to)? })
    }

    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        let line = &mut self.line;
        let mut too_long = 0;
        self.from.receive(batch, |arrival, frame| match frame {
            Some(frame) => line.push(arrival, frame),
            None => too_long += 1,
        })?;
        self.line.counters.dropped_long += too_long;
        Ok(())
    }

    fn send(&mut self, now: Duration) -> io::Result<()> {
        while self.line.next_due().is_some_and(|due| due <= now) {
            let sent = match self.to.send(self.line.due(now, packet_socket::BATCH)) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                Err(error) if packet_socket::is_transient(&error) => {
                    // The interface is full or down for this frame: a link would lose it.
                    self.line.discard(1);
                    self.line.counters.dropped_send += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.line.forward(now, sent);
        }
        Ok(())
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Forwards until SIGTERM, then reports the counters of every direction.
pub fn run(arguments: &DelayLineArgs) -> Result<()> {
    packet_socket::prepare_process(stop);
    let mut directions = Vec::new();
    for line in &arguments.lines {
        directions.push(Direction::open(&line.a, &line.b, line, arguments.queue)?);
        directions.push(Direction::open(&line.b, &line.a, line, arguments.queue)?);
    }
    let mut batch = Batch::new(arguments.frame_bytes);
    while !STOP.load(Ordering::Relaxed) {
        turn(&mut directions, &mut batch)?;
    }
    report(arguments, &directions)
}

/// Waits for a frame or a due time, then takes in and hands on.
fn turn(directions: &mut [Direction], batch: &mut Batch) -> Result<()> {
    let due = directions.iter().filter_map(|direction| direction.line.next_due()).min();
    let sockets: Vec<&PacketSocket> = directions.iter().map(|direction| &direction.from).collect();
    let readable = match packet_socket::wait(&sockets, due) {
        Ok(readable) => readable,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
        Err(error) => bail!("waiting for frames: {error}"),
    };
    for (direction, readable) in directions.iter_mut().zip(readable) {
        if readable {
            direction.receive(batch).context("receiving frames")?;
        }
    }
    for direction in directions {
        direction.send(packet_socket::now()).context("sending frames")?;
    }
    Ok(())
}

fn report(arguments: &DelayLineArgs, directions: &[Direction]) -> Result<()> {
    let counters: Vec<_> = directions.iter().map(|direction| direction.line.counters).collect();
    let text = serde_json::to_string_pretty(&counters)?;
    match &arguments.report {
        Some(path) => std::fs::write(path, text).with_context(|| path.display().to_string()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn frames(line: &Line, now: Duration) -> Vec<Vec<u8>> {
        line.due(now, 64).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_frame_is_due_its_delay_after_arrival_and_not_before() {
        let mut line = Line::new(20 * MS, 8);
        line.push(5 * MS, b"a");
        assert_eq!(line.next_due(), Some(25 * MS));
        assert!(frames(&line, 25 * MS - Duration::from_nanos(1)).is_empty());
        assert_eq!(frames(&line, 25 * MS), [b"a"]);
    }

    #[test]
    fn order_is_kept_even_when_the_clock_steps_back() {
        let mut line = Line::new(10 * MS, 8);
        line.push(5 * MS, b"first");
        line.push(3 * MS, b"second");
        assert_eq!(frames(&line, 15 * MS), [b"first".to_vec(), b"second".to_vec()]);
        line.forward(16 * MS, 2);
        assert_eq!((line.counters.forwarded, line.counters.latest_us), (2, 1000));
    }

    #[test]
    fn a_full_queue_drops_the_newcomer_and_counts_it() {
        let mut line = Line::new(MS, 2);
        for frame in [b"1", b"2", b"3"] {
            line.push(MS, frame);
        }
        assert_eq!(frames(&line, 2 * MS), [b"1", b"2"]);
        assert_eq!(line.counters.dropped_full, 1);
        line.forward(2 * MS, 2);
        line.push(3 * MS, b"4");
        assert_eq!(frames(&line, 4 * MS), [b"4"]);
    }

    #[test]
    fn buffers_are_used_again() {
        let mut line = Line::new(MS, 4);
        for round in 0..100u32 {
            line.push(MS * round, &[0; 1500]);
            line.forward(MS * (round + 1), 1);
        }
        assert_eq!(line.free.len(), 1);
    }

    #[test]
    fn arguments_name_two_interfaces_and_a_delay() {
        let line: LineArg = "c1,e1,20000".parse().unwrap();
        assert_eq!((line.a.as_str(), line.b.as_str(), line.delay), ("c1", "e1", 20 * MS));
        assert!("c1,e1".parse::<LineArg>().is_err());
        assert!("c1,e1,soon".parse::<LineArg>().is_err());
    }
}
