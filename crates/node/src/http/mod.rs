//! The API's server: who may ask, how long and how much, and what everybody gets.
//!
//! Roles bring their routes; everything else about HTTP is here and in `error`, which is the only place that maps
//! failures to answers.

mod auth;
mod error;
mod extract;
mod jobs;
mod limits;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

pub use error::{ApiError, ErrorBody, ProblemBody};
pub use extract::{JsonBody, Params};
pub(crate) use jobs::{Job, Jobs};

use crate::config;
use crate::metrics::{self, register};
use crate::role::Readiness;
use crate::signal::Shutdown;

/// Paths that need no token: what a scraper and a service manager ask.
const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessBody {
    /// Whether every condition holds.
    pub ready: bool,
    /// Each condition.
    pub conditions: Vec<ConditionBody>,
}

/// One condition in the answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionBody {
    /// Name of the condition.
    pub name: String,
    /// Whether it holds.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A bound listener; requests are answered once [`Server::serve`] runs.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    token: Option<config::Secret>,
    counters: Counters,
}

#[derive(Clone, Debug, Default)]
struct Counters {
    requests: Family<RequestLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

impl Counters {
    fn register(registry: &mut Registry) -> Self {
        let counters = Self::default();
        let help = "API requests by route (`path`) and `status`";
        register(registry, "weir_http_requests", help, counters.requests.clone());
        let help = "API requests that were refused, by the `error` of the answer (`reason`)";
        register(registry, "weir_http_refusals", help, counters.refusals.clone());
        counters
    }
}

/// Registers the server's own metrics for the reference.
pub(crate) fn describe(registry: &mut Registry) {
    Counters::register(registry);
}

impl Server {
    /// Binds the address and registers the server's own metrics.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub async fn bind(http: config::Http, registry: &mut Registry) -> std::io::Result<Self> {
        let listener = TcpListener::bind(http.listen).await?;
        Ok(Self { listener, token: http.token, counters: Counters::register(registry) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the node stops, then lets requests finish for a moment.
    pub async fn serve(self, api: Router, registry: Registry, readiness: Readiness, shutdown: Shutdown) {
        let router = router(api, self.token, registry, readiness, self.counters);
        limits::serve(self.listener, router, shutdown).await;
    }
}

fn router(
    api: Router,
    token: Option<config::Secret>,
    registry: Registry,
    readiness: Readiness,
    counters: Counters,
) -> Router {
    let registry = Arc::new(registry);
    let own = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || std::future::ready(readyz(&readiness))))
        .route("/metrics", get(move || std::future::ready(exposition(&registry))));
    own.merge(api)
        .fallback(|request: Request| async move { ApiError::not_found(request.uri().path()) })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(from_fn(limits::time_limit))
        .layer(axum::extract::DefaultBodyLimit::max(limits::MAX_BODY))
        .layer(from_fn_with_state(Arc::new(token), auth::require_token))
        .layer(from_fn_with_state(counters, count))
}

fn readyz(readiness: &Readiness) -> Response {
    let conditions: Vec<ConditionBody> = readiness
        .conditions()
        .into_iter()
        .map(|(name, reason)| ConditionBody { name: name.to_owned(), ready: reason.is_none(), reason })
        .collect();
    let ready = conditions.iter().all(|condition| condition.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ReadinessBody { ready, conditions })).into_response()
}

fn exposition(registry: &Registry) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::encode(registry)).into_response()
}

/// The label is the route and not what was asked for, which a peer could make endless.
async fn count(State(counters): State<Counters>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let labels = RequestLabels { path, status: response.status().as_u16() };
    counters.requests.get_or_create(&labels).inc();
    if let Some(error::Refusal(reason)) = response.extensions().get() {
        counters.refusals.get_or_create(&RefusalLabels { reason }).inc();
    }
    response
}

#[cfg(test)]
mod tests;
