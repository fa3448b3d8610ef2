//! Weights from offered load and capacity: the decision and its explanation.
//!
//! Everything here is a function of its arguments: no clock, no I/O, no state. The shell measures the
//! load offered at the gateway, in front of the split ([`Measurement`]), [`decide`] turns it into the
//! share of every edge by [`algorithm1()`], keeps what is in force when nothing speaks for a change, and
//! says why in words. Deciding from offered load and never from the load measured behind the split is
//! what keeps the loop free of feedback: the input does not depend on the weights.
//!
//! [`maglev`] is the choice behind the edge: which member of its site takes a flow.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod algorithm1;
mod decision;
pub mod maglev;
mod measurement;
mod wire;

pub use algorithm1::{Capacity, CapacityError, LoadError, OfferedLoad, algorithm1};
pub use decision::{
    ChangeReason, DeadBand, DeadBandError, Decision, Edge, EdgeExplanation, EdgeReason, Edges, EdgesError,
    HoldReason, Outcome, decide,
};
pub use measurement::{Measurement, MeasurementKind};
pub use wire::{WIRE_TOTAL, shares_of, wire_weights};
