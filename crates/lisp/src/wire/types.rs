//! The values that messages carry.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use codec::IpPrefix;

/// UDP port of the control plane (RFC 9301 §5).
pub const CONTROL_PORT: u16 = 4342;
/// UDP port of the data plane (RFC 9300 §19.1).
pub const DATA_PORT: u16 = 4341;

/// Tenant; the low 24 bits are what a data packet carries (RFC 8060 §4.1, RFC 9300 §5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u32);

/// An EID-prefix within its instance. Instance 0 and a plain AFI mean the same and are written plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EidPrefix {
    /// Instance of the prefix.
    pub instance_id: InstanceId,
    /// The prefix, host bits cleared.
    pub prefix: IpPrefix,
}

/// 128-bit identity of an xTR, unique in its site (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XtrId(pub [u8; 16]);

/// 64-bit identity of a site (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u64);

/// The trailer that the I bit announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XtrIdentity {
    /// Identity of the xTR.
    pub xtr_id: XtrId,
    /// Site it belongs to.
    pub site_id: SiteId,
}

/// An address as an AFI-tagged field holds it (RFC 9301 §5, RFC 8060 §3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// AFI 0.
    NoAddress,
    /// AFI 1 or 2.
    Ip(IpAddr),
    /// LCAF type 2.
    InstanceId {
        /// The instance.
        instance_id: InstanceId,
        /// "IID mask-len"; sent as 0.
        mask_len: u8,
        /// The address inside.
        address: Box<Self>,
    },
    /// LCAF type 1.
    AfiList(Vec<Self>),
    /// Any other LCAF, kept as it came (RFC 9306 §3).
    UnknownLcaf {
        /// LCAF type.
        lcaf_type: u8,
        /// First reserved octet.
        reserved1: u8,
        /// Flags octet.
        flags: u8,
        /// Second reserved octet.
        reserved2: u8,
        /// Octets after the length field.
        body: Vec<u8>,
    },
}

impl Address {
    /// The IP address that packets can be sent to: plain, inside an instance, or the first one of a list.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::InstanceId { address, .. } => address.ip(),
            Self::AfiList(list) => list.iter().find_map(Self::ip),
            Self::NoAddress | Self::UnknownLcaf { .. } => None,
        }
    }
}

/// What an ITR does with packets to a prefix that has no locators (RFC 9301 §5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// Keep the entry, do not encapsulate.
    #[default]
    NoAction,
    /// Send without LISP.
    NativelyForward,
    /// Ask again for every packet.
    SendMapRequest,
    /// Drop, no reason given.
    Drop,
    /// Drop, policy.
    DropPolicyDenied,
    /// Drop, authentication.
    DropAuthFailure,
    /// 6 or 7: treated like [`Action::Drop`].
    Unassigned(u8),
}

/// One locator of an EID-record (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocatorRecord {
    /// Lower wins; 255 must not be used.
    pub priority: u8,
    /// Share among the locators of the best priority.
    pub weight: u8,
    /// Multicast priority; 255 when unused.
    pub multicast_priority: u8,
    /// Multicast weight; 0 when unused.
    pub multicast_weight: u8,
    /// L: the locator is local to the replying ETR.
    pub local: bool,
    /// p: this locator was probed.
    pub probed: bool,
    /// R: the sender has a route to it.
    pub reachable: bool,
    /// Where to encapsulate to.
    pub rloc: Address,
}

/// An EID-prefix and its locators (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EidRecord {
    /// Minutes; 0 removes, `u32::MAX` leaves it to the receiver.
    pub ttl: u32,
    /// Meaningful when there are no locators.
    pub action: Action,
    /// A: sent by an ETR.
    pub authoritative: bool,
    /// 12 bits, 0 = none (RFC 9302).
    pub map_version: u16,
    /// The prefix.
    pub eid: EidPrefix,
    /// At most 255, sorted on encoding (RFC 9301 §5.5).
    pub locators: Vec<LocatorRecord>,
}

/// What a Map-Request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestRecord {
    /// N: subscribe (RFC 9437 §4).
    pub subscribe: bool,
    /// The prefix or host asked for.
    pub eid: EidPrefix,
}

