//! One gateway's data path: devices, programs and maps, brought up, kept in step with the routes, taken down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::Ebpf;
use bpf_abi::{
    ACTION_ENCAPSULATE, DECAPSULATED, InterfaceValue, NodeValue, OFFERED, OVERHEAD_V4, OVERHEAD_V6, Reason,
    TrafficValue,
};
use codec::IpPrefix;
use netlink_packet_route::route::RouteMessage;
use tokio::sync::watch;

use crate::attach::{Attachments, Chosen, Hook, Role, choose};
use crate::before::Before;
use crate::bpffs::{self, Owner};
use crate::devices::{Devices, RESOLVE, SEGMENT_PEER, STACK_PEER};
use crate::eid::{Eid, mapped};
use crate::error::DataplaneError;
use crate::maps::{FlowReader, Maps};
use crate::netlink::{Link, Netlink};
use crate::object;
use crate::path::resolve;
use crate::survey::{Survey, Surveyed};
use crate::sysctl::Sysctls;
use crate::table::{Desired, LocalEid, Mapping, Observed, Path as WayToRloc, Refusal, plan};
use crate::tap::Tap;

/// What a gateway's data path is configured with.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Name of the node: where its maps and links are pinned.
    pub node: String,
    /// Own RLOCs.
    pub rlocs: Vec<IpAddr>,
    /// Interfaces to attach to.
    pub interfaces: Vec<Interface>,
    /// Destinations that LISP handles.
    pub eid_space: Vec<Eid>,
    /// Prefixes that live here.
    pub local_eids: Vec<LocalPrefix>,
    /// Where packets are taken.
    pub hook: Hook,
    /// Time without packets after which a flow may be placed anew.
    pub flow_idle: Duration,
    /// Entries of the flow table; `None` for the object's own size.
    pub flow_entries: Option<u32>,
}

/// An interface and what happens on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// ITR towards hosts, ETR towards the underlay.
    pub role: Role,
    /// Instance of the hosts behind it.
    pub instance_id: u32,
}

/// An EID-prefix whose hosts are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPrefix {
    /// The prefix.
    pub eid: Eid,
    /// Interface towards the hosts; empty leaves decapsulated packets to the stack's routes.
    pub interface: String,
    /// Next hop; `None` when the hosts are on-link.
    pub next_hop: Option<IpAddr>,
}

/// What becomes of the data path when the process stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStop {
    /// It runs on.
    #[default]
    Keep,
    /// It is removed.
    Detach,
}

/// Traffic of an EID-prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The prefix.
    pub eid: Eid,
    /// What is counted.
    pub of: TrafficOf,
    /// Since the counters were made.
    pub value: TrafficValue,
}

/// What a traffic counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficOf {
    /// Packets encapsulated to a locator, and flows placed there.
    Locator(IpAddr),
    /// New flows to a mapping in front of the split, whether or not a locator could take them.
    Offered,
    /// Decapsulated packets of a local prefix.
    Decapsulated,
}

/// A locator of a mapping, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedLocator {
    /// Which one.
    pub rloc: IpAddr,
    /// Whether flows may use it.
    pub usable: bool,
    /// Its share of the [`bpf_abi::BUCKETS`] buckets.
    pub buckets: usize,
}

/// A running data path.
pub struct Dataplane {
    config: DataplaneConfig,
    netlink: Netlink,
    sysctls: Sysctls,
    devices: Devices,
    attachments: Attachments,
    // Programs stay loaded through the pinned links; the object only has to live until they are attached.
    object: Ebpf,
    maps: Maps,
    observed: Observed,
    desired: Desired,
    pins: PathBuf,
    links: Vec<(Interface, Link)>,
    hook: Chosen,
    /// Native routes that the last survey found and no commit has taken up yet.
    native_routes: BTreeMap<IpPrefix, RouteMessage>,
    /// An interface was made anew and has no program yet.
    unattached: bool,
}

impl Dataplane {
    /// Brings the data path up in the calling thread's network namespace. What an earlier process left pinned is
    /// taken over as it is: mappings found there stay until they are set or removed.
    ///
    /// # Errors
    /// If an interface is missing or the kernel refuses something. What an earlier process left stays then, what this
    /// start made is taken away.
    pub async fn start(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        bpffs::ensure_mounted()?;
        let before = Before::look(&config.node, &sysctl_file(&config.node)).await?;
        match Self::bring_up(config).await {
            Ok(dataplane) => Ok(dataplane),
            Err(error) => {
                before.restore().await;
                Err(error)
            }
        }
    }

