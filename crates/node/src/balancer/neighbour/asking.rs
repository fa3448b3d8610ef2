//! The resolver at work: a socket on the port, and whoever waits for an answer.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use codec::neighbour::{Frame, Vlan};
use dataplane::DataplaneError;
use dataplane::host;
use dataplane::packet::{NEIGHBOUR_FRAME_MAX, NeighbourSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use super::Target;
use super::resolver::{Change, Counters, Neighbour, Output, Resolver, Sender};
use crate::clock::Clock;

/// Questions from health checks that wait for the loop.
const QUEUE: usize = 1024;

/// Frames that are taken one after the other before it is the turn of others: a flood of them must not stop questions.
const FRAMES_IN_A_ROW: u32 = 64;

/// The neighbours of one port.
#[derive(Debug)]
pub struct Neighbours {
    interface: String,
    ifindex: u32,
    configured: Vec<Sender>,
    clock: Clock,
    socket: NeighbourSocket,
    resolver: Resolver,
    asker: Asker,
    questions: mpsc::Receiver<Question>,
    /// By whom they wait for: thousands of checks may.
    waiting: BTreeMap<Target, Vec<Answer>>,
    send_errors: u64,
    frame: Box<[u8]>,
}

/// Asks a neighbour on behalf of a health check.
#[derive(Clone, Debug)]
pub struct Asker(mpsc::Sender<Question>);

#[derive(Debug)]
struct Question {
    target: Target,
    answer: Answer,
}

/// An error if the question could not be sent.
type Answer = oneshot::Sender<io::Result<()>>;

impl Asker {
    /// Sends one question and returns when the neighbour is heard; waits for ever.
    ///
    /// # Errors
    /// If the question could not be sent, or nobody resolves any more, or not that target.
    pub async fn ask(&self, target: Target) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| io::Error::other("not among the neighbours that are resolved");
        let sent = self.0.send(Question { target, answer }).await;
        sent.map_err(|_| io::Error::other("nothing resolves link-layer addresses any more"))?;
        answered.await.map_err(gone)?
    }
}

impl Neighbours {
    /// Opens a socket on the port, in the calling thread's network namespace; needs CAP_NET_RAW. The port's own addresses
    /// ask where `configured` has none for a VLAN and family.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses the socket.
    pub async fn open(
        interface: &str,
        configured: Vec<Sender>,
        clock: Clock,
        random: u64,
    ) -> Result<Self, DataplaneError> {
        let port = host::Port::observe(interface).await?;
        let socket = NeighbourSocket::open(interface, port.ifindex)?;
        let (sender, questions) = mpsc::channel(QUEUE);
        let resolver = Resolver::new(port.mac, senders(&configured, &port), random);
        Ok(Self {
            interface: interface.to_owned(),
            ifindex: port.ifindex,
            configured,
            clock,
            socket,
            resolver,
            asker: Asker(sender),
            questions,
            waiting: BTreeMap::new(),
            send_errors: 0,
            frame: vec![0; NEIGHBOUR_FRAME_MAX].into_boxed_slice(),
        })
    }

    /// Looks at the port again, after its addresses or link-layer address changed, or it was removed and made again. What is
    /// known of targets is kept.
    ///
    /// # Errors
    /// If the interface is gone, or the kernel refuses a socket on a new one.
    pub async fn refresh(&mut self) -> Result<(), DataplaneError> {
        let port = host::Port::observe(&self.interface).await?;
        if port.ifindex != self.ifindex {
            self.socket = NeighbourSocket::open(&self.interface, port.ifindex)?;
            self.ifindex = port.ifindex;
        }
        self.resolver.set_port(port.mac, senders(&self.configured, &port));
        Ok(())
    }

    /// Keeps exactly these; what is known of those that stay is kept.
    pub fn set_targets(&mut self, targets: impl IntoIterator<Item = Target>) {
        self.resolver.set_targets(self.clock.now(), targets);
        self.waiting.retain(|target, _| self.resolver.get(target).is_some());
    }

    /// A link-layer address that an earlier process had, until the target is heard.
    pub fn assume(&mut self, target: &Target, mac: [u8; 6]) {
        self.resolver.assume(target, mac);
    }

    /// What is known of a target; `None` if it is not one.
    #[must_use]
    pub fn get(&self, target: &Target) -> Option<Neighbour> {
        self.resolver.get(target)
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        self.resolver.counters()
    }

    /// Questions that the port did not take.
    #[must_use]
    pub const fn send_errors(&self) -> u64 {
        self.send_errors
    }

    /// For health checks that ask neighbours.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Resolves until something happens to a target. Cancelling loses nothing, but neighbours are only asked, and heard,
    /// while somebody waits here.
    ///
    /// # Errors
    /// If the socket is of no use any more. A port that is down is no error: it comes back.
    pub async fn changed(&mut self) -> io::Result<(Target, Change)> {
        let mut in_a_row = 0;
        loop {
            if let Some(change) = self.carry_out() {
                return Ok(change);
            }
            let idle = self.clock.now() + Duration::from_secs(3600);
            let wake = self.clock.deadline(self.resolver.poll_timeout().unwrap_or(idle));
            tokio::select! {
                // Answers that are there come before timeouts: a busy node is no silence of a neighbour.
                biased;
                received = self.socket.receive(&mut self.frame), if in_a_row < FRAMES_IN_A_ROW => {
                    in_a_row += 1;
                    match received {
                        Ok(length) => self.arrived(length),
                        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                            tracing::warn!(interface = self.interface, "went down");
                        }
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                () = sleep_until(wake) => self.resolver.handle_timeout(self.clock.now()),
                Some(question) = self.questions.recv() => self.asked(question),
                () = std::future::ready(()), if in_a_row >= FRAMES_IN_A_ROW => {}
            }
            in_a_row = 0;
        }
    }

    fn carry_out(&mut self) -> Option<(Target, Change)> {
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Send(target, frame) => {
                    if let Err(error) = self.socket.send(&frame.encode()) {
                        tracing::debug!(interface = self.interface, %error, "did not take a question");
                        self.send_errors += 1;
                        self.answer(target, || Err(again(&error)));
                    }
                }
                Output::Heard(target) => self.answer(target, || Ok(())),
                Output::Changed(target, change) => return Some((target, change)),
            }
        }
        None
    }

    fn answer(&mut self, target: Target, with: impl Fn() -> io::Result<()>) {
        for answer in self.waiting.remove(&target).into_iter().flatten() {
            // Whoever asked may have stopped waiting.
            let _ = answer.send(with());
        }
    }

    fn arrived(&mut self, length: usize) {
        // The socket's filter is coarse; what is no message of a neighbour is not for us.
        if let Ok(frame) = Frame::decode(&self.frame[..length]) {
            self.resolver.handle_frame(self.clock.now(), &frame);
        }
    }

    fn asked(&mut self, question: Question) {
        if self.resolver.ask(&question.target) {
            let waiting = self.waiting.entry(question.target).or_default();
            waiting.retain(|answer| !answer.is_closed());
            waiting.push(question.answer);
        }
    }
}

/// The same error for one more who waits.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// The configured addresses first, then those of the port, which are not in a VLAN.
fn senders(configured: &[Sender], port: &host::Port) -> Vec<Sender> {
    let own = port.addresses.iter().map(|address| Sender { vlan: Vlan::None, address: *address });
    configured.iter().copied().chain(own.filter(|sender| usable(sender.address))).collect()
}

/// Neighbours answer to any address of ours, but only a port's own is sure to come back.
const fn usable(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}
