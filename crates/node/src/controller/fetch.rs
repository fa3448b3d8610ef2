//! HTTP requests of the controller: bounded in time and size, failures by kind.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::config::Secret;

/// Longest answer that is read. A load is one number and a list of weights some kilobytes.
pub(super) const MAX_BODY: usize = 1 << 20;
/// Longest excerpt of a peer's words that is kept.
const MAX_WORDS: usize = 200;

/// Why there is no answer to work with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum FetchError {
    /// Not within the time given.
    #[error("no answer within {} ms", after.as_millis())]
    Timeout {
        /// The time given.
        after: Duration,
    },
    /// No connection, or it broke.
    #[error("{0}")]
    Unreachable(String),
    /// A status other than success.
    #[error("HTTP status {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The status code.
        status: u16,
        /// The start of the body.
        message: String,
    },
    /// A longer body than any sensible answer.
    #[error("the answer is longer than {MAX_BODY} octets")]
    TooLong,
    /// Not what the API promises.
    #[error("{0}")]
    Malformed(String),
}

/// A peer's API: base URL and the right to use it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    client: Client,
    url: String,
    token: Option<Secret>,
}

impl Peer {
    /// No proxy from the environment and no redirect: what is measured and written is what the
    /// configuration names, and a token goes nowhere else.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub(super) fn new(url: &str, token: Option<Secret>) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token })
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.token {
            // The configuration admits visible ASCII only.
            Some(token) => request.bearer_auth(String::from_utf8_lossy(token.expose())),
            None => request,
        }
    }
}

/// The body of a successful answer.
pub(super) async fn body(request: RequestBuilder, timeout: Duration) -> Result<Vec<u8>, FetchError> {
    tokio::time::timeout(timeout, read(request)).await.map_err(|_| FetchError::Timeout { after: timeout })?
}

/// A successful answer of one form.
pub(super) async fn json<T: DeserializeOwned>(
    request: RequestBuilder,
    timeout: Duration,
) -> Result<T, FetchError> {
    let body = body(request, timeout).await?;
    serde_json::from_slice(&body).map_err(|e| FetchError::Malformed(e.to_string()))
}

async fn read(request: RequestBuilder) -> Result<Vec<u8>, FetchError> {
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(FetchError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    if status.is_success() {
        return Ok(body);
    }
    let message = match status {
        StatusCode::UNAUTHORIZED => "token_file is missing or names another token".to_owned(),
        _ => words(&body),
    };
    Err(FetchError::Status { status: status.as_u16(), message })
}

/// The innermost cause says what happened; the outer ones only that a request failed.
fn unreachable(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    FetchError::Unreachable(cause.to_string())
}

/// The start of what a peer says, on one line: `message` of our own refusals, `error` of Prometheus's.
pub(super) fn words(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let field = |name| json.as_ref()?.get(name)?.as_str();
    let text = field("message")
        .or_else(|| field("error"))
        .map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_short_line() {
        assert_eq!(words(br#"{"status":"error","error":"parse\nerror"}"#), "parse error");
        assert_eq!(
            words(br#"{"error":"not_found","message":"there is no service x"}"#),
            "there is no service x"
        );
        assert_eq!(words(b"oh no\r\n"), "oh no");
        assert_eq!(words(&[b'x'; 1000]).len(), 200);
        assert_eq!(words(&[0xff, 0x00]), "\u{fffd}");
    }
}
