//! The gateway: an xTR's control plane beside its data path in the kernel.
//!
//! A packet to a known EID never comes here. What does: control messages, packets to unresolved EIDs, changes of the
//! kernel's routes, questions of the API, and the clock that samples the counters.

mod answer;
mod api;
pub mod body;
mod control;
mod frame;
mod hold;
mod load;
mod metrics;
mod settings;
mod shared;
mod shell;

use std::sync::Arc;

use dataplane::Dataplane;
use lisp::xtr::Xtr;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::clock::unix_seconds;
use crate::config;
use crate::role::{RoleError, Running, Setup};
use crate::store::{KeyValue as _, WriteBehind};

/// Questions that wait for the task.
const QUERIES_MAX: usize = 16;
/// Table of the store.
const TABLE: &str = "gateway";

/// Why a gateway cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// Operator: the control port cannot be had.
    #[error("control port: {0}")]
    ControlPort(#[source] std::io::Error),
    /// Kernel: there is no randomness.
    #[error("random seed: {0}")]
    Seed(getrandom::Error),
}

/// Starts the gateway in the calling thread's network namespace.
///
/// # Errors
/// Why it cannot start; what an earlier process left running runs on.
pub async fn start(config: config::Gateway, setup: &mut Setup<'_>) -> Result<Running, RoleError> {
    let control = control::ControlPort::bind(&config.rlocs).await.map_err(GatewayError::ControlPort)?;
    let table = setup.store.table(TABLE)?;
    let saved = table.load()?;
    let store = WriteBehind::start(table)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(GatewayError::Seed)?;
    let dataplane = Dataplane::start(settings::dataplane(&setup.node.name, &config)).await?;
    let flows = Arc::new(dataplane.flow_reader()?);
    let settings = settings::xtr(&config, whole_seconds(unix_seconds()));
    let xtr = Xtr::new(setup.clock.now(), settings, seed, saved);
    let shared = Arc::new(shared::Shared::default());
    metrics::register(setup.registry, Arc::clone(&shared));
    let waiting = "no map server has confirmed the registrations yet";
    let unsubscribed = "no map server has confirmed the subscriptions yet";
    let subscribes = !config.subscribe.is_empty();
    let registers = !config.eids.is_empty();
    let (sender, queries) = mpsc::channel(QUERIES_MAX);
    let shell = shell::Shell {
        control,
        hold: hold::Hold::new(config.hold_packets),
        window: load::LoadWindow::new(config.load_window),
        shared: Arc::clone(&shared),
        store,
        clock: setup.clock,
        queries,
        shutdown: setup.shutdown.clone(),
        registered: registers.then(|| setup.readiness.condition("gateway_registered", waiting)),
        subscribed: subscribes.then(|| setup.readiness.condition("gateway_subscribed", unsubscribed)),
        local_eids: config.eids.iter().map(|local| local.eid).collect(),
        on_stop: settings::on_stop(&config),
        routes: dataplane.route_changes(),
        work: shell::Work::default(),
        xtr,
        dataplane,
    };
    let api = api::router(api::Api { shared, queries: sender, flows });
    Ok(Running { api, task: tokio::spawn(shell.run()) })
}

/// Registers the role's metrics for the reference.
pub(crate) fn describe(registry: &mut Registry) {
    metrics::register(registry, Arc::default());
}

/// Nonces that count on from the wall clock need it to the second only.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds since 1970, never negative"
)]
const fn whole_seconds(seconds: f64) -> u64 {
    seconds as u64
}