    async fn bring_up(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        let pins = bpffs::pin_directory(&config.node)?;
        let with_macs = config.hook == Hook::Xdp;
        let netlink = Netlink::connect(with_macs)?;
        let mut links = Vec::with_capacity(config.interfaces.len());
        for interface in &config.interfaces {
            links.push((interface.clone(), netlink.require(&interface.name).await?));
        }
        let underlay: Vec<&Link> = with_role(&links, Role::Etr).map(|(_, link)| link).collect();
        let instance_id = with_role(&links, Role::Itr).map(|(i, _)| i.instance_id).next().unwrap_or(0);
        let mut sysctls = Sysctls::open(&sysctl_file(&config.node));
        sysctls.set("ipv4/ip_forward", "1")?;
        let devices = Devices::create(&netlink, &mut sysctls, instance_id, underlay.first().copied()).await?;
        let options = object::MapOptions { pin_directory: Some(&pins), flows: config.flow_entries };
        let mut object = object::load(options).map_err(|e| DataplaneError::Load(Box::new(e)))?;
        let mut maps = Maps::take(&mut object)?;
        let observed = maps.observe()?;
        let mut desired = desired(&config, &links, &devices, &netlink).await?;
        inherit(&mut desired, &observed, &config.eid_space);
        let hook = links.first().map_or(Ok(TC), |(_, link)| choose(config.hook, link))?;
        let mut dataplane = Self {
            attachments: Attachments::new(&pins),
            config,
            netlink,
            sysctls,
            devices,
            object,
            maps,
            observed,
            desired,
            pins,
            links,
            hook,
            native_routes: BTreeMap::new(),
            unattached: false,
        };
        dataplane.route_local().await?;
        dataplane.commit().await?;
        bpffs::take_over_other_versions(&dataplane.pins, Owner::Gateway)?;
        dataplane.attach().await?;
        Ok(dataplane)
    }

    /// The hook in use, and why.
    #[must_use]
    pub const fn hook(&self) -> Chosen {
        self.hook
    }

    /// Own RLOCs.
    #[must_use]
    pub fn rlocs(&self) -> &[IpAddr] {
        &self.config.rlocs
    }

    /// Mappings that an earlier process left and that nobody has confirmed yet.
    #[must_use]
    pub fn unconfirmed(&self) -> Vec<Eid> {
        let kept = self.desired.mappings.iter().filter(|(_, mapping)| **mapping == Mapping::Keep);
        kept.map(|(eid, _)| *eid).collect()
    }

    /// Sets a mapping; in force after [`commit`](Self::commit).
    pub fn set_mapping(&mut self, eid: Eid, mapping: Mapping) {
        self.desired.mappings.insert(eid, mapping);
    }

    /// Removes a mapping; what covers it applies again. A prefix of the EID space goes back to being resolved, a
    /// local one back to the stack.
    pub fn remove_mapping(&mut self, eid: &Eid) {
        match standing(&self.config, eid) {
            Some(mapping) => self.desired.mappings.insert(*eid, mapping),
            None => self.desired.mappings.remove(eid),
        };
    }

    /// Brings the kernel's maps in step with what is wanted. Returns what could not be done; that stays as it was.
    ///
    /// # Errors
    /// If the kernel refuses a write. The writes made stand, the rest is made at the next call.
    pub async fn commit(&mut self) -> Result<Vec<Refusal>, DataplaneError> {
        let wanted = self.wanted_rlocs();
        self.desired.paths.retain(|rloc, _| wanted.contains(rloc));
        for rloc in
            wanted.into_iter().filter(|rloc| !self.desired.paths.contains_key(rloc)).collect::<Vec<_>>()
        {
            if let Some(path) = self.resolve(rloc).await? {
                self.desired.paths.insert(rloc, path);
            }
        }
        let plan = plan(&self.desired, &self.observed);
        for write in &plan.writes {
            self.maps.write(write)?;
            self.observed.record(write);
        }
        self.route_eid_space().await?;
        Ok(plan.refused)
    }

