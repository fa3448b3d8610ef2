//! One binary: gateway, map server, controller, lab and the commands a person types.

mod check;
mod check_backend;
mod cli;
mod docs;
mod explain;
mod get;
mod output;
mod reference;
mod serve;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{BalancerCommand, Cli, Command};
use crate::output::{FAILED, USAGE};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("weir: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// `--help` and `--version` arrive here too and are no mistakes.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe (`weir --help | head -1`) is no reason to say anything.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Gateway(args) => serve::serve(&args, Some(serve::Role::Gateway)),
        Command::Mapserver(args) => serve::serve(&args, Some(serve::Role::Mapserver)),
        Command::Controller(args) => serve::serve(&args, Some(serve::Role::Controller)),
        Command::Balancer(args) => match args.command {
            Some(BalancerCommand::CheckBackend(args)) => check_backend::check_backend(&args),
            None => anyhow::bail!("this build checks backends only; see weir balancer check-backend --help"),
        },
        Command::Run(args) => serve::serve(&args, None),
        Command::Check(args) => check::check(&args),
        Command::Get(args) => get::get(&args).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => explain::explain(&args).map(|()| ExitCode::SUCCESS),
        Command::Lab { command } => lab::cli::run(command).map(|()| ExitCode::SUCCESS),
        Command::Completions(args) => docs::completions(&args).map(|()| ExitCode::SUCCESS),
        Command::Docs(args) => docs::docs(&args).map(|()| ExitCode::SUCCESS),
    }
}
