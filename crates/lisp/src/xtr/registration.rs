//! Registering own EID-prefixes with Map-Servers (RFC 9301 §5.6, §5.7, §8.2).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use codec::{DecodeError, Instant, Reader, Writer};

use super::config::{LocalEid, MapServerPeer, XtrConfig};
use super::output::{Event, MapServerView, Outputs};
use crate::auth::{VerifiedMessage, verify};
use crate::backoff::{Attempts, Backoff};
use crate::machine::Counter;
use crate::nonce::{NonceGenerator, ReservedNonce};
use crate::saved::{self, Kind};
use crate::wire::{
    Action, Address, Authentication, CONTROL_PORT, EidPrefix, EidRecord, LocatorRecord, MapRegister, Message,
};

/// Time between two registrations (RFC 9301 §8.2).
const PERIOD: Duration = Duration::from_secs(60);
/// The same for some time after a start or a change.
const QUICK_PERIOD: Duration = Duration::from_secs(20);
/// How long that is.
const QUICK_FOR: Duration = Duration::from_secs(300);
/// Changes that come faster go out together.
const MIN_SPACING: Duration = Duration::from_millis(200);
/// Waits for the Map-Notify (RFC 9301 §5.7).
const BACKOFF: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(60));
/// After this without a Map-Notify the Map-Server has dropped the registration.
const LOST_AFTER: Duration = Duration::from_secs(180);
/// 576 octets (RFC 9301 §5) less IPv4, UDP, header, nonce, MAC, xTR-ID and Site-ID.
const RECORD_ROOM: usize = 576 - 28 - 48 - 24;

/// Records of one message, until it is acknowledged.
#[derive(Clone, Debug)]
struct Chunk {
    merge: bool,
    records: Vec<EidRecord>,
    /// Every transmission has its own; any of them may be acknowledged.
    nonces: Vec<u64>,
    acknowledged: bool,
}

#[derive(Clone, Debug)]
struct Server {
    peer: MapServerPeer,
    /// Registered there, and to be withdrawn.
    withdrawing: BTreeMap<EidPrefix, LocalEid>,
    round: Vec<Chunk>,
    round_at: Option<Instant>,
    attempts: Attempts,
    retry_at: Option<Instant>,
    next_round: Option<Instant>,
    confirmed_at: Option<Instant>,
    lost_at: Option<Instant>,
}

impl Server {
    fn trigger(&mut self, now: Instant) {
        let earliest = self.round_at.map_or(now, |at| at + MIN_SPACING).max(now);
        self.next_round = Some(self.next_round.map_or(earliest, |at| at.min(earliest)));
    }

    fn next_timeout(&self) -> Option<Instant> {
        [self.retry_at, self.next_round, self.lost_at].into_iter().flatten().min()
    }
}

#[derive(Debug)]
pub(super) struct Registrar {
    local: BTreeMap<EidPrefix, LocalEid>,
    servers: Vec<Server>,
    nonce: ReservedNonce,
    quick_until: Instant,
    stopping: bool,
    withdrawn: bool,
}

impl Registrar {
    pub(super) fn new(now: Instant, config: &XtrConfig, random: &mut NonceGenerator) -> Self {
        let server = |peer: &MapServerPeer| Server {
            peer: peer.clone(),
            withdrawing: BTreeMap::new(),
            round: Vec::new(),
            round_at: None,
            attempts: Attempts::NONE,
            retry_at: None,
            next_round: None,
            confirmed_at: None,
            lost_at: None,
        };
        let mut registrar = Self {
            local: config.local_eids.iter().map(|e| (e.eid, *e)).collect(),
            servers: config.map_servers.iter().map(server).collect(),
            nonce: ReservedNonce::resume(random.series_start(config.unix_seconds)),
            quick_until: now + QUICK_FOR,
            stopping: false,
            withdrawn: false,
        };
        if !registrar.local.is_empty() {
            registrar.trigger(now);
        }
        registrar
    }

