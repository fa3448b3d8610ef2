//! Topologies in network namespaces, load, experiments and reports.

mod api;
pub mod bench;
pub mod calibrate;
pub mod cgroup;
pub mod cli;
pub mod delay_line;
pub mod down;
mod interrupt;
pub mod lab;
pub mod link;
pub mod load;
pub mod model_service;
pub mod netns;
pub mod network;
mod observe;
mod paper;
pub mod plot;
mod priority;
pub mod process;
mod progress;
pub mod report;
pub mod roles;
pub mod schedule;
pub mod service;
pub mod state;
pub mod stats;
pub mod topology;
