//! The loop: one task owns the machine, so nothing is locked between a datagram and its answer.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use lisp::machine::{Counter, Transmit};
use lisp::map_server::{Event, MapServer, Output};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::metrics::Metrics;
use super::publications::Publications;
use crate::clock::Clock;
use crate::role::RoleError;
use crate::signal::Shutdown;
use crate::store::{StoreError, WriteBehind};

/// A question or command of the API, carried out between two datagrams.
pub(super) type Job = crate::http::Job<Shell>;

/// Datagrams taken from one socket before timers, the API and the other sockets get their turn.
const BATCH: usize = 64;
/// Longest UDP payload.
const MAX_DATAGRAM: usize = 65_535;
/// Counting walks over all state, so a burst of registrations is counted once.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(1);
/// The timer rests here when the machine waits for nothing.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// The machine and what it acts on.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) machine: MapServer,
    pub(super) publications: Publications,
    clock: Clock,
    sockets: Vec<UdpSocket>,
    locals: Vec<Option<SocketAddr>>,
    store: WriteBehind,
    metrics: Metrics,
    /// Something that the gauges count has changed.
    recount: bool,
}

impl Shell {
    pub(super) fn new(
        machine: MapServer,
        sockets: Vec<UdpSocket>,
        store: WriteBehind,
        metrics: Metrics,
        publications: Publications,
        clock: Clock,
    ) -> Self {
        let locals = sockets.iter().map(|s| s.local_addr().ok()).collect();
        Self { machine, publications, clock, sockets, locals, store, metrics, recount: true }
    }

    /// Serves until the node stops; what is to be stored is on the disk then.
    pub(super) async fn serve(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        mut shutdown: Shutdown,
    ) -> Result<(), RoleError> {
        let timer = sleep_until(Instant::now() + NEVER);
        tokio::pin!(timer);
        let mut census = tokio::time::interval(RECOUNT_INTERVAL);
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut last = 0;
        loop {
            let due = self.machine.poll_timeout().map(|at| self.clock.deadline(at));
            let due = due.unwrap_or_else(|| Instant::now() + NEVER);
            // Re-arming costs a lock in the runtime; most datagrams change no deadline.
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                socket = readable(&self.sockets, last) => {
                    last = socket;
                    self.receive(socket, &mut buffer);
                }
                () = timer.as_mut() => {
                    self.machine.handle_timeout(self.clock.now());
                    self.act(0);
                }
                Some(job) = jobs.recv() => {
                    job(&mut self);
                    self.act(0);
                }
                _ = census.tick(), if self.recount => self.count(),
                () = shutdown.requested() => break,
            }
        }
        self.store.flushed().await?;
        Ok(())
    }

    /// Resolves when everything the machine wanted to keep is on the disk.
    pub(super) fn stored(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        self.act(0);
        self.store.flushed()
    }

    fn receive(&mut self, socket: usize, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(received) = self.sockets.get(socket).map(|s| s.try_recv_from(buffer)) else { return };
            let (length, from) = match received {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "cannot receive");
                    return;
                }
            };
            let datagram = &buffer[..length];
            self.metrics.received(datagram);
            if let Err(error) = self.machine.handle_datagram(self.clock.now(), from, datagram) {
                self.metrics.reason(Counter::Malformed);
                tracing::debug!(%from, %error, "not a LISP control message");
            }
            self.act(socket);
        }
    }

    /// Does what the machine wants. Answers leave from the socket that was asked.
    fn act(&mut self, socket: usize) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Transmit(transmit) => self.transmit(socket, &transmit),
                // A crash may lose the last 50 ms of nonces: an ETR or subscriber then repeats a message, see
                // `lisp::machine::Persist`. Waiting for the disk would cap registrations at its fsyncs.
                Output::Persist(persist) => self.store.put(persist.key, persist.value),
                Output::Counter(counter) => self.metrics.reason(counter),
                Output::Event(event) => self.event(event),
            }
        }
    }

    fn transmit(&self, asked: usize, transmit: &Transmit) {
        let local = |index: usize| self.locals.get(index).copied().flatten();
        let fits = |index: &usize| local(*index).is_some_and(|local| reaches(local, transmit.destination));
        let index = Some(asked).filter(fits).or_else(|| (0..self.sockets.len()).find(fits));
        let sent = index.and_then(|index| self.sockets.get(index)).map_or_else(
            || Err(ErrorKind::AddrNotAvailable.into()),
            |socket| socket.try_send_to(&transmit.payload, transmit.destination),
        );
        match sent {
            Ok(_) => self.metrics.sent(&transmit.payload),
            Err(error) => self.not_sent(transmit.destination, &error),
        }
    }

    fn not_sent(&self, destination: SocketAddr, error: &std::io::Error) {
        self.metrics.send_errors.inc();
        tracing::debug!(%destination, %error, "cannot send");
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::Registered { eid, registrant, locators } => {
                self.recount = true;
                tracing::info!(?eid, ?registrant, locators, "registered");
            }
            Event::Unregistered { eid, registrant, expired } => {
                self.recount = true;
                tracing::info!(?eid, ?registrant, expired, "unregistered");
            }
            Event::Subscribed { .. } | Event::Unsubscribed { .. } | Event::SubscriptionLost { .. } => {
                self.recount = true;
                tracing::info!(?event, "subscription");
            }
            Event::Published { nonce, subscriber, eid, at } => {
                self.metrics.publications.inc();
                self.publications.published(*nonce, *subscriber, *eid, self.clock.unix_nanos(*at));
            }
            Event::Acknowledged { nonce, subscriber, eid, published_at, at } => {
                self.metrics.acknowledged.observe(at.saturating_since(*published_at).as_secs_f64());
                self.publications.acknowledged(*nonce, *subscriber, *eid, self.clock.unix_nanos(*at));
            }
            Event::WeightsChanged { eid, gateway } => tracing::info!(?eid, ?gateway, "weights changed"),
            // Anybody can cause these as fast as they can send; they are counted by reason.
            _ => tracing::debug!(?event, "event"),
        }
    }

    fn count(&mut self) {
        self.recount = false;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.registrations.set(gauge(self.machine.registrations().len()));
        self.metrics.subscriptions.set(gauge(self.machine.subscriptions().len()));
    }
}

