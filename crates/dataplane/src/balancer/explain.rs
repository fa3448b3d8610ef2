//! What the program would do with a packet, step by step by the rules of `docs/balancer.md`.

use std::net::IpAddr;

use bpf_abi::FlowKey;
use bpf_abi::balancer::{
    BACKEND_USABLE, BackendValue, BalancedFlowValue, FlowHash, VIP_BY_ADDRESSES, VIP_FLOW_TABLE, VipValue,
    slot,
};
use serde::Serialize;

use crate::balancer::desired::{Protocol, Segment, VipId};
use crate::balancer::table::{self, Table};
use crate::eid::mapped;

/// A flow that somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    /// Segment on which its packets arrive.
    pub segment: Segment,
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The packet is one that begins a connection (TCP SYN, SCTP INIT).
    pub first: bool,
}

/// What the program would do with a packet of a flow now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The VIP that the packet is for.
    pub vip: Option<VipId>,
    /// Its flow hash.
    pub hash: Option<u32>,
    /// What the table says; `None` if no backend takes new flows.
    pub current: Option<SlotChoice>,
    /// What the table before the last change says, while that change is fresh.
    pub previous: Option<SlotChoice>,
    /// Where the flow is remembered.
    pub remembered: Option<Remembered>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Name of the backend that gets it.
    pub backend: Option<String>,
    /// The rule that decides, in words.
    pub because: String,
}

/// A slot of a table and whom it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotChoice {
    /// Slots of the table.
    pub size: u32,
    /// The flow's.
    pub slot: u32,
    /// Index of the backend that it names; `None` if the table is beyond the memory of tables.
    pub index: Option<u16>,
    /// Its name, if the backend is still of the VIP.
    pub name: Option<String>,
    /// Packets may be sent to it.
    pub usable: bool,
}

/// An entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remembered {
    /// Index of the backend.
    pub index: u32,
    /// Its name, if the backend is still of the VIP.
    pub name: Option<String>,
    /// The index has had no other owner since, and packets may be sent there.
    pub valid: bool,
}

/// What becomes of a packet: labels of `weir_balancer_packets_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// To the backend that the table names.
    Forwarded,
    /// To the backend that the flow is remembered on.
    ForwardedFlow,
    /// To the backend that the table before the last change names.
    ForwardedPrevious,
    /// Left to the stack.
    PassNoVip,
    /// Dropped.
    DropNoBackend,
    /// Dropped.
    DropNotReady,
    /// An ICMP error, to the backend of the flow that it is about.
    IcmpRelayed,
    /// An echo request, answered.
    EchoAnswered,
    /// Left to the stack.
    PassIcmp,
    /// Dropped.
    DropFragment,
}

/// What the program looks up, in the kernel or in a test.
pub(crate) trait LookUp {
    /// Why something could not be looked up.
    type Error;
    /// The entry of a VIP.
    fn vip(&self, id: &VipId) -> Result<Option<VipValue>, Self::Error>;
    /// The entry of a VIP's address in its segment.
    fn address(&self, id: &VipId) -> Result<Option<VipValue>, Self::Error>;
    /// Start of the flow hash.
    fn seed(&self) -> Result<u32, Self::Error>;
    /// The index in a slot of a table; `None` if user space has not made it.
    fn slot(&self, table: Table, slot: u32) -> Option<u16>;
    /// The backend of an index.
    fn backend(&self, index: u16) -> Result<BackendValue, Self::Error>;
    /// Where the tunnel of an index's backend ends; `None` if there is none.
    fn vtep(&self, index: u16) -> Result<Option<IpAddr>, Self::Error>;
    /// The node's own tunnel endpoints.
    fn vteps(&self) -> Result<Vec<IpAddr>, Self::Error>;
    /// Where a flow is remembered.
    fn flow(&self, key: &FlowKey) -> Result<Option<BalancedFlowValue>, Self::Error>;
    /// Name of a VIP's backend.
    fn name(&self, vip: &VipId, index: u16) -> Option<String>;
    /// Other VIPs of the address.
    fn others(&self, id: &VipId) -> Vec<VipId>;
}

