//! Rule 2: what is in front of the network header, and which segment that makes.

use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{BalancerNodeValue, VTEPS, segment};

use crate::frame::Frame;
use crate::headers::{Address, Ethernet, Ipv4, Ipv6, UDP, mapped, read_words, words};

/// Ethernet II without tags.
pub(crate) const ETHERNET: usize = 14;
pub(crate) const TAG: usize = 4;
/// UDP, VXLAN or Geneve without options, and the inner Ethernet header.
const TUNNEL: usize = 8 + 8 + ETHERNET;

pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
pub(crate) const DOT1Q: [u8; 2] = [0x81, 0x00];
const DOT1AD: [u8; 2] = [0x88, 0xa8];
pub(crate) const VXLAN_PORT: [u8; 2] = 4789u16.to_be_bytes();
pub(crate) const GENEVE_PORT: [u8; 2] = 6081u16.to_be_bytes();

/// IP version.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What stands in front of the network header.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Untagged,
    Tagged,
    DoubleTagged,
    /// The outer header is IPv4 without options.
    TunnelV4,
    TunnelV6,
}

/// Where the network header is and which segment the frame belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Layers {
    pub(crate) link: Link,
    pub(crate) family: Family,
    pub(crate) segment: u32,
    /// Octets up to the end of the frame, or of the outer packet that holds it.
    pub(crate) end: u32,
}

impl Layers {
    /// The same, but the verifier has forgotten how it came to be: [`crate::packet::Packet::forgotten`].
    #[inline(always)]
    pub(crate) const fn forgotten(self, zero: u32) -> Self {
        let link = match self.link as u32 ^ zero {
            0 => Link::Untagged,
            1 => Link::Tagged,
            2 => Link::DoubleTagged,
            3 => Link::TunnelV4,
            _ => Link::TunnelV6,
        };
        let family = if self.family as u32 ^ zero == 0 { Family::V4 } else { Family::V6 };
        Self { link, family, segment: self.segment ^ zero, end: self.end }
    }
}

impl Link {
    /// Octets in front of the network header.
    #[inline(always)]
    pub(crate) const fn octets(self) -> usize {
        match self {
            Self::Untagged => ETHERNET,
            Self::Tagged => ETHERNET + TAG,
            Self::DoubleTagged => ETHERNET + 2 * TAG,
            Self::TunnelV4 => ETHERNET + 20 + TUNNEL,
            Self::TunnelV6 => ETHERNET + 40 + TUNNEL,
        }
    }

    #[inline(always)]
    pub(crate) const fn is_tunnel(self) -> bool {
        matches!(self, Self::TunnelV4 | Self::TunnelV6)
    }
}

/// A tag and the EtherType behind it.
#[repr(C, packed)]
struct Tag {
    tci: [u8; 2],
    ethertype: [u8; 2],
}

/// UDP and the tunnel's header.
#[repr(C, packed)]
pub(crate) struct Tunnel {
    pub(crate) ports: [[u8; 2]; 2],
    pub(crate) length: [u8; 2],
    pub(crate) checksum: u16,
    /// VXLAN: flags. Geneve: version and length of options, O and C bits.
    first: [u8; 2],
    /// Geneve: the EtherType of what it carries.
    protocol: [u8; 2],
    /// VNI and a reserved octet.
    pub(crate) vni: [u8; 4],
}
const _: () = assert!(size_of::<Tunnel>() + ETHERNET == TUNNEL);

/// Reads tags and tunnel headers.
#[inline(always)]
pub(crate) fn layers(frame: &Frame, node: &BalancerNodeValue) -> Result<Layers, Reason> {
    let ethernet: *mut Ethernet = frame.at(0).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    match unsafe { (*ethernet).ethertype } {
        IPV4 => untagged_v4(frame, node),
        IPV6 => untagged_v6(frame, node),
        DOT1Q => dot1q(frame),
        DOT1AD => dot1ad(frame),
        _ => Err(Reason::PassNotIp),
    }
}

#[inline(always)]
fn dot1q(frame: &Frame) -> Result<Layers, Reason> {
    let tag = tag(frame, ETHERNET)?;
    let vid = vid(tag);
    // Priority-tagged frames belong to no VLAN (802.1Q-2022 §6.9.1).
    let segment = if vid == 0 { segment::NONE } else { segment::DOT1Q | vid };
    Ok(Layers { link: Link::Tagged, family: family(tag.ethertype)?, segment, end: frame.length() })
}

#[inline(always)]
fn dot1ad(frame: &Frame) -> Result<Layers, Reason> {
    let outer = tag(frame, ETHERNET)?;
    let segment = segment::DOT1AD | vid(outer) << 12;
    if outer.ethertype != DOT1Q {
        let family = family(outer.ethertype)?;
        return Ok(Layers { link: Link::Tagged, family, segment, end: frame.length() });
    }
    let inner = tag(frame, ETHERNET + TAG)?;
    let (family, segment) = (family(inner.ethertype)?, segment | vid(inner));
    Ok(Layers { link: Link::DoubleTagged, family, segment, end: frame.length() })
}

