//! The API on the internal listener: publishing, rooms and members, looking at users and nodes.

mod dead;
mod events;
mod keys;
mod live;
mod operations;
mod problem;
mod rooms;
pub(crate) mod session;
mod stream;
mod tail;
mod users;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, pin_mut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Value, json};
use tracing::Instrument as _;
use tracing::field::{Empty, display};
use uuid::Uuid;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::budget::{Budget, Share};
use crate::consumers::history;
use crate::http::answers::{Answer, answer};
use crate::http::server::{Arrival, with};
use crate::metrics::ByReason;
use crate::node::Node;
use crate::traces::{Parent, Span, SpanKind};
use keys::Caller;
use operations::Operation;
pub(crate) use problem::{LINES_AT_ONCE, Problem};

/// Bytes of a request's body: 1,000 envelopes of 64 KiB would be far more than anybody sends.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// How long a call waits for memory that others use. Then it is answered 503.
const TURN: Duration = Duration::from_secs(20);

/// What is made of a body takes about as much again.
const BODY_FACTOR: usize = 2;

/// How much of a refused body is read all the same, and for how long.
const MAX_DISCARDED: usize = 4 * MAX_BODY;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// What tells one call from another, in the answer and in the log; and its bytes at most.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;

/// What is served as `/api/openapi.json`.
const OPENAPI: &str = include_str!("../../../openapi.json");

/// `/metrics` and `/api/…`.
pub(crate) fn routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    let metrics = warp::path!("metrics").and(warp::get()).and(with(node)).map(|node: Arc<Node>| {
        node.metrics.take_layer_stats(&node.layer.stats());
        node.metrics.take_store_stats(&node.store.stats());
        node.metrics.count_tasks();
        answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", node.metrics.encode())
    });
    let api = warp::path("api")
        .and(with(node))
        .and(warp::method())
        .and(warp::path::tail())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Arrival>())
        .and(warp::body::stream())
        .then(
            |node: Arc<Node>,
             method,
             tail: warp::path::Tail,
             query,
             headers: HeaderMap,
             arrival: Option<Arrival>,
             body| async move {
                let peer = arrival.map(|arrival| arrival.peer);
                let body = StreamExt::fuse(body);
                pin_mut!(body);
                let waits = headers.contains_key(EXPECT);
                let request = request_id(&headers);
                let id = request.to_str().unwrap_or_default();
                let span = tracing::info_span!("api", request = id, key = Empty, trace_id = Empty);
                let serving = async {
                    let asked = Asked { method: &method, path: tail.as_str(), query, headers, peer };
                    let served = serve(&node, asked, body.as_mut()).await;
                    match &served {
                        Ok(_) => tracing::debug!("an API call is served: {method} /api/{:?}", tail.as_str()),
                        Err(problem) => problem.note(&node, &method, "/api/", tail.as_str(), peer),
                    }
                    served
                };
                let mut answer = match serving.instrument(span).await {
                    Ok(text) => answer(StatusCode::OK, "application/json", text),
                    Err(problem) => {
                        // A client that is still sending would see a broken connection instead of the answer.
                        if !waits {
                            discard(body).await;
                        }
                        problem.answer()
                    }
                };
                answer.headers_mut().insert(REQUEST_ID, request);
                answer
            },
        );
    metrics.or(api).unify().boxed()
}

/// The call's id: what the caller gives, if that can be one, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(|byte| byte.is_ascii_graphic())
    });
    given.cloned().unwrap_or_else(|| {
        let new = Uuid::now_v7().to_string();
        HeaderValue::from_str(&new).unwrap_or(HeaderValue::from_static("-"))
    })
}

type ApiResult = Result<Value, Problem>;

/// A request to the API, allowed and read.
struct Call {
    query: String,
    headers: HeaderMap,
    body: Bytes,
    span: Span,
}

/// A request to the API, as it came.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    query: String,
    headers: HeaderMap,
    peer: Option<SocketAddr>,
}

