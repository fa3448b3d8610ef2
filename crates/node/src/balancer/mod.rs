//! The site balancer.

mod core;
mod desired;