#[inline(always)]
fn tag<'a>(frame: &Frame, offset: usize) -> Result<&'a Tag, Reason> {
    let tag: *mut Tag = frame.at(offset).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the tag is in the frame.
    Ok(unsafe { &*tag })
}

#[inline(always)]
fn vid(tag: &Tag) -> u32 {
    u32::from(u16::from_be_bytes(tag.tci) & 0x0fff)
}

/// Of what follows a tag, or is inside a tunnel.
#[inline(always)]
fn family(ethertype: [u8; 2]) -> Result<Family, Reason> {
    match ethertype {
        IPV4 => Ok(Family::V4),
        IPV6 => Ok(Family::V6),
        DOT1Q | DOT1AD => Err(Reason::PassSegment),
        _ => Err(Reason::PassNotIp),
    }
}

#[inline(always)]
fn untagged(frame: &Frame, family: Family) -> Layers {
    Layers { link: Link::Untagged, family, segment: segment::NONE, end: frame.length() }
}

#[inline(always)]
fn untagged_v4(frame: &Frame, node: &BalancerNodeValue) -> Result<Layers, Reason> {
    let plain = untagged(frame, Family::V4);
    if node.vtep_count == 0 {
        return Ok(plain);
    }
    let ip: *mut Ipv4 = frame.at(ETHERNET).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    let [high, low] = ip.fragment;
    let is_whole_udp = ip.version_ihl == 0x45 && ip.protocol == UDP && (high & 0x3f) | low == 0;
    if !is_whole_udp || !is_own_vtep(node, &mapped(ip.destination)) {
        return Ok(plain);
    }
    let end = ETHERNET as u32 + u32::from(u16::from_be_bytes(ip.length));
    tunnel(frame, Link::TunnelV4, end, plain)
}

#[inline(always)]
fn untagged_v6(frame: &Frame, node: &BalancerNodeValue) -> Result<Layers, Reason> {
    let plain = untagged(frame, Family::V6);
    if node.vtep_count == 0 {
        return Ok(plain);
    }
    let ip: *mut Ipv6 = frame.at(ETHERNET).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &*ip };
    // SAFETY: likewise.
    let destination = unsafe { read_words(&raw const ip.destination) };
    if ip.version_class_label[0] >> 4 != 6 || ip.next_header != UDP || !is_own_vtep(node, &destination) {
        return Ok(plain);
    }
    let end = (ETHERNET + 40) as u32 + u32::from(u16::from_be_bytes(ip.length));
    tunnel(frame, Link::TunnelV6, end, plain)
}

/// The segment inside, if the ports are a tunnel's. The outer packet ends at `end`.
#[inline(always)]
fn tunnel(frame: &Frame, link: Link, end: u32, plain: Layers) -> Result<Layers, Reason> {
    let at_udp = link.octets() - TUNNEL;
    let ports: *mut [[u8; 2]; 2] = frame.at(at_udp).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the ports are in the frame.
    let [_, port] = unsafe { *ports };
    if port != VXLAN_PORT && port != GENEVE_PORT {
        return Ok(plain);
    }
    let header: *mut Tunnel = frame.at(at_udp).ok_or(Reason::PassMalformed)?;
    if end > plain.end || end < (at_udp + size_of::<Tunnel>()) as u32 {
        return Err(Reason::PassMalformed);
    }
    // SAFETY: `at` checked that the headers are in the frame.
    let kind = kind(unsafe { &*header }, port)?;
    let inner: *mut Ethernet = frame.at(link.octets() - ETHERNET).ok_or(Reason::PassMalformed)?;
    if end < link.octets() as u32 {
        return Err(Reason::PassMalformed);
    }
    // SAFETY: `at` checked that both are in the frame.
    let (vni, ethertype) = unsafe { (u32::from_be_bytes((*header).vni) >> 8, (*inner).ethertype) };
    Ok(Layers { link, family: family(ethertype)?, segment: kind | vni, end })
}

/// The kind of segment that a tunnel's header makes.
#[inline(always)]
fn kind(header: &Tunnel, port: [u8; 2]) -> Result<u32, Reason> {
    const VXLAN_VNI_VALID: u8 = 0x08;
    const GENEVE_CONTROL: u8 = 0x80;
    const ETHERNET_BRIDGING: [u8; 2] = [0x65, 0x58];
    let [first, second] = header.first;
    let (is_understood, kind) = if port == VXLAN_PORT {
        (first & VXLAN_VNI_VALID != 0, segment::VXLAN)
    } else {
        // Version and length of options are the first octet.
        let is_plain = first == 0 && second & GENEVE_CONTROL == 0;
        (is_plain && header.protocol == ETHERNET_BRIDGING, segment::GENEVE)
    };
    if is_understood { Ok(kind) } else { Err(Reason::PassSegment) }
}

#[inline(always)]
fn is_own_vtep(node: &BalancerNodeValue, destination: &Address) -> bool {
    for (index, vtep) in node.vteps.iter().enumerate() {
        if index as u32 >= node.vtep_count {
            return false;
        }
        if words(vtep) == *destination {
            return true;
        }
    }
    const { assert!(VTEPS <= 4, "the loop is unrolled") };
    false
}
