//! Who has which link-layer address: ARP (RFC 826) and Neighbour Discovery (RFC 4861) as whole Ethernet frames.
//!
//! Tags are part of the frame, so that whoever sends one needs no device for the VLAN.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::reader::{DecodeError, Reader};
use crate::writer::Writer;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Everybody on the link.
pub const BROADCAST: Mac = [0xff; 6];
/// Every IPv6 node on the link: `ff02::1`.
pub const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];

const DOT1Q: u16 = 0x8100;
const DOT1AD: u16 = 0x88a8;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options that carry a link-layer address (RFC 4861 §4.6.1).
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// A router would have taken one off (RFC 4861 §7.1): only neighbours can send it.
const HOP_LIMIT: u8 = 255;

/// A VLAN id: 1 to 4094. 0 is no VLAN, 4095 is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// `None` unless `id` is 1 to 4094.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match id {
            1..=4094 => Some(Self(id)),
            _ => None,
        }
    }

    /// 1 to 4094.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The tags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vlan {
    /// Untagged, or tagged for its priority only (VID 0).
    #[default]
    None,
    /// One 802.1Q tag.
    Dot1q(VlanId),
    /// An 802.1ad tag, and the 802.1Q tag behind it if there is one.
    Dot1ad(VlanId, Option<VlanId>),
}

/// An Ethernet frame with a question for a neighbour, or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// In which VLAN. Priorities are not kept.
    pub vlan: Vlan,
    /// What it says.
    pub message: Message,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// ARP for Ethernet and IPv4.
    Arp(Arp),
    /// Neighbour Solicitation.
    Solicitation(Solicitation),
    /// Neighbour Advertisement.
    Advertisement(Advertisement),
}

/// An ARP packet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub operation: ArpOperation,
    /// Link-layer address of the sender.
    pub sender_mac: Mac,
    /// Address of the sender; unspecified in an ARP probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// Link-layer address of the target; zero in a question.
    pub target_mac: Mac,
    /// Address of the target.
    pub target: Ipv4Addr,
}

/// `ar$op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// 1.
    Request,
    /// 2.
    Reply,
    /// RARP and others.
    Other(u16),
}

/// A Neighbour Solicitation (RFC 4861 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks; unspecified while it looks for duplicates of its own address.
    pub source: Ipv6Addr,
    /// The target, or its solicited-node multicast address.
    pub destination: Ipv6Addr,
    /// Who is asked for.
    pub target: Ipv6Addr,
    /// Link-layer address of who asks; never together with an unspecified source.
    pub source_mac: Option<Mac>,
}

/// A Neighbour Advertisement (RFC 4861 §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Who says so.
    pub source: Ipv6Addr,
    /// Who asked, or all nodes.
    pub destination: Ipv6Addr,
    /// Of whom it speaks.
    pub target: Ipv6Addr,
    /// It is a router.
    pub router: bool,
    /// It answers a solicitation; never together with a multicast destination.
    pub solicited: bool,
    /// What was known before is to be replaced.
    pub overrides: bool,
    /// The target's link-layer address.
    pub target_mac: Option<Mac>,
}

/// What a frame tells about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose address.
    pub address: IpAddr,
    /// The link-layer address; `None` if the answer confirms what the asker has.
    pub mac: Option<Mac>,
    /// Another link-layer address known before is to be replaced (RFC 4861 §7.2.5).
    pub replaces: bool,
}

impl Frame {
    /// An ARP request. `to` names the neighbour if only it is to be asked, as when an answer of its is refreshed.
    #[must_use]
    pub fn request(vlan: Vlan, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr, to: Option<Mac>) -> Self {
        let arp =
            Arp { operation: ArpOperation::Request, sender_mac: mac, sender, target_mac: [0; 6], target };
        Self { destination: to.unwrap_or(BROADCAST), source: mac, vlan, message: Message::Arp(arp) }
    }

    /// A Neighbour Solicitation; `to` as in [`Self::request`].
    #[must_use]
    pub fn solicitation(vlan: Vlan, mac: Mac, source: Ipv6Addr, target: Ipv6Addr, to: Option<Mac>) -> Self {
        let group = solicited_node(target);
        let message = Solicitation {
            source,
            destination: if to.is_some() { target } else { group },
            target,
            source_mac: (!source.is_unspecified()).then_some(mac),
        };
        let destination = to.unwrap_or_else(|| multicast_mac(group));
        Self { destination, source: mac, vlan, message: Message::Solicitation(message) }
    }

    /// Whose link-layer address the frame tells, if it tells one that a neighbour can have.
    #[must_use]
    pub fn claim(&self) -> Option<Claim> {
        let claim = match self.message {
            Message::Arp(Arp { sender, sender_mac, .. }) if !sender.is_unspecified() => {
                Claim { address: sender.into(), mac: Some(sender_mac), replaces: true }
            }
            Message::Advertisement(Advertisement { target, target_mac, overrides, .. }) => {
                Claim { address: target.into(), mac: target_mac, replaces: overrides }
            }
            _ => return None,
        };
        let possible = |mac: Mac| mac[0] & 1 == 0 && mac != [0; 6];
        claim.mac.is_none_or(possible).then_some(claim)
    }