impl FlowQuery {
    pub(crate) const fn vip(&self) -> VipId {
        let Self { destination, destination_port, protocol, segment, .. } = *self;
        VipId { address: destination, port: destination_port, protocol, segment }
    }

    /// UDP has no first packets.
    fn is_first(&self) -> bool {
        self.first && self.protocol != Protocol::Udp
    }

    fn key(&self, by_addresses: bool) -> FlowKey {
        let port = |port: u16| if by_addresses { [0; 2] } else { port.to_be_bytes() };
        FlowKey {
            source: mapped(self.source),
            destination: mapped(self.destination),
            source_port: port(self.source_port),
            destination_port: port(self.destination_port),
            protocol: u32::from(self.protocol.number()),
            instance_id: self.segment.value(),
        }
    }
}

/// Rules 7 to 9.
///
/// # Errors
/// If something cannot be looked up.
pub(crate) fn explain<L: LookUp>(maps: &L, query: &FlowQuery) -> Result<Explanation, L::Error> {
    let id = query.vip();
    let entry = if id.port == 0 { None } else { maps.vip(&id)? };
    match entry {
        Some(value) => by_rule_8(maps, &id, &value, query),
        None => Ok(no_vip(&id, &maps.others(&id))),
    }
}

/// The backend that the entry of a VIP gives.
///
/// # Errors
/// If something cannot be looked up.
pub(crate) fn by_rule_8<L: LookUp>(
    maps: &L,
    id: &VipId,
    value: &VipValue,
    query: &FlowQuery,
) -> Result<Explanation, L::Error> {
    let key = query.key(value.flags & VIP_BY_ADDRESSES != 0);
    let hash = FlowHash::of_seed(maps.seed()?).of(&key);
    let current = choice(maps, id, hash, table::current(value))?;
    let previous = choice(maps, id, hash, table::previous(value))?;
    let flow_table = value.flags & VIP_FLOW_TABLE != 0;
    let counts = |flow: &BalancedFlowValue| flow_table || flow.drain == value.drain;
    let remembered = match maps.flow(&key)?.filter(counts) {
        Some(flow) => Some(remembered(maps, id, &flow)?),
        None => None,
    };
    let mut decided = decide(query.is_first(), flow_table, &current, &previous, &remembered);
    if let Some(index) = decided.to.filter(|_| id.segment.kind().is_tunnel())
        && let Some(families) = families(maps, index)?
    {
        decided.because = format!("{}, {families}", decided.because);
    }
    Ok(Explanation {
        vip: Some(*id),
        hash: Some(hash),
        verdict: decided.verdict,
        backend: decided.to.and_then(|index| maps.name(id, index)),
        because: decided.because,
        current,
        previous,
        remembered,
    })
}

fn no_vip(id: &VipId, others: &[VipId]) -> Explanation {
    let because = match others {
        [] => format!("no VIP has the address {} (rule 7)", id.address),
        others => {
            let others: Vec<_> = others.iter().map(ToString::to_string).collect();
            format!("{id} is no VIP; the address has {} (rule 7)", others.join(", "))
        }
    };
    nobody(Verdict::PassNoVip, because)
}

/// What no backend gets.
pub(crate) const fn nobody(verdict: Verdict, because: String) -> Explanation {
    let (current, previous, remembered) = (None, None, None);
    Explanation { vip: None, hash: None, current, previous, remembered, verdict, backend: None, because }
}

fn choice<L: LookUp>(maps: &L, vip: &VipId, hash: u32, table: Table) -> Result<Option<SlotChoice>, L::Error> {
    let size = table.size;
    if size == 0 {
        return Ok(None);
    }
    let slot = slot(hash, size);
    let index = maps.slot(table, slot);
    let usable = match index {
        Some(index) => maps.backend(index)?.flags & BACKEND_USABLE != 0,
        None => false,
    };
    let name = index.and_then(|index| maps.name(vip, index));
    Ok(Some(SlotChoice { size, slot, index, name, usable }))
}

