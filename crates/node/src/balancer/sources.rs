//! What is learnt of backends: verdicts of their checks, and link-layer addresses.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use dataplane::DataplaneError;
use dataplane::netlink::{Link, Netlink};
use tokio::sync::watch;

use super::core::{BackendKey, Core, Health, Target};
use super::health::{Changed, Checks, Endpoint, News, NotSent, Pace, State, Watched};
use super::neighbour::{self, Change, Neighbours, Sender, vlan_of};
use super::shell::{Event, Sources};
use crate::clock::Clock;
use crate::config::NeighbourSource;
use crate::config::services::{Backend, Check, HealthCheck};
use crate::role::RoleError;

/// Who is checked. One that is somewhere else is somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Checked {
    key: BackendKey,
    address: IpAddr,
    segment: u32,
}

/// Checks and neighbour messages of all backends.
#[derive(Debug)]
pub(super) struct Backends {
    checks: Checks<Checked>,
    neighbours: Neighbours,
    interface: String,
    netlink: Netlink,
    /// Links, addresses and routes.
    network: watch::Receiver<u64>,
    /// The port as it was told last; `None` if it is to be told whatever it is.
    port: Option<Option<Link>>,
    /// The port is to be looked at again.
    look_at_port: bool,
    /// The port may have other addresses to ask neighbours from.
    network_changed: bool,
    targets: Vec<Target>,
    /// Who is asked on behalf of whom.
    asked: BTreeMap<neighbour::Target, Vec<Target>>,
    /// Ways to tunnel endpoints are to be looked up again.
    look_up: bool,
    known: VecDeque<Event>,
}

impl Backends {
    /// Opens what is needed on the port, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses a socket.
    pub(super) async fn open(
        interface: &str,
        sources: &[NeighbourSource],
        clock: Clock,
        random: [u8; 16],
    ) -> Result<Self, DataplaneError> {
        let [for_checks, for_neighbours] =
            [0, 8].map(|at| random.iter().skip(at).take(8).fold(0, |n, octet| n << 8 | u64::from(*octet)));
        let sender = |source: &NeighbourSource| {
            vlan_of(source.segment).map(|vlan| Sender { vlan, address: source.address })
        };
        let senders = sources.iter().filter_map(sender).collect();
        let netlink = Netlink::connect(false)?;
        Ok(Self {
            checks: Checks::new(clock, for_checks),
            neighbours: Neighbours::open(interface, senders, clock, for_neighbours).await?,
            interface: interface.to_owned(),
            network: netlink.changes(),
            netlink,
            port: None,
            look_at_port: true,
            network_changed: true,
            targets: Vec::new(),
            asked: BTreeMap::new(),
            look_up: false,
            known: VecDeque::new(),
        })
    }

    /// Whether the port is there and what it is, if that is news. Neighbours are asked from what it is now.
    async fn look(&mut self) {
        match self.netlink.link(&self.interface).await {
            Ok(link) => {
                if link.is_some() && self.network_changed {
                    match self.neighbours.refresh().await {
                        Ok(()) => self.network_changed = false,
                        // The next look tries again.
                        Err(error) => {
                            tracing::warn!(interface = self.interface, %error, "neighbours are not asked from it");
                        }
                    }
                }
                if self.port.as_ref() != Some(&link) {
                    self.known.push_back(Event::Port(link.clone()));
                    self.port = Some(link);
                }
            }
            Err(error) => tracing::warn!(interface = self.interface, %error, "not looked at"),
        }
        self.look_at_port = false;
    }

    /// Whom to ask for each address that is needed, and what is known already.
    async fn ask_neighbours(&mut self) {
        let mut asked: BTreeMap<_, Vec<Target>> = BTreeMap::new();
        for target in &self.targets {
            let Some(vlan) = vlan_of(target.segment) else { continue };
            let address = if target.routed { self.next_hop(target.address).await } else { target.address };
            asked.entry(neighbour::Target { vlan, address }).or_default().push(*target);
        }
        self.neighbours.set_targets(asked.keys().copied());
        for (of, targets) in &asked {
            if let Some(mac) = self.neighbours.get(of).and_then(|known| known.mac) {
                self.known.extend(targets.iter().map(|target| Event::Neighbour { target: *target, mac }));
            }
        }
        self.asked = asked;
        self.look_up = false;
    }

