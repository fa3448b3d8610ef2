//! `weir gateway|mapserver|controller|balancer|run`: from a file to a running process.

use std::process::ExitCode;

use anyhow::Context as _;
use node::config::{Config, Log, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::cli::{BalancerArgs, ServeArgs};
use crate::output::{CONFIG, complain};

/// One role out of a file that may hold several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Gateway,
    Mapserver,
    Controller,
    Balancer,
}

/// Runs until a signal; `None` runs all roles of the file.
pub(crate) fn serve(args: &ServeArgs, role: Option<Role>) -> anyhow::Result<ExitCode> {
    serve_with(args, role, |_| {})
}

/// A balancer, which may be told to begin anew with its file.
pub(crate) fn balancer(args: BalancerArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.context("--config names the configuration")?;
    serve_with(&ServeArgs { config }, Some(Role::Balancer), |config| {
        if let Some(balancer) = &mut config.balancer {
            balancer.reset_from_file = args.reset_from_file;
        }
    })
}

/// `change` is what the command line says beside the file.
fn serve_with(
    args: &ServeArgs,
    role: Option<Role>,
    change: impl FnOnce(&mut Config),
) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            return Ok(ExitCode::from(CONFIG));
        }
    };
    let Some(mut config) = only(config, role) else {
        let section = role.map_or("", Role::section);
        complain(&format!("{}: has no section [{section}]", args.config.display()));
        return Ok(ExitCode::from(CONFIG));
    };
    change(&mut config);
    start_log(&config.log)?;
    let runtime = node::runtime(&config).context("runtime")?;
    let result = runtime.block_on(node::run(config));
    if let Err(error) = &result {
        tracing::error!(%error, "ended");
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

impl Role {
    const fn section(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Mapserver => "mapserver",
            Self::Controller => "controller",
            Self::Balancer => "balancer",
        }
    }
}

/// The configuration with one role only; `None` if the file does not have it.
fn only(config: Config, role: Option<Role>) -> Option<Config> {
    let Some(role) = role else { return Some(config) };
    let config = Config {
        gateway: config.gateway.filter(|_| role == Role::Gateway),
        mapserver: config.mapserver.filter(|_| role == Role::Mapserver),
        controller: config.controller.filter(|_| role == Role::Controller),
        balancer: config.balancer.filter(|_| role == Role::Balancer),
        ..config
    };
    let found = config.gateway.is_some()
        || config.mapserver.is_some()
        || config.controller.is_some()
        || config.balancer.is_some();
    found.then_some(config)
}

fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level).context("log.level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_target(false).with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
