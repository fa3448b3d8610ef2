//! What a LISP gateway's programs look up.
//!
//! A packet to an EID: [`InterfaceValue`] by ifindex, [`MappingValue`] by [`EidKey`], the flow's [`FlowValue`] if it
//! is still usable or else a bucket of the mapping's [`SlotValue`], then the [`LocatorValue`]. What all but the last
//! said is remembered for the flow's next packets, until [`NodeValue::generation`] changes.

/// Buckets of one mapping; one bucket is 0.1 % of its new flows.
pub const BUCKETS: usize = 1024;
/// Locators in one mapping.
pub const MEMBERS: usize = 32;
/// Entries of the slot table.
pub const SLOTS: usize = 512;
/// Entries of the locator table.
pub const LOCATORS: usize = 256;
/// Octets that IPv4 encapsulation adds: IPv4, UDP, LISP (RFC 9300 §5.1).
pub const OVERHEAD_V4: u32 = 36;
/// Octets that IPv6 encapsulation adds (RFC 9300 §5.2).
pub const OVERHEAD_V6: u32 = 56;

/// Key of the map-cache and local-EID tries: instance and IPv4-mapped address behind the length in bits.
///
/// A prefix of `n` bits has `prefix_len` 32 + n (IPv6) or 32 + 96 + n (IPv4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EidKey {
    /// Leading bits that count, instance included; native byte order (the kernel's `bpf_lpm_trie_key`).
    pub prefix_len: u32,
    /// Instance ID, big-endian.
    pub instance_id: [u8; 4],
    /// Address, network order, IPv4-mapped.
    pub address: [u8; 16],
}

impl EidKey {
    /// `prefix_len` of one IPv4 or IPv6 address.
    pub const HOST_LEN: u32 = 32 + 128;

    /// Key of one address, IPv4-mapped, in an instance.
    #[must_use]
    #[inline(always)]
    pub const fn host(instance_id: u32, address: [u8; 16]) -> Self {
        Self { prefix_len: Self::HOST_LEN, instance_id: instance_id.to_be_bytes(), address }
    }
}

/// What the gateway does on an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceValue {
    /// Instance of the EIDs behind it.
    pub instance_id: u32,
    /// `INTERFACE_*` bits.
    pub flags: u32,
}

/// The stack has already decremented the TTL; a packet that cannot be encapsulated is dropped, not passed back.
pub const INTERFACE_FROM_STACK: u32 = 1;
/// The instance is in the frames' source MAC and not in the value: frames held for resolution come back this way.
///
/// A frame to an unresolved EID is handed to user space with the source MAC 02:00 and the instance's four octets.
pub const INTERFACE_INSTANCE_IN_MAC: u32 = 2;
/// Behind the segmenting veth: a packet that is still UDP GSO here is dropped, or it would go round for ever.
pub const INTERFACE_SEGMENTED: u32 = 4;

/// First two octets of a source MAC that carries an instance ID.
pub const INSTANCE_MAC: [u8; 2] = [0x02, 0x00];

/// Value of the map-cache trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingValue {
    /// One of `ACTION_*`.
    pub action: u32,
    /// Index of the [`SlotValue`]; a new table is written to a free slot, then this value is replaced.
    pub slot: u32,
    /// Names the mapping in flows and counters, never reused while counters are kept.
    pub mapping_id: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Encapsulate to the slot's locators.
pub const ACTION_ENCAPSULATE: u32 = 0;
/// Unresolved: hand the packet to user space, which asks the mapping system.
pub const ACTION_RESOLVE: u32 = 1;
/// Leave the packet to the stack (Natively-Forward, and the EIDs of this site inside a covering prefix).
pub const ACTION_NATIVE: u32 = 2;
/// Drop the packet.
pub const ACTION_DROP: u32 = 3;

