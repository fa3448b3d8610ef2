//! Map-Requests: who answers, and what (RFC 9301 §8.3, §8.4).

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::{Instant, Writer};

use super::MapServer;
use super::database::{Answer, negative};
use super::publication::{SubscribeRequest, Verdict};
use crate::machine::Counter;
use crate::map_cache::is_unicast;
use crate::wire::{
    Action, Address, CONTROL_PORT, EidPrefix, EidRecord, EncapsulatedControlMessage, MapReply, MapRequest,
    Message, RequestRecord, XtrIdentity,
};

/// Octets of records in a Map-Reply that needs no path MTU discovery: 576 less IPv4, UDP and the message header.
const REPLY_ROOM: usize = 576 - 28 - 12;
/// TTL in minutes of "policy denied".
const TTL_DENIED: u32 = 15;

/// Where a Map-Request came from and how it can be passed on.
pub(super) struct Origin<'a> {
    /// Inner source of an encapsulated request, else the sender: replies go to its port.
    pub(super) source: SocketAddr,
    /// The datagram as it came if it was encapsulated.
    pub(super) encapsulated: Option<&'a [u8]>,
}

impl MapServer {
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        from: SocketAddr,
        origin: &Origin<'_>,
        request: &MapRequest,
    ) {
        if request.probe {
            return self.out.count(Counter::ProbeDropped);
        }
        if request.smr {
            return self.out.count(Counter::UnexpectedMessage);
        }
        if request.itr_rlocs.is_empty() || request.records.is_empty() {
            return self.out.count(Counter::Incomplete);
        }
        if !self.request_rate.allow(now, from.ip()) {
            return self.out.count(Counter::RateLimited);
        }
        for record in &request.records {
            if !(record.subscribe && self.subscribe(now, origin, request, record)) {
                self.answer(now, origin, request, record);
            }
        }
    }

    /// Whether the request is dealt with.
    fn subscribe(
        &mut self,
        now: Instant,
        origin: &Origin<'_>,
        request: &MapRequest,
        record: &RequestRecord,
    ) -> bool {
        let Some(identity) = request.xtr else {
            self.out.count(Counter::Incomplete);
            return false;
        };
        let unsubscribes = request.itr_rlocs == [Address::NoAddress];
        let itr_rlocs: Vec<IpAddr> =
            request.itr_rlocs.iter().filter_map(Address::ip).filter(is_unicast).collect();
        if itr_rlocs.is_empty() && !unsubscribes {
            self.out.count(Counter::Incomplete);
            return true;
        }
        let (eid, nonce, source) = (record.eid, request.nonce, origin.source.ip());
        let subscribe = SubscribeRequest { identity, eid, nonce, itr_rlocs, source };
        match self.publisher.subscribe(now, subscribe, &self.database, &mut self.out) {
            Verdict::Done => true,
            Verdict::NotSubscribed => false,
            Verdict::Denied => {
                let denied = negative(eid, TTL_DENIED, Action::DropPolicyDenied);
                let rloc = reply_address(request).unwrap_or(source);
                self.reply(now, rloc, origin, request, Vec::from([denied]));
                true
            }
        }
    }

    fn answer(&mut self, now: Instant, origin: &Origin<'_>, request: &MapRequest, record: &RequestRecord) {
        let asked = record.eid;
        let Some(rloc) = reply_address(request) else {
            return self.out.count(Counter::Incomplete);
        };
        let records = match self.database.answer(&asked) {
            Answer::Negative(negative) => Vec::from([negative]),
            Answer::Mappings(eid) if self.database.registrations.proxy_reply(&eid) => {
                self.positive(&eid, &asked, request.xtr)
            }
            Answer::Mappings(eid) => {
                self.remember(now, eid, rloc, u32::MAX);
                return self.forward(origin, request, &eid);
            }
        };
        for record in &records {
            self.remember(now, record.eid, rloc, record.ttl);
        }
        if !request.no_map_reply {
            self.reply(now, rloc, origin, request, records);
        }
    }

    /// RFC 9301 §5.5: the longest match with all that is more specific. If that does not fit one message, the part
    /// around the asked EID that holds nothing more specific, which is as true and shorter.
    fn positive(&self, eid: &EidPrefix, asked: &EidPrefix, gateway: Option<XtrIdentity>) -> Vec<EidRecord> {
        let records: Vec<EidRecord> = self.database.mappings(*eid, gateway).into_values().collect();
        if records.len() == 1 || fits(&records) {
            return records;
        }
        let part = self.database.clear_part(eid, asked);
        let whole = records.into_iter().find(|r| r.eid == *eid);
        whole.into_iter().map(|record| EidRecord { eid: part, ..record }).collect()
    }

    fn remember(&mut self, now: Instant, eid: EidPrefix, rloc: IpAddr, ttl: u32) {
        if !self.requesters.remember(now, eid, rloc, ttl) {
            self.out.count(Counter::TableFull);
        }
    }

    fn reply(
        &mut self,
        now: Instant,
        rloc: IpAddr,
        origin: &Origin<'_>,
        request: &MapRequest,
        records: Vec<EidRecord>,
    ) {
        if !self.reply_rate.allow(now, rloc) {
            return self.out.count(Counter::RateLimited);
        }
        let destination = SocketAddr::new(rloc, origin.source.port());
        let nonce = request.nonce;
        let reply = MapReply { probe: false, echo_nonce: false, security: None, nonce, records };
        self.out.send(destination, &Message::MapReply(reply));
    }

    /// To one ETR that registered the prefix, which answers the ITR itself.
    fn forward(&mut self, origin: &Origin<'_>, request: &MapRequest, eid: &EidPrefix) {
        let Some(record) = self.database.registrations.merged(eid) else { return };
        let usable = record.locators.iter().filter(|l| l.reachable && l.priority != 255);
        let best = usable.min_by_key(|l| l.priority).or_else(|| record.locators.first());
        let Some(etr) = best.and_then(|l| l.rloc.ip()) else {
            return self.out.count(Counter::UnusableLocator);
        };
        let destination = SocketAddr::new(etr, CONTROL_PORT);
        if let Some(bytes) = origin.encapsulated {
            return self.out.send_bytes(destination, bytes.to_vec());
        }
        let Ok(message) = Message::MapRequest(request.clone()).encode() else {
            return self.out.count(Counter::NotEncodable);
        };
        let inner_destination = SocketAddr::new(eid.prefix.address(), CONTROL_PORT);
        let encapsulated = EncapsulatedControlMessage {
            security: false,
            ddt: false,
            inner_source: origin.source,
            inner_destination,
            message,
        };
        self.out.send(destination, &Message::Encapsulated(encapsulated));
    }
}

/// RFC 9301 §5.5: a Map-Reply goes to one of the ITR-RLOCs.
fn reply_address(request: &MapRequest) -> Option<IpAddr> {
    request.itr_rlocs.iter().filter_map(Address::ip).find(is_unicast)
}

fn fits(records: &[EidRecord]) -> bool {
    let mut w = Writer::new();
    let written = records.iter().try_for_each(|record| record.write(&mut w));
    written.is_ok() && w.len() <= REPLY_ROOM && records.len() <= usize::from(u8::MAX)
}
