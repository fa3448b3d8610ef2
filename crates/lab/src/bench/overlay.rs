//! weir's programs on both gateways of the path, with the tables that a control plane would have written.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, anyhow, ensure};
use aya::Ebpf;
use aya::programs::tc::{TcAttachType, qdisc_add_clsact};
use aya::programs::{Program, XdpMode};
use bpf_abi::{InterfaceValue, NodeValue};
use codec::IpPrefix;
use dataplane::maps::Maps;
use dataplane::object::{ETR, ETR_XDP, ITR, ITR_XDP, MapOptions, load, load_program};
use dataplane::table::{Desired, LocalEid, Locator, Mapping, Path, plan};
use dataplane::{Eid, mapped};

use super::path::{BenchPath, C0, CORE_MTU, E0, E1, ETR_RLOC, I0, I1, ITR_RLOC, Port, S0, ifindex, offload};
use crate::netns::Netns;

/// Where the programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Tc,
    Xdp,
}

impl Hook {
    /// As tables call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tc => "TC",
            Self::Xdp => "XDP",
        }
    }
}

/// Both gateways, until dropped.
pub(super) struct Overlay<'a> {
    path: &'a BenchPath,
    hook: Hook,
    gateways: Vec<(Netns, Option<Gateway>)>,
}

/// One gateway: its programs are attached for as long as the object lives, and keep using the maps.
struct Gateway {
    _object: Ebpf,
    maps: Maps,
}

/// One gateway's place on the path.
struct Site {
    eid: Port,
    underlay: Port,
    rloc: [u8; 4],
    peer: (Port, [u8; 4]),
    here: &'static str,
    there: &'static str,
}

const CLIENTS: &str = "10.200.0.0/24";
const SERVICE: &str = "10.100.0.0/24";
const ITR_SITE: Site =
    Site { eid: I0, underlay: I1, rloc: ITR_RLOC, peer: (E1, ETR_RLOC), here: CLIENTS, there: SERVICE };
const ETR_SITE: Site =
    Site { eid: E0, underlay: E1, rloc: ETR_RLOC, peer: (I1, ITR_RLOC), here: SERVICE, there: CLIENTS };

impl<'a> Overlay<'a> {
    /// Loads, fills and attaches.
    pub(super) fn attach(path: &'a BenchPath, hook: Hook) -> Result<Self> {
        let mut overlay = Self { path, hook, gateways: Vec::new() };
        if hook == Hook::Xdp {
            // Redirected frames reach the hosts' ends only with NAPI on.
            overlay.host_napi(true)?;
        }
        for (netns, site) in [(&path.itr, &ITR_SITE), (&path.etr, &ETR_SITE)] {
            let gateway = netns.run(|| gateway(site, hook)).with_context(|| netns.name().to_owned())?;
            overlay.gateways.push((netns.clone(), Some(gateway)));
        }
        Ok(overlay)
    }