/// In this order: who asks, for what, with which body. What an operator does at `/admin/` is told with its outcome.
async fn serve(
    node: &Arc<Node>,
    asked: Asked<'_>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Result<String, Problem> {
    let Asked { method, path: text, query, headers, peer } = asked;
    let path: Option<Vec<String>> = text.split('/').map(decode).collect();
    let found = path.as_deref().map(|path| Operation::find(method.as_str(), path));
    if matches!(found, Some(Ok((Operation::Document, _)))) {
        return Ok(OPENAPI.to_owned());
    }
    let caller = keys::authorize(&headers, peer, node).await?;
    let line = tracing::Span::current();
    if let Some(key) = caller.key() {
        line.record("key", display(key));
    }
    let operator = match &caller {
        Caller::Operator(session, _) => Some((session, session::seen(&headers, peer, node).client)),
        Caller::Anybody | Caller::Key(_) => None,
    };
    let is_polled = matches!(&found, Some(Ok((operation, _))) if operation.is_polled());
    let mut to = None;
    let serving = async {
        let (operation, names) = found.ok_or_else(|| Problem::bad("the path is no percent-encoded UTF-8"))??;
        let mut span = node.traces.begin("api", SpanKind::Server, Parent::of(&headers));
        if let Some(trace) = span.trace_id() {
            line.record("trace_id", display(trace));
            let (method, route) = operation.route();
            span.rename(|| format!("{method} {route}"));
            span.set("http.request.method", || method);
            span.set("http.route", || route);
            span.set("gateway.api_key", || caller.key().map(ToString::to_string).unwrap_or_default());
        }
        let (body, _share) = match operation.takes_body() {
            true => read(node, &headers, body).await.map(|(body, share)| (body, Some(share)))?,
            false => (Bytes::new(), None),
        };
        let mut call = Call { query, headers, body, span };
        to = operator.is_some().then(|| call.recipients()).flatten();
        let answer = call.run(node, operation, &names).await;
        call.span.set("http.response.status_code", || match &answer {
            Ok(_) => 200,
            Err(problem) => i64::from(problem.status().as_u16()),
        });
        if answer.as_ref().is_err_and(|problem| problem.status().is_server_error()) {
            call.span.fail("failed");
        }
        answer
    };
    let served = serving.await;
    if let Some((session, client)) = operator.filter(|_| !is_polled) {
        let status = served.as_ref().map_or_else(Problem::status, |_| StatusCode::OK).as_u16();
        let path: String = text.chars().take(problem::LOGGED_PATH).collect();
        tracing::info!(session = session.id, %client, status, to, "an operator asked: {method} /api/{path}");
    }
    served
}

fn decode(part: &str) -> Option<String> {
    // Half of a code may stand for itself in other servers; nobody means it.
    let codes = part.split('%').skip(1);
    let is_code = |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !codes.into_iter().all(is_code) {
        return None;
    }
    percent_encoding::percent_decode_str(part).decode_utf8().ok().map(|part| part.into_owned())
}

/// The body, within its bounds.
async fn read<'a>(
    node: &'a Node,
    headers: &HeaderMap,
    mut body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Result<(Bytes, Share<'a>), Problem> {
    let too_large = || Problem::too_large(format!("a body may have {MAX_BODY} bytes"));
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let mut reserved = share(node, &node.bodies, announced.unwrap_or(MAX_BODY) * BODY_FACTOR).await?;
    let reading = async {
        let mut whole = BytesMut::with_capacity(announced.unwrap_or_default());
        while let Some(part) = body.next().await {
            let mut part = part.map_err(|_| Problem::bad("the body ended too early"))?;
            if whole.len() + part.remaining() > MAX_BODY {
                return Err(too_large());
            }
            whole.extend_from_slice(&part.copy_to_bytes(part.remaining()));
        }
        Ok(whole.freeze())
    };
    let body = tokio::time::timeout(BODY_TIME, reading)
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long"))??;
    // Also what keeps a page in somebody's browser from calling a node on their own machine: it cannot send
    // this type without asking first.
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()?.split(';').next());
    if !body.is_empty() && !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json"));
    }
    // Of a body whose length was not said, the rest is for others now.
    let used = (body.len() * BODY_FACTOR).min(reserved.num_permits());
    let share = reserved.split(used).unwrap_or(reserved);
    Ok((body, share))
}

/// Waits its turn for so many bytes, but not for ever.
async fn share<'a>(node: &Node, budget: &'a Budget, bytes: usize) -> Result<Share<'a>, Problem> {
    if let Ok(Some(share)) = tokio::time::timeout(TURN, budget.take(bytes)).await {
        return Ok(share);
    }
    node.metrics.api_refused.get_or_create(&ByReason { reason: "busy" }).inc();
    Err(Problem::unavailable("too much is being published at the same time").counted())
}