    /// What to ask the kernel for after its links or routes changed; [`apply`](Self::apply) takes the answers.
    #[must_use]
    pub fn survey(&self) -> Survey {
        Survey {
            interfaces: self.links.iter().map(|(interface, _)| interface.name.clone()).collect(),
            rlocs: self.wanted_rlocs(),
            native: self.native_prefixes(),
            own_rlocs: self.config.rlocs.clone(),
            with_macs: self.config.hook == Hook::Xdp,
        }
    }

    /// Takes up what a survey found: other ways to locators, interfaces that were made anew under their old names. Then
    /// commits.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn apply(&mut self, surveyed: Surveyed) -> Result<Vec<Refusal>, DataplaneError> {
        self.unattached |= self.follow_interfaces(&surveyed.links).await?;
        for (rloc, way) in surveyed.ways {
            match way {
                Some(way) => drop(self.desired.paths.insert(rloc, way)),
                None => drop(self.desired.paths.remove(&rloc)),
            }
        }
        self.native_routes = surveyed.native;
        let refused = self.commit().await?;
        if self.unattached {
            self.attach().await?;
            self.unattached = false;
        }
        Ok(refused)
    }

    /// Whether an interface has another index than when it was last looked at. One that is gone may come back.
    async fn follow_interfaces(&mut self, found: &BTreeMap<String, Link>) -> Result<bool, DataplaneError> {
        let mut links = self.links.clone();
        for (interface, link) in &mut links {
            if let Some(now) = found.get(&interface.name) {
                link.clone_from(now);
            }
        }
        let index = |(_, link): &(Interface, Link)| link.ifindex;
        if links.iter().map(index).eq(self.links.iter().map(index)) {
            // Another MTU or hardware address.
            self.links = links;
            return Ok(false);
        }
        let fresh = desired(&self.config, &links, &self.devices, &self.netlink).await?;
        if let Some((_, underlay)) = with_role(&links, Role::Etr).next() {
            self.devices.follow_underlay(&self.netlink, underlay).await?;
        }
        self.desired.interfaces = fresh.interfaces;
        self.desired.local_eids = fresh.local_eids;
        self.links = links;
        self.route_local().await?;
        Ok(true)
    }

    /// Changes whenever the kernel's links, addresses, routes or neighbours do.
    #[must_use]
    pub fn route_changes(&self) -> watch::Receiver<u64> {
        self.netlink.changes()
    }

    /// The TAP on which packets to unresolved EIDs arrive.
    #[must_use]
    pub fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.devices.tap)
    }

    /// The hardware address that frames written back to the TAP must have as destination.
    #[must_use]
    pub const fn tap_mac(&self) -> [u8; 6] {
        self.devices.tap_mac
    }

    /// What the kernel's maps hold.
    #[must_use]
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is wanted for every prefix.
    pub fn mappings(&self) -> impl Iterator<Item = (&Eid, &Mapping)> {
        self.desired.mappings.iter()
    }

    /// The locators in place for a prefix.
    #[must_use]
    pub fn placed(&self, eid: &Eid) -> Vec<PlacedLocator> {
        let mapping = self.observed.map_cache.get(eid).filter(|m| m.action == ACTION_ENCAPSULATE);
        let Some(slot) = mapping.and_then(|m| self.observed.slots.get(&m.slot)) else { return Vec::new() };
        let members = (0_u8..).zip(&slot.members);
        let placed = members.filter_map(|(place, member)| {
            let rloc = self.observed.rloc(member.locator)?;
            let buckets = slot.buckets.iter().filter(|bucket| **bucket == place).count();
            Some(PlacedLocator { rloc, usable: member.usable != 0, buckets })
        });
        placed.collect()
    }

    /// Counters of every mapping and local prefix.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn traffic(&self) -> Result<Vec<Traffic>, DataplaneError> {
        let mut all = Vec::with_capacity(self.observed.traffic.len());
        let counted = self.observed.counted();
        for key in &self.observed.traffic {
            let Some(eid) = counted.eid(key) else { continue };
            let of = match key.locator {
                DECAPSULATED => Some(TrafficOf::Decapsulated),
                OFFERED => Some(TrafficOf::Offered),
                index => self.observed.rloc(index).map(TrafficOf::Locator),
            };
            if let (Some(of), Some(value)) = (of, self.maps.traffic(key)?) {
                all.push(Traffic { eid, of, value });
            }
        }
        Ok(all)
    }

    /// Packets by reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DataplaneError> {
        self.maps.reasons()
    }

    /// A reader of the flow table that needs nothing of this value, for long listings elsewhere.
    ///
    /// # Errors
    /// If the pinned maps cannot be opened.
    pub fn flow_reader(&self) -> Result<FlowReader, DataplaneError> {
        FlowReader::open(&self.pins)
    }

    /// The most specific prefix that is wanted for an address, and what is wanted.
    #[must_use]
    pub fn wanted(&self, instance_id: u32, address: IpAddr) -> Option<(Eid, &Mapping)> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let eid = Eid { instance_id, prefix: IpPrefix::new(address, length).ok()? };
            self.desired.mappings.get(&eid).map(|mapping| (eid, mapping))
        })
    }

    /// Ends the process's part in the data path.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub async fn stop(mut self, on_stop: OnStop) -> Result<(), DataplaneError> {
        if on_stop == OnStop::Keep {
            // The TAP goes with the process; packets to unresolved EIDs are dropped under their own reason.
            self.desired.node.resolve_ifindex = 0;
            let tap = self.devices.resolve_ifindex;
            self.desired.interfaces.remove(&tap);
            self.commit().await?;
            return Ok(());
        }
        self.attachments.detach()?;
        self.devices.remove(&self.netlink).await?;
        self.sysctls.restore();
        drop((self.maps, self.object));
        bpffs::remove(&self.pins, Owner::Gateway)
    }

    /// Only XDP needs link-layer addresses; TC leaves neighbours to the kernel.
    async fn resolve(&self, rloc: IpAddr) -> Result<Option<WayToRloc>, DataplaneError> {
        let known: Vec<Link> = self.links.iter().map(|(_, link)| link.clone()).collect();
        resolve(&self.netlink, &known, rloc, &self.config.rlocs, self.config.hook == Hook::Xdp).await
    }

    fn wanted_rlocs(&self) -> BTreeSet<IpAddr> {
        let mut wanted = self.observed.rlocs();
        for mapping in self.desired.mappings.values() {
            if let Mapping::Encapsulate(locators) = mapping {
                wanted.extend(locators.iter().map(|l| l.rloc));
            }
        }
        wanted
    }

    async fn attach(&mut self) -> Result<(), DataplaneError> {
        let mut wanted = Vec::new();
        for (interface, link) in &self.links {
            let chosen = choose(self.config.hook, link)?;
            tracing::info!(interface = link.name, hook = ?chosen.hook, reason = chosen.reason, "attaching");
            wanted.push((interface.role, chosen.hook, link.clone()));
        }
        for (name, role) in [(RESOLVE, Role::Itr), (STACK_PEER, Role::Itr), (SEGMENT_PEER, Role::Etr)] {
            wanted.push((role, Hook::Tc, self.netlink.require(name).await?));
        }
        for (role, hook, link) in &wanted {
            self.attachments.attach(&mut self.object, *role, *hook, link)?;
        }
        let names: Vec<_> =
            wanted.iter().map(|(role, hook, link)| (*role, *hook, link.name.as_str())).collect();
        self.attachments.forget_others(&names)
    }

    async fn route_local(&mut self) -> Result<(), DataplaneError> {
        for local in self.config.local_eids.iter().filter(|local| !local.interface.is_empty()) {
            let ifindex = self.netlink.require(&local.interface).await?.ifindex;
            let there = self.netlink.route_to(local.eid.prefix.address()).await?;
            // A connected network needs no help.
            if local.next_hop.is_some() || there.is_none_or(|route| route.ifindex != ifindex) {
                self.devices.route_local(&self.netlink, local.eid.prefix, ifindex, local.next_hop).await?;
            }
        }
        Ok(())
    }

    async fn route_eid_space(&mut self) -> Result<(), DataplaneError> {
        let overhead = |rloc: &IpAddr| if rloc.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let ways = self.desired.paths.iter().map(|(rloc, path)| path.mtu.saturating_sub(overhead(rloc)));
        let own = self.config.rlocs.iter().map(overhead).max().unwrap_or(OVERHEAD_V6);
        let underlay = with_role(&self.links, Role::Etr).map(|(_, link)| link.mtu).min().unwrap_or(1500);
        let mtu = ways.min().unwrap_or_else(|| underlay.saturating_sub(own));
        let prefixes: Vec<_> = self.config.eid_space.iter().map(|eid| eid.prefix).collect();
        self.devices.route_eid_space(&self.netlink, &prefixes, mtu).await?;
        let found = std::mem::take(&mut self.native_routes);
        self.devices.route_native(&self.netlink, self.native_prefixes(), found).await
    }

    fn native_prefixes(&self) -> BTreeSet<IpPrefix> {
        let local = |eid: &Eid| self.config.local_eids.iter().any(|local| local.eid == *eid);
        let native = self.desired.mappings.iter().filter(|(eid, m)| **m == Mapping::Native && !local(eid));
        native.map(|(eid, _)| eid.prefix).collect()
    }
}

