//! How long, how much, how many: the bounds that keep a slow or greedy client from costing the others anything.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ApiError;
use crate::signal::Shutdown;

/// Longest body; the longest sensible one is a weight per locator of a full locator-set (255).
pub(super) const MAX_BODY: usize = 64 * 1024;
/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// A connection sends its request's head within this, and is closed when idle for as long.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// An answer is ready within this.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Open requests may finish within this when the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// Pause after the system had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Ends a request whose answer does not come.
pub(super) async fn time_limit(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout { seconds: ANSWER_TIME.as_secs() }.into_response(),
    }
}

/// Accepts until the node stops, then drains.
pub(super) async fn serve(listener: TcpListener, router: Router, mut shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = async {
            let place = place.await;
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => {
                    let connection = connection(stream, router.clone(), shutdown.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an API connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = shutdown.requested() => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("API requests were cut off");
    }
}

async fn connection(stream: TcpStream, router: Router, mut shutdown: Shutdown) {
    // Answers are small and clients wait for them.
    let _ = stream.set_nodelay(true);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = shutdown.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "API connection ended early");
    }
}
