//! Topologies in network namespaces, load, experiments and reports.

pub mod cgroup;
pub mod cli;
pub mod delay_line;
pub mod link;
pub mod load;
pub mod netns;
pub mod process;
pub mod schedule;
pub mod state;
pub mod stats;
pub mod topology;
