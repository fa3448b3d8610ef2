//! One subscription: what the subscriber is known to have, and the one publication that is under way to it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use codec::{Instant, Writer};

use super::database::negative;
use crate::nonce::ReservedNonce;
use crate::rtt::RttEstimator;
use crate::wire::{Action, EidPrefix, EidRecord};

/// Octets of header, nonce and a 32-octet MAC.
const HEADER: usize = 48;
/// IPv4 and IPv6 packets that need no path MTU discovery (RFC 9301 §5), without IP and UDP headers.
const PAYLOAD_V4: usize = 576 - 28;
const PAYLOAD_V6: usize = 1280 - 48;
/// Time over which the schedule of RFC 9301 §5.7 (3 × 3 s, then 6, 12 and 24 s) keeps trying; with time-outs from
/// measured round trips there are more attempts in the same time.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(51);
/// Longest interval of that schedule.
const MAX_INTERVAL: Duration = Duration::from_secs(24);

/// Superseded publications that an acknowledgement is still recognised for.
const SUPERSEDED: usize = 16;

/// A publication that waits for its acknowledgement.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) nonce: u64,
    pub(super) records: Vec<EidRecord>,
    pub(super) payload: Vec<u8>,
    pub(super) published_at: Instant,
    pub(super) sent_at: Instant,
    /// Transmissions without an acknowledgement before the last one, those of superseded publications included.
    pub(super) retries: u32,
    /// Nonces and times of the publications that this one superseded without an acknowledgement.
    pub(super) superseded: VecDeque<(u64, Instant)>,
    /// Whether exactly one transmission has this nonce, so that its acknowledgement measures the path (Karn).
    pub(super) sent_once: bool,
}

/// A subscription of one xTR to one prefix.
#[derive(Clone, Debug)]
pub(super) struct Subscription {
    /// Where publications go; empty after an unsubscription, of which only the nonce is kept (RFC 9437 §5).
    pub(super) itr_rlocs: Vec<IpAddr>,
    /// ITR-RLOCs before an unconfirmed change. A Map-Request is not authenticated, so they stay in use until the
    /// subscriber acknowledges from the new ones.
    pub(super) previous: Vec<IpAddr>,
    pub(super) nonce: ReservedNonce,
    pub(super) in_flight: Option<InFlight>,
    /// Since when the subscriber owes an acknowledgement.
    pub(super) silent_since: Option<Instant>,
    /// Records that the subscriber acknowledged.
    acknowledged: BTreeMap<EidPrefix, EidRecord>,
    /// Prefixes of records that it may or may not have.
    uncertain: BTreeSet<EidPrefix>,
}

impl Subscription {
    pub(super) const fn new(itr_rlocs: Vec<IpAddr>, nonce: ReservedNonce) -> Self {
        Self {
            itr_rlocs,
            previous: Vec::new(),
            nonce,
            in_flight: None,
            silent_since: None,
            acknowledged: BTreeMap::new(),
            uncertain: BTreeSet::new(),
        }
    }

    pub(super) const fn is_active(&self) -> bool {
        !self.itr_rlocs.is_empty()
    }

    /// Everything that was sent may be gone: the subscriber asked anew.
    pub(super) fn forget_deliveries(&mut self) {
        self.in_flight = None;
        self.silent_since = None;
        self.acknowledged.clear();
        self.uncertain.clear();
    }

    /// Ends it; the nonce stays, so that an old Map-Request cannot bring it back.
    pub(super) fn end(&mut self) {
        self.forget_deliveries();
        self.itr_rlocs.clear();
        self.previous.clear();
    }

    /// The records that take the subscriber to `current`, as many as one message holds.
    ///
    /// A prefix that is gone is a record with TTL 0 (RFC 9437 §5); so is the subscribed one if nothing covers it.
    pub(super) fn pending(&self, eid: EidPrefix, current: &BTreeMap<EidPrefix, EidRecord>) -> Vec<EidRecord> {
        let gone = |eid: EidPrefix| negative(eid, 0, Action::NoAction);
        let root = current.is_empty().then(|| gone(eid));
        let wanted = current.values().chain(&root);
        let changed =
            wanted.filter(|r| self.uncertain.contains(&r.eid) || self.acknowledged.get(&r.eid) != Some(r));
        let known = self.acknowledged.keys().chain(&self.uncertain).collect::<BTreeSet<_>>();
        let lost = known.into_iter().filter(|e| !current.contains_key(e) && (**e != eid || root.is_none()));
        let removals = lost
            .map(|e| gone(*e))
            .filter(|r| self.uncertain.contains(&r.eid) || self.acknowledged.get(&r.eid) != Some(r));
        self.fit(changed.cloned().chain(removals))
    }

