//! What goes into a Map-Server besides datagrams, and what comes out.

use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use codec::Instant;
use thiserror::Error;

use crate::machine::{self, Counter};
use crate::outputs;
use crate::wire::{EidPrefix, LocatorRecord, XtrIdentity};

/// Weight of one locator, as the controller sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorWeight {
    /// Which locator.
    pub rloc: IpAddr,
    /// Lower wins; 255 is never used, not even by the flows that it has. Weight 0 drains.
    pub priority: u8,
    /// Share among the locators of the best priority.
    pub weight: u8,
}

/// A request of the operator or the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Publish these weights instead of the registered ones.
    ///
    /// They replace those set before for the same `eid` and `gateway`. A locator that nobody registered is not
    /// published; a registered locator that is not named is published with priority 254 and weight 0 (drained: its
    /// flows stay, new ones go elsewhere while there is an elsewhere). If none of the usable named locators is
    /// registered any more, the registered priorities and weights apply, so that losing the chosen edges is not
    /// losing the service.
    SetWeights {
        /// Registered prefix; exactly this one, not those inside it.
        eid: EidPrefix,
        /// The gateway that they are for; `None`: all that have none of their own.
        gateway: Option<XtrIdentity>,
        /// At most one per locator.
        locators: Vec<LocatorWeight>,
    },
    /// Back to the weights of all gateways, or to the registered ones.
    ClearWeights {
        /// The prefix.
        eid: EidPrefix,
        /// As given to [`Command::SetWeights`].
        gateway: Option<XtrIdentity>,
    },
}

/// Why [`Command::SetWeights`] is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// No site may register the prefix, so the weights could never apply.
    #[error("{eid:?} is not configured for any site")]
    UnknownEid {
        /// The prefix.
        eid: EidPrefix,
    },
    /// The gateway is not a configured subscriber.
    #[error("{gateway:?} is not a configured subscriber")]
    UnknownGateway {
        /// The identity given.
        gateway: XtrIdentity,
    },
    /// Two weights for one locator.
    #[error("{rloc} is named more than once")]
    DuplicateLocator {
        /// The locator.
        rloc: IpAddr,
    },
    /// Nothing to publish.
    #[error("no locators given")]
    Empty,
    /// More than a record can hold.
    #[error("{count} locators, at most {limit}")]
    TooMany {
        /// How many were given.
        count: usize,
        /// How many a record holds.
        limit: usize,
    },
}

/// Who registered something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Registrant {
    /// An xTR that tells its identity.
    Xtr(XtrIdentity),
    /// One that does not, by address.
    Address(IpAddr),
}

/// One registration, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationView {
    /// The prefix.
    pub eid: EidPrefix,
    /// Who registered it.
    pub registrant: Registrant,
    /// Under which site.
    pub site: String,
    /// With which locators.
    pub locators: Vec<LocatorRecord>,
    /// Record TTL in minutes.
    pub ttl: u32,
    /// Whether this server may answer for it.
    pub proxy_reply: bool,
    /// Whether it is merged with those of other xTRs.
    pub merge: bool,
    /// When it was last refreshed; `None` if it was taken from storage and not refreshed since.
    pub refreshed_at: Option<Instant>,
    /// When it ends unless refreshed.
    pub expires_at: Instant,
}

/// Weights in force, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsView {
    /// The prefix.
    pub eid: EidPrefix,
    /// The gateway that they are for.
    pub gateway: Option<XtrIdentity>,
    /// As they were set.
    pub locators: Vec<LocatorWeight>,
}

/// A subscription, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionView {
    /// Name of the subscriber.
    pub subscriber: String,
    /// Its identity.
    pub identity: XtrIdentity,
    /// What it subscribed to.
    pub eid: EidPrefix,
    /// Where publications go.
    pub itr_rlocs: Vec<IpAddr>,
    /// Last nonce used or seen.
    pub nonce: u64,
    /// Whether a publication waits for its acknowledgement.
    pub unacknowledged: bool,
    /// Smoothed round-trip time to the subscriber.
    pub rtt: Option<Duration>,
}

/// Something that the operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A prefix was registered by an xTR that had not registered it, or with other locators.
    Registered {
        /// The prefix.
        eid: EidPrefix,
        /// By whom.
        registrant: Registrant,
        /// With how many locators.
        locators: usize,
    },
    /// A registration ended.
    Unregistered {
        /// The prefix.
        eid: EidPrefix,
        /// Whose.
        registrant: Registrant,
        /// It was not refreshed in time; otherwise it was withdrawn.
        expired: bool,
    },
    /// A Map-Register was refused; `reason` is also counted.
    RegisterRefused {
        /// Where it came from.
        from: SocketAddr,
        /// Why.
        reason: Counter,
    },
    /// Weights were set or cleared.
    WeightsChanged {
        /// The prefix.
        eid: EidPrefix,
        /// For which gateway.
        gateway: Option<XtrIdentity>,
    },
    /// Weights were refused.
    WeightsRefused {
        /// Why.
        error: WeightsError,
    },
    /// A subscription was made or renewed.
    Subscribed {
        /// By whom.
        subscriber: XtrIdentity,
        /// To what.
        eid: EidPrefix,
    },
    /// A subscription was given up at the subscriber's request.
    Unsubscribed {
        /// By whom.
        subscriber: XtrIdentity,
        /// From what.
        eid: EidPrefix,
    },
    /// A subscriber did not acknowledge; its subscription is removed.
    SubscriptionLost {
        /// Whose.
        subscriber: XtrIdentity,
        /// To what.
        eid: EidPrefix,
    },
    /// A mapping went out to a subscriber for the first time under this nonce; one event per record.
    Published {
        /// Nonce of the Map-Notify.
        nonce: u64,
        /// To whom.
        subscriber: XtrIdentity,
        /// Which mapping.
        eid: EidPrefix,
        /// When.
        at: Instant,
    },
    /// The publication was acknowledged; one event per record.
    Acknowledged {
        /// Nonce of the Map-Notify.
        nonce: u64,
        /// By whom.
        subscriber: XtrIdentity,
        /// Which mapping.
        eid: EidPrefix,
        /// When it had gone out first.
        published_at: Instant,
        /// When the acknowledgement came.
        at: Instant,
    },
    /// A requester did not react to all SMRs.
    SmrUnanswered {
        /// Where they went.
        rloc: IpAddr,
        /// What had changed.
        eid: EidPrefix,
    },
}

/// What comes out; a Map-Server has no data path.
pub type Output = machine::Output<Event, Infallible>;

/// Where it is queued.
pub(super) type Outputs = outputs::Outputs<Event, Infallible>;
