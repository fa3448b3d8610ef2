//! The map server role: sockets, timers, storage and API around [`lisp::map_server::MapServer`].

pub mod api;
mod metrics;
mod publications;
mod serve;

use std::net::SocketAddr;

use lisp::map_server::{AllowedPrefix, MapServer, MapServerConfig, NonceCheck, Site, Subscriber};
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::config;
use crate::role::{RoleError, Running, Setup};
use crate::store::{KeyValue as _, StoreError, WriteBehind};
use metrics::Metrics;
use publications::Publications;
use serve::Shell;

/// Octets that a socket may hold while we are busy; a restart of many gateways arrives in one burst.
const SOCKET_BUFFER: usize = 4 << 20;
/// Of every metric of the role.
const PREFIX: &str = "weir_mapserver";
/// API requests that wait for the loop.
const QUEUE: usize = 64;

/// Why the map server cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address of `mapserver.listen` cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state of the last run cannot be read; starting without it would accept replays.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread for the store.
    #[error("cannot start the store's thread: {0}")]
    Thread(std::io::Error),
    /// No randomness for nonces.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Starts the role.
///
/// # Errors
/// If an address cannot be had or the state cannot be read.
pub async fn start(config: config::MapServer, setup: &mut Setup<'_>) -> Result<Running, RoleError> {
    let condition = setup.readiness.condition("mapserver", "starting");
    let table = setup.store.table("mapserver").map_err(StartError::from)?;
    let saved = table.load().map_err(StartError::from)?;
    tracing::info!(entries = saved.len(), "state of the last run read");
    let store = WriteBehind::start(table).map_err(StartError::Thread)?;
    let sockets = config.listen.iter().map(|address| bind(*address)).collect::<Result<Vec<_>, _>>()?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(StartError::Random)?;
    let machine = MapServer::new(setup.clock.now(), machine_config(&config), seed, saved);
    let metrics = Metrics::register(setup.registry.sub_registry_with_prefix(PREFIX));
    let (sender, jobs) = mpsc::channel(QUEUE);
    let subscribers = config.subscribers.iter().map(|s| (s.name.clone(), s.identity)).collect();
    let api = api::router(sender, setup.clock, subscribers);
    let publications = Publications::new(&config.subscribers);
    let shell = Shell::new(machine, sockets, store, metrics, publications, setup.clock);
    condition.ready();
    let task = tokio::spawn(shell.serve(jobs, setup.shutdown.clone()));
    Ok(Running { api, task })
}

/// Registers the role's metrics for the reference.
pub(crate) fn describe(registry: &mut Registry) {
    Metrics::register(registry.sub_registry_with_prefix(PREFIX));
}

fn bind(address: SocketAddr) -> Result<UdpSocket, StartError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            // Each family has its own socket, so that answers leave from the address that was asked.
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // The kernel caps it at net.core.rmem_max; less is slower under bursts, not wrong.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|source| StartError::Listen { address, source })
}

fn machine_config(config: &config::MapServer) -> MapServerConfig {
    let prefix = |p: &config::SitePrefix| AllowedPrefix { eid: p.eid, more_specifics: p.more_specifics };
    let site = |site: &config::Site| Site {
        name: site.name.clone(),
        site_id: site.site_id,
        keys: vec![site.key.lisp()],
        nonce_check: match site.nonce_check {
            config::NonceCheck::Strict => NonceCheck::Strict,
            config::NonceCheck::Compat => NonceCheck::Compat,
        },
        eid_prefixes: site.eid_prefixes.iter().map(prefix).collect(),
    };
    let subscriber =
        |s: &config::Subscriber| Subscriber { name: s.name.clone(), identity: s.identity, key: s.key.lisp() };
    MapServerConfig {
        listen: config.listen.iter().map(SocketAddr::ip).collect(),
        sites: config.sites.iter().map(site).collect(),
        subscribers: config.subscribers.iter().map(subscriber).collect(),
        limits: config.limits.clone(),
    }
}
