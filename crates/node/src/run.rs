//! From a configuration to a process that serves until it is told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use futures_util::future::select_all;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::Interval;

use crate::clock::Clock;
use crate::config::Config;
use crate::http::Server;
use crate::role::{Readiness, RoleError, Running, Setup};
use crate::signal::{ServiceManager, Shutdown, Termination, Trigger, shutdown};
use crate::store::{Store, StoreError};
use crate::{balancer, controller, gateway, mapserver, metrics};

/// Roles may take this long to stop; a service manager's patience is usually 90 s.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Why a node did not start or did not go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The API's address cannot be had.
    #[error("cannot listen on {address} for the API: {source}")]
    Listen {
        /// `http.listen`.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No signal handler could be installed.
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
    /// A role could not start.
    #[error("the {role} did not start: {source}")]
    Start {
        /// Which one.
        role: &'static str,
        /// Why.
        source: RoleError,
    },
    /// A role ended by itself.
    #[error("the {role} ended: {source}")]
    Ended {
        /// Which one.
        role: &'static str,
        /// Why.
        source: RoleError,
    },
    /// A role did not stop when told to.
    #[error("the {role} did not stop within {} s", STOP_TIME.as_secs())]
    Stuck {
        /// Which one.
        role: &'static str,
    },
}

/// Runs the roles of a configuration until SIGTERM or SIGINT, or until one of them ends.
///
/// # Errors
/// Why the node did not start, or why it ended without a signal.
pub async fn run(config: Config) -> Result<(), RunError> {
    let (trigger, shutdown) = shutdown();
    let manager = ServiceManager::from_environment();
    // Before anything is built: a start that is ended half-way takes nothing down.
    let mut termination = Termination::catch().map_err(RunError::Signal)?;
    let started = start(config, shutdown).await?;
    manager.notify("READY=1");
    supervise(started, &trigger, &mut termination, &manager).await
}

/// A role's name and its work.
type Task = (&'static str, JoinHandle<Result<(), RoleError>>);

struct Started {
    tasks: Vec<Task>,
    server: JoinHandle<()>,
}

async fn start(config: Config, shutdown: Shutdown) -> Result<Started, RunError> {
    let mut registry = metrics::registry(&config.node.name);
    let store = Store::open(&config.node.state_dir)?;
    let readiness = Readiness::default();
    let address = config.http.listen;
    let listen = |source| RunError::Listen { address, source };
    let server = Server::bind(config.http.clone(), &mut registry).await.map_err(listen)?;
    let bound = server.local_addr().map_err(listen)?;
    let setup = Setup {
        node: &config.node,
        registry: &mut registry,
        readiness: &readiness,
        store: &store,
        shutdown: shutdown.clone(),
        clock: Clock::start(),
    };
    let (api, tasks) = start_roles(&config, setup).await?;
    tracing::info!(node = config.node.name, api = %bound, "started");
    let server = tokio::spawn(server.serve(api, registry, readiness, shutdown));
    Ok(Started { tasks, server })
}

async fn start_roles(config: &Config, mut setup: Setup<'_>) -> Result<(Router, Vec<Task>), RunError> {
    let mut api = Router::new();
    let mut tasks = Vec::new();
    let mut add = |role, started: Result<Running, RoleError>| {
        let running = started.map_err(|source| RunError::Start { role, source })?;
        api = std::mem::take(&mut api).merge(running.api);
        tasks.push((role, running.task));
        Ok::<(), RunError>(())
    };
    if let Some(section) = &config.mapserver {
        add("map server", mapserver::start(section.clone(), &mut setup).await)?;
    }
    if let Some(section) = &config.gateway {
        add("gateway", gateway::start(section.clone(), &mut setup).await)?;
    }
    if let Some(section) = &config.controller {
        add("controller", controller::start(section.clone(), &mut setup).await)?;
    }
    if let Some(section) = &config.balancer {
        add("balancer", balancer::start(section.clone(), &mut setup).await)?;
    }
    Ok((api, tasks))
}

async fn supervise(
    started: Started,
    trigger: &Trigger,
    termination: &mut Termination,
    manager: &ServiceManager,
) -> Result<(), RunError> {
    let Started { mut tasks, server } = started;
    let result = first_end(&mut tasks, termination, manager).await;
    manager.notify("STOPPING=1");
    trigger.request();
    let stopped = stop(tasks).await;
    let _ = server.await;
    result.and(stopped)
}

async fn first_end(
    tasks: &mut Vec<Task>,
    termination: &mut Termination,
    manager: &ServiceManager,
) -> Result<(), RunError> {
    let mut watchdog = manager.watchdog().map(tokio::time::interval);
    loop {
        let ends = select_all(tasks.iter_mut().map(|(_, task)| task));
        tokio::select! {
            name = termination.requested() => {
                tracing::info!(signal = name, "stopping");
                return Ok(());
            }
            (ended, index, _) = ends => {
                let (role, _) = tasks.remove(index);
                return Err(RunError::Ended { role, source: reason(ended) });
            }
            () = tick(watchdog.as_mut()) => manager.notify("WATCHDOG=1"),
        }
    }
}

/// Never without a watchdog.
async fn tick(watchdog: Option<&mut Interval>) {
    match watchdog {
        Some(watchdog) => drop(watchdog.tick().await),
        None => std::future::pending().await,
    }
}

type Ended = Result<Result<(), RoleError>, tokio::task::JoinError>;

fn reason(ended: Ended) -> RoleError {
    match ended {
        Ok(Ok(())) => "it returned without being told to".into(),
        Ok(Err(error)) => error,
        Err(panic) => Box::new(panic),
    }
}

async fn stop(tasks: Vec<Task>) -> Result<(), RunError> {
    let deadline = tokio::time::Instant::now() + STOP_TIME;
    let mut result = Ok(());
    for (role, task) in tasks {
        let stopped = match tokio::time::timeout_at(deadline, task).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(ended) => Err(RunError::Ended { role, source: reason(ended) }),
            Err(_) => Err(RunError::Stuck { role }),
        };
        result = result.and(stopped);
    }
    result
}
