//! The controller role: reads the offered load of every service, decides, writes weights.
//!
//! ```text
//! Prometheus or gateway --measure--> core --weights--> map server
//! map server ------------in place--> (decide, history)
//! ```
//!
//! The weights in place are read before every decision, at the start as well as later: what is there
//! is taken over, and what was lost or edited is put back. Whatever fails, the last good weights stand
//! and the next tick tries again.

mod api;
mod core;
mod fetch;
mod history;
mod mapserver;
mod metrics;
mod prometheus;
mod promql;
mod schedule;
mod service;
mod source;
mod weights;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::api::{DecisionView, EdgeView, MeasurementView, ServiceView};
use self::mapserver::MapServerApi;
use self::metrics::Metrics;
pub use self::promql::{AgeUnknown, timestamp_query};
use self::service::ServiceLoop;
pub use self::weights::{LocatorWeight, WeightSet};
use crate::clock::Clock;
use crate::config;
use crate::role::{Condition, RoleError, Running, Setup};
use crate::signal::Shutdown;

/// Longest wait for the map server, which answers a change when it is on its disk. Ticks that pass
/// meanwhile are left out.
const MAPSERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no controller, or no longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// The configuration of a service cannot be decided about.
    #[error("service {service}: {why}")]
    Service {
        /// Its name.
        service: String,
        /// What is wrong.
        why: String,
    },
    /// The HTTP client cannot be set up.
    #[error("HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// A loop ended that should not: a bug.
    #[error("the loop of a service ended: {0}")]
    LoopEnded(String),
}

/// Starts the role. It is ready when every service had its first decision, be it to hold, and no API that it needs asks
/// for another token.
///
/// # Errors
/// [`ControllerError`] if a service cannot be decided about.
pub async fn start(config: config::Controller, setup: &mut Setup<'_>) -> Result<Running, RoleError> {
    let controller = Controller::new(&config, setup.clock)?;
    controller.metrics.register(setup.registry);
    let condition = setup.readiness.condition("controller", "a service had no decision yet");
    let (api, shutdown) = (api::router(controller.services.clone()), setup.shutdown.clone());
    let task = tokio::spawn(async move { Ok(controller.run(condition, shutdown).await?) });
    Ok(Running { api, task })
}

/// Registers the role's metrics for the reference.
pub(crate) fn describe(registry: &mut Registry) {
    Metrics::default().register(registry);
}

/// The loops over all services.
#[derive(Debug)]
struct Controller {
    interval: Duration,
    services: Arc<[Arc<ServiceLoop>]>,
    metrics: Metrics,
}

impl Controller {
    /// Sets everything up; nothing is asked or written before [`Self::run`].
    fn new(config: &config::Controller, clock: Clock) -> Result<Self, ControllerError> {
        let metrics = Metrics::default();
        let token = config.mapserver_token.clone();
        let mapserver = MapServerApi::new(&config.mapserver_url, token, MAPSERVER_TIMEOUT)?;
        let service =
            |service| ServiceLoop::new(service, mapserver.clone(), metrics.clone(), clock).map(Arc::new);
        let services: Result<Arc<[_]>, _> = config.services.iter().map(service).collect();
        Ok(Self { interval: config.interval, services: services?, metrics })
    }

    /// Decides until `shutdown`. The weights are left as they are.
    async fn run(&self, condition: Condition, mut shutdown: Shutdown) -> Result<(), ControllerError> {
        let mut loops = JoinSet::new();
        let (starting, mut started) = mpsc::channel::<()>(1);
        for service in self.services.iter() {
            let (service, interval, starting) = (service.clone(), self.interval, starting.clone());
            loops.spawn(async move { service.run(interval, starting).await });
        }
        drop(starting);
        let mut decided = false;
        let mut look = tokio::time::interval(self.interval);
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                // Nothing is ever sent: the channel closes when the last loop drops its end.
                None = started.recv(), if !decided => {
                    decided = true;
                    self.report(&condition);
                }
                _ = look.tick(), if decided => self.report(&condition),
                Some(ended) = loops.join_next() => {
                    let why = ended.err().map_or_else(String::new, |e| e.to_string());
                    return Err(ControllerError::LoopEnded(why));
                }
            }
        }
    }

    fn report(&self, condition: &Condition) {
        match self.services.iter().find_map(|service| service.refused_token()) {
            Some(why) => condition.not_ready(&why),
            None => condition.ready(),
        }
    }
}

#[cfg(test)]
mod tests;