/// Settings to put back, known for this start of the system only.
fn sysctl_file(node: &str) -> PathBuf {
    Path::new("/run/weir").join(node).join("sysctls")
}

const TC: Chosen = Chosen { hook: Hook::Tc, reason: "no interface is configured" };

fn with_role(links: &[(Interface, Link)], role: Role) -> impl Iterator<Item = &(Interface, Link)> {
    links.iter().filter(move |(interface, _)| interface.role == role)
}

/// What holds for a prefix by configuration alone.
fn standing(config: &DataplaneConfig, eid: &Eid) -> Option<Mapping> {
    if config.local_eids.iter().any(|local| local.eid == *eid) {
        return Some(Mapping::Native);
    }
    config.eid_space.contains(eid).then_some(Mapping::Resolve)
}

/// The RLOCs as the programs compare with them.
fn own_rlocs(rlocs: &[IpAddr]) -> Result<NodeValue, DataplaneError> {
    let count = rlocs.len();
    let mut node = NodeValue::default();
    let too_many = DataplaneError::TooManyRlocs { count, most: node.rlocs.len() };
    let places = node.rlocs.get_mut(..count).ok_or(too_many)?;
    for (place, rloc) in places.iter_mut().zip(rlocs) {
        *place = mapped(*rloc);
        node.rloc_count += 1;
    }
    Ok(node)
}

