//! Who is asked for its link-layer address, and when: pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use codec::Instant;
use codec::neighbour::{Frame, Mac, Vlan, link_local};

use super::Target;
use crate::balancer::jitter::Jitter;

/// How long an answer is taken as it is; shortened by up to an eighth, so that backends are not asked all at once.
const FRESH: Duration = Duration::from_secs(30);
/// From one try to the next.
const TRY: Duration = Duration::from_secs(1);
/// Tries before a neighbour counts as silent.
const TRIES: u32 = 3;
/// From a round of tries without an answer to the next one.
const RETRY: Duration = Duration::from_secs(5);
/// Another link-layer address so soon after the last answer is a second host with the address: the first one stays
/// (`locktime` of the kernel).
const LOCK: Duration = Duration::from_secs(1);
/// Targets are asked this many at a time ...
const BURST: usize = 64;
/// ... and this far apart, also after a time in which nobody was: their answers have to find room.
const BURST_GAP: Duration = Duration::from_millis(10);

/// An address of ours to ask from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Where it is used.
    pub vlan: Vlan,
    /// The address.
    pub address: IpAddr,
}

/// How it stands with a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being asked for the first time.
    Resolving,
    /// It answered, not long ago.
    Resolved,
    /// It answered, but not any more; its last link-layer address is still the best there is.
    Stale,
    /// It never answered.
    Failed,
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// How it stands.
    pub state: State,
    /// Its link-layer address; known if `state` is [`State::Resolved`] or [`State::Stale`].
    pub mac: Option<Mac>,
}

/// What happened to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has a link-layer address, for the first time or after it had been silent.
    Resolved {
        /// The address.
        mac: Mac,
    },
    /// It has another link-layer address.
    Moved {
        /// The one before.
        from: Mac,
        /// The one now.
        to: Mac,
    },
    /// It does not answer any more.
    Stale {
        /// The last address, still in use.
        mac: Mac,
    },
    /// It has not answered.
    Failed,
}

/// What the resolver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the target with the frame.
    Send(Target, Frame),
    /// The target was heard.
    Heard(Target),
    /// Something happened to the target.
    Changed(Target, Change),
}

/// What happened so often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Questions sent.
    pub sent: u64,
    /// Frames that told of a target.
    pub heard: u64,
    /// Rounds of tries without an answer from a target that had answered before: what is in use is stale.
    pub stale: u64,
    /// Rounds of tries without an answer from a target that never answered.
    pub failed: u64,
    /// Changes of a link-layer address.
    pub moved: u64,
    /// Another link-layer address claimed right after the last answer, and ignored.
    pub conflicts: u64,
}

/// Keeps the link-layer addresses of targets.
#[derive(Debug)]
pub struct Resolver {
    mac: Mac,
    senders: Vec<Sender>,
    jitter: Jitter,
    entries: BTreeMap<Target, Entry>,
    due: BTreeSet<(Instant, Target)>,
    next_burst: Instant,
    outputs: VecDeque<Output>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    neighbour: Neighbour,
    /// Questions of this round.
    tries: u32,
    due: Instant,
    heard: Instant,
}

impl Resolver {
    /// Asks from the port's link-layer address. Of `senders` the first one in the target's VLAN and of its family asks;
    /// without one, an ARP probe (RFC 5227), or the link-local address that belongs to `mac`: a solicitation from the
    /// unspecified address would make a backend that just looks for duplicates give its address up.
    #[must_use]
    pub const fn new(mac: Mac, senders: Vec<Sender>, random: u64) -> Self {
        Self {
            mac,
            senders,
            jitter: Jitter::new(random),
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            next_burst: Instant::ZERO,
            outputs: VecDeque::new(),
            counters: Counters { sent: 0, heard: 0, stale: 0, failed: 0, moved: 0, conflicts: 0 },
        }
    }

    /// Asks from other addresses from now on.
    pub fn set_port(&mut self, mac: Mac, senders: Vec<Sender>) {
        (self.mac, self.senders) = (mac, senders);
    }

    /// Keeps exactly these targets; what is known of those that stay is kept.
    pub fn set_targets(&mut self, now: Instant, targets: impl IntoIterator<Item = Target>) {
        let mut old = std::mem::take(&mut self.entries);
        self.due.clear();
        // Several VIPs may have the same backend.
        for target in targets.into_iter().collect::<BTreeSet<_>>() {
            let entry = old.remove(&target).unwrap_or_else(|| Entry::new(now));
            self.entries.insert(target, entry);
            self.due.insert((entry.due, target));
        }
        let entries = &self.entries;
        self.outputs.retain(|output| match output {
            Output::Send(target, _) | Output::Heard(target) | Output::Changed(target, _) => {
                entries.contains_key(target)
            }
        });
    }

    /// Starts from a link-layer address that an earlier process had: stale until the target is heard. Nothing happens
    /// to a target that has one.
    pub fn assume(&mut self, target: &Target, mac: Mac) {
        if let Some(entry) = self.entries.get_mut(target).filter(|entry| entry.neighbour.mac.is_none()) {
            entry.neighbour = Neighbour { state: State::Stale, mac: Some(mac) };
        }
    }

