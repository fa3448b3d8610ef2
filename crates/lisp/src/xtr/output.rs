//! What goes into an xTR besides datagrams, and what comes out.

use core::net::IpAddr;
use core::time::Duration;

use super::config::LocalEid;
use crate::machine;
use crate::mapping::TableDelta;
use crate::outputs;
use crate::wire::EidPrefix;

/// A request of the data path or the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A packet to this EID found no mapping; the answer is a [`TableDelta`].
    Resolve {
        /// The destination, as a host prefix.
        eid: EidPrefix,
    },
    /// Packets used this mapping since the last such command, so it is kept fresh.
    Used {
        /// The prefix of the mapping.
        eid: EidPrefix,
    },
    /// Subscribe to a prefix.
    Subscribe {
        /// The prefix.
        eid: EidPrefix,
    },
    /// End a subscription.
    Unsubscribe {
        /// The prefix.
        eid: EidPrefix,
    },
    /// Register a prefix, or change how it is registered.
    SetLocalEid(LocalEid),
    /// Withdraw a prefix.
    RemoveLocalEid {
        /// The prefix.
        eid: EidPrefix,
    },
    /// Withdraw everything and send no more registrations: the xTR is about to stop.
    /// [`Event::Withdrawn`] tells when every Map-Server has confirmed.
    Withdraw,
}

/// Something that the operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A Map-Server confirmed everything that is registered.
    Registered {
        /// Which one.
        map_server: IpAddr,
    },
    /// A Map-Server has not confirmed for longer than a registration lives.
    RegistrationLost {
        /// Which one.
        map_server: IpAddr,
    },
    /// Every Map-Server confirmed the withdrawal.
    Withdrawn,
    /// No map-resolver answered; the data path may drop the packets that wait.
    Unresolved {
        /// The EID that was asked for.
        eid: EidPrefix,
    },
    /// The subscription is active.
    Subscribed {
        /// To what.
        eid: EidPrefix,
    },
    /// The Map-Server answered without a subscription or ended it; it is tried again, the mapping stays.
    NotSubscribed {
        /// To what.
        eid: EidPrefix,
    },
    /// A prefix overlaps another subscription: publications of both could not be told apart.
    SubscriptionRefused {
        /// The prefix.
        eid: EidPrefix,
        /// The subscription that it overlaps.
        overlaps: EidPrefix,
    },
    /// A locator answers probes again.
    LocatorUp {
        /// Which one.
        rloc: IpAddr,
    },
    /// A locator does not answer probes.
    LocatorDown {
        /// Which one.
        rloc: IpAddr,
    },
}

/// What comes out.
pub type Output = machine::Output<Event, TableDelta>;

/// Where it is queued.
pub(super) type Outputs = outputs::Outputs<Event, TableDelta>;

/// A locator as probing sees it, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorView {
    /// Which one.
    pub rloc: IpAddr,
    /// Whether it is believed to work.
    pub up: bool,
    /// Smoothed round-trip time of probes.
    pub rtt: Option<Duration>,
    /// Unanswered probes in a row.
    pub misses: u32,
}

/// A subscription, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionView {
    /// To what.
    pub eid: EidPrefix,
    /// Whether the Map-Server confirmed it.
    pub active: bool,
    /// Last nonce used or seen.
    pub nonce: u64,
}

/// A Map-Server as the registration sees it, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapServerView {
    /// Its address.
    pub address: IpAddr,
    /// When it last confirmed everything.
    pub confirmed_at: Option<codec::Instant>,
}
