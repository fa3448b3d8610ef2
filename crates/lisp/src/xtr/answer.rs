//! Answers of an ETR (RFC 9301 §5.4, §5.5, §7.1): probes, and Map-Requests that a Map-Server passed on.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::Instant;

use super::Xtr;
use super::config::LocalEid;
use super::registration::record;
use crate::machine::Counter;
use crate::map_cache::is_unicast;
use crate::wire::{Address, EidPrefix, EidRecord, MapReply, MapRequest, Message};

impl Xtr {
    /// `source` is where the request came from, or the inner source if it was encapsulated.
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        source: SocketAddr,
        encapsulated: bool,
        request: &MapRequest,
    ) {
        if request.smr {
            return self.handle_smr(now, request);
        }
        // RFC 9301 §5.2: a probe is never encapsulated.
        if request.probe && encapsulated {
            return self.out.count(Counter::ProbeDropped);
        }
        let rlocs = request.itr_rlocs.iter().filter_map(Address::ip).filter(is_unicast);
        let same_family = |ip: &IpAddr| ip.is_ipv4() == source.is_ipv4();
        let Some(rloc) = rlocs.clone().find(same_family).or_else(|| rlocs.clone().next()) else {
            return self.out.count(Counter::Incomplete);
        };
        let records: Vec<EidRecord> =
            request.records.iter().filter_map(|r| self.own_record(&r.eid, request.probe, rloc)).collect();
        if records.is_empty() {
            return self.out.count(Counter::WrongEid);
        }
        if request.no_map_reply {
            return;
        }
        let rate = if request.probe { &mut self.probe_reply_rate } else { &mut self.reply_rate };
        if !rate.allow(now, rloc) {
            return self.out.count(Counter::RateLimited);
        }
        let (probe, nonce) = (request.probe, request.nonce);
        let reply = MapReply { probe, echo_nonce: false, security: None, nonce, records };
        self.out.send(SocketAddr::new(rloc, source.port()), &Message::MapReply(reply));
    }

    fn own_record(&self, asked: &EidPrefix, probe: bool, asker: IpAddr) -> Option<EidRecord> {
        let candidates = self.registrar.local().values().filter(|e| e.eid.covers(asked));
        let longest = candidates.max_by_key(|e| e.eid.prefix.length());
        let mut record = match longest {
            Some(local) => record(local, local.ttl, &self.config.rlocs),
            None if !probe => return None,
            // The locator lives although the prefix is not ours any more: answered, and not to be used for it.
            None => {
                let gone = LocalEid { eid: *asked, priority: 255, weight: 0, ttl: 1, merge: false };
                record(&gone, 1, &self.config.rlocs)
            }
        };
        if probe {
            let probed = record.locators.iter_mut();
            let same_family = |l: &&mut crate::wire::LocatorRecord| {
                l.rloc.ip().is_some_and(|ip| ip.is_ipv4() == asker.is_ipv4())
            };
            if let Some(locator) = probed.into_iter().find(same_family) {
                locator.probed = true;
            }
        }
        Some(record)
    }
}