fn remembered<L: LookUp>(maps: &L, vip: &VipId, flow: &BalancedFlowValue) -> Result<Remembered, L::Error> {
    let index = u16::try_from(flow.backend).ok();
    let valid = match index {
        Some(index) => {
            let backend = maps.backend(index)?;
            backend.flags & BACKEND_USABLE != 0 && backend.serial == flow.serial
        }
        None => false,
    };
    let name = index.filter(|_| valid).and_then(|index| maps.name(vip, index));
    Ok(Remembered { index: flow.backend, name, valid })
}

struct Decided {
    verdict: Verdict,
    /// Index of the backend that gets it.
    to: Option<u16>,
    because: String,
}

impl Decided {
    const fn sent(verdict: Verdict, to: Option<u16>, because: String) -> Self {
        Self { verdict, to, because }
    }

    const fn dropped(verdict: Verdict, because: String) -> Self {
        Self { verdict, to: None, because }
    }
}

/// Rule 8. The program looks for the current table before it looks at anything that is remembered.
fn decide(
    first: bool,
    flow_table: bool,
    current: &Option<SlotChoice>,
    previous: &Option<SlotChoice>,
    remembered: &Option<Remembered>,
) -> Decided {
    if let Some(SlotChoice { size, slot, index: None, .. }) = current {
        let because =
            format!("slot {slot} of {size} is beyond the memory of tables: this table is not made (rule 8)");
        return Decided::dropped(Verdict::DropNotReady, because);
    }
    let old = if first { None } else { by_what_was(flow_table, current, previous, remembered) };
    old.unwrap_or_else(|| by_table(current))
}

/// What a packet that begins no connection may go by before the current table.
fn by_what_was(
    flow_table: bool,
    current: &Option<SlotChoice>,
    previous: &Option<SlotChoice>,
    remembered: &Option<Remembered>,
) -> Option<Decided> {
    let drains = previous.is_some();
    let valid = remembered.as_ref().filter(|remembered| remembered.valid && (flow_table || drains));
    if let Some(index) = valid.and_then(|remembered| u16::try_from(remembered.index).ok()) {
        let why = if flow_table { "the VIP remembers flows" } else { "it began while the VIP drains" };
        let because = format!("the flow is remembered there, and {why}");
        return Some(Decided::sent(Verdict::ForwardedFlow, Some(index), because));
    }
    let now = current.as_ref().and_then(|current| current.index);
    let previous = previous.as_ref().filter(|previous| previous.index != now && previous.usable)?;
    let because = format!(
        "the VIP drains, and a packet that begins no connection and is not remembered is of one from before: slot {} \
         of the table of then",
        previous.slot
    );
    Some(Decided::sent(Verdict::ForwardedPrevious, previous.index, because))
}

fn by_table(current: &Option<SlotChoice>) -> Decided {
    let Some(SlotChoice { size, slot, index: Some(index), usable, .. }) = current else {
        let because = "the VIP has no table: no backend has a weight and is usable".to_owned();
        return Decided::dropped(Verdict::DropNoBackend, because);
    };
    if *usable {
        let because = format!("slot {slot} of {size} of the current table");
        return Decided::sent(Verdict::Forwarded, Some(*index), because);
    }
    let because = format!("slot {slot} of {size} names backend {index}, which is not usable");
    Decided::dropped(Verdict::DropNoBackend, because)
}

