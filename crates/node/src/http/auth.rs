//! Who may ask.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::{ApiError, OPEN};
use crate::config::Secret;

/// Lets through what is open, and what carries the token. Unknown paths need it too: a stranger learns nothing.
pub(super) async fn require_token(
    State(token): State<Arc<Option<Secret>>>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = match token.as_ref() {
        None => true,
        Some(_) if OPEN.contains(&request.uri().path()) => true,
        Some(token) => bearer(request.headers()).is_some_and(|given| token.matches(given)),
    };
    if allowed { next.run(request).await } else { ApiError::Unauthorized.into_response() }
}

/// The credentials of `Authorization: Bearer …`; the scheme's case does not matter (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, credentials) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| credentials.trim_ascii())
}
