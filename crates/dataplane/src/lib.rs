//! Loads, attaches and pins weir's eBPF programs and reconciles their maps with a desired table.

pub mod attach;
pub mod balancer;
mod before;
pub mod bpffs;
pub mod buckets;
pub mod counters;
pub mod dataplane;
pub mod devices;
mod eid;
mod error;
pub mod ethtool;
pub mod host;
pub mod maps;
mod members;
pub mod netlink;
pub mod netns;
pub mod object;
pub mod packet;
pub mod path;
mod survey;
pub mod sysctl;
pub mod table;
pub mod tap;
pub mod test_run;
mod vlans;

pub use attach::{Hook, Role};
pub use dataplane::{
    Dataplane, DataplaneConfig, Interface, LocalPrefix, OnStop, PlacedLocator, Traffic, TrafficOf,
};
pub use eid::{Eid, mapped, unmapped};
pub use error::DataplaneError;
pub use survey::{Survey, Surveyed};