    /// The router towards an address, or the address itself.
    async fn next_hop(&self, address: IpAddr) -> IpAddr {
        match self.netlink.route_to(address).await {
            Ok(route) => route.and_then(|route| route.gateway).unwrap_or(address),
            Err(error) => {
                tracing::warn!(%address, %error, "no way found; it is taken to be on the segment");
                address
            }
        }
    }

    fn resolved(&mut self, of: neighbour::Target, mac: [u8; 6]) {
        let targets = self.asked.get(&of).into_iter().flatten();
        self.known.extend(targets.map(|target| Event::Neighbour { target: *target, mac }));
    }

    fn neighbour_changed(&mut self, of: neighbour::Target, change: Change) {
        match change {
            Change::Resolved { mac } => {
                tracing::debug!(neighbour = %of, "link-layer address resolved");
                self.resolved(of, mac);
            }
            Change::Moved { to, .. } => {
                tracing::info!(neighbour = %of, "has another link-layer address");
                self.resolved(of, to);
            }
            Change::Stale { .. } => {
                tracing::warn!(neighbour = %of, "does not tell its link-layer address any more")
            }
            Change::Failed => tracing::warn!(neighbour = %of, "does not tell its link-layer address"),
        }
    }

    fn watched(&self, backend: &Backend, health: &HealthCheck) -> Watched {
        let neighbour = vlan_of(backend.segment).map(|vlan| (self.neighbours.asker(), vlan));
        let endpoint = Endpoint { neighbour, ..Endpoint::new(backend.address) };
        let (rise, fall) = (u32::from(health.rise), u32::from(health.fall));
        Watched {
            check: health.check.clone(),
            endpoint,
            timeout: health.timeout,
            pace: Pace { interval: health.interval, rise, fall },
        }
    }
}

impl Sources for Backends {
    fn watch(&mut self, core: &Core) {
        let mut watched = BTreeMap::new();
        // A check by neighbour messages needs its backend among the neighbours, also if its address is configured.
        let mut targets = core.targets();
        for view in core.vips() {
            let Some(health) = &view.vip.health else { continue };
            for of in &view.backends {
                let key = BackendKey { vip: view.vip.name.clone(), backend: of.backend.name.clone() };
                let (address, segment) = (of.backend.address, of.backend.segment);
                if health.check == Check::Arp {
                    targets.insert(Target { segment, address, routed: false });
                }
                let checked = Checked { key, address, segment: segment.value() };
                watched.insert(checked, self.watched(of.backend, health));
            }
        }
        let ids: Vec<Checked> = watched.keys().cloned().collect();
        self.checks.watch(watched);
        // A verdict that stands is told again: whoever asks may have begun anew with this backend.
        for id in ids {
            let reason = self.checks.not_sent(&id).map(ToString::to_string);
            if reason.is_some() {
                self.known.push_back(Event::NotSent { key: id.key.clone(), reason });
            }
            let state = self.checks.state(&id);
            self.known.extend(state.and_then(|state| health_event(id.key, state, String::new())));
        }
        self.targets = targets.into_iter().collect();
        self.look_up = true;
    }

    fn look_at_port(&mut self) {
        (self.port, self.look_at_port) = (None, true);
    }

    async fn next(&mut self) -> Result<Event, RoleError> {
        loop {
            if self.look_at_port {
                self.look().await;
            }
            if self.look_up {
                self.ask_neighbours().await;
            }
            if let Some(event) = self.known.pop_front() {
                return Ok(event);
            }
            tokio::select! {
                news = self.checks.changed() => self.known.extend(check_event(news)),
                changed = self.neighbours.changed() => {
                    let (of, change) = changed?;
                    self.neighbour_changed(of, change);
                }
                Ok(()) = self.network.changed() => {
                    (self.look_up, self.look_at_port, self.network_changed) = (true, true, true);
                }
            }
        }
    }
}

fn check_event(news: News<Checked>) -> Option<Event> {
    match news {
        News::Changed(Changed { id, state, reason }) => {
            let said = reason.map_or_else(|| "answers".to_owned(), |failure| failure.to_string());
            health_event(id.key, state, said)
        }
        News::NotSent(NotSent { id, reason }) => {
            Some(Event::NotSent { key: id.key, reason: reason.map(|failure| failure.to_string()) })
        }
    }
}

/// No verdict is no event.
fn health_event(key: BackendKey, state: State, said: String) -> Option<Event> {
    let health = match state {
        State::Unknown => return None,
        State::Healthy => Health::Up,
        State::Unhealthy => Health::Down,
    };
    Some(Event::Health { key, health, said })
}
