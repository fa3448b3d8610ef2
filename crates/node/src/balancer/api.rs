//! `/v1/vips`, `/v1/status`, `/v1/explain`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use dataplane::balancer::{Explanation, FlowQuery, PacketKind, Protocol, Remembered, Segment, SlotChoice};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::body::{BalancerStatus, FlowExplanation, RememberedBody, SlotBody};
use super::desired::{Change, Desired, Outcome, Refusal};
use super::endpoint::{Endpoint, EndpointError};
use super::shell::{Changed, Job, Shell};
use crate::config::services::{self, raw};
use crate::http::{ApiError, Jobs, JsonBody, Params, ProblemBody};

/// Longest document: 4096 VIPs with all backends that there may be.
pub(super) const MAX_DOCUMENT: usize = 32 << 20;

/// Parameters of a change.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeParams {
    #[serde(default)]
    dry_run: bool,
}

/// Parameters of `/v1/explain`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowParams {
    source: String,
    destination: String,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    segment: Option<String>,
    #[serde(default)]
    first: bool,
    #[serde(default)]
    packet: Option<String>,
}

#[derive(Debug)]
struct Api {
    jobs: Jobs<Shell>,
}

type Shared = State<Arc<Api>>;
type Document = JsonBody<Value, MAX_DOCUMENT>;

/// The routes.
pub(super) fn router(jobs: mpsc::Sender<Job>) -> Router {
    let documents = Router::new()
        .route("/v1/vips", get(list).put(replace_all).post(create_vip).delete(delete_all))
        .route("/v1/vips/{vip}", get(get_vip).put(put_vip).delete(delete_vip))
        .layer(DefaultBodyLimit::max(MAX_DOCUMENT));
    Router::new()
        .route("/v1/vips/{vip}/backends", get(list_backends).post(create_backend))
        .route("/v1/vips/{vip}/backends/{backend}", get(get_backend).put(put_backend).delete(delete_backend))
        .route("/v1/status", get(status))
        .route("/v1/explain", get(explain))
        .merge(documents)
        .with_state(Arc::new(Api { jobs: Jobs::new(jobs, "balancer") }))
}

impl Api {
    async fn desired(&self) -> Result<Desired, ApiError> {
        self.jobs.ask(|shell| shell.desired.clone()).await
    }

    /// Answers when the change is on the disk; the data path has it, or the status says why not.
    async fn change(
        &self,
        change: Change,
        headers: &HeaderMap,
        params: ChangeParams,
    ) -> Result<(Desired, Outcome), ApiError> {
        let expected = if_match(headers)?;
        let changed = self.jobs.ask(move |shell| shell.change(change, expected, params.dry_run)).await?;
        let Changed { after, outcome, stored } = changed.map_err(refused)?;
        if let Some(stored) = stored {
            let lost = |error| ApiError::Unavailable {
                message: format!("in force, but lost at a restart: {error}"),
            };
            stored.await.map_err(lost)?;
        }
        Ok((after, outcome))
    }
}

fn refused(refusal: Refusal) -> ApiError {
    let message = refusal.to_string();
    match refusal {
        Refusal::NotFound { what } => ApiError::not_found(what),
        Refusal::Exists { .. } => ApiError::AlreadyExists { message },
        Refusal::Stale { .. } => ApiError::Conflict { message },
        Refusal::Invalid(problems) => invalid(problems),
    }
}

fn invalid(problems: Vec<crate::config::Problem>) -> ApiError {
    let body =
        |problem: crate::config::Problem| ProblemBody { field: problem.path, message: problem.message };
    ApiError::Invalid { problems: problems.into_iter().map(body).collect() }
}

fn document<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    services::from_json(value).map_err(invalid)
}

/// The generation in `If-Match`, as `ETag` gave it.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let wrong = || ApiError::field("If-Match", "expected a generation as ETag gave it, e.g. \"7\"");
    number.parse().map(Some).map_err(|_| wrong())
}

/// A body with its generation in `ETag`.
fn tagged(status: StatusCode, generation: u64, body: impl Serialize) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{generation}\"")).expect("digits and quotes are a header");
    (status, [(header::ETAG, tag)], Json(body)).into_response()
}

