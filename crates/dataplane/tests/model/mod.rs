//! What the programs have to do, written a second time: octet by octet, over vectors, without a map or a pointer.
//!
//! Nothing is shared with the programs but the map layout and the published flow hash.

use std::collections::HashMap;

use bpf_abi::{
    ACTION_DROP, ACTION_ENCAPSULATE, ACTION_NATIVE, ACTION_RESOLVE, DECAPSULATED, FLOW_CLOSING, FlowKey,
    FlowValue, INTERFACE_FROM_STACK, INTERFACE_INSTANCE_IN_MAC, INTERFACE_SEGMENTED, InterfaceValue,
    LOCATOR_GPE, LOCATOR_MAC_RESOLVED, LocalEidValue, LocatorValue, MappingValue, NodeValue, OFFERED, Reason,
    SlotValue, TrafficKey, bucket, flow_hash, source_port,
};

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// TC ingress on the loopback device, whose MAC is all zero.
    Tc,
    /// XDP, without any route in the network namespace.
    Xdp,
}

/// What a program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Drop,
    Redirect,
}

/// What one packet has to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) reason: Reason,
    pub(crate) verdict: Verdict,
    /// The packet afterwards; of no interest when it is dropped.
    pub(crate) packet: Vec<u8>,
    /// What is added to flows, packets, bytes.
    pub(crate) traffic: Option<(TrafficKey, [u64; 3])>,
    /// Counters to which one flow is added, whatever becomes of the packet; that of `traffic` is among them.
    pub(crate) flows: Vec<TrafficKey>,
}

/// A prefix in its instance; `bits` of the IPv4-mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix {
    pub(crate) instance_id: u32,
    pub(crate) address: [u8; 16],
    pub(crate) bits: u32,
}

/// The maps as values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) interface: Option<InterfaceValue>,
    pub(crate) map_cache: HashMap<Prefix, MappingValue>,
    pub(crate) slots: HashMap<u32, SlotValue>,
    pub(crate) locators: HashMap<u32, LocatorValue>,
    pub(crate) flows: HashMap<FlowKey, FlowValue>,
    pub(crate) local_eids: HashMap<Prefix, LocalEidValue>,
    pub(crate) node: NodeValue,
    /// Flows that the packet at hand opened.
    pub(crate) counted: Vec<TrafficKey>,
}

/// The packet of an EID, taken apart.
struct Ip {
    version: u8,
    header: usize,
    length: usize,
    tos: u8,
    ttl: u8,
    protocol: u8,
    fragment: bool,
    source: [u8; 16],
    destination: [u8; 16],
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

type Stop = (Reason, Verdict);

const fn pass(reason: Reason) -> Stop {
    (reason, Verdict::Pass)
}

const fn drop(reason: Reason) -> Stop {
    (reason, Verdict::Drop)
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

pub(crate) fn mapped(v4: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

impl Ip {
    /// `room`: octets that the packet may have; with `gso` it has them all.
    fn parse(bytes: &[u8], room: usize, gso: bool) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 if bytes.len() >= 20 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let length = if gso { room } else { be16(bytes, 2) };
                let fragment = be16(bytes, 6) & 0x3fff != 0;
                (header >= 20 && length >= header && length <= room).then(|| Self {
                    version: 4,
                    header,
                    length,
                    tos: bytes[1],
                    ttl: bytes[8],
                    protocol: bytes[9],
                    fragment,
                    source: mapped(bytes[12..16].try_into().unwrap()),
                    destination: mapped(bytes[16..20].try_into().unwrap()),
                })
            }
            6 if bytes.len() >= 40 => {
                let length = if gso { room } else { 40 + be16(bytes, 4) };
                (length <= room).then(|| Self {
                    version: 6,
                    header: 40,
                    length,
                    tos: (be16(bytes, 0) >> 4 & 0xff) as u8,
                    ttl: bytes[7],
                    protocol: bytes[6],
                    fragment: bytes[6] == 44,
                    source: bytes[8..24].try_into().unwrap(),
                    destination: bytes[24..40].try_into().unwrap(),
                })
            }
            _ => None,
        }
    }

