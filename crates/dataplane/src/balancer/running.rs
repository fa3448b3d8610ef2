//! One node's balancer at work.

use std::net::IpAddr;

use bpf_abi::BalancerReason;
use bpf_abi::balancer::BalancedValue;
use codec::Instant;
use serde::Serialize;

use crate::balancer::desired::{BalancerConfig, Protocol, Segment, Vip, VipId};
use crate::error::DataplaneError;

/// What a change came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Writes to the kernel's maps; 0 when everything was as wanted.
    pub writes: usize,
    /// VIPs whose table was replaced.
    pub tables: usize,
    /// Slots of these that name another backend than before.
    pub moved_slots: u64,
}

/// What the kernel had for a backend when the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Packets were sent to it.
    pub usable: bool,
    /// Slots of the VIP's table that name it.
    pub slots: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
}

/// What was sent for a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipCounters {
    /// The VIP.
    pub vip: VipId,
    /// All its frames.
    pub sent: BalancedValue,
    /// By backend, in the order of the desired state.
    pub backends: Vec<BackendCounters>,
}

/// What was sent to a backend of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCounters {
    /// Its name.
    pub name: String,
    /// Its frames.
    pub sent: BalancedValue,
}

/// A flow that somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    /// Segment on which its packets arrive.
    pub segment: Segment,
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The packet is one that begins a connection (TCP SYN, SCTP INIT).
    pub first: bool,
}

/// What the program would do with a packet of a flow now, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The VIP that the packet is for.
    pub vip: Option<VipId>,
    /// Its flow hash.
    pub hash: Option<u32>,
    /// What the table says.
    pub current: Option<SlotChoice>,
    /// What the table before the last change says, while that change is fresh.
    pub previous: Option<SlotChoice>,
    /// Where the flow is remembered.
    pub remembered: Option<Remembered>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Name of the backend that gets it.
    pub backend: Option<String>,
    /// The rule that decides, in words.
    pub because: String,
}

/// A slot of a table and whom it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotChoice {
    /// Slots of the table.
    pub size: u32,
    /// The flow's.
    pub slot: u32,
    /// Index of the backend that it names; `None` for nobody.
    pub index: Option<u16>,
    /// Its name, if the backend is still of the VIP.
    pub name: Option<String>,
    /// Packets may be sent to it.
    pub usable: bool,
}

/// An entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remembered {
    /// Index of the backend.
    pub index: u32,
    /// Its name, if the backend is still of the VIP.
    pub name: Option<String>,
    /// The index has had no other owner since, and packets may be sent there.
    pub valid: bool,
}

/// What becomes of a packet: labels of `weir_balancer_packets_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// To the backend that the table names.
    Forwarded,
    /// To the backend that the flow is remembered on.
    ForwardedFlow,
    /// To the backend that the table before the last change names.
    ForwardedPrevious,
    /// Left to the stack.
    PassNoVip,
    /// Dropped.
    DropNoBackend,
}

/// A running balancer.
pub struct Balancer {}

impl Balancer {
    /// Brings the data path up in the calling thread's network namespace. What an earlier process left pinned is taken
    /// over as it is and stays until [`apply`](Self::apply); the new program is tried on a frame before it replaces
    /// the one at work.
    ///
    /// # Errors
    /// If the interface is missing, the hook is taken, tags cannot be had in the frames, or the kernel refuses
    /// something.
    pub async fn start(_config: &BalancerConfig) -> Result<Self, DataplaneError> {
        Ok(Self {})
    }

    /// Brings the kernel's maps in step with `desired`, which is all VIPs there are.
    ///
    /// # Errors
    /// [`DataplaneError::Vips`] names everything that is wrong with `desired`; nothing was changed then. If the kernel
    /// refuses a write, the writes made stand and the rest is made at the next call.
    pub fn apply(&mut self, _now: Instant, _desired: &[Vip]) -> Result<Applied, DataplaneError> {
        Ok(Applied::default())
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Ends drains, and makes space that no packet reads any more free again.
    ///
    /// # Errors
    /// If the kernel refuses a write; it is made at the next call.
    pub const fn handle_timeout(&mut self, _now: Instant) -> Result<(), DataplaneError> {
        Ok(())
    }

    /// What the kernel had for a backend when this process started; `None` if it was not there.
    #[must_use]
    pub const fn in_place(&self, _vip: &VipId, _backend: &str) -> Option<InPlace> {
        None
    }

    /// Frames and octets by VIP and backend of the desired state.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub const fn counters(&self) -> Result<Vec<VipCounters>, DataplaneError> {
        Ok(Vec::new())
    }

    /// Frames by reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub const fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError> {
        Ok(Vec::new())
    }

    /// What the program would do with a packet now, read from its own maps.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn explain(&self, _flow: &FlowQuery) -> Result<Explanation, DataplaneError> {
        Ok(Explanation {
            vip: None,
            hash: None,
            current: None,
            previous: None,
            remembered: None,
            verdict: Verdict::PassNoVip,
            backend: None,
            because: String::new(),
        })
    }

    /// Octets of each VIP's tables, the previous one included.
    #[must_use]
    pub const fn memory(&self) -> Vec<(VipId, u64)> {
        Vec::new()
    }

    /// Ends the process's part in the data path: [`BalancerConfig::on_stop`].
    ///
    /// # Errors
    /// If something cannot be removed.
    pub async fn stop(self) -> Result<(), DataplaneError> {
        Ok(())
    }
}
