//! RLOC probing (RFC 9301 §7.1): each locator once, whatever the number of mappings that name it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use codec::Instant;

use super::config::{ProbingConfig, XtrConfig};
use super::output::{Event, LocatorView, Outputs};
use super::request::map_request;
use crate::backoff::doubled;
use crate::machine::Counter;
use crate::nonce::NonceGenerator;
use crate::rtt::{MIN_RTO, RttEstimator};
use crate::timers::Timers;
use crate::wire::{CONTROL_PORT, EidPrefix, MapReply, Message};

/// Probes of one locator that may be unanswered at a time.
const OUTSTANDING: usize = 16;
/// Shortest time between two probes of a locator, whatever is configured: what an answer needs at least.
const MIN_INTERVAL: Duration = MIN_RTO;

#[derive(Clone, Debug)]
struct Probed {
    up: bool,
    misses: u32,
    answers: u32,
    rtt: RttEstimator,
    outstanding: VecDeque<(u64, Instant)>,
    /// Mappings that name it.
    users: BTreeSet<EidPrefix>,
    came_up_at: Option<Instant>,
    /// It stays down until then.
    hold_until: Instant,
    /// Times in a row that it went down soon after it had come up.
    flaps: u32,
}

impl Probed {
    const fn new(now: Instant) -> Self {
        Self {
            // Believed until probes say otherwise: a gateway that starts must not wait for them.
            up: true,
            misses: 0,
            answers: 0,
            rtt: RttEstimator::new(),
            outstanding: VecDeque::new(),
            users: BTreeSet::new(),
            came_up_at: None,
            hold_until: now,
            flaps: 0,
        }
    }

    fn miss(&mut self, now: Instant, config: &ProbingConfig) -> bool {
        self.misses = self.misses.saturating_add(1);
        self.answers = 0;
        if !self.up || self.misses < config.down_after.max(1) {
            return false;
        }
        self.up = false;
        let soon = self.came_up_at.is_some_and(|at| now.saturating_since(at) < config.max_hold_down);
        self.flaps = if soon { self.flaps.saturating_add(1) } else { 0 };
        let hold = match self.flaps {
            0 => Duration::ZERO,
            n => doubled(config.hold_down, n - 1, config.max_hold_down),
        };
        self.hold_until = now + hold;
        true
    }

    fn answer(&mut self, now: Instant, config: &ProbingConfig) -> bool {
        self.misses = 0;
        self.answers = self.answers.saturating_add(1);
        if self.up || self.answers < config.up_after.max(1) || now < self.hold_until {
            return false;
        }
        self.up = true;
        self.came_up_at = Some(now);
        true
    }
}

#[derive(Debug, Default)]
pub(super) struct Prober {
    locators: BTreeMap<IpAddr, Probed>,
    of_mapping: BTreeMap<EidPrefix, Vec<IpAddr>>,
    timers: Timers<IpAddr>,
}

impl Prober {
    /// Notes which locators a mapping names now; none when it is gone.
    pub(super) fn assign(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        rlocs: impl Iterator<Item = IpAddr>,
        config: &XtrConfig,
    ) {
        let new: Vec<IpAddr> = rlocs.filter(|r| !config.rlocs.contains(r)).collect();
        for rloc in &new {
            if !self.locators.contains_key(rloc) && config.probing.interval.is_some() {
                self.timers.set(*rloc, Some(now));
            }
            self.locators.entry(*rloc).or_insert_with(|| Probed::new(now)).users.insert(eid);
        }
        let old = self.of_mapping.remove(&eid).unwrap_or_default();
        for rloc in old.iter().filter(|r| !new.contains(r)) {
            let Some(probed) = self.locators.get_mut(rloc) else { continue };
            probed.users.remove(&eid);
            if probed.users.is_empty() {
                self.locators.remove(rloc);
                self.timers.set(*rloc, None);
            }
        }
        if !new.is_empty() {
            self.of_mapping.insert(eid, new);
        }
    }

    /// Whether a locator is believed to work; what is not probed is.
    pub(super) fn is_up(&self, rloc: &IpAddr) -> bool {
        self.locators.get(rloc).is_none_or(|p| p.up)
    }

    pub(super) fn users(&self, rloc: &IpAddr) -> Vec<EidPrefix> {
        self.locators.get(rloc).map_or_else(Vec::new, |p| p.users.iter().copied().collect())
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Sends the probes that are due; returns the locators that were found down.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) -> Vec<IpAddr> {
        let mut down = Vec::new();
        let Some(interval) = config.probing.interval else { return down };
        let interval = interval.max(MIN_INTERVAL);
        for rloc in self.timers.take_due(now) {
            let Some(probed) = self.locators.get_mut(&rloc) else { continue };
            let patience = interval.max(probed.rtt.rto());
            while probed.outstanding.front().is_some_and(|(_, at)| now.saturating_since(*at) >= patience) {
                probed.outstanding.pop_front();
                if probed.miss(now, &config.probing) {
                    down.push(rloc);
                    out.event(Event::LocatorDown { rloc });
                }
            }
            if let Some(&eid) = probed.users.first().filter(|_| probed.outstanding.len() < OUTSTANDING) {
                let nonce = random.next_u64();
                probed.outstanding.push_back((nonce, now));
                let mut request = map_request(config, eid, nonce);
                request.probe = true;
                request.xtr = None;
                request.itr_rlocs.sort_by_key(|a| a.ip().is_some_and(|ip| ip.is_ipv4() != rloc.is_ipv4()));
                out.send(SocketAddr::new(rloc, CONTROL_PORT), &Message::MapRequest(request));
            }
            let early = random.jitter(interval);
            self.timers.set(rloc, Some(now + interval.saturating_sub(early)));
        }
        down
    }

    /// Takes a probe reply; returns the locator if it came up.
    ///
    /// The nonce went to one locator only and tells which. The mapping in the reply is what the ETR knows of it, not
    /// what the Map-Server publishes, so it is not used.
    pub(super) fn handle_reply(
        &mut self,
        now: Instant,
        reply: &MapReply,
        config: &ProbingConfig,
        out: &mut Outputs,
    ) -> Option<IpAddr> {
        let authoritative = !reply.records.is_empty() && reply.records.iter().all(|r| r.authoritative);
        let names_locator = reply.records.iter().any(|r| r.locators.iter().any(|l| l.probed));
        if !authoritative || !names_locator {
            out.count(Counter::BadProbeReply);
            return None;
        }
        let found = self.locators.iter_mut().find_map(|(rloc, probed)| {
            let index = probed.outstanding.iter().position(|(nonce, _)| *nonce == reply.nonce)?;
            Some((*rloc, probed, index))
        });
        let Some((rloc, probed, index)) = found else {
            out.count(Counter::UnknownNonce);
            return None;
        };
        // A later probe that got through vouches for the earlier ones.
        let answered = probed.outstanding.drain(..=index).next_back();
        if let Some((_, sent_at)) = answered {
            probed.rtt.sample(now.saturating_since(sent_at));
        }
        let up = probed.answer(now, config);
        if up {
            out.event(Event::LocatorUp { rloc });
        }
        up.then_some(rloc)
    }

    pub(super) fn views(&self) -> Vec<LocatorView> {
        let view = |(rloc, p): (&IpAddr, &Probed)| LocatorView {
            rloc: *rloc,
            up: p.up,
            rtt: p.rtt.srtt(),
            misses: p.misses,
        };
        self.locators.iter().map(view).collect()
    }
}
