//! VIPs for tests.

use std::time::Duration;

use crate::balancer::desired::{Backend, HashBy, Segment, Vip, VipId};

/// A VIP with usable backends of these names and weights on its own segment.
pub(crate) fn vip(id: &str, backends: &[(&str, u32)]) -> Vip {
    let id: VipId = id.parse().unwrap();
    let on_segment = |(name, weight): &(&str, u32)| Backend { segment: id.segment, ..backend(name, *weight) };
    Vip {
        id,
        hash: HashBy::FiveTuple,
        flow_table: false,
        table_size: None,
        drain: Duration::from_secs(10),
        echo: true,
        backends: backends.iter().map(on_segment).collect(),
    }
}

/// A usable backend without a segment.
pub(crate) fn backend(name: &str, weight: u32) -> Backend {
    let last = name.bytes().fold(1_u8, |sum, octet| sum.wrapping_mul(31).wrapping_add(octet));
    let mac = [2, 0, 0, 0, 0, last];
    Backend { name: name.to_owned(), weight, usable: true, mac, segment: Segment::NONE, tunnel: None }
}
