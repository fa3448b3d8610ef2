//! The `[balancer]` section.

use std::net::IpAddr;
use std::path::PathBuf;

use bpf_abi::balancer::VTEPS;
use dataplane::balancer::Segment;

use super::checks::Checks;
use super::services::{self, Vip};
use super::{OnStop, XdpMode, raw, transpose};

/// A site balancer.
#[derive(Clone, Debug)]
pub struct Balancer {
    /// Interface that frames come in on and leave by.
    pub interface: String,
    /// Where XDP runs.
    pub mode: XdpMode,
    /// What becomes of the data path.
    pub on_stop: OnStop,
    /// Start of the flow hash.
    pub seed: u32,
    /// Own tunnel endpoints.
    pub vteps: Vec<IpAddr>,
    /// Flows remembered at most.
    pub flow_entries: u32,
    /// Octets of all tables together.
    pub table_memory: u64,
    /// VIPs to start with.
    pub services: Option<ServicesFile>,
    /// Addresses that backends are asked from for their link-layer addresses.
    pub sources: Vec<NeighbourSource>,
    /// Forget what the API stored and start with the file; a command line says so.
    pub reset_from_file: bool,
}

/// The file that `balancer.services` names.
#[derive(Clone, Debug)]
pub struct ServicesFile {
    /// Where it is.
    pub file: PathBuf,
    /// What is in it.
    pub vips: Vec<Vip>,
}

/// An address that backends of a segment are asked from for their link-layer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourSource {
    /// The segment, which is no tunnel's.
    pub segment: Segment,
    /// The address.
    pub address: IpAddr,
}

/// An LRU map keeps a few free entries for each CPU; with less it forgets flows that are in use.
const MIN_FLOWS: u32 = 1024;
/// 40 octets each and what the kernel adds.
const MAX_FLOWS: u32 = 1 << 26;
const MAX_TABLE_MIB: u32 = 64;

impl Checks {
    pub(super) fn balancer(&mut self, balancer: raw::Balancer) -> Option<Balancer> {
        let interface = self.interface_name("balancer.interface", balancer.interface);
        let vteps = self.each("balancer.vteps", balancer.vteps, |c, path, text| c.unicast(path, &text));
        self.distinct("balancer.vteps", "address", &vteps, |vtep| *vtep);
        if let Some(count) = vteps.as_ref().map(Vec::len).filter(|count| *count > VTEPS) {
            self.problem("balancer.vteps", format!("{count} addresses; at most {VTEPS} are supported"));
        }
        let flows = self.within("balancer.flow_entries", balancer.flow_entries, MIN_FLOWS, MAX_FLOWS);
        let memory = self.within("balancer.table_memory_mib", balancer.table_memory_mib, 1, MAX_TABLE_MIB);
        let services = balancer.services.map(|file| self.services_file(&file, vteps.as_deref()));
        let sources =
            self.each("balancer.source", balancer.source, |c, path, s| c.neighbour_source(path, &s));
        self.distinct("balancer.source", "segment and address family", &sources, |source| {
            (source.segment.value(), source.address.is_ipv4())
        });
        Some(Balancer {
            interface: interface?,
            mode: balancer.mode,
            on_stop: balancer.on_stop,
            seed: balancer.seed,
            vteps: vteps?,
            flow_entries: flows?,
            table_memory: u64::from(memory?) << 20,
            services: transpose(services)?,
            sources: sources?,
            reset_from_file: false,
        })
    }

    fn within(&mut self, path: &str, value: u32, low: u32, high: u32) -> Option<u32> {
        if !(low..=high).contains(&value) {
            self.problem(path, format!("{value} is out of range: {low} to {high}"));
            return None;
        }
        Some(value)
    }

    fn neighbour_source(&mut self, path: &str, source: &raw::BalancerSource) -> Option<NeighbourSource> {
        let address = self.source_address(&format!("{path}.address"), &source.address);
        let path = format!("{path}.segment");
        let words = "none, 802.1q:VID, 802.1ad:VID or 802.1ad:VID.VID";
        if source.segment.is_empty() {
            self.problem(&path, format!("required: {words}"));
            return None;
        }
        let segment = self.segment(&path, &source.segment)?;
        if segment.kind().is_tunnel() {
            let way_out = "backends behind a tunnel have `mac` and `vtep` written down and are not asked";
            self.problem(&path, format!("{segment} is a tunnel: {way_out}; expected {words}"));
            return None;
        }
        Some(NeighbourSource { segment, address: address? })
    }

    fn source_address(&mut self, path: &str, text: &str) -> Option<IpAddr> {
        let address = self.unicast(path, text)?;
        if address.is_loopback() {
            self.problem(path, format!("{address} is a loopback address, to which no answer comes"));
            return None;
        }
        Some(address)
    }

    fn services_file(&mut self, text: &str, vteps: Option<&[IpAddr]>) -> Option<ServicesFile> {
        let file = self.path("balancer.services", text)?;
        match services::load(&file, vteps) {
            Ok(vips) => Some(ServicesFile { file, vips }),
            Err(error) => {
                self.of_file(&file, error.problems);
                None
            }
        }
    }
}
