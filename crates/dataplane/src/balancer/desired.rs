//! What a site balancer is to do, in types that hold nothing it could not.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use balance::maglev::TableSize;
use bpf_abi::balancer::{VipKey, segment};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::dataplane::OnStop;
use crate::eid::{mapped, unmapped};

/// Largest VLAN id that a frame may have; 0 means priority-tagged and 4095 is reserved (IEEE 802.1Q, table 9-2).
const VID_MAX: u32 = 4094;
/// Largest VNI (24 bits).
const VNI_MAX: u32 = 0x00ff_ffff;
/// Bits that the S-VID is above the C-VID.
const S_VID_SHIFT: u32 = 12;

/// How a frame carries its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    /// Not at all.
    None,
    /// One 802.1Q tag.
    Dot1q,
    /// One 802.1ad tag.
    Dot1ad,
    /// One 802.1ad tag, one 802.1Q tag behind it.
    DoubleTagged,
    /// Inside VXLAN.
    Vxlan,
    /// Inside Geneve.
    Geneve,
}

impl SegmentKind {
    /// Whether frames of this kind come in tunnels, so that backends need a [`Tunnel`].
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Vxlan | Self::Geneve)
    }
}

/// A layer-2 segment: untagged, a VLAN, or a VNI. Text: `none`, `802.1q:100`, `802.1ad:100`, `802.1ad:100.200`,
/// `vxlan:5000`, `geneve:5000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(u32);

/// Why a text is no segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// Neither `none` nor a kind and a number.
    #[error(
        "`{text}` is no segment; write none, 802.1q:VID, 802.1ad:S-VID, 802.1ad:S-VID.C-VID, vxlan:VNI or geneve:VNI"
    )]
    Syntax {
        /// The text.
        text: String,
    },
    /// A VLAN id that no frame may have.
    #[error("`{text}`: a VLAN id is from 1 to {VID_MAX}")]
    Vid {
        /// The text.
        text: String,
    },
    /// A VNI of more than 24 bits.
    #[error("`{text}`: a VNI is from 0 to {VNI_MAX}")]
    Vni {
        /// The text.
        text: String,
    },
}

impl Segment {
    /// Untagged, or priority-tagged.
    pub const NONE: Self = Self(segment::NONE);

    /// The segment of a map's value (`bpf_abi::balancer::segment`); `None` if no frame can have it.
    #[must_use]
    pub const fn from_value(value: u32) -> Option<Self> {
        let id = value & !segment::KIND;
        let valid = match value & segment::KIND {
            segment::NONE => id == 0,
            segment::DOT1Q => is_vid(id),
            segment::DOT1AD => {
                let c_vid = id & 0xfff;
                is_vid(id >> S_VID_SHIFT) && (c_vid == 0 || is_vid(c_vid))
            }
            segment::VXLAN | segment::GENEVE => true,
            _ => false,
        };
        if valid { Some(Self(value)) } else { None }
    }

    /// As the maps hold it (`bpf_abi::balancer::segment`).
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// How frames carry it.
    #[must_use]
    pub const fn kind(self) -> SegmentKind {
        match self.0 & segment::KIND {
            segment::DOT1Q => SegmentKind::Dot1q,
            segment::DOT1AD if self.0 & 0xfff == 0 => SegmentKind::Dot1ad,
            segment::DOT1AD => SegmentKind::DoubleTagged,
            segment::VXLAN => SegmentKind::Vxlan,
            segment::GENEVE => SegmentKind::Geneve,
            _ => SegmentKind::None,
        }
    }

    /// VID or VNI, 0 for none; of a double-tagged segment the S-VID in bits 12 to 23 and the C-VID below.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self.kind() {
            SegmentKind::Dot1ad => (self.0 & !segment::KIND) >> S_VID_SHIFT,
            _ => self.0 & !segment::KIND,
        }
    }
}

const fn is_vid(id: u32) -> bool {
    1 <= id && id <= VID_MAX
}

impl FromStr for Segment {
    type Err = SegmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || SegmentError::Syntax { text: text.to_owned() };
        if text == "none" {
            return Ok(Self::NONE);
        }
        let (kind, id) = text.split_once(':').ok_or_else(syntax)?;
        let number = |digits: &str| number(digits).ok_or_else(syntax);
        let vid = |digits: &str| match number(digits)? {
            vid if is_vid(vid) => Ok(vid),
            _ => Err(SegmentError::Vid { text: text.to_owned() }),
        };
        let vni = || match number(id)? {
            vni if vni <= VNI_MAX => Ok(vni),
            _ => Err(SegmentError::Vni { text: text.to_owned() }),
        };
        match kind {
            "802.1q" => Ok(Self(segment::DOT1Q | vid(id)?)),
            "802.1ad" => {
                let (outer, inner) = id.split_once('.').map_or((id, None), |(s, c)| (s, Some(c)));
                let inner = inner.map_or(Ok(0), vid)?;
                Ok(Self(segment::DOT1AD | (vid(outer)? << S_VID_SHIFT) | inner))
            }
            "vxlan" => Ok(Self(segment::VXLAN | vni()?)),
            "geneve" => Ok(Self(segment::GENEVE | vni()?)),
            _ => Err(syntax()),
        }
    }
}

