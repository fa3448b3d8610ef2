//! Subscriptions to mappings (RFC 9437): asked for until they stand, and asked for again from time to time.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use codec::{DecodeError, Instant, Reader};

use super::config::XtrConfig;
use super::output::{Event, Outputs, SubscriptionView};
use super::request::{map_request, send_to_resolver};
use crate::backoff::{Attempts, Backoff};
use crate::machine::Counter;
use crate::nonce::{NonceGenerator, ReservedNonce};
use crate::rate::{RateLimit, RateLimiter};
use crate::saved::{self, Kind};
use crate::timers::Timers;
use crate::wire::{Action, Address, EidPrefix, EidRecord, MapNotify};

/// Time between two renewals; bounds how long a subscription that the Map-Server lost goes unnoticed.
const RENEW_AFTER: Duration = Duration::from_secs(60);
/// Waits for an answer.
const BACKOFF: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(30));
/// Wait after an answer that said no.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Unanswered requests after which a subscription no longer counts as active.
const SILENT_TRIES: u32 = 3;
/// Requests to end a subscription.
const MAX_UNSUBSCRIBES: u32 = 5;
/// Requests for one prefix that somebody else's messages (an SMR, an end that was not asked for) can cause.
const TRIGGERED_RATE: RateLimit = RateLimit { burst: 1, interval: Duration::from_secs(3) };

#[derive(Clone, Debug)]
struct Subscription {
    nonce: ReservedNonce,
    /// Nonce of the last Map-Notify that was taken over; older ones are replays.
    applied: u64,
    active: bool,
    leaving: bool,
    attempts: Attempts,
    /// Nonce of the first request since the last answer.
    asked_from: u64,
    /// When the last Map-Notify that answered a request came: it named every mapping of the subscription.
    complete_at: Option<Instant>,
}

/// What to do with an authentic Map-Notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Take the records over and acknowledge.
    Apply {
        /// The subscription.
        eid: EidPrefix,
        /// What was last confirmed before this time is no longer part of the subscription.
        stale_before: Option<Instant>,
    },
    /// Acknowledge again, nothing else.
    AcknowledgeAgain,
    /// The subscription has ended as it was asked to.
    Left(EidPrefix),
    /// Nothing.
    Ignore,
}

#[derive(Debug)]
pub(super) struct Subscriptions {
    table: BTreeMap<EidPrefix, Subscription>,
    /// Nonces of storage that no subscription uses yet.
    saved: BTreeMap<EidPrefix, u64>,
    timers: Timers<EidPrefix>,
    triggered: RateLimiter<EidPrefix>,
}

impl Subscriptions {
    pub(super) const fn new() -> Self {
        Self {
            table: BTreeMap::new(),
            saved: BTreeMap::new(),
            timers: Timers::new(),
            triggered: RateLimiter::new(TRIGGERED_RATE, 1024),
        }
    }

    pub(super) fn restore(&mut self, key: &mut Reader<'_>, value: &[u8]) -> Result<(), DecodeError> {
        let eid = saved::read_eid(key)?;
        self.saved.insert(eid, Reader::new(value).u64("saved nonce")?);
        Ok(())
    }

    /// Starts a subscription. Publications do not say which subscription they belong to, so two must not overlap.
    pub(super) fn subscribe(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) {
        if let Some(same) = self.table.get_mut(&eid) {
            if same.leaving {
                (same.leaving, same.attempts) = (false, Attempts::NONE);
                self.timers.set(eid, Some(now));
            }
            return;
        }
        if let Some((overlaps, _)) = self.related(&eid) {
            out.count(Counter::RefusedCommand);
            return out.event(Event::SubscriptionRefused { eid, overlaps });
        }
        // A stored series goes on above its mark; one that was lost restarts above where it can have been.
        let start = random.series_start(config.unix_seconds);
        let last = self.saved.get(&eid).copied().unwrap_or(0).max(start);
        let subscription = Subscription {
            nonce: ReservedNonce::resume(last),
            applied: last,
            active: false,
            leaving: false,
            attempts: Attempts::NONE,
            asked_from: u64::MAX,
            complete_at: None,
        };
        self.table.insert(eid, subscription);
        self.timers.set(eid, Some(now));
    }

