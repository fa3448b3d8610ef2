//! Link-layer addresses of backends: [`Resolver`] decides whom to ask when, [`Neighbours`] asks.
//!
//! The balancer writes these addresses itself, also in VLANs that this machine has no device for, so the kernel's
//! table is no help, not even for untagged backends: it forgets what nobody uses.

mod asking;
mod resolver;

use std::fmt;
use std::net::IpAddr;

use codec::neighbour::{Vlan, VlanId};
use dataplane::balancer::{Segment, SegmentKind};

pub use asking::{Asker, Neighbours};
pub use resolver::{Change, Counters, Neighbour, Output, Resolver, Sender, State};

/// An address in a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where.
    pub vlan: Vlan,
    /// Who.
    pub address: IpAddr,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        match self.vlan {
            Vlan::None => Ok(()),
            Vlan::Dot1q(id) => write!(f, "@802.1q:{}", id.get()),
            Vlan::Dot1ad(service, None) => write!(f, "@802.1ad:{}", service.get()),
            Vlan::Dot1ad(service, Some(customer)) => {
                write!(f, "@802.1ad:{}.{}", service.get(), customer.get())
            }
        }
    }
}

/// The tags of a segment; `None` for tunnels.
#[must_use]
pub fn vlan_of(segment: Segment) -> Option<Vlan> {
    let id = |id: u32| u16::try_from(id).ok().and_then(VlanId::new);
    let value = segment.id();
    match segment.kind() {
        SegmentKind::None => Some(Vlan::None),
        SegmentKind::Dot1q => id(value).map(Vlan::Dot1q),
        SegmentKind::Dot1ad => id(value).map(|service| Vlan::Dot1ad(service, None)),
        SegmentKind::DoubleTagged => id(value >> 12)
            .zip(id(value & 0xfff))
            .map(|(service, customer)| Vlan::Dot1ad(service, Some(customer))),
        SegmentKind::Vxlan | SegmentKind::Geneve => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_without_a_tunnel_have_tags() {
        let text = |segment: &str| {
            let vlan = vlan_of(segment.parse().unwrap())?;
            Some(Target { vlan, address: IpAddr::from([192, 0, 2, 1]) }.to_string())
        };
        assert_eq!(text("none").as_deref(), Some("192.0.2.1"));
        for segment in ["802.1q:100", "802.1ad:200", "802.1ad:200.7"] {
            assert_eq!(text(segment), Some(format!("192.0.2.1@{segment}")));
        }
        assert_eq!((text("vxlan:1"), text("geneve:1")), (None, None));
    }
}
