//! What a role gets from its node and what it gives back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config;
use crate::signal::Shutdown;
use crate::store::Store;

/// Why a role cannot start or had to end; each role has its own type for it.
pub type RoleError = Box<dyn std::error::Error + Send + Sync>;

/// What a role gets at its start.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Name and directory.
    pub node: &'a config::Node,
    /// Where it registers its metrics.
    pub registry: &'a mut Registry,
    /// Where it says whether it does its work.
    pub readiness: &'a Readiness,
    /// Where it keeps what must survive.
    pub store: &'a Store,
    /// When it is to stop.
    pub shutdown: Shutdown,
    /// What time it is.
    pub clock: Clock,
}

/// A role that was started.
#[derive(Debug)]
pub struct Running {
    /// Its part of the API, paths in full (`/v1/…`).
    pub api: Router,
    /// Its work; ends after [`Shutdown`], or before with the reason.
    pub task: JoinHandle<Result<(), RoleError>>,
}

/// Whether the node does its work, by condition.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One thing that must be so for the node to be ready.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a condition that does not hold yet.
    #[must_use]
    pub fn condition(&self, name: &'static str, reason: &str) -> Condition {
        let condition = Condition { name, readiness: self.clone() };
        condition.not_ready(reason);
        condition
    }

    /// Every condition and, if it does not hold, why.
    #[must_use]
    pub fn conditions(&self) -> BTreeMap<&'static str, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, name: &'static str, reason: Option<String>) {
        let old = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, reason.clone());
        if old.as_ref() != Some(&reason) {
            match reason {
                Some(reason) => tracing::info!(condition = name, reason, "not ready"),
                None => tracing::info!(condition = name, "ready"),
            }
        }
    }
}

impl Condition {
    /// It holds.
    pub fn ready(&self) {
        self.readiness.set(self.name, None);
    }

    /// It does not hold, and why.
    pub fn not_ready(&self, reason: &str) {
        self.readiness.set(self.name, Some(reason.to_owned()));
    }
}
