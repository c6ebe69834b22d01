//! The front door: listeners, the public routes, and the handshake. `visitors.rs` accepts and serves them.
//!
//! Only this file, `page.rs` and `api/` know warp. It routes and answers; an upgraded connection is taken out
//! of it (`connection.rs`), because warp's own websocket type costs 137 KB per idle socket.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, HOST, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::timeout;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::addresses::{self, Visitor};
use crate::auth::{self, TokenError, TokenSource};
use crate::clock::NEVER;
use crate::close::CloseReason;
use crate::connection::{Handshake, refused};
use crate::consumer::Refusal;
use crate::node::Node;
use crate::registry::LimitReached;
use crate::scope::{Scope, User, parse_cookies};
use crate::socket::{Identity, Socket};
use crate::websocket::handshake;
use crate::{api, page};

/// Connections the kernel may hold until we accept them. A reconnect storm of thousands must not
/// overflow it: clients would wait for TCP's retries.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel holds of a socket and has not sent. It would take megabytes for a client on a slow link, and
/// nobody would see any more whether the client takes something.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// An answer of a route.
pub(crate) type Answer = Response<String>;

/// What our accept loop knows of a request and warp does not.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) peer: SocketAddr,
    pub(crate) version: Version,
    /// On the public listener.
    pub(crate) visitor: Option<Arc<Visitor>>,
}

/// Opens a listener.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking().cloexec(),
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it, which saves a call for each. Where they do not, frames only come a little later.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(crate) fn public_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    health_routes(node).or(page::routes(node)).unify().or(websocket_routes(node)).unify().boxed()
}

pub(crate) fn internal_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    health_routes(node).or(api::routes(node)).unify().or(not_found()).unify().boxed()
}

fn health_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    let (live, ready) = (with(node), with(node));
    let live = warp::path!("healthz").and(live).map(|_| json(StatusCode::OK, &serde_json::json!({"status": "ok"})));
    let ready = warp::path!("readyz").and(ready).then(|node: Arc<Node>| async move { readiness(&node).await });
    live.or(ready).unify().boxed()
}

/// Every other path: a consumer's, or 404.
fn websocket_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    warp::any()
        .and(with(node))
        .and(warp::method())
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<Arrival>())
        .then(|node, method, path: warp::path::FullPath, query, headers, upgrade, arrival| async move {
            let path = path.as_str().to_owned();
            let Some(arrival) = arrival else { return plain(StatusCode::INTERNAL_SERVER_ERROR, "") };
            Visit { node, method, path, query, headers, arrival }.handshake(upgrade).await
        })
        .boxed()
}

fn not_found() -> BoxedFilter<(Answer,)> {
    warp::any().map(|| plain(StatusCode::NOT_FOUND, "not found")).boxed()
}

pub(crate) fn with(node: &Arc<Node>) -> impl Filter<Extract = (Arc<Node>,), Error = Infallible> + Clone + use<> {
    let node = Arc::clone(node);
    warp::any().map(move || Arc::clone(&node))
}

/// The state of the parts, within half a second; 503 when one of them is missing or the node is leaving.
async fn readiness(node: &Node) -> Answer {
    let (ready, report) = node.health.report(node.is_draining()).await;
    json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &report)
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    answer(status, "application/json", value.to_string())
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

/// 503 for now.
pub(crate) fn try_later() -> Answer {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "try again later");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A request that may become a socket.
struct Visit {
    node: Arc<Node>,
    method: Method,
    /// As it was sent, still encoded.
    path: String,
    query: String,
    headers: HeaderMap,
    arrival: Arrival,
}

