//! Loads, attaches and pins weir's eBPF programs and reconciles their maps with a desired table.

pub mod buckets;
mod eid;
mod members;
pub mod object;
pub mod table;
pub mod test_run;

pub use eid::{Eid, mapped, unmapped};
