//! Link-layer addresses of backends: [`Resolver`] decides whom to ask when, [`Neighbours`] asks.
//!
//! The balancer writes these addresses itself, also in VLANs that this machine has no device for, so the kernel's
//! table is no help, not even for untagged backends: it forgets what nobody uses.

mod asking;
mod resolver;

use std::fmt;
use std::net::IpAddr;

use codec::neighbour::Vlan;

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

/// The tags of a segment as [`bpf_abi::balancer::segment`] writes it; `None` for tunnels and VLAN ids that are not.
#[must_use]
pub fn vlan_of(segment: u32) -> Option<Vlan> {
    use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, KIND, NONE};
    use codec::neighbour::VlanId;
    let id = |shift: u32| u16::try_from(segment >> shift & 0xfff).ok().and_then(VlanId::new);
    match segment & KIND {
        NONE if segment == NONE => Some(Vlan::None),
        DOT1Q if segment >> 12 & 0xfff == 0 => id(0).map(Vlan::Dot1q),
        DOT1AD if segment & 0xfff == 0 => id(12).map(|service| Vlan::Dot1ad(service, None)),
        DOT1AD => id(12).zip(id(0)).map(|(service, customer)| Vlan::Dot1ad(service, Some(customer))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_without_a_tunnel_have_tags() {
        let text = |segment| {
            let vlan = vlan_of(segment)?;
            Some(Target { vlan, address: IpAddr::from([192, 0, 2, 1]) }.to_string())
        };
        assert_eq!(text(0).as_deref(), Some("192.0.2.1"));
        assert_eq!(text(1 << 24 | 100).as_deref(), Some("192.0.2.1@802.1q:100"));
        assert_eq!(text(2 << 24 | 200 << 12).as_deref(), Some("192.0.2.1@802.1ad:200"));
        assert_eq!(text(2 << 24 | 200 << 12 | 7).as_deref(), Some("192.0.2.1@802.1ad:200.7"));
        for segment in [1, 1 << 24, 1 << 24 | 4095, 1 << 24 | 1 << 12 | 1, 2 << 24 | 7, 3 << 24 | 1, 4 << 24]
        {
            assert_eq!(text(segment), None, "{segment:#x}");
        }
    }
}
