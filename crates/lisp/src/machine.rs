//! What the Map-Server and the xTR machine hand to the shell in the same form.

use alloc::vec::Vec;
use core::net::SocketAddr;

/// A datagram to send from the control port (RFC 9301 §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub destination: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// A change of what must survive a restart.
///
/// The shell keeps keys and values without looking inside and hands all of them back at construction. It writes a
/// value before it sends the datagrams that come out after it; losing the latest writes costs a retry, not safety.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Names the value; starts with the kind of the record.
    pub key: Vec<u8>,
    /// The value, `None` to forget the key.
    pub value: Option<Vec<u8>>,
}

/// What comes out of a machine: its own kind of event, and of change of the data path if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<Event, Table> {
    /// Send this.
    Transmit(Transmit),
    /// Store this.
    Persist(Persist),
    /// Change the data path.
    Table(Table),
    /// Tell this.
    Event(Event),
    /// Count this.
    Counter(Counter),
}

/// One key and its value as storage holds them.
pub type Saved = (Vec<u8>, Vec<u8>);

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why a message or a record was refused, or another thing worth counting; each has one metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// Every counter, so that a shell can export zeros.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The value of the metric's `reason` label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

counters! {
    /// A message type that this role does not handle.
    UnexpectedMessage = "unexpected_message",
    /// A type number that weir does not know.
    UnknownMessage = "unknown_message",
    /// The bytes are not a message.
    Malformed = "malformed",
    /// The answer did not fit a message; a defect on our side or a mapping with hundreds of locators.
    NotEncodable = "not_encodable",
    /// No key of that ID and algorithm is configured for the sender.
    NoKey = "no_key",
    /// The MAC is wrong.
    BadAuthentication = "bad_authentication",
    /// The nonce was used before or is below one that was.
    Replayed = "replayed",
    /// The same bytes as the last accepted message; acknowledged again without a change of state.
    Retransmission = "retransmission",
    /// The site may not register that EID-prefix.
    EidNotAllowed = "eid_not_allowed",
    /// A message without the records or addresses it needs.
    Incomplete = "incomplete",
    /// A probe reached the mapping system (RFC 9301 §5.2).
    ProbeDropped = "probe_dropped",
    /// A peer asked faster than allowed.
    RateLimited = "rate_limited",
    /// A nonce that nobody waits for.
    UnknownNonce = "unknown_nonce",
    /// The answer is about an EID that was not asked for.
    WrongEid = "wrong_eid",
    /// A locator that packets cannot go to, left out.
    UnusableLocator = "unusable_locator",
    /// A table is full.
    TableFull = "table_full",
    /// Solicit-Map-Requests received.
    SmrReceived = "smr_received",
    /// An SMR for an EID that is not in the map-cache.
    SmrUnknownEid = "smr_unknown_eid",
    /// A stored value could not be read and was left out.
    SavedUnreadable = "saved_unreadable",
    /// No map-resolver answered after all retransmissions.
    Unanswered = "unanswered",
    /// A mapping stayed in use beyond its TTL because no answer came.
    StaleMapping = "stale_mapping",
    /// A probe reply that is not authoritative or names no probed locator (RFC 9301 §5.4).
    BadProbeReply = "bad_probe_reply",
    /// A publication was superseded by a newer one before its acknowledgement.
    Superseded = "superseded",
    /// A command that cannot be carried out.
    RefusedCommand = "refused_command",
}
