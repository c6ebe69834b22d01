//! The listeners and their routes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::consumers::routing::Router;
use crate::http::answers::{Answer, json, plain};
use crate::http::visit::Visit;
use crate::http::{admin, api, bridged, demo};
use crate::node::Node;
use crate::proxies;
use crate::socket::addresses::Visitor;

/// Connections the kernel may hold until we accept them. A reconnect storm of thousands must not
/// overflow it: clients would wait for TCP's retries.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel holds of a socket and has not sent. It would take megabytes for a client on a slow link, and
/// nobody would see any more whether the client takes something.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// What our accept loop knows of a request and warp does not.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) peer: SocketAddr,
    /// The address that it came to.
    pub(crate) local: Option<SocketAddr>,
    /// When it has to be answered, on the public listener.
    pub(crate) deadline: Option<Instant>,
    pub(crate) version: Version,
    /// On the public listener.
    pub(crate) visitor: Option<Arc<Visitor>>,
    /// The connection itself, where somebody looks whether the client is still there.
    pub(crate) connection: Option<Arc<TcpStream>>,
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

pub(crate) fn public_routes(node: &Arc<Node>, router: &Arc<Router>) -> BoxedFilter<(Answer,)> {
    let all = health_routes(node).or(demo::routes(node)).unify().or(websocket_routes(node, router)).unify().boxed();
    if node.bridges.is_empty() { all } else { bridged_routes(node, router).or(all).unify().boxed() }
}

pub(crate) fn internal_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    health_routes(node).or(api::routes(node)).unify().or(admin::routes(node)).unify().or(not_found()).unify().boxed()
}

fn health_routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    let (live, ready) = (with(node), with(node));
    let live = warp::path!("healthz").and(live).map(|_| json(StatusCode::OK, &serde_json::json!({"status": "ok"})));
    let ready = warp::path!("readyz").and(ready).then(|node: Arc<Node>| async move { readiness(&node).await });
    live.or(ready).unify().boxed()
}

/// WebSockets of the site's own consumers, which go before all else. Plain requests stay the node's.
fn bridged_routes(node: &Arc<Node>, router: &Arc<Router>) -> BoxedFilter<(Answer,)> {
    let own = with(node);
    let is_bridged = own.and(warp::path::full()).and(warp::header::headers_cloned()).and_then(
        |node: Arc<Node>, path: warp::path::FullPath, headers: HeaderMap| async move {
            match bridged::wants_websocket(&headers) && node.bridges.find(path.as_str()).is_some() {
                true => Ok(()),
                false => Err(warp::reject::not_found()),
            }
        },
    );
    is_bridged.untuple_one().and(websocket_routes(node, router)).boxed()
}

/// Every other path: a consumer's, or 404.
fn websocket_routes(node: &Arc<Node>, router: &Arc<Router>) -> BoxedFilter<(Answer,)> {
    warp::any()
        .and(with(node))
        .and(with(router))
        .and(warp::method())
        .and(warp::path::full())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<Arrival>())
        .then(
            |node: Arc<Node>,
             router,
             method,
             path: warp::path::FullPath,
             query,
             headers,
             upgrade,
             arrival: Option<Arrival>| async move {
                let path = path.as_str().to_owned();
                let Some(arrival) = arrival else { return plain(StatusCode::INTERNAL_SERVER_ERROR, "") };
                let seen = proxies::see(&headers, arrival.peer.ip(), |address| node.config.trusts(address));
                let span = Mutex::default();
                Visit { node, router, method, path, query, headers, arrival, seen, span }.handshake(upgrade).await
            },
        )
        .boxed()
}

fn not_found() -> BoxedFilter<(Answer,)> {
    warp::any().map(|| plain(StatusCode::NOT_FOUND, "not found")).boxed()
}

pub(crate) fn with<T: Send + Sync>(
    shared: &Arc<T>,
) -> impl Filter<Extract = (Arc<T>,), Error = Infallible> + Clone + use<T> {
    let shared = Arc::clone(shared);
    warp::any().map(move || Arc::clone(&shared))
}

/// The state of the parts, within half a second; 503 when one of them is missing or the node is leaving.
async fn readiness(node: &Node) -> Answer {
    if !node.bridges.is_empty() {
        node.health.note_part("bridge_workers", node.bridges.have_workers(), false);
    }
    let (ready, report) = node.health.report(node.is_draining()).await;
    json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &report)
}
