//! Map-Server and Map-Resolver in one (RFC 9301 §8, RFC 9437).
//!
//! Where the RFCs leave a choice, or a choice differs from what they recommend:
//! - A Map-Register is taken whole or not at all: one prefix that the site may not register refuses all of it.
//! - The same Map-Register again, octet for octet, is acknowledged again and changes nothing (RFC 9301 §5.7).
//! - Map-Replies are limited by a token bucket per ITR-RLOC instead of one per 3 s (RFC 9301 §5.4).
//! - An unacknowledged Map-Notify is sent again after a time-out from measured round trips, 1 s without a
//!   measurement (RFC 8085 §3.1.1), instead of after 3 s; it is given up after the same 51 s as in RFC 9301 §5.7.
//! - A subscription for a prefix that nobody registered yet, but somebody may, is accepted: the confirmation has
//!   TTL 0, and the mapping follows when there is one.
//! - A subscription moves to other ITR-RLOCs when the subscriber acknowledges from there, since the Map-Request that
//!   names them is not authenticated (RFC 9437 §5 has it move at once).

mod answer;
mod config;
mod database;
mod output;
mod publication;
mod register;
mod registration;
mod requester;
mod subscription;
mod weights;

pub use config::{AllowedPrefix, Limits, MapServerConfig, NonceCheck, Site, Subscriber};
pub use output::{
    Command, Event, LocatorWeight, Output, Registrant, RegistrationView, SubscriptionView, WeightsError,
    WeightsView,
};

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::{DecodeError, Instant, Reader};

use crate::machine::{Counter, Saved};
use crate::nonce::NonceGenerator;
use crate::rate::RateLimiter;
use crate::saved::Kind;
use crate::wire::{EidPrefix, Message};

use answer::Origin;
use database::Database;
use output::Outputs;
use publication::Publisher;
use register::NonceTable;
use requester::Requesters;

/// The Map-Server machine.
#[derive(Debug)]
pub struct MapServer {
    config: MapServerConfig,
    random: NonceGenerator,
    database: Database,
    nonces: NonceTable,
    publisher: Publisher,
    requesters: Requesters,
    request_rate: RateLimiter<IpAddr>,
    reply_rate: RateLimiter<IpAddr>,
    out: Outputs,
}

impl MapServer {
    /// A Map-Server that goes on where `saved` left off. `seed` is fresh from the operating system.
    ///
    /// Stored registrations live as long again as new ones, so a restart shorter than that withdraws nothing; stored
    /// subscribers get the mappings at once, under nonces above all that were used before.
    #[must_use]
    pub fn new(now: Instant, config: MapServerConfig, seed: [u8; 32], saved: Vec<Saved>) -> Self {
        let limits = &config.limits;
        let mut server = Self {
            random: NonceGenerator::new(seed),
            database: Database::new(&config.sites, limits.max_ttl),
            nonces: NonceTable::new(),
            publisher: Publisher::new(&config.subscribers, limits),
            requesters: Requesters::new(limits),
            request_rate: RateLimiter::new(limits.map_request, limits.max_peers),
            reply_rate: RateLimiter::new(limits.map_reply, limits.max_peers),
            out: Outputs::default(),
            config,
        };
        for (key, value) in saved {
            if server.restore(now, &key, &value).is_err() {
                server.out.count(Counter::SavedUnreadable);
            }
        }
        server.publisher.touch_all(now, &server.database, &mut server.out);
        server
    }

    fn restore(&mut self, now: Instant, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        let mut key = Reader::new(key);
        let kind = key.u8("saved kind")?;
        if kind == Kind::RegisterNonce as u8 {
            return self.restore_nonce(&mut key, value);
        }
        if kind == Kind::Subscription as u8 {
            return self.publisher.restore(&mut key, value);
        }
        if kind == Kind::Weights as u8 {
            let (eid, gateway, locators) = weights::read_saved(&mut key, value)?;
            self.database.weights.set(eid, gateway, locators);
            return Ok(());
        }
        if kind != Kind::Registration as u8 {
            return Err(DecodeError::Invalid { field: "saved kind", value: u64::from(kind) });
        }
        let (eid, registrant, registration) = registration::read_saved(now, &mut key, value)?;
        let allowed = |i| self.config.sites.get(i).is_some_and(|s: &Site| s.name == registration.site);
        if self.database.sites_of(&eid).any(allowed) {
            self.database.registrations.apply(eid, registrant, registration);
        }
        Ok(())
    }

