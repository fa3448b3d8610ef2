//! Packets as socket buffers: TC ingress. GSO packets stay whole, the kernel keeps the neighbours.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_OK,
        TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_pull_data,
    },
};
use bpf_abi::{LocalEidValue, LocatorValue, Reason};

use crate::etr::{is_segmented, next_hop};
use crate::headers::{Address, unmapped, words, write_words};
use crate::neighbours;
use crate::packet::{Family, Packet, at};
use crate::routes::Macs;
use crate::verifier::{Aligned, opaque};

/// The context of a TC program.
pub(crate) struct SocketBuffer(pub(crate) *mut __sk_buff);

/// A next hop on an interface.
pub(crate) struct Neighbour {
    ifindex: u32,
    address: Address,
    /// What the frame begins with; `None` leaves it to the kernel.
    macs: Option<Macs>,
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// `bpf_skb_adjust_room` with ENCAP flags, when the packet is marked as a tunnel's already.
const EALREADY: i64 = 114;
/// Likewise, with flags that the kernel does not know.
const EINVAL: i64 = 22;

impl SocketBuffer {
    /// One load of a context field. The verifier refuses a context pointer that was modified, which the compiler
    /// makes of two loads it merges.
    #[inline(always)]
    fn field(&self, read: impl FnOnce(*mut __sk_buff) -> u32) -> u32 {
        opaque(read(self.0) as usize) as u32
    }

    #[inline(always)]
    fn adjust(&self, difference: i32, flags: u32) -> i64 {
        // SAFETY: the context pointer of this run; a helper reports what it refuses.
        unsafe { bpf_skb_adjust_room(self.0, difference, BPF_ADJ_ROOM_MAC, u64::from(flags)) }
    }

    /// Whether the kernel takes it for a packet of that family.
    #[inline(always)]
    fn is_of(&self, family: Family) -> bool {
        // SAFETY: the context is valid for the run of the program.
        self.field(|skb| unsafe { (*skb).protocol }) == u32::from(u16::from_ne_bytes(family.ethertype()))
    }
}

impl Neighbour {
    #[inline(always)]
    fn new(packet: &SocketBuffer, ifindex: u32, address: Address) -> Self {
        // SAFETY: the context pointer of this run.
        let macs = unsafe { neighbours::macs(packet.0, ifindex, &address) };
        Self { ifindex, address, macs }
    }

    /// For `bpf_redirect_neigh`.
    #[inline(always)]
    fn parameters(&self) -> bpf_redir_neigh {
        let (family, v6) = match unmapped(&self.address) {
            Some(v4) => (AF_INET, [v4, 0, 0, 0]),
            None => (AF_INET6, self.address),
        };
        bpf_redir_neigh { nh_family: family, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: v6 } }
    }
}

impl Packet for SocketBuffer {
    const PASS: i32 = TC_ACT_OK as i32;
    const DROP: i32 = TC_ACT_SHOT as i32;
    type Route = Neighbour;

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
        // SAFETY: likewise.
        self.field(|skb| unsafe { (*skb).len })
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: likewise.
        self.field(|skb| unsafe { (*skb).gso_size })
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: likewise.
        self.field(|skb| unsafe { (*skb).ifindex })
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        const PACKET_HOST: u32 = 0;
        // SAFETY: likewise.
        self.field(|skb| unsafe { (*skb).pkt_type }) == PACKET_HOST
            // SAFETY: likewise.
            && self.field(|skb| unsafe { (*skb).vlan_present }) == 0
    }

    #[inline(always)]
    fn take_over(&self) -> bool {
        const PACKET_HOST: u32 = 0;
        if !is_segmented(self) {
            return false;
        }
        // SAFETY: the context pointer of this run; no other value than the type is touched.
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) == 0 }
    }

    #[inline(always)]
    fn make_readable(&self, octets: u32) {
        let length = self.length();
        let wanted = if length < octets { length } else { octets };
        if self.start() + wanted as usize > self.end() {
            // SAFETY: the context pointer of this run. A refusal shows when the headers are read.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    #[inline(always)]
    fn route_to_locator(&self, locator: &LocatorValue) -> Result<Neighbour, Reason> {
        Ok(Neighbour::new(self, locator.ifindex, words(&locator.next_hop)))
    }

    #[inline(always)]
    fn route_to_host(&self, destination: &Address, eid: &LocalEidValue) -> Option<Neighbour> {
        Some(Neighbour::new(self, eid.ifindex, next_hop(eid, destination)))
    }

    #[inline(always)]
    fn grow(&self, octets: u32, outer: Family, inner: Family) -> Result<Reason, Reason> {
        let l3 = match outer {
            Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        };
        match self.adjust(octets as i32, l3 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_FIXED_GSO) {
            0 => Ok(Reason::Encapsulated),
            // Without the flags the kernel knows neither of a tunnel to segment nor of another protocol.
            error if error == -EALREADY && outer == inner && self.gso_size() == 0 => {
                match self.adjust(octets as i32, 0) {
                    0 => Ok(Reason::EncapsulatedPlain),
                    _ => Err(Reason::DropAdjustRoom),
                }
            }
            _ => Err(Reason::DropAdjustRoom),
        }
    }

    #[inline(always)]
    fn shrink(&self, octets: u32, inner: Family) -> Result<(), Reason> {
        let l3 = match inner {
            Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        };
        let difference = -(octets as i32);
        match self.adjust(difference, l3 | BPF_F_ADJ_ROOM_FIXED_GSO) {
            0 => Ok(()),
            // Before Linux 6.3 there is no such flag; without it the packet keeps the protocol that it has.
            error if error == -EINVAL && self.is_of(inner) => {
                match self.adjust(difference, BPF_F_ADJ_ROOM_FIXED_GSO) {
                    0 => Ok(()),
                    _ => Err(Reason::DropAdjustRoom),
                }
            }
            _ => Err(Reason::DropAdjustRoom),
        }
    }

    #[inline(always)]
    fn send(&self, route: &Neighbour) -> i32 {
        if let Some(macs) = route.macs {
            let Some(start) = at::<Macs>(self, 0) else { return Self::DROP };
            // SAFETY: `at` checked that these octets are in the packet.
            unsafe { write_words(start, macs) };
            return self.redirect(route.ifindex);
        }
        let mut address = Aligned(route.parameters());
        // SAFETY: the parameters live for the call and have the size that is given.
        unsafe {
            bpf_redirect_neigh(route.ifindex, &raw mut address.0, size_of::<bpf_redir_neigh>() as i32, 0)
                as i32
        }
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: no memory is touched.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
