//! What the data path is to do: desired state, health and link-layer addresses brought together.
//!
//! A machine of five calls with time as an argument. It never takes something away because it does not know: a backend
//! without a verdict or an address yet is left as the kernel had it, and a VIP whose backends all fail goes on to all of
//! them unless it says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use codec::Instant;
use dataplane::balancer as wanted;
use dataplane::balancer::{InPlace, Segment, VipId};

use crate::config::services::{Backend, Vip, WhenAllFail};

/// A start waits so long for answers of all backends: then one change brings all verdicts, what is in place is left alone
/// until it comes, and nothing begins with a table of nobody.
const START_WAIT: Duration = Duration::from_secs(5);
/// Time between two attempts at what the kernel refused; doubled up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Times as long as a change took, until what happened meanwhile makes the next one: answers about tens of thousands of
/// backends come one by one.
const REST: u32 = 4;

/// A backend of a VIP, by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BackendKey {
    /// The VIP's name.
    pub(super) vip: String,
    /// The backend's name.
    pub(super) backend: String,
}

/// Who is asked for its link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// Where it is; none for tunnel endpoints.
    pub(super) segment: Segment,
    /// Its address.
    pub(super) address: IpAddr,
    /// It may be behind a router, whose link-layer address is meant then: a tunnel endpoint.
    pub(super) routed: bool,
}

/// What checks say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It works.
    Up,
    /// It does not.
    Down,
}

/// Why a backend is in use or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its checks succeed.
    Working,
    /// It is not checked.
    NotChecked,
    /// Its weight is 0.
    Drained,
    /// Its checks fail.
    Failed,
    /// Its checks fail like everybody's, and the VIP goes on.
    KeptThoughFailed,
    /// No check has answered; what the kernel had goes on.
    AsFound,
    /// No check has answered, and the kernel had nothing.
    NotCheckedYet,
    /// Its checks cannot be sent from here; the last verdict stands, and without one what the kernel had.
    CheckNotSent,
    /// Its link-layer address, or that of the way to its tunnel's end, is not known.
    NoLinkLayerAddress,
}

impl Why {
    /// Name in the API.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::NotChecked => "not-checked",
            Self::Drained => "drained",
            Self::Failed => "failed",
            Self::KeptThoughFailed => "kept-though-failed",
            Self::AsFound => "as-found",
            Self::NotCheckedYet => "not-checked-yet",
            Self::CheckNotSent => "check-not-sent",
            Self::NoLinkLayerAddress => "no-link-layer-address",
        }
    }
}

/// How a backend stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendView<'a> {
    /// As it is desired.
    pub(super) backend: &'a Backend,
    /// As the data path is to have it.
    pub(super) wanted: wanted::Backend,
    /// The last verdict.
    pub(super) health: Health,
    /// What the last check that changed it said.
    pub(super) said: &'a str,
    /// Why its checks cannot be sent, while they cannot.
    pub(super) not_sent: Option<&'a str>,
    /// Since when the verdict is what it is.
    pub(super) since: Instant,
    /// Why it is wanted so.
    pub(super) why: Why,
}

/// How a VIP stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct VipView<'a> {
    /// As it is desired.
    pub(super) vip: &'a Vip,
    /// Every backend that could take flows fails.
    pub(super) all_fail: bool,
    /// In the order of the document.
    pub(super) backends: Vec<BackendView<'a>>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Bring the data path to this, which is all there is, and call [`Core::handle_applied`].
    Apply(Vec<wanted::Vip>),
}

