//! Rule 2: which segment a frame is of, and where its packet lies.

use std::net::Ipv4Addr;

use bpf_abi::BalancerReason;
use bpf_abi::balancer::segment::{DOT1AD, DOT1Q, GENEVE, NONE, VXLAN};

use super::{State, UDP, be16};

/// Where the packet is that rules 3 to 8 speak of.
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) v6: bool,
    /// Offset of its network header.
    pub(super) network: usize,
    /// Offset that it must not reach beyond.
    pub(super) end: usize,
    /// VLAN tags in front of the frame's network header.
    pub(super) tags: usize,
    pub(super) tunnel: Option<Tunnel>,
}

/// Offsets of what is around an inner frame.
pub(super) struct Tunnel {
    pub(super) v6: bool,
    pub(super) network: usize,
    pub(super) udp: usize,
}

impl Tunnel {
    /// Offset of the VXLAN or Geneve header.
    pub(super) const fn header(&self) -> usize {
        self.udp + 8
    }

    /// Offset of the inner frame.
    pub(super) const fn inner(&self) -> usize {
        self.udp + 16
    }
}

const TAG_C: u16 = 0x8100;
const TAG_S: u16 = 0x88a8;

fn family(ethertype: u16) -> Result<bool, BalancerReason> {
    match ethertype {
        0x0800 => Ok(false),
        0x86dd => Ok(true),
        _ => Err(BalancerReason::PassNotIp),
    }
}

/// Segment, offset of the network header and number of tags.
fn tags(frame: &[u8]) -> Result<(u32, usize, usize), BalancerReason> {
    let vid = |at: usize| {
        let tag = frame.get(at + 2..at + 6).ok_or(BalancerReason::PassMalformed)?;
        Ok(u32::from(be16(tag, 0) & 0xfff))
    };
    let tag = |ethertype: u16| [TAG_C, TAG_S].contains(&ethertype);
    let (segment, ethertype, tags) = match be16(frame, 12) {
        TAG_C => match vid(12)? {
            0 => (NONE, 16, 1),
            vid => (DOT1Q | vid, 16, 1),
        },
        TAG_S => {
            let service = DOT1AD | vid(12)? << 12;
            if be16(frame, 16) == TAG_C { (service | vid(16)?, 20, 2) } else { (service, 16, 1) }
        }
        _ => (NONE, 12, 0),
    };
    if tags > 0 && tag(be16(frame, ethertype)) {
        return Err(BalancerReason::PassSegment);
    }
    Ok((segment, ethertype + 2, tags))
}

impl State {
    pub(super) fn place(&self, frame: &[u8]) -> Result<Place, BalancerReason> {
        let (segment, network, tags) = tags(frame)?;
        let v6 = family(be16(frame, network - 2))?;
        let plain = Place { segment, v6, network, end: frame.len(), tags, tunnel: None };
        if tags > 0 {
            return Ok(plain);
        }
        let outer = &frame[network..];
        let udp = if v6 { self.udp_v6(outer)? } else { self.udp_v4(outer)? };
        let Some((udp, length)) = udp else { return Ok(plain) };
        let port = be16(outer, udp + 2);
        if port != 4789 && port != 6081 {
            return Ok(plain);
        }
        let tunnel = Tunnel { v6, network, udp: network + udp };
        inner(&frame[..network + length], port == 6081, tunnel)
    }

    fn ends_here(&self, address: [u8; 16]) -> bool {
        self.node.vteps[..self.node.vtep_count as usize].contains(&address)
    }

    /// Offset of the UDP header and length of a packet to an endpoint of ours.
    fn udp_v4(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, BalancerReason> {
        if bytes.len() < 20 || bytes[0] != 0x45 || bytes[9] != UDP || be16(bytes, 6) & 0x3fff != 0 {
            return Ok(None);
        }
        let address = Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]).to_ipv6_mapped();
        let length = usize::from(be16(bytes, 2));
        self.datagram(address.octets(), 20, length, bytes.len())
    }

    fn udp_v6(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, BalancerReason> {
        if bytes.len() < 40 || bytes[0] >> 4 != 6 || bytes[6] != UDP {
            return Ok(None);
        }
        let address = bytes[24..40].try_into().unwrap();
        let length = usize::from(be16(bytes, 4)) + 40;
        self.datagram(address, 40, length, bytes.len())
    }

    /// Rule 3 holds for the outer packet too.
    fn datagram(
        &self,
        address: [u8; 16],
        header: usize,
        length: usize,
        room: usize,
    ) -> Result<Option<(usize, usize)>, BalancerReason> {
        if !self.ends_here(address) {
            return Ok(None);
        }
        if length < header + 8 || length > room {
            return Err(BalancerReason::PassMalformed);
        }
        Ok(Some((header, length)))
    }
}

/// `frame` ends where the outer packet does.
fn inner(frame: &[u8], geneve: bool, tunnel: Tunnel) -> Result<Place, BalancerReason> {
    let header = frame.get(tunnel.header()..tunnel.inner()).ok_or(BalancerReason::PassMalformed)?;
    let carries_ethernet = if geneve {
        header[0] == 0 && header[1] & 0x80 == 0 && be16(header, 2) == 0x6558
    } else {
        header[0] & 0x08 != 0
    };
    if !carries_ethernet {
        return Err(BalancerReason::PassSegment);
    }
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let network = tunnel.inner() + 14;
    let ethernet = frame.get(tunnel.inner()..network).ok_or(BalancerReason::PassMalformed)?;
    let ethertype = be16(ethernet, 12);
    if [TAG_C, TAG_S].contains(&ethertype) {
        return Err(BalancerReason::PassSegment);
    }
    Ok(Place {
        segment: if geneve { GENEVE | vni } else { VXLAN | vni },
        v6: family(ethertype)?,
        network,
        end: frame.len(),
        tags: 0,
        tunnel: Some(tunnel),
    })
}