/// One locator of a mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Index of the [`LocatorValue`].
    pub locator: u32,
    /// 1 if flows may use it (priority not 255, R bit set, up); a weight of 0 stays usable for the flows it has.
    pub usable: u32,
}

/// The locators of a mapping and who gets which share of its new flows.
///
/// The index of a locator in `members` is kept for as long as the locator stays in the mapping: flows remember it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotValue {
    /// Members in use.
    pub member_count: u32,
    /// Explicit padding.
    pub pad: u32,
    /// The locators.
    pub members: [Member; MEMBERS],
    /// Bucket to index in `members`; [`NO_MEMBER`] where nothing is usable.
    pub buckets: [u8; BUCKETS],
}

/// Bucket of a mapping that has no usable locator: the packet is dropped and counted.
pub const NO_MEMBER: u8 = 0xff;

/// Everything needed to write the outer headers towards one locator.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocatorValue {
    /// Our RLOC, network order, IPv4-mapped.
    pub source: [u8; 16],
    /// The locator, likewise.
    pub destination: [u8; 16],
    /// Next hop on the way, likewise; equal to `destination` when on-link.
    pub next_hop: [u8; 16],
    /// Interface towards the next hop.
    pub ifindex: u32,
    /// Largest outer packet in octets on the way to the locator.
    pub mtu: u32,
    /// 4 or 6: family of the outer header.
    pub family: u32,
    /// `LOCATOR_*` bits.
    pub flags: u32,
    /// MAC of the next hop for XDP, zero until resolved.
    pub next_hop_mac: [u8; 6],
    /// MAC of the interface for XDP.
    pub source_mac: [u8; 6],
    /// Explicit padding.
    pub pad: u32,
}

/// `next_hop_mac` and `source_mac` are valid.
pub const LOCATOR_MAC_RESOLVED: u32 = 1;
/// The ETR announced that it accepts LISP-GPE headers (RFC 9305).
pub const LOCATOR_GPE: u32 = 2;

/// A flow, as the ITR tells flows apart: the 5-tuple for TCP, UDP and SCTP.
///
/// Fragments and everything else have ports and protocol 0, so that all fragments of a datagram take one locator.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source EID, network order, IPv4-mapped.
    pub source: [u8; 16],
    /// Destination EID, likewise.
    pub destination: [u8; 16],
    /// Source port, network order.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// IP protocol number, 0 if the ports do not count.
    pub protocol: u32,
    /// Instance ID, native.
    pub instance_id: u32,
}

/// Where a flow goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// CLOCK_MONOTONIC in nanoseconds (of the last tick) of a recent packet; refreshed at most once a second.
    pub last_seen: u64,
    /// Mapping it belongs to.
    pub mapping_id: u32,
    /// Index in the mapping's members; [`UNPLACED`] if no locator was usable, so that the flow is counted once.
    pub member: u32,
    /// Locator at that index when the flow was placed; if the index now holds another, the flow is placed anew.
    pub locator: u32,
    /// `FLOW_*` bits.
    pub flags: u32,
}

/// `member` and `locator` of a flow that waits for a usable locator.
pub const UNPLACED: u32 = 0xffff_ffff;
/// The sender closed or reset; a SYN on the same 5-tuple is then a new flow.
pub const FLOW_CLOSING: u32 = 1;
/// A SYN on a flow without packets for this long is a new connection, not a retransmission.
pub const SYN_IDLE_NS: u64 = 60_000_000_000;
/// `last_seen` is refreshed when it is older than this.
pub const FLOW_REFRESH_NS: u64 = 1_000_000_000;

/// Sets of two flows that each CPU remembers, a power of two.
pub const FLOW_CACHE_SETS: u32 = 4096;

/// Next hops that each CPU remembers, a power of two.
pub const NEIGHBOUR_CELLS: u32 = 1024;

/// Local EIDs that each CPU remembers, a power of two.
pub const EGRESS_CACHE_CELLS: u32 = 1024;