async fn desired(
    config: &DataplaneConfig,
    links: &[(Interface, Link)],
    devices: &Devices,
    netlink: &Netlink,
) -> Result<Desired, DataplaneError> {
    let mut desired = Desired {
        node: NodeValue {
            resolve_ifindex: devices.resolve_ifindex,
            segment_ifindex: devices.segment_ifindex,
            flow_idle_ns: u64::try_from(config.flow_idle.as_nanos()).unwrap_or(u64::MAX),
            ..own_rlocs(&config.rlocs)?
        },
        interfaces: devices.interfaces.clone(),
        ..Desired::default()
    };
    for (interface, link) in links {
        let value = InterfaceValue { instance_id: interface.instance_id, flags: 0 };
        desired.interfaces.insert(link.ifindex, value);
    }
    for local in &config.local_eids {
        let ifindex = match local.interface.as_str() {
            "" => 0,
            name => netlink.require(name).await?.ifindex,
        };
        desired.local_eids.insert(local.eid, LocalEid { ifindex, next_hop: local.next_hop });
    }
    let standing_eids = config.eid_space.iter().chain(config.local_eids.iter().map(|local| &local.eid));
    for eid in standing_eids {
        desired.mappings.extend(standing(config, eid).map(|mapping| (*eid, mapping)));
    }
    Ok(desired)
}

/// Mappings of an earlier process inside the EID space stay in place until the mapping system speaks.
fn inherit(desired: &mut Desired, observed: &Observed, eid_space: &[Eid]) {
    let inside = |eid: &Eid| {
        eid_space.iter().any(|s| s.instance_id == eid.instance_id && s.prefix.covers(&eid.prefix))
    };
    let found = observed.map_cache.iter().filter(|(eid, m)| m.action == ACTION_ENCAPSULATE && inside(eid));
    for (eid, _) in found {
        if desired.mappings.get(eid).is_none_or(|mapping| *mapping == Mapping::Resolve) {
            desired.mappings.insert(*eid, Mapping::Keep);
        }
    }
}
