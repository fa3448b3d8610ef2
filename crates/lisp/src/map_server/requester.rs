//! Who asked without subscribing, and the SMRs that tell them to ask again (RFC 9301 §6.1).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use codec::{Instant, IpPrefix};

use super::config::Limits;
use super::output::{Event, Outputs};
use crate::nonce::NonceGenerator;
use crate::prefix_map::PrefixMap;
use crate::rate::RateLimiter;
use crate::timers::Timers;
use crate::wire::{Address, CONTROL_PORT, EidPrefix, InstanceId, MapRequest, Message};

/// Time between two SMRs for the same change.
const SMR_INTERVAL: Duration = Duration::from_secs(3);
/// SMRs for one change.
const SMR_TRIES: u32 = 5;

#[derive(Clone, Copy, Debug)]
struct Requester {
    expires_at: Instant,
    smr: Option<Smr>,
}

#[derive(Clone, Copy, Debug)]
struct Smr {
    /// The newest change that it has not asked about.
    eid: EidPrefix,
    sent: u32,
}

/// Requesters by the prefix that they were told, and ITR-RLOC.
#[derive(Debug)]
pub(super) struct Requesters {
    table: PrefixMap<BTreeMap<IpAddr, Requester>>,
    timers: Timers<(EidPrefix, IpAddr)>,
    rate: RateLimiter<IpAddr>,
    count: usize,
    max: usize,
    timeout: Duration,
}

impl Requesters {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            table: PrefixMap::new(),
            timers: Timers::default(),
            // Those who wait for an SMR are in the table, so they do not compete for places with made-up peers.
            rate: RateLimiter::new(limits.smr, limits.max_requesters),
            count: 0,
            max: limits.max_requesters,
            timeout: limits.requester_timeout,
        }
    }

    /// Remembers who was told about `eid`; a pending SMR about it has done its work.
    /// Whether there was room: without, the requester learns of changes when its TTL ends.
    pub(super) fn remember(&mut self, now: Instant, eid: EidPrefix, rloc: IpAddr, ttl: u32) -> bool {
        let known = self.table.get(&eid).is_some_and(|all| all.contains_key(&rloc));
        if !known && self.count >= self.max {
            return false;
        }
        let ttl = Duration::from_secs(u64::from(ttl) * 60).min(self.timeout);
        let requester = Requester { expires_at: now + ttl, smr: None };
        if self.table.get(&eid).is_none() {
            self.table.insert(eid, BTreeMap::new());
        }
        let all = self.table.get_mut(&eid).expect("inserted above");
        self.count += usize::from(all.insert(rloc, requester).is_none());
        self.timers.set((eid, rloc), Some(requester.expires_at));
        true
    }

    /// Schedules SMRs to everybody who was told something that `eid` overlaps.
    pub(super) fn touch(&mut self, now: Instant, eid: EidPrefix) {
        let overlapping = self.table.overlapping(eid);
        let told: Vec<(EidPrefix, IpAddr)> =
            overlapping.flat_map(|(e, all)| all.keys().map(move |rloc| (e, *rloc))).collect();
        for (key, rloc) in told {
            let Some(requester) = self.table.get_mut(&key).and_then(|all| all.get_mut(&rloc)) else {
                continue;
            };
            let waiting = requester.smr.is_some_and(|smr| smr.sent > 0);
            let more_specific = if key.prefix.length() > eid.prefix.length() { key } else { eid };
            requester.smr = Some(Smr { eid: more_specific, sent: 0 });
            if !waiting {
                self.timers.set((key, rloc), Some(now));
            }
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first()
    }

    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        listen: &[IpAddr],
        random: &mut NonceGenerator,
        out: &mut Outputs,
    ) {
        for (eid, rloc) in self.timers.take_due(now) {
            let Some(requester) = self.table.get_mut(&eid).and_then(|all| all.get_mut(&rloc)) else {
                continue;
            };
            let expires_at = requester.expires_at;
            let Some(smr) = requester.smr.as_mut().filter(|_| expires_at > now) else {
                self.forget(&eid, rloc);
                continue;
            };
            if smr.sent == SMR_TRIES {
                out.event(Event::SmrUnanswered { rloc, eid: smr.eid });
                self.forget(&eid, rloc);
                continue;
            }
            if let Err(at) = self.rate.take(now, rloc) {
                let at = at.map_or(expires_at, |at| at.min(expires_at));
                self.timers.set((eid, rloc), Some(at));
                continue;
            }
            smr.sent += 1;
            let changed = smr.eid;
            self.timers.set((eid, rloc), Some(now + SMR_INTERVAL));
            out.send(SocketAddr::new(rloc, CONTROL_PORT), &smr_for(changed, rloc, listen, random.next_u64()));
        }
    }

    fn forget(&mut self, eid: &EidPrefix, rloc: IpAddr) {
        let Some(all) = self.table.get_mut(eid) else { return };
        self.count -= usize::from(all.remove(&rloc).is_some());
        if all.is_empty() {
            self.table.remove(eid);
        }
        self.timers.set((*eid, rloc), None);
    }
}

/// The changed prefix stands in the Source-EID field, as the deployed senders and receivers of SMRs have it.
fn smr_for(eid: EidPrefix, rloc: IpAddr, listen: &[IpAddr], nonce: u64) -> Message {
    let same_family = listen.iter().find(|ip| ip.is_ipv4() == rloc.is_ipv4());
    let own = same_family.or_else(|| listen.first()).copied();
    let itr_rlocs = Vec::from([own.map_or(Address::NoAddress, Address::Ip)]);
    let host = EidPrefix { instance_id: eid.instance_id, prefix: IpPrefix::host(eid.prefix.address()) };
    Message::MapRequest(MapRequest {
        smr: true,
        no_map_reply: true,
        source_eid: eid_address(eid),
        ..MapRequest::new(nonce, itr_rlocs, host)
    })
}

fn eid_address(eid: EidPrefix) -> Address {
    let address = Address::Ip(eid.prefix.address());
    if eid.instance_id == InstanceId(0) {
        return address;
    }
    Address::InstanceId { instance_id: eid.instance_id, mask_len: 0, address: address.into() }
}
