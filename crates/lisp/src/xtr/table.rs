//! From answers and publications to the map-cache, and from there to the data path.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::{Instant, IpPrefix};

use super::Xtr;
use super::output::Event;
use super::resolution::{Outcome, Reason};
use super::subscription::Verdict;
use crate::auth::{VerifiedMessage, verify};
use crate::machine::Counter;
use crate::map_cache::{Due, Insertion, Origin};
use crate::mapping::{Locator, TableDelta};
use crate::wire::{
    Action, Address, EidPrefix, EidRecord, InstanceId, MapNotify, MapReply, MapRequest, Message,
};

impl Xtr {
    /// A packet found no mapping in the data path.
    pub(super) fn resolve(&mut self, now: Instant, eid: EidPrefix) {
        if !self.config.eid_space.iter().any(|space| space.covers(&eid)) {
            return self.out.count(Counter::RefusedCommand);
        }
        if let Some((known, mapping)) = self.map_cache.covering(eid) {
            let ask = mapping.is_negative() && mapping.action == Action::SendMapRequest;
            self.map_cache.mark_used(now, &known);
            if !ask {
                return self.tell(known, None);
            }
        }
        self.ask(now, eid, Reason::Miss);
    }

    fn ask(&mut self, now: Instant, eid: EidPrefix, reason: Reason) {
        self.resolver.ask(now, eid, reason, &self.config, &mut self.random, &mut self.out);
    }

    /// RFC 9301 §6.1: an SMR changes nothing; it makes us ask the mapping system, never its sender.
    pub(super) fn handle_smr(&mut self, now: Instant, request: &MapRequest) {
        self.out.count(Counter::SmrReceived);
        let source = eid_of(&request.source_eid).or_else(|| request.records.first().map(|r| r.eid));
        let known = source.and_then(|eid| Some((eid, self.map_cache.covering(eid)?.0)));
        let Some((eid, known)) = known else {
            return self.out.count(Counter::SmrUnknownEid);
        };
        if self.subscriptions.feeds(&eid) {
            self.subscriptions.renew(now, &eid, &mut self.out);
        } else if self.smr_rate.allow(now, known) {
            self.ask(now, eid, Reason::Smr);
        } else {
            self.out.count(Counter::RateLimited);
        }
    }

    pub(super) fn handle_reply(&mut self, now: Instant, reply: &MapReply) {
        let asked = self.resolver.asked(reply.nonce);
        let refused = asked.is_none();
        let refusal = || self.subscriptions.handle_refusal(now, reply.nonce, &mut self.out);
        let Some(asked) = asked.or_else(refusal) else {
            return self.out.count(Counter::UnknownNonce);
        };
        // RFC 9301 §5.4: the answer must cover what was asked. A prefix may be answered in parts.
        let Some(answer) = reply.records.iter().find(|r| r.eid.overlaps(&asked)).map(|r| r.eid) else {
            return self.out.count(Counter::WrongEid);
        };
        let reason = self.resolver.close(&asked);
        let about = self.map_cache.covering(asked).map(|(eid, _)| eid);
        for record in &reply.records {
            if !answer.covers(&record.eid) && !asked.covers(&record.eid) {
                self.out.count(Counter::WrongEid);
                continue;
            }
            // RFC 9437 §5: a refused subscription says nothing about packets; they are asked about on their own.
            if refused && record.locators.is_empty() && denies(record.action) {
                continue;
            }
            let record = self.narrowed(record, &asked);
            // A Map-Reply is not authenticated; what publications feed is theirs alone.
            let published = self.map_cache.get(&record.eid).is_some_and(|m| m.origin == Origin::Subscription);
            if published || self.subscriptions.feeds(&record.eid) {
                continue;
            }
            self.apply(now, &record, Origin::Request, None);
        }
        if let Some(about) = about.filter(|about| reason == Some(Reason::Refresh) || answer.covers(about)) {
            self.drop_unconfirmed(now, about);
        }
        // A packet waits for it. An answer to a refresh is no use: mappings would keep themselves alive.
        if let Some((known, _)) = self.map_cache.covering(asked).filter(|_| reason == Some(Reason::Miss)) {
            self.map_cache.mark_used(now, &known);
        }
    }

    /// The mapping system was asked about this mapping and answered with another one.
    fn drop_unconfirmed(&mut self, now: Instant, eid: EidPrefix) {
        let pulled =
            self.map_cache.get(&eid).is_some_and(|m| m.origin == Origin::Request && m.renewed_at < now);
        if pulled {
            self.map_cache.remove(&eid);
            self.removed(eid, None);
        }
    }

    /// A record wider than the EID space would hide behind the space's own entry in the data path.
    fn narrowed(&self, record: &EidRecord, asked: &EidPrefix) -> EidRecord {
        let space = self.config.eid_space.iter().filter(|space| space.covers(asked));
        let widest = space.filter(|space| record.eid.covers(space)).max_by_key(|s| s.prefix.length());
        EidRecord { eid: widest.copied().unwrap_or(record.eid), ..record.clone() }
    }

    pub(super) fn handle_probe_reply(&mut self, now: Instant, reply: &MapReply) {
        let up = self.prober.handle_reply(now, reply, &self.config.probing, &mut self.out);
        if let Some(rloc) = up {
            self.locator_changed(rloc);
        }
    }

