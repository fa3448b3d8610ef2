//! What the balancer's program has to do, written a second time from `docs/balancer.md`: over vectors, without a map
//! or a pointer.
//!
//! Nothing is shared with the program but the map layout, the published flow hash and `slot`.

mod choice;
mod packet;
mod segment;
mod write;

use std::collections::{BTreeMap, HashMap};

use bpf_abi::balancer::{
    BackendValue, BalancedFlowValue, BalancerNodeValue, TableChunk, TunnelValue, VIP_BY_ADDRESSES, VIP_ECHO,
    VipKey, VipValue,
};
use bpf_abi::{BalancerReason, FlowKey};

use self::packet::{Kind, Packet};
use self::segment::Place;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// What the program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Drop,
    Tx,
}

/// What one frame has to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) reason: BalancerReason,
    pub(crate) verdict: Verdict,
    /// The frame afterwards; of no interest when it is dropped.
    pub(crate) frame: Vec<u8>,
    /// VIP and backend for which one packet with the frame's octets is counted.
    pub(crate) counted: Option<(u32, u32)>,
    /// What is written into the flow table.
    pub(crate) remembered: Option<(FlowKey, BalancedFlowValue)>,
}

/// The maps as values; what is not in them is zero in an array and absent in a hash.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) node: BalancerNodeValue,
    pub(crate) vips: BTreeMap<VipKey, VipValue>,
    pub(crate) chunks: BTreeMap<u32, TableChunk>,
    pub(crate) backends: BTreeMap<u32, BackendValue>,
    pub(crate) tunnels: BTreeMap<u32, TunnelValue>,
    pub(crate) flows: HashMap<FlowKey, BalancedFlowValue>,
}

/// Where a packet of a VIP goes.
struct Choice {
    vip: u32,
    backend: u32,
    reason: BalancerReason,
    remembered: Option<(FlowKey, BalancedFlowValue)>,
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The verdict is in the reason's name.
pub(crate) fn verdict(reason: BalancerReason) -> Verdict {
    match reason.label().split('_').next() {
        Some("pass") => Verdict::Pass,
        Some("drop") => Verdict::Drop,
        _ => Verdict::Tx,
    }
}

impl State {
    /// The program on one frame (at least an Ethernet header).
    pub(crate) fn run(&self, frame: &[u8]) -> Expected {
        self.balance(frame).unwrap_or_else(|reason| Expected {
            reason,
            verdict: verdict(reason),
            frame: frame.to_vec(),
            counted: None,
            remembered: None,
        })
    }

    /// The flow table as the frame leaves it.
    pub(crate) fn remember(&mut self, expected: &Expected) {
        self.flows.extend(expected.remembered);
    }

    fn balance(&self, frame: &[u8]) -> Result<Expected, BalancerReason> {
        if frame[..6] != self.node.mac {
            return Err(BalancerReason::PassNotForUs);
        }
        let place = self.place(frame)?;
        let packet = Packet::parse(place.v6, &frame[place.network..place.end])?;
        let choice = match packet.kind {
            Kind::Fragment => self.fragment(&place, &packet)?,
            Kind::Extension => return Err(self.extension(&place, &packet)),
            Kind::Whole if packet.is_icmp() => {
                if packet.is_echo_request() {
                    return self.echo(frame, &place, &packet);
                }
                self.error(&place, &packet)?
            }
            Kind::Whole => self.whole(&place, &packet)?,
        };
        let written = self.forwarded(frame, &place, choice.backend)?;
        Ok(Expected {
            reason: choice.reason,
            verdict: Verdict::Tx,
            frame: written,
            counted: Some((choice.vip, choice.backend)),
            remembered: choice.remembered,
        })
    }

    /// A value that is not whole is being replaced, and stays so as long as a test looks.
    fn entry(&self, key: VipKey) -> Result<Option<&VipValue>, BalancerReason> {
        match self.vips.get(&key) {
            Some(value) if !is_whole(&key, value) => Err(BalancerReason::DropNotReady),
            entry => Ok(entry),
        }
    }

    /// The entry of an address that has a VIP in the segment.
    fn address(&self, segment: u32, address: [u8; 16]) -> Result<&VipValue, BalancerReason> {
        self.entry(VipKey { address, segment, ..VipKey::default() })?.ok_or(BalancerReason::PassNoVip)
    }