    /// Packets by reason on both gateways, for the error message when none arrive.
    pub(super) fn reasons(&self) -> String {
        let of = |gateway: &Gateway| {
            let reasons = gateway.maps.reasons().unwrap_or_default();
            reasons
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(r, n)| format!("{} {n}", r.label()))
                .collect()
        };
        let gateways = self.gateways.iter().filter_map(|(netns, gateway)| Some((netns, gateway.as_ref()?)));
        let lines = gateways.map(|(netns, gateway)| {
            let counted: Vec<String> = of(gateway);
            format!("{}: {}", netns.name(), counted.join(", "))
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    fn host_napi(&self, on: bool) -> Result<()> {
        offload(&self.path.server, S0, "gro", on)?;
        offload(&self.path.client, C0, "gro", on)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        for (netns, gateway) in &mut self.gateways {
            let gateway = gateway.take();
            // Filters of kernels before 6.6 are removed by interface name, which only means something in there.
            let detached = netns.run(|| {
                drop(gateway);
                Ok(())
            });
            if let Err(error) = detached {
                tracing::warn!(netns = netns.name(), %error, "still attached");
            }
        }
        if self.hook == Hook::Xdp
            && let Err(error) = self.host_napi(false)
        {
            tracing::warn!(%error, "offload left on");
        }
    }
}

fn gateway(site: &Site, hook: Hook) -> Result<Gateway> {
    let mut object = load(MapOptions { flows: Some(16_384), ..MapOptions::default() })?;
    let (itr, etr) = match hook {
        Hook::Tc => (ITR, ETR),
        Hook::Xdp => (ITR_XDP, ETR_XDP),
    };
    attach(load_program(&mut object, itr)?, site.eid)?;
    attach(load_program(&mut object, etr)?, site.underlay)?;
    let maps = fill(&mut object, site, &[ifindex(site.eid)?, ifindex(site.underlay)?])?;
    Ok(Gateway { _object: object, maps })
}

/// Puts a loaded program on an interface of the calling thread's namespace.
pub(super) fn attach(program: &mut Program, port: Port) -> Result<()> {
    match program {
        Program::SchedClassifier(program) => {
            // Links as the gateway has them; before kernel 6.6 a filter, and the queueing discipline that it needs, which
            // would slow down the routing that comes after.
            if program.attach(port.name, TcAttachType::Ingress).is_err() {
                let _ = qdisc_add_clsact(port.name);
                program.attach(port.name, TcAttachType::Ingress)?;
            }
        }
        Program::Xdp(program) => {
            program.attach(port.name, XdpMode::Driver)?;
        }
        _ => return Err(anyhow!("neither TC nor XDP")),
    }
    Ok(())
}

/// Programs that are run on packets in memory see them come in on loopback.
const LOOPBACK: u32 = 1;

/// The client's gateway's table, for such runs in its namespace.
pub(super) fn fill_itr_for_test_run(object: &mut Ebpf) -> Result<Maps> {
    fill(object, &ITR_SITE, &[LOOPBACK])
}

/// The server's gateway's table, likewise.
pub(super) fn fill_etr_for_test_run(object: &mut Ebpf) -> Result<Maps> {
    fill(object, &ETR_SITE, &[LOOPBACK])
}

/// Fills the tables of a gateway in whose namespace the calling thread is.
fn fill(object: &mut Ebpf, site: &Site, ingress: &[u32]) -> Result<Maps> {
    let (eid_ifindex, underlay_ifindex) = (ifindex(site.eid)?, ifindex(site.underlay)?);
    let rloc = IpAddr::from(Ipv4Addr::from(site.peer.1));
    let prefix =
        |text: &str| -> Result<Eid> { Ok(Eid { instance_id: 0, prefix: text.parse::<IpPrefix>()? }) };
    let mut desired = Desired {
        node: NodeValue { flow_idle_ns: 300_000_000_000, rloc_count: 1, ..NodeValue::default() },
        ..Desired::default()
    };
    desired.node.rlocs[0] = mapped(Ipv4Addr::from(site.rloc).into());
    for interface in ingress {
        desired.interfaces.insert(*interface, InterfaceValue::default());
    }
    let locator = Locator { rloc, priority: 1, weight: 100, usable: true, gpe: false };
    desired.mappings.insert(prefix(site.there)?, Mapping::Encapsulate(vec![locator]));
    desired.local_eids.insert(prefix(site.here)?, LocalEid { ifindex: eid_ifindex, next_hop: None });
    let way = Path {
        source: Ipv4Addr::from(site.rloc).into(),
        next_hop: rloc,
        ifindex: underlay_ifindex,
        mtu: CORE_MTU,
        macs: Some((site.peer.0.mac, site.underlay.mac)),
    };
    desired.paths.insert(rloc, way);
    let mut maps = Maps::take(object)?;
    let observed = maps.observe()?;
    let plan = plan(&desired, &observed);
    ensure!(plan.refused.is_empty(), "table refused: {:?}", plan.refused);
    for write in &plan.writes {
        maps.write(write)?;
    }
    Ok(maps)
}
