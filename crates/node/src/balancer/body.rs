//! Bodies of the balancer's API beside the document itself, which is [`crate::config::services::raw`].

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the balancer stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BalancerStatus {
    /// The port.
    pub interface: String,
    /// `native` or `generic`.
    pub mode: String,
    /// `taken`, `away` (there is no interface of its name) or `refused` (the program cannot be put on it).
    pub port: String,
    /// Generation of the list of VIPs.
    pub generation: u64,
    /// Where the VIPs come from: `file`, `api` (stored, goes before the file) or `nothing`.
    pub source: String,
    /// The data path is as it should be.
    pub in_step: bool,
    /// Why it is not, if the port is away, or the kernel or a limit refused it.
    pub error: Option<String>,
    /// What may keep frames from being balanced, and the way out, though everything is as desired.
    pub warnings: Vec<String>,
    /// By name.
    pub vips: Vec<VipStatus>,
}

/// How a VIP stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VipStatus {
    /// Its name.
    pub name: String,
    /// What clients send to, `ADDRESS:PORT/PROTOCOL` or `ADDRESS:PORT/PROTOCOL@SEGMENT`.
    pub vip: String,
    /// Generation of its last change.
    pub generation: u64,
    /// Every backend that could take flows fails its checks; `when_all_fail` says what becomes of them.
    pub all_fail: bool,
    /// A change is younger than `drain`: flows from before it may still go to other backends.
    pub draining: bool,
    /// Octets of its tables.
    pub table_bytes: u64,
    /// In the order of the document.
    pub backends: Vec<BackendStatus>,
}

/// How a backend stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// `up`, `down` or `unknown`, as its checks say; null if it is not checked.
    pub health: Option<String>,
    /// Since when.
    pub since_unix_ns: u64,
    /// What the check said that decided it.
    pub said: Option<String>,
    /// Why its checks cannot be sent from here, while they cannot; the last verdict stands.
    pub not_sent: Option<String>,
    /// Its share of new flows relative to the others', in force.
    pub weight: u32,
    /// Packets may be sent to it.
    pub usable: bool,
    /// Slots of the VIP's table that name it.
    pub slots: u32,
    /// Its link-layer address, if it is known.
    pub mac: Option<String>,
    /// `working`, `not-checked`, `drained`, `failed`, `kept-though-failed`, `as-found`, `not-checked-yet`,
    /// `check-not-sent` or `no-link-layer-address`.
    pub why: String,
}

/// What the data path would do with a packet now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowExplanation {
    /// Name of the VIP that it is for.
    pub vip: Option<String>,
    /// Flow hash.
    pub hash: Option<u32>,
    /// What the VIP's table says.
    pub current: Option<SlotBody>,
    /// What the table before the last change says, while flows may still keep to it.
    pub previous: Option<SlotBody>,
    /// Where the flow is remembered.
    pub remembered: Option<RememberedBody>,
    /// The reason that the packet is counted under.
    pub verdict: String,
    /// Name of the backend that gets it.
    pub backend: Option<String>,
    /// The rule that decides, in words.
    pub because: String,
}

/// A slot of a table and whom it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlotBody {
    /// Slots of the table.
    pub size: u32,
    /// The flow's.
    pub slot: u32,
    /// Name of the backend, if it is still of the VIP.
    pub backend: Option<String>,
    /// Packets may be sent to it.
    pub usable: bool,
}

/// An entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RememberedBody {
    /// Name of the backend, if it is still of the VIP.
    pub backend: Option<String>,
    /// The packet may go there: it is the same backend still, and usable.
    pub valid: bool,
}