/// Rule 9: what is not asked about, the family of the outer header, decides too where the node has endpoints of both.
fn families<L: LookUp>(maps: &L, index: u16) -> Result<Option<String>, L::Error> {
    let Some(vtep) = maps.vtep(index)? else { return Ok(None) };
    let (family, other) = if vtep.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    let both = maps.vteps()?.iter().any(|own| own.is_ipv4() != vtep.is_ipv4());
    Ok(both.then(|| {
        format!(
            "if the outer header is {family} as its tunnel endpoint {vtep}; behind {other} it is drop_not_ready (rule 9)"
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;

    /// One VIP whose every slot names backend 1, and in the previous table backend 0.
    #[derive(Default)]
    struct Maps {
        flags: u32,
        drains: bool,
        /// User space has not made the current table.
        unmade: bool,
        vteps: Vec<IpAddr>,
        usable: [bool; 2],
        flows: HashMap<FlowKey, BalancedFlowValue>,
    }

    impl LookUp for Maps {
        type Error = Infallible;

        fn vip(&self, id: &VipId) -> Result<Option<VipValue>, Infallible> {
            let previous_size = if self.drains { 251 } else { 0 };
            let drain = if self.drains { 9 } else { 0 };
            let value =
                VipValue { flags: self.flags, size: 251, previous_size, drain, ..VipValue::default() };
            Ok((id.port == 80).then_some(VipValue { table: 8, ..value }))
        }

        fn address(&self, _: &VipId) -> Result<Option<VipValue>, Infallible> {
            Ok(Some(VipValue::default()))
        }

        fn seed(&self) -> Result<u32, Infallible> {
            Ok(7)
        }

        fn slot(&self, table: Table, slot: u32) -> Option<u16> {
            let made = slot < table.size && !(self.unmade && table.first() == 8);
            made.then_some(u16::from(table.first() == 8))
        }

        fn backend(&self, index: u16) -> Result<BackendValue, Infallible> {
            let flags = if self.usable[usize::from(index)] { BACKEND_USABLE } else { 0 };
            Ok(BackendValue { flags, serial: u32::from(index) + 10, ..BackendValue::default() })
        }

        fn vtep(&self, _: u16) -> Result<Option<IpAddr>, Infallible> {
            Ok(self.vteps.first().copied())
        }

        fn vteps(&self) -> Result<Vec<IpAddr>, Infallible> {
            Ok(self.vteps.clone())
        }

        fn flow(&self, key: &FlowKey) -> Result<Option<BalancedFlowValue>, Infallible> {
            Ok(self.flows.get(key).copied())
        }

        fn name(&self, _: &VipId, index: u16) -> Option<String> {
            Some(["old", "new"][usize::from(index)].to_owned())
        }

        fn others(&self, id: &VipId) -> Vec<VipId> {
            vec![VipId { port: 80, ..*id }]
        }
    }

    const QUERY: FlowQuery = FlowQuery {
        segment: Segment::NONE,
        source: IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
        source_port: 1000,
        destination: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10)),
        destination_port: 80,
        protocol: Protocol::Tcp,
        first: false,
    };

    fn verdict(maps: &Maps, query: FlowQuery) -> (Verdict, Option<String>) {
        let Ok(explained) = explain(maps, &query);
        (explained.verdict, explained.backend)
    }

    fn to(verdict: Verdict, name: &str) -> (Verdict, Option<String>) {
        (verdict, Some(name.to_owned()))
    }

    #[test]
    fn while_nothing_changes_the_table_decides() {
        let maps = Maps { usable: [true; 2], ..Maps::default() };
        assert_eq!(verdict(&maps, QUERY), to(Verdict::Forwarded, "new"));
        let none = Maps { usable: [true, false], ..Maps::default() };
        assert_eq!(verdict(&none, QUERY), (Verdict::DropNoBackend, None));
        let Ok(explained) = explain(&maps, &FlowQuery { destination_port: 81, ..QUERY });
        assert_eq!(explained.verdict, Verdict::PassNoVip);
        assert!(explained.because.contains("the address has 192.0.2.10:80/tcp"), "{}", explained.because);
    }

    #[test]
    fn while_a_change_is_fresh_only_what_begins_goes_by_it() {
        let maps = Maps { usable: [true; 2], drains: true, ..Maps::default() };
        assert_eq!(verdict(&maps, QUERY), to(Verdict::ForwardedPrevious, "old"));
        assert_eq!(verdict(&maps, FlowQuery { first: true, ..QUERY }), to(Verdict::Forwarded, "new"));
        let udp = FlowQuery { first: true, protocol: Protocol::Udp, ..QUERY };
        assert_eq!(verdict(&maps, udp), to(Verdict::ForwardedPrevious, "old"), "UDP has no first packets");
        let failed = Maps { usable: [false, true], drains: true, ..Maps::default() };
        assert_eq!(verdict(&failed, QUERY), to(Verdict::Forwarded, "new"));
    }

    #[test]
    fn what_began_in_the_drain_is_remembered_for_it() {
        let mut maps = Maps { usable: [true; 2], drains: true, ..Maps::default() };
        for (drain, expected) in [(9, Verdict::ForwardedFlow), (8, Verdict::ForwardedPrevious)] {
            let value = BalancedFlowValue { backend: 0, serial: 10, drain, pad: 0 };
            maps.flows.insert(QUERY.key(false), value);
            assert_eq!(verdict(&maps, QUERY), to(expected, "old"));
        }
    }

    #[test]
    fn a_table_that_is_not_made_comes_before_what_is_remembered() {
        let mut maps = Maps { usable: [true; 2], drains: true, unmade: true, ..Maps::default() };
        let value = BalancedFlowValue { backend: 0, serial: 10, drain: 9, pad: 0 };
        for flags in [0, VIP_FLOW_TABLE] {
            maps.flags = flags;
            assert_eq!(verdict(&maps, QUERY), (Verdict::DropNotReady, None), "previous");
            maps.flows.insert(QUERY.key(false), value);
            assert_eq!(verdict(&maps, QUERY), (Verdict::DropNotReady, None), "remembered");
            assert_eq!(verdict(&maps, FlowQuery { first: true, ..QUERY }), (Verdict::DropNotReady, None));
            maps.flows.clear();
        }
    }

    #[test]
    fn behind_tunnels_the_family_of_the_endpoint_counts() {
        let because = |vteps: &[&str], segment: &str| {
            let vteps = vteps.iter().map(|vtep| vtep.parse().unwrap()).collect();
            let maps = Maps { usable: [true; 2], vteps, ..Maps::default() };
            let Ok(explained) = explain(&maps, &FlowQuery { segment: segment.parse().unwrap(), ..QUERY });
            assert_eq!(explained.verdict, Verdict::Forwarded);
            explained.because
        };
        let both = because(&["10.0.5.5", "2001:db8::5"], "vxlan:100");
        assert!(both.contains("outer header is IPv4 as its tunnel endpoint 10.0.5.5"), "{both}");
        assert!(both.contains("behind IPv6 it is drop_not_ready (rule 9)"), "{both}");
        // No frame with an outer header of the other family is taken for a tunnel.
        assert!(!because(&["10.0.5.5"], "vxlan:100").contains("rule 9"));
        assert!(!because(&["10.0.5.5", "2001:db8::5"], "802.1q:100").contains("rule 9"));
    }

    #[test]
    fn what_is_remembered_counts_while_its_backend_is_the_same() {
        let remember = |maps: &mut Maps, by_addresses, serial| {
            maps.flows
                .insert(QUERY.key(by_addresses), BalancedFlowValue { backend: 0, serial, drain: 5, pad: 0 });
        };
        let mut maps = Maps { usable: [true; 2], flags: VIP_FLOW_TABLE, ..Maps::default() };
        remember(&mut maps, false, 10);
        assert_eq!(verdict(&maps, QUERY), to(Verdict::ForwardedFlow, "old"));
        assert_eq!(verdict(&maps, FlowQuery { first: true, ..QUERY }), to(Verdict::Forwarded, "new"));
        remember(&mut maps, false, 9);
        assert_eq!(verdict(&maps, QUERY), to(Verdict::Forwarded, "new"), "the index had another owner then");
        maps.flags = VIP_FLOW_TABLE | VIP_BY_ADDRESSES;
        remember(&mut maps, true, 10);
        let other_port = FlowQuery { source_port: 2, ..QUERY };
        assert_eq!(verdict(&maps, other_port), to(Verdict::ForwardedFlow, "old"));
        maps.flags = VIP_BY_ADDRESSES;
        assert_eq!(verdict(&maps, QUERY), to(Verdict::Forwarded, "new"), "the VIP remembers nothing");
    }
}
