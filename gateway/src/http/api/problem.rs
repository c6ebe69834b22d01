//! Why a call has no result, as `application/problem+json` (RFC 9457).

use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use persistence::StoreError;
use serde_json::json;

use crate::http::answers::{Answer, answer};

/// Why a call has no result.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    /// The envelope of a list that is at fault, counted from 0.
    envelope: Option<usize>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), envelope: None, header: None }
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
        Self { header: Some(header), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    pub(super) fn unauthorized(detail: &str) -> Self {
        let header = (WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"gateway\""));
        Self { header: Some(header), ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    /// The path is known, this method is not; `allowed` are.
    pub(super) fn method_not_allowed(allowed: &[&str]) -> Self {
        let header = HeaderValue::from_str(&allowed.join(", ")).ok().map(|allowed| (ALLOW, allowed));
        Self { header, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method") }
    }

    pub(super) fn in_envelope(self, envelope: Option<usize>) -> Self {
        Self { envelope, ..self }
    }

    pub(super) fn answer(self) -> Answer {
        let title = self.status.canonical_reason().unwrap_or("error");
        let mut body =
            json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        if let Some(envelope) = self.envelope {
            body["envelope"] = json!(envelope);
        }
        let mut answer = answer(self.status, "application/problem+json", body.to_string());
        answer.headers_mut().extend(self.header);
        answer
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::Invalid(detail) = error {
            return Self::bad(detail);
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "an API call failed in the database");
        if error.is_retryable() {
            Self::unavailable("the database is unavailable")
        } else {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database failed")
        }
    }
}
