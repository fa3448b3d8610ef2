//! What the programs need of a packet, whether it comes as a socket buffer (TC) or as a frame (XDP).

use core::mem::size_of;

use bpf_abi::{LocalEidValue, LocatorValue, Reason};

use crate::headers::Address;
use crate::verifier::opaque;

/// Octets of an untagged Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// IP version of a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// EtherType in network order.
    #[inline(always)]
    pub(crate) const fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        }
    }
}

/// A packet at one of the hooks. Every change of size invalidates pointers into it.
pub(crate) trait Packet {
    /// Leave the packet to the stack.
    const PASS: i32;
    /// Drop the packet.
    const DROP: i32;
    /// Where a packet goes next, looked up while it can still be passed on unchanged.
    type Route;

    /// Address of the first octet that can be read directly.
    fn start(&self) -> usize;
    /// Address behind the last one.
    fn end(&self) -> usize;
    /// Octets from the Ethernet header on, the ones that cannot be read directly included.
    fn length(&self) -> u32;
    /// Payload octets of each segment, 0 if this is one packet.
    fn gso_size(&self) -> u32;
    /// Interface it came in on.
    fn ifindex(&self) -> u32;
    /// Whether the link layer says it is for this node (no foreign unicast seen by a bridge or in promiscuous
    /// mode, no group address, no VLAN tag).
    fn is_for_us(&self) -> bool;
    /// Makes a packet out of the segmenting veth one for this node: its destination is the address of the underlay
    /// interface it came in on. False for all others.
    fn take_over(&self) -> bool;
    /// Makes the first `octets` (or the whole packet if it is shorter) directly readable.
    fn make_readable(&self, octets: u32);

    /// Way to a locator.
    fn route_to_locator(&self, locator: &LocatorValue) -> Result<Self::Route, Reason>;
    /// Way to a host behind this node; `None` leaves the decapsulated packet to the stack.
    fn route_to_host(&self, destination: &Address, eid: &LocalEidValue) -> Option<Self::Route>;
    /// Makes room for `octets` of outer headers behind the Ethernet header; tells what to count.
    fn grow(&self, octets: u32, outer: Family, inner: Family) -> Result<Reason, Reason>;
    /// Takes away `octets` behind the Ethernet header.
    fn shrink(&self, octets: u32, inner: Family) -> Result<(), Reason>;
    /// Sends the packet along the route; the return value is the program's.
    fn send(&self, route: &Self::Route) -> i32;
    /// Sends the packet out of an interface as it is.
    fn redirect(&self, ifindex: u32) -> i32;
}

/// Pointer to a `T` at `offset`, if the packet holds it whole.
#[inline(always)]
pub(crate) fn at<T>(packet: &impl Packet, offset: usize) -> Option<*mut T> {
    let pointer = packet.start() + offset;
    if pointer + size_of::<T>() > packet.end() {
        return None;
    }
    Some(pointer as *mut T)
}

/// [`at`] for an offset that is not a constant.
///
/// The compiler must not compute the checked and the used address in two ways: the verifier would take them for
/// different pointers.
#[inline(always)]
pub(crate) fn at_variable<T>(packet: &impl Packet, offset: usize) -> Option<*mut T> {
    let pointer = opaque(packet.start() + offset);
    if pointer + size_of::<T>() > packet.end() {
        return None;
    }
    Some(pointer as *mut T)
}
