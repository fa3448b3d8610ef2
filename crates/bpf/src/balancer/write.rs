//! Rule 9: what is written into a frame that goes to a backend.

use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{BackendValue, BalancerNodeValue, TunnelValue, segment};

use crate::frame::Frame;
use crate::headers::{
    Address, Ethernet, Ipv4, Ipv6, checksum_after, read_words, unmapped, words, write_words,
};
use crate::maps::TUNNELS;
use crate::segment::{ETHERNET, Layers, Link, Tunnel};

/// Writes addresses and tags.
#[inline(always)]
pub(crate) fn send(
    frame: &Frame,
    layers: &Layers,
    node: &BalancerNodeValue,
    index: u32,
    backend: &BackendValue,
) -> Result<(), Reason> {
    match layers.link {
        Link::Untagged => set_macs(frame, backend.mac, node.mac),
        Link::Tagged => {
            let is_dot1ad = layers.segment & segment::KIND == segment::DOT1AD;
            set_vid(frame, ETHERNET, if is_dot1ad { backend.segment >> 12 } else { backend.segment })?;
            set_macs(frame, backend.mac, node.mac)
        }
        Link::DoubleTagged => {
            set_vid(frame, ETHERNET, backend.segment >> 12)?;
            set_vid(frame, ETHERNET + 4, backend.segment)?;
            set_macs(frame, backend.mac, node.mac)
        }
        Link::TunnelV4 => tunnel_v4(frame, node, index, backend),
        Link::TunnelV6 => tunnel_v6(frame, node, index, backend),
    }
}

#[inline(always)]
fn set_macs(frame: &Frame, destination: [u8; 6], source: [u8; 6]) -> Result<(), Reason> {
    let ethernet: *mut Ethernet = frame.at(0).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    unsafe {
        (*ethernet).destination = destination;
        (*ethernet).source = source;
    }
    Ok(())
}

/// The low 12 bits of `vid`, beside the priority and DEI bits that are there.
#[inline(always)]
fn set_vid(frame: &Frame, offset: usize, vid: u32) -> Result<(), Reason> {
    let tci: *mut [u8; 2] = frame.at(offset).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the tag is in the frame.
    unsafe {
        let kept = u16::from_be_bytes(*tci) & 0xf000;
        *tci = (kept | vid as u16 & 0x0fff).to_be_bytes();
    }
    Ok(())
}

#[inline(always)]
fn tunnel_v4(
    frame: &Frame,
    node: &BalancerNodeValue,
    index: u32,
    backend: &BackendValue,
) -> Result<(), Reason> {
    let end = TUNNELS.get(index).ok_or(Reason::DropNotReady)?;
    let destination = unmapped(&words(&end.vtep)).ok_or(Reason::DropNotReady)?;
    let ip: *mut Ipv4 = frame.at(ETHERNET).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &mut *ip };
    if ip.ttl <= 1 {
        return Err(Reason::DropTtl);
    }
    let changed = Changed::default().word(ip.source, ip.destination).word(ip.destination, destination);
    (ip.source, ip.destination) = (ip.destination, destination);
    let (old, new) =
        (u16::from_ne_bytes([ip.ttl, ip.protocol]), u16::from_ne_bytes([ip.ttl - 1, ip.protocol]));
    ip.checksum = checksum_after(changed.apply(ip.checksum), old, new);
    ip.ttl -= 1;
    inner(frame, Link::TunnelV4, changed, backend)?;
    inner_source(frame, Link::TunnelV4, node)?;
    set_macs(frame, end.mac, node.mac)
}

