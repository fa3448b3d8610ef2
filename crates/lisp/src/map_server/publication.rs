//! Subscriptions and publications (RFC 9437 §5, §6).
//!
//! A publication says how far the subscriber is from the mappings as they are now, not what happened since the last
//! one: whatever is lost, the newest state arrives, and one message per subscription is under way.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::{DecodeError, Instant, Reader, Writer};

use super::config::{Limits, Subscriber};
use super::database::{Database, negative};
use super::output::{Event, Outputs, SubscriptionView};
use super::subscription::{GIVE_UP_AFTER, Subscription};
use crate::auth::{VerifiedMessage, sign, verify};
use crate::machine::Counter;
use crate::nonce::ReservedNonce;
use crate::prefix_map::PrefixMap;
use crate::rate::RateLimiter;
use crate::rtt::RttEstimator;
use crate::saved::{self, Kind};
use crate::timers::Timers;
use crate::wire::{
    Action, Authentication, CONTROL_PORT, EidPrefix, EidRecord, MapNotify, Message, XtrIdentity,
};

/// Above this, the series of nonces could end.
const MAX_NONCE: u64 = u64::MAX - (1 << 32);

#[derive(Debug)]
pub(super) struct Publisher {
    subscribers: BTreeMap<XtrIdentity, Subscriber>,
    subscriptions: PrefixMap<BTreeMap<XtrIdentity, Subscription>>,
    rtts: BTreeMap<XtrIdentity, RttEstimator>,
    timers: Timers<(EidPrefix, XtrIdentity)>,
    pace: RateLimiter<XtrIdentity>,
    max_subscriptions: usize,
}

/// What became of a Map-Request with the N bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answered with a Map-Notify, or dropped as a replay.
    Done,
    /// Not allowed: a negative Map-Reply says so.
    Denied,
    /// Answer it as if the N bit were not set.
    NotSubscribed,
}

/// A Map-Request with the N bit.
pub(super) struct SubscribeRequest {
    pub(super) identity: XtrIdentity,
    pub(super) eid: EidPrefix,
    pub(super) nonce: u64,
    /// Empty to unsubscribe.
    pub(super) itr_rlocs: Vec<IpAddr>,
    /// The confirmation of an unsubscription goes here.
    pub(super) source: IpAddr,
}

impl Publisher {
    pub(super) fn new(subscribers: &[Subscriber], limits: &Limits) -> Self {
        Self {
            subscribers: subscribers.iter().map(|s| (s.identity, s.clone())).collect(),
            subscriptions: PrefixMap::new(),
            rtts: BTreeMap::new(),
            timers: Timers::default(),
            // Only who is configured is published to, so each has its place.
            pace: RateLimiter::new(limits.map_notify, subscribers.len()),
            max_subscriptions: limits.max_subscriptions,
        }
    }

    pub(super) fn knows(&self, identity: &XtrIdentity) -> bool {
        self.subscribers.contains_key(identity)
    }

    /// Takes a stored subscription back; what the subscriber has is not known, so it gets everything again.
    pub(super) fn restore(&mut self, key: &mut Reader<'_>, value: &[u8]) -> Result<(), DecodeError> {
        let eid = saved::read_eid(key)?;
        let identity = saved::read_identity(key)?;
        let mut r = Reader::new(value);
        let nonce = ReservedNonce::resume(r.u64("saved nonce")?);
        let itr_rlocs = saved::read_ips(&mut r)?;
        if self.knows(&identity) {
            self.of_prefix(eid).insert(identity, Subscription::new(itr_rlocs, nonce));
        }
        Ok(())
    }

