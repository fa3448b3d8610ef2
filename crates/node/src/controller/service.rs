//! The loop around one service.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::ControllerError;
use super::core::{ServiceCore, Snapshot};
use super::mapserver::MapServerApi;
use super::metrics::Metrics;
use super::schedule::next_tick;
use super::source::{LoadMeter, unix_time};
use crate::clock::Clock;
use crate::config::Service;

/// One service with its source and its map server. Services do not wait for each other.
#[derive(Debug)]
pub(super) struct ServiceLoop {
    name: String,
    meter: LoadMeter,
    mapserver: MapServerApi,
    core: Mutex<ServiceCore>,
    metrics: Metrics,
    clock: Clock,
}

impl ServiceLoop {
    pub(super) fn new(
        service: &Service,
        mapserver: MapServerApi,
        metrics: Metrics,
        clock: Clock,
    ) -> Result<Self, ControllerError> {
        let core = ServiceCore::new(service, unix_time(&clock))?;
        metrics.start(&core);
        Ok(Self {
            name: service.name.clone(),
            meter: LoadMeter::new(&service.source, service.eid, clock)?,
            mapserver,
            core: Mutex::new(core),
            metrics,
            clock,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Decides at once, drops `starting`, and then decides every `interval`.
    pub(super) async fn run(&self, interval: Duration, starting: mpsc::Sender<()>) {
        let start = self.clock.now();
        self.tick().await;
        drop(starting);
        loop {
            let next = next_tick(start, interval, self.clock.now());
            tokio::time::sleep_until(self.clock.deadline(next)).await;
            self.tick().await;
        }
    }

    /// Measures, reads what is in place, decides, writes.
    pub(super) async fn tick(&self) {
        let (measurement, in_place) = tokio::join!(self.meter.measure(), self.mapserver.weights());
        let weights =
            self.with_core(|core| core.handle_observation(unix_time(&self.clock), measurement, in_place));
        if let Some(weights) = weights {
            let result = self.mapserver.put(&weights).await;
            self.with_core(|core| core.handle_written(unix_time(&self.clock), result));
        }
        self.with_core(|core| self.metrics.count(core));
    }

    /// How it stands, for threads other than the loop's: what is made of it is made without the lock.
    pub(super) fn snapshot(&self, records: usize) -> Snapshot {
        self.with_core(|core| core.snapshot(records))
    }

    /// As the core says it; the loop asks.
    pub(super) fn refused_token(&self) -> Option<String> {
        self.with_core(|core| core.refused_token())
    }

    /// The core holds plain values that every call leaves whole, so a poisoned lock is still good. Nobody else gets the
    /// lock: the loop would wait for a thread of ordinary priority.
    fn with_core<T>(&self, f: impl FnOnce(&mut ServiceCore) -> T) -> T {
        f(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