/// Digits only: one segment has one text. What has more digits than any identifier is out of every range.
fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let one_way = digits == "0" || !digits.starts_with('0');
    (plain && one_way).then(|| digits.parse().unwrap_or(u32::MAX))
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            SegmentKind::None => f.write_str("none"),
            SegmentKind::Dot1q => write!(f, "802.1q:{}", self.id()),
            SegmentKind::Dot1ad => write!(f, "802.1ad:{}", self.id()),
            SegmentKind::DoubleTagged => {
                write!(f, "802.1ad:{}.{}", self.id() >> S_VID_SHIFT, self.id() & 0xfff)
            }
            SegmentKind::Vxlan => write!(f, "vxlan:{}", self.id()),
            SegmentKind::Geneve => write!(f, "geneve:{}", self.id()),
        }
    }
}

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Transport protocol of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IP protocol number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = VipIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|protocol| protocol.name() == text);
        named.ok_or_else(|| VipIdError::Protocol { text: text.to_owned() })
    }
}

/// What makes packets one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HashBy {
    /// Addresses, ports and protocol.
    #[default]
    #[serde(rename = "5-tuple")]
    FiveTuple,
    /// Addresses and protocol: all of a client's connections, and its fragments, go to one backend.
    #[serde(rename = "addresses")]
    Addresses,
}

/// What a frame must have to be the VIP's. Text: `192.0.2.10:80/tcp`, `[2001:db8::1]:80/tcp@802.1q:100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipId {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port, not 0.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Segment on which the frame arrives.
    pub segment: Segment,
}

/// Why a text names no VIP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VipIdError {
    /// Not `ADDRESS:PORT/PROTOCOL` with or without `@SEGMENT`.
    #[error("`{text}` is no VIP; write e.g. 192.0.2.10:80/tcp or [2001:db8::1]:80/tcp@802.1q:100")]
    Syntax {
        /// The text.
        text: String,
    },
    /// No protocol that is balanced.
    #[error("`{text}` is no protocol; write tcp, udp or sctp")]
    Protocol {
        /// The text.
        text: String,
    },
    /// Port 0 is nobody's.
    #[error("`{text}`: a port is from 1 to 65535")]
    Port {
        /// The text.
        text: String,
    },
    /// The segment is none.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl VipId {
    /// Key of the VIP table.
    #[must_use]
    pub fn key(&self) -> VipKey {
        VipKey {
            address: mapped(self.address),
            segment: self.segment.value(),
            port: self.port.to_be_bytes(),
            protocol: self.protocol.number(),
            pad: 0,
        }
    }

    /// The VIP of a key; `None` for the key of an address or of fragments.
    #[must_use]
    pub fn from_key(key: &VipKey) -> Option<Self> {
        Some(Self {
            address: unmapped(&key.address),
            port: Some(u16::from_be_bytes(key.port)).filter(|port| *port != 0)?,
            protocol: Protocol::from_number(key.protocol)?,
            segment: Segment::from_value(key.segment)?,
        })
    }
}

impl fmt::Display for VipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)?;
        if self.segment == Segment::NONE { Ok(()) } else { write!(f, "@{}", self.segment) }
    }
}

impl FromStr for VipId {
    type Err = VipIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || VipIdError::Syntax { text: text.to_owned() };
        let (front, segment) = text.split_once('@').map_or((text, None), |(f, s)| (f, Some(s)));
        let (socket, protocol) = front.rsplit_once('/').ok_or_else(syntax)?;
        let socket: SocketAddr = socket.parse().map_err(|_| syntax())?;
        if socket.port() == 0 {
            return Err(VipIdError::Port { text: text.to_owned() });
        }
        Ok(Self {
            address: socket.ip(),
            port: socket.port(),
            protocol: protocol.parse()?,
            segment: segment.map_or(Ok(Segment::NONE), str::parse)?,
        })
    }
}

impl Serialize for VipId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VipId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A VIP and the backends that it is spread over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Its frames.
    pub id: VipId,
    /// What makes packets one flow.
    pub hash: HashBy,
    /// Flows are remembered for good, not only while a change is fresh.
    pub flow_table: bool,
    /// Slots of its table; `None` for what suits the number of backends.
    pub table_size: Option<TableSize>,
    /// How long flows begun before a change keep to the table of then; zero: not at all.
    pub drain: Duration,
    /// ICMP echo requests to the address are answered; of several VIPs with one address and segment, one that says so
    /// is enough.
    pub echo: bool,
    /// At most one of each name.
    pub backends: Vec<Backend>,
}

