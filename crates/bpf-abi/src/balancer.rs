//! What the site balancer's program looks up; `docs/balancer.md` tells the rules.
//!
//! A frame to a VIP: [`VipValue`] by [`VipKey`], one slot of that VIP's table by the hash of the flow, the
//! [`BackendValue`] whose index the slot holds, or whose number in the table's palette. Addresses, MACs and ports are in network order, everything else is native.

pub use crate::balancer_hash::FlowHash;

/// Entries of the VIP table: VIPs, their addresses, and those that take fragments.
pub const VIP_ENTRIES: usize = 16_384;
/// VIPs that are counted: [`VipValue::id`] is below this.
pub const VIPS: usize = 4096;
/// Entries of the backend table: what a slot or a palette holds is an index of it.
pub const BACKENDS: usize = 65_536;
/// Slots of two octets in one [`TableChunk`].
pub const CHUNK_SLOTS: u32 = 32;
/// Slots of one octet in one [`TableChunk`].
pub const CHUNK_OCTETS: u32 = 2 * CHUNK_SLOTS;
/// Lowest bit of the chunks of a palette in [`VipValue::table`].
pub const PALETTE_SHIFT: u32 = 28;
/// Backends that a palette names at the most.
pub const PALETTE_BACKENDS: usize = 256;
/// Chunks of all tables together unless the loader says otherwise: 64 MiB.
pub const CHUNKS: usize = 1 << 20;
/// VIPs that each CPU remembers, a power of two.
pub const VIP_CACHE_CELLS: u32 = 512;
/// Tunnel endpoints that a node may have itself.
pub const VTEPS: usize = 4;

/// One cache line of a table of slots. A VIP's table is [`VipValue::size`] slots from the start of one chunk on.
///
/// A slot is the index of a backend, in two octets. In a table with a palette it is one octet, and the index stands at
/// that place of the palette, which begins with the chunk behind the slots: half the memory, and what most packets of
/// many VIPs wait for is whether their slot is in the processor's cache.
pub type TableChunk = [u16; CHUNK_SLOTS as usize];

/// Segment of a frame, or of a VIP: kind in the top octet, identifier in the low three.
pub mod segment {
    /// Untagged, or priority-tagged (VID 0).
    pub const NONE: u32 = 0;
    /// 802.1Q: the VLAN id.
    pub const DOT1Q: u32 = 1 << 24;
    /// 802.1ad: S-VID in bits 12 to 23, the C-VID of an 802.1Q tag behind it in bits 0 to 11, 0 without one.
    pub const DOT1AD: u32 = 2 << 24;
    /// VXLAN: the VNI.
    pub const VXLAN: u32 = 3 << 24;
    /// Geneve: the VNI.
    pub const GENEVE: u32 = 4 << 24;
    /// The octet of the kind.
    pub const KIND: u32 = 0xff << 24;
}

/// Key of the VIP table.
///
/// Port and protocol are 0 in the entry of an address, which is there once for every address and segment that has a
/// VIP; the port alone is 0 in the entry that takes an address's fragments of a protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipKey {
    /// Destination address, IPv4-mapped.
    pub address: [u8; 16],
    /// [`segment`] of the frame.
    pub segment: u32,
    /// Destination port.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Explicit padding.
    pub pad: u8,
}

/// A VIP. A change replaces the whole value, which the kernel does at once for every packet.
///
/// The kernel gives the memory of a replaced value to the next one, of whatever key, without waiting for programs that
/// still read it. So a value says whose it is: see [`VipValue::stamped`]. A program that finds anything else has read
/// a mixture, or another VIP's value, and looks again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipValue {
    /// Another number after every change of any VIP.
    pub generation: u32,
    /// Index of its counters; of no meaning in an address's entry.
    pub id: u32,
    /// `VIP_*` bits.
    pub flags: u32,
    /// First chunk of its table; from [`PALETTE_SHIFT`] on, how many chunks its palette has, 0 if it has none.
    pub table: u32,
    /// Slots of its table; 0 if it has none, because no backend takes new flows.
    pub size: u32,
    /// Likewise the table that flows keep to which are older than the drain.
    pub previous_table: u32,
    /// Slots of the previous table; 0 when nothing is kept.
    pub previous_size: u32,
    /// Number of the drain for which the previous table is kept, another one for every drain; 0 when nothing is kept.
    pub drain: u32,
    /// Explicit padding.
    pub pad: u32,
    /// [`Self::generation`] once more, over the [`VipKey::digest`].
    pub generation_again: u32,
}

impl VipKey {
    /// What tells the values of different keys apart.
    #[must_use]
    pub const fn digest(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.address;
        let [port0, port1] = self.port;
        key_digest([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
            self.segment,
            u32::from_ne_bytes([port0, port1, self.protocol, self.pad]),
        ])
    }
}

