//! An xTR: ITR and ETR control plane in one (RFC 9301, RFC 9437).

mod config;
mod output;

pub use config::{LocalEid, MapServerPeer, ProbingConfig, XtrConfig};
pub use output::{Command, Event, LocatorView, MapServerView, Output, SubscriptionView};

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use codec::{DecodeError, Instant};

use crate::machine::Saved;
use crate::map_cache::MapCache;
use crate::nonce::NonceGenerator;

/// The xTR machine.
#[derive(Debug)]
pub struct Xtr {
    config: XtrConfig,
    random: NonceGenerator,
    map_cache: MapCache,
    outputs: VecDeque<Output>,
}

impl Xtr {
    /// An xTR that goes on where `saved` left off. `seed` is fresh from the operating system.
    #[must_use]
    pub fn new(now: Instant, config: XtrConfig, seed: [u8; 32], saved: Vec<Saved>) -> Self {
        let _ = (now, saved);
        let map_cache = MapCache::new(config.map_cache);
        Self { config, random: NonceGenerator::new(seed), map_cache, outputs: VecDeque::new() }
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
        let _ = (now, from, bytes, &self.config, &self.random);
        Ok(())
    }

    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        let _ = (now, command);
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next thing to do for the shell.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The mappings that are known.
    #[must_use]
    pub const fn map_cache(&self) -> &MapCache {
        &self.map_cache
    }

    /// What probing knows about locators.
    #[must_use]
    pub fn locators(&self) -> Vec<LocatorView> {
        Vec::new()
    }

    /// What is subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionView> {
        Vec::new()
    }

    /// Where registrations go.
    #[must_use]
    pub fn map_servers(&self) -> Vec<MapServerView> {
        Vec::new()
    }
}
