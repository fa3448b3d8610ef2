//! `weir check`: everything that is wrong, before it is tried.

use std::path::Path;
use std::process::ExitCode;

use node::config::{Config, ConfigError, services};

use crate::cli::CheckArgs;
use crate::output::{FAILED, complain, print};

pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut right = true;
    for file in &args.files {
        right &= check_one(file)?;
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn check_one(file: &Path) -> anyhow::Result<bool> {
    match read(file) {
        Ok(what) => {
            print(&format!("{}: right, {what}\n", file.display()))?;
            Ok(true)
        }
        Err(error) => {
            complain(&error.to_string());
            let count = error.problems.len();
            complain(&format!(
                "{}: {count} {}",
                file.display(),
                if count == 1 { "problem" } else { "problems" }
            ));
            Ok(false)
        }
    }
}

/// What the file is for. One with VIPs is told from a configuration by what is in it.
fn read(file: &Path) -> Result<String, ConfigError> {
    if std::fs::read_to_string(file).is_ok_and(|text| services::is_services(&text)) {
        let vips = services::load(file, None)?;
        let backends: usize = vips.iter().map(|vip| vip.backends.len()).sum();
        return Ok(format!("{} VIPs with {backends} backends", vips.len()));
    }
    Config::load(file).map(|config| format!("runs {} as {}", roles(&config), config.node.name))
}

fn roles(config: &Config) -> String {
    let roles = [
        config.gateway.as_ref().map(|_| "gateway"),
        config.mapserver.as_ref().map(|_| "mapserver"),
        config.controller.as_ref().map(|_| "controller"),
        config.balancer.as_ref().map(|_| "balancer"),
    ];
    roles.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
