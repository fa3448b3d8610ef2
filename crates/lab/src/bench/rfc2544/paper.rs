//! Table 2 of Lee et al., "High-Performance Software Load Balancer for Cloud-Native Architecture" (2021): 25-Gbit/s cards,
//! 16 processors, the tester on a machine of its own.

use super::frames::{Protocol, Size};

/// Millions of frames per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperRates {
    /// Cable from port to port.
    pub loopback: f64,
    /// Destination NAT by iptables.
    pub iptables: f64,
    /// 1 VIP, 255 servers.
    pub one_vip: f64,
    /// 128 VIPs, 4 000 servers.
    pub many_vips: f64,
}

const fn rates(loopback: f64, iptables: f64, one_vip: f64, many_vips: f64) -> PaperRates {
    PaperRates { loopback, iptables, one_vip, many_vips }
}

const UDP: [(u16, PaperRates); 7] = [
    (64, rates(35.41, 1.74, 28.10, 26.91)),
    (128, rates(20.21, 1.73, 19.73, 19.63)),
    (256, rates(11.06, 1.72, 11.02, 11.01)),
    (512, rates(5.82, 1.69, 5.80, 5.79)),
    (1024, rates(2.97, 1.65, 2.96, 2.97)),
    (1280, rates(2.39, 1.50, 2.39, 2.39)),
    (1510, rates(2.03, 1.26, 2.03, 2.03)),
];
const TCP: [(u16, PaperRates); 7] = [
    (64, rates(35.41, 1.69, 28.17, 26.96)),
    (128, rates(20.28, 1.57, 19.80, 19.64)),
    (256, rates(11.01, 1.78, 11.09, 11.00)),
    (512, rates(5.82, 1.60, 5.81, 5.78)),
    (1024, rates(2.98, 1.49, 2.96, 2.97)),
    (1280, rates(2.39, 1.19, 2.38, 2.40)),
    (1510, rates(2.04, 1.01, 2.03, 2.04)),
];
const IMIX: PaperRates = rates(23.51, 1.52, 23.21, 23.19);

/// The paper's row, if it has one.
#[must_use]
pub fn paper_rates(size: Size, protocol: Protocol) -> Option<PaperRates> {
    let Size::Octets(octets) = size else { return Some(IMIX) };
    let rows = if protocol == Protocol::Udp { UDP } else { TCP };
    rows.iter().find(|(size, _)| *size == octets).map(|(_, rates)| *rates)
}
