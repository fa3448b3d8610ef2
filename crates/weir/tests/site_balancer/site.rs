//! What a site is like: its service, segments and servers, and the addresses that follow from them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::balancer::{Segment, SegmentKind};

/// Addresses of the client.
pub(crate) const CLIENTS: usize = 16;
/// Networks of segments come first; these follow.
const CLIENT_NETWORK: u8 = 4;
const UNDERLAY: u8 = 5;
const FAR_UNDERLAY: u8 = 6;
const ROUTER: u8 = 254;
const BALANCER: u8 = 5;

/// Which Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn address(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, network, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    const fn prefix_length(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// With the length of its network's prefix.
    pub(crate) fn on_link(self, address: IpAddr) -> String {
        format!("{address}/{}", self.prefix_length())
    }

    /// One address as a prefix.
    pub(crate) const fn whole(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A server of the service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    /// Its name, also that of its namespace.
    pub(crate) name: &'static str,
    /// Where it is.
    pub(crate) segment: &'static str,
    /// Last part of its addresses.
    pub(crate) host: u8,
    /// Behind the underlay's router; of no meaning without tunnels.
    pub(crate) is_far: bool,
}

/// A site with one service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Part of every name on the machine: sites of one process must not share it.
    pub(crate) name: &'static str,
    /// Of the service.
    pub(crate) family: Family,
    /// Of the tunnels.
    pub(crate) underlay: Family,
    /// Segment in which clients' frames arrive.
    pub(crate) front: &'static str,
    /// Who serves.
    pub(crate) servers: &'static [Server],
    /// Longest packets of clients and servers. Beyond a page the balancer takes frames in the stack.
    pub(crate) mtu: u32,
}

impl Site {
    /// The service's address.
    pub(crate) fn vip(&self) -> IpAddr {
        self.family.address(9, 9)
    }

    /// One of the client's addresses.
    pub(crate) fn client(&self, index: usize) -> IpAddr {
        self.family.address(CLIENT_NETWORK, 1 + u8::try_from(index % CLIENTS).unwrap())
    }

    /// The router's, towards the client.
    pub(crate) fn client_router(&self) -> IpAddr {
        self.family.address(CLIENT_NETWORK, ROUTER)
    }

    /// Distinct segments, the front first.
    pub(crate) fn segments(&self) -> Vec<&'static str> {
        let mut segments = vec![self.front];
        for server in self.servers {
            if !segments.contains(&server.segment) {
                segments.push(server.segment);
            }
        }
        segments
    }

    /// The router's address in a segment.
    pub(crate) fn router(&self, segment: &str) -> IpAddr {
        self.family.address(self.network(segment), ROUTER)
    }

    /// What stands for the balancer in the front segment, where it has no address.
    pub(crate) fn stand_in(&self) -> IpAddr {
        self.family.address(self.network(self.front), BALANCER)
    }

    /// A server's own address in its segment.
    pub(crate) fn server(&self, server: &Server) -> IpAddr {
        self.family.address(self.network(server.segment), server.host)
    }

    /// Whether frames are longer than drivers give to a program.
    pub(crate) fn is_jumbo(&self) -> bool {
        self.mtu > 3498
    }

    /// Whether segments are in tunnels.
    pub(crate) fn has_tunnels(&self) -> bool {
        segment(self.front).kind().is_tunnel()
    }

    /// Where a server's tunnel ends.
    pub(crate) fn server_vtep(&self, server: &Server) -> IpAddr {
        self.underlay.address(if server.is_far { FAR_UNDERLAY } else { UNDERLAY }, server.host)
    }

    /// Where the router's tunnels end.
    pub(crate) fn router_vtep(&self) -> IpAddr {
        self.underlay.address(UNDERLAY, ROUTER)
    }

    /// Where tunnels to the balancer end.
    pub(crate) fn balancer_vtep(&self) -> IpAddr {
        self.underlay.address(UNDERLAY, BALANCER)
    }

    /// The underlay's router, near and far.
    pub(crate) fn underlay_router(&self) -> [IpAddr; 2] {
        [self.underlay.address(UNDERLAY, ROUTER - 1), self.underlay.address(FAR_UNDERLAY, ROUTER)]
    }

    /// The underlay that balancer and router are in.
    pub(crate) fn near_underlay(&self) -> String {
        self.underlay.on_link(self.underlay.address(UNDERLAY, 0))
    }

    /// The underlay behind its router.
    pub(crate) fn far_underlay(&self) -> String {
        self.underlay.on_link(self.underlay.address(FAR_UNDERLAY, 0))
    }

    fn network(&self, segment: &str) -> u8 {
        let index = self.segments().iter().position(|other| *other == segment).unwrap();
        1 + u8::try_from(index).unwrap()
    }
}

/// A segment from its text.
pub(crate) fn segment(text: &str) -> Segment {
    text.parse().unwrap()
}

/// A tag of a frame: protocol and VLAN id.
pub(crate) type Tag = (u16, u16);
/// Protocol of an 802.1Q tag.
pub(crate) const C_TAG: u16 = 0x8100;
/// Protocol of an 802.1ad tag.
pub(crate) const S_TAG: u16 = 0x88a8;

/// The tags of a segment from the outside in.
pub(crate) fn tags(text: &str) -> Vec<Tag> {
    let segment = segment(text);
    let part = |shift: u32| u16::try_from(segment.id() >> shift & 0xfff).unwrap();
    match segment.kind() {
        SegmentKind::Dot1q => vec![(C_TAG, part(0))],
        SegmentKind::Dot1ad => vec![(S_TAG, part(0))],
        SegmentKind::DoubleTagged => vec![(S_TAG, part(12)), (C_TAG, part(0))],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_their_tags() {
        assert_eq!(tags("802.1q:100"), [(C_TAG, 100)]);
        assert_eq!(tags("802.1ad:100"), [(S_TAG, 100)]);
        assert_eq!(tags("802.1ad:100.7"), [(S_TAG, 100), (C_TAG, 7)]);
        assert_eq!(tags("vxlan:100"), []);
    }
}
