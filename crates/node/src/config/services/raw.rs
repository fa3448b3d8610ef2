//! VIPs as they are written, in a file or in a request; what means something is still text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::section::{Field, Section, Unset, choice, section};

/// The whole document: a file of TOML, or the body of `PUT /v1/vips`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Services {
    /// Set by the API: greater after every change. In a request the generation that the change is made for; another one
    /// is refused. In a file it is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// `[[vips]]`
    pub vips: Vec<Vip>,
}

impl Services {
    /// The document as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("sections hold only what TOML can write")
    }
}

choice! {
    /// Transport protocol of a VIP.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// SCTP.
        Sctp = "sctp",
    }
}

choice! {
    /// What makes two packets one flow.
    Hash {
        /// Addresses, ports and protocol.
        FiveTuple = "5-tuple",
        /// Addresses and protocol: ports do not count, so fragments go where their first part goes.
        Addresses = "addresses",
    }
}

choice! {
    /// What becomes of a VIP all of whose backends fail their checks.
    WhenAllFail {
        /// Sent on to all of them: more often it is the check that is wrong.
        Keep = "keep",
        /// Dropped.
        Drop = "drop",
    }
}

choice! {
    /// How a backend is asked whether it works.
    CheckKind {
        /// A TCP connection is accepted.
        Tcp = "tcp",
        /// `GET` is answered with a status from 200 to 399.
        Http = "http",
        /// An ICMP echo request is answered.
        Icmp = "icmp",
        /// Its link-layer address can be resolved.
        Arp = "arp",
        /// It is not asked and counts as working.
        None = "none",
    }
}

section! {
    "[[vips]]"
    /// An address and port that clients send to, and the backends that answer.
    Vip {
        /// Required. Name in the API, in metrics and logs: letters, digits and `-`, at most 63.
        name: String = String::new(),
        /// Set by the API: greater after every change. In a request the generation that the change is made for; another
        /// one is refused. In a file it is not looked at.
        generation: Option<u64> = None,
        /// Required. Address that clients send to, IPv4 or IPv6.
        address: String = String::new(),
        /// Required. Port that clients send to.
        port: u16 = 0,
        /// `tcp`, `udp` or `sctp`.
        protocol: Protocol = Protocol::Tcp,
        /// Segment that clients' frames come in: `none`, `802.1q:VID`, `802.1ad:VID`, `802.1ad:VID.VID`, `vxlan:VNI` or
        /// `geneve:VNI`.
        segment: String = "none".into(),
        /// `5-tuple` or `addresses`.
        hash: Hash = Hash::FiveTuple,
        /// Remember every flow, so that it keeps its backend through any change.
        flow_table: bool = false,
        /// Slots of its table, a prime from 251 to 1048573; 100 or more per backend if left out.
        table_size: Option<u32> = None,
        /// For so long after a change flows that were there before it keep their backend, `0s` to `1h`.
        drain: String = "60s".into(),
        /// Answer ICMP echo requests to the address; of several VIPs with it, one that says so is enough.
        echo: bool = true,
        /// `keep` or `drop`.
        when_all_fail: WhenAllFail = WhenAllFail::Keep,
        /// `[vips.health]`
        health: Option<Health> = None,
        /// `[[vips.backends]]`
        backends: Vec<Backend> = Vec::new(),
    }
}

section! {
    "[vips.health]"
    /// How the backends of the VIP are checked; without it they are not and count as working.
    Health {
        /// `tcp`, `http`, `icmp`, `arp` or `none`.
        kind: CheckKind = CheckKind::Tcp,
        /// Port that is asked, for `tcp` and `http`; the VIP's if left out.
        port: Option<u16> = None,
        /// What is asked for, for `http`; `/` if left out.
        path: Option<String> = None,
        /// `Host` header, for `http`; address and port of the backend if left out.
        host: Option<String> = None,
        /// Statuses that count as success, for `http`, e.g. `["200-299", "401"]`; 200 to 399 if left out.
        status: Vec<String> = Vec::new(),
        /// Time between two checks, `100ms` to `1h`.
        interval: String = "2s".into(),
        /// An answer must come within, not longer than `interval`.
        timeout: String = "1s".into(),
        /// Successes in a row that a failed backend needs to come back, 1 to 100.
        rise: u8 = 2,
        /// Failures in a row that take a backend out, 1 to 100.
        fall: u8 = 3,
    }
}

section! {
    "[[vips.backends]]"
    /// A server of the VIP. It has the VIP's address on its loopback and answers clients directly.
    Backend {
        /// Required. Name in the API, in metrics and logs, unique in its VIP: letters, digits and `-`, at most 63. Which
        /// flows it gets follows from it and not from its place in the list.
        name: String = String::new(),
        /// Required. An address of its own: checks go to it, and its link-layer address is resolved by it.
        address: String = String::new(),
        /// Its link-layer address; resolved by `address` if left out. Required behind a tunnel.
        mac: Option<String> = None,
        /// Share of new flows, relative to the other backends', 0 to 65535. 0 drains it: no new flows come, and those that
        /// it has stay for `drain` of the VIP, or to their end with `flow_table`.
        weight: u32 = 100,
        /// Segment that it is in, of the same kind as the VIP's; the VIP's own if left out.
        segment: Option<String> = None,
        /// Where its tunnel ends; required if the VIP's segment is `vxlan` or `geneve`.
        vtep: Option<String> = None,
    }
}

/// Every section in the order of the reference.
pub const SECTIONS: &[Section] = &[Vip::SECTION, Health::SECTION, Backend::SECTION];
