//! Rules 4 to 8: which VIP, and which of its backends.

use bpf_abi::BalancerReason as Reason;
use bpf_abi::balancer::{
    BACKEND_USABLE, BackendValue, BalancedFlowValue, BalancerNodeValue, CHUNK_OCTETS, CHUNK_SLOTS,
    PALETTE_SHIFT, TableChunk, VIP_BY_ADDRESSES, VIP_ECHO, VIP_FLOW_TABLE, VipValue, key_digest, slot,
};

use crate::maps::{BACKENDS, FLOWS, FlowWords, TABLES, VIPS, VipWords};
use crate::packet::{Kind, Packet, native};
use crate::segment::Layers;
use crate::verifier::Aligned;
use crate::vip_cache;

/// No index: beyond the table of backends.
const NOBODY: u32 = u32::MAX;

/// What is done with a packet that is not refused.
pub(crate) enum Asked {
    /// Its echo request is answered.
    Echo,
    /// It goes to one of the VIP's backends.
    Vip(VipValue),
}

/// The backend of a packet.
pub(crate) struct Chosen {
    /// Counters of the VIP.
    pub(crate) vip: u32,
    pub(crate) index: u32,
    pub(crate) backend: &'static BackendValue,
    pub(crate) reason: Reason,
    /// Once it is sent, the flow is to be remembered there.
    pub(crate) remember: bool,
    /// The drain that is going on.
    pub(crate) drain: u32,
}

/// Rules 4 to 7: the VIP that a packet asks for, or why it is none's.
#[inline(always)]
pub(crate) fn asked(node: &BalancerNodeValue, layers: &Layers, packet: &Packet) -> Result<Asked, Reason> {
    let key =
        |port_protocol| VipWords { address: packet.destination, segment: layers.segment, port_protocol };
    let at = |port_protocol| look_up(&Aligned(key(port_protocol)));
    let address = || at(0);
    // Port 0 is the entry of fragments, protocol 0 as well the one of the address: neither is a packet's.
    let exact = || match packet.ports >> 16 {
        0 => Ok(None),
        port => at(port | u32::from(packet.protocol) << 16),
    };
    let fragments = || match packet.protocol {
        0 => Ok(None),
        protocol => at(u32::from(protocol) << 16),
    };
    let vip = match packet.kind {
        Kind::Transport | Kind::First => match packet.ports >> 16 {
            0 => return Err(Reason::PassNoVip),
            port => {
                let key = Aligned(key(port | u32::from(packet.protocol) << 16));
                // Before the VIP table, or an old value would be taken for the new generation's.
                // SAFETY: an aligned word of the entry of an array.
                let generation = unsafe { (&raw const node.generation).read_volatile() };
                vip_cache::find(node, generation, &key, || look_up(&key))?.ok_or(Reason::PassNoVip)?
            }
        },
        Kind::Fragment => match fragments()? {
            Some(vip) => vip,
            None => return Err(address()?.map_or(Reason::PassNoVip, |_| Reason::DropFragment)),
        },
        Kind::ExtensionHeader => {
            return Err(address()?.map_or(Reason::PassNoVip, |_| Reason::DropExtensionHeader));
        }
        Kind::EchoRequest => {
            let address = address()?.ok_or(Reason::PassNoVip)?;
            return if address.flags & VIP_ECHO != 0 { Ok(Asked::Echo) } else { Err(Reason::PassIcmp) };
        }
        Kind::Error => {
            address()?.ok_or(Reason::PassNoVip)?;
            exact()?.ok_or(Reason::PassIcmp)?
        }
        Kind::OtherIcmp => return Err(address()?.map_or(Reason::PassNoVip, |_| Reason::PassIcmp)),
        Kind::Other => return Err(Reason::PassNoVip),
    };
    Ok(Asked::Vip(vip))
}

/// A VIP's entry, read at one moment.
#[inline(always)]
fn look_up(key: &Aligned<VipWords>) -> Result<Option<VipValue>, Reason> {
    let VipWords { address: [a, b, c, d], segment, port_protocol } = key.0;
    let digest = key_digest([a, b, c, d, segment, port_protocol]);
    let mut entry = Ok(None);
    for _ in 0..2 {
        // SAFETY: the value may be replaced while it is read, which `whole` finds out.
        let value = unsafe { VIPS.get(&key.0) };
        // A look-up that stands on a value of the bucket while it becomes another key's does not see what is there
        // in its place: a miss is one only if it is one twice.
        entry = match value.map(|value| whole(value, digest)) {
            Some(Some(value)) => return Ok(Some(value)),
            Some(None) => Err(Reason::DropNotReady),
            None => Ok(None),
        };
    }
    entry
}

/// The value, unless another one is being written in its place, or has been: another VIP's. It is written from its
/// start to its end and read the other way round, so a mixture has two generations.
#[inline(always)]
fn whole(value: *const VipValue, digest: u32) -> Option<VipValue> {
    // SAFETY: a value of the VIP table: its memory is valid for the run of the program, whatever it holds.
    unsafe {
        let generation_again = (&raw const (*value).generation_again).read_volatile();
        let drain = (&raw const (*value).drain).read_volatile();
        let previous_size = (&raw const (*value).previous_size).read_volatile();
        let previous_table = (&raw const (*value).previous_table).read_volatile();
        let size = (&raw const (*value).size).read_volatile();
        let table = (&raw const (*value).table).read_volatile();
        let flags = (&raw const (*value).flags).read_volatile();
        let id = (&raw const (*value).id).read_volatile();
        let generation = (&raw const (*value).generation).read_volatile();
        let read = VipValue {
            generation,
            id,
            flags,
            table,
            size,
            previous_table,
            previous_size,
            drain,
            pad: 0,
            generation_again,
        };
        (generation ^ generation_again == digest).then_some(read)
    }
}