    /// Takes a datagram that arrived on the control port.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no LISP control message; nothing has changed then.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), DecodeError> {
        match Message::decode(bytes)? {
            Message::MapRegister(register) => self.handle_register(now, from, bytes, &register),
            Message::MapNotifyAck(_) => {
                self.publisher.handle_ack(now, from, bytes, &self.database, &mut self.out);
            }
            Message::MapRequest(request) => {
                let origin = Origin { source: from, encapsulated: None };
                self.handle_request(now, from, &origin, &request);
            }
            Message::Encapsulated(outer) => match Message::decode(&outer.message)? {
                Message::MapRequest(request) => {
                    let origin = Origin { source: outer.inner_source, encapsulated: Some(bytes) };
                    self.handle_request(now, from, &origin, &request);
                }
                _ => self.out.count(Counter::UnexpectedMessage),
            },
            Message::Unknown(_) => self.out.count(Counter::UnknownMessage),
            // RFC 9301 §8.3: a Map-Server discards Map-Replies; Map-Notifies are for xTRs.
            _ => self.out.count(Counter::UnexpectedMessage),
        }
        Ok(())
    }

    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        if let Err(error) = self.check_weights(&command) {
            self.out.count(Counter::RefusedCommand);
            return self.out.event(Event::WeightsRefused { error });
        }
        let (eid, gateway, changed) = match command {
            Command::SetWeights { eid, gateway, locators } => {
                let value = weights::saved_value(&locators);
                let changed = self.database.weights.set(eid, gateway, locators);
                if changed {
                    self.out.persist(weights::saved_key(&eid, gateway), Some(value));
                }
                (eid, gateway, changed)
            }
            Command::ClearWeights { eid, gateway } => {
                let changed = self.database.weights.clear(eid, gateway);
                if changed {
                    self.out.persist(weights::saved_key(&eid, gateway), None);
                }
                (eid, gateway, changed)
            }
        };
        if changed {
            self.out.event(Event::WeightsChanged { eid, gateway });
            self.touch(now, eid);
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_registrations(now);
        self.publisher.handle_timeout(now, &self.database, &mut self.out);
        self.requesters.handle_timeout(now, &self.config.listen, &mut self.random, &mut self.out);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.database.registrations.next_expiry();
        [expiry, self.publisher.next_timeout(), self.requesters.next_timeout()].into_iter().flatten().min()
    }

    /// The next thing to do for the shell.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// A mapping changed: subscribers get it, the other requesters are told to ask.
    fn touch(&mut self, now: Instant, eid: EidPrefix) {
        self.publisher.touch(now, eid, &self.database, &mut self.out);
        self.requesters.touch(now, eid);
    }

    /// Whether `command` would be carried out.
    ///
    /// # Errors
    /// [`WeightsError`] that says why not.
    pub fn check_weights(&self, command: &Command) -> Result<(), WeightsError> {
        let Command::SetWeights { eid, gateway, locators } = command else { return Ok(()) };
        if self.database.sites_of(eid).next().is_none() {
            return Err(WeightsError::UnknownEid { eid: *eid });
        }
        if let Some(gateway) = gateway.filter(|g| !self.publisher.knows(g)) {
            return Err(WeightsError::UnknownGateway { gateway });
        }
        weights::check(locators)
    }

    /// What is registered.
    #[must_use]
    pub fn registrations(&self) -> Vec<RegistrationView> {
        self.database.registrations.views()
    }

    /// The weights in force.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightsView> {
        self.database.weights.views()
    }

    /// Who is subscribed to what.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionView> {
        self.publisher.views()
    }
}