#[inline(always)]
fn tunnel_v6(
    frame: &Frame,
    node: &BalancerNodeValue,
    index: u32,
    backend: &BackendValue,
) -> Result<(), Reason> {
    let end: &TunnelValue = TUNNELS.get(index).ok_or(Reason::DropNotReady)?;
    let destination = words(&end.vtep);
    if unmapped(&destination).is_some() {
        return Err(Reason::DropNotReady);
    }
    let ip: *mut Ipv6 = frame.at(ETHERNET).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &mut *ip };
    if ip.hop_limit <= 1 {
        return Err(Reason::DropTtl);
    }
    // SAFETY: likewise.
    let (source, own) = unsafe { (read_words(&raw const ip.source), read_words(&raw const ip.destination)) };
    let changed = Changed::default().address(source, own).address(own, destination);
    // SAFETY: likewise.
    unsafe {
        write_words(&raw mut ip.source, own);
        write_words(&raw mut ip.destination, destination);
    }
    ip.hop_limit -= 1;
    inner(frame, Link::TunnelV6, changed, backend)?;
    inner_source(frame, Link::TunnelV6, node)?;
    set_macs(frame, end.mac, node.mac)
}

/// Writes inner destination and VNI, and the UDP checksum over all that has changed.
#[inline(always)]
fn inner(frame: &Frame, link: Link, changed: Changed, backend: &BackendValue) -> Result<(), Reason> {
    let at_ethernet = link.octets() - ETHERNET;
    let header: *mut Tunnel = frame.at(at_ethernet - size_of::<Tunnel>()).ok_or(Reason::PassMalformed)?;
    let ethernet: *mut Ethernet = frame.at(at_ethernet).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the headers are in the frame; they do not overlap.
    let (header, ethernet) = unsafe { (&mut *header, &mut *ethernet) };
    let [_, _, _, reserved] = header.vni;
    let [_, v0, v1, v2] = backend.segment.to_be_bytes();
    let vni = [v0, v1, v2, reserved];
    let changed = changed
        .word(u32::from_ne_bytes(header.vni), u32::from_ne_bytes(vni))
        .mac(ethernet.destination, backend.mac);
    header.vni = vni;
    ethernet.destination = backend.mac;
    header.adjust(changed);
    Ok(())
}

/// The far end learns the inner source behind this node's endpoint: the router's there would draw the answers to this
/// node. For itself, because all at once is more than the stack of a program holds.
#[inline(always)]
fn inner_source(frame: &Frame, link: Link, node: &BalancerNodeValue) -> Result<(), Reason> {
    let at_ethernet = link.octets() - ETHERNET;
    let header: *mut Tunnel = frame.at(at_ethernet - size_of::<Tunnel>()).ok_or(Reason::PassMalformed)?;
    let ethernet: *mut Ethernet = frame.at(at_ethernet).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the headers are in the frame; they do not overlap.
    let (header, ethernet) = unsafe { (&mut *header, &mut *ethernet) };
    header.adjust(Changed::default().mac(ethernet.source, node.mac));
    ethernet.source = node.mac;
    Ok(())
}

impl Tunnel {
    /// The UDP checksum after a change. 0 says that there is none, and stays; a computed 0 is sent as all ones (RFC 768).
    #[inline(always)]
    fn adjust(&mut self, changed: Changed) {
        if self.checksum != 0 {
            let checksum = changed.apply(self.checksum);
            self.checksum = if checksum == 0 { 0xffff } else { checksum };
        }
    }
}

/// Ones' complement sum of what a change does to a checksum (RFC 1624 eqn. 3), in the byte order of memory.
#[derive(Clone, Copy, Default)]
struct Changed(u64);

impl Changed {
    /// 32-bit words add up to the same as their halves: 2^16 is 1 modulo 0xffff.
    #[inline(always)]
    const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    #[inline(always)]
    const fn address(self, old: Address, new: Address) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (old, new);
        self.word(a, e).word(b, f).word(c, g).word(d, h)
    }

    /// At an even offset behind the UDP header.
    #[inline(always)]
    const fn mac(self, old: [u8; 6], new: [u8; 6]) -> Self {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (old, new);
        let word = self.word(u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([g, h, i, j]));
        Self(word.0 + !u16::from_ne_bytes([e, f]) as u64 + u16::from_ne_bytes([k, l]) as u64)
    }

    #[inline(always)]
    const fn apply(self, checksum: u16) -> u16 {
        let sum = self.0 + !checksum as u64;
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(((sum & 0xffff) + (sum >> 16)) as u16)
    }
}