/// The machine.
#[derive(Debug)]
pub(super) struct Core {
    vips: Vec<Arc<Vip>>,
    by_name: BTreeMap<String, Arc<Vip>>,
    backends: BTreeMap<BackendKey, BackendState>,
    macs: BTreeMap<Target, [u8; 6]>,
    applied: Option<Vec<wanted::Vip>>,
    asked: Option<Vec<wanted::Vip>>,
    asked_at: Instant,
    rest: Option<Instant>,
    dirty: bool,
    held: Option<Instant>,
    retry: Option<(Instant, Duration)>,
    refused: Option<String>,
    all_fail: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
struct BackendState {
    of: Backend,
    health: Health,
    said: String,
    not_sent: Option<String>,
    since: Instant,
    in_place: Option<InPlace>,
}

impl Core {
    /// A machine at its start; `in_place` says what the kernel has for a backend.
    pub(super) fn new(
        now: Instant,
        vips: Vec<Arc<Vip>>,
        in_place: impl Fn(&VipId, &str) -> Option<InPlace>,
    ) -> Self {
        let mut core = Self {
            vips: Vec::new(),
            by_name: BTreeMap::new(),
            backends: BTreeMap::new(),
            macs: BTreeMap::new(),
            applied: None,
            asked: None,
            asked_at: now,
            rest: None,
            dirty: true,
            held: None,
            retry: None,
            refused: None,
            all_fail: BTreeMap::new(),
        };
        core.handle_desired(now, vips);
        for vip in &core.vips {
            for backend in &vip.backends {
                if let Some(state) = core.backends.get_mut(&key(vip, backend)) {
                    state.in_place = in_place(&vip.id, &backend.name);
                }
            }
        }
        core.held = Some(now + START_WAIT);
        core
    }

    /// Other VIPs are desired. Verdicts about backends that are still where they were stand, and nothing is waited for.
    pub(super) fn handle_desired(&mut self, now: Instant, vips: Vec<Arc<Vip>>) {
        let unchecked: BTreeSet<&str> =
            self.vips.iter().filter(|vip| vip.health.is_none()).map(|vip| vip.name.as_str()).collect();
        let mut backends = BTreeMap::new();
        for vip in &vips {
            for backend in &vip.backends {
                let key = key(vip, backend);
                let known = self.backends.get(&key).filter(|state| is_where_it_was(&state.of, backend));
                let mut state = known.cloned().unwrap_or_else(|| BackendState::new(now, backend));
                state.of = backend.clone();
                state.not_sent = state.not_sent.filter(|_| vip.health.is_some());
                // One that took flows unchecked goes on to until a check says otherwise.
                if known.is_some() && state.health == Health::Unknown && unchecked.contains(vip.name.as_str())
                {
                    state.health = Health::Up;
                }
                backends.insert(key, state);
            }
        }
        self.backends = backends;
        self.by_name = vips.iter().map(|vip| (vip.name.clone(), Arc::clone(vip))).collect();
        self.vips = vips;
        let targets = self.targets();
        self.macs.retain(|target, _| targets.contains(target));
        self.all_fail.retain(|vip, _| self.by_name.contains_key(vip));
        (self.held, self.rest) = (None, None);
        self.changed();
    }

    /// Checks have come to a verdict about a backend, or to another one; `said` is what the last of them said. Returns
    /// whether that is news.
    pub(super) fn handle_health(
        &mut self,
        now: Instant,
        key: &BackendKey,
        health: Health,
        said: &str,
    ) -> bool {
        let Some(state) = self.backends.get_mut(key) else { return false };
        if !said.is_empty() {
            said.clone_into(&mut state.said);
        }
        if state.health == health {
            return false;
        }
        let failed_before = self.failing(&key.vip);
        let Some(state) = self.backends.get_mut(key) else { return false };
        (state.health, state.since) = (health, now);
        if !failed_before && self.failing(&key.vip) {
            *self.all_fail.entry(key.vip.clone()).or_default() += 1;
        }
        self.changed();
        true
    }

    /// Checks of a backend cannot be sent, and why, or can again. Nothing else changes: what is not known takes nothing
    /// away. Returns whether that is news.
    pub(super) fn handle_not_sent(&mut self, key: &BackendKey, reason: Option<String>) -> bool {
        let Some(state) = self.backends.get_mut(key) else { return false };
        let news = state.not_sent != reason;
        state.not_sent = reason;
        news
    }

    /// A link-layer address was resolved. One that can no longer be resolved stands: whether its backend works is for
    /// checks to say.
    pub(super) fn handle_neighbour(&mut self, target: Target, mac: [u8; 6]) {
        if self.macs.insert(target, mac) != Some(mac) {
            self.changed();
        }
    }