    /// The octets to send, without padding and frame check sequence.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(&self.destination);
        w.bytes(&self.source);
        match self.vlan {
            Vlan::None => {}
            Vlan::Dot1q(id) => tag(&mut w, DOT1Q, id),
            Vlan::Dot1ad(service, customer) => {
                tag(&mut w, DOT1AD, service);
                if let Some(id) = customer {
                    tag(&mut w, DOT1Q, id);
                }
            }
        }
        match &self.message {
            Message::Arp(arp) => arp.write(&mut w),
            Message::Solicitation(message) => message.write(&mut w),
            Message::Advertisement(message) => message.write(&mut w),
        }
        w.into_vec()
    }

    /// Reads a frame; what follows the message is padding.
    ///
    /// # Errors
    /// If the frame is neither ARP for IPv4 nor Neighbour Discovery that RFC 4861 §7.1 lets through, or is cut off.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let destination = r.array("destination MAC")?;
        let source = r.array("source MAC")?;
        let (vlan, kind) = read_tags(&mut r)?;
        let message = match kind {
            ARP => Message::Arp(Arp::read(&mut r)?),
            IPV6 => read_ipv6(&mut r)?,
            other => return Err(DecodeError::Invalid { field: "EtherType", value: other.into() }),
        };
        Ok(Self { destination, source, vlan, message })
    }
}

/// The group in which whoever has `address` listens (RFC 4291 §2.7.1).
#[must_use]
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a as u16, u16::from_be_bytes([b, c]))
}

/// The link-local address that a port with this link-layer address has by default (RFC 4291, appendix A).
#[must_use]
pub const fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let word = u16::from_be_bytes;
    Ipv6Addr::new(0xfe80, 0, 0, 0, word([a ^ 2, b]), word([c, 0xff]), word([0xfe, d]), word([e, f]))
}

/// RFC 2464 §7.
const fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn tag(w: &mut Writer, protocol: u16, id: VlanId) {
    w.u16(protocol);
    w.u16(id.get());
}

/// The tags and the EtherType behind them.
fn read_tags(r: &mut Reader<'_>) -> Result<(Vlan, u16), DecodeError> {
    match r.u16("EtherType")? {
        DOT1Q => {
            let vlan = read_vid(r)?.map_or(Vlan::None, Vlan::Dot1q);
            Ok((vlan, r.u16("EtherType")?))
        }
        DOT1AD => {
            let service = read_vid(r)?;
            let kind = r.u16("EtherType")?;
            let (customer, kind) = match kind {
                DOT1Q => (read_vid(r)?, r.u16("EtherType")?),
                _ => (None, kind),
            };
            match (service, customer) {
                (Some(service), customer) => Ok((Vlan::Dot1ad(service, customer), kind)),
                (None, None) => Ok((Vlan::None, kind)),
                (None, Some(_)) => Err(DecodeError::Invalid { field: "S-VID", value: 0 }),
            }
        }
        kind => Ok((Vlan::None, kind)),
    }
}

fn read_vid(r: &mut Reader<'_>) -> Result<Option<VlanId>, DecodeError> {
    let id = r.u16("tag")? & 0xfff;
    require("VLAN id", id.into(), id < 0xfff)?;
    Ok(VlanId::new(id))
}

fn require(field: &'static str, value: u64, right: bool) -> Result<(), DecodeError> {
    if right { Ok(()) } else { Err(DecodeError::Invalid { field, value }) }
}

impl Arp {
    fn write(&self, w: &mut Writer) {
        w.u16(ARP);
        w.u16(1);
        w.u16(0x0800);
        w.u8(6);
        w.u8(4);
        w.u16(match self.operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
            ArpOperation::Other(code) => code,
        });
        w.bytes(&self.sender_mac);
        w.ip(self.sender.into());
        w.bytes(&self.target_mac);
        w.ip(self.target.into());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let hardware = r.u16("ARP hardware type")?;
        require("ARP hardware type", hardware.into(), hardware == 1)?;
        let protocol = r.u16("ARP protocol type")?;
        require("ARP protocol type", protocol.into(), protocol == 0x0800)?;
        let lengths = r.u16("ARP address lengths")?;
        require("ARP address lengths", lengths.into(), lengths == 0x0604)?;
        let operation = match r.u16("ARP operation")? {
            1 => ArpOperation::Request,
            2 => ArpOperation::Reply,
            code => ArpOperation::Other(code),
        };
        Ok(Self {
            operation,
            sender_mac: r.array("ARP sender MAC")?,
            sender: r.ipv4("ARP sender")?,
            target_mac: r.array("ARP target MAC")?,
            target: r.ipv4("ARP target")?,
        })
    }
}

impl Solicitation {
    fn write(&self, w: &mut Writer) {
        let option = self.source_mac.map(|mac| (SOURCE_MAC, mac));
        write_ipv6(w, self.source, self.destination, SOLICITATION, 0, self.target, option);
    }

