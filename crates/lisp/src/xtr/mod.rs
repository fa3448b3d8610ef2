//! An xTR: ITR and ETR control plane in one (RFC 9301, RFC 9437).

mod answer;
mod config;
mod output;
mod probing;
mod registration;
mod request;
mod resolution;
mod subscription;
mod table;

pub use config::{LocalEid, MapServerPeer, ProbingConfig, XtrConfig};
pub use output::{Command, Event, LocatorView, MapServerView, Output, SubscriptionView};

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use codec::{DecodeError, Instant, Reader};

use crate::machine::{Counter, Saved};
use crate::map_cache::MapCache;
use crate::nonce::NonceGenerator;
use crate::rate::{RateLimit, RateLimiter};
use crate::saved::Kind;
use crate::wire::{EidPrefix, Message};

use output::Outputs;
use probing::Prober;
use registration::Registrar;
use resolution::Resolver;
use subscription::Subscriptions;

/// Map-Replies to one ITR-RLOC.
const REPLY_RATE: RateLimit = RateLimit { burst: 50, interval: Duration::from_millis(20) };
/// Probe replies to one ITR-RLOC, counted apart: a busy ITR must not take its locator for dead.
const PROBE_REPLY_RATE: RateLimit = RateLimit { burst: 50, interval: Duration::from_millis(10) };
/// RFC 9301 §6.1: at most one SMR-invoked Map-Request in 3 s for one prefix, here of the map-cache.
const SMR_RATE: RateLimit = RateLimit { burst: 1, interval: Duration::from_secs(3) };
/// Peers whose rate is tracked.
const TRACKED: usize = 4096;

/// The xTR machine.
#[derive(Debug)]
pub struct Xtr {
    config: XtrConfig,
    random: NonceGenerator,
    map_cache: MapCache,
    resolver: Resolver,
    subscriptions: Subscriptions,
    registrar: Registrar,
    prober: Prober,
    reply_rate: RateLimiter<IpAddr>,
    probe_reply_rate: RateLimiter<IpAddr>,
    smr_rate: RateLimiter<EidPrefix>,
    out: Outputs,
}

impl Xtr {
    /// An xTR that goes on where `saved` left off. `seed` is fresh from the operating system.
    #[must_use]
    pub fn new(now: Instant, config: XtrConfig, seed: [u8; 32], saved: Vec<Saved>) -> Self {
        let mut random = NonceGenerator::new(seed);
        let mut xtr = Self {
            map_cache: MapCache::new(config.map_cache),
            resolver: Resolver::new(config.max_pending),
            subscriptions: Subscriptions::new(),
            registrar: Registrar::new(now, &config, &mut random),
            prober: Prober::default(),
            reply_rate: RateLimiter::new(REPLY_RATE, TRACKED),
            smr_rate: RateLimiter::new(SMR_RATE, TRACKED),
            probe_reply_rate: RateLimiter::new(PROBE_REPLY_RATE, TRACKED),
            out: Outputs::default(),
            random,
            config,
        };
        for (key, value) in saved {
            if xtr.restore(&key, &value).is_err() {
                xtr.out.count(Counter::SavedUnreadable);
            }
        }
        if xtr.config.pubsub_key.is_some() {
            for eid in xtr.config.subscribe.clone() {
                xtr.subscriptions.subscribe(now, eid, &xtr.config, &mut xtr.random, &mut xtr.out);
            }
        }
        xtr
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        let mut key = Reader::new(key);
        let kind = key.u8("saved kind")?;
        if kind == Kind::OwnRegisterNonce as u8 {
            return self.registrar.restore(value);
        }
        if kind == Kind::OwnSubscriptionNonce as u8 {
            return self.subscriptions.restore(&mut key, value);
        }
        Err(DecodeError::Invalid { field: "saved kind", value: u64::from(kind) })
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
            Message::MapReply(reply) if reply.probe => self.handle_probe_reply(now, &reply),
            Message::MapReply(reply) => self.handle_reply(now, &reply),
            Message::MapNotify(notify) => {
                if !self.registrar.handle_notify(now, notify.nonce, bytes, &mut self.out) {
                    self.handle_publication(now, from, bytes);
                }
            }
            Message::MapRequest(request) => self.handle_request(now, from, false, &request),
            Message::Encapsulated(outer) => match Message::decode(&outer.message)? {
                Message::MapRequest(request) => self.handle_request(now, outer.inner_source, true, &request),
                _ => self.out.count(Counter::UnexpectedMessage),
            },
            Message::Unknown(_) => self.out.count(Counter::UnknownMessage),
            _ => self.out.count(Counter::UnexpectedMessage),
        }
        Ok(())
    }

    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Resolve { eid } => self.resolve(now, eid),
            Command::Used { eid } => self.map_cache.mark_used(now, &eid),
            Command::Subscribe { eid } if self.config.pubsub_key.is_some() => {
                self.subscriptions.subscribe(now, eid, &self.config, &mut self.random, &mut self.out);
            }
            Command::Unsubscribe { eid } if self.subscriptions.unsubscribe(now, eid) => {}
            Command::Subscribe { .. } | Command::Unsubscribe { .. } => {
                self.out.count(Counter::RefusedCommand)
            }
            Command::SetLocalEid(local) => self.registrar.set_local(now, local),
            Command::RemoveLocalEid { eid } => self.registrar.remove_local(now, &eid),
            Command::Withdraw => self.registrar.withdraw_all(now, &mut self.out),
        }
        self.handle_timeout(now);
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.registrar.handle_timeout(now, &self.config, &mut self.out);
        let ended = self.subscriptions.handle_timeout(now, &self.config, &mut self.random, &mut self.out);
        ended.into_iter().for_each(|eid| self.release(now, eid));
        let down = self.prober.handle_timeout(now, &self.config, &mut self.random, &mut self.out);
        down.into_iter().for_each(|rloc| self.locator_changed(rloc));
        self.wake_map_cache(now);
        self.wake_resolver(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [
            self.registrar.next_timeout(),
            self.subscriptions.next_timeout(),
            self.prober.next_timeout(),
            self.map_cache.next_wake(),
            self.resolver.next_timeout(),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// The next thing to do for the shell.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// The mappings that are known.
    #[must_use]
    pub const fn map_cache(&self) -> &MapCache {
        &self.map_cache
    }

    /// What probing knows about locators.
    #[must_use]
    pub fn locators(&self) -> Vec<LocatorView> {
        self.prober.views()
    }

    /// What is subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionView> {
        self.subscriptions.views()
    }

    /// Where registrations go.
    #[must_use]
    pub fn map_servers(&self) -> Vec<MapServerView> {
        self.registrar.views()
    }
}
