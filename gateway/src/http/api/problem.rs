//! Why a call has no result, as `application/problem+json` (RFC 9457).

use std::net::SocketAddr;
use std::time::Instant;

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use persistence::StoreError;
use serde_json::json;

use crate::http::answers::{Answer, answer};
use crate::metrics::ByReason;
use crate::node::Node;

/// Lines of refused calls: in a second, and at once.
const LINES_PER_SECOND: u32 = 20;
pub(crate) const LINES_AT_ONCE: u32 = 100;

/// Characters of a path that are written to the log.
pub(super) const LOGGED_PATH: usize = 256;

/// Why a call has no result.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    /// The envelope of a list that is at fault, counted from 0.
    envelope: Option<usize>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// For the log only.
    cause: String,
    /// It is counted under another reason than its status.
    is_counted: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), envelope: None, header: None, cause: String::new(), is_counted: false }
    }

    pub(super) fn is(&self, detail: &str) -> bool {
        self.detail == detail
    }

    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn no_room() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such room")
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        let header = (RETRY_AFTER, HeaderValue::from_static("1"));
        Self { header: Some(Box::new(header)), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    pub(super) fn unauthorized(detail: &str) -> Self {
        let header = (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"gateway\""));
        Self { header: Some(Box::new(header)), ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    /// The path is known, this method is not; `allowed` are.
    pub(super) fn method_not_allowed(allowed: &[&str]) -> Self {
        let header = HeaderValue::from_str(&allowed.join(", ")).ok().map(|allowed| Box::new((ALLOW, allowed)));
        Self { header, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method") }
    }

    pub(super) fn in_envelope(self, envelope: Option<usize>) -> Self {
        Self { envelope, ..self }
    }

    /// With what the log is to say of it, and the caller is not.
    pub(super) fn because(self, error: &dyn std::error::Error) -> Self {
        let (mut cause, mut next) = (error.to_string(), error.source());
        while let Some(error) = next {
            cause = format!("{cause}: {error}");
            next = error.source();
        }
        Self { cause, ..self }
    }

    pub(super) fn counted(self) -> Self {
        Self { is_counted: true, ..self }
    }

    /// Counts a refused call and writes it to the log, as often as there is room there.
    pub(super) fn note(&self, node: &Node, method: &Method, below: &str, path: &str, peer: Option<SocketAddr>) {
        let reason = match self.status.as_u16() {
            404 => "not_found",
            405 => "method",
            408 => "slow",
            413 => "too_large",
            415 => "media_type",
            422 => "reused",
            503 => "unavailable",
            500.. => "failed",
            _ => "malformed",
        };
        if !self.is_counted {
            node.metrics.api_refused.get_or_create(&ByReason { reason }).inc();
        }
        let now = Instant::now();
        if node.refusals.lock().take(1, LINES_PER_SECOND, LINES_AT_ONCE, now) == 0 {
            return;
        }
        let Self { status, detail, cause, envelope, .. } = self;
        let (status, peer) = (status.as_u16(), peer.map(tracing::field::display));
        let path: String = path.chars().take(LOGGED_PATH).collect();
        tracing::info!(status, envelope, detail, cause, peer, "an API call was refused: {method} {below}{path:?}");
    }

    /// The answer to what was refused outside the API; counted and logged as there.
    pub(crate) fn refused(self, node: &Node, method: &Method, path: &str, peer: Option<SocketAddr>) -> Answer {
        self.note(node, method, "/admin/", path, peer);
        self.answer()
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn answer(self) -> Answer {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut body =
            json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        if let Some(envelope) = self.envelope {
            body["envelope"] = json!(envelope);
        }
        let mut answer = answer(self.status, "application/problem+json", body.to_string());
        answer.headers_mut().extend(self.header.map(|header| *header));
        answer
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::Invalid(detail) = error {
            return Self::bad(detail);
        }
        let problem = if error.is_retryable() {
            Self::unavailable("the database is unavailable")
        } else {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database failed")
        };
        problem.because(&error)
    }
}
