//! From a configuration to a process that serves until it is told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use futures_util::future::select_all;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Interval;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::http::Server;
use crate::priority;
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
    /// No threads for the API.
    #[error("cannot start the API's threads: {0}")]
    Threads(std::io::Error),
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

/// What [`run()`] is to run on. Roles that answer other nodes have one thread, which serves nothing but them and goes
/// first; the balancer computes tables while it probes servers, so it has several and no priority.
///
/// # Errors
/// If the system refuses a thread or a descriptor.
pub fn runtime(config: &Config) -> std::io::Result<Runtime> {
    let mut builder = match config.balancer {
        Some(_) => runtime::Builder::new_multi_thread(),
        None => runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()
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
    api: ApiThreads,
}

/// The API's threads, of ordinary priority: a scrape is written beside the roles' loops and not between two turns.
struct ApiThreads(Option<Runtime>);

impl ApiThreads {
    fn start() -> std::io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().thread_name("api").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let runtime = self.0.as_ref().expect("taken when dropped only");
        runtime.spawn(work)
    }
}

impl Drop for ApiThreads {
    fn drop(&mut self) {
        // Waiting for threads is not allowed within another runtime, and the server has ended.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

async fn start(config: Config, shutdown: Shutdown) -> Result<Started, RunError> {
    let registry = metrics::registry(&config.node.name);
    let store = Store::open(&config.node.state_dir)?;
    let readiness = Readiness::default();
    let address = config.http.listen;
    let listen = |source| RunError::Listen { address, source };
    let threads = ApiThreads::start().map_err(RunError::Threads)?;
    let (server, mut registry) = bind(&threads, config.http.clone(), registry).await.map_err(listen)?;
    let bound = server.local_addr().map_err(listen)?;
    let clock = Clock::start();
    let setup = Setup {
        node: &config.node,
        registry: &mut registry,
        readiness: &readiness,
        store: &store,
        shutdown: shutdown.clone(),
        clock,
    };
    let (api, tasks) = start_roles(&config, setup).await?;
    // Not before: a start loads programs, for longer than others may be kept waiting.
    if config.balancer.is_none() {
        priority::go_first(&mut registry, clock);
    }
    tracing::info!(node = config.node.name, api = %bound, "started");
    let server = threads.spawn(server.serve(api, registry, readiness, shutdown));
    Ok(Started { tasks, server, api: threads })
}

/// Binds on the threads that will serve: a socket wakes those it was made on.
async fn bind(
    threads: &ApiThreads,
    http: config::Http,
    mut registry: Registry,
) -> std::io::Result<(Server, Registry)> {
    let bound = threads.spawn(async move {
        let server = Server::bind(http, &mut registry).await?;
        Ok((server, registry))
    });
    bound.await.map_err(std::io::Error::other)?
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
    let Started { mut tasks, server, api: _threads } = started;
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read as _, Write as _};
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Asks like a peer elsewhere: by a socket and without the runtime of whoever calls.
    fn ask(address: SocketAddr, path: &str) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        stream
    }

    fn answer(mut stream: std::net::TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test]
    async fn the_api_and_the_loops_do_not_wait_for_each_other() {
        let threads = ApiThreads::start().unwrap();
        let http = config::Http { listen: "127.0.0.1:0".parse().unwrap(), token: None };
        let (server, registry) = bind(&threads, http, metrics::registry("a")).await.unwrap();
        let address = server.local_addr().unwrap();
        let (go_on, waiting) = mpsc::channel::<()>();
        let waiting = std::sync::Mutex::new(waiting);
        let slow = move || {
            std::future::ready(waiting.lock().unwrap().recv_timeout(PATIENCE).map_or("late", |()| "ok"))
        };
        let slow = std::sync::Arc::new(slow);
        let api = Router::new().route("/slow", get(move || slow()));
        let (trigger, shutdown) = shutdown();
        let serving = threads.spawn(server.serve(api, registry, Readiness::default(), shutdown));

        // The only thread of the loops is busy here, and a scrape is answered nevertheless.
        assert!(answer(ask(address, "/metrics")).contains("weir_build_info"));
        // A request keeps its thread busy, and the loops go on.
        let slow = ask(address, "/slow");
        tokio::spawn(async move { go_on.send(()).unwrap() }).await.unwrap();
        assert!(answer(slow).ends_with("ok"));

        trigger.request();
        serving.await.unwrap();
    }
}
