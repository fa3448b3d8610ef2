//! The balancer role: which servers of a site get what arrives for its VIPs.
//!
//! A frame to a VIP never comes here. What does: what is desired, from a file or over the API, and what is learnt of
//! backends, by checks and by neighbour messages. A pure core brings them together; the data path is changed only when
//! that makes a difference.

mod api;
pub mod body;
mod core;
mod datapath;
mod desired;
pub mod endpoint;
pub mod health;
mod jitter;
mod metrics;
pub mod neighbour;
pub mod openapi;
mod port;
mod saved;
mod shared;
mod shell;
mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane::OnStop;
use dataplane::balancer::{Balancer, BalancerConfig, InPlace, VipId, XdpHook};
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::config;
use crate::role::{RoleError, Running, Setup};
use crate::store::{Entry, KeyValue, WriteBehind};
use desired::Desired;
pub use saved::SavedError;

/// API requests that wait for the loop.
const QUEUE: usize = 64;
/// Table of the store.
const TABLE: &str = "balancer";

/// Why a balancer cannot start; what an earlier process left running runs on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BalancerError {
    /// What was stored cannot be taken up again.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Starts the balancer in the calling thread's network namespace.
///
/// # Errors
/// Why it cannot start; what an earlier process left running runs on.
pub async fn start(config: config::Balancer, setup: &mut Setup<'_>) -> Result<Running, RoleError> {
    let condition = setup.readiness.condition("balancer", "starting");
    let table = setup.store.table(TABLE)?;
    let saved = saved_unless_reset(&table, config.reset_from_file)?;
    let (desired, source) = first_state(&saved, &config).map_err(BalancerError::from)?;
    tracing::info!(vips = desired.vips().len(), source, "VIPs read");
    let store = WriteBehind::start(table)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(BalancerError::Random)?;
    let shared = Arc::default();
    let metrics = metrics::Metrics::register(setup.registry, Arc::clone(&shared));
    let sources = sources::Backends::open(&config.interface, &config.sources, setup.clock, random).await?;
    let datapath = Balancer::start(&settings(&setup.node.name, &config)).await?;
    let in_place = |id: &VipId, backend: &str| datapath.in_place(id, backend);
    let core = core::Core::new(setup.clock.now(), desired.list(), in_place);
    let slots = desired.list().iter().map(|vip| (vip.id, slots_in_place(vip, in_place))).collect();
    let shell = shell::Shell::new(shell::Parts {
        desired,
        source,
        core,
        slots,
        datapath: Box::new(datapath),
        store,
        settings: shell::Settings {
            interface: config.interface.clone(),
            mode: match config.mode {
                config::XdpMode::Native => "native",
                config::XdpMode::Generic => "generic",
            },
            vteps: config.vteps.clone(),
        },
        clock: setup.clock,
        shared,
        metrics,
        condition,
    });
    let (sender, jobs) = mpsc::channel(QUEUE);
    let task = tokio::spawn(shell.serve(sources, jobs, setup.shutdown.clone()));
    Ok(Running { api: api::router(sender), task })
}

/// Registers the role's metrics for the reference.
pub(crate) fn describe(registry: &mut Registry) {
    metrics::Metrics::register(registry, Arc::default());
}

fn slots_in_place(
    vip: &config::services::Vip,
    in_place: impl Fn(&VipId, &str) -> Option<InPlace>,
) -> BTreeMap<String, u32> {
    let slots = |name: &str| in_place(&vip.id, name).map(|found| (name.to_owned(), found.slots));
    vip.backends.iter().filter_map(|backend| slots(&backend.name)).collect()
}

fn saved_unless_reset(table: &impl KeyValue, reset: bool) -> Result<Vec<Entry>, RoleError> {
    let saved = table.load()?;
    if reset && !saved.is_empty() {
        table.write(&saved::forget(&saved))?;
        tracing::warn!("what the API had stored is forgotten");
        return Ok(Vec::new());
    }
    Ok(saved)
}

/// What the API stored goes before the file: whoever changed it there meant it to last.
fn first_state(saved: &[Entry], config: &config::Balancer) -> Result<(Desired, &'static str), SavedError> {
    let of_file = config.services.as_ref().map(|services| Desired::new(services.vips.clone()));
    let Some(stored) = saved::read(saved, &config.vteps)? else {
        return Ok(of_file.map_or_else(|| (Desired::default(), "nothing"), |desired| (desired, "file")));
    };
    if let (Some(of_file), Some(services)) = (&of_file, &config.services)
        && !of_file.is_alike(&stored)
    {
        let file = services.file.display();
        tracing::warn!(%file, "differs from what the API has stored, which holds; `weir apply` makes it hold");
    }
    Ok((stored, "api"))
}

fn settings(node: &str, config: &config::Balancer) -> BalancerConfig {
    BalancerConfig {
        node: node.to_owned(),
        interface: config.interface.clone(),
        mode: match config.mode {
            config::XdpMode::Native => XdpHook::Native,
            config::XdpMode::Generic => XdpHook::Generic,
        },
        pin_root: None,
        on_stop: match config.on_stop {
            config::OnStop::Keep => OnStop::Keep,
            config::OnStop::Detach => OnStop::Detach,
        },
        seed: config.seed,
        vteps: config.vteps.clone(),
        flows: Some(config.flow_entries),
        table_memory: config.table_memory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::services::parse;
    use crate::store::Store;

    fn configured(port: u16) -> config::Balancer {
        let text = format!("[[vips]]\nname = \"web\"\naddress = \"192.0.2.10\"\nport = {port}\n");
        let vips = parse(&text, None).unwrap();
        config::Balancer {
            interface: "eth0".into(),
            mode: config::XdpMode::Native,
            on_stop: config::OnStop::Keep,
            seed: 0,
            vteps: Vec::new(),
            flow_entries: 1024,
            table_memory: 1 << 20,
            services: Some(config::ServicesFile { file: "vips.toml".into(), vips }),
            sources: Vec::new(),
            reset_from_file: false,
        }
    }

    #[test]
    fn what_the_api_stored_goes_before_the_file_until_it_is_reset() {
        let directory = tempfile::tempdir().unwrap();
        let table = Store::open(directory.path()).unwrap().table("balancer").unwrap();
        let port = |desired: &Desired| desired.vip("web").unwrap().vip.id.port;
        let (first, source) = first_state(&table.load().unwrap(), &configured(80)).unwrap();
        assert_eq!((port(&first), source), (80, "file"));
        let stored = Desired::new(configured(81).services.unwrap().vips);
        table.write(&saved::changes(None, &stored)).unwrap();
        let (first, source) = first_state(&table.load().unwrap(), &configured(80)).unwrap();
        assert_eq!((port(&first), source), (81, "api"));
        assert_eq!(saved_unless_reset(&table, false).unwrap().len(), 2);
        let saved = saved_unless_reset(&table, true).unwrap();
        assert_eq!(first_state(&saved, &configured(80)).unwrap().1, "file");
        assert!(table.load().unwrap().is_empty());
        let nothing = config::Balancer { services: None, ..configured(80) };
        assert_eq!(first_state(&[], &nothing).unwrap(), (Desired::default(), "nothing"));
    }
}