    /// What came of the last [`Output::Apply`].
    pub(super) fn handle_applied(&mut self, now: Instant, result: Result<(), String>) {
        let Some(asked) = self.asked.take() else { return };
        self.rest = Some(now + (now - self.asked_at) * REST);
        match result {
            Ok(()) => {
                self.applied = Some(asked);
                (self.retry, self.refused) = (None, None);
            }
            Err(why) => {
                let wait = self.retry.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LAST_RETRY));
                self.retry = Some((now + wait, wait));
                self.refused = Some(why);
                self.dirty = true;
            }
        }
    }

    /// Time has come to a deadline.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.held = self.held.filter(|until| *until > now);
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_output`] have something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let retry = self.retry.map(|(at, _)| at);
        [self.held, retry, self.rest].into_iter().flatten().max().filter(|_| self.dirty)
    }

    /// What is to be done now, if anything: nothing when everything is as it was.
    pub(super) fn poll_output(&mut self, now: Instant) -> Option<Output> {
        if self.dirty {
            self.release_if_settled();
        }
        let later = |at: Instant| at > now;
        let waits = self.held.is_some()
            || self.retry.is_some_and(|(at, _)| later(at))
            || self.rest.is_some_and(later);
        if !self.dirty || waits {
            return None;
        }
        (self.dirty, self.asked_at) = (false, now);
        let wanted: Vec<wanted::Vip> = self.vips().map(|view| wanted_vip(&view)).collect();
        if self.applied.as_ref() == Some(&wanted) {
            (self.retry, self.refused) = (None, None);
            return None;
        }
        self.asked = Some(wanted.clone());
        Some(Output::Apply(wanted))
    }

    /// How every VIP stands, in the order of the document.
    pub(super) fn vips(&self) -> impl Iterator<Item = VipView<'_>> {
        self.vips.iter().map(|vip| self.view(vip))
    }

    /// Why the data path is not as it should be, if it is not.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Whether the data path is as it should be.
    pub(super) const fn in_step(&self) -> bool {
        !self.dirty && self.asked.is_none()
    }

    /// How often all backends of a VIP began to fail at once.
    pub(super) fn all_failed(&self, vip: &str) -> u64 {
        self.all_fail.get(vip).copied().unwrap_or_default()
    }

    /// Whose link-layer address is needed, each once.
    pub(super) fn targets(&self) -> BTreeSet<Target> {
        let of = |state: &BackendState| target(&state.of);
        self.backends.values().filter_map(of).collect()
    }

    fn changed(&mut self) {
        self.dirty = true;
        // What was refused may be right now.
        if let Some((at, _)) = &mut self.retry {
            *at = Instant::ZERO;
        }
    }

    /// Nothing is waited for once everybody has answered.
    fn release_if_settled(&mut self) {
        if self.held.is_none() {
            return;
        }
        let settled = |vip: &Arc<Vip>, backend: &Backend| {
            let health = self.backends.get(&key(vip, backend)).map(|state| state.health);
            let checked = vip.health.is_none() || health != Some(Health::Unknown);
            checked && target(backend).is_none_or(|target| self.macs.contains_key(&target))
        };
        if self.vips.iter().all(|vip| vip.backends.iter().all(|backend| settled(vip, backend))) {
            self.held = None;
        }
    }

    /// Every backend that could take flows fails: a verdict about each, and at least one of them.
    fn all_fail(&self, vip: &Vip) -> bool {
        let mut weighted = vip.backends.iter().filter(|backend| backend.weight > 0).peekable();
        let fails = |backend: &Backend| {
            self.backends.get(&key(vip, backend)).is_some_and(|state| state.health == Health::Down)
        };
        vip.health.is_some() && weighted.peek().is_some() && weighted.all(fails)
    }

    fn failing(&self, vip: &str) -> bool {
        self.by_name.get(vip).is_some_and(|vip| self.all_fail(vip))
    }

    fn view<'a>(&'a self, vip: &'a Vip) -> VipView<'a> {
        let all_fail = self.all_fail(vip);
        let keep = all_fail && vip.when_all_fail == WhenAllFail::Keep;
        let backends = vip.backends.iter().filter_map(|backend| {
            let state = self.backends.get(&key(vip, backend))?;
            Some(self.backend_view(vip, backend, state, keep))
        });
        VipView { vip, all_fail, backends: backends.collect() }
    }

    fn backend_view<'a>(
        &'a self,
        vip: &Vip,
        backend: &'a Backend,
        state: &'a BackendState,
        keep: bool,
    ) -> BackendView<'a> {
        let (mac, tunnel) = self.addresses(backend, state);
        let reachable = mac.is_some() && (backend.vtep.is_none() || tunnel.is_some());
        let (mut weight, mut usable, mut why) = judge(vip, backend, state, keep);
        if usable && !reachable {
            (usable, why) = (false, Why::NoLinkLayerAddress);
        } else if usable && backend.weight == 0 {
            (weight, why) = (0, Why::Drained);
        }
        let wanted = wanted::Backend {
            name: backend.name.clone(),
            weight,
            usable,
            mac: mac.unwrap_or_default(),
            segment: backend.segment,
            tunnel: backend.vtep.map(|vtep| wanted::Tunnel { vtep, mac: tunnel.unwrap_or_default() }),
        };
        let BackendState { health, said, since, .. } = state;
        let not_sent = state.not_sent.as_deref();
        BackendView { backend, wanted, health: *health, said, not_sent, since: *since, why }
    }

    /// The backend's link-layer address, and that of the way to its tunnel's end.
    fn addresses(&self, backend: &Backend, state: &BackendState) -> (Option<[u8; 6]>, Option<[u8; 6]>) {
        let resolved = target(backend).and_then(|target| self.macs.get(&target).copied());
        match backend.vtep {
            Some(_) => (backend.mac, resolved),
            None => (backend.mac.or(resolved).or_else(|| state.in_place.map(|found| found.mac)), None),
        }
    }
}

impl BackendState {
    fn new(now: Instant, backend: &Backend) -> Self {
        let of = backend.clone();
        let (health, said) = (Health::Unknown, String::new());
        Self { of, health, said, not_sent: None, since: now, in_place: None }
    }
}

/// Weight, usable, and why, as far as checks go.
fn judge(vip: &Vip, backend: &Backend, state: &BackendState, keep: bool) -> (u32, bool, Why) {
    let weight = backend.weight;
    let unless_not_sent = |why| if state.not_sent.is_some() { Why::CheckNotSent } else { why };
    match (vip.health.is_some(), state.health) {
        (false, _) => (weight, true, Why::NotChecked),
        (true, Health::Up) => (weight, true, unless_not_sent(Why::Working)),
        (true, Health::Down) if keep => (weight, true, Why::KeptThoughFailed),
        (true, Health::Down) => (weight, false, Why::Failed),
        (true, Health::Unknown) => match state.in_place {
            // One that took no flows takes none before it is checked.
            Some(found) if found.usable && found.slots == 0 => (0, true, unless_not_sent(Why::AsFound)),
            Some(found) => (weight, found.usable, unless_not_sent(Why::AsFound)),
            None => (weight, false, unless_not_sent(Why::NotCheckedYet)),
        },
    }
}

fn key(vip: &Vip, backend: &Backend) -> BackendKey {
    BackendKey { vip: vip.name.clone(), backend: backend.name.clone() }
}

/// Whom to ask for the link-layer address that is not configured.
fn target(backend: &Backend) -> Option<Target> {
    match (backend.vtep, backend.mac) {
        (Some(vtep), _) => Some(Target { segment: Segment::NONE, address: vtep, routed: true }),
        (None, None) => Some(Target { segment: backend.segment, address: backend.address, routed: false }),
        (None, Some(_)) => None,
    }
}

/// Whether what was learnt about one holds for the other: weight and name of an address do not matter.
fn is_where_it_was(before: &Backend, now: &Backend) -> bool {
    before.address == now.address && before.segment == now.segment && before.vtep == now.vtep
}

fn wanted_vip(view: &VipView<'_>) -> wanted::Vip {
    let vip = view.vip;
    wanted::Vip {
        id: vip.id,
        hash: vip.hash,
        flow_table: vip.flow_table,
        table_size: vip.table_size,
        drain: vip.drain,
        echo: vip.echo,
        backends: view.backends.iter().map(|backend| backend.wanted.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
