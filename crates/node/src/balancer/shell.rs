//! The loop: one task owns what is desired, what is known and the data path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::DataplaneError;
use dataplane::balancer::{Explanation, FlowQuery, PacketKind, VipId};
use dataplane::netlink::Link;
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::body::{BackendStatus, BalancerStatus, VipStatus};
use super::core::{BackendKey, BackendView, Core, Health, Output, Target, VipView};
use super::datapath::{Datapath, SlotCounts};
use super::desired::{Change, Desired, Outcome, Refusal};
use super::metrics::Metrics;
use super::port::Port;
use super::saved;
use super::shared::{BackendSample, Shared, VipSample};
use crate::clock::Clock;
use crate::role::{Condition, RoleError};
use crate::signal::Shutdown;
use crate::store::{StoreError, WriteBehind};

/// A question or command of the API, carried out between two events.
pub(super) type Job = crate::http::Job<Shell>;

/// Time between two readings of the counters, and the share of the time that reading may take: one in so many.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
const SAMPLE_SHARE: u32 = 20;
/// Events that are taken together: a switch that goes down fails many backends at once, and that is one change.
const BATCH: usize = 1024;
/// The timer rests here when nothing is waited for.
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// What is learnt of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Checks came to another verdict.
    Health {
        /// About whom.
        key: BackendKey,
        /// Which.
        health: Health,
        /// What the last check said.
        said: String,
    },
    /// Checks cannot be sent, or can again.
    NotSent {
        /// Of whom.
        key: BackendKey,
        /// Why not.
        reason: Option<String>,
    },
    /// The port as it is now, `None` if it is gone.
    Port(Option<Link>),
    /// A link-layer address was resolved.
    Neighbour {
        /// Whose.
        target: Target,
        /// The address.
        mac: [u8; 6],
    },
}

/// Who learns of backends.
pub(super) trait Sources: Send {
    /// Ask about exactly what this machine needs.
    fn watch(&mut self, core: &Core);
    /// Tell the port as it is now, news or not: the kernel announces neither that a hook is free again nor that a program
    /// was taken off it.
    fn look_at_port(&mut self);
    /// The next thing learnt. Cancel-safe.
    ///
    /// # Errors
    /// If nothing will be learnt any more.
    fn next(&mut self) -> impl Future<Output = Result<Event, RoleError>> + Send;
}

/// What does not change while the role runs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The port.
    pub(super) interface: String,
    /// Where XDP runs.
    pub(super) mode: &'static str,
    /// Own tunnel endpoints.
    pub(super) vteps: Vec<IpAddr>,
}

/// Everything that events and questions act on.
pub(super) struct Shell {
    pub(super) desired: Desired,
    core: Core,
    datapath: Box<dyn Datapath>,
    store: WriteBehind,
    source: &'static str,
    settings: Settings,
    clock: Clock,
    shared: Arc<Shared>,
    metrics: Metrics,
    condition: Condition,
    port: Port,
    watch: bool,
    refused: Option<String>,
    /// As the last change left them.
    slots: SlotCounts,
}

/// What a shell is made of.
pub(super) struct Parts {
    /// First state.
    pub(super) desired: Desired,
    /// Where it comes from: `file`, `api` or `nothing`.
    pub(super) source: &'static str,
    /// What changes are made to.
    pub(super) datapath: Box<dyn Datapath>,
    /// The machine, at its start with `desired`.
    pub(super) core: Core,
    /// What is in place.
    pub(super) slots: SlotCounts,
    /// Where changes of the API are kept.
    pub(super) store: WriteBehind,
    /// What does not change.
    pub(super) settings: Settings,
    /// What time it is.
    pub(super) clock: Clock,
    /// What a scrape reads.
    pub(super) shared: Arc<Shared>,
    /// What is counted at once.
    pub(super) metrics: Metrics,
    /// Ready when the data path is as it should be.
    pub(super) condition: Condition,
}

/// A change that was made, or would have been.
pub(super) struct Changed {
    /// The state after it.
    pub(super) after: Desired,
    /// What it came to.
    pub(super) outcome: Outcome,
    /// Resolves when it is on the disk; `None` if there is nothing to write.
    pub(super) stored: Option<futures_util::future::BoxFuture<'static, Result<(), StoreError>>>,
}

