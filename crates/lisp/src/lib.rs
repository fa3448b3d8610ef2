//! LISP (RFC 9300, 9301, 9437, 8060): wire formats, map-cache, Map-Server, Map-Resolver and xTR state machines.
//!
//! Nothing here opens a socket, reads a clock or draws a random number: time and randomness are arguments.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod auth;
mod backoff;
pub mod machine;
pub mod map_cache;
pub mod map_server;
pub mod mapping;
pub mod nonce;
mod outputs;
pub mod prefix_map;
pub mod rate;
pub mod rtt;
mod saved;
mod timers;
pub mod wire;
pub mod xtr;
