//! Sites to test with: a node, VIPs, their tables and backends.

use std::net::IpAddr;

use bpf_abi::FlowKey;
use bpf_abi::balancer::{
    BACKEND_USABLE, BackendValue, BalancedFlowValue, BalancerNodeValue, FlowHash, TunnelValue,
    VIP_BY_ADDRESSES, VIP_ECHO, VIP_FLOW_TABLE, VTEPS, VipKey, VipValue, segment,
};
use dataplane::mapped;

use crate::frames::tunnel::vtep;
use crate::frames::{Flow, PORT, vip};
use crate::model::{State, TCP};

/// VIP of [`site`], as it is counted.
pub(crate) const VIP: u32 = 7;
/// Backend in every slot of [`site`]'s table.
pub(crate) const CURRENT: u32 = 1;
/// Backend in every slot of the previous table, where a test makes one.
pub(crate) const PREVIOUS: u32 = 2;
/// A backend in no table.
pub(crate) const OTHER: u32 = 3;
/// A backend that may not be sent to.
pub(crate) const LOST: u32 = 4;
pub(crate) const SEED: u32 = 0x5eed_0001;

pub(crate) fn backend_mac(index: u32) -> [u8; 6] {
    [2, 0, 0, 1, (index >> 8) as u8, index as u8]
}

/// Next hop to a backend's tunnel endpoint.
pub(crate) fn hop_mac(index: u32) -> [u8; 6] {
    [2, 0, 0, 2, (index >> 8) as u8, index as u8]
}

/// A backend's tunnel endpoint.
pub(crate) fn backend_vtep(v6: bool, index: u32) -> IpAddr {
    if v6 {
        format!("2001:db8:e::1:{index:x}")
    } else {
        format!("10.9.{}.{}", index >> 8 & 0xff, index & 0xff)
    }
    .parse()
    .unwrap()
}

/// Number of the drain where there is a previous table.
pub(crate) const DRAIN: u32 = 9;

/// Serial of a backend where nothing else is said.
pub(crate) const fn serial(index: u32) -> u32 {
    1000 + index
}

/// A VIP to add.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vip<'a> {
    pub(crate) id: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: u8,
    pub(crate) segment: u32,
    pub(crate) flags: u32,
    pub(crate) slots: &'a [u16],
    pub(crate) previous: &'a [u16],
    /// The tables have palettes.
    pub(crate) palette: bool,
}

impl Default for Vip<'_> {
    fn default() -> Self {
        Self {
            id: VIP,
            address: vip(false),
            port: 80,
            protocol: TCP,
            segment: segment::NONE,
            flags: 0,
            slots: &[CURRENT as u16; 64],
            previous: &[],
            palette: false,
        }
    }
}

pub(crate) fn key(address: IpAddr, segment: u32, port: u16, protocol: u8) -> VipKey {
    VipKey { address: mapped(address), segment, port: port.to_be_bytes(), protocol, pad: 0 }
}

impl State {
    /// A node with endpoints of both families, without VIPs.
    pub(crate) fn node() -> Self {
        let mut vteps = [[0; 16]; VTEPS];
        vteps[0] = mapped(vtep(false));
        vteps[1] = mapped(vtep(true));
        let node = BalancerNodeValue {
            mac: PORT,
            seed: SEED,
            flow_hash: FlowHash::of_seed(SEED),
            vtep_count: 2,
            vteps,
            ..BalancerNodeValue::default()
        };
        Self { node, ..Self::default() }
    }

    /// First chunk and size of a new table of indices.
    pub(crate) fn add_table(&mut self, slots: &[u16]) -> (u32, u32) {
        (self.add_octets(&octets(slots)), slots.len() as u32)
    }

    /// Likewise with a palette, in which only every third place is used: an index where its number is.
    pub(crate) fn add_table_with_palette(&mut self, slots: &[u16]) -> (u32, u32) {
        let mut palette: Vec<u16> = Vec::new();
        let mut number = |index: &u16| {
            let at = palette.iter().position(|known| known == index).unwrap_or_else(|| {
                palette.extend([0xbad, 0xbad, *index]);
                palette.len() - 1
            });
            u8::try_from(at).unwrap()
        };
        let numbers: Vec<u8> = slots.iter().map(&mut number).collect();
        let first = self.add_octets(&numbers);
        let palette_first = self.add_octets(&octets(&palette));
        assert_eq!(palette_first, first + numbers.len().div_ceil(64) as u32);
        let palette_chunks = palette.len().div_ceil(32) as u32;
        (first | palette_chunks << 28, slots.len() as u32)
    }