/// Status of what was put: 201 for what was not there before.
const fn status_of(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Created => StatusCode::CREATED,
        Outcome::Replaced | Outcome::Unchanged | Outcome::Deleted => StatusCode::OK,
    }
}

fn vip_answer(desired: &Desired, outcome: Option<Outcome>, name: &str) -> Result<Response, ApiError> {
    let stored = desired.vip(name).map_err(refused)?;
    let mut response = tagged(outcome.map_or(StatusCode::OK, status_of), stored.generation, stored.written());
    if outcome == Some(Outcome::Created) {
        // Names hold nothing that a header could not.
        let location = HeaderValue::from_str(&format!("/v1/vips/{name}"));
        response.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    }
    Ok(response)
}

fn backend_answer(
    desired: &Desired,
    outcome: Option<Outcome>,
    vip: &str,
    name: &str,
) -> Result<Response, ApiError> {
    let stored = desired.vip(vip).map_err(refused)?;
    let backend = stored.backend(name).map_err(refused)?;
    Ok(tagged(outcome.map_or(StatusCode::OK, status_of), stored.generation, backend))
}

async fn list(State(api): Shared) -> Result<Response, ApiError> {
    let desired = api.desired().await?;
    Ok(tagged(StatusCode::OK, desired.generation(), desired.written()))
}

async fn replace_all(
    State(api): Shared,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    JsonBody(body): Document,
) -> Result<Response, ApiError> {
    let services: raw::Services = document(body)?;
    let (after, _) = api.change(Change::ReplaceAll(services), &headers, params).await?;
    Ok(tagged(StatusCode::OK, after.generation(), after.written()))
}

