//! The API on the internal listener: publishing, rooms and members, looking at users and nodes.

mod dead;
mod events;
mod rooms;
mod users;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use persistence::StoreError;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::auth;
use crate::node::Node;
use crate::pages;
use crate::server::{Answer, answer, with};

/// Bytes of a request's body: 1,000 envelopes of 64 KiB would be far more than anybody sends.
const MAX_BODY: u64 = 8 * 1024 * 1024;

/// `/metrics` and `/api/…`.
pub(crate) fn routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    let metrics = warp::path!("metrics").and(warp::get()).and(with(node)).map(|node: Arc<Node>| {
        node.metrics.take_layer_stats(&node.layer.stats());
        answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", node.metrics.encode())
    });
    let api = warp::path("api")
        .and(with(node))
        .and(warp::method())
        .and(warp::path::tail())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::body::content_length_limit(MAX_BODY).or(warp::any()).unify())
        .and(warp::body::bytes())
        .then(|node: Arc<Node>, method, tail: warp::path::Tail, query, headers: HeaderMap, body: Bytes| async move {
            let path = tail.as_str().split('/').map(decode).collect::<Option<Vec<_>>>();
            let call = Call { method, path: path.unwrap_or_default(), query, headers, body };
            match call.run(&node).await {
                Ok(value) => answer(StatusCode::OK, "application/json", value.to_string()),
                Err(problem) => problem.answer(),
            }
        });
    metrics.or(api).unify().boxed()
}

fn decode(part: &str) -> Option<String> {
    percent_encoding::percent_decode_str(part).decode_utf8().ok().map(|part| part.into_owned())
}

/// A request to the API.
struct Call {
    method: Method,
    /// Decoded segments after `/api/`.
    path: Vec<String>,
    query: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Why a call has no result, as `application/problem+json`.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    fn no_room() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such room")
    }

    fn answer(self) -> Answer {
        let title = self.status.canonical_reason().unwrap_or("error");
        let body =
            json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        answer(self.status, "application/problem+json", body.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "an API call failed in the database");
        match error {
            StoreError::Invalid(detail) => Self::bad(detail),
            error if error.is_retryable() => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database failed"),
        }
    }
}

type ApiResult = Result<Value, Problem>;

impl Call {
    async fn run(&self, node: &Arc<Node>) -> ApiResult {
        self.authorize(node)?;
        let path: Vec<&str> = self.path.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        match (self.method.as_str(), path.as_slice()) {
            ("POST", ["events"]) => events::publish(self, node).await,
            ("GET", ["rooms"]) => rooms::list(self, node).await,
            ("GET", ["rooms", room]) => rooms::show(node, room).await,
            ("PUT", ["rooms", room]) => rooms::create(self, node, room).await,
            ("DELETE", ["rooms", room]) => rooms::delete(node, room).await,
            ("GET", ["rooms", room, "history"]) => rooms::history(self, node, room).await,
            ("PUT", ["rooms", room, "members", user]) => rooms::add_member(node, room, user).await,
            ("DELETE", ["rooms", room, "members", user]) => rooms::remove_member(node, room, user).await,
            ("GET", ["users", user]) => users::show(node, user).await,
            ("GET", ["users", user, "notifications"]) => users::notifications(self, node, user).await,
            ("POST", ["users", user, "seen"]) => users::seen(self, node, user).await,
            ("GET", ["dead"]) => dead::list(node).await,
            ("GET", ["dead", id]) => dead::show(node, id).await,
            ("DELETE", ["dead", id]) | ("POST", ["dead", id, "retry"]) => dead::settle(self, node, id).await,
            ("GET", ["nodes"]) => Ok(json!({"nodes": node.peers.nodes()})),
            (_, ["events"] | ["nodes"] | ["rooms" | "users" | "dead", ..]) => {
                Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
            }
            _ => Err(Problem::new(StatusCode::NOT_FOUND, "no such path")),
        }
    }

    fn authorize(&self, node: &Node) -> Result<(), Problem> {
        let refused = |detail: &str| Err(Problem::new(StatusCode::UNAUTHORIZED, detail));
        match &node.config.api_key {
            // With --dev both listeners are on loopback.
            None if node.config.dev => Ok(()),
            None => refused("no API key is configured"),
            Some(key) => {
                let given = auth::bearer(&self.headers).unwrap_or_default();
                let equal: bool = given.as_bytes().ct_eq(key.expose_secret().as_bytes()).into();
                if equal { Ok(()) } else { refused("the API key is missing or wrong") }
            }
        }
    }

    fn json(&self) -> ApiResult {
        serde_json::from_slice(&self.body).map_err(|_| Problem::bad("the body is not JSON"))
    }

    fn query<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        crate::scope::query(&self.query, name)
            .map(|text| text.parse().map_err(|_| Problem::bad(format!("{name} has the wrong form"))))
            .transpose()
    }

    /// `before`, `after` and `limit` of a listing.
    fn range(&self) -> Result<(persistence::Range, u64), Problem> {
        use persistence::Range;
        let limit = self.query::<u64>("limit")?.unwrap_or(pages::DEFAULT_LIMIT).clamp(1, pages::MAX_LIMIT);
        let range = match (self.query("before")?, self.query("after")?) {
            (None, None) => Range::Latest,
            (Some(seq), None) => Range::Before(seq),
            (None, Some(seq)) => Range::After(seq),
            (Some(_), Some(_)) => return Err(Problem::bad("before and after exclude each other")),
        };
        Ok((range, limit))
    }
}

/// The name, if it can be one.
fn valid<'a>(what: &str, name: &'a str) -> Result<&'a str, Problem> {
    if crate::names::is_valid_name(name) { Ok(name) } else { Err(Problem::bad(format!("{what} is not a valid name"))) }
}
