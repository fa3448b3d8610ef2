//! `/v1/mappings`, `/v1/flows`, `/v1/status`, `/v1/load`, `/v1/applied`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use dataplane::maps::{Flow, FlowReader};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::body::{AppliedBody, FlowBody, LoadBody, MappingBody, StatusBody};
use super::shared::{Load, Shared};
use crate::http::{ApiError, Params};

/// Flows listed without a limit, and at most.
const FLOWS_DEFAULT: usize = 100;
const FLOWS_MAX: usize = 10_000;

/// A question to the gateway's task.
#[derive(Debug)]
pub(super) enum Query {
    /// `/v1/mappings`.
    Mappings(oneshot::Sender<Vec<MappingBody>>),
    /// `/v1/status`.
    Status(oneshot::Sender<StatusBody>),
}

/// What the handlers need.
#[derive(Clone)]
pub(super) struct Api {
    /// Measurements.
    pub(super) shared: Arc<Shared>,
    /// The gateway's task.
    pub(super) queries: mpsc::Sender<Query>,
    /// The flow table.
    pub(super) flows: Arc<FlowReader>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowParams {
    limit: Option<usize>,
}

/// The gateway's routes.
pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/mappings", get(mappings))
        .route("/v1/flows", get(flows))
        .route("/v1/status", get(status))
        .route("/v1/load", get(load))
        .route("/v1/applied", get(applied))
        .with_state(api)
}

async fn mappings(State(api): State<Api>) -> Result<Json<Vec<MappingBody>>, ApiError> {
    ask(&api, Query::Mappings).await
}

async fn status(State(api): State<Api>) -> Result<Json<StatusBody>, ApiError> {
    ask(&api, Query::Status).await
}

async fn ask<T>(api: &Api, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<Json<T>, ApiError> {
    let stopping = || ApiError::Unavailable { message: "the gateway is stopping".to_owned() };
    let (sender, receiver) = oneshot::channel();
    api.queries.send(query(sender)).await.map_err(|_| stopping())?;
    receiver.await.map(Json).map_err(|_| stopping())
}

async fn flows(
    State(api): State<Api>,
    Params(params): Params<FlowParams>,
) -> Result<Json<Vec<FlowBody>>, ApiError> {
    let limit = params.limit.unwrap_or(FLOWS_DEFAULT);
    if limit > FLOWS_MAX {
        return Err(ApiError::field("limit", format!("{limit} is more than {FLOWS_MAX}")));
    }
    let listed = tokio::task::spawn_blocking(move || api.flows.flows(limit)).await;
    let flows = listed.map_err(|e| ApiError::Unavailable { message: format!("flow table: {e}") })?;
    Ok(Json(flows.iter().map(flow).collect()))
}

fn flow(flow: &Flow) -> FlowBody {
    FlowBody {
        instance_id: flow.instance_id,
        source: SocketAddr::new(flow.source, flow.source_port),
        destination: SocketAddr::new(flow.destination, flow.destination_port),
        protocol: flow.protocol,
        rloc: flow.rloc,
        idle_ms: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
    }
}

async fn load(State(api): State<Api>) -> Json<Vec<LoadBody>> {
    Json(api.shared.snapshot().load.iter().filter_map(Load::body).collect())
}

async fn applied(State(api): State<Api>) -> Json<Vec<AppliedBody>> {
    Json(api.shared.applied().iter().map(|applied| AppliedBody::clone(applied)).collect())
}
