//! The site balancer's data path: VIPs, their tables and backends, brought up, changed without a packet in between,
//! explained, taken down. `docs/balancer.md` tells what the program does with them.

mod desired;
mod error;
mod running;

pub use desired::{
    Backend, BalancerConfig, HashBy, Protocol, Segment, SegmentError, SegmentKind, Tunnel, Vip, VipId,
    VipIdError, XdpHook,
};
pub use error::VipError;
pub use running::{
    Applied, BackendCounters, Balancer, Explanation, FlowQuery, InPlace, Remembered, SlotChoice, Verdict,
    VipCounters,
};
