//! The shell of every role: sockets, timers, store, HTTP API, metrics.
//!
//! [`run()`] starts what the configuration names. A role is one function,
//! `async fn start(config: config::Section, setup: &mut role::Setup<'_>) -> Result<role::Running, role::RoleError>`;
//! it knows neither the other roles nor the process around it.

pub mod address;
pub mod balancer;
pub mod clock;
pub mod config;
pub mod controller;
pub mod gateway;
pub mod http;
pub mod mapserver;
pub mod metrics;
mod priority;
pub mod role;
mod run;
pub mod signal;
pub mod store;

pub use run::{RunError, run, runtime};
