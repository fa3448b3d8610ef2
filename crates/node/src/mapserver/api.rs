//! `/v1/registrations`, `/v1/weights`, `/v1/subscriptions`, `/v1/publications`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use codec::Instant;
use lisp::map_server::{
    Command, LocatorWeight, Registrant, RegistrationView, SubscriptionView, WeightsError,
};
use lisp::wire::{EidPrefix, LocatorRecord, XtrIdentity};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::serve::{Job, Shell};
use crate::address::{Prefix, identity_text, read_identity, xtr_id_text};
use crate::clock::Clock;
use crate::http::{ApiError, Jobs, JsonBody};

/// One xTR's registration of one EID-prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The prefix.
    pub eid: Prefix,
    /// Its instance.
    pub instance_id: u32,
    /// Site under whose key it was registered.
    pub site: String,
    /// xTR-ID of who registered it, if it told.
    pub xtr_id: Option<String>,
    /// Site-ID of who registered it, if it told.
    pub site_id: Option<u64>,
    /// Address of who registered it, if it told no identity.
    pub address: Option<IpAddr>,
    /// Its locators.
    pub locators: Vec<RegisteredLocator>,
    /// Record TTL.
    pub ttl_minutes: u32,
    /// The map server answers for it.
    pub proxy_reply: bool,
    /// Merged with other xTRs' registrations of the prefix.
    pub merge: bool,
    /// Last refresh; null if it was taken from storage and not refreshed since.
    pub refreshed_at_unix_ns: Option<u64>,
    /// Seconds until it ends unless it is refreshed.
    pub expires_in_seconds: u64,
}

/// A locator as it was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredLocator {
    /// Address; null if it is none that packets can go to.
    pub rloc: Option<IpAddr>,
    /// Lower wins, 255 is never used.
    pub priority: u8,
    /// Share among locators of the same priority.
    pub weight: u8,
    /// R bit.
    pub reachable: bool,
}

/// Weights of an EID-prefix, for one gateway or for all that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// A configured prefix, exactly this one.
    pub eid: Prefix,
    /// Its instance.
    #[serde(default)]
    pub instance_id: u32,
    /// Name of a configured subscriber; null for all. Weights of one that is no longer configured are listed under
    /// `xtr-id:XTR-ID/SITE-ID`.
    #[serde(default)]
    pub gateway: Option<String>,
    /// At least one.
    pub locators: Vec<Locator>,
}

/// Weight of a locator. Locators that are not named are drained: their flows stay, new ones go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locator {
    /// Which one.
    pub rloc: IpAddr,
    /// Lower wins, 255 is never used.
    pub priority: u8,
    /// Share among locators of the same priority.
    pub weight: u8,
}

/// Which weights to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsKey {
    /// The prefix.
    pub eid: Prefix,
    /// Its instance.
    #[serde(default)]
    pub instance_id: u32,
    /// Name of a configured subscriber, or `xtr-id:XTR-ID/SITE-ID` as listed; null for all.
    #[serde(default)]
    pub gateway: Option<String>,
}

/// One subscriber's subscription to one EID-prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Name of the gateway.
    pub subscriber: String,
    /// Its xTR-ID.
    pub xtr_id: String,
    /// Its Site-ID.
    pub site_id: u64,
    /// The prefix.
    pub eid: Prefix,
    /// Its instance.
    pub instance_id: u32,
    /// Where publications go.
    pub itr_rlocs: Vec<IpAddr>,
    /// Last nonce used or seen.
    pub nonce: u64,
    /// A publication waits for its acknowledgement.
    pub unacknowledged: bool,
    /// Smoothed round-trip time to the subscriber.
    pub rtt_ms: Option<f64>,
}

/// One mapping published to one subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Nonce of the Map-Notify.
    pub nonce: u64,
    /// The prefix.
    pub eid: Prefix,
    /// Its instance.
    pub instance_id: u32,
    /// Name of the gateway.
    pub subscriber: String,
    /// First sent, nanoseconds since the Unix epoch.
    pub published_at_unix_ns: u64,
    /// Acknowledged, likewise; null until then.
    pub acked_at_unix_ns: Option<u64>,
}

#[derive(Debug)]
struct Api {
    jobs: Jobs<Shell>,
    clock: Clock,
    gateways: BTreeMap<String, XtrIdentity>,
}

type Shared = State<Arc<Api>>;

/// The routes.
pub(super) fn router(
    jobs: mpsc::Sender<Job>,
    clock: Clock,
    gateways: BTreeMap<String, XtrIdentity>,
) -> Router {
    Router::new()
        .route("/v1/registrations", get(registrations))
        .route("/v1/weights", get(weights).put(put_weights).delete(delete_weights))
        .route("/v1/subscriptions", get(subscriptions))
        .route("/v1/publications", get(publications))
        .with_state(Arc::new(Api { jobs: Jobs::new(jobs, "map server"), clock, gateways }))
}

impl Api {
    fn identity(&self, gateway: Option<&String>) -> Result<Option<XtrIdentity>, ApiError> {
        let Some(name) = gateway else { return Ok(None) };
        let known = || self.gateways.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let unknown = || ApiError::field("gateway", format!("`{name}` is no subscriber; known: {}", known()));
        let identity = self.gateways.get(name).copied().or_else(|| read_identity(name));
        identity.map(Some).ok_or_else(unknown)
    }

    /// Null would mean all gateways, also for one that was taken out of the configuration.
    fn name(&self, gateway: XtrIdentity) -> String {
        let configured = self.gateways.iter().find(|(_, identity)| **identity == gateway);
        configured.map_or_else(|| identity_text(gateway), |(name, _)| name.clone())
    }
}