    /// A stored series goes on above its mark unless the clock is already beyond it.
    pub(super) fn restore(&mut self, value: &[u8]) -> Result<(), DecodeError> {
        let mark = Reader::new(value).u64("saved nonce")?;
        self.nonce = ReservedNonce::resume(mark.max(self.nonce.last()));
        Ok(())
    }

    pub(super) const fn local(&self) -> &BTreeMap<EidPrefix, LocalEid> {
        &self.local
    }

    pub(super) fn set_local(&mut self, now: Instant, local: LocalEid) {
        self.local.insert(local.eid, local);
        for server in &mut self.servers {
            server.withdrawing.remove(&local.eid);
        }
        (self.stopping, self.withdrawn) = (false, false);
        self.trigger(now);
    }

    pub(super) fn remove_local(&mut self, now: Instant, eid: &EidPrefix) {
        let Some(local) = self.local.remove(eid) else { return };
        for server in &mut self.servers {
            server.withdrawing.insert(*eid, local);
        }
        self.trigger(now);
    }

    pub(super) fn withdraw_all(&mut self, now: Instant, out: &mut Outputs) {
        for (eid, local) in core::mem::take(&mut self.local) {
            for server in &mut self.servers {
                server.withdrawing.insert(eid, local);
            }
        }
        self.stopping = true;
        self.trigger(now);
        self.check_withdrawn(out);
    }

    fn trigger(&mut self, now: Instant) {
        self.quick_until = now + QUICK_FOR;
        self.servers.iter_mut().for_each(|s| s.trigger(now));
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.servers.iter().filter_map(Server::next_timeout).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, config: &XtrConfig, out: &mut Outputs) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for index in 0..self.servers.len() {
            let Some(server) = self.servers.get_mut(index) else { continue };
            if due(server.lost_at) {
                server.lost_at = None;
                out.event(Event::RegistrationLost { map_server: server.peer.address });
            }
            if due(server.next_round) {
                self.start_round(now, index, config, out);
            } else if due(server.retry_at) {
                self.transmit(now, index, config, out);
            }
        }
    }

    fn start_round(&mut self, now: Instant, index: usize, config: &XtrConfig, out: &mut Outputs) {
        let period = if now < self.quick_until { QUICK_PERIOD } else { PERIOD };
        let Some(server) = self.servers.get_mut(index) else { return };
        let present = self.local.values().map(|e| (e.merge, record(e, e.ttl, &config.rlocs)));
        let leaving = server.withdrawing.values().map(|e| (e.merge, record(e, 0, &config.rlocs)));
        server.round = chunks(present.chain(leaving));
        server.round_at = Some(now);
        server.attempts = Attempts::NONE;
        // With nothing left to say the rounds end.
        let more = !server.round.is_empty();
        server.next_round = more.then(|| now + period);
        if more && server.lost_at.is_none() {
            server.lost_at = Some(now + LOST_AFTER);
        }
        self.transmit(now, index, config, out);
    }

    /// Sends what is not acknowledged, each message under a new nonce: a strict Map-Server drops one it has seen.
    fn transmit(&mut self, now: Instant, index: usize, config: &XtrConfig, out: &mut Outputs) {
        let Some(server) = self.servers.get_mut(index) else { return };
        let destination = SocketAddr::new(server.peer.address, CONTROL_PORT);
        for chunk in server.round.iter_mut().filter(|c| !c.acknowledged) {
            let (nonce, mark) = self.nonce.advance();
            if let Some(mark) = mark {
                out.persist(saved::key(Kind::OwnRegisterNonce), Some(saved::nonce_value(mark)));
            }
            chunk.nonces.push(nonce);
            let register = MapRegister {
                proxy_reply: server.peer.proxy_reply,
                security_capable: false,
                eid_notify: false,
                use_ttl_for_timeout: false,
                merge: chunk.merge,
                want_map_notify: true,
                nonce,
                authentication: Authentication::default(),
                records: chunk.records.clone(),
                xtr: Some(config.identity),
            };
            out.send_signed(destination, Message::MapRegister(register), &server.peer.key);
        }
        let waiting = server.round.iter().any(|c| !c.acknowledged);
        let wait = server.attempts.next(&BACKOFF);
        server.retry_at = waiting.then(|| now + wait);
    }

    /// Takes a Map-Notify if it acknowledges a registration; `false` if it is something else.
    pub(super) fn handle_notify(
        &mut self,
        now: Instant,
        nonce: u64,
        bytes: &[u8],
        out: &mut Outputs,
    ) -> bool {
        let waits = |s: &Server| s.round.iter().any(|c| c.nonces.contains(&nonce));
        let Some(server) = self.servers.iter_mut().find(|s| waits(s)) else { return false };
        let Ok(((), VerifiedMessage::MapNotify(_))) = verify(bytes, [((), &server.peer.key)]) else {
            out.count(Counter::BadAuthentication);
            return true;
        };
        let Some(chunk) = server.round.iter_mut().find(|c| c.nonces.contains(&nonce)) else { return true };
        if chunk.acknowledged {
            out.count(Counter::Retransmission);
            return true;
        }
        chunk.acknowledged = true;
        for gone in chunk.records.iter().filter(|r| r.ttl == 0) {
            server.withdrawing.remove(&gone.eid);
        }
        if server.round.iter().all(|c| c.acknowledged) {
            server.retry_at = None;
            server.confirmed_at = Some(now);
            server.lost_at = (!self.local.is_empty()).then(|| now + LOST_AFTER);
            out.event(Event::Registered { map_server: server.peer.address });
            if self.local.is_empty() && server.withdrawing.is_empty() {
                server.next_round = None;
            }
        }
        self.check_withdrawn(out);
        true
    }

    fn check_withdrawn(&mut self, out: &mut Outputs) {
        let done = self.servers.iter().all(|s| s.withdrawing.is_empty());
        if self.stopping && done && !self.withdrawn {
            self.withdrawn = true;
            for server in &mut self.servers {
                (server.next_round, server.retry_at, server.lost_at) = (None, None, None);
            }
            out.event(Event::Withdrawn);
        }
    }

    pub(super) fn views(&self) -> Vec<MapServerView> {
        let view = |s: &Server| MapServerView { address: s.peer.address, confirmed_at: s.confirmed_at };
        self.servers.iter().map(view).collect()
    }
}

