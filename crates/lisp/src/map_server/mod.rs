//! Map-Server and Map-Resolver in one (RFC 9301 §8, RFC 9437).

mod config;
mod output;

pub use config::{AllowedPrefix, Limits, MapServerConfig, NonceCheck, Site, Subscriber};
pub use output::{
    Command, Event, LocatorWeight, Output, Registrant, RegistrationView, SubscriptionView, WeightsError,
    WeightsView,
};

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use codec::{DecodeError, Instant};

use crate::machine::Saved;
use crate::nonce::NonceGenerator;

/// The Map-Server machine.
#[derive(Debug)]
pub struct MapServer {
    config: MapServerConfig,
    random: NonceGenerator,
    outputs: VecDeque<Output>,
}

impl MapServer {
    /// A Map-Server that goes on where `saved` left off. `seed` is fresh from the operating system.
    #[must_use]
    pub fn new(now: Instant, config: MapServerConfig, seed: [u8; 32], saved: Vec<Saved>) -> Self {
        let _ = (now, saved);
        Self { config, random: NonceGenerator::new(seed), outputs: VecDeque::new() }
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

    /// Whether [`Command::SetWeights`] with these values would be carried out.
    ///
    /// # Errors
    /// [`WeightsError`] that says why not.
    pub fn check_weights(&self, command: &Command) -> Result<(), WeightsError> {
        let _ = command;
        Ok(())
    }

    /// What is registered.
    #[must_use]
    pub fn registrations(&self) -> Vec<RegistrationView> {
        Vec::new()
    }

    /// The weights in force.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightsView> {
        Vec::new()
    }

    /// Who is subscribed to what.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionView> {
        Vec::new()
    }
}