    pub(super) fn subscribe(
        &mut self,
        now: Instant,
        request: SubscribeRequest,
        database: &Database,
        out: &mut Outputs,
    ) -> Verdict {
        let SubscribeRequest { identity, eid, nonce, .. } = request;
        if !self.knows(&identity) {
            return Verdict::Denied;
        }
        if nonce > MAX_NONCE || self.get(&eid, &identity).is_some_and(|s| nonce <= s.nonce.last()) {
            out.count(Counter::Replayed);
            return Verdict::Done;
        }
        if request.itr_rlocs.is_empty() {
            self.unsubscribe(&request, out);
            return Verdict::Done;
        }
        if !database.is_configured(&eid) || !self.has_room(&eid, &identity) {
            return Verdict::NotSubscribed;
        }
        let fresh = Subscription::new(Vec::new(), ReservedNonce::resume(0));
        let subscription = self.of_prefix(eid).entry(identity).or_insert(fresh);
        if subscription.is_active() && subscription.itr_rlocs != request.itr_rlocs {
            subscription.previous = core::mem::take(&mut subscription.itr_rlocs);
        }
        subscription.itr_rlocs = request.itr_rlocs;
        subscription.forget_deliveries();
        let mark = subscription.nonce.raise(nonce);
        save(&eid, &identity, subscription, mark, true, out);
        out.event(Event::Subscribed { subscriber: identity, eid });
        self.publish(now, eid, identity, database, out, Some(nonce));
        Verdict::Done
    }

    fn has_room(&self, eid: &EidPrefix, identity: &XtrIdentity) -> bool {
        let known = self.get(eid, identity).is_some();
        let own = self.subscriptions.iter().filter(|(_, all)| all.contains_key(identity));
        known || own.count() < self.max_subscriptions
    }

    /// A Map-Request is not authenticated, so anybody can end a subscription; the confirmation says that it ended
    /// (Locator Count 0, ACT 5), and a subscriber that did not ask for it subscribes again. So it goes to where the
    /// subscriber is known to be, too, and not only to where the request came from.
    fn unsubscribe(&mut self, request: &SubscribeRequest, out: &mut Outputs) {
        let SubscribeRequest { identity, eid, nonce, .. } = *request;
        let Some(key) = self.subscribers.get(&identity).map(|s| s.key.clone()) else { return };
        let Some(subscription) = self.of_prefix(eid).get_mut(&identity) else { return };
        let known: Vec<IpAddr> = subscription.destinations().collect();
        subscription.end();
        let mark = subscription.nonce.raise(nonce);
        save(&eid, &identity, subscription, mark, true, out);
        self.timers.set((eid, identity), None);
        let records = Vec::from([negative(eid, 1, Action::DropAuthFailure)]);
        let elsewhere = known.first().filter(|_| !known.contains(&request.source));
        for rloc in [Some(&request.source), elsewhere].into_iter().flatten() {
            out.send_signed(control(*rloc), notify(nonce, records.clone()), &key);
        }
        out.event(Event::Unsubscribed { subscriber: identity, eid });
    }

    /// Publishes what `eid` has become to everybody whom it concerns.
    pub(super) fn touch(&mut self, now: Instant, eid: EidPrefix, database: &Database, out: &mut Outputs) {
        let overlapping = self.subscriptions.overlapping(eid);
        let concerned: Vec<(EidPrefix, XtrIdentity)> =
            overlapping.flat_map(|(e, all)| all.keys().map(move |id| (e, *id))).collect();
        for (eid, identity) in concerned {
            self.publish(now, eid, identity, database, out, None);
        }
    }

    /// Publishes everything to everybody, after a restart.
    pub(super) fn touch_all(&mut self, now: Instant, database: &Database, out: &mut Outputs) {
        let all: Vec<_> =
            self.subscriptions.iter().flat_map(|(e, all)| all.keys().map(move |id| (e, *id))).collect();
        for (eid, identity) in all {
            self.publish(now, eid, identity, database, out, None);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, database: &Database, out: &mut Outputs) {
        for (eid, identity) in self.timers.take_due(now) {
            if self.is_lost(now, &eid, &identity) {
                self.lose(now, eid, identity, database, out);
            } else if !self.publish(now, eid, identity, database, out, None) {
                self.retransmit(now, eid, identity, out);
            }
        }
    }

    /// Takes a Map-Notify-Ack.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        database: &Database,
        out: &mut Outputs,
    ) {
        let keys = self.subscribers.values().map(|s| (s.identity, &s.key));
        let Ok((identity, VerifiedMessage::MapNotifyAck(ack))) = verify(bytes, keys) else {
            return out.count(Counter::BadAuthentication);
        };
        let Some(eid) = self.acknowledged_by(&identity, &ack) else {
            return out.count(Counter::UnknownNonce);
        };
        let Some(subscription) = self.of_prefix(eid).get_mut(&identity) else { return };
        let confirmed_elsewhere = subscription.previous.contains(&from.ip());
        if confirmed_elsewhere && !subscription.itr_rlocs.contains(&from.ip()) {
            subscription.itr_rlocs = core::mem::take(&mut subscription.previous);
            save(&eid, &identity, subscription, None, true, out);
        }
        subscription.previous.clear();
        subscription.heard(ack.nonce);
        let Some(done) = subscription.acknowledge(ack.nonce, eid) else {
            return self.advance(now, eid, identity, database, out);
        };
        if done.sent_once {
            self.rtts.entry(identity).or_default().sample(now.saturating_since(done.sent_at));
        }
        for record in &done.records {
            let (nonce, published_at) = (done.nonce, done.published_at);
            let (subscriber, eid) = (identity, record.eid);
            out.event(Event::Acknowledged { nonce, subscriber, eid, published_at, at: now });
        }
        self.timers.set((eid, identity), None);
        self.publish(now, eid, identity, database, out, None);
    }

