//! weir's balancer as device under test, and its program by itself.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use aya::Ebpf;
use bpf_abi::balancer::{TableChunk, segment};
use codec::Instant;
use dataplane::OnStop;
use dataplane::balancer::{
    Backend, Balancer, BalancerConfig, HashBy, Protocol as VipProtocol, Segment, Vip, VipId, XdpHook,
};
use dataplane::bpffs::{MOUNT_POINT, pin_path_under};
use dataplane::object::{BALANCER, BalancerMapOptions, load_balancer, load_program};
use tokio::runtime::{Builder, Runtime};

use super::frames::{PORT, VID, VIPS};
use super::lane::{D0, Device, Pair};
use super::scenario::Scenario;
use crate::bench::path::is_leftover;
use crate::netns::Netns;

const NODE: &str = "bench";
const FLOWS: u32 = 1024;
const TABLE_MEMORY: u64 = 64 << 20;
/// Segments of the servers: these and 254 more.
const FIRST_VID: u32 = 101;
const VIDS: u32 = 255;

/// A balancer in a namespace, which takes its program with it.
pub(super) struct Balanced {
    netns: Netns,
    pins: PathBuf,
    runtime: Runtime,
    balancer: Option<Balancer>,
    now: Instant,
}

impl Balanced {
    /// Attaches it to the device's port, natively, without a VIP.
    pub(super) fn start(pair: &Pair) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let pins = pins(pair);
        let config = BalancerConfig {
            node: NODE.to_owned(),
            interface: D0.name.to_owned(),
            mode: XdpHook::Native,
            pin_root: Some(pins.clone()),
            on_stop: OnStop::Detach,
            seed: 2544,
            vteps: Vec::new(),
            flows: Some(FLOWS),
            table_memory: TABLE_MEMORY,
        };
        let netns = pair.device.clone();
        let started = netns.run(|| Ok(runtime.block_on(Balancer::start(&config))?))?;
        Ok(Self { netns, pins, runtime, balancer: Some(started), now: Instant::ZERO })
    }

    /// The same with the VIPs of a scenario.
    pub(super) fn serving(pair: &Pair, scenario: Scenario) -> Result<Self> {
        let mut balanced = Self::start(pair)?;
        balanced.apply(&vips(scenario, &[VipProtocol::Udp, VipProtocol::Tcp]))?;
        Ok(balanced)
    }

    /// Makes these all VIPs there are, at once for good: drains have no length here.
    pub(super) fn apply(&mut self, vips: &[Vip]) -> Result<()> {
        let balancer = self.balancer.as_mut().ok_or_else(|| anyhow!("the balancer has stopped"))?;
        balancer.apply(self.now, vips)?;
        Ok(())
    }

    /// A day later: what former changes left is free again.
    pub(super) fn pass_time(&mut self) -> Result<()> {
        self.now = self.now + Duration::from_secs(86_400);
        let balancer = self.balancer.as_mut().ok_or_else(|| anyhow!("the balancer has stopped"))?;
        balancer.handle_timeout(self.now)?;
        Ok(())
    }

    /// Another copy of the program on the same maps, for frames in memory.
    pub(super) fn second_program(&self) -> Result<Ebpf> {
        let directory = pin_path_under(&self.pins, NODE);
        let options = BalancerMapOptions {
            pin_directory: Some(&directory),
            flows: Some(FLOWS),
            chunks: u32::try_from(TABLE_MEMORY / size_of::<TableChunk>() as u64).ok(),
        };
        let mut object = load_balancer(options)?;
        load_program(&mut object, BALANCER)?;
        Ok(object)
    }
}

impl Device for Balanced {
    fn explain(&self) -> String {
        let reasons = self.balancer.as_ref().and_then(|balancer| balancer.reasons().ok()).unwrap_or_default();
        let counted = reasons.iter().filter(|(_, count)| *count > 0);
        let words: Vec<_> = counted.map(|(reason, count)| format!("{} {count}", reason.label())).collect();
        format!("({})", words.join(", "))
    }
}

impl Drop for Balanced {
    fn drop(&mut self) {
        let Some(balancer) = self.balancer.take() else { return };
        if let Err(error) = self.netns.run(|| Ok(self.runtime.block_on(balancer.stop())?)) {
            tracing::warn!(%error, "the balancer is still attached");
        }
        if let Err(error) = remove_pins(&self.pins) {
            tracing::warn!(%error, "pins left behind");
        }
    }
}

/// Where the balancers of this process are pinned, one directory for each namespace.
fn pins(pair: &Pair) -> PathBuf {
    Path::new(MOUNT_POINT).join(pair.device.name())
}

/// Removes what benches that were killed have pinned.
pub(super) fn remove_leftovers() -> Result<()> {
    let Ok(entries) = fs::read_dir(MOUNT_POINT) else { return Ok(()) };
    for entry in entries.flatten() {
        if is_leftover(&entry.file_name().to_string_lossy()) {
            remove_pins(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_pins(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| directory.display().to_string())
        }
        _ => Ok(()),
    }
}

/// The VIPs of a scenario on the segment that frames arrive on.
pub(super) fn vips(scenario: Scenario, protocols: &[VipProtocol]) -> Vec<Vip> {
    let of = |number: u32, protocol: VipProtocol| Vip {
        id: VipId {
            address: IpAddr::from(Ipv4Addr::from(VIPS + number)),
            port: PORT,
            protocol,
            segment: vlan(VID.into()),
        },
        hash: HashBy::FiveTuple,
        flow_table: false,
        table_size: None,
        drain: Duration::ZERO,
        echo: true,
        backends: scenario.backends_of(number).map(backend).collect(),
    };
    (0..scenario.vips)
        .flat_map(|number| protocols.iter().map(move |protocol| of(number, *protocol)))
        .collect()
}

/// A server with MAC address and VLAN id of its own.
pub(super) fn backend(number: u32) -> Backend {
    let [_, a, b, c] = number.to_be_bytes();
    Backend {
        name: format!("server-{number}"),
        weight: 1,
        usable: true,
        mac: [0x02, 0x01, 0x00, a, b, c],
        segment: vlan(FIRST_VID + number % VIDS),
        tunnel: None,
    }
}

fn vlan(vid: u32) -> Segment {
    Segment::from_value(segment::DOT1Q | vid).unwrap_or(Segment::NONE)
}

/// Whether a frame came out as one that a server of its VIP gets: another destination, the port's own address as
/// source, the server's VLAN id, and not an octet else.
pub(super) fn check(before: &[u8], after: &[u8], scenario: Scenario) -> Result<()> {
    let vip = u32::from_be_bytes([before[34], before[35], before[36], before[37]]) - VIPS;
    let wanted = |server: u32| {
        let backend = backend(server);
        let vid = u16::try_from(backend.segment.id()).unwrap_or_default();
        let mut frame = before.to_vec();
        frame[..6].copy_from_slice(&backend.mac);
        frame[6..12].copy_from_slice(&D0.mac);
        frame[14..16].copy_from_slice(&vid.to_be_bytes());
        frame
    };
    ensure!(
        scenario.backends_of(vip).any(|server| wanted(server) == after),
        "no server of VIP {vip} gets such a frame: {after:02x?}"
    );
    Ok(())
}
