//! Asking the mapping system (RFC 9301 §5.3): for a miss, before expiry, and after an SMR.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use codec::Instant;

use super::config::XtrConfig;
use super::output::Outputs;
use super::request::{map_request, send_to_resolver};
use crate::backoff::{Attempts, Backoff};
use crate::machine::Counter;
use crate::nonce::NonceGenerator;
use crate::rate::{RateLimit, RateLimiter};
use crate::timers::Timers;
use crate::wire::EidPrefix;

/// RFC 9301 §5.3: at most one Map-Request per second for one prefix.
const REQUEST_RATE: RateLimit = RateLimit { burst: 1, interval: Duration::from_secs(1) };
/// Waits for an answer.
const BACKOFF: Backoff =
    Backoff { first: REQUEST_RATE.interval, longest: Duration::from_secs(8), at_same: 3 };
/// Unanswered requests before a pause (RFC 9301 §5.3).
const MAX_TRIES: u32 = 10;
/// The pause.
const PAUSE: Duration = Duration::from_secs(30);
/// Nonces of one question that are still good for an answer.
const NONCES: usize = 4;
/// Prefixes whose rate is tracked.
const TRACKED: usize = 4096;

/// Why something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A packet without a mapping: given up after the pause.
    Miss,
    /// A mapping in use is about to expire: asked until answered.
    Refresh,
    /// An SMR: asked until answered.
    Smr,
}

#[derive(Clone, Debug)]
struct Pending {
    reason: Reason,
    nonces: VecDeque<u64>,
    attempts: Attempts,
    paused: bool,
    /// An SMR has cut a pause short, and none was kept since.
    cut_short: bool,
}

impl Pending {
    fn new(reason: Reason) -> Self {
        let (nonces, attempts) = (VecDeque::new(), Attempts::NONE);
        Self { reason, nonces, attempts, paused: false, cut_short: false }
    }

    /// An SMR says that there is something new, so it does not wait for the timer and has all attempts before it;
    /// whether it may. SMRs are not authenticated: while they come, every other pause is kept, and what is asked about
    /// because of one already is not asked more often for another.
    fn begin_round_for_smr(&mut self) -> bool {
        let may = if self.paused { !self.cut_short } else { self.reason != Reason::Smr };
        if may {
            self.cut_short |= self.paused;
            (self.reason, self.attempts, self.paused) = (Reason::Smr, Attempts::NONE, false);
        }
        may
    }
}

/// What became of a question that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No answer to any try; a miss is told to the data path.
    Unanswered(EidPrefix),
    /// A question about a mapping is paused: it goes on unless the mapping is gone.
    Resumed(EidPrefix),
}

#[derive(Debug)]
pub(super) struct Resolver {
    pending: BTreeMap<EidPrefix, Pending>,
    asked: BTreeMap<u64, EidPrefix>,
    timers: Timers<EidPrefix>,
    rate: RateLimiter<EidPrefix>,
    max_pending: usize,
    /// Counts failures, so that the next question goes to another resolver.
    attempt: usize,
}

impl Resolver {
    pub(super) fn new(max_pending: usize) -> Self {
        Self {
            pending: BTreeMap::new(),
            asked: BTreeMap::new(),
            timers: Timers::default(),
            rate: RateLimiter::new(REQUEST_RATE, TRACKED),
            max_pending,
            attempt: 0,
        }
    }

    /// Asks about `eid` unless that is under way.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        reason: Reason,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) {
        let full = self.pending.len() >= self.max_pending;
        match self.pending.get_mut(&eid) {
            Some(pending) => {
                if reason != Reason::Smr || !pending.begin_round_for_smr() {
                    return;
                }
            }
            None if full => return out.count(Counter::TableFull),
            None => {
                self.pending.insert(eid, Pending::new(reason));
            }
        }
        self.send(now, eid, config, random, out);
    }

    fn send(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) {
        if let Err(at) = self.rate.take(now, eid) {
            return self.timers.set(eid, at);
        }
        let Some(pending) = self.pending.get_mut(&eid) else { return };
        let nonce = random.next_u64();
        pending.nonces.push_back(nonce);
        let wait = pending.attempts.next(&BACKOFF);
        if pending.attempts.made() > 1 {
            self.attempt = self.attempt.wrapping_add(1);
        }
        self.asked.insert(nonce, eid);
        if pending.nonces.len() > NONCES {
            let old = pending.nonces.pop_front();
            old.map(|nonce| self.asked.remove(&nonce));
        }
        let mut request = map_request(config, eid, nonce);
        request.smr_invoked = pending.reason == Reason::Smr;
        self.timers.set(eid, Some(now + wait));
        send_to_resolver(config, request, eid, self.attempt, out);
    }

    /// What was asked under this nonce.
    pub(super) fn asked(&self, nonce: u64) -> Option<EidPrefix> {
        self.asked.get(&nonce).copied()
    }

    /// The question is answered, or there is no need for it any more; tells why it was asked.
    pub(super) fn close(&mut self, eid: &EidPrefix) -> Option<Reason> {
        let pending = self.pending.remove(eid)?;
        for nonce in pending.nonces {
            self.asked.remove(&nonce);
        }
        self.timers.set(*eid, None);
        Some(pending.reason)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Repeats the questions that are due, and tells what became of them.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for eid in self.timers.take_due(now) {
            let Some(pending) = self.pending.get_mut(&eid) else { continue };
            if pending.paused {
                if pending.reason == Reason::Miss {
                    self.close(&eid);
                    continue;
                }
                (pending.paused, pending.cut_short, pending.attempts) = (false, false, Attempts::NONE);
                self.send(now, eid, config, random, out);
                outcomes.push(Outcome::Resumed(eid));
                continue;
            }
            if pending.attempts.made() < MAX_TRIES {
                self.send(now, eid, config, random, out);
                continue;
            }
            pending.paused = true;
            let miss = pending.reason == Reason::Miss;
            self.timers.set(eid, Some(now + PAUSE));
            out.count(Counter::Unanswered);
            if miss {
                outcomes.push(Outcome::Unanswered(eid));
            }
        }
        outcomes
    }
}