    /// What is known of a target; `None` if it is not one.
    #[must_use]
    pub fn get(&self, target: &Target) -> Option<Neighbour> {
        self.entries.get(target).map(|entry| entry.neighbour)
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Asks a target once, besides its turn. Whether it is a target.
    pub fn ask(&mut self, target: &Target) -> bool {
        let Some(entry) = self.entries.get(target) else { return false };
        let to = entry.neighbour.mac.filter(|_| entry.neighbour.state == State::Resolved);
        self.send(target, to);
        true
    }

    /// A frame that arrived on the port. What nobody asked for counts as well, as RFC 5944 §4.6 and RFC 4861 §7.2.6 have
    /// it: so a backend that moves is followed at once.
    pub fn handle_frame(&mut self, now: Instant, frame: &Frame) {
        let Some(claim) = frame.claim().filter(|claim| claim.mac != Some(self.mac)) else { return };
        let target = Target { vlan: frame.vlan, address: claim.address };
        let Some(entry) = self.entries.get(&target) else { return };
        let (known, since) = (entry.neighbour.mac, now - entry.heard);
        let fresh = entry.neighbour.state == State::Resolved;
        let mac = match (known, claim.mac) {
            (Some(known), Some(mac)) if mac != known && fresh && since < LOCK => {
                self.counters.conflicts += 1;
                return;
            }
            // RFC 4861 §7.2.5: not to replace what answers.
            (Some(known), Some(mac)) if mac != known && fresh && !claim.replaces => return,
            (_, Some(mac)) => mac,
            (Some(known), None) => known,
            (None, None) => return,
        };
        self.heard(now, target, mac);
    }

    /// Asks those whose turn it is, and gives up on those that do not answer.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_burst {
            return;
        }
        for _ in 0..BURST {
            let Some((at, target)) = self.due.first().copied().filter(|(at, _)| *at <= now) else { return };
            self.next_burst = now + BURST_GAP;
            self.due.remove(&(at, target));
            let Some(entry) = self.entries.get_mut(&target) else { continue };
            if entry.tries < TRIES {
                // The first question of a refresh goes to the neighbour alone; if it moved, the next ones find it.
                let to = entry.neighbour.mac.filter(|_| entry.tries == 0);
                entry.tries += 1;
                entry.due = now + TRY;
                self.due.insert((entry.due, target));
                self.send(&target, to);
            } else {
                entry.tries = 0;
                entry.due = now + RETRY;
                self.due.insert((entry.due, target));
                self.silent(target);
            }
        }
    }

    /// When [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| (*at).max(self.next_burst))
    }

    /// What there is to do; call until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn heard(&mut self, now: Instant, target: Target, mac: Mac) {
        let early = self.jitter.up_to(FRESH / 8);
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let before =
            std::mem::replace(&mut entry.neighbour, Neighbour { state: State::Resolved, mac: Some(mac) });
        self.due.remove(&(entry.due, target));
        (entry.tries, entry.heard, entry.due) = (0, now, now + (FRESH - early));
        self.due.insert((entry.due, target));
        self.counters.heard += 1;
        self.outputs.push_back(Output::Heard(target));
        let change = match before {
            Neighbour { mac: Some(from), .. } if from != mac => {
                self.counters.moved += 1;
                Change::Moved { from, to: mac }
            }
            Neighbour { state: State::Resolved, .. } => return,
            _ => Change::Resolved { mac },
        };
        self.outputs.push_back(Output::Changed(target, change));
    }

    /// A round of tries went without an answer.
    fn silent(&mut self, target: Target) {
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let before = entry.neighbour.state;
        let change = match entry.neighbour.mac {
            Some(mac) => {
                self.counters.stale += 1;
                entry.neighbour.state = State::Stale;
                Change::Stale { mac }
            }
            None => {
                self.counters.failed += 1;
                entry.neighbour.state = State::Failed;
                Change::Failed
            }
        };
        if entry.neighbour.state != before {
            self.outputs.push_back(Output::Changed(target, change));
        }
    }

    fn send(&mut self, target: &Target, to: Option<Mac>) {
        let of = |family: fn(&IpAddr) -> bool| {
            let here = |sender: &&Sender| sender.vlan == target.vlan && family(&sender.address);
            self.senders.iter().find(here).map(|sender| sender.address)
        };
        let frame = match target.address {
            IpAddr::V4(address) => {
                let sender = match of(IpAddr::is_ipv4) {
                    Some(IpAddr::V4(sender)) => sender,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                Frame::request(target.vlan, self.mac, sender, address, to)
            }
            IpAddr::V6(address) => {
                let source = match of(IpAddr::is_ipv6) {
                    Some(IpAddr::V6(source)) => source,
                    _ => link_local(self.mac),
                };
                Frame::solicitation(target.vlan, self.mac, source, address, to)
            }
        };
        self.counters.sent += 1;
        self.outputs.push_back(Output::Send(*target, frame));
    }
}

impl Entry {
    const fn new(now: Instant) -> Self {
        let neighbour = Neighbour { state: State::Resolving, mac: None };
        Self { neighbour, tries: 0, due: now, heard: now }
    }
}

#[cfg(test)]
mod tests;
