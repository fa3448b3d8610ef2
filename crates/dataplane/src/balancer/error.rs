//! What an operator may want of VIPs and cannot have.

use std::net::IpAddr;

use balance::maglev::MAX_MEMBERS;
use bpf_abi::balancer::{BACKENDS, VIPS};

use crate::balancer::desired::{Segment, VipId};

/// Why VIPs cannot be as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VipError {
    /// Two VIPs of the same frames.
    #[error("{vip} is there twice")]
    Twice {
        /// The VIP.
        vip: VipId,
    },
    /// Two VIPs that take all fragments of an address.
    #[error(
        "{first} and {second} both hash by addresses: fragments have no ports, so only one VIP of an address and \
         protocol can take them; let the other hash by 5-tuple"
    )]
    Fragments {
        /// The VIP that comes first.
        first: VipId,
        /// The other one.
        second: VipId,
    },
    /// Port 0 is nobody's.
    #[error("{vip}: a port is from 1 to 65535")]
    Port {
        /// The VIP.
        vip: VipId,
    },
    /// Two backends of one name.
    #[error("{vip}: backend {backend} is there twice")]
    BackendTwice {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
    },
    /// A frame cannot get this segment by rewriting what it has.
    #[error("{vip}: backend {backend} is on {segment}; it must be on a segment of the VIP's kind")]
    BackendSegment {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
        /// Its segment.
        segment: Segment,
    },
    /// No frame is ever taken from there.
    #[error("{vip}: backend {backend} has the link-layer address {}, which is of no host", mac_text(.mac))]
    Mac {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
        /// The address.
        mac: [u8; 6],
    },
    /// A backend in a tunnel without its far end.
    #[error("{vip}: backend {backend} is on {segment} and needs a tunnel endpoint")]
    TunnelMissing {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
        /// Its segment.
        segment: Segment,
    },
    /// A far end without a tunnel.
    #[error("{vip}: backend {backend} is on {segment}, which is no tunnel; leave out its tunnel endpoint")]
    TunnelSuperfluous {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
        /// Its segment.
        segment: Segment,
    },
    /// Outer headers keep their family.
    #[error("{vip}: backend {backend} has the tunnel endpoint {vtep}; this node has none of its family")]
    TunnelFamily {
        /// The VIP.
        vip: VipId,
        /// The backend's name.
        backend: String,
        /// Its tunnel endpoint.
        vtep: IpAddr,
    },
    /// Nothing would ever arrive.
    #[error("{vip}: frames in tunnels need a tunnel endpoint of this node, and it has none")]
    NoVtep {
        /// The VIP.
        vip: VipId,
    },
    /// More VIPs than are counted.
    #[error("{count} VIPs, at most {VIPS} are supported")]
    TooManyVips {
        /// VIPs wanted.
        count: usize,
    },
    /// More backends than a slot can name.
    #[error(
        "{vip}: {count} backends of all VIPs, at most {} are supported{}", BACKENDS, after_drains(*.waiting)
    )]
    TooManyBackends {
        /// The VIP for which there is no room.
        vip: VipId,
        /// Backends wanted.
        count: usize,
        /// Former backends whose flows are not all over.
        waiting: u32,
    },
    /// More backends than a table can name.
    #[error("{vip}: {count} backends, a table names at most {MAX_MEMBERS}: make two VIPs of it")]
    TooManyOfVip {
        /// The VIP.
        vip: VipId,
        /// Its backends.
        count: usize,
    },
    /// No room for a table.
    #[error(
        "{vip}: its table needs {needed} octets in one piece, {free} of the {all} of table_memory are free{}",
        after_drains(*.waiting)
    )]
    TableMemory {
        /// The VIP for which there is no room.
        vip: VipId,
        /// Octets needed.
        needed: u64,
        /// Octets free.
        free: u64,
        /// Octets of former tables that packets may still be sent by.
        waiting: u64,
        /// Octets of all tables.
        all: u64,
    },
}

fn mac_text(mac: &[u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn after_drains(amount: impl Into<u64>) -> String {
    match amount.into() {
        0 => String::new(),
        amount => format!(", {amount} more when the drains under way are over"),
    }
}