    /// The first of the new chunks that hold these octets.
    fn add_octets(&mut self, octets: &[u8]) -> u32 {
        let first = self.chunks.keys().next_back().map_or(0, |last| last + 1);
        for (chunk, octets) in (first..).zip(octets.chunks(64)) {
            let mut all = [0xff; 64];
            all[..octets.len()].copy_from_slice(octets);
            let word = |at: usize| u16::from_ne_bytes([all[2 * at], all[2 * at + 1]]);
            self.chunks.insert(chunk, std::array::from_fn(word));
        }
        first
    }

    /// The VIP, its address's entry, and the one for fragments if it takes them.
    pub(crate) fn add_vip(&mut self, vip: Vip<'_>) {
        let add = if vip.palette { Self::add_table_with_palette } else { Self::add_table };
        let (table, size) = add(self, vip.slots);
        let (previous_table, previous_size) = add(self, vip.previous);
        let value = VipValue {
            id: vip.id,
            flags: vip.flags,
            table,
            size,
            previous_table,
            previous_size,
            drain: if previous_size > 0 { DRAIN } else { 0 },
            ..VipValue::default()
        };
        let mut insert = |port: u16, protocol: u8, value: VipValue| {
            let key = key(vip.address, vip.segment, port, protocol);
            self.vips.insert(key, value.stamped(&key, vip.id + 1));
        };
        insert(vip.port, vip.protocol, value);
        if vip.flags & VIP_BY_ADDRESSES != 0 {
            insert(0, vip.protocol, value);
        }
        insert(0, 0, VipValue { flags: VIP_ECHO, ..VipValue::default() });
    }

    /// A usable backend with both addresses, behind a tunnel of the given family.
    pub(crate) fn add_backend(&mut self, index: u32, segment: u32, tunnel_v6: bool) {
        let backend =
            BackendValue { mac: backend_mac(index), flags: BACKEND_USABLE, segment, serial: serial(index) };
        let tunnel =
            TunnelValue { vtep: mapped(backend_vtep(tunnel_v6, index)), mac: hop_mac(index), pad: [0; 2] };
        self.backends.insert(index, backend);
        self.tunnels.insert(index, tunnel);
    }

    /// Changes the entries of one VIP.
    pub(crate) fn change(mut self, id: u32, change: impl Fn(&mut VipValue)) -> Self {
        self.vips.values_mut().filter(|vip| vip.id == id).for_each(change);
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// A previous table that names one backend only.
    pub(crate) fn previous(mut self, backend: u32) -> Self {
        let (previous_table, previous_size) = self.add_table(&[backend as u16; 37]);
        self.change(VIP, |vip| {
            (vip.previous_table, vip.previous_size, vip.drain) = (previous_table, previous_size, DRAIN);
        })
    }

    pub(crate) fn flow_table(self) -> Self {
        self.change(VIP, |vip| vip.flags |= VIP_FLOW_TABLE)
    }

    /// Remembers the flow on a backend as it is now, in the drain that is going on.
    pub(crate) fn remembers(self, flow: FlowKey, backend: u32) -> Self {
        self.remembers_since(flow, backend, DRAIN)
    }

    /// Remembers the flow, in a drain of that number.
    pub(crate) fn remembers_since(mut self, flow: FlowKey, backend: u32, drain: u32) -> Self {
        self.flows.insert(flow, BalancedFlowValue { backend, serial: serial(backend), drain, pad: 0 });
        self
    }

    pub(crate) fn unusable(self, backend: u32) -> Self {
        self.with(|state| state.backends.get_mut(&backend).unwrap().flags = 0)
    }
}

fn octets(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// One VIP in one segment for both families and all protocols on port 80, backends behind it.
pub(crate) fn site(segment: u32, backends_segment: u32, flags: u32) -> State {
    let mut state = State::node();
    for index in [CURRENT, PREVIOUS, OTHER, LOST] {
        state.add_backend(index, backends_segment, false);
    }
    for address in [vip(false), vip(true)] {
        for protocol in crate::PROTOCOLS {
            state.add_vip(Vip { address, protocol, segment, flags, ..Vip::default() });
        }
    }
    state.unusable(LOST)
}

/// An untagged one.
pub(crate) fn plain() -> State {
    site(segment::NONE, segment::NONE, 0)
}

pub(crate) fn by_addresses() -> State {
    site(segment::NONE, segment::NONE, VIP_BY_ADDRESSES)
}

/// The key under which a flow is remembered.
pub(crate) fn flow_key(flow: &Flow, protocol: u8, segment: u32) -> FlowKey {
    FlowKey {
        source: mapped(flow.ip.source),
        destination: mapped(flow.ip.destination),
        source_port: flow.source_port.to_be_bytes(),
        destination_port: flow.destination_port.to_be_bytes(),
        protocol: protocol.into(),
        instance_id: segment,
    }
}

/// The same, where ports do not count.
pub(crate) fn addresses_key(flow: &Flow, protocol: u8, segment: u32) -> FlowKey {
    FlowKey { source_port: [0; 2], destination_port: [0; 2], ..flow_key(flow, protocol, segment) }
}
