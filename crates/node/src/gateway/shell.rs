//! The gateway's task: everything that happens goes through here, one thing after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use codec::Instant;
use dataplane::table::{Locator, Mapping, Refusal};
use dataplane::tap::{FRAME_MAX, Tap};
use dataplane::{Dataplane, DataplaneError, Eid, OnStop, Surveyed};
use lisp::machine::{Counter, Transmit};
use lisp::mapping::TableDelta;
use lisp::wire::{Action, EidPrefix, InstanceId};
use lisp::xtr::{Command, Event, Output, Xtr};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, sleep_until};

use super::api::Query;
use super::body::AppliedBody;
use super::control::ControlPort;
use super::frame::{Host, address_to, headers};
use super::hold::{Dropped, Hold};
use super::load::{LoadWindow, SAMPLE};
use super::settings::eid;
use super::shared::Shared;
use crate::clock::Clock;
use crate::role::{Condition, RoleError};
use crate::signal::Shutdown;
use crate::store::WriteBehind;

/// Routes and neighbours change in bursts.
const ROUTES_SETTLE: Duration = Duration::from_millis(20);
/// How long a stopping gateway waits for its Map-Servers to confirm that it withdrew.
const WITHDRAW_TIME: Duration = Duration::from_secs(2);
/// Time between two requests for a mapping that an earlier process left.
const CONFIRM: Duration = Duration::from_secs(10);
/// What there is to do once a second rather than with every sample.
const SLOW: u64 = 20;
/// With more counters than this not every sample reads them.
const COUNTERS_OFTEN: usize = 512;

/// The gateway while it runs.
pub(super) struct Shell {
    pub(super) xtr: Xtr,
    pub(super) dataplane: Dataplane,
    pub(super) control: ControlPort,
    pub(super) hold: Hold,
    pub(super) window: LoadWindow,
    pub(super) shared: Arc<Shared>,
    pub(super) store: WriteBehind,
    pub(super) clock: Clock,
    pub(super) queries: mpsc::Receiver<Query>,
    pub(super) shutdown: Shutdown,
    pub(super) registered: Option<Condition>,
    pub(super) subscribed: Option<Condition>,
    pub(super) local_eids: Vec<EidPrefix>,
    pub(super) on_stop: OnStop,
    pub(super) routes: watch::Receiver<u64>,
    pub(super) work: Work,
}

/// What is pending between two turns of the loop.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// When links and routes are to be asked for again.
    survey_at: Option<Instant>,
    /// They are being asked for, on another thread.
    survey: Option<JoinHandle<Result<Surveyed, DataplaneError>>>,
    /// A commit failed and is to be tried again.
    uncommitted: bool,
    /// The Map-Servers know that we stop.
    withdrawn: bool,
    samples: u64,
    confirm_at: Instant,
    packets: BTreeMap<Eid, u64>,
    /// New flows that were given up while they waited, by the prefix they would have been counted under.
    pub(super) dropped_flows: BTreeMap<Eid, u64>,
}

impl Shell {
    /// Runs until the node stops.
    ///
    /// # Errors
    /// If the TAP is gone, or the data path cannot be taken down.
    pub(super) async fn run(mut self) -> Result<(), RoleError> {
        let tap = self.dataplane.tap();
        let mut frame = vec![0; FRAME_MAX];
        let mut sample = tokio::time::interval(SAMPLE);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.drain().await;
        loop {
            let deadline = self.deadline();
            tokio::select! {
                () = self.shutdown.requested() => break,
                Some((from, bytes)) = self.control.receive() => self.datagram(from, &bytes),
                length = tap.receive(&mut frame) => self.miss(&tap, &frame[..length?]),
                () = sleep_until(deadline) => self.timeout(),
                Some(answer) = answered(&mut self.work.survey) => self.surveyed(answer).await,
                _ = sample.tick() => self.sample(),
                Ok(()) = self.routes.changed() => self.routes_changed(),
                Some(query) = self.queries.recv() => self.answer(query),
            }
            self.drain().await;
        }
        drop(tap);
        self.stop().await
    }

    fn deadline(&self) -> tokio::time::Instant {
        let idle = self.clock.now() + Duration::from_secs(3600);
        let survey_at = self.work.survey_at.filter(|_| self.work.survey.is_none());
        let wake = [self.xtr.poll_timeout(), survey_at].into_iter().flatten().min();
        self.clock.deadline(wake.map_or(idle, |wake| wake.min(idle)))
    }

    fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        if let Err(error) = self.xtr.handle_datagram(self.clock.now(), from, bytes) {
            tracing::debug!(%from, %error, "refused a datagram");
            self.count(Counter::Malformed);
        }
    }

    fn timeout(&mut self) {
        let now = self.clock.now();
        self.xtr.handle_timeout(now);
        if self.work.survey.is_none() && self.work.survey_at.is_some_and(|at| at <= now) {
            self.work.survey_at = None;
            let survey = self.dataplane.survey();
            self.work.survey = Some(spawn_blocking(|| survey.run()));
        }
    }

    fn routes_changed(&mut self) {
        self.work.survey_at.get_or_insert_with(|| self.clock.now() + ROUTES_SETTLE);
    }

    async fn surveyed(&mut self, answer: Result<Surveyed, DataplaneError>) {
        let applied = match answer {
            Ok(surveyed) => self.dataplane.apply(surveyed).await,
            Err(error) => Err(error),
        };
        self.committed(applied);
    }

    /// A packet to an EID that the kernel has no mapping for.
    fn miss(&mut self, tap: &Tap, frame: &[u8]) {
        let Some(headers) = headers(frame) else { return };
        let (now, host) = (self.clock.now(), headers.destination);
        let mut frame = frame.to_vec();
        let wanted = self.dataplane.wanted(host.instance_id, host.address);
        if wanted.is_some_and(|(_, mapping)| *mapping != Mapping::Resolve) && !self.work.uncommitted {
            // The mapping came while the packet was on its way up.
            self.send_back(tap, &mut frame);
            return;
        }
        let (ask, dropped) = self.hold.push(now, host, frame);
        self.give_up(&dropped);
        if ask {
            let eid = EidPrefix {
                instance_id: InstanceId(host.instance_id),
                prefix: codec::IpPrefix::host(host.address),
            };
            self.xtr.handle_command(now, Command::Resolve { eid });
        }
    }

    fn send_back(&mut self, tap: &Tap, frame: &mut [u8]) {
        address_to(frame, self.dataplane.tap_mac());
        let sent = tap.send(frame);
        let mut state = self.shared.lock();
        match sent {
            Ok(_) => state.held.released += 1,
            Err(_) => state.held.dropped += 1,
        }
    }

    fn give_up(&mut self, dropped: &[Dropped]) {
        for (host, frame) in dropped {
            self.shared.lock().held.dropped += 1;
            if headers(frame).is_some_and(|headers| headers.opens) {
                let eid = self.counted_under(host);
                *self.work.dropped_flows.entry(eid).or_default() += 1;
            }
        }
    }

    fn counted_under(&self, host: &Host) -> Eid {
        let itself = || Eid { instance_id: host.instance_id, prefix: codec::IpPrefix::host(host.address) };
        self.dataplane.wanted(host.instance_id, host.address).map_or_else(itself, |(eid, _)| eid)
    }

    /// Carries out what the machine wants. The data path comes before the acknowledgement that it is in force.
    async fn drain(&mut self) {
        let (mut transmits, mut applied, mut settled): (Vec<Transmit>, Vec<_>, Vec<Eid>) = Default::default();
        while let Some(output) = self.xtr.poll_output() {
            match output {
                Output::Transmit(transmit) => transmits.push(transmit),
                Output::Persist(persist) => self.store.put(persist.key, persist.value),
                Output::Table(delta) => {
                    let (eid, nonce) = self.change(delta);
                    settled.push(eid);
                    applied.extend(nonce.map(|nonce| (nonce, eid)));
                }
                Output::Event(event) => self.event(&event),
                Output::Counter(counter) => self.count(counter),
            }
        }
        if !settled.is_empty() {
            let result = self.dataplane.commit().await;
            if self.committed(result) {
                self.note_applied(applied);
                self.release(&settled);
            }
        }
        transmits.iter().for_each(|transmit| self.control.send(transmit));
    }

    fn change(&mut self, delta: TableDelta) -> (Eid, Option<u64>) {
        let (prefix, nonce, mapping) = match delta {
            TableDelta::Set { eid, locators, action, nonce } => {
                (eid, nonce, Some(mapping(&locators, action)))
            }
            TableDelta::Remove { eid, nonce } => (eid, nonce, None),
        };
        let eid = eid(&prefix);
        let ours = |local: &&EidPrefix| {
            local.instance_id == prefix.instance_id && local.prefix.covers(&prefix.prefix)
        };
        match mapping {
            // Hosts behind this gateway are reached without the overlay.
            _ if self.local_eids.iter().any(|local| ours(&local)) => {}
            Some(mapping) => {
                self.dataplane.set_mapping(eid, mapping);
                self.forget_unconfirmed(&eid);
            }
            None => self.dataplane.remove_mapping(&eid),
        }
        (eid, nonce)
    }

    /// What an earlier process left inside a prefix that the mapping system answers for as a whole is not there.
    fn forget_unconfirmed(&mut self, eid: &Eid) {
        for old in self.dataplane.unconfirmed() {
            if old != *eid && old.instance_id == eid.instance_id && eid.prefix.covers(&old.prefix) {
                self.dataplane.remove_mapping(&old);
            }
        }
    }

    fn committed(&mut self, result: Result<Vec<Refusal>, DataplaneError>) -> bool {
        self.work.uncommitted = result.is_err();
        match result {
            Ok(refused) => {
                for refusal in &refused {
                    tracing::warn!(%refusal, "mapping refused; what is in place stays");
                }
                self.shared.lock().refused_mappings += refused.len() as u64;
                true
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "data path not changed; will retry"
                );
                false
            }
        }
    }

    fn note_applied(&self, applied: Vec<(u64, Eid)>) {
        let applied_at_unix_ns = self.clock.unix_nanos(self.clock.now());
        for (nonce, eid) in applied {
            self.shared.apply(AppliedBody { nonce, eid: eid.prefix.to_string(), applied_at_unix_ns });
        }
    }

    /// Sends held packets back through the programs, which now know what to do with them.
    fn release(&mut self, settled: &[Eid]) {
        let tap = self.dataplane.tap();
        for eid in settled {
            for (host, mut frame) in self.hold.release(eid.instance_id, &eid.prefix) {
                let wanted = self.dataplane.wanted(host.instance_id, host.address);
                if wanted.is_some_and(|(_, mapping)| *mapping != Mapping::Resolve) {
                    self.send_back(&tap, &mut frame);
                } else {
                    self.give_up(&[(host, frame)]);
                }
            }
        }
    }

    fn event(&mut self, event: &Event) {
        tracing::info!(?event, "control plane");
        match event {
            Event::Registered { .. } => self.registered.iter().for_each(Condition::ready),
            Event::RegistrationLost { map_server } => {
                let reason = format!("map server {map_server} does not confirm registrations");
                self.registered.iter().for_each(|condition| condition.not_ready(&reason));
            }
            Event::Subscribed { .. } | Event::NotSubscribed { .. } => self.subscribed(),
            Event::Withdrawn => self.work.withdrawn = true,
            Event::Unresolved { eid } => {
                let dropped = self.hold.release(eid.instance_id.0, &eid.prefix);
                self.give_up(&dropped);
            }
            _ => {}
        }
    }

    fn subscribed(&self) {
        let Some(condition) = &self.subscribed else { return };
        let subscriptions = self.xtr.subscriptions();
        match subscriptions.iter().find(|subscription| !subscription.active) {
            None => condition.ready(),
            Some(waiting) => {
                condition.not_ready(&format!("the map server does not confirm {}", waiting.eid.prefix));
            }
        }
    }

    fn count(&self, counter: Counter) {
        *self.shared.lock().control.entry(counter).or_default() += 1;
    }

    fn sample(&mut self) {
        self.work.samples += 1;
        let slow = self.work.samples.is_multiple_of(SLOW);
        if slow || self.dataplane.observed().traffic.len() <= COUNTERS_OFTEN {
            self.measure(slow);
        }
        self.shared.lock().held.waiting = self.hold.len();
        if slow {
            let expired = self.hold.expire(self.clock.now());
            self.give_up(&expired);
            self.confirm();
            if self.work.uncommitted {
                self.work.survey_at = Some(self.clock.now());
            }
        }
    }

    /// Counters that cannot be read keep their last values.
    fn measure(&mut self, slow: bool) {
        let traffic = match self.dataplane.traffic() {
            Ok(traffic) => traffic,
            Err(error) => return tracing::warn!(%error, "counters not read"),
        };
        let now = self.clock.now();
        let loads = self.window.measure(now, self.clock.unix_nanos(now), &traffic, &self.work.dropped_flows);
        if slow {
            self.used(&loads);
        }
        let reasons = if slow { self.dataplane.reasons().ok() } else { None };
        let mut state = self.shared.lock();
        state.map_cache_entries = self.xtr.map_cache().len();
        state.load = loads.into();
        state.traffic = traffic.into();
        if let Some(reasons) = reasons {
            state.reasons = reasons.into();
        }
    }

    /// Tells the machine which mappings carried packets since the last time.
    fn used(&mut self, loads: &[super::shared::Load]) {
        let now = self.clock.now();
        for load in loads {
            let before = self.work.packets.insert(load.eid, load.packets);
            if before.unwrap_or(0) < load.packets {
                let instance_id = InstanceId(load.eid.instance_id);
                let eid = EidPrefix { instance_id, prefix: load.eid.prefix };
                self.xtr.handle_command(now, Command::Used { eid });
            }
        }
        self.work.packets.retain(|eid, _| loads.iter().any(|load| load.eid == *eid));
    }

    /// Asks for what an earlier process left. Until somebody answers it stays in force.
    fn confirm(&mut self) {
        let now = self.clock.now();
        if now < self.work.confirm_at {
            return;
        }
        self.work.confirm_at = now + CONFIRM;
        for old in self.dataplane.unconfirmed() {
            let prefix = codec::IpPrefix::host(old.prefix.address());
            let eid = EidPrefix { instance_id: InstanceId(old.instance_id), prefix };
            self.xtr.handle_command(now, Command::Resolve { eid });
        }
    }

    async fn stop(mut self) -> Result<(), RoleError> {
        if self.on_stop == OnStop::Detach && !self.local_eids.is_empty() {
            self.withdraw().await;
        }
        let flushed = self.store.flushed();
        self.dataplane.stop(self.on_stop).await?;
        Ok(flushed.await?)
    }

    async fn withdraw(&mut self) {
        self.xtr.handle_command(self.clock.now(), Command::Withdraw);
        let end = tokio::time::Instant::now() + WITHDRAW_TIME;
        self.drain().await;
        while !self.work.withdrawn {
            let deadline = self.deadline();
            tokio::select! {
                Some((from, bytes)) = self.control.receive() => self.datagram(from, &bytes),
                () = sleep_until(deadline) => self.timeout(),
                () = sleep_until(end) => return tracing::warn!("no Map-Server confirmed the withdrawal"),
            }
            self.drain().await;
        }
    }
}

