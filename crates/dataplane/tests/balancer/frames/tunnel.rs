//! VXLAN and Geneve.

use std::net::IpAddr;

use super::{Flow, Ip, Tag, ethernet, frame};

pub(crate) const VXLAN_PORT: u16 = 4789;
pub(crate) const GENEVE_PORT: u16 = 6081;

/// The node's tunnel endpoint.
pub(crate) fn vtep(v6: bool) -> IpAddr {
    if v6 { "2001:db8:e::1" } else { "10.9.0.1" }.parse().unwrap()
}

/// The endpoint at which the frames enter.
pub(crate) fn far_vtep(v6: bool) -> IpAddr {
    if v6 { "2001:db8:e::fe" } else { "10.9.0.254" }.parse().unwrap()
}

/// What is around an inner frame.
#[derive(Clone, Debug)]
pub(crate) struct Outer {
    pub(crate) ip: Ip,
    pub(crate) tags: Vec<Tag>,
    pub(crate) port: u16,
    pub(crate) header: [u8; 8],
    pub(crate) checksum: bool,
}

/// A VXLAN header (RFC 7348, section 5).
pub(crate) const fn vxlan(vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [8, 0, 0, 0, a, b, c, 0]
}

/// A Geneve header without options that carries Ethernet (RFC 8926, section 3.4).
pub(crate) const fn geneve(vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [0, 0, 0x65, 0x58, a, b, c, 0]
}

impl Outer {
    pub(crate) fn vxlan(v6: bool, vni: u32) -> Self {
        Self {
            ip: Ip::new(far_vtep(v6), vtep(v6)),
            tags: Vec::new(),
            port: VXLAN_PORT,
            header: vxlan(vni),
            checksum: false,
        }
    }

    pub(crate) fn geneve(v6: bool, vni: u32) -> Self {
        Self { port: GENEVE_PORT, header: geneve(vni), ..Self::vxlan(v6, vni) }
    }

    pub(crate) fn with_checksum(self) -> Self {
        Self { checksum: true, ..self }
    }

    /// The whole frame around an inner IP packet.
    pub(crate) fn packet(&self, packet: &[u8]) -> Vec<u8> {
        let inner = ethernet(INNER_DESTINATION, INNER_SOURCE, &[], frame_type(packet), packet);
        self.frame(&inner)
    }

    /// The whole frame around an inner frame.
    pub(crate) fn frame(&self, inner: &[u8]) -> Vec<u8> {
        let flow = Flow { ip: self.ip.clone(), source_port: 51_234, destination_port: self.port, payload: 0 };
        let mut datagram = flow.datagram(&[&self.header, inner].concat());
        if !self.checksum {
            let header = datagram.len() - inner.len() - 16;
            datagram[header + 6..header + 8].fill(0);
        }
        frame(&self.tags, &datagram)
    }
}

/// Inner addresses, which the program does not look at.
pub(crate) const INNER_DESTINATION: [u8; 6] = [2, 0, 0, 0, 9, 1];
pub(crate) const INNER_SOURCE: [u8; 6] = [2, 0, 0, 0, 9, 0xfe];

fn frame_type(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 }
}
