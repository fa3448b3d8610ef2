//! Where the flows of a moment ago went: one cell in place of four maps.
//!
//! The flow table is a kernel hash map that all CPUs share; asking it, the trie, the interface and the slot costs as much
//! as all the rest of the ITR. A cell repeats what they said, on one CPU, for as long as user space has changed nothing
//! (the generation) and the answer is fresh. It decides nothing: who is not found here takes the whole path.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_get_smp_processor_id, macros::btf_map};
use bpf_abi::FLOW_CACHE_SETS;

use crate::clock::ticks_per_second;
use crate::headers::Address;
use crate::inner::{TCP_FIN, TCP_RST, TCP_SYN, Transport};
use crate::maps::MAPPABLE;

/// A flow and its way. One cache line.
#[repr(C)]
pub(crate) struct FlowCell {
    source: Address,
    destination: Address,
    ports: u32,
    ifindex: u32,
    protocol: u16,
    locator: u16,
    instance_id: u32,
    hash: u32,
    mapping_id: u32,
    generation: u32,
    /// In ticks.
    checked: u32,
}
const _: () = assert!(size_of::<FlowCell>() == 64);

/// The cells in which a flow may be: neighbouring lines, which come into the CPU's cache together.
type FlowSet = [FlowCell; 2];

/// How long a cell is believed: an eighth of a second. The flow table has to see that the flow is in use, or it would
/// give its entry away.
#[inline(always)]
fn believed_ticks() -> u32 {
    ticks_per_second() / 8
}

/// [`believed_ticks`] in nanoseconds; no flow may be idle for less.
const BELIEVED_NS: u64 = 1_000_000_000 / 8;

/// [`FLOW_CACHE_SETS`] for each CPU, which user space knows the number of. No per-CPU array, which takes two loads more
/// that miss the CPU's cache, and mappable because that aligns it: asking for a flow touches one line.
#[btf_map]
static FLOW_CACHE: Array<FlowSet, { FLOW_CACHE_SETS as usize }, MAPPABLE> = Array::new();

/// Where a flow goes, by the tables of one generation.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) instance_id: u32,
    pub(crate) mapping_id: u32,
    pub(crate) locator: u32,
    pub(crate) hash: u32,
}

/// What a cell has to agree with.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// Of the tables, read before any of them.
    pub(crate) generation: u32,
    pub(crate) ifindex: u32,
    /// In ticks, of which the low half tells two moments apart.
    pub(crate) now: u32,
}

/// Where in the cache a flow would be.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    set: *mut FlowSet,
    /// The cell of the set where it is looked for first, 0 or 1: flows side by side then do not ask for each other's.
    first: usize,
}

impl Place {
    /// `None` without stickiness, or before user space is ready.
    #[inline(always)]
    pub(crate) fn of(transport: &Transport, moment: &Moment, idle_ns: u64) -> Option<Self> {
        if moment.generation == 0 || idle_ns <= BELIEVED_NS {
            return None;
        }
        // SAFETY: no memory is touched.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let cell = cell(transport);
        let set = FLOW_CACHE.get_ptr_mut(cpu * FLOW_CACHE_SETS + cell / 2)?;
        Some(Self { set, first: cell as usize % 2 })
    }

    /// The cell where the flow is looked for first, and the other one.
    #[inline(always)]
    fn cells(&mut self) -> [&mut FlowCell; 2] {
        let cells = self.set.cast::<FlowCell>();
        // SAFETY: this CPU's two cells of an array, valid for the run of the program, and not the same one twice.
        unsafe { [&mut *cells.add(self.first), &mut *cells.add(self.first ^ 1)] }
    }

    /// The flow's way, if it is known. Packets that may begin or end a flow concern the flow table.
    #[inline(always)]
    pub(crate) fn recall(mut self, transport: &Transport, moment: &Moment) -> Option<Way> {
        if transport.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
            return None;
        }
        let [first, second] = self.cells();
        match first.recall(transport, moment) {
            None => second.recall(transport, moment),
            way => way,
        }
    }

    /// Notes what the tables said.
    #[inline(always)]
    pub(crate) fn note(mut self, transport: &Transport, moment: &Moment, way: &Way) {
        let [first, second] = self.cells();
        // In its own cell if it has one: no older answer may stay beside this one.
        let in_second = second.is_of(transport, moment)
            || !first.is_of(transport, moment) && second.age(moment) > first.age(moment);
        let cell = if in_second { second } else { first };
        cell.note(transport, moment, way);
    }
}

impl FlowCell {
    #[inline(always)]
    fn is_of(&self, transport: &Transport, moment: &Moment) -> bool {
        let key = &transport.key.0;
        self.ports == key.ports
            && self.source == key.source
            && self.destination == key.destination
            && self.ifindex == moment.ifindex
            && u32::from(self.protocol) == key.protocol
    }

    /// In ticks; what no program believes is infinitely old.
    #[inline(always)]
    const fn age(&self, moment: &Moment) -> u32 {
        if self.generation == moment.generation { moment.now.wrapping_sub(self.checked) } else { u32::MAX }
    }

    #[inline(always)]
    fn recall(&self, transport: &Transport, moment: &Moment) -> Option<Way> {
        (self.is_of(transport, moment) && self.age(moment) < believed_ticks()).then_some(Way {
            instance_id: self.instance_id,
            mapping_id: self.mapping_id,
            locator: u32::from(self.locator),
            hash: self.hash,
        })
    }

    #[inline(always)]
    fn note(&mut self, transport: &Transport, moment: &Moment, way: &Way) {
        if way.locator > u32::from(u16::MAX) {
            return;
        }
        let key = &transport.key.0;
        *self = Self {
            source: key.source,
            destination: key.destination,
            ports: key.ports,
            ifindex: moment.ifindex,
            protocol: key.protocol as u16,
            locator: way.locator as u16,
            instance_id: way.instance_id,
            hash: way.hash,
            mapping_id: way.mapping_id,
            generation: moment.generation,
            checked: moment.now,
        };
    }
}

/// The cell where a flow is looked for first, of [`FLOW_CACHE_SETS`] times two. Flows that differ in their source port alone
/// lie side by side: those of one client to one service then take a few pages of memory (docs/decisions/0008).
///
/// Cheaper than the flow hash, which is needed only when the flow is not known: who makes flows collide here gets the
/// whole path.
#[inline(always)]
fn cell(transport: &Transport) -> u32 {
    let [s0, s1, s2, s3] = transport.key.0.source;
    let [d0, d1, d2, d3] = transport.key.0.destination;
    let [high, low, d_high, d_low] = transport.key.0.ports.to_ne_bytes();
    let source_port = u32::from(u16::from_be_bytes([high, low]));
    let destination_port = u64::from(u16::from_be_bytes([d_high, d_low]));
    let source = u64::from(s0 ^ s1 ^ s2 ^ s3);
    let destination = u64::from(d0 ^ d1 ^ d2 ^ d3);
    let mixed = (source << 32 | destination_port).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ destination.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let first = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    const { assert!(FLOW_CACHE_SETS.is_power_of_two(), "the verifier must see the bound") };
    first.wrapping_add(source_port) % (2 * FLOW_CACHE_SETS)
}
