//! One node's balancer at work.

mod follow;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use bpf_abi::balancer::{BackendValue, BalancedFlowValue, BalancedValue, BalancerNodeValue, VTEPS, VipValue};
use bpf_abi::{BalancerReason, FlowKey};
use codec::Instant;

use crate::balancer::desired::{BalancerConfig, Vip, VipId, XdpHook};
use crate::balancer::explain::{self, Explanation, FlowQuery, LookUp};
use crate::balancer::features::{Features, FilteredVlans};
use crate::balancer::hook;
use crate::balancer::identity::identity;
use crate::balancer::maps::Maps;
use crate::balancer::observed::{Observed, address_of, is_vip};
use crate::balancer::plan::{CHUNK_OCTETS, Placed, table_octets};
use crate::balancer::portless::{self, PacketKind};
use crate::balancer::self_test::self_test;
use crate::balancer::state::{Applied, State};
use crate::balancer::table::{self, Memory, Table};
use crate::bpffs::{self, Owner};
use crate::dataplane::OnStop;
use crate::eid::{mapped, unmapped};
use crate::error::DataplaneError;
use crate::netlink::{Link, Netlink};
use crate::object::{self, BalancerMapOptions};

pub use follow::Followed;

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

/// A running balancer.
pub struct Balancer {
    config: BalancerConfig,
    pins: PathBuf,
    link: Link,
    features: Features,
    /// There is no interface of the port's name, or the program is not on it.
    away: bool,
    /// The program was not on the port when that was looked at last.
    missed: bool,
    /// The program stays loaded through the pinned link; until it is attached, through this.
    object: Ebpf,
    attached: bool,
    state: State<Maps>,
    found: HashMap<u128, InPlace>,
}

impl Balancer {
    /// Brings the data path up in the calling thread's network namespace. What an earlier process left pinned is taken
    /// over as it is and stays until [`apply`](Self::apply); the new program is tried on a frame before it replaces
    /// the one at work. One of another version of the map layout is replaced when the first `apply` has filled the
    /// new maps.
    ///
    /// # Errors
    /// If the interface is missing, the hook is taken, tags cannot be had in the frames, or the kernel refuses
    /// something. What an earlier process left stays then, what this start made is taken away.
    pub async fn start(config: &BalancerConfig) -> Result<Self, DataplaneError> {
        let pins = match &config.pin_root {
            Some(root) => bpffs::pin_path_under(root, &config.node),
            None => {
                bpffs::ensure_mounted()?;
                bpffs::pin_path(&config.node)
            }
        };
        let node = node_value(config)?;
        let was_pinned = bpffs::has_pins(&pins, Owner::Balancer);
        bpffs::create(&pins)?;
        let started = Self::bring_up(config, &pins, node).await;
        if started.is_err() && !was_pinned {
            bpffs::remove(&pins, Owner::Balancer)?;
        }
        started
    }

    async fn bring_up(
        config: &BalancerConfig,
        pins: &Path,
        node: BalancerNodeValue,
    ) -> Result<Self, DataplaneError> {
        let netlink = Netlink::connect(false)?;
        let link = netlink.require(&config.interface).await?;
        let versions = bpffs::versions(pins);
        hook::follow_rename(&link, &versions)?;
        let at_work = hook::is_ours(&link, &versions)?;
        self_test()?;
        let mut balancer = Self::load(config, pins, link)?;
        balancer.introduce(node)?;
        if let Err(error) = balancer.take_over(&netlink, at_work).await {
            balancer.features.give_up();
            return Err(error);
        }
        Ok(balancer)
    }

