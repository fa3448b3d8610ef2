//! The site balancer's program through BPF_PROG_TEST_RUN, beside a model of `docs/balancer.md`. Needs root.
#![expect(clippy::cast_possible_truncation, reason = "octets and sizes of small frames")]
#![expect(
    clippy::unwrap_used,
    reason = "frames are built from constants, and slices have the length that is asked for"
)]

mod distribution;
mod frames;
mod kernel;
mod model;
mod pitfalls;
mod random;
mod site;
mod swaps;
mod table;

use anyhow::Result;
use aya::{Ebpf, include_bytes_aligned};
use dataplane::object::{self, BalancerMapOptions};

const PROTOCOLS: [u8; 3] = [model::TCP, model::UDP, model::SCTP];
/// Entries of the flow table.
const FLOWS: u32 = 1 << 12;

static BALANCER: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer.bpf.o"));

/// The program, with maps small enough to be listed.
fn load(options: BalancerMapOptions<'_>) -> Result<Ebpf> {
    let mut object =
        object::load_balancer(BalancerMapOptions { flows: Some(FLOWS), chunks: Some(1 << 14), ..options })?;
    object::load_program(&mut object, object::BALANCER)?;
    Ok(object)
}