    fn fit(&self, records: impl Iterator<Item = EidRecord>) -> Vec<EidRecord> {
        let v6 = self.itr_rlocs.first().is_some_and(IpAddr::is_ipv6);
        let mut left = if v6 { PAYLOAD_V6 } else { PAYLOAD_V4 } - HEADER;
        let mut fitting = Vec::new();
        for record in records {
            let mut w = Writer::new();
            // What has no encoding is left to the sender of the message, which counts it.
            let size = record.write(&mut w).map_or(0, |()| w.len());
            if size > left && !fitting.is_empty() || fitting.len() == usize::from(u8::MAX) {
                break;
            }
            left = left.saturating_sub(size);
            fitting.push(record);
        }
        fitting
    }

    /// Notes a publication that is about to be sent for the first time.
    pub(super) fn publish(&mut self, now: Instant, nonce: u64, records: Vec<EidRecord>, payload: Vec<u8>) {
        self.uncertain.extend(records.iter().map(|r| r.eid));
        self.silent_since.get_or_insert(now);
        let (mut retries, mut superseded) = (0, VecDeque::new());
        if let Some(old) = self.in_flight.take() {
            (retries, superseded) = (old.retries + 1, old.superseded);
            superseded.push_back((old.nonce, old.published_at));
            if superseded.len() > SUPERSEDED {
                superseded.pop_front();
            }
        }
        let (published_at, sent_at, sent_once) = (now, now, true);
        self.in_flight =
            Some(InFlight { nonce, records, payload, published_at, sent_at, retries, superseded, sent_once });
    }

    /// Whether an acknowledgement with this nonce is about this subscription.
    pub(super) fn sent(&self, nonce: u64) -> bool {
        self.in_flight.as_ref().is_some_and(|f| f.nonce == nonce || f.superseded.iter().any(|s| s.0 == nonce))
    }

    /// Notes an acknowledgement of a superseded publication: the newer one is still owed, but the path works.
    pub(super) fn heard(&mut self, nonce: u64) {
        if let Some(flight) = self.in_flight.as_mut().filter(|f| f.nonce != nonce) {
            flight.superseded.retain(|(n, _)| *n > nonce);
            flight.retries = 0;
            self.silent_since = Some(flight.published_at);
        }
    }

    /// Takes an authentic acknowledgement; `None` if it is not for the publication under way.
    pub(super) fn acknowledge(&mut self, nonce: u64, eid: EidPrefix) -> Option<InFlight> {
        if self.in_flight.as_ref()?.nonce != nonce {
            return None;
        }
        let done = self.in_flight.take()?;
        self.silent_since = None;
        for record in &done.records {
            self.uncertain.remove(&record.eid);
            if record.ttl == 0 && record.eid != eid {
                self.acknowledged.remove(&record.eid);
            } else {
                self.acknowledged.insert(record.eid, record.clone());
            }
        }
        Some(done)
    }

    /// When the publication under way is sent again.
    pub(super) fn retransmit_at(&self, rtt: &RttEstimator) -> Option<Instant> {
        let flight = self.in_flight.as_ref()?;
        // The schedule of RFC 9301 §5.7 in units of the time-out: three at the same distance, then doubling.
        let doublings = flight.retries.saturating_sub(2);
        let again = flight.sent_at + rtt.backed_off(doublings).min(MAX_INTERVAL);
        Some(self.silent_since.map_or(again, |since| again.min(since + GIVE_UP_AFTER)))
    }

    /// When a newer publication may replace the one under way: not more than one message per round trip goes
    /// unacknowledged (RFC 8085 §3.1.2), and a subscriber that stopped answering is only asked when the timer says so.
    pub(super) fn replace_at(&self, rtt: &RttEstimator) -> Option<Instant> {
        let flight = self.in_flight.as_ref()?;
        match rtt.srtt() {
            Some(srtt) if flight.retries == 0 => Some(flight.sent_at + srtt),
            _ => self.retransmit_at(rtt),
        }
    }

    /// Where to send: one ITR-RLOC, another one for every retransmission, and the former one while a change of
    /// ITR-RLOCs is unconfirmed.
    pub(super) fn destinations(&self) -> impl Iterator<Item = IpAddr> {
        let retries = self.in_flight.as_ref().map_or(0, |f| f.retries as usize);
        let pick = move |rlocs: &[IpAddr]| {
            let index = retries.checked_rem(rlocs.len()).unwrap_or(0);
            rlocs.get(index).copied()
        };
        pick(&self.itr_rlocs).into_iter().chain(pick(&self.previous))
    }
}
