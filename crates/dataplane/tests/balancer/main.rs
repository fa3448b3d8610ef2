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

use anyhow::{Context, Result};
use aya::programs::Xdp;
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};

const PROTOCOLS: [u8; 3] = [model::TCP, model::UDP, model::SCTP];

/// Entries of the flow table.
const FLOWS: u32 = 1 << 12;

static BALANCER: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer.bpf.o"));

/// The program with maps of its own, small enough to be listed.
fn load() -> Result<Ebpf> {
    let btf = Btf::from_sys_fs().ok();
    let mut object = EbpfLoader::new()
        .btf(btf.as_ref())
        .map_max_entries("TABLES", 1 << 14)
        .map_max_entries("BALANCED_FLOWS", FLOWS)
        .load(BALANCER)?;
    let program: &mut Xdp = object.program_mut("weir_balancer").context("no program")?.try_into()?;
    program.load()?;
    Ok(object)
}