/// The answer of a survey that runs; it does not run any more then.
async fn answered(
    survey: &mut Option<JoinHandle<Result<Surveyed, DataplaneError>>>,
) -> Option<Result<Surveyed, DataplaneError>> {
    let answer = survey.as_mut()?.await;
    *survey = None;
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What the data path does with a mapping of the control plane (RFC 9301 §5.4).
fn mapping(locators: &[lisp::mapping::Locator], action: Action) -> Mapping {
    if !locators.is_empty() {
        let locator = |l: &lisp::mapping::Locator| Locator {
            rloc: l.rloc,
            priority: l.priority,
            weight: l.weight,
            usable: l.usable,
            gpe: false,
        };
        return Mapping::Encapsulate(locators.iter().map(locator).collect());
    }
    match action {
        Action::NativelyForward => Mapping::Native,
        Action::SendMapRequest => Mapping::Resolve,
        _ => Mapping::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_count_only_without_locators() {
        let locator = lisp::mapping::Locator {
            rloc: "10.0.1.2".parse().unwrap(),
            priority: 1,
            weight: 7,
            usable: true,
        };
        assert!(matches!(mapping(&[locator], Action::Drop), Mapping::Encapsulate(l) if l[0].weight == 7));
        assert_eq!(mapping(&[], Action::NativelyForward), Mapping::Native);
        assert_eq!(mapping(&[], Action::SendMapRequest), Mapping::Resolve);
        for action in [Action::NoAction, Action::Drop, Action::DropPolicyDenied, Action::Unassigned(7)] {
            assert_eq!(mapping(&[], action), Mapping::Drop);
        }
    }
}