impl Shell {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            desired,
            source,
            datapath,
            core,
            slots,
            store,
            settings,
            clock,
            shared,
            metrics,
            condition,
        } = parts;
        let (watch, refused) = (true, None);
        Self {
            desired,
            core,
            datapath,
            store,
            source,
            settings,
            clock,
            shared,
            metrics,
            condition,
            port: Port::default(),
            watch,
            refused,
            slots,
        }
    }

    /// Serves until the node stops; what is to be stored is on the disk then.
    pub(super) async fn serve(
        mut self,
        mut sources: impl Sources,
        mut jobs: mpsc::Receiver<Job>,
        mut shutdown: Shutdown,
    ) -> Result<(), RoleError> {
        let mut sample_at = tokio::time::Instant::now();
        loop {
            if std::mem::take(&mut self.watch) {
                sources.watch(&self.core);
            }
            self.act();
            let due = self.due();
            tokio::select! {
                event = sources.next() => {
                    self.event(event?);
                    for _ in 0..BATCH {
                        let Some(event) = sources.next().now_or_never() else { break };
                        self.event(event?);
                    }
                }
                Some(job) = jobs.recv() => job(&mut self),
                () = sleep_until(due) => self.timeout(),
                () = sleep_until(sample_at) => {
                    let began = tokio::time::Instant::now();
                    sources.look_at_port();
                    self.sample();
                    sample_at = tokio::time::Instant::now() + SAMPLE_INTERVAL.max(began.elapsed() * SAMPLE_SHARE);
                }
                () = shutdown.requested() => break,
            }
        }
        self.store.flushed().await?;
        self.datapath.stop().await?;
        Ok(())
    }

    /// Makes a change, or with `dry_run` only says what would come of it.
    pub(super) fn change(
        &mut self,
        change: Change,
        expected: Option<u64>,
        dry_run: bool,
    ) -> Result<Changed, Refusal> {
        let (after, outcome) = self.desired.after(change, expected, &self.settings.vteps)?;
        if dry_run || outcome == Outcome::Unchanged {
            return Ok(Changed { after, outcome, stored: None });
        }
        let on_disk = (self.source == "api").then_some(&self.desired);
        self.store.put_all(saved::changes(on_disk, &after));
        self.source = "api";
        self.desired = after.clone();
        self.core.handle_desired(self.clock.now(), self.desired.list());
        self.watch = true;
        self.act();
        tracing::info!(generation = after.generation(), ?outcome, "VIPs changed over the API");
        Ok(Changed { after, outcome, stored: Some(Box::pin(self.store.flushed())) })
    }

    /// What the data path would do with a packet, and the name of its VIP.
    pub(super) fn explain(
        &self,
        flow: &FlowQuery,
        packet: PacketKind,
    ) -> Result<(Explanation, Option<String>), DataplaneError> {
        let explanation = self.datapath.explain(flow, packet)?;
        let name = explanation.vip.and_then(|id| self.core.vips().find(|view| view.vip.id == id));
        let name = name.map(|view| view.vip.name.clone());
        Ok((explanation, name))
    }

    /// How everything stands.
    pub(super) fn status(&self) -> BalancerStatus {
        let tables = Tables::of(self.datapath.as_ref());
        BalancerStatus {
            interface: self.settings.interface.clone(),
            mode: self.settings.mode.to_owned(),
            generation: self.desired.generation(),
            source: self.source.to_owned(),
            port: self.port.word().to_owned(),
            in_step: self.core.in_step() && self.port.is_taken(),
            error: self.trouble(),
            warnings: self.datapath.filtered().iter().map(ToString::to_string).collect(),
            vips: self.core.vips().map(|view| self.vip_status(&view, &tables)).collect(),
        }
    }

    fn vip_status(&self, view: &VipView<'_>, tables: &Tables) -> VipStatus {
        let generation = self.desired.vips().get(&view.vip.name).map_or(0, |stored| stored.generation);
        VipStatus {
            name: view.vip.name.clone(),
            vip: view.vip.id.to_string(),
            generation,
            all_fail: view.all_fail,
            draining: tables.draining.contains(&view.vip.id),
            table_bytes: tables.octets(view),
            backends: view.backends.iter().map(|backend| self.backend_status(view, backend)).collect(),
        }
    }

    fn backend_status(&self, view: &VipView<'_>, of: &BackendView<'_>) -> BackendStatus {
        let health = match of.health {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
        };
        let mac = Some(of.wanted.mac).filter(|mac| *mac != [0; 6]);
        BackendStatus {
            name: of.backend.name.clone(),
            address: of.backend.address,
            health: view.vip.health.is_some().then(|| health.to_owned()),
            since_unix_ns: self.clock.unix_nanos(of.since),
            said: Some(of.said.to_owned()).filter(|said| !said.is_empty()),
            not_sent: of.not_sent.map(str::to_owned),
            weight: of.wanted.weight,
            usable: of.wanted.usable,
            slots: slots_of(&self.slots, view, of),
            mac: mac.map(|mac| mac.map(|octet| format!("{octet:02x}")).join(":")),
            why: of.why.as_str().to_owned(),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Health { key, health, said } => {
                if self.core.handle_health(self.clock.now(), &key, health, &said) {
                    let up = health == Health::Up;
                    tracing::info!(vip = key.vip, backend = key.backend, up, said, "health changed");
                    self.metrics.health_changed(up);
                }
            }
            Event::NotSent { key, reason } => self.not_sent(&key, reason),
            Event::Port(link) => {
                self.port.link = link;
                self.follow();
            }
            Event::Neighbour { target, mac } => self.core.handle_neighbour(target, mac),
        }
    }

    fn not_sent(&mut self, key: &BackendKey, reason: Option<String>) {
        let BackendKey { vip, backend } = key;
        if !self.core.handle_not_sent(key, reason.clone()) {
            return;
        }
        match reason {
            Some(reason) => {
                tracing::warn!(vip, backend, reason, "checks cannot be sent; the last verdict stands");
            }
            None => tracing::info!(vip, backend, "checks can be sent again"),
        }
    }

    /// The data path goes where the port is.
    fn follow(&mut self) {
        let result = self.datapath.follow(self.port.link.as_ref());
        let result = result.map_err(|error| words(&error));
        if let Some(to) = self.port.followed(&self.settings.interface, result) {
            self.metrics.port_changed(to);
        }
        self.shared.lock().port_away = !self.port.is_taken();
    }

    /// Why frames are not balanced as they should be.
    fn trouble(&self) -> Option<String> {
        self.port.trouble(&self.settings.interface).or_else(|| self.core.refused().map(str::to_owned))
    }

    fn timeout(&mut self) {
        let now = self.clock.now();
        self.core.handle_timeout(now);
        if let Err(error) = self.datapath.handle_timeout(now) {
            tracing::error!(%error, "a drain did not end");
        }
    }

    fn due(&self) -> tokio::time::Instant {
        let due = [self.core.poll_timeout(), self.datapath.poll_timeout()].into_iter().flatten().min();
        due.map_or_else(|| tokio::time::Instant::now() + NEVER, |at| self.clock.deadline(at))
    }

    /// Carries out what the machine wants.
    fn act(&mut self) {
        while let Some(Output::Apply(wanted)) = self.core.poll_output(self.clock.now()) {
            let began = std::time::Instant::now();
            let result = self.datapath.apply(self.clock.now(), &wanted);
            self.metrics.applied(began.elapsed(), result.as_ref().ok());
            self.core.handle_applied(self.clock.now(), result.map(drop).map_err(|error| words(&error)));
            self.slots = self.datapath.slots();
        }
        self.report();
    }

    fn report(&mut self) {
        let refused = self.trouble();
        match &refused {
            Some(why) => self.condition.not_ready(why),
            None if self.core.in_step() => self.condition.ready(),
            None => self.condition.not_ready("waits for the first answers of backends"),
        }
        if refused != self.refused {
            if let Some(error) = &refused {
                tracing::error!(error, "the data path is not as it should be");
            }
            self.refused = refused;
        }
    }

    /// Reads the kernel's counters; what cannot be read stands as it was.
    fn sample(&self) {
        let counters = self.datapath.counters().inspect_err(|error| tracing::warn!(%error, "counters"));
        let reasons = self.datapath.reasons().inspect_err(|error| tracing::warn!(%error, "reasons"));
        let (Ok(counters), Ok(reasons)) = (counters, reasons) else { return };
        let counters: BTreeMap<VipId, _> =
            counters.into_iter().map(|counters| (counters.vip, counters)).collect();
        let tables = Tables::of(self.datapath.as_ref());
        let sample = |view: VipView<'_>| {
            let counted = counters.get(&view.vip.id);
            let backend = |of: &BackendView<'_>| BackendSample {
                name: of.backend.name.clone(),
                sent: counted
                    .and_then(|c| c.backends.iter().find(|b| b.name == of.backend.name))
                    .map(|b| b.sent),
                healthy: match of.health {
                    Health::Unknown => None,
                    health => view.vip.health.is_some().then_some(health == Health::Up),
                },
                not_sent: view.vip.health.is_some().then_some(of.not_sent.is_some()),
                slots: slots_of(&self.slots, &view, of),
                weight: if of.wanted.usable { of.wanted.weight } else { 0 },
            };
            VipSample {
                name: view.vip.name.clone(),
                sent: counted.map(|counted| counted.sent),
                table_bytes: tables.octets(&view),
                all_fail: view.all_fail,
                all_failed: self.core.all_failed(&view.vip.name),
                draining: tables.draining.contains(&view.vip.id),
                backends: view.backends.iter().map(backend).collect(),
            }
        };
        let vips = self.core.vips().map(sample).collect();
        let filtered = self.datapath.filtered().iter().map(|filtered| filtered.vlans.len()).sum();
        let mut shared = self.shared.lock();
        shared.filtered_vlans = filtered;
        (shared.vips, shared.reasons) = (vips, reasons);
    }
}

/// The error and what caused it, in one line.
fn words(error: &DataplaneError) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Tables in the kernel, read once for all VIPs.
struct Tables {
    memory: BTreeMap<VipId, u64>,
    draining: BTreeSet<VipId>,
}

impl Tables {
    fn of(datapath: &dyn Datapath) -> Self {
        Self { memory: datapath.memory().into_iter().collect(), draining: datapath.draining() }
    }

    fn octets(&self, view: &VipView<'_>) -> u64 {
        self.memory.get(&view.vip.id).copied().unwrap_or_default()
    }
}

fn slots_of(slots: &SlotCounts, view: &VipView<'_>, of: &BackendView<'_>) -> u32 {
    slots.get(&view.vip.id).and_then(|slots| slots.get(&of.backend.name)).copied().unwrap_or_default()
}
