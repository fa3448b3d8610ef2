//! Every verdict of the programs through BPF_PROG_TEST_RUN, beside an independent model. Needs root.
#![expect(clippy::cast_possible_truncation, reason = "octets and sizes of small frames")]
#![expect(
    clippy::unwrap_used,
    reason = "frames are built from constants, and slices have the length that is asked for"
)]

mod cases;
mod flows;
#[path = "../frames/mod.rs"]
mod frames;
#[path = "../kernel/mod.rs"]
mod kernel;
#[path = "../model/mod.rs"]
mod model;
mod next_hop;
mod octets;
mod setup;
mod shares;
mod tables;