impl Visit {
    async fn handshake(self, upgrade: Option<OnUpgrade>) -> Answer {
        let Some((class, url_route)) = self.node.router.find(&self.path) else {
            return plain(StatusCode::NOT_FOUND, "not found");
        };
        let accept = match handshake::accept_key(&self.method, self.arrival.version, &self.headers) {
            Ok(accept) => accept,
            Err(error) => {
                let mut response = plain(error.status(), error.text());
                if error.status() == StatusCode::UPGRADE_REQUIRED {
                    response.headers_mut().insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
                    response.headers_mut().insert(http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                }
                return response;
            }
        };
        let Some(upgrade) = upgrade else { return plain(StatusCode::BAD_REQUEST, "no upgrade") };
        let subprotocols = handshake::offered_subprotocols(&self.headers);
        let v1 = subprotocols.iter().any(|entry| entry == auth::V1);
        let refuse = |refusal, reason| self.refuse(refusal, reason);
        if self.node.is_draining() {
            return refuse(Refusal::Unavailable, "draining");
        }
        if self.node.memory.is_over() {
            return refuse(Refusal::Unavailable, "memory");
        }
        if !self.is_within_rate() {
            return refuse(Refusal::Unavailable, "handshakes_per_second");
        }
        let cookies = parse_cookies(&self.headers);
        let token = auth::find_token(&self.headers, &subprotocols, &self.query, &cookies);
        if !self.origin_is_allowed(token.as_ref().map(|(_, source)| *source)) {
            return refuse(Refusal::Forbidden, "origin");
        }
        let chosen = v1.then_some(auth::V1);
        let user = match token.map(|(token, _)| self.node.auth.check(&token)) {
            Some(Ok(claims)) => User::from(claims),
            Some(Err(error @ TokenError::Name(_))) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a signed token is of no use here");
                return self.refuse_or_close(Refusal::Unauthorized, "name", v1, accept, upgrade);
            }
            Some(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
                return self.refuse_or_close(Refusal::Unauthorized, "token", v1, accept, upgrade);
            }
            None => return self.refuse_or_close(Refusal::Unauthorized, "no_token", v1, accept, upgrade),
        };
        let Some(channel_name) = self.node.hub.new_channel() else { return refuse(Refusal::Unavailable, "layer") };
        let limits = &self.node.config.limits;
        let client = self.client_address();
        let identity = Identity {
            channel_name,
            user: Arc::clone(&user.name),
            path: self.path.as_str().into(),
            v1,
            expires_at: user.expires_at.map_or(NEVER, |unix| self.node.clock.deadline(unix)),
            counted_address: (limits.connections_per_address > 0).then(|| addresses::network(client)),
        };
        let socket = Arc::new(Socket::new(identity, class, limits.outbox_bytes, self.node.clock.seconds()));
        let visitor = self.arrival.visitor.as_deref();
        match self.node.registry.add(&socket, limits, visitor) {
            Ok(()) => {}
            Err(LimitReached::Connections) => return refuse(Refusal::Unavailable, "connections"),
            Err(LimitReached::PerUser) => return refuse(Refusal::TooMany, "connections_per_user"),
            Err(LimitReached::PerAddress) => return refuse(Refusal::TooMany, "connections_per_address"),
        }
        let scope = Scope {
            path: percent_encoding::percent_decode_str(&self.path).decode_utf8_lossy().into(),
            query_string: self.query.clone(),
            client,
            subprotocols: subprotocols.into_iter().filter(|entry| !entry.starts_with("bearer.")).collect(),
            cookies,
            user,
            url_route,
            headers: self.headers.clone(),
        };
        match Handshake::connect(&self.node, socket, scope).await {
            Ok(connection) => {
                self.node.tasks.spawn(connection.serve(upgrade));
                handshake::switching_protocols(accept, chosen).map(|()| String::new())
            }
            Err(refusal) => {
                if let Some(visitor) = visitor {
                    visitor.stays();
                }
                let reason = match refusal {
                    Refusal::Unauthorized => "consumer_unauthorized",
                    Refusal::Forbidden => "consumer_forbidden",
                    Refusal::NotFound => "no_room",
                    Refusal::TooMany => "consumer_limit",
                    Refusal::Unavailable => "unavailable",
                    Refusal::Failed => "failed",
                };
                self.refuse_or_close(refusal, reason, v1, accept, upgrade)
            }
        }
    }