/// Value of the local-EID trie: packets to these EIDs are decapsulated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEidValue {
    /// Interface towards the hosts; 0 leaves the packet to the stack.
    pub ifindex: u32,
    /// Next hop on that interface, network order, IPv4-mapped; all zero when the hosts are on-link.
    pub next_hop: [u8; 16],
    /// Names the EID-prefix in counters.
    pub local_id: u32,
}

/// Key of the traffic counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficKey {
    /// [`MappingValue::mapping_id`], or [`LocalEidValue::local_id`] for decapsulated packets.
    pub id: u32,
    /// Locator index; [`OFFERED`] for what a mapping is offered, [`DECAPSULATED`] for decapsulated packets.
    pub locator: u32,
}

/// `locator` of the counter of a mapping's new flows in front of the split, whether or not a locator can take them.
pub const OFFERED: u32 = 0xffff_fffe;
/// `locator` of the counters of a local EID-prefix.
pub const DECAPSULATED: u32 = 0xffff_ffff;

/// Counted per CPU; user space adds the CPUs up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficValue {
    /// Flows placed on the locator; for [`OFFERED`] the mapping's new flows.
    pub flows: u64,
    /// Packets as they will be on the wire (a GSO packet counts as its segments).
    pub packets: u64,
    /// Octets of the inner packets, each segment's headers included.
    pub bytes: u64,
}

/// One cell of the counters' table, an array that both sides hash into: a lookup in a kernel hash map costs a program
/// ten times as much.
///
/// A key is in one of the [`TRAFFIC_PROBES`] cells that [`traffic_cell`] gives; user space puts it there, on all CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCell {
    /// `id` 0: the cell is free.
    pub key: TrafficKey,
    /// The counters of the key.
    pub value: TrafficValue,
}

/// Cells of the counters' table, a power of two.
pub const TRAFFIC_CELLS: u32 = 8192;
/// Cells in which a key may be.
pub const TRAFFIC_PROBES: u32 = 8;

/// The `probe`-th cell of a key.
#[must_use]
#[inline(always)]
pub const fn traffic_cell(key: TrafficKey, probe: u32) -> u32 {
    let mixed = key.id.wrapping_mul(0x9e37_79b1).wrapping_add(key.locator.wrapping_mul(0x85eb_ca6b));
    (mixed >> (u32::BITS - TRAFFIC_CELLS.ilog2())).wrapping_add(probe) % TRAFFIC_CELLS
}

/// RLOCs that a node may have itself.
pub const OWN_RLOCS: usize = 8;

/// One entry: what the programs need to know about their node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeValue {
    /// TAP device that takes packets of unresolved EIDs; 0 drops them.
    pub resolve_ifindex: u32,
    /// veth that segments UDP GSO packets before decapsulation (kernels without `BPF_F_ADJ_ROOM_DECAP_L4_UDP`); 0 if none.
    pub segment_ifindex: u32,
    /// Nanoseconds without a packet after which a flow may be placed anew; 0 turns stickiness off.
    pub flow_idle_ns: u64,
    /// The node's own RLOCs, network order, IPv4-mapped: LISP packets to other addresses are in transit.
    pub rlocs: [[u8; 16]; OWN_RLOCS],
    /// RLOCs in use.
    pub rloc_count: u32,
    /// Another number, and not 0, after every change of the other tables: programs do not ask them for every packet
    /// of a flow.
    pub generation: u32,
}

crate::sizes! {
    EidKey = 24,
    InterfaceValue = 8,
    MappingValue = 16,
    Member = 8,
    SlotValue = 8 + 8 * MEMBERS + BUCKETS,
    LocatorValue = 80,
    FlowKey = 44,
    FlowValue = 24,
    LocalEidValue = 24,
    TrafficKey = 8,
    TrafficValue = 24,
    TrafficCell = 32,
    NodeValue = 24 + 16 * OWN_RLOCS,
}