/// Reads on and forgets, within bounds.
async fn discard(mut body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin) {
    let reading = async {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(part)) = body.next().await {
            match left.checked_sub(part.remaining()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Whoever sends longer is left.
    let _ = tokio::time::timeout(DISCARD_TIME, reading).await;
}

impl Call {
    async fn run(&self, node: &Arc<Node>, operation: Operation, names: &[&str]) -> Result<String, Problem> {
        let name = |index: usize| names.get(index).copied().unwrap_or_default();
        let room = || valid("the room", name(0));
        let user = |index| valid_user(name(index));
        let value = match operation {
            // Answered before.
            Operation::Document => Ok(Value::Null),
            Operation::Publish => return events::publish(self, node).await,
            Operation::Announce => live::announce(self, node).await,
            Operation::ListRooms => rooms::list(self, node).await,
            Operation::ShowRoom => rooms::show(node, room()?).await,
            Operation::CreateRoom => rooms::create(self, node, room()?).await,
            Operation::DeleteRoom => rooms::delete(node, room()?).await,
            Operation::History => return rooms::history(self, node, room()?).await,
            Operation::Redact => rooms::redact(node, room()?, name(1)).await,
            Operation::AddMember => rooms::add_member(node, room()?, user(1)?).await,
            Operation::RemoveMember => rooms::remove_member(node, room()?, user(1)?).await,
            Operation::Online => users::online(self, node).await,
            Operation::ShowUser => users::show(node, user(0)?).await,
            Operation::Disconnect => live::disconnect(self, node, user(0)?).await,
            Operation::Erase => users::erase(self, node, user(0)?).await,
            Operation::Notifications => return users::notifications(self, node, user(0)?).await,
            Operation::Seen => users::seen(self, node, user(0)?).await,
            Operation::UserRooms => users::rooms(node, user(0)?).await,
            Operation::Nodes => nodes(node).await,
            Operation::Stream => stream::show(node).await,
            Operation::Tail => tail::show(self, node).await,
            Operation::ListDead => dead::list(self, node).await,
            Operation::ShowDead => dead::show(node, name(0)).await,
            Operation::RetryDead => dead::retry(node, name(0)).await,
            Operation::DropDead => dead::drop_one(node, name(0)).await,
        };
        Ok(value?.to_string())
    }

    /// What an envelope says of its kind and of whom it is for: for the log.
    fn recipients(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let (kind, to) = (body.get("type")?, body.get("to")?);
        Some(format!("{kind} {to}").chars().take(problem::LOGGED_PATH).collect())
    }

    fn text(&self) -> Result<&str, Problem> {
        std::str::from_utf8(&self.body).map_err(|_| not_json())
    }

    /// The body as one object.
    fn body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        lenient(self.text()?, |json| object("the body", json))
    }

    fn query<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        crate::scope::query(&self.query, name)
            .map(|text| text.parse().map_err(|_| Problem::bad(format!("{name} has the wrong form"))))
            .transpose()
    }

    /// `limit`, within 1 and `most`.
    fn limit(&self, default: u64, most: u64) -> Result<u64, Problem> {
        Ok(self.query("limit")?.unwrap_or(default).clamp(1, most))
    }

    /// `before`, `after` and `limit` of a listing.
    fn range(&self) -> Result<(persistence::Range, u64), Problem> {
        let limit = self.limit(history::DEFAULT_LIMIT, history::MAX_LIMIT)?;
        Ok((persistence::Range::of(self.query("after")?, self.query("before")?), limit))
    }
}

async fn nodes(node: &Node) -> ApiResult {
    let states = node.peers.states().await;
    let names: Vec<&str> = states.iter().map(|state| state.node.as_str()).collect();
    Ok(json!({"nodes": names, "states": states, "workers": node.bridges.workers()}))
}

fn object<'a, T: Deserialize<'a>>(what: &str, json: &'a str) -> Result<T, Problem> {
    let malformed = |error: serde_json::Error| match error.classify() {
        Category::Data => Problem::bad(format!("{what} is malformed: {error}")),
        _ => not_json(),
    };
    // A derived reader would take a list of the fields' values as well.
    if !json.trim_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(json).map_err(malformed)?;
        return Err(Problem::bad(format!("{what} is not a JSON object")));
    }
    serde_json::from_str(json).map_err(malformed)
}

/// Reads JSON strictly, and as browsers and Python write it where that does not work.
fn lenient<T>(json: &str, read: impl Fn(&str) -> Result<T, Problem>) -> Result<T, Problem> {
    let strict = read(json);
    let is_odd = strict.as_ref().is_err_and(|problem| problem.is(NOT_JSON));
    match is_odd.then(|| crate::json::mended_short(json)).flatten() {
        Some(mended) => read(&mended),
        None => strict,
    }
}

const NOT_JSON: &str = "the body is not JSON";

/// An answer with something in it that is passed on as it came.
fn text(answer: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string(answer).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "an answer could not be written");
        Problem::unavailable("the answer could not be written")
    })
}

fn not_json() -> Problem {
    Problem::bad(NOT_JSON)
}

/// The name, if it can be a user's.
fn valid_user(name: &str) -> Result<&str, Problem> {
    match crate::names::is_user_name(name) {
        true => Ok(name),
        false => Err(Problem::bad("the user is not a valid name")),
    }
}

/// The name, if it can be one.
fn valid<'a>(what: &str, name: &'a str) -> Result<&'a str, Problem> {
    if crate::names::is_valid_name(name) { Ok(name) } else { Err(Problem::bad(format!("{what} is not a valid name"))) }
}