    fn read(r: &mut Reader<'_>, packet: &Packet) -> Result<Self, DecodeError> {
        r.u32("reserved")?;
        let target = read_target(r)?;
        let source_mac = read_mac(r, SOURCE_MAC)?;
        let Packet { source, destination } = *packet;
        if source.is_unspecified() {
            require("source link-layer address of an unspecified source", 1, source_mac.is_none())?;
            let group = destination.octets();
            require("destination", group[15].into(), destination == solicited_node(destination))?;
        }
        Ok(Self { source, destination, target, source_mac })
    }
}

impl Advertisement {
    fn write(&self, w: &mut Writer) {
        let bit = |set: bool, bit: u32| if set { 1_u32 << bit } else { 0 };
        let flags = bit(self.router, 31) | bit(self.solicited, 30) | bit(self.overrides, 29);
        let option = self.target_mac.map(|mac| (TARGET_MAC, mac));
        write_ipv6(w, self.source, self.destination, ADVERTISEMENT, flags, self.target, option);
    }

    fn read(r: &mut Reader<'_>, packet: &Packet) -> Result<Self, DecodeError> {
        let flags = r.u32("flags")?;
        let target = read_target(r)?;
        let target_mac = read_mac(r, TARGET_MAC)?;
        let Packet { source, destination } = *packet;
        let bit = |bit: u32| flags >> bit & 1 == 1;
        require("solicited flag to a group", flags.into(), !(bit(30) && destination.is_multicast()))?;
        Ok(Self {
            source,
            destination,
            target,
            router: bit(31),
            solicited: bit(30),
            overrides: bit(29),
            target_mac,
        })
    }
}

struct Packet {
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

fn write_ipv6(
    w: &mut Writer,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    flags: u32,
    target: Ipv6Addr,
    option: Option<(u8, Mac)>,
) {
    let mut message = Writer::new();
    message.u32(flags);
    message.ip(target.into());
    if let Some((code, mac)) = option {
        message.u8(code);
        message.u8(1);
        message.bytes(&mac);
    }
    let message = message.into_vec();
    let length = 4 + if option.is_some() { 28_u16 } else { 20 };
    w.u16(IPV6);
    w.u32(6 << 28);
    w.u16(length);
    w.u8(ICMPV6);
    w.u8(HOP_LIMIT);
    w.ip(source.into());
    w.ip(destination.into());
    w.u8(kind);
    w.u8(0);
    let head = [kind, 0, 0, 0];
    w.u16(!checksum(source, destination, u32::from(length), &[&head, &message]));
    w.bytes(&message);
}

fn read_ipv6(r: &mut Reader<'_>) -> Result<Message, DecodeError> {
    let version = r.u32("IPv6 version")? >> 28;
    require("IPv6 version", version.into(), version == 6)?;
    let length = r.u16("IPv6 payload length")?;
    let next = r.u8("IPv6 next header")?;
    require("IPv6 next header", next.into(), next == ICMPV6)?;
    let hops = r.u8("IPv6 hop limit")?;
    require("IPv6 hop limit", hops.into(), hops == HOP_LIMIT)?;
    let packet = Packet { source: r.ipv6("IPv6 source")?, destination: r.ipv6("IPv6 destination")? };
    let mut r = r.sub(length.into(), "ICMPv6 message")?;
    let sum = checksum(packet.source, packet.destination, length.into(), &[r.rest()]);
    require("ICMPv6 checksum", sum.into(), sum == 0xffff)?;
    let kind = r.u8("ICMPv6 type")?;
    let code = r.u8("ICMPv6 code")?;
    require("ICMPv6 code", code.into(), code == 0)?;
    r.u16("ICMPv6 checksum")?;
    match kind {
        SOLICITATION => Solicitation::read(&mut r, &packet).map(Message::Solicitation),
        ADVERTISEMENT => Advertisement::read(&mut r, &packet).map(Message::Advertisement),
        other => Err(DecodeError::Invalid { field: "ICMPv6 type", value: other.into() }),
    }
}

fn read_target(r: &mut Reader<'_>) -> Result<Ipv6Addr, DecodeError> {
    let target = r.ipv6("target")?;
    require("target", target.octets()[0].into(), !target.is_multicast())?;
    Ok(target)
}

/// The link-layer address in the first option of that code; all options must be whole.
fn read_mac(r: &mut Reader<'_>, code: u8) -> Result<Option<Mac>, DecodeError> {
    let mut found = None;
    while r.remaining() > 0 {
        let option = r.u8("option type")?;
        let units = r.u8("option length")?;
        require("option length", units.into(), units > 0)?;
        let body = r.bytes(usize::from(units) * 8 - 2, "option")?;
        if option == code {
            found = found.or_else(|| body.try_into().ok());
        }
    }
    Ok(found)
}

/// The folded sum of pseudo-header and parts (RFC 8200 §8.1), each but the last of even length; 0xffff over a message
/// with its checksum.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, length: u32, parts: &[&[u8]]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        bytes.chunks(2).map(word).sum()
    };
    let mut sum = words(&source.octets()) + words(&destination.octets());
    sum += u64::from(length) + u64::from(ICMPV6);
    sum += parts.iter().map(|part| words(part)).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