    /// Nonces are counted per subscription, so the records tell which one an acknowledgement is about.
    fn acknowledged_by(&self, identity: &XtrIdentity, ack: &MapNotify) -> Option<EidPrefix> {
        let first = ack.records.first()?.eid;
        let own =
            self.subscriptions.overlapping(first).filter_map(|(eid, all)| Some((eid, all.get(identity)?)));
        own.filter(|(_, s)| s.sent(ack.nonce)).map(|(e, _)| e).next()
    }

    /// After a sign of life: something newer goes out as soon as it may, or the timer is set anew.
    fn advance(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        identity: XtrIdentity,
        database: &Database,
        out: &mut Outputs,
    ) {
        if !self.publish(now, eid, identity, database, out, None) {
            let rtt = self.rtt(&identity);
            let at = self.get(&eid, &identity).and_then(|s| s.retransmit_at(&rtt));
            self.timers.set((eid, identity), at);
        }
    }

    /// Sends the newest state if it differs from what is under way and a message may go out now; `nonce` is given to
    /// answer a request. Whether something was sent or there is nothing to send.
    fn publish(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        identity: XtrIdentity,
        database: &Database,
        out: &mut Outputs,
        nonce: Option<u64>,
    ) -> bool {
        let Some(key) = self.subscribers.get(&identity).map(|s| s.key.clone()) else { return true };
        let rtt = self.rtt(&identity);
        let Some(all) = self.subscriptions.get_mut(&eid) else { return true };
        let Some(subscription) = all.get_mut(&identity).filter(|s| s.is_active()) else { return true };
        let records = subscription.pending(eid, &database.mappings(eid, Some(identity)));
        if records.is_empty() {
            return true;
        }
        if let Some(flight) = &subscription.in_flight {
            if flight.records == records {
                return false;
            }
            let at = subscription.replace_at(&rtt).unwrap_or(now);
            if at > now {
                self.timers.set((eid, identity), Some(at));
                return true;
            }
        }
        if let Err(at) = self.pace.take(now, identity) {
            self.timers.set((eid, identity), at);
            return true;
        }
        let nonce = nonce.unwrap_or_else(|| {
            let (next, mark) = subscription.nonce.advance();
            save(&eid, &identity, subscription, mark, false, out);
            next
        });
        let Ok(payload) = sign(notify(nonce, records.clone()), &key) else {
            out.count(Counter::NotEncodable);
            return true;
        };
        if subscription.in_flight.is_some() {
            out.count(Counter::Superseded);
        }
        for record in &records {
            out.event(Event::Published { nonce, subscriber: identity, eid: record.eid, at: now });
        }
        subscription.publish(now, nonce, records, payload.clone());
        subscription.destinations().for_each(|rloc| out.send_bytes(control(rloc), payload.clone()));
        self.timers.set((eid, identity), subscription.retransmit_at(&rtt));
        true
    }

    fn retransmit(&mut self, now: Instant, eid: EidPrefix, identity: XtrIdentity, out: &mut Outputs) {
        if let Err(at) = self.pace.take(now, identity) {
            return self.timers.set((eid, identity), at);
        }
        let rtt = self.rtt(&identity);
        let Some(all) = self.subscriptions.get_mut(&eid) else { return };
        let Some(subscription) = all.get_mut(&identity) else { return };
        let Some(flight) = &mut subscription.in_flight else { return };
        flight.sent_at = now;
        flight.retries += 1;
        flight.sent_once = false;
        let payload = flight.payload.clone();
        subscription.destinations().for_each(|rloc| out.send_bytes(control(rloc), payload.clone()));
        self.timers.set((eid, identity), subscription.retransmit_at(&rtt));
    }

