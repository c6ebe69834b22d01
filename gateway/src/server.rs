//! The front door: listeners, our own accept loop round warp, the public routes, and the handshake.
//!
//! Only this file and `api.rs` know warp. It routes and answers; an upgraded connection is taken out
//! of it (`connection.rs`), because warp's own websocket type costs 137 KB per idle socket.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CACHE_CONTROL, HOST, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::auth::{self, TokenSource};
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

/// How long nothing is accepted when there are no more files for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are answered at the same time. A request costs some 25 KB until it is answered, the
/// socket that it becomes a tenth of that: of a storm, the others wait for their turn.
const AT_ONCE: usize = 512;

/// How long a connection waits for its turn. Then it goes on all the same: whoever keeps a request
/// unfinished must not keep others out.
const TURN: Duration = Duration::from_millis(500);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// An answer of a route.
pub(crate) type Answer = Response<String>;

/// What our accept loop knows of a request and warp does not.
#[derive(Clone)]
struct Arrival {
    peer: SocketAddr,
    version: Version,
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
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves browsers until `stop`, on so many connections at once.
pub(crate) async fn serve_public(node: Arc<Node>, listener: TcpListener, most: usize, stop: CancellationToken) {
    let (routes, sockets) = (public_routes(&node), node.tasks.clone());
    // Those that become a socket just now count twice, which does no harm.
    accept(node, listener, routes, |visitors| visitors + sockets.len() < most, stop).await;
}

/// Serves operators and publishers until `stop`, on so many connections at once.
pub(crate) async fn serve_internal(node: Arc<Node>, listener: TcpListener, most: usize, stop: CancellationToken) {
    let routes = health_routes(&node).or(api::routes(&node)).unify().or(not_found()).unify().boxed();
    accept(node, listener, routes, |visitors| visitors < most, stop).await;
}

fn public_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    health_routes(node).or(page::routes(node)).unify().or(websocket_routes(node)).unify().boxed()
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

/// The state of the parts; 503 when one of them is missing or the node is leaving.
async fn readiness(node: &Node) -> Answer {
    let (layer, store) = tokio::join!(node.layer.ping(), node.store.ping());
    let draining = node.is_draining();
    let ready = layer.is_ok() && store.is_ok() && !draining;
    let state = |ok: bool| if ok { "ok" } else { "unavailable" };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(
        status,
        &serde_json::json!({"ready": ready, "redis": state(layer.is_ok()), "database": state(store.is_ok()), "draining": draining}),
    )
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    answer(status, "application/json", value.to_string())
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
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
        let cookies = parse_cookies(&self.headers);
        let token = auth::find_token(&self.headers, &subprotocols, &self.query, &cookies);
        if !self.origin_is_allowed(token.as_ref().map(|(_, source)| *source)) {
            return refuse(Refusal::Forbidden, "origin");
        }
        let chosen = v1.then_some(auth::V1);
        let user = match token.map(|(token, _)| self.node.auth.check(&token)) {
            Some(Ok(claims)) => User::from(claims),
            Some(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
                return self.refuse_or_close(Refusal::Unauthorized, "token", v1, accept, upgrade);
            }
            None => return self.refuse_or_close(Refusal::Unauthorized, "no_token", v1, accept, upgrade),
        };
        let Some(channel_name) = self.node.hub.new_channel() else { return refuse(Refusal::Unavailable, "layer") };
        let path: Arc<str> = percent_encoding::percent_decode_str(&self.path).decode_utf8_lossy().into();
        let limits = &self.node.config.limits;
        let client = self.client_address();
        let identity = Identity {
            channel_name,
            user: Arc::clone(&user.name),
            path: Arc::clone(&path),
            v1,
            expires_at: user.expires_at.unwrap_or(i64::MAX),
            counted_address: (limits.connections_per_address > 0).then_some(client),
        };
        let socket = Arc::new(Socket::new(identity, class, limits.outbox_bytes, self.node.clock.seconds()));
        match self.node.registry.add(&socket, limits) {
            Ok(()) => {}
            Err(LimitReached::Connections) => return refuse(Refusal::Unavailable, "connections"),
            Err(LimitReached::PerUser) => return refuse(Refusal::TooMany, "connections_per_user"),
            Err(LimitReached::PerAddress) => return refuse(Refusal::TooMany, "connections_per_address"),
        }
        let scope = Scope {
            path,
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
        self.node.config.trusted_proxies.contains(&address.to_canonical())
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
            Refusal::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too many connections"),
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

/// Accepts until `stop`, while `may` says of so many visitors that there may be one more. Each connection gets its
/// time for the request, and no more.
async fn accept(
    node: Arc<Node>,
    listener: TcpListener,
    routes: BoxedFilter<(Answer,)>,
    may: impl Fn(usize) -> bool,
    stop: CancellationToken,
) {
    let visitors = tokio_util::task::TaskTracker::new();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let next = async || {
        while !may(visitors.len()) {
            node.metrics.accept_pauses.inc();
            tokio::time::sleep(PAUSE).await;
        }
        listener.accept().await
    };
    while let Some(accepted) = stop.run_until_cancelled(next()).await {
        match accepted {
            Ok((stream, peer)) => {
                let patience = node.config.limits.handshake;
                let visitor = Visitor { stream, peer, turns: Arc::clone(&turns), routes: routes.clone() };
                visitors.spawn(stop.clone().run_until_cancelled_owned(visitor.serve(patience)));
            }
            Err(error) => {
                // No free file descriptor, mostly: some sockets have to go first.
                node.metrics.accept_errors.inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A connection before anything is known of it.
struct Visitor {
    stream: TcpStream,
    peer: SocketAddr,
    turns: Arc<Semaphore>,
    routes: BoxedFilter<(Answer,)>,
}

impl Visitor {
    /// Waits for the first byte and for a turn, then answers. Only the answering needs much room.
    async fn serve(self, patience: Duration) {
        let patience = if patience.is_zero() { Duration::from_secs(3600) } else { patience };
        // hyper's header time-out begins with the first byte; this is for peers that never send one.
        if !matches!(timeout(patience, self.stream.readable()).await, Ok(Ok(()))) {
            return;
        }
        let turn = timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await;
        Box::pin(self.answer(patience, turn.ok().and_then(Result::ok))).await;
    }

    /// Serves HTTP; the turn ends with the first answer.
    async fn answer(self, patience: Duration, turn: Option<OwnedSemaphorePermit>) {
        let Self { stream, peer, routes, .. } = self;
        let turn = Mutex::new(turn);
        let service = warp::service(routes);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let version = request.version();
            request.extensions_mut().insert(Arrival { peer, version });
            let (mut service, turn) = (service.clone(), turn.lock().take());
            async move {
                let answer = tower_service::Service::call(&mut service, request).await;
                drop(turn);
                answer
            }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(MAX_HEAD)
            // Without it hyper keeps a second buffer ready, to hear of a client that leaves before the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(error = &error as &dyn std::error::Error, %peer, "HTTP connection ended");
        }
    }
}