    pub(super) fn unsubscribe(&mut self, now: Instant, eid: EidPrefix) -> bool {
        let Some(subscription) = self.table.get_mut(&eid) else { return false };
        (subscription.leaving, subscription.attempts) = (true, Attempts::NONE);
        self.timers.set(eid, Some(now));
        true
    }

    /// Whether publications feed mappings of `eid`, which then are not taken from Map-Replies.
    pub(super) fn feeds(&self, eid: &EidPrefix) -> bool {
        self.related(eid).is_some_and(|(_, s)| s.active)
    }

    /// Asks for the newest state of the subscription that concerns `eid`; whether there is one.
    pub(super) fn renew(&mut self, now: Instant, eid: &EidPrefix, out: &mut Outputs) -> bool {
        let Some((eid, _)) = self.related(eid) else { return false };
        if self.triggered.allow(now, eid) {
            self.timers.set(eid, Some(now));
        } else {
            out.count(Counter::RateLimited);
        }
        true
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Sends what is due; returns the subscriptions whose end was not confirmed but is not waited for any more.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        config: &XtrConfig,
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) -> Vec<EidPrefix> {
        let mut ended = Vec::new();
        for eid in self.timers.take_due(now) {
            let Some(subscription) = self.table.get_mut(&eid) else { continue };
            if subscription.leaving && subscription.attempts.made() >= MAX_UNSUBSCRIBES {
                self.table.remove(&eid);
                ended.push(eid);
                continue;
            }
            if subscription.active && subscription.attempts.made() == SILENT_TRIES {
                subscription.active = false;
                out.count(Counter::Unanswered);
                out.event(Event::NotSubscribed { eid });
            }
            let wait = request(subscription, eid, config, random, out);
            self.timers.set(eid, Some(now + wait));
        }
        ended
    }

    /// Judges a Map-Notify whose MAC is right.
    pub(super) fn handle_notify(&mut self, now: Instant, notify: &MapNotify, out: &mut Outputs) -> Verdict {
        let Some(first) = notify.records.first().map(|r| r.eid) else {
            out.count(Counter::Incomplete);
            return Verdict::Ignore;
        };
        let Some((eid, _)) = self.related(&first) else {
            out.count(Counter::WrongEid);
            return Verdict::Ignore;
        };
        if !notify.records.iter().all(|r| r.eid.overlaps(&eid)) {
            out.count(Counter::WrongEid);
            return Verdict::Ignore;
        }
        let Some(subscription) = self.table.get_mut(&eid) else { return Verdict::Ignore };
        if is_end(&notify.records) {
            return self.handle_end(now, eid, notify.nonce, out);
        }
        if notify.nonce == subscription.applied && subscription.complete_at.is_some() {
            out.count(Counter::Retransmission);
            return Verdict::AcknowledgeAgain;
        }
        if notify.nonce <= subscription.applied {
            out.count(Counter::Replayed);
            return Verdict::Ignore;
        }
        let answers = (subscription.asked_from..=subscription.nonce.last()).contains(&notify.nonce);
        let stale_before = subscription.complete_at.filter(|_| answers);
        if answers || subscription.complete_at.is_none() {
            subscription.complete_at = Some(now);
        }
        subscription.applied = notify.nonce;
        let mark = subscription.nonce.raise(notify.nonce);
        save(&eid, mark, out);
        if !subscription.leaving {
            (subscription.attempts, subscription.asked_from) = (Attempts::NONE, u64::MAX);
            self.timers.set(eid, Some(now + RENEW_AFTER));
            if !subscription.active {
                subscription.active = true;
                out.event(Event::Subscribed { eid });
            }
        }
        Verdict::Apply { eid, stale_before }
    }