    /// The program and the maps in the kernel, nothing on the port yet.
    fn load(config: &BalancerConfig, pins: &Path, link: Link) -> Result<Self, DataplaneError> {
        let chunks = u32::try_from(config.table_memory / CHUNK_OCTETS).unwrap_or(u32::MAX).max(1);
        let options =
            BalancerMapOptions { pin_directory: Some(pins), flows: config.flows, chunks: Some(chunks) };
        let load = |error| DataplaneError::Load(Box::new(error));
        let mut object = object::load_balancer(options).map_err(load)?;
        object::load_program(&mut object, object::BALANCER).map_err(load)?;
        let maps = Maps::take(&mut object)?;
        if maps.tables().entries() != chunks {
            let (wanted, octets) = (config.table_memory, u64::from(maps.tables().entries()) * CHUNK_OCTETS);
            tracing::warn!(
                wanted,
                octets,
                "tables in place have another size; a stop with detach gives it up"
            );
        }
        let observed = maps.observe()?;
        let found = in_place(&observed, &maps);
        let (config, pins, state) = (config.clone(), pins.to_owned(), State::new(maps, observed));
        let features = Features::open(&link, &features_file(&config));
        Ok(Self {
            config,
            pins,
            link,
            features,
            away: false,
            missed: false,
            object,
            attached: false,
            state,
            found,
        })
    }

    async fn take_over(&mut self, netlink: &Netlink, at_work: bool) -> Result<(), DataplaneError> {
        self.features.leave_tags_in()?;
        bpffs::take_over_other_versions(&self.pins, Owner::Balancer)?;
        self.take_port(netlink, at_work).await
    }

    /// A program of another version has maps of its own, filled: it is not replaced by one whose maps are empty, but
    /// after the first change.
    async fn take_port(&mut self, netlink: &Netlink, at_work: bool) -> Result<(), DataplaneError> {
        let pin = hook::pin(&self.pins, &self.link.name);
        let moves = hook::leave_other_hook(netlink, &self.link, self.config.mode, &pin).await?;
        if at_work && !moves && self.state.observed.vips.is_empty() {
            return Ok(());
        }
        self.attach()?;
        if netlink.require(&self.link.name).await?.xdp.is_none() {
            tracing::info!(interface = self.link.name, "the pinned link is of another port; attaching anew");
            bpffs::unpin(&pin)?;
            self.attach()?;
        }
        self.leave_former_ports(netlink, &pin).await
    }

    /// What was the port before the configuration named another one gets its features back, and the program is taken off.
    async fn leave_former_ports(&mut self, netlink: &Netlink, pin: &Path) -> Result<(), DataplaneError> {
        for former in bpffs::links(&self.pins, Owner::Balancer)?.iter().filter(|former| *former != pin) {
            let program = hook::program_behind(former);
            for ifindex in self.features.former_ports() {
                let link = netlink.link_by_index(ifindex).await?;
                // An index alone may be of another device by now, or of another namespace.
                let had_it = |link: &Link| program.is_some() && link.xdp.map(|xdp| xdp.program) == program;
                if let Some(link) = link.filter(had_it) {
                    self.features.leave_former(&link);
                }
            }
            bpffs::unpin(former)?;
            tracing::info!(former = %former.display(), "taken off what was the port before");
        }
        Ok(())
    }

    fn introduce(&mut self, node: BalancerNodeValue) -> Result<(), DataplaneError> {
        let node = BalancerNodeValue { mac: self.link.mac, ..node };
        let before = self.state.maps.node()?;
        if before.seed != node.seed && before != BalancerNodeValue::default() {
            tracing::warn!("the seed of the flow hash is another one than before: flows move");
        }
        self.state.maps.set_node(&node)
    }

    fn attach(&mut self) -> Result<(), DataplaneError> {
        let pin = hook::pin(&self.pins, &self.link.name);
        hook::attach(&mut self.object, &self.link, self.config.mode, &pin)?;
        self.attached = true;
        tracing::info!(interface = self.link.name, mode = %self.config.mode, "attached");
        Ok(())
    }

    /// Brings the kernel's maps in step with `desired`, which is all VIPs there are.
    ///
    /// # Errors
    /// [`DataplaneError::Vips`] names everything that is wrong with `desired`; nothing was changed then. If the kernel
    /// refuses a write, the writes made stand and the rest is made at the next call.
    pub fn apply(&mut self, now: Instant, desired: &[Vip]) -> Result<Applied, DataplaneError> {
        let began = std::time::Instant::now();
        let applied = self.state.apply(&|| now + began.elapsed(), desired, &self.config.vteps)?;
        self.features.let_in(desired).iter().for_each(|filtered| tracing::warn!("{filtered}"));
        if !self.attached && !self.away {
            self.attach()?;
        }
        Ok(applied)
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.observed.poll_timeout()
    }