/// A flow to a VIP.
pub(crate) struct Flow {
    key: Aligned<FlowWords>,
    hash: u32,
}

impl Flow {
    #[inline(always)]
    pub(crate) fn new(node: &BalancerNodeValue, layers: &Layers, packet: &Packet, vip: &VipValue) -> Self {
        let ports = if vip.flags & VIP_BY_ADDRESSES == 0 { packet.ports } else { 0 };
        let key = FlowWords {
            source: packet.source,
            destination: packet.destination,
            ports,
            protocol: u32::from(packet.protocol),
            segment: layers.segment,
        };
        let hash = node.flow_hash.of_words(
            native(key.source),
            native(key.destination),
            key.segment,
            u32::from_be(ports),
            key.protocol,
        );
        Self { key: Aligned(key), hash }
    }

    /// Rule 8.
    #[inline(always)]
    pub(crate) fn backend(&self, vip: &VipValue, kind: Kind) -> Result<Chosen, Reason> {
        let is_error = kind == Kind::Error;
        let is_first = kind == Kind::First;
        let flow_table = vip.flags & VIP_FLOW_TABLE != 0;
        let chosen = |index, backend, reason, remember| {
            let reason = if is_error { Reason::IcmpRelayed } else { reason };
            Chosen { vip: vip.id, index, backend, reason, remember: remember && !is_error, drain: vip.drain }
        };
        let current = named(self.hash, vip.table, vip.size).ok_or(Reason::DropNotReady)?;
        let drains = vip.previous_size != 0;
        if !is_first && (flow_table || drains) {
            if let Some((index, backend)) = self.remembered(vip, flow_table) {
                return Ok(chosen(index, backend, Reason::ForwardedFlow, false));
            }
            if let Some(index) = named(self.hash, vip.previous_table, vip.previous_size)
                && index != current
                && let Some(backend) = usable(index)
            {
                return Ok(chosen(index, backend, Reason::ForwardedPrevious, flow_table));
            }
        }
        let backend = usable(current).ok_or(Reason::DropNoBackend)?;
        // A first packet also replaces what is remembered of an older flow with the same addresses and ports.
        Ok(chosen(current, backend, Reason::Forwarded, flow_table || is_first && drains))
    }

    #[inline(always)]
    fn remembered(&self, vip: &VipValue, flow_table: bool) -> Option<(u32, &'static BackendValue)> {
        // SAFETY: words; a torn read gives a serial that is not the backend's.
        let flow = unsafe { FLOWS.get(&self.key.0) }?;
        let (index, serial, drain) = (flow.backend, flow.serial, flow.drain);
        if !flow_table && drain != vip.drain {
            return None;
        }
        let backend = usable(index)?;
        (backend.serial == serial).then_some((index, backend))
    }

    /// A full or contended table costs stickiness, never the packet.
    #[inline(always)]
    pub(crate) fn remember(&self, index: u32, backend: &BackendValue, drain: u32) {
        const BPF_ANY: u64 = 0;
        let value = Aligned(BalancedFlowValue { backend: index, serial: backend.serial, drain, pad: 0 });
        let _ = FLOWS.insert(&self.key.0, &value.0, BPF_ANY);
    }
}

/// Index of the backend that a table names, [`NOBODY`] if there is no table; `None` if user space has not made it.
#[inline(always)]
pub(crate) fn named(hash: u32, table: u32, size: u32) -> Option<u32> {
    if size == 0 {
        return Some(NOBODY);
    }
    let slot = slot(hash, size);
    let first = table & ((1 << PALETTE_SHIFT) - 1);
    const { assert!(CHUNK_SLOTS.is_power_of_two(), "the verifier must see the bounds") };
    if table >> PALETTE_SHIFT == 0 {
        let slots = TABLES.get(first + slot / CHUNK_SLOTS)?;
        return Some(u32::from(slots[(slot % CHUNK_SLOTS) as usize]));
    }
    let slots: *const TableChunk = TABLES.get(first + slot / CHUNK_OCTETS)?;
    // SAFETY: the octets of a chunk, which are as many.
    let number =
        u32::from(unsafe { (*slots.cast::<[u8; CHUNK_OCTETS as usize]>())[(slot % CHUNK_OCTETS) as usize] });
    let palette = TABLES.get(first + size.div_ceil(CHUNK_OCTETS) + number / CHUNK_SLOTS)?;
    Some(u32::from(palette[(number % CHUNK_SLOTS) as usize]))
}

/// The backend of an index, if packets may be sent to it.
#[inline(always)]
pub(crate) fn usable(index: u32) -> Option<&'static BackendValue> {
    let backend = BACKENDS.get(index)?;
    (backend.flags & BACKEND_USABLE != 0).then_some(backend)
}
