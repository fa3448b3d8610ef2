//! The balancer role: which servers of a site get what arrives for its VIPs.

pub mod health;
mod jitter;
pub mod neighbour;
