//! The event loop: starts requests when they are due, and follows each to its end.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::Socket;
use thiserror::Error;

use super::connection::{Target, open};
use super::poller::{Poller, allow_open_files};
use super::record::{Outcome, Record};
use super::response::{ResponseError, ResponseReader};
use crate::schedule::Schedule;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Offered load.
    pub schedule: Schedule,
    /// Where requests go.
    pub target: Target,
    /// Source addresses, used in turn; empty leaves the choice to the kernel.
    pub sources: Vec<IpAddr>,
    /// A request is given up this long after it was due.
    pub timeout: Duration,
    /// Reuse connections.
    pub keepalive: bool,
    /// Requests under way at most.
    pub max_in_flight: usize,
}

/// Where the run stands, once a second and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Seconds since the start.
    pub at_s: f64,
    /// Requests that were due so far.
    pub due: u64,
    /// Requests answered well.
    pub ok: u64,
    /// Requests that failed, for whatever reason.
    pub errors: u64,
    /// Requests under way.
    pub in_flight: usize,
    /// Largest lateness of the generator so far.
    pub max_late_us: u64,
}

/// Why a run cannot go on.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A source address of another family than the target's.
    #[error("sources: {source_address} cannot reach {target}")]
    Family {
        /// The source.
        source_address: IpAddr,
        /// The target.
        target: IpAddr,
    },
    /// The kernel refused what the loop stands on.
    #[error("{what}: {error}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
    /// A record could not be kept.
    #[error("cannot write the result: {0}")]
    Sink(#[from] io::Error),
}

/// Offers the load of `plan`; calls `sink` for every request that ended, and `watch` once a second.
///
/// # Errors
/// When the kernel refuses epoll or `sink` fails. Failed requests are records.
pub fn generate(
    plan: &Plan,
    sink: &mut dyn FnMut(Record) -> io::Result<()>,
    watch: &mut dyn FnMut(Progress),
) -> Result<Progress, LoadError> {
    let target = plan.target.address().ip();
    if let Some(&source_address) = plan.sources.iter().find(|source| source.is_ipv4() != target.is_ipv4()) {
        return Err(LoadError::Family { source_address, target });
    }
    let spare = 4096;
    let allowed = allow_open_files(plan.max_in_flight as u64 + spare)
        .map_err(|error| LoadError::Kernel { what: "limit of open files", error })?;
    let fit = usize::try_from(allowed.saturating_sub(spare / 2)).unwrap_or(usize::MAX).max(1);
    Generator::new(plan, plan.max_in_flight.min(fit), sink)?.run(watch)
}

/// Requests started between two looks at the sockets, so that catching up does not starve responses.
const LAUNCH_BATCH: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;

struct Generator<'a> {
    plan: &'a Plan,
    max_in_flight: usize,
    request: Vec<u8>,
    sink: &'a mut dyn FnMut(Record) -> io::Result<()>,
    poller: Poller,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Idle connections by source, newest last.
    idle: Vec<Vec<u64>>,
    /// Deadlines are in order, because requests are due in order and all have the same timeout.
    deadlines: VecDeque<Deadline>,
    origin: Instant,
    totals: Progress,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

struct Connection {
    socket: Socket,
    phase: Phase,
    reader: ResponseReader,
    source: usize,
    serial: u64,
    reused: bool,
}

enum Phase {
    Connecting(Request),
    Receiving(Request),
    /// The response is complete; the server closes first.
    Closing,
    Idle,
}

#[derive(Clone, Copy)]
struct Request {
    serial: u64,
    due_ns: u64,
    started_ns: u64,
    connected_ns: Option<u64>,
}

struct Deadline {
    at_ns: u64,
    token: u64,
    serial: u64,
}

/// What a look at a connection led to.
enum Step {
    Wait,
    Drop,
    Complete,
    Failed(Outcome),
}

