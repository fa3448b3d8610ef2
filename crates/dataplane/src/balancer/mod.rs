//! The site balancer's data path: VIPs, their tables and backends, brought up, changed without a packet in between,
//! explained, taken down. `docs/balancer.md` tells what the program does with them.

mod bases;
mod check;
mod chunks;
mod desired;
mod error;
mod explain;
mod features;
mod hook;
mod identity;
mod mapped;
mod maps;
mod observed;
mod plan;
mod portless;
mod running;
#[cfg(test)]
mod samples;
mod self_test;
mod state;
mod table;

pub use check::check;
pub use desired::{
    Backend, BalancerConfig, HashBy, Protocol, Segment, SegmentError, SegmentKind, Tunnel, Vip, VipId,
    VipIdError, XdpHook,
};
pub use error::VipError;
pub use explain::{Explanation, FlowQuery, Remembered, SlotChoice, Verdict};
pub use features::FilteredVlans;
pub use hook::HookError;
pub use portless::{PacketKind, PacketKindError};
pub use running::{BackendCounters, Balancer, Followed, InPlace, VipCounters};
pub use state::Applied;
