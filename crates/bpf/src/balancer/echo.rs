//! Rule 6: an echo request to a VIP becomes its answer.

use bpf_abi::BalancerReason as Reason;

use crate::frame::Frame;
use crate::headers::{Ethernet, Ipv4, Ipv6, checksum_after};
use crate::segment::{Family, Layers, Link};

/// TTL and hop limit of an answer (RFC 1700, IANA's recommended default).
const TTL: u8 = 64;

/// Turns the frame round. Nothing but addresses, type and TTL changes, so both checksums follow by RFC 1624.
#[inline(always)]
pub(crate) fn answer(frame: &Frame, layers: &Layers) -> Result<Reason, Reason> {
    match (layers.link, layers.family) {
        (Link::Untagged, Family::V4) => v4(frame, Link::Untagged)?,
        (Link::Untagged, Family::V6) => v6(frame, Link::Untagged)?,
        (Link::Tagged, Family::V4) => v4(frame, Link::Tagged)?,
        (Link::Tagged, Family::V6) => v6(frame, Link::Tagged)?,
        (Link::DoubleTagged, Family::V4) => v4(frame, Link::DoubleTagged)?,
        (Link::DoubleTagged, Family::V6) => v6(frame, Link::DoubleTagged)?,
        _ => return Err(Reason::PassIcmp),
    }
    let ethernet: *mut Ethernet = frame.at(0).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ethernet = unsafe { &mut *ethernet };
    (ethernet.destination, ethernet.source) = (ethernet.source, ethernet.destination);
    Ok(Reason::EchoAnswered)
}

#[inline(always)]
fn v4(frame: &Frame, link: Link) -> Result<(), Reason> {
    const ECHO_REPLY: u8 = 0;
    let ip: *mut Ipv4 = frame.at(link.octets()).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &mut *ip };
    let header = usize::from(ip.version_ihl & 0x0f) << 2;
    set_type(frame, link.octets() + header, ECHO_REPLY)?;
    (ip.source, ip.destination) = (ip.destination, ip.source);
    let (old, new) = (u16::from_ne_bytes([ip.ttl, ip.protocol]), u16::from_ne_bytes([TTL, ip.protocol]));
    ip.checksum = checksum_after(ip.checksum, old, new);
    ip.ttl = TTL;
    Ok(())
}

#[inline(always)]
fn v6(frame: &Frame, link: Link) -> Result<(), Reason> {
    const ECHO_REPLY: u8 = 129;
    let ip: *mut Ipv6 = frame.at(link.octets()).ok_or(Reason::PassMalformed)?;
    set_type(frame, link.octets() + 40, ECHO_REPLY)?;
    // SAFETY: `at` checked that the header is in the frame.
    let ip = unsafe { &mut *ip };
    (ip.source, ip.destination) = (ip.destination, ip.source);
    ip.hop_limit = TTL;
    Ok(())
}

#[inline(always)]
fn set_type(frame: &Frame, offset: usize, new: u8) -> Result<(), Reason> {
    /// Type, code and checksum of ICMP and ICMPv6.
    #[repr(C, packed)]
    struct Icmp {
        kind: u8,
        code: u8,
        checksum: u16,
    }
    let icmp: *mut Icmp = frame.at_variable(offset).ok_or(Reason::PassMalformed)?;
    // SAFETY: `at_variable` checked that these octets are in the frame.
    let icmp = unsafe { &mut *icmp };
    let (old_word, new_word) =
        (u16::from_ne_bytes([icmp.kind, icmp.code]), u16::from_ne_bytes([new, icmp.code]));
    let checksum = checksum_after(icmp.checksum, old_word, new_word);
    // An answer of zeros alone has the checksum 0xffff, which the equation takes for 0; both mean the same in all others.
    icmp.checksum = if checksum == 0 { 0xffff } else { checksum };
    icmp.kind = new;
    Ok(())
}