    /// Cookies are sent by any page's WebSocket, so whoever signs in by cookie must have an origin.
    fn origin_is_allowed(&self, token: Option<TokenSource>) -> bool {
        let mut origins = self.headers.get_all(ORIGIN).iter();
        match origins.next_back() {
            Some(origin) => {
                let own_host = self.own_host();
                origin.to_str().is_ok_and(|origin| self.node.origins.allows(origin, own_host.as_deref()))
            }
            None => token != Some(TokenSource::Cookie),
        }
    }

    fn own_host(&self) -> Option<String> {
        let forwarded = self.headers.get("x-forwarded-host").filter(|_| self.is_trusted(self.arrival.peer.ip()));
        let host = forwarded.or_else(|| self.headers.get(HOST))?.to_str().ok()?;
        host.split(',').next_back().map(|host| host.trim().to_owned())
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.node.config.trusts(address)
    }

    /// Takes one of this second's handshakes.
    fn is_within_rate(&self) -> bool {
        let rate = self.node.config.limits.handshakes_per_second;
        rate == 0 || self.node.handshakes.lock().take(1, rate, rate, Instant::now()) == 1
    }

    /// The right-most hop that is no proxy of ours.
    fn client_address(&self) -> IpAddr {
        let mut client = self.arrival.peer.ip().to_canonical();
        let forwarded: Vec<&str> = self
            .headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        for hop in forwarded.iter().rev() {
            if !self.is_trusted(client) {
                break;
            }
            match hop.trim().parse::<IpAddr>() {
                Ok(address) => client = address.to_canonical(),
                Err(_) => break,
            }
        }
        client
    }

    fn refuse(&self, refusal: Refusal, reason: &'static str) -> Answer {
        refused(&self.node, &self.path, reason);
        let (status, text) = match refusal {
            Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "not signed in"),
            Refusal::Forbidden => (StatusCode::FORBIDDEN, "not allowed"),
            Refusal::NotFound => (StatusCode::NOT_FOUND, "not found"),
            Refusal::TooMany => (StatusCode::TOO_MANY_REQUESTS, "a limit is reached"),
            Refusal::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "try again later"),
            Refusal::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        };
        let mut response = plain(status, text);
        if matches!(refusal, Refusal::Unavailable | Refusal::TooMany) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }

    /// Browsers hide the status of a failed handshake, so clients of `gateway.v1` are accepted and
    /// closed with a code they can read, where the reason is about who they are or where they want to go.
    fn refuse_or_close(
        &self,
        refusal: Refusal,
        reason: &'static str,
        v1: bool,
        accept: HeaderValue,
        upgrade: OnUpgrade,
    ) -> Answer {
        let close = match refusal {
            Refusal::Unauthorized => CloseReason::Unauthorized,
            Refusal::Forbidden => CloseReason::Forbidden,
            Refusal::NotFound => CloseReason::NotFound,
            _ => return self.refuse(refusal, reason),
        };
        if !v1 {
            return self.refuse(refusal, reason);
        }
        refused(&self.node, &self.path, reason);
        self.node.tasks.spawn(close_after_upgrade(upgrade, close));
        handshake::switching_protocols(accept, Some(auth::V1)).map(|()| String::new())
    }
}

/// Says why and hangs up.
async fn close_after_upgrade(upgrade: OnUpgrade, reason: CloseReason) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let goodbye = async {
        let mut io = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
        let frame = crate::websocket::WireFrame::close(reason.code(), &reason.text());
        io.write_all(frame.as_bytes()).await?;
        io.shutdown().await?;
        // Until the client has closed too, so that nothing resets what it has not read.
        let mut rest = [0; 256];
        while io.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whoever does not close within the time is left.
    let _ = timeout(Duration::from_secs(2), goodbye).await;
}