/// Type 1 (RFC 9301 §5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// A.
    pub authoritative: bool,
    /// P.
    pub probe: bool,
    /// S: solicits a Map-Request for the source EID.
    pub smr: bool,
    /// p: sender is a proxy ITR.
    pub proxy_itr: bool,
    /// s.
    pub smr_invoked: bool,
    /// L.
    pub local_xtr: bool,
    /// D.
    pub no_map_reply: bool,
    /// Echoed by the answer.
    pub nonce: u64,
    /// EID of the sender, or in an SMR the prefix that changed.
    pub source_eid: Address,
    /// 1 to 32 addresses that the answer may go to.
    pub itr_rlocs: Vec<Address>,
    /// What is asked.
    pub records: Vec<RequestRecord>,
    /// Piggybacked mapping of the sender (M); parsed and not used.
    pub map_reply: Option<EidRecord>,
    /// Present with the I bit.
    pub xtr: Option<XtrIdentity>,
}

/// Type 2 (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReply {
    /// P: answers a probe.
    pub probe: bool,
    /// E: echo-nonce capable.
    pub echo_nonce: bool,
    /// S: LISP-SEC data follows; kept in `security`.
    pub security: Option<Vec<u8>>,
    /// Nonce of the request.
    pub nonce: u64,
    /// The mappings.
    pub records: Vec<EidRecord>,
}

/// Authentication fields of Map-Register, Map-Notify and Map-Notify-Ack (RFC 9301 §5.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    /// Which shared key.
    pub key_id: u8,
    /// IANA algorithm number; unknown numbers are kept.
    pub algorithm_id: u8,
    /// The MAC as it stood in the message.
    pub data: Vec<u8>,
}

/// Type 3 (RFC 9301 §5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRegister {
    /// P: the Map-Server may answer for us.
    pub proxy_reply: bool,
    /// S: LISP-SEC capable.
    pub security_capable: bool,
    /// E: EID-notify.
    pub eid_notify: bool,
    /// T: the record TTL is the registration's timeout.
    pub use_ttl_for_timeout: bool,
    /// a: merge with other registrations of the prefix.
    pub merge: bool,
    /// M: acknowledge with a Map-Notify.
    pub want_map_notify: bool,
    /// Grows with every message.
    pub nonce: u64,
    /// Key, algorithm and MAC.
    pub authentication: Authentication,
    /// What is registered.
    pub records: Vec<EidRecord>,
    /// Present with the I bit.
    pub xtr: Option<XtrIdentity>,
}

/// Types 4 and 5 (RFC 9301 §5.7) have the same body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNotify {
    /// Nonce of the register, or of the publication.
    pub nonce: u64,
    /// Key, algorithm and MAC.
    pub authentication: Authentication,
    /// The mappings.
    pub records: Vec<EidRecord>,
    /// What follows the last record; RFC 9301 defines nothing here, peers send xTR-ID and Site-ID.
    pub trailer: Vec<u8>,
}

/// Type 8 (RFC 9301 §5.8): a control message in an inner IP and UDP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncapsulatedControlMessage {
    /// S: LISP-SEC data follows the header; such messages are refused until LISP-SEC is supported.
    pub security: bool,
    /// D: from a DDT node.
    pub ddt: bool,
    /// Where the inner packet came from; a Map-Reply goes to this port.
    pub inner_source: SocketAddr,
    /// The EID asked for, port 4342.
    pub inner_destination: SocketAddr,
    /// The control message inside.
    pub message: Vec<u8>,
}

/// Any control message, told apart by its first four bits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Type 1.
    MapRequest(MapRequest),
    /// Type 2.
    MapReply(MapReply),
    /// Type 3.
    MapRegister(MapRegister),
    /// Type 4.
    MapNotify(MapNotify),
    /// Type 5.
    MapNotifyAck(MapNotify),
    /// Type 8.
    Encapsulated(EncapsulatedControlMessage),
    /// A type that weir does not handle.
    Unknown(u8),
}