/// A local prefix as a record with all own locators.
pub(super) fn record(local: &LocalEid, ttl: u32, rlocs: &[IpAddr]) -> EidRecord {
    let locator = |rloc: &IpAddr| LocatorRecord {
        local: true,
        ..LocatorRecord::new(Address::Ip(*rloc), local.priority, local.weight)
    };
    EidRecord {
        ttl,
        action: Action::NoAction,
        authoritative: true,
        map_version: 0,
        eid: local.eid,
        locators: rlocs.iter().map(locator).collect(),
    }
}

/// Messages that fit: the merge bit is per message, and so is the size.
fn chunks(records: impl Iterator<Item = (bool, EidRecord)>) -> Vec<Chunk> {
    let mut chunks: Vec<(Chunk, usize)> = Vec::new();
    for (merge, record) in records {
        let mut w = Writer::new();
        // A record without encoding goes into a message of its own, whose sender counts it.
        let size = record.write(&mut w).map_or(RECORD_ROOM, |()| w.len());
        let open = chunks.iter_mut().find(|(c, used)| c.merge == merge && used + size <= RECORD_ROOM);
        if let Some((chunk, used)) = open {
            chunk.records.push(record);
            *used += size;
        } else {
            let chunk =
                Chunk { merge, records: Vec::from([record]), nonces: Vec::new(), acknowledged: false };
            chunks.push((chunk, size));
        }
    }
    chunks.into_iter().map(|(chunk, _)| chunk).collect()
}