/// A server of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What its slots are computed from: one name on all nodes of a group.
    pub name: String,
    /// Its share of new flows; 0 takes none and keeps the flows it has.
    pub weight: u32,
    /// Packets may be sent to it. Without, its slots go to the others, nobody else's move, and known flows leave it too.
    pub usable: bool,
    /// Its link-layer address (behind a tunnel the inner frame's); of no meaning while it is not usable.
    pub mac: [u8; 6],
    /// Segment on which it is reached, of the VIP's kind.
    pub segment: Segment,
    /// Where its tunnel ends; for segments that are tunnels and no others.
    pub tunnel: Option<Tunnel>,
}

/// The far end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its address.
    pub vtep: IpAddr,
    /// Link-layer address of the next hop to it.
    pub mac: [u8; 6],
}

/// Where XDP takes frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpHook {
    /// In the driver.
    #[default]
    Native,
    /// In the stack, after the driver has made a socket buffer: for devices without driver support, and slower.
    Generic,
}

impl fmt::Display for XdpHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What a site balancer is started with.
#[derive(Clone, Debug)]
pub struct BalancerConfig {
    /// Name of the node: where its maps and links are pinned.
    pub node: String,
    /// The port.
    pub interface: String,
    /// Where frames are taken; never another than this.
    pub mode: XdpHook,
    /// Directory for pins, on a BPF file system; `None` for `/sys/fs/bpf/weir`.
    pub pin_root: Option<PathBuf>,
    /// What becomes of the data path when the process stops.
    pub on_stop: OnStop,
    /// Start of the flow hash, the same on all nodes of a group.
    pub seed: u32,
    /// The node's own tunnel endpoints.
    pub vteps: Vec<IpAddr>,
    /// Entries of the flow table; `None` for the object's own size.
    pub flows: Option<u32>,
    /// Octets of all tables together.
    pub table_memory: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read_back() {
        for (text, value) in [
            ("none", 0),
            ("802.1q:100", segment::DOT1Q | 100),
            ("802.1q:4094", segment::DOT1Q | 4094),
            ("802.1ad:100", segment::DOT1AD | (100 << 12)),
            ("802.1ad:100.200", segment::DOT1AD | (100 << 12) | 200),
            ("vxlan:0", segment::VXLAN),
            ("vxlan:5000", segment::VXLAN | 5000),
            ("geneve:16777215", segment::GENEVE | 0x00ff_ffff),
        ] {
            let segment: Segment = text.parse().unwrap();
            assert_eq!(segment.value(), value, "{text}");
            assert_eq!(segment.to_string(), text);
            assert_eq!(Segment::from_value(value), Some(segment));
        }
    }

    #[test]
    fn what_no_frame_can_have_is_no_segment() {
        let error = |text: &str| text.parse::<Segment>().unwrap_err();
        for text in
            ["", "802.1q", "802.1q:", "802.1q:+1", "802.1q:01", "802.1q:1.2", "vlan:1", "none:0", "vxlan:a"]
        {
            assert!(matches!(error(text), SegmentError::Syntax { .. }), "{text}");
        }
        for text in
            ["802.1q:0", "802.1q:4095", "802.1ad:0", "802.1ad:1.0", "802.1ad:1.4095", "802.1q:99999999999"]
        {
            assert!(matches!(error(text), SegmentError::Vid { .. }), "{text}");
        }
        assert!(matches!(error("vxlan:16777216"), SegmentError::Vni { .. }));
        for value in [1, segment::DOT1Q, segment::DOT1Q | 4095, segment::DOT1AD | 5, 5 << 24] {
            assert_eq!(Segment::from_value(value), None, "{value:#x}");
        }
    }

    #[test]
    fn vips_are_read_back() {
        for text in [
            "192.0.2.10:80/tcp",
            "192.0.2.10:5060/udp@802.1q:100",
            "[2001:db8::1]:443/sctp@802.1ad:100.200",
            "[::1]:1/tcp@geneve:0",
        ] {
            let id: VipId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(VipId::from_key(&id.key()), Some(id));
        }
        for text in ["", "192.0.2.10/tcp", "192.0.2.10:80", "2001:db8::1:80/tcp", "a:80/tcp"] {
            assert!(matches!(text.parse::<VipId>(), Err(VipIdError::Syntax { .. })), "{text}");
        }
        assert!(matches!("192.0.2.1:0/tcp".parse::<VipId>(), Err(VipIdError::Port { .. })));
        assert!(matches!("192.0.2.1:1/icmp".parse::<VipId>(), Err(VipIdError::Protocol { .. })));
        assert!(matches!("192.0.2.1:1/tcp@x".parse::<VipId>(), Err(VipIdError::Segment(_))));
    }

    #[test]
    fn entries_of_addresses_and_fragments_are_no_vips() {
        let key = "192.0.2.10:80/tcp".parse::<VipId>().unwrap().key();
        assert_eq!(VipId::from_key(&VipKey { port: [0; 2], ..key }), None);
        assert_eq!(VipId::from_key(&VipKey { port: [0; 2], protocol: 0, ..key }), None);
    }
}