    fn is_lost(&self, now: Instant, eid: &EidPrefix, identity: &XtrIdentity) -> bool {
        let since = self.get(eid, identity).and_then(|s| s.silent_since);
        since.is_some_and(|at| now.saturating_since(at) >= GIVE_UP_AFTER)
    }

    /// RFC 9437 §5: after all retransmissions the subscription goes, with one last Map-Notify (ACT 5). If the silence
    /// began with a change of ITR-RLOCs, the former ones apply again instead.
    fn lose(
        &mut self,
        now: Instant,
        eid: EidPrefix,
        identity: XtrIdentity,
        database: &Database,
        out: &mut Outputs,
    ) {
        let Some(key) = self.subscribers.get(&identity).map(|s| s.key.clone()) else { return };
        let Some(subscription) = self.of_prefix(eid).get_mut(&identity) else { return };
        if !subscription.previous.is_empty() {
            subscription.itr_rlocs = core::mem::take(&mut subscription.previous);
            subscription.forget_deliveries();
            save(&eid, &identity, subscription, None, true, out);
            self.publish(now, eid, identity, database, out, None);
            return;
        }
        let records = Vec::from([negative(eid, 1, Action::DropAuthFailure)]);
        let last = sign(notify(subscription.nonce.last(), records), &key);
        if let (Ok(payload), Some(rloc)) = (last, subscription.destinations().next()) {
            out.send_bytes(control(rloc), payload);
        }
        subscription.end();
        save(&eid, &identity, subscription, None, true, out);
        out.event(Event::SubscriptionLost { subscriber: identity, eid });
    }

    pub(super) fn views(&self) -> Vec<SubscriptionView> {
        let pairs =
            self.subscriptions.iter().flat_map(|(eid, all)| all.iter().map(move |(id, s)| (eid, id, s)));
        let active = pairs.filter(|(_, _, s)| s.is_active());
        active
            .map(|(eid, identity, s)| SubscriptionView {
                subscriber: self.subscribers.get(identity).map_or_else(Default::default, |s| s.name.clone()),
                identity: *identity,
                eid,
                itr_rlocs: s.itr_rlocs.clone(),
                nonce: s.nonce.last(),
                unacknowledged: s.in_flight.is_some(),
                rtt: self.rtts.get(identity).and_then(RttEstimator::srtt),
            })
            .collect()
    }

    fn rtt(&self, identity: &XtrIdentity) -> RttEstimator {
        self.rtts.get(identity).copied().unwrap_or_default()
    }

    fn get(&self, eid: &EidPrefix, identity: &XtrIdentity) -> Option<&Subscription> {
        self.subscriptions.get(eid)?.get(identity)
    }

    fn of_prefix(&mut self, eid: EidPrefix) -> &mut BTreeMap<XtrIdentity, Subscription> {
        if self.subscriptions.get(&eid).is_none() {
            self.subscriptions.insert(eid, BTreeMap::new());
        }
        self.subscriptions.get_mut(&eid).expect("inserted above")
    }
}

const fn control(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, CONTROL_PORT)
}

const fn notify(nonce: u64, records: Vec<EidRecord>) -> Message {
    let authentication = Authentication { key_id: 0, algorithm_id: 0, data: Vec::new() };
    Message::MapNotify(MapNotify { nonce, authentication, records, trailer: Vec::new() })
}

/// Stores a subscription when its nonce outgrew the stored mark or something else changed.
fn save(
    eid: &EidPrefix,
    identity: &XtrIdentity,
    subscription: &Subscription,
    mark: Option<u64>,
    changed: bool,
    out: &mut Outputs,
) {
    if mark.is_none() && !changed {
        return;
    }
    let mut key = saved::key(Kind::Subscription);
    saved::write_eid(&mut key, eid);
    saved::write_identity(&mut key, identity);
    let mut value = Writer::new();
    value.u64(mark.unwrap_or_else(|| subscription.nonce.mark()));
    saved::write_ips(&mut value, &subscription.itr_rlocs);
    out.persist(key, Some(value.into_vec()));
}
