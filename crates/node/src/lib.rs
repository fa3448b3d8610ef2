//! The shell of every role: sockets, timers, store, HTTP API, metrics.

pub mod config;