    /// The entry with port 0 is no VIP of a packet with ports.
    fn vip(
        &self,
        segment: u32,
        address: [u8; 16],
        port: [u8; 2],
        protocol: u8,
    ) -> Result<Option<&VipValue>, BalancerReason> {
        if port == [0, 0] {
            return Ok(None);
        }
        self.entry(VipKey { address, segment, port, protocol, pad: 0 })
    }

    /// Rule 4.
    fn fragment(&self, place: &Place, packet: &Packet<'_>) -> Result<Choice, BalancerReason> {
        self.address(place.segment, packet.destination)?;
        let key = VipKey {
            address: packet.destination,
            segment: place.segment,
            port: [0, 0],
            protocol: packet.protocol,
            pad: 0,
        };
        let vip = self.entry(key)?.filter(|_| packet.protocol != 0).ok_or(BalancerReason::DropFragment)?;
        let flow = FlowKey {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol.into(),
            instance_id: place.segment,
            ..FlowKey::default()
        };
        self.choose(vip, flow, false, false)
    }

    /// Rule 5.
    fn extension(&self, place: &Place, packet: &Packet<'_>) -> BalancerReason {
        match self.address(place.segment, packet.destination) {
            Ok(_) => BalancerReason::DropExtensionHeader,
            Err(reason) => reason,
        }
    }

    /// Rule 6, echo requests.
    fn echo(&self, frame: &[u8], place: &Place, packet: &Packet<'_>) -> Result<Expected, BalancerReason> {
        let address = self.address(place.segment, packet.destination)?;
        if place.tunnel.is_some() || address.flags & VIP_ECHO == 0 {
            return Err(BalancerReason::PassIcmp);
        }
        Ok(Expected {
            reason: BalancerReason::EchoAnswered,
            verdict: Verdict::Tx,
            frame: write::echo_reply(frame, place.network, packet),
            counted: None,
            remembered: None,
        })
    }

    /// Rule 6, errors.
    fn error(&self, place: &Place, packet: &Packet<'_>) -> Result<Choice, BalancerReason> {
        self.address(place.segment, packet.destination)?;
        let quote = packet
            .quote()
            .filter(|quote| quote.source == packet.destination)
            .ok_or(BalancerReason::PassIcmp)?;
        let vip = self
            .vip(place.segment, quote.source, quote.source_port, quote.protocol)?
            .ok_or(BalancerReason::PassIcmp)?;
        let flow = FlowKey {
            source: quote.destination,
            destination: quote.source,
            source_port: quote.destination_port,
            destination_port: quote.source_port,
            protocol: quote.protocol.into(),
            instance_id: place.segment,
        };
        let choice = self.choose(vip, flow_of(vip, flow), false, true)?;
        Ok(Choice { reason: BalancerReason::IcmpRelayed, ..choice })
    }

    /// Rule 7.
    fn whole(&self, place: &Place, packet: &Packet<'_>) -> Result<Choice, BalancerReason> {
        if ![TCP, UDP, SCTP].contains(&packet.protocol) {
            return Err(BalancerReason::PassNoVip);
        }
        let [source_port, destination_port] = packet.ports();
        let vip = self
            .vip(place.segment, packet.destination, destination_port, packet.protocol)?
            .ok_or(BalancerReason::PassNoVip)?;
        let flow = FlowKey {
            source: packet.source,
            destination: packet.destination,
            source_port,
            destination_port,
            protocol: packet.protocol.into(),
            instance_id: place.segment,
        };
        self.choose(vip, flow_of(vip, flow), packet.is_first(), false)
    }
}

/// Written to its end, and for this key.
fn is_whole(key: &VipKey, value: &VipValue) -> bool {
    value.generation ^ value.generation_again == key.digest()
}

/// What of a flow counts for the VIP.
fn flow_of(vip: &VipValue, flow: FlowKey) -> FlowKey {
    if vip.flags & VIP_BY_ADDRESSES == 0 {
        return flow;
    }
    FlowKey { source_port: [0, 0], destination_port: [0, 0], ..flow }
}
