//! Topologies in network namespaces, load, experiments and reports.
