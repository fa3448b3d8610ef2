//! `weir check`: everything that is wrong, before it is tried.

use std::path::Path;
use std::process::ExitCode;

use node::config::Config;

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
    match Config::load(file) {
        Ok(config) => {
            print(&format!("{}: right, runs {} as {}\n", file.display(), roles(&config), config.node.name))?;
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

fn roles(config: &Config) -> String {
    let roles = [
        config.gateway.as_ref().map(|_| "gateway"),
        config.mapserver.as_ref().map(|_| "mapserver"),
        config.controller.as_ref().map(|_| "controller"),
    ];
    roles.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