    /// Flow and TCP flags; `bytes` from the network header to the end of the frame.
    fn flow(&self, bytes: &[u8], instance_id: u32) -> Option<(FlowKey, u8)> {
        let addresses =
            FlowKey { source: self.source, destination: self.destination, instance_id, ..FlowKey::default() };
        if self.fragment || ![TCP, UDP, SCTP].contains(&self.protocol) {
            return Some((addresses, 0));
        }
        let (required, touched) = if self.protocol == TCP { (20, 14) } else { (8, 4) };
        if self.length < self.header + required || bytes.len() < self.header + touched {
            return None;
        }
        let l4 = &bytes[self.header..];
        let key = FlowKey {
            source_port: [l4[0], l4[1]],
            destination_port: [l4[2], l4[3]],
            protocol: self.protocol.into(),
            ..addresses
        };
        Some((key, if self.protocol == TCP { l4[13] } else { 0 }))
    }

    /// Largest packet on the wire, packets, octets.
    fn on_wire(&self, bytes: &[u8], gso_size: usize) -> (usize, u64, u64) {
        let transport = match self.protocol {
            TCP => bytes.get(self.header + 13).map_or(60, |_| usize::from(bytes[self.header + 12] >> 4) * 4),
            UDP => 8,
            _ => 60,
        };
        let headers = self.header + transport;
        if gso_size == 0 || self.length <= headers + gso_size {
            return (self.length, 1, self.length as u64);
        }
        let segments: Vec<usize> = (0..self.length - headers)
            .step_by(gso_size)
            .map(|at| gso_size.min(self.length - headers - at))
            .collect();
        let bytes = segments.iter().map(|payload| (payload + headers) as u64).sum();
        (segments[0] + headers, segments.len() as u64, bytes)
    }
}

fn longest<V: Copy>(table: &HashMap<Prefix, V>, instance_id: u32, address: [u8; 16]) -> Option<V> {
    let number = u128::from_be_bytes(address);
    let matches = |p: &Prefix| {
        let mask = if p.bits == 0 { 0 } else { u128::MAX << (128 - p.bits) };
        p.instance_id == instance_id && (u128::from_be_bytes(p.address) ^ number) & mask == 0
    };
    table.iter().filter(|(p, _)| matches(p)).max_by_key(|(p, _)| p.bits).map(|(_, v)| *v)
}

/// The header with other TOS and TTL; a checksum that was right stays right, a wrong one stays as wrong.
fn rewritten(ip: &Ip, header: &[u8], tos: u8, ttl: u8) -> Vec<u8> {
    let mut new = header.to_vec();
    if ip.version == 6 {
        new[0] = 0x60 | tos >> 4;
        new[1] = tos << 4 | header[1] & 15;
        new[7] = ttl;
        return new;
    }
    let sum =
        |bytes: &[u8]| (0..20).step_by(2).filter(|at| *at != 10).map(|at| be16(bytes, at)).sum::<usize>();
    (new[1], new[8]) = (tos, ttl);
    let checksum = (be16(header, 10) + sum(header) + 0xffff * 20 - sum(&new)) % 0xffff;
    new[10..12].copy_from_slice(&(checksum as u16).to_be_bytes());
    new
}

