//! Loads, attaches and pins weir's eBPF programs and reconciles their maps with a desired table.

pub mod buckets;
mod eid;
mod members;
pub mod table;

pub use eid::{Eid, mapped, unmapped};