async fn registrations(State(api): Shared) -> Result<Json<Vec<Registration>>, ApiError> {
    let views = api.jobs.ask(|shell| shell.machine.registrations()).await?;
    let now = api.clock.now();
    Ok(Json(views.into_iter().map(|view| registration(view, now, api.clock)).collect()))
}

fn registration(view: RegistrationView, now: Instant, clock: Clock) -> Registration {
    let (identity, address) = match view.registrant {
        Registrant::Xtr(identity) => (Some(identity), None),
        Registrant::Address(address) => (None, Some(address)),
    };
    Registration {
        eid: Prefix(view.eid.prefix),
        instance_id: view.eid.instance_id.0,
        site: view.site,
        xtr_id: identity.map(|identity| xtr_id_text(identity.xtr_id)),
        site_id: identity.map(|identity| identity.site_id.0),
        address,
        locators: view.locators.iter().map(registered_locator).collect(),
        ttl_minutes: view.ttl,
        proxy_reply: view.proxy_reply,
        merge: view.merge,
        refreshed_at_unix_ns: view.refreshed_at.map(|at| clock.unix_nanos(at)),
        expires_in_seconds: view.expires_at.saturating_since(now).as_secs(),
    }
}

fn registered_locator(locator: &LocatorRecord) -> RegisteredLocator {
    RegisteredLocator {
        rloc: locator.rloc.ip(),
        priority: locator.priority,
        weight: locator.weight,
        reachable: locator.reachable,
    }
}

async fn weights(State(api): Shared) -> Result<Json<Vec<Weights>>, ApiError> {
    let views = api.jobs.ask(|shell| shell.machine.weights()).await?;
    let weights = views.into_iter().map(|view| Weights {
        eid: Prefix(view.eid.prefix),
        instance_id: view.eid.instance_id.0,
        gateway: view.gateway.map(|gateway| api.name(gateway)),
        locators: view.locators.iter().map(locator).collect(),
    });
    Ok(Json(weights.collect()))
}

fn locator(weight: &LocatorWeight) -> Locator {
    Locator { rloc: weight.rloc, priority: weight.priority, weight: weight.weight }
}

/// Answers when the weights are published and on the disk.
async fn put_weights(
    State(api): Shared,
    JsonBody(weights): JsonBody<Weights>,
) -> Result<Json<Weights>, ApiError> {
    let locator = |l: &Locator| LocatorWeight { rloc: l.rloc, priority: l.priority, weight: l.weight };
    let command = Command::SetWeights {
        eid: weights.eid.within(weights.instance_id),
        gateway: api.identity(weights.gateway.as_ref())?,
        locators: weights.locators.iter().map(locator).collect(),
    };
    let clock = api.clock;
    let carried_out = move |shell: &mut Shell| {
        shell.machine.check_weights(&command)?;
        shell.machine.handle_command(clock.now(), command);
        Ok(shell.stored())
    };
    let stored = api.jobs.ask(carried_out).await?.map_err(|error| refused(error, &weights))?;
    stored.await.map_err(|error| not_stored(&error))?;
    Ok(Json(weights))
}

/// Removing what is not there is no error: the caller wanted it gone.
async fn delete_weights(
    State(api): Shared,
    JsonBody(key): JsonBody<WeightsKey>,
) -> Result<StatusCode, ApiError> {
    let eid = key.eid.within(key.instance_id);
    let command = Command::ClearWeights { eid, gateway: api.identity(key.gateway.as_ref())? };
    let clock = api.clock;
    let carried_out = move |shell: &mut Shell| {
        shell.machine.handle_command(clock.now(), command);
        shell.stored()
    };
    api.jobs.ask(carried_out).await?.await.map_err(|error| not_stored(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn refused(error: WeightsError, weights: &Weights) -> ApiError {
    let eid_text = || {
        let EidPrefix { instance_id, prefix } = weights.eid.within(weights.instance_id);
        format!("{prefix} in instance {} may be registered by no configured site", instance_id.0)
    };
    match error {
        WeightsError::UnknownEid { .. } => {
            ApiError::Refused { field: Some("eid".into()), message: eid_text() }
        }
        WeightsError::UnknownGateway { .. } => ApiError::field("gateway", "is not a configured subscriber"),
        WeightsError::DuplicateLocator { rloc } => {
            let last = weights.locators.iter().rposition(|locator| locator.rloc == rloc).unwrap_or_default();
            ApiError::field(format!("locators[{last}].rloc"), format!("{rloc} is named more than once"))
        }
        other => ApiError::field("locators", other),
    }
}

fn not_stored(error: &crate::store::StoreError) -> ApiError {
    ApiError::Unavailable { message: format!("in force, but lost at a restart: {error}") }
}

async fn subscriptions(State(api): Shared) -> Result<Json<Vec<Subscription>>, ApiError> {
    let views = api.jobs.ask(|shell| shell.machine.subscriptions()).await?;
    Ok(Json(views.into_iter().map(subscription).collect()))
}

fn subscription(view: SubscriptionView) -> Subscription {
    Subscription {
        subscriber: view.subscriber,
        xtr_id: xtr_id_text(view.identity.xtr_id),
        site_id: view.identity.site_id.0,
        eid: Prefix(view.eid.prefix),
        instance_id: view.eid.instance_id.0,
        itr_rlocs: view.itr_rlocs,
        nonce: view.nonce,
        unacknowledged: view.unacknowledged,
        rtt_ms: view.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
    }
}

async fn publications(State(api): Shared) -> Result<Json<Vec<Publication>>, ApiError> {
    api.jobs.ask(|shell| shell.publications.list()).await.map(Json)
}
