//! The tables that most tests start with, and changes of them.

use bpf_abi::{
    ACTION_RESOLVE, BUCKETS, INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED,
    InterfaceValue, LOCATOR_MAC_RESOLVED, LocalEidValue, LocatorValue, MEMBERS, MappingValue, Member,
    NO_MEMBER, NodeValue, SlotValue,
};

use crate::frames::{own_rlocs, service};
use crate::model::{Prefix, Tables, mapped};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const ENCAPSULATE: MappingValue = MappingValue { action: 0, slot: 3, mapping_id: 7, pad: 0 };

/// Both families' services behind locators 1 and 2 (IPv4), their hosts behind this node as well.
pub(crate) fn tables() -> Tables {
    let mut tables = Tables {
        interface: Some(InterfaceValue::default()),
        node: own_rlocs(NodeValue { resolve_ifindex: 1, flow_idle_ns: 100 * SECOND, ..NodeValue::default() }),
        ..Tables::default()
    };
    let eid = LocalEidValue { ifindex: 1, next_hop: [0; 16], local_id: 9 };
    for v6 in [false, true] {
        let bits = if v6 { 64 } else { 120 };
        tables.map_cache.insert(prefix(service(v6, 0), bits), ENCAPSULATE);
        tables.local_eids.insert(prefix(service(v6, 0), bits), eid);
    }
    tables.slots.insert(3, slot(&[(1, true), (2, true)]));
    tables.locators.extend([1, 2].map(|index| (index, locator(index, false))));
    tables
}

pub(crate) fn locator(index: u32, v6: bool) -> LocatorValue {
    let address = |host: u8| if v6 { service(true, host) } else { mapped([192, 0, 2, host]) };
    LocatorValue {
        source: address(1),
        destination: address(10 + index as u8),
        next_hop: address(254),
        ifindex: 1,
        mtu: 1500,
        family: if v6 { 6 } else { 4 },
        flags: LOCATOR_MAC_RESOLVED,
        next_hop_mac: [2, 0, 0, 0, 1, index as u8],
        source_mac: [2, 0, 0, 0, 2, 1],
        pad: 0,
    }
}

/// Members at locators 1.., buckets in turn.
pub(crate) fn slot(members: &[(u32, bool)]) -> SlotValue {
    let mut slot = SlotValue {
        member_count: members.len() as u32,
        pad: 0,
        members: [Member { locator: u32::MAX, usable: 0 }; MEMBERS],
        buckets: [NO_MEMBER; BUCKETS],
    };
    for (member, (locator, usable)) in slot.members.iter_mut().zip(members) {
        *member = Member { locator: *locator, usable: (*usable).into() };
    }
    let usable: Vec<u8> =
        (0..).zip(members).filter(|(_, (_, usable))| *usable).map(|(index, _)| index).collect();
    if !usable.is_empty() {
        slot.buckets.iter_mut().zip(usable.iter().cycle()).for_each(|(bucket, member)| *bucket = *member);
    }
    slot
}

pub(crate) fn prefix(address: [u8; 16], bits: u32) -> Prefix {
    Prefix { instance_id: 0, address, bits }
}

pub(crate) fn rename_instance(tables: &mut Tables, instance_id: u32) {
    tables.interface = Some(InterfaceValue { instance_id, flags: 0 });
    let rename = |(prefix, value)| (Prefix { instance_id, ..prefix }, value);
    tables.map_cache = tables.map_cache.drain().map(rename).collect();
    let rename = |(prefix, value)| (Prefix { instance_id, ..prefix }, value);
    tables.local_eids = tables.local_eids.drain().map(rename).collect();
}

pub(crate) fn locators(tables: &mut Tables, change: fn(&mut LocatorValue)) {
    tables.locators.values_mut().for_each(change);
}

pub(crate) fn over_v6(tables: &mut Tables) {
    tables.locators.iter_mut().for_each(|(index, value)| *value = locator(*index, true));
}

pub(crate) fn from_stack(tables: &mut Tables) {
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_FROM_STACK });
}

pub(crate) fn held_frames(tables: &mut Tables) {
    rename_instance(tables, 5);
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_INSTANCE_IN_MAC });
}

pub(crate) fn action(tables: &mut Tables, action: u32) {
    tables.map_cache.values_mut().for_each(|mapping| mapping.action = action);
}

pub(crate) fn nobody_resolves(tables: &mut Tables) {
    action(tables, ACTION_RESOLVE);
    tables.node.resolve_ifindex = 0;
}

pub(crate) fn slot_index(tables: &mut Tables, slot: u32) {
    tables.map_cache.values_mut().for_each(|mapping| mapping.slot = slot);
}

pub(crate) fn members(tables: &mut Tables, members: &[(u32, bool)]) {
    tables.slots.insert(3, slot(members));
}

pub(crate) fn lost_member(tables: &mut Tables) {
    let mut lost = slot(&[(1, true), (2, false)]);
    lost.buckets = [1; BUCKETS];
    tables.slots.insert(3, lost);
}

pub(crate) fn segment(tables: &mut Tables) {
    tables.node.segment_ifindex = 1;
}

pub(crate) fn segmented(tables: &mut Tables) {
    segment(tables);
    tables.interface = Some(InterfaceValue { instance_id: 0, flags: INTERFACE_SEGMENTED });
}

pub(crate) fn last_own_rloc(tables: &mut Tables) {
    tables.node.rlocs.rotate_right(1);
    tables.node.rlocs.swap(1, 7);
    tables.node.rloc_count = 8;
}

pub(crate) fn to_stack(tables: &mut Tables) {
    tables.local_eids.values_mut().for_each(|eid| eid.ifindex = 0);
}