/// Whether datagrams from one address get to another at all: of its family, and loopback only to loopback.
fn reaches(local: SocketAddr, destination: SocketAddr) -> bool {
    let (from, to) = (local.ip(), destination.ip());
    from.is_ipv4() == to.is_ipv4() && (from.is_unspecified() || from.is_loopback() == to.is_loopback())
}

/// The index of a socket with a datagram, looking at `last` last so that a busy one cannot starve the others.
/// Cancel-safe.
async fn readable(sockets: &[UdpSocket], last: usize) -> usize {
    let (up_to, after) = (0..=last, last + 1..sockets.len());
    poll_fn(|context| {
        let mut order = after.clone().chain(up_to.clone());
        let ready = order.find(|i| sockets.get(*i).is_some_and(|s| s.poll_recv_ready(context).is_ready()));
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_leave_from_an_address_that_reaches() {
        let cases = [
            ("10.0.0.10:4342", "10.0.1.1:4342", true),
            ("127.0.0.1:4342", "10.0.1.1:4342", false),
            ("10.0.0.10:4342", "127.0.0.1:4342", false),
            ("127.0.0.1:4342", "127.0.0.2:4342", true),
            ("0.0.0.0:4342", "127.0.0.1:4342", true),
            ("[::]:4342", "10.0.1.1:4342", false),
            ("[2001:db8::10]:4342", "[2001:db8::1]:4342", true),
        ];
        for (local, destination, expected) in cases {
            assert_eq!(
                reaches(local.parse().unwrap(), destination.parse().unwrap()),
                expected,
                "{local} {destination}"
            );
        }
    }
}
