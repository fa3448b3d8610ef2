//! xTRs and a Map-Server over a link that loses, duplicates and reorders, under a virtual clock.
#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on fails its test")]

mod convergence;
mod forgery;
mod lab;
mod regression;
mod timers;
mod world;