/// [`VipKey::digest`] of a key in words, as they lie in memory.
///
/// A sum of products with odd numbers: keys that differ in one word differ, and no product waits for another.
#[must_use]
#[inline(always)]
pub const fn key_digest([a, b, c, d, segment, port_protocol]: [u32; 6]) -> u32 {
    let address = a
        .wrapping_mul(0xcc9e_2d51)
        .wrapping_add(b.wrapping_mul(0x1b87_3593))
        .wrapping_add(c.wrapping_mul(0x85eb_ca6b))
        .wrapping_add(d.wrapping_mul(0xc2b2_ae35));
    address
        .wrapping_add(segment.wrapping_mul(0x9e37_79b1))
        .wrapping_add(port_protocol.wrapping_mul(0x27d4_eb2f))
}

impl VipValue {
    /// The value as it is written for a key.
    #[must_use]
    pub const fn stamped(self, key: &VipKey, generation: u32) -> Self {
        Self { generation, generation_again: generation ^ key.digest(), ..self }
    }
}

/// Flows are remembered, and survive any change while their backend lives.
pub const VIP_FLOW_TABLE: u32 = 1;
/// The flow is source address, destination address and protocol: ports do not count, so fragments follow it.
pub const VIP_BY_ADDRESSES: u32 = 2;
/// In the entry of an address: answer its ICMP echo requests.
pub const VIP_ECHO: u32 = 4;

/// A backend. Its index belongs to one VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendValue {
    /// Its link-layer address; behind a tunnel the inner frame's.
    pub mac: [u8; 6],
    /// `BACKEND_*` bits.
    pub flags: u16,
    /// [`segment`] that its frames get: of the VIP's kind.
    pub segment: u32,
    /// Never used for two backends: flows of an earlier owner of the index are not its own.
    pub serial: u32,
}

/// Packets may be sent to it: its link-layer address is known and it is not failed.
pub const BACKEND_USABLE: u16 = 1;

/// Where a backend's tunnel ends; beside [`BackendValue`], of the same index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelValue {
    /// Outer destination address, IPv4-mapped; of the family that the outer header has.
    pub vtep: [u8; 16],
    /// Link-layer address of the next hop to it.
    pub mac: [u8; 6],
    /// Explicit padding.
    pub pad: [u8; 2],
}

/// One entry: what the program needs to know about its node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalancerNodeValue {
    /// Link-layer address of the port: frames to others are not balanced.
    pub mac: [u8; 6],
    /// Explicit padding.
    pub pad: [u8; 2],
    /// Of [`Self::flow_hash`].
    pub seed: u32,
    /// Tunnel endpoints in use; without one, VXLAN and Geneve are UDP like any other.
    pub vtep_count: u32,
    /// Another number, and not 0, after every change of the VIP table: programs do not ask it for every packet.
    pub generation: u32,
    /// Always 0, which the kernel's verifier does not know: what is mixed with it is of any value to it.
    pub zero: u32,
    /// Addresses of the node's tunnel endpoints, IPv4-mapped.
    pub vteps: [[u8; 16]; VTEPS],
    /// [`FlowHash::of_seed`], the same on all nodes of a group.
    pub flow_hash: FlowHash,
}

/// Where a flow goes; its key is a [`crate::FlowKey`] with the segment as instance.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalancedFlowValue {
    /// Index of the backend.
    pub backend: u32,
    /// [`BackendValue::serial`] when the flow was placed.
    pub serial: u32,
    /// [`VipValue::drain`] when the flow was placed. Unless the VIP remembers all flows, the value means nothing after that
    /// drain: the addresses and ports may have been used again since.
    pub drain: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Counted per CPU for each VIP and each backend; user space adds the CPUs up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalancedValue {
    /// Frames sent to a backend.
    pub packets: u64,
    /// Their octets from the Ethernet header on.
    pub bytes: u64,
}

/// Slot of a flow in a table of `size` slots.
///
/// The high part of a product, not the remainder of a division: as even, and a tenth of the time.
#[must_use]
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

crate::sizes! {
    VipKey = 24,
    VipValue = 40,
    BackendValue = 16,
    TunnelValue = 24,
    FlowHash = 96,
    BalancerNodeValue = 24 + 16 * VTEPS + 96,
    BalancedFlowValue = 16,
    BalancedValue = 16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_key_is_in_its_digest() {
        let key = VipKey { address: [7; 16], segment: 1, port: [0, 80], protocol: 6, pad: 0 };
        let mut address = key.address;
        address[15] ^= 1;
        let others = [
            VipKey { address, ..key },
            VipKey { segment: 2, ..key },
            VipKey { port: [80, 0], ..key },
            VipKey { protocol: 17, ..key },
        ];
        for other in others {
            assert_ne!(other.digest(), key.digest(), "{other:?}");
        }
        let value = VipValue::default().stamped(&key, 5);
        assert_eq!(value.generation ^ value.generation_again, key.digest());
    }

    #[test]
    fn slots_are_within_the_table_and_even() {
        let size = 1021;
        let mut hits = [0_u32; 1021];
        for step in 0..(1 << 16) {
            hits[slot(step << 16, size) as usize] += 1;
        }
        assert!(hits.iter().all(|hits| (64..=65).contains(hits)), "{hits:?}");
        assert_eq!(slot(u32::MAX, size), size - 1);
        assert_eq!(slot(u32::MAX, 0), 0);
    }
}