impl<'a> Generator<'a> {
    fn new(
        plan: &'a Plan,
        max_in_flight: usize,
        sink: &'a mut dyn FnMut(Record) -> io::Result<()>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            plan,
            max_in_flight,
            request: plan.target.request(plan.keepalive),
            sink,
            poller: Poller::new().map_err(|error| LoadError::Kernel { what: "epoll", error })?,
            slots: Vec::new(),
            free: Vec::new(),
            idle: vec![Vec::new(); plan.sources.len().max(1)],
            deadlines: VecDeque::new(),
            origin: Instant::now(),
            totals: Progress::default(),
        })
    }

    fn run(mut self, watch: &mut dyn FnMut(Progress)) -> Result<Progress, LoadError> {
        let plan = self.plan;
        let mut arrivals = plan.schedule.arrivals().map(nanoseconds).peekable();
        let mut ready = Vec::new();
        let mut next_watch_ns = SECOND_NS;
        loop {
            for _ in 0..LAUNCH_BATCH {
                let now = self.now();
                let Some(due_ns) = arrivals.next_if(|&due| due <= now) else { break };
                self.launch(due_ns)?;
            }
            self.expire()?;
            let now = self.now();
            if now >= next_watch_ns {
                next_watch_ns += SECOND_NS;
                watch(self.progress(now));
            }
            let next_due = arrivals.peek().copied();
            if next_due.is_none() && self.totals.in_flight == 0 {
                break;
            }
            let deadline = self.deadlines.front().map_or(u64::MAX, |deadline| deadline.at_ns);
            let until = next_due.unwrap_or(u64::MAX).min(deadline).min(next_watch_ns);
            let timeout = Duration::from_nanos(until.saturating_sub(now));
            self.poller
                .wait(timeout, &mut ready)
                .map_err(|error| LoadError::Kernel { what: "epoll_pwait2", error })?;
            for &token in &ready {
                self.look(token)?;
            }
        }
        let last = self.progress(self.now());
        watch(last);
        Ok(last)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn progress(&self, now: u64) -> Progress {
        Progress { at_s: now as f64 / 1e9, ..self.totals }
    }

    fn launch(&mut self, due_ns: u64) -> Result<(), LoadError> {
        let started_ns = self.now();
        let serial = self.totals.due;
        self.totals.due += 1;
        self.totals.max_late_us = self.totals.max_late_us.max((started_ns - due_ns) / 1000);
        let request = Request { serial, due_ns, started_ns, connected_ns: None };
        let source = self.source(serial);
        if self.totals.in_flight >= self.max_in_flight {
            return self.record(request, source, Outcome::InFlightLimit, None);
        }
        self.totals.in_flight += 1;
        match self.reuse(source, request) {
            Some(token) => {
                self.watch_deadline(token, request);
                Ok(())
            }
            None => self.connect(request, source),
        }
    }

    fn source(&self, serial: u64) -> usize {
        let count = self.idle.len() as u64;
        usize::try_from(serial % count).unwrap_or_default()
    }

    /// Sends on an idle connection of the source, if one still takes it.
    fn reuse(&mut self, source: usize, request: Request) -> Option<u64> {
        while let Some(token) = self.idle[source].pop() {
            let octets = &self.request;
            let Some(connection) = connection_of(&mut self.slots, token) else { continue };
            if matches!((&connection.socket).write(octets), Ok(written) if written == octets.len()) {
                connection.phase = Phase::Receiving(request);
                connection.serial = request.serial;
                connection.reused = true;
                connection.reader.reset();
                return Some(token);
            }
            self.close(token);
        }
        None
    }

    fn connect(&mut self, request: Request, source: usize) -> Result<(), LoadError> {
        let address = self.plan.sources.get(source).copied();
        let socket = match open(self.plan.target.address(), address) {
            Ok(socket) => socket,
            Err(error) => return self.end(request, source, connect_outcome(&error), None),
        };
        let token = self.insert(Connection {
            socket,
            phase: Phase::Connecting(request),
            reader: ResponseReader::new(),
            source,
            serial: request.serial,
            reused: false,
        });
        if let Some(connection) = connection_of(&mut self.slots, token) {
            self.poller
                .add(connection.socket.as_fd(), token)
                .map_err(|error| LoadError::Kernel { what: "epoll_ctl", error })?;
        }
        self.watch_deadline(token, request);
        Ok(())
    }

    fn watch_deadline(&mut self, token: u64, request: Request) {
        let timeout = u64::try_from(self.plan.timeout.as_nanos()).unwrap_or(u64::MAX);
        let at_ns = request.due_ns.saturating_add(timeout);
        self.deadlines.push_back(Deadline { at_ns, token, serial: request.serial });
    }

    fn expire(&mut self) -> Result<(), LoadError> {
        let now = self.now();
        while let Some(deadline) = self.deadlines.pop_front_if(|deadline| deadline.at_ns <= now) {
            let Some(connection) = connection_of(&mut self.slots, deadline.token) else { continue };
            if connection.serial != deadline.serial {
                continue;
            }
            match connection.phase {
                Phase::Connecting(_) => self.fail(deadline.token, Outcome::ConnectTimeout)?,
                Phase::Receiving(_) => self.fail(deadline.token, Outcome::ReadTimeout)?,
                Phase::Closing => self.close(deadline.token),
                Phase::Idle => {}
            }
        }
        Ok(())
    }

    /// Something happened to a socket.
    fn look(&mut self, token: u64) -> Result<(), LoadError> {
        let now = self.now();
        let Some(connection) = connection_of(&mut self.slots, token) else { return Ok(()) };
        if let Phase::Connecting(request) = connection.phase {
            match connection.send_first(&self.request) {
                Ok(()) => {
                    connection.phase = Phase::Receiving(Request { connected_ns: Some(now), ..request });
                }
                Err(outcome) => return self.fail(token, outcome),
            }
        }
        match connection.receive() {
            Step::Wait => Ok(()),
            Step::Drop => {
                self.close(token);
                Ok(())
            }
            Step::Complete => self.complete(token),
            Step::Failed(outcome) => self.fail(token, outcome),
        }
    }

    fn complete(&mut self, token: u64) -> Result<(), LoadError> {
        let Some(connection) = connection_of(&mut self.slots, token) else { return Ok(()) };
        let Phase::Receiving(request) = connection.phase else { return Ok(()) };
        let head = connection.reader.head().clone();
        let source = connection.source;
        let keep = self.plan.keepalive && !head.close;
        connection.phase = if keep { Phase::Idle } else { Phase::Closing };
        let gone = matches!(connection.receive(), Step::Drop);
        if gone {
            self.close(token);
        } else if keep {
            self.idle[source].push(token);
        }
        let outcome = if head.status < 400 { Outcome::Ok } else { Outcome::HttpError };
        self.end(request, source, outcome, Some((head.status, head.edge)))
    }

    fn fail(&mut self, token: u64, outcome: Outcome) -> Result<(), LoadError> {
        let Some(connection) = connection_of(&mut self.slots, token) else { return Ok(()) };
        let (Phase::Connecting(request) | Phase::Receiving(request)) = connection.phase else {
            return Ok(());
        };
        let source = connection.source;
        // A server may close an idle connection just as a request goes out on it (RFC 9112 §9.6): ask once more.
        let stale = connection.reused && connection.reader.is_untouched() && !outcome.is_timeout();
        self.close(token);
        if stale { self.connect(request, source) } else { self.end(request, source, outcome, None) }
    }

    fn end(
        &mut self,
        request: Request,
        source: usize,
        outcome: Outcome,
        answer: Option<(u16, Option<Box<str>>)>,
    ) -> Result<(), LoadError> {
        self.totals.in_flight -= 1;
        self.record(request, source, outcome, answer)
    }

    fn record(
        &mut self,
        request: Request,
        source: usize,
        outcome: Outcome,
        answer: Option<(u16, Option<Box<str>>)>,
    ) -> Result<(), LoadError> {
        if outcome.is_error() {
            self.totals.errors += 1;
        } else {
            self.totals.ok += 1;
        }
        let (status, edge) = answer.map_or((None, None), |(status, edge)| (Some(status), edge));
        let record = Record {
            at_us: request.due_ns / 1000,
            late_us: (request.started_ns - request.due_ns) / 1000,
            connect_us: request.connected_ns.map(|at| (at - request.started_ns) / 1000),
            latency_us: (self.now() - request.due_ns) / 1000,
            outcome,
            status,
            edge,
            source,
        };
        Ok((self.sink)(record)?)
    }

    fn insert(&mut self, connection: Connection) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.connection = Some(connection);
        u64::from(slot.generation) << 32 | index as u64
    }

    /// Closes the socket; its token means nothing from now on.
    fn close(&mut self, token: u64) {
        let (index, generation) = split(token);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.generation == generation) else {
            return;
        };
        if let Some(connection) = slot.connection.take() {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
            if matches!(connection.phase, Phase::Idle) {
                self.idle[connection.source].retain(|&idle| idle != token);
            }
        }
    }
}

