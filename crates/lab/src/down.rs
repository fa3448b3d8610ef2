//! `weir lab down`: takes away what no running process looks after.

use anyhow::{Result, bail};

use crate::process::{self, signal};
use crate::state::State;

/// Takes down one lab, or every lab without an owner. Says what it did.
pub fn down(id: Option<&str>) -> Result<()> {
    let (states, mut errors) = State::all();
    let wanted: Vec<&State> = states.iter().filter(|state| id.is_none_or(|id| state.id == id)).collect();
    if let (Some(id), true) = (id, wanted.is_empty()) {
        bail!("no lab {id}");
    }
    if wanted.is_empty() && errors.is_empty() {
        println!("no lab is there");
    }
    for state in wanted {
        match take_down(state, id.is_some()) {
            Ok(said) => println!("lab {}: {said}", state.id),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let errors: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", errors.join("\n"))
}

/// Labs of processes that have died, before a new one is built. Returns their ids.
pub fn take_down_stale() -> Result<Vec<String>> {
    let (states, _) = State::all();
    let stale = states.iter().filter(|state| state.owner.is_some() && !state.is_owned());
    stale.map(|state| state.teardown().map(|()| state.id.clone())).collect()
}

fn take_down(state: &State, named: bool) -> Result<String> {
    let Some(owner) = state.owner.filter(|owner| owner.is_alive()) else {
        state.teardown()?;
        return Ok("taken down".into());
    };
    if !named {
        return Ok(format!("process {} is running it; `weir lab down {}` stops that", owner.pid, state.id));
    }
    // The owner takes its lab down by itself; only what it leaves is ours.
    signal(owner.pid, libc::SIGTERM);
    process::wait_for_end(owner);
    state.teardown()?;
    Ok(format!("process {} stopped, taken down", owner.pid))
}
