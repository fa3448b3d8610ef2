//! Packets as frames: XDP, for physical network cards with native support. No GSO, and the program writes the
//! link-layer addresses itself.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head},
    macros::btf_map,
};
use bpf_abi::{LOCATOR_MAC_RESOLVED, LocalEidValue, LocatorValue, Reason};

use crate::clock::{ticks, ticks_per_second};
use crate::etr::next_hop;
use crate::headers::{Address, Ethernet, words, write_words};
use crate::packet::{Family, Packet, at};
use crate::routes::{self, Macs};

/// The context of an XDP program.
pub(crate) struct Frame(pub(crate) *mut xdp_md);

/// Interface and link-layer addresses.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LinkRoute {
    ifindex: u32,
    macs: Macs,
}

/// A next hop that the kernel was asked for: asking costs as much as all the rest of the program.
#[repr(C)]
pub(crate) struct NextHopCell {
    address: Address,
    route: LinkRoute,
    /// In ticks; 0 in a cell never used.
    expires: u64,
}

const NEXT_HOP_CELLS: usize = 1024;
#[btf_map]
static NEXT_HOPS: PerCpuArray<NextHopCell, NEXT_HOP_CELLS> = PerCpuArray::new();

#[inline(always)]
const fn next_hop_cell(address: &Address) -> u32 {
    let [a, b, c, d] = *address;
    (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1) >> (u32::BITS - NEXT_HOP_CELLS.ilog2())
}

impl Frame {
    /// Next hop from the kernel's routes and neighbours, as they are or were a moment ago.
    #[inline(always)]
    fn look_up(&self, destination: &Address) -> Option<LinkRoute> {
        // SAFETY: this CPU's cell of an array, valid for the run of the program.
        let cell = unsafe { &mut *NEXT_HOPS.get_ptr_mut(next_hop_cell(destination))? };
        let now = ticks();
        if cell.expires > now && cell.address == *destination {
            return Some(cell.route);
        }
        // SAFETY: the context is valid for the run of the program.
        let hop = unsafe { routes::ask(self.0.cast(), self.ifindex(), destination, 0) }?;
        let route = LinkRoute { ifindex: hop.ifindex, macs: hop.macs };
        // A change of routes or neighbours goes unnoticed for at most a second.
        let expires = now + u64::from(ticks_per_second());
        *cell = NextHopCell { address: *destination, route, expires };
        Some(route)
    }

    /// Moves the start of the frame and the Ethernet header with it.
    #[inline(always)]
    fn move_start(&self, by: i32) -> Result<(), Reason> {
        let ethernet: *mut [u8; 14] = at(self, 0).ok_or(Reason::DropAdjustRoom)?;
        // SAFETY: `at` checked that the header is in the packet.
        let ethernet = unsafe { *ethernet };
        // SAFETY: the context pointer of this run; a helper reports what it refuses.
        if unsafe { bpf_xdp_adjust_head(self.0, by) } != 0 {
            return Err(Reason::DropAdjustRoom);
        }
        let moved: *mut [u8; 14] = at(self, 0).ok_or(Reason::DropAdjustRoom)?;
        // SAFETY: `at` checked that the header is in the packet.
        unsafe { *moved = ethernet };
        Ok(())
    }
}

impl Packet for Frame {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;
    type Route = LinkRoute;

    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the context is valid for the run of the program.
        unsafe { (*self.0).data as usize }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: likewise.
        unsafe { (*self.0).data_end as usize }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.end() - self.start()) as u32
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: likewise.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Group addresses are not; foreign unicast only comes in promiscuous mode, and a tag shows as another EtherType.
    #[inline(always)]
    fn is_for_us(&self) -> bool {
        match at::<Ethernet>(self, 0) {
            // SAFETY: `at` checked that the header is in the packet.
            Some(ethernet) => (unsafe { (*ethernet).destination[0] }) & 1 == 0,
            None => false,
        }
    }

    /// The segmenting veth has no XDP program.
    #[inline(always)]
    fn take_over(&self) -> bool {
        false
    }

    #[inline(always)]
    fn make_readable(&self, _: u32) {}

    #[inline(always)]
    fn route_to_locator(&self, locator: &LocatorValue) -> Result<LinkRoute, Reason> {
        if locator.flags & LOCATOR_MAC_RESOLVED != 0 {
            const AT: usize = offset_of!(LocatorValue, next_hop_mac);
            const { assert!(AT.is_multiple_of(4) && offset_of!(LocatorValue, source_mac) == AT + 6) };
            // SAFETY: both addresses, one behind the other, aligned to 4.
            let macs = unsafe { (&raw const *locator).byte_add(AT).cast::<Macs>().read() };
            return Ok(LinkRoute { ifindex: locator.ifindex, macs });
        }
        self.look_up(&words(&locator.destination)).ok_or(Reason::PassNoNextHop)
    }

    #[inline(always)]
    fn route_to_host(&self, destination: &Address, eid: &LocalEidValue) -> Option<LinkRoute> {
        self.look_up(&next_hop(eid, destination))
    }

    #[inline(always)]
    fn grow(&self, octets: u32, _: Family, _: Family) -> Result<Reason, Reason> {
        self.move_start(-(octets as i32))?;
        Ok(Reason::Encapsulated)
    }

    #[inline(always)]
    fn shrink(&self, octets: u32, _: Family) -> Result<(), Reason> {
        self.move_start(octets as i32)
    }

    #[inline(always)]
    fn send(&self, route: &LinkRoute) -> i32 {
        let Some(start) = at::<Macs>(self, 0) else { return Self::DROP };
        // SAFETY: `at` checked that these octets are in the packet.
        unsafe { write_words(start, route.macs) };
        self.redirect(route.ifindex)
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: no memory is touched.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
