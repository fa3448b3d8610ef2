//! Every way to be refused, and the one place that turns it into an answer.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a request is refused. The text is for the one who asked and tells nothing about anybody else.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No token, or another one.
    #[error("needs the header `Authorization: Bearer TOKEN` with the token of http.token_file")]
    Unauthorized,
    /// No such path, or nothing by that name.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The path exists, the method does not.
    #[error("the path does not take this method")]
    MethodNotAllowed,
    /// A field of the body or a parameter has no meaning.
    #[error("{message}")]
    InvalidField {
        /// Path of the field, e.g. `locators[0].rloc`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A document has mistakes, all of which are told.
    #[error("{}", told(.problems))]
    Invalid {
        /// At least one.
        problems: Vec<ProblemBody>,
    },
    /// The change was made for another state than there is.
    #[error("{message}")]
    Conflict {
        /// What was changed meanwhile.
        message: String,
    },
    /// What is to be made is there.
    #[error("{message}")]
    AlreadyExists {
        /// What it is.
        message: String,
    },
    /// The body is no JSON at all.
    #[error("{message}")]
    InvalidBody {
        /// What is wrong with it.
        message: String,
    },
    /// The body says that it is something else than JSON.
    #[error("expected the header `Content-Type: application/json`")]
    UnsupportedMediaType,
    /// The body is too long.
    #[error("the body is longer than {limit} octets")]
    BodyTooLarge {
        /// Longest body.
        limit: usize,
    },
    /// The request makes sense and cannot be carried out as things are.
    #[error("{message}")]
    Refused {
        /// Path of the field it is about.
        field: Option<String>,
        /// Why not.
        message: String,
    },
    /// The answer took too long.
    #[error("no answer within {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// The role cannot answer now.
    #[error("{message}")]
    Unavailable {
        /// Why.
        message: String,
    },
}

/// The body of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// Kind of the refusal, also the label of the metric.
    pub error: String,
    /// What it is about, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For people.
    pub message: String,
    /// Everything that is wrong with a document, the first of it in `field` and `message` too; left out where there is
    /// no more than these say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemBody>,
}

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    /// Path of the field, e.g. `backends[0].address`; empty for the document as a whole.
    pub field: String,
    /// What is wrong with it and what to do.
    pub message: String,
}

/// Marks an answer for the counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal(pub(super) &'static str);

impl ApiError {
    /// Nothing at a path or by a name.
    #[must_use]
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// A field without meaning.
    #[must_use]
    pub fn field(field: impl Into<String>, message: impl ToString) -> Self {
        Self::InvalidField { field: field.into(), message: message.to_string() }
    }

    /// Kind of the refusal.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.row().1
    }

    const fn row(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Conflict { .. } => (StatusCode::CONFLICT, "conflict"),
            Self::AlreadyExists { .. } => (StatusCode::CONFLICT, "already_exists"),
            Self::InvalidField { .. } | Self::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid_field"),
            Self::InvalidBody { .. } => (StatusCode::BAD_REQUEST, "invalid_body"),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
            Self::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }

    fn at(&self) -> Option<String> {
        match self {
            Self::InvalidField { field, .. } => Some(field.clone()),
            Self::Refused { field, .. } => field.clone(),
            Self::Invalid { problems } => problems.first().map(|problem| problem.field.clone()),
            _ => None,
        }
    }

    fn problems(&self) -> Vec<ProblemBody> {
        match self {
            Self::Invalid { problems } => problems.clone(),
            _ => Vec::new(),
        }
    }
}

/// The first of several problems.
fn told(problems: &[ProblemBody]) -> String {
    let first = problems.first().map_or("the document is wrong", |problem| &problem.message);
    match problems.len() {
        0 | 1 => first.to_owned(),
        count => format!("{first} ({count} problems)"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind) = self.row();
        let body = ErrorBody {
            error: kind.to_owned(),
            field: self.at(),
            message: self.to_string(),
            problems: self.problems(),
        };
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(Refusal(kind));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1: a 401 names the scheme.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
