//! `GET /v1/services` and `GET /v1/decisions`: how services stand and why.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use balance::{EdgeExplanation, Measurement};
use serde::{Deserialize, Serialize};

use super::core::{Snapshot, Subject};
use super::history::{Effect, Record};
use super::service::ServiceLoop;
use crate::http::{ApiError, Params};

/// How a service stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub service: String,
    /// Its EID-prefix.
    pub eid: String,
    /// The instance of the EID.
    pub instance_id: u32,
    /// The gateway whose load is split; all of them without.
    pub gateway: Option<String>,
    /// `starting`, `fresh`, `held` or `unapplied`.
    pub state: String,
    /// Since when.
    pub state_since_unix_ns: u64,
    /// Last change of weights that the map server took.
    pub last_change_unix_ns: Option<u64>,
    /// The newest decision.
    pub decision: Option<DecisionView>,
}

/// One decision with its inputs and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// The service it is about.
    pub service: String,
    /// The EID-prefix of the service.
    pub eid: String,
    /// The instance of the EID.
    pub instance_id: u32,
    /// The gateway whose load is split; all of them without.
    pub gateway: Option<String>,
    /// When it was taken.
    pub at_unix_ns: u64,
    /// Decisions in a row that said the same; this is the newest of them.
    pub repeats: u64,
    /// When the first of them was taken.
    pub first_at_unix_ns: u64,
    /// Whether the weights were to change.
    pub changed: bool,
    /// Which rule decided, one of a fixed set of names.
    pub outcome: String,
    /// The rule with its figures, in words.
    pub reason: String,
    /// `nothing-to-write`, `written`, `write-failed` or `not-read`.
    pub effect: String,
    /// When the map server took the weights.
    pub written_at_unix_ns: Option<u64>,
    /// Why the map server did not.
    pub error: Option<String>,
    /// The load it rests on, or what came in its place.
    pub measurement: MeasurementView,
    /// The dead band.
    pub dead_band: f64,
    /// One per edge, in priority order.
    pub edges: Vec<EdgeView>,
}

/// What the source answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasurementView {
    /// `fresh`, `stale`, `empty`, …
    pub kind: String,
    /// Requests per second, if the source named a load.
    pub rps: Option<f64>,
    /// Age of the load in seconds.
    pub age_seconds: Option<f64>,
    /// All of it in words.
    pub words: String,
}

/// What a decision means for one edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeView {
    /// Its name.
    pub name: String,
    /// Its locator.
    pub rloc: IpAddr,
    /// C_i, requests per second.
    pub capacity: f64,
    /// Share before.
    pub in_force: Option<f64>,
    /// Share that Algorithm 1 gives.
    pub target: Option<f64>,
    /// Wire weight after.
    pub weight: Option<u8>,
    /// Share after.
    pub share: Option<f64>,
    /// Requests per second that the share is of the measured load.
    pub rps: Option<f64>,
    /// Why, in words.
    pub reason: String,
}

/// Which decisions are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    service: Option<String>,
    #[serde(default = "Wanted::default_limit")]
    limit: usize,
}

impl Wanted {
    const fn default_limit() -> usize {
        100
    }
}

pub(super) fn router(services: Arc<[Arc<ServiceLoop>]>) -> Router {
    Router::new()
        .route("/v1/services", get(list_services))
        .route("/v1/decisions", get(list_decisions))
        .with_state(services)
}

async fn list_services(State(services): State<Arc<[Arc<ServiceLoop>]>>) -> Json<Vec<ServiceView>> {
    Json(services.iter().map(|service| service_view(&service.snapshot(1))).collect())
}

/// Newest first, over all services unless one is named.
async fn list_decisions(
    State(services): State<Arc<[Arc<ServiceLoop>]>>,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Vec<DecisionView>>, ApiError> {
    let name = wanted.service.as_deref();
    let asked = |service: &&Arc<ServiceLoop>| name.is_none_or(|name| service.name() == name);
    if let Some(name) = name
        && !services.iter().any(|service| asked(&service))
    {
        return Err(ApiError::not_found(format!("service `{name}`")));
    }
    let of_service = |service: &Arc<ServiceLoop>| {
        let Snapshot { subject, records, .. } = service.snapshot(wanted.limit);
        records.into_iter().map(move |record| (Arc::clone(&subject), record))
    };
    let mut decisions: Vec<_> = services.iter().filter(asked).flat_map(of_service).collect();
    decisions.sort_by_key(|(_, record)| std::cmp::Reverse(record.at));
    decisions.truncate(wanted.limit);
    Ok(Json(decisions.iter().map(|(subject, record)| decision_view(subject, record)).collect()))
}

fn service_view(snapshot: &Snapshot) -> ServiceView {
    let subject = &*snapshot.subject;
    ServiceView {
        service: subject.name.clone(),
        eid: subject.eid.prefix.to_string(),
        instance_id: subject.eid.instance_id.0,
        gateway: subject.gateway.clone(),
        state: snapshot.state.as_str().to_owned(),
        state_since_unix_ns: unix_ns(snapshot.state_since),
        last_change_unix_ns: snapshot.changed_at.map(unix_ns),
        decision: snapshot.records.first().map(|record| decision_view(subject, record)),
    }
}

fn decision_view(subject: &Subject, record: &Record) -> DecisionView {
    let decision = &record.decision;
    let written_at = match record.effect {
        Effect::Written { at } => Some(unix_ns(at)),
        _ => None,
    };
    DecisionView {
        service: subject.name.clone(),
        eid: subject.eid.prefix.to_string(),
        instance_id: subject.eid.instance_id.0,
        gateway: subject.gateway.clone(),
        at_unix_ns: unix_ns(record.at),
        repeats: record.repeats,
        first_at_unix_ns: unix_ns(record.first_at),
        changed: decision.is_change(),
        outcome: decision.outcome.as_str().to_owned(),
        reason: decision.outcome.to_string(),
        effect: record.effect.as_str().to_owned(),
        written_at_unix_ns: written_at,
        error: record.effect.error().map(ToString::to_string),
        measurement: measurement_view(&decision.measurement),
        dead_band: decision.dead_band.fraction(),
        edges: subject.rlocs.iter().zip(&decision.edges).map(edge_view).collect(),
    }
}

fn measurement_view(measurement: &Measurement) -> MeasurementView {
    let (rps, age) = match measurement {
        Measurement::Fresh { load, age } | Measurement::Stale { load, age, .. } => {
            (Some(load.rps()), Some(age.as_secs_f64()))
        }
        _ => (None, None),
    };
    MeasurementView {
        kind: measurement.kind().as_str().to_owned(),
        rps,
        age_seconds: age,
        words: measurement.to_string(),
    }
}

fn edge_view((rloc, edge): (&IpAddr, &EdgeExplanation)) -> EdgeView {
    EdgeView {
        name: edge.name.clone(),
        rloc: *rloc,
        capacity: edge.capacity.rps(),
        in_force: edge.in_force,
        target: edge.target,
        weight: edge.weight,
        share: edge.share,
        rps: edge.load,
        reason: edge.reason.to_string(),
    }
}

fn unix_ns(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}