    /// A Map-Notify that acknowledges no registration.
    pub(super) fn handle_publication(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let Some(key) = self.config.pubsub_key.clone() else {
            return self.out.count(Counter::NoKey);
        };
        let Ok(((), VerifiedMessage::MapNotify(notify))) = verify(bytes, [((), &key)]) else {
            return self.out.count(Counter::BadAuthentication);
        };
        match self.subscriptions.handle_notify(now, &notify, &mut self.out) {
            Verdict::Ignore => return,
            Verdict::Left(eid) => self.release(now, eid),
            Verdict::AcknowledgeAgain => {}
            Verdict::Apply { eid, stale_before } => {
                for record in &notify.records {
                    let record = self.narrowed(record, &eid);
                    self.apply(now, &record, Origin::Subscription, Some(notify.nonce));
                    self.resolver.close(&record.eid);
                }
                self.sweep(eid, stale_before, notify.nonce);
            }
        }
        let MapNotify { nonce, authentication, records, trailer } = notify.into_inner();
        let ack = Message::MapNotifyAck(MapNotify { nonce, authentication, records, trailer });
        self.out.send_signed(from, ack, &key);
    }

    /// Mappings that an answer to the whole subscription no longer named are gone, whenever that was.
    fn sweep(&mut self, eid: EidPrefix, before: Option<Instant>, nonce: u64) {
        let Some(before) = before else { return };
        let fed = self.map_cache.within(eid).filter(|(_, m)| m.origin == Origin::Subscription);
        let stale: Vec<EidPrefix> = fed.filter(|(_, m)| m.renewed_at < before).map(|(e, _)| e).collect();
        for eid in stale {
            self.map_cache.remove(&eid);
            self.removed(eid, Some(nonce));
        }
    }

    /// The mappings of an ended subscription live on by their TTL.
    pub(super) fn release(&mut self, now: Instant, eid: EidPrefix) {
        let fed: Vec<EidPrefix> = self.map_cache.within(eid).map(|(e, _)| e).collect();
        for eid in fed {
            if self.map_cache.release(now, &eid) {
                self.removed(eid, None);
            }
        }
    }

    fn apply(&mut self, now: Instant, record: &EidRecord, origin: Origin, nonce: Option<u64>) {
        let mut evicted = Vec::new();
        let insertion = self.map_cache.insert(now, record, origin, &mut evicted);
        evicted.into_iter().for_each(|eid| self.removed(eid, None));
        let eid = record.eid;
        match insertion {
            Insertion::Removed => self.removed(eid, nonce),
            Insertion::Changed => {
                let mapping = self.map_cache.get(&eid);
                let rlocs: Vec<IpAddr> =
                    mapping.map_or_else(Vec::new, |m| m.locators.iter().map(|l| l.rloc).collect());
                self.prober.assign(now, eid, rlocs.into_iter(), &self.config);
                self.tell(eid, nonce);
            }
            // The data path is told again: it may ask because it has lost the mapping.
            Insertion::Renewed => self.tell(eid, nonce),
            Insertion::NothingToRemove if nonce.is_some() => self.removed(eid, nonce),
            Insertion::NothingToRemove => {}
            Insertion::NoUsableLocator => self.out.count(Counter::UnusableLocator),
            Insertion::Full => self.out.count(Counter::TableFull),
        }
    }

    fn removed(&mut self, eid: EidPrefix, nonce: Option<u64>) {
        self.prober.assign(Instant::ZERO, eid, core::iter::empty(), &self.config);
        self.out.table(TableDelta::Remove { eid, nonce });
    }

    /// Tells the data path a mapping as it stands, probing included.
    ///
    /// If probing finds every usable locator down, the fault is as likely on our side of the path: the set stays as
    /// published, and packets have a chance that dropping them would take away.
    fn tell(&mut self, eid: EidPrefix, nonce: Option<u64>) {
        let Some(mapping) = self.map_cache.get(&eid) else { return };
        let some_up = mapping.locators.iter().any(|l| l.usable && self.prober.is_up(&l.rloc));
        let seen =
            |l: &Locator| Locator { usable: l.usable && (!some_up || self.prober.is_up(&l.rloc)), ..*l };
        let locators = mapping.locators.iter().map(seen).collect();
        self.out.table(TableDelta::Set { eid, locators, action: mapping.action, nonce });
    }

    pub(super) fn locator_changed(&mut self, rloc: IpAddr) {
        for eid in self.prober.users(&rloc) {
            self.tell(eid, None);
        }
    }

    pub(super) fn wake_map_cache(&mut self, now: Instant) {
        while let Some(due) = self.map_cache.take_due(now) {
            match due {
                Due::Refresh(eid) => self.ask(now, eid, Reason::Refresh),
                Due::Expired(eid) => {
                    self.resolver.close(&eid);
                    self.removed(eid, None);
                }
                Due::Stale(eid) => {
                    self.out.count(Counter::StaleMapping);
                    self.ask(now, eid, Reason::Refresh);
                }
            }
        }
    }

    pub(super) fn wake_resolver(&mut self, now: Instant) {
        let outcomes = self.resolver.handle_timeout(now, &self.config, &mut self.random, &mut self.out);
        for outcome in outcomes {
            match outcome {
                Outcome::Unanswered(eid) => self.out.event(Event::Unresolved { eid }),
                Outcome::Resumed(eid) if self.map_cache.covering(eid).is_none() => {
                    self.resolver.close(&eid);
                }
                Outcome::Resumed(_) => {}
            }
        }
    }
}

const fn denies(action: Action) -> bool {
    matches!(action, Action::DropPolicyDenied | Action::DropAuthFailure)
}

fn eid_of(address: &Address) -> Option<EidPrefix> {
    let (instance_id, ip) = match address {
        Address::InstanceId { instance_id, address, .. } => (*instance_id, address.ip()?),
        other => (InstanceId(0), other.ip()?),
    };
    Some(EidPrefix { instance_id, prefix: IpPrefix::host(ip) })
}
