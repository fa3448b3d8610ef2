//! The site balancer.

mod api;
pub mod body;
mod core;
mod datapath;
mod desired;
mod metrics;
mod saved;
mod shared;
mod shell;