async fn delete_all(
    State(api): Shared,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    api.change(Change::ReplaceAll(raw::Services::default()), &headers, params).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn create_vip(
    State(api): Shared,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    JsonBody(body): Document,
) -> Result<Response, ApiError> {
    let vip: raw::Vip = document(body)?;
    let name = vip.name.clone();
    let (after, outcome) = api.change(Change::CreateVip(vip), &headers, params).await?;
    vip_answer(&after, Some(outcome), &name)
}

async fn get_vip(State(api): Shared, Path(name): Path<String>) -> Result<Response, ApiError> {
    vip_answer(&api.desired().await?, None, &name)
}

async fn put_vip(
    State(api): Shared,
    Path(name): Path<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    JsonBody(body): Document,
) -> Result<Response, ApiError> {
    let change = Change::PutVip(name.clone(), document(body)?);
    let (after, outcome) = api.change(change, &headers, params).await?;
    vip_answer(&after, Some(outcome), &name)
}

async fn delete_vip(
    State(api): Shared,
    Path(name): Path<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    api.change(Change::DeleteVip(name), &headers, params).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_backends(State(api): Shared, Path(vip): Path<String>) -> Result<Response, ApiError> {
    let desired = api.desired().await?;
    let stored = desired.vip(&vip).map_err(refused)?;
    Ok(tagged(StatusCode::OK, stored.generation, &stored.vip.written.backends))
}

async fn create_backend(
    State(api): Shared,
    Path(vip): Path<String>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Value>,
) -> Result<Response, ApiError> {
    let backend: raw::Backend = document(body)?;
    let name = backend.name.clone();
    let (after, outcome) = api.change(Change::CreateBackend(vip.clone(), backend), &headers, params).await?;
    backend_answer(&after, Some(outcome), &vip, &name)
}

async fn get_backend(
    State(api): Shared,
    Path((vip, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    backend_answer(&api.desired().await?, None, &vip, &name)
}

async fn put_backend(
    State(api): Shared,
    Path((vip, name)): Path<(String, String)>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Value>,
) -> Result<Response, ApiError> {
    let change = Change::PutBackend(vip.clone(), name.clone(), document(body)?);
    let (after, outcome) = api.change(change, &headers, params).await?;
    backend_answer(&after, Some(outcome), &vip, &name)
}

async fn delete_backend(
    State(api): Shared,
    Path((vip, name)): Path<(String, String)>,
    Params(params): Params<ChangeParams>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    api.change(Change::DeleteBackend(vip, name), &headers, params).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn status(State(api): Shared) -> Result<Json<BalancerStatus>, ApiError> {
    api.jobs.ask(|shell| shell.status()).await.map(Json)
}

async fn explain(
    State(api): Shared,
    Params(params): Params<FlowParams>,
) -> Result<Json<FlowExplanation>, ApiError> {
    let (flow, packet) = flow(&params)?;
    let explained = api.jobs.ask(move |shell| shell.explain(&flow, packet)).await?;
    let (explanation, vip) = explained.map_err(|e| ApiError::Unavailable { message: e.to_string() })?;
    Ok(Json(explanation_body(explanation, vip)))
}

/// Every parameter that has no meaning, at once.
fn flow(params: &FlowParams) -> Result<(FlowQuery, PacketKind), ApiError> {
    let mut wrong = Vec::new();
    let packet = parsed(&mut wrong, "packet", params.packet.as_deref().unwrap_or("transport"));
    let has_ports = packet.is_some_and(PacketKind::has_ports);
    if let Some(packet) = packet.filter(|packet| params.first && !packet.may_be_first()) {
        wrong.push(problem("first", format!("packet {packet} begins no connection; only transport may")));
    }
    let source = endpoint(&mut wrong, "source", &params.source, has_ports);
    let destination = endpoint(&mut wrong, "destination", &params.destination, has_ports);
    if let (Some(source), Some(destination)) = (source, destination)
        && source.is_ipv4() != destination.is_ipv4()
    {
        wrong.push(problem("destination", "is of another address family than source".to_owned()));
    }
    let protocol = parsed::<Protocol>(&mut wrong, "protocol", params.protocol.as_deref().unwrap_or("tcp"));
    let segment = parsed::<Segment>(&mut wrong, "segment", params.segment.as_deref().unwrap_or("none"));
    let query = || {
        let (source, destination) = (source?, destination?);
        Some(FlowQuery {
            segment: segment?,
            source: source.ip(),
            source_port: source.port(),
            destination: destination.ip(),
            destination_port: destination.port(),
            protocol: protocol?,
            first: params.first,
        })
    };
    match query().zip(packet) {
        Some(asked) if wrong.is_empty() => Ok(asked),
        _ => Err(ApiError::Invalid { problems: wrong }),
    }
}

fn problem(field: &str, message: String) -> ProblemBody {
    ProblemBody { field: field.to_owned(), message }
}

fn parsed<T>(wrong: &mut Vec<ProblemBody>, field: &str, text: &str) -> Option<T>
where
    T: FromStr<Err: Display>,
{
    text.parse().map_err(|error: T::Err| wrong.push(problem(field, error.to_string()))).ok()
}

fn endpoint(wrong: &mut Vec<ProblemBody>, field: &str, text: &str, has_ports: bool) -> Option<SocketAddr> {
    let parsed = text.parse().and_then(|endpoint: Endpoint| endpoint.socket(has_ports));
    parsed.map_err(|error: EndpointError| wrong.push(problem(field, error.to_string()))).ok()
}

fn explanation_body(explanation: Explanation, vip: Option<String>) -> FlowExplanation {
    let slot = |choice: SlotChoice| SlotBody {
        size: choice.size,
        slot: choice.slot,
        backend: choice.name,
        usable: choice.usable,
    };
    let remembered = |found: Remembered| RememberedBody { backend: found.name, valid: found.valid };
    let verdict = serde_json::to_value(explanation.verdict).ok();
    FlowExplanation {
        vip: vip.or_else(|| explanation.vip.map(|id| id.to_string())),
        hash: explanation.hash,
        current: explanation.current.map(slot),
        previous: explanation.previous.map(slot),
        remembered: explanation.remembered.map(remembered),
        verdict: verdict.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned(),
        backend: explanation.backend,
        because: explanation.because,
    }
}

#[cfg(test)]
mod tests;