    /// The Map-Server says that there is no subscription (RFC 9437 §5). The mapping stays; unless it was our wish,
    /// subscribe again.
    fn handle_end(&mut self, now: Instant, eid: EidPrefix, nonce: u64, out: &mut Outputs) -> Verdict {
        let Some(subscription) = self.table.get_mut(&eid) else { return Verdict::Ignore };
        if nonce < subscription.applied {
            out.count(Counter::Replayed);
            return Verdict::Ignore;
        }
        save(&eid, subscription.nonce.raise(nonce), out);
        if subscription.leaving {
            self.table.remove(&eid);
            self.timers.set(eid, None);
            return Verdict::Left(eid);
        }
        if subscription.active {
            subscription.active = false;
            out.event(Event::NotSubscribed { eid });
        }
        // Ends that somebody forges may come at any rate.
        let refused = self.triggered.take(now, eid).err();
        self.timers.set(eid, refused.unwrap_or(Some(now)));
        Verdict::Ignore
    }

    /// A Map-Reply answered a subscription: the Map-Server did not subscribe us (RFC 9437 §5). Returns the prefix that
    /// was asked for.
    pub(super) fn handle_refusal(
        &mut self,
        now: Instant,
        nonce: u64,
        out: &mut Outputs,
    ) -> Option<EidPrefix> {
        let asked = |s: &Subscription| (s.asked_from..=s.nonce.last()).contains(&nonce);
        let (&eid, subscription) = self.table.iter_mut().find(|(_, s)| asked(s))?;
        subscription.active = false;
        // Not authenticated, so no end; but the requests to end it go on as if there was no answer, and so do end.
        if subscription.leaving {
            return Some(eid);
        }
        (subscription.attempts, subscription.asked_from) = (Attempts::NONE, u64::MAX);
        out.event(Event::NotSubscribed { eid });
        self.timers.set(eid, Some(now + REFUSED_WAIT));
        Some(eid)
    }

    fn related(&self, eid: &EidPrefix) -> Option<(EidPrefix, &Subscription)> {
        self.table.iter().find(|(own, _)| own.overlaps(eid)).map(|(own, s)| (*own, s))
    }

    pub(super) fn views(&self) -> Vec<SubscriptionView> {
        let view = |(eid, s): (&EidPrefix, &Subscription)| SubscriptionView {
            eid: *eid,
            active: s.active,
            nonce: s.nonce.last(),
        };
        self.table.iter().map(view).collect()
    }
}

/// Sends the next request and tells how long to wait for its answer.
///
/// Every request has a nonce of its own: the Map-Server drops one that it has seen, even if its answer was lost. After
/// several without an answer the steps grow, should the Map-Server remember greater nonces than we do.
fn request(
    subscription: &mut Subscription,
    eid: EidPrefix,
    config: &XtrConfig,
    random: &mut NonceGenerator,
    out: &mut Outputs,
) -> Duration {
    let tries = subscription.attempts.made();
    let step = if tries <= SILENT_TRIES { 0 } else { 1u64 << tries.min(40) };
    let skipped = subscription.nonce.last().saturating_add(step);
    save(&eid, subscription.nonce.raise(skipped), out);
    let (nonce, mark) = subscription.nonce.advance();
    save(&eid, mark, out);
    subscription.asked_from = subscription.asked_from.min(nonce);
    let mut request = map_request(config, eid, nonce);
    request.records.iter_mut().for_each(|r| r.subscribe = true);
    if subscription.leaving {
        request.itr_rlocs = Vec::from([Address::NoAddress]);
    }
    let attempt = usize::try_from(tries).unwrap_or(0);
    send_to_resolver(config, request, eid, attempt, out);
    let wait = subscription.attempts.next(&BACKOFF);
    wait + random.jitter(wait)
}

fn save(eid: &EidPrefix, mark: Option<u64>, out: &mut Outputs) {
    if let Some(mark) = mark {
        let mut key = saved::key(Kind::OwnSubscriptionNonce);
        saved::write_eid(&mut key, eid);
        out.persist(key, Some(saved::nonce_value(mark)));
    }
}

/// One record without locators, ACT 5 and a TTL: no mapping says that.
fn is_end(records: &[EidRecord]) -> bool {
    let end = |r: &EidRecord| r.locators.is_empty() && r.ttl != 0 && r.action == Action::DropAuthFailure;
    matches!(records, [record] if end(record))
}