    /// Ends drains, and makes space that no packet reads any more free again.
    ///
    /// # Errors
    /// If the kernel refuses a write; it is made at the next call.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DataplaneError> {
        let began = std::time::Instant::now();
        self.state.handle_timeout(&|| now + began.elapsed())
    }

    /// What the kernel had for a backend when this process started; `None` if it was not there.
    #[must_use]
    pub fn in_place(&self, vip: &VipId, backend: &str) -> Option<InPlace> {
        self.found.get(&identity(&vip.key(), backend)).copied()
    }

    /// Where frames are taken.
    #[must_use]
    pub const fn hook(&self) -> XdpHook {
        self.config.mode
    }

    /// VLANs of VIPs and backends whose frames the port may drop before they are balanced.
    #[must_use]
    pub fn filtered(&self) -> Vec<FilteredVlans> {
        self.features.filtered()
    }

    /// Frames and octets by VIP and backend of the desired state.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn counters(&self) -> Result<Vec<VipCounters>, DataplaneError> {
        let maps = &self.state.maps;
        let of_vip = |(key, placed): (&_, &Placed)| {
            let id = self.state.observed.vips.get(key).map(|value| value.id);
            let names = placed.vip.backends.iter().map(|backend| backend.name.clone());
            let backends = names
                .zip(&placed.indices)
                .map(|(name, index)| Ok(BackendCounters { name, sent: maps.sent_to(*index)? }));
            Ok(VipCounters {
                vip: placed.vip.id,
                sent: id.map_or(Ok(BalancedValue::default()), |id| maps.sent_for(id))?,
                backends: backends.collect::<Result<_, DataplaneError>>()?,
            })
        };
        self.state.in_force.iter().map(of_vip).collect()
    }

    /// Frames by reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn reasons(&self) -> Result<Vec<(BalancerReason, u64)>, DataplaneError> {
        self.state.maps.reasons()
    }

    /// What the program would do with a packet now, read from its own maps.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn explain(&self, flow: &FlowQuery) -> Result<Explanation, DataplaneError> {
        explain::explain(self, flow)
    }

    /// What the program would do with a packet of a flow, or about it, that is not one with ports.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn explain_packet(
        &self,
        flow: &FlowQuery,
        packet: PacketKind,
    ) -> Result<Explanation, DataplaneError> {
        portless::explain_packet(self, flow, packet)
    }

    /// Octets of each VIP's tables, the previous one included.
    #[must_use]
    pub fn memory(&self) -> Vec<(VipId, u64)> {
        let vips = self.state.observed.vips.iter();
        vips.filter_map(|(key, value)| Some((VipId::from_key(key)?, table_octets(value)))).collect()
    }

    /// VIPs with a change younger than their drain, whoever made it: flows from before may go to other backends.
    #[must_use]
    pub fn draining(&self) -> Vec<VipId> {
        let vips =
            self.state.observed.vips.iter().filter(|(key, value)| is_vip(key) && value.previous_size > 0);
        vips.filter_map(|(key, _)| VipId::from_key(key)).collect()
    }

    /// How many slots of each VIP's table name each backend of the desired state.
    #[must_use]
    pub fn slots(&self) -> Vec<(VipId, Vec<(String, u32)>)> {
        let of_vip = |(key, placed): (&_, &Placed)| {
            let value = self.state.observed.vips.get(key)?;
            let mut counts: HashMap<u16, u32> = HashMap::new();
            for index in self.state.maps.tables().slots(table::current(value))? {
                *counts.entry(index).or_default() += 1;
            }
            let names = placed.vip.backends.iter().map(|backend| backend.name.clone());
            let slots = placed.indices.iter().map(|index| counts.get(index).copied().unwrap_or_default());
            Some((placed.vip.id, names.zip(slots).collect()))
        };
        self.state.in_force.iter().filter_map(of_vip).collect()
    }

    /// Ends the process's part in the data path: [`BalancerConfig::on_stop`].
    ///
    /// # Errors
    /// If something cannot be removed.
    pub async fn stop(self) -> Result<(), DataplaneError> {
        if self.config.on_stop == OnStop::Keep {
            return Ok(());
        }
        let Self { pins, link, mut features, away, object, state, .. } = self;
        drop((state, object));
        bpffs::remove(&pins, Owner::Balancer)?;
        features.leave();
        if away {
            return Ok(());
        }
        hook::wait_until_free(&Netlink::connect(false)?, &link.name).await
    }
}