fn internet_checksum(header: &[u8]) -> u16 {
    let sum: usize = (0..header.len()).step_by(2).map(|at| be16(header, at)).sum();
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

fn for_us(hook: Hook, frame: &[u8]) -> bool {
    match hook {
        Hook::Tc => frame[..6] == [0; 6],
        Hook::Xdp => frame[0] & 1 == 0,
    }
}

fn ethertype(frame: &[u8]) -> Option<u8> {
    match be16(frame, 12) {
        0x0800 => Some(4),
        0x86dd => Some(6),
        _ => None,
    }
}

impl Tables {
    /// The ITR on one frame (at least an Ethernet header).
    pub(crate) fn itr(&mut self, hook: Hook, frame: &[u8], gso_size: usize, now: u64) -> Expected {
        self.counted.clear();
        let stopped = |(reason, verdict)| Expected {
            reason,
            verdict,
            packet: frame.to_vec(),
            traffic: None,
            flows: Vec::new(),
        };
        let expected = self.encapsulate(hook, frame, gso_size, now).unwrap_or_else(stopped);
        Expected { flows: std::mem::take(&mut self.counted), ..expected }
    }

    fn encapsulate(&mut self, hook: Hook, frame: &[u8], gso_size: usize, now: u64) -> Result<Expected, Stop> {
        let family = ethertype(frame).filter(|_| for_us(hook, frame)).ok_or(pass(Reason::PassNotLisp))?;
        let bytes = &frame[14..];
        let ip = Ip::parse(bytes, bytes.len(), gso_size != 0)
            .filter(|ip| ip.version == family)
            .ok_or(drop(Reason::DropMalformed))?;
        let interface = self.interface.ok_or(drop(Reason::DropNotReady))?;
        let instance_id = if interface.flags & INTERFACE_INSTANCE_IN_MAC == 0 {
            interface.instance_id
        } else if frame[6..8] == [2, 0] {
            u32::from_be_bytes(frame[8..12].try_into().unwrap())
        } else {
            return Err(pass(Reason::PassNotLisp));
        };
        let mapping =
            longest(&self.map_cache, instance_id, ip.destination).ok_or(pass(Reason::PassNotLisp))?;
        match mapping.action {
            ACTION_ENCAPSULATE => {}
            ACTION_NATIVE => return Err(pass(Reason::PassNative)),
            ACTION_DROP => return Err(drop(Reason::DropPolicy)),
            ACTION_RESOLVE => return self.resolve(frame, instance_id),
            _ => return Err(drop(Reason::DropNotReady)),
        }
        let from_stack = interface.flags & INTERFACE_FROM_STACK != 0;
        let ttl = match ip.ttl {
            ttl if from_stack => ttl,
            0 | 1 => return Err(pass(Reason::PassTtl)),
            ttl => ttl - 1,
        };
        let (key, tcp_flags) = ip.flow(bytes, instance_id).ok_or(drop(Reason::DropMalformed))?;
        let hash = flow_hash(&key);
        let (index, is_new) = self.place(&mapping, key, hash, tcp_flags, now)?;
        let locator = *self.locators.get(&index).ok_or(drop(Reason::DropNotReady))?;
        let overhead = match locator.family {
            4 => 36,
            6 => 56,
            _ => return Err(drop(Reason::DropNotReady)),
        };
        let (largest, packets, octets) = ip.on_wire(bytes, gso_size);
        if largest + overhead > locator.mtu as usize {
            return Err(if from_stack { drop(Reason::DropTooBig) } else { pass(Reason::PassTooBig) });
        }
        if hook == Hook::Xdp && locator.flags & LOCATOR_MAC_RESOLVED == 0 {
            return Err(pass(Reason::PassNoNextHop));
        }
        let mut packet = frame[..12].to_vec();
        if hook == Hook::Xdp {
            packet[..6].copy_from_slice(&locator.next_hop_mac);
            packet[6..].copy_from_slice(&locator.source_mac);
        }
        packet.extend(outer(&locator, &ip, ttl, hash, instance_id));
        packet.extend(if ttl == ip.ttl {
            bytes[..20].to_vec()
        } else {
            rewritten(&ip, &bytes[..20], ip.tos, ttl)
        });
        packet.extend(&bytes[20..]);
        let key = TrafficKey { id: mapping.mapping_id, locator: index };
        Ok(Expected {
            reason: Reason::Encapsulated,
            verdict: Verdict::Redirect,
            packet,
            traffic: Some((key, [is_new.into(), packets, octets])),
            flows: Vec::new(),
        })
    }

    fn resolve(&self, frame: &[u8], instance_id: u32) -> Result<Expected, Stop> {
        if self.node.resolve_ifindex == 0 {
            return Err(drop(Reason::DropUnresolved));
        }
        let mut packet = frame.to_vec();
        packet[6..8].copy_from_slice(&[2, 0]);
        packet[8..12].copy_from_slice(&instance_id.to_be_bytes());
        Ok(Expected {
            reason: Reason::Resolve,
            verdict: Verdict::Redirect,
            packet,
            traffic: None,
            flows: Vec::new(),
        })
    }

    fn place(
        &mut self,
        mapping: &MappingValue,
        key: FlowKey,
        hash: u32,
        tcp_flags: u8,
        now: u64,
    ) -> Result<(u32, bool), Stop> {
        // An entry nobody wrote is all zero: no member is usable.
        let empty = SlotValue {
            member_count: 0,
            pad: 0,
            members: Default::default(),
            buckets: [0; bpf_abi::BUCKETS],
        };
        let in_table = (mapping.slot as usize) < bpf_abi::SLOTS;
        let slot = self
            .slots
            .get(&mapping.slot)
            .or_else(|| in_table.then_some(&empty))
            .ok_or(drop(Reason::DropNotReady))?;
        let usable = |member: u32| slot.members.get(member as usize).filter(|m| m.usable != 0);
        let syn = tcp_flags & 0x12 == 0x02;
        let closing = if tcp_flags & 0x05 != 0 { FLOW_CLOSING } else { 0 };
        let mut known = false;
        if let Some(flow) = self.flows.get_mut(&key).filter(|_| self.node.flow_idle_ns != 0) {
            let idle = now.saturating_sub(flow.last_seen);
            let anew = syn && (flow.flags == FLOW_CLOSING || idle > 60_000_000_000);
            let same = usable(flow.member).is_some_and(|m| m.locator == flow.locator);
            known = !anew && flow.mapping_id == mapping.mapping_id && idle < self.node.flow_idle_ns;
            if same && known {
                flow.flags |= closing;
                if idle > 1_000_000_000 {
                    flow.last_seen = now;
                }
                return Ok((flow.locator, false));
            }
        }
        let member = slot.buckets[bucket(hash)];
        let locator = usable(member.into()).map(|m| m.locator);
        let mapping_id = mapping.mapping_id;
        let sticky = self.node.flow_idle_ns != 0;
        let is_new = if sticky { !known } else { syn };
        if is_new {
            self.counted.push(TrafficKey { id: mapping_id, locator: OFFERED });
        }
        if sticky && (is_new || locator.is_some()) {
            let member = if locator.is_some() { member.into() } else { u32::MAX };
            let locator = locator.unwrap_or(u32::MAX);
            self.flows.insert(key, FlowValue { last_seen: now, mapping_id, member, locator, flags: closing });
        }
        let locator = locator.ok_or(drop(Reason::DropNoLocator))?;
        let placed = sticky || syn;
        if placed {
            self.counted.push(TrafficKey { id: mapping_id, locator });
        }
        Ok((locator, placed))
    }

    /// Whatever comes out of the segmenting veth is for this node.
    fn takes(&self, hook: Hook, frame: &[u8]) -> bool {
        let segmented = self.interface.is_some_and(|i| i.flags & INTERFACE_SEGMENTED != 0);
        for_us(hook, frame) || hook == Hook::Tc && segmented
    }

    /// The ETR on one frame (at least an Ethernet header).
    pub(crate) fn etr(&self, hook: Hook, frame: &[u8], gso_size: usize) -> Expected {
        self.decapsulate(hook, frame, gso_size).unwrap_or_else(|(reason, verdict)| Expected {
            reason,
            verdict,
            packet: frame.to_vec(),
            traffic: None,
            flows: Vec::new(),
        })
    }

    fn decapsulate(&self, hook: Hook, frame: &[u8], gso_size: usize) -> Result<Expected, Stop> {
        let not_lisp = pass(Reason::PassNotLisp);
        let malformed = drop(Reason::DropMalformed);
        let gso = gso_size != 0;
        let family = ethertype(frame).filter(|_| self.takes(hook, frame)).ok_or(not_lisp)?;
        let outer = Ip::parse(&frame[14..], frame.len() - 14, gso)
            .filter(|ip| ip.version == family)
            .ok_or(not_lisp)?;
        let udp = frame.get(14 + outer.header..).filter(|udp| udp.len() >= 16).ok_or(not_lisp)?;
        if outer.protocol != UDP || outer.fragment || be16(udp, 2) != 4341 {
            return Err(not_lisp);
        }
        let own = &self.node.rlocs[..self.node.rloc_count as usize];
        if !own.contains(&outer.destination) {
            return Err(not_lisp);
        }
        let payload = outer.length - outer.header;
        let length = if gso { payload } else { be16(udp, 4) };
        if length < 16 || length > payload {
            return Err(malformed);
        }
        let flags = udp[8];
        let no_ip = flags & 0x94 == 0x04 && udp[11] > 2;
        if flags & 3 != 0 || no_ip {
            return Err(drop(Reason::DropHeader));
        }
        let instance_id = if flags & 8 == 0 { 0 } else { u32::from_be_bytes([0, udp[12], udp[13], udp[14]]) };
        let bytes = &udp[16..];
        let inner = Ip::parse(bytes, length - 16, gso).ok_or(malformed)?;
        let eid =
            longest(&self.local_eids, instance_id, inner.destination).ok_or(drop(Reason::DropNotLocal))?;
        let ecn = ECN[usize::from(inner.tos & 3)][usize::from(outer.tos & 3)].ok_or(drop(Reason::DropEcn))?;
        if gso && inner.protocol == UDP && self.node.segment_ifindex != 0 {
            if self.interface.is_some_and(|i| i.flags & INTERFACE_SEGMENTED != 0) {
                return Err(drop(Reason::DropAdjustRoom));
            }
            let packet = frame.to_vec();
            return Ok(Expected {
                reason: Reason::Segment,
                verdict: Verdict::Redirect,
                packet,
                traffic: None,
                flows: Vec::new(),
            });
        }
        let ttl = inner.ttl.min(outer.ttl);
        let mut reason = Reason::Decapsulated;
        let mut verdict = Verdict::Pass;
        if eid.ifindex != 0 && ttl <= 1 {
            reason = Reason::PassTtl;
        } else if eid.ifindex != 0 && hook == Hook::Tc {
            verdict = Verdict::Redirect;
        }
        let ttl = if verdict == Verdict::Redirect { ttl - 1 } else { ttl };
        let mut packet = frame[..12].to_vec();
        packet.extend(if inner.version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        let tos = outer.tos & 0xfc | ecn;
        let same = (tos, ttl) == (inner.tos, inner.ttl);
        packet.extend(if same { bytes[..20].to_vec() } else { rewritten(&inner, &bytes[..20], tos, ttl) });
        packet.extend(&bytes[20..]);
        let (_, packets, octets) = inner.on_wire(bytes, gso_size);
        let key = TrafficKey { id: eid.local_id, locator: DECAPSULATED };
        let traffic = (reason == Reason::Decapsulated).then_some((key, [0, packets, octets]));
        Ok(Expected { reason, verdict, packet, traffic, flows: Vec::new() })
    }
}

/// RFC 6040 §4.2, figure 4: rows inner, columns outer; Not-ECT, ECT(1), ECT(0), CE as their code points.
pub(crate) const ECN: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

/// Everything from the EtherType to the LISP header.
fn outer(locator: &LocatorValue, ip: &Ip, ttl: u8, hash: u32, instance_id: u32) -> Vec<u8> {
    let udp_length = field(ip.length + 16);
    let mut all = Vec::new();
    if locator.family == 4 {
        let mut header = vec![0x45, ip.tos];
        header.extend(field(ip.length + 36));
        header.extend([0, 0, 0x40, 0, ttl, UDP, 0, 0]);
        header.extend(&locator.source[12..]);
        header.extend(&locator.destination[12..]);
        let checksum = internet_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        all.extend([0x08, 0x00]);
        all.extend(header);
    } else {
        all.extend([0x86, 0xdd]);
        all.extend((6 << 28 | u32::from(ip.tos) << 20 | hash & 0xf_ffff).to_be_bytes());
        all.extend(udp_length);
        all.extend([UDP, ttl]);
        all.extend(locator.source);
        all.extend(locator.destination);
    }
    all.extend(source_port(hash).to_be_bytes());
    all.extend(4341_u16.to_be_bytes());
    all.extend(udp_length);
    all.extend([0, 0]);
    all.extend(match (locator.flags & LOCATOR_GPE != 0, ip.version) {
        (true, 4) => [0x0c, 0, 0, 1],
        (true, _) => [0x0c, 0, 0, 2],
        (false, _) if instance_id != 0 => [0x08, 0, 0, 0],
        (false, _) => [0; 4],
    });
    all.extend((instance_id << 8).to_be_bytes());
    all
}

/// A length field; 0 where it does not fit.
fn field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(0).to_be_bytes()
}