impl Connection {
    /// Sends the request once the handshake is through.
    fn send_first(&mut self, request: &[u8]) -> Result<(), Outcome> {
        match self.socket.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Err(connect_outcome(&error)),
        }
        // A fresh socket's buffer takes a request whole.
        match (&self.socket).write(request) {
            Ok(written) if written == request.len() => Ok(()),
            Err(error) if is_reset(&error) => Err(Outcome::Reset),
            _ => Err(Outcome::SendFailed),
        }
    }

    /// Reads all there is: the socket is edge-triggered.
    fn receive(&mut self) -> Step {
        let mut buffer = [0_u8; 16 * 1024];
        loop {
            let read = match (&self.socket).read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.broken(),
            };
            match self.phase {
                Phase::Receiving(_) if read == 0 => return self.closed(),
                Phase::Receiving(_) => match self.reader.push(&buffer[..read]) {
                    Ok(false) => {}
                    Ok(true) => return Step::Complete,
                    Err(error) => return Step::Failed(response_outcome(&error)),
                },
                Phase::Closing if read > 0 => {}
                Phase::Connecting(_) | Phase::Closing | Phase::Idle => return Step::Drop,
            }
        }
    }

    fn closed(&mut self) -> Step {
        match self.reader.close() {
            Ok(()) => Step::Complete,
            Err(error) => Step::Failed(response_outcome(&error)),
        }
    }

    fn broken(&self) -> Step {
        if matches!(self.phase, Phase::Receiving(_)) { Step::Failed(Outcome::Reset) } else { Step::Drop }
    }
}

fn connection_of(slots: &mut [Slot], token: u64) -> Option<&mut Connection> {
    let (index, generation) = split(token);
    slots.get_mut(index).filter(|slot| slot.generation == generation)?.connection.as_mut()
}

/// A token names a slot and the connection that was in it at the time.
fn split(token: u64) -> (usize, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the token")]
    let (index, generation) = (token as u32 as usize, (token >> 32) as u32);
    (index, generation)
}

fn nanoseconds(seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "arrivals are not below zero"
    )]
    let nanoseconds = (seconds * 1e9) as u64;
    nanoseconds
}

fn connect_outcome(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Outcome::ConnectRefused,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Outcome::NoLocalPort,
        Some(libc::ETIMEDOUT) => Outcome::ConnectTimeout,
        Some(libc::EMFILE | libc::ENFILE) => Outcome::InFlightLimit,
        _ => Outcome::ConnectFailed,
    }
}

fn response_outcome(error: &ResponseError) -> Outcome {
    if *error == ResponseError::Truncated { Outcome::Truncated } else { Outcome::Malformed }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