impl LookUp for Balancer {
    type Error = DataplaneError;

    fn vip(&self, id: &VipId) -> Result<Option<VipValue>, DataplaneError> {
        self.state.maps.vip(&id.key())
    }

    fn address(&self, id: &VipId) -> Result<Option<VipValue>, DataplaneError> {
        self.state.maps.vip(&address_of(&id.key()))
    }

    fn seed(&self) -> Result<u32, DataplaneError> {
        Ok(self.state.maps.node()?.seed)
    }

    fn slot(&self, table: Table, slot: u32) -> Option<u16> {
        self.state.maps.tables().slot(table, slot)
    }

    fn backend(&self, index: u16) -> Result<BackendValue, DataplaneError> {
        self.state.maps.backend(index)
    }

    fn vtep(&self, index: u16) -> Result<Option<IpAddr>, DataplaneError> {
        Ok(self.state.observed.tunnels.get(&index).map(|tunnel| unmapped(&tunnel.vtep)))
    }

    fn vteps(&self) -> Result<Vec<IpAddr>, DataplaneError> {
        Ok(self.config.vteps.clone())
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<BalancedFlowValue>, DataplaneError> {
        self.state.maps.flow(key)
    }

    fn name(&self, vip: &VipId, index: u16) -> Option<String> {
        let placed = self.state.in_force.get(&vip.key())?;
        let at = placed.indices.iter().position(|placed| *placed == index)?;
        placed.vip.backends.get(at).map(|backend| backend.name.clone())
    }

    fn others(&self, id: &VipId) -> Vec<VipId> {
        let vips = self.state.observed.vips.keys().filter_map(VipId::from_key);
        vips.filter(|other| other.address == unmapped(&mapped(id.address))).collect()
    }
}

/// Where it is kept what was turned off; beside that of others, if pins are.
fn features_file(config: &BalancerConfig) -> PathBuf {
    let elsewhere = config.pin_root.as_ref().and_then(|root| root.file_name());
    let prefix = elsewhere.map_or_else(String::new, |root| format!("{}-", root.to_string_lossy()));
    Path::new("/run/weir").join(format!("{prefix}{}", config.node)).join("features")
}

fn node_value(config: &BalancerConfig) -> Result<BalancerNodeValue, DataplaneError> {
    let mut node = BalancerNodeValue { seed: config.seed, ..BalancerNodeValue::default() };
    let too_many = || DataplaneError::TooManyVteps { count: config.vteps.len(), most: VTEPS };
    let places = node.vteps.get_mut(..config.vteps.len()).ok_or_else(too_many)?;
    for (place, vtep) in places.iter_mut().zip(&config.vteps) {
        *place = mapped(*vtep);
        node.vtep_count += 1;
    }
    Ok(node)
}

/// Backends by identity, with their slots in the tables in force.
fn in_place(observed: &Observed, maps: &Maps) -> HashMap<u128, InPlace> {
    let mut slots: BTreeMap<u16, u32> = BTreeMap::new();
    for (_, value) in observed.vips.iter().filter(|(key, _)| is_vip(key)) {
        for index in maps.tables().slots(table::current(value)).unwrap_or_default() {
            *slots.entry(index).or_default() += 1;
        }
    }
    let of = |(index, identity): (&u16, &u128)| {
        let mac = observed.backends.get(index).map_or([0; 6], |backend| backend.mac);
        let slots = slots.get(index).copied().unwrap_or(0);
        (*identity, InPlace { usable: observed.is_usable(*index), slots, mac })
    };
    observed.owners().iter().map(of).collect()
}

/// It moves between the threads of a runtime.
const _: fn() = || {
    fn moves<T: Send + Sync>() {}
    moves::<Balancer>();
};
