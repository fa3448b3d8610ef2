//! `make bench`: what the parts cost, each figure beside its reference.

mod row;

pub use row::{Bench, Row};
