//! Topologies in network namespaces, load, experiments and reports.
pub mod load;
pub mod schedule;
pub mod stats;
