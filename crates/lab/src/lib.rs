//! Topologies in network namespaces, load, experiments and reports.

pub mod bench;
pub mod cgroup;
pub mod cli;
pub mod delay_line;
pub mod link;
pub mod load;
pub mod netns;
pub mod plot;
pub mod process;
pub mod report;
pub mod schedule;
pub mod state;
pub mod stats;
pub mod topology;
