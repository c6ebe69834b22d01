//! Connections until they are answered or have become sockets: the accept loop, and our own HTTP server round warp.
//!
//! A visitor has not said who it is, so it gets little: one request, `limits.handshake_seconds` for all of it, and no
//! memory to speak of before the request is complete.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use warp::filters::BoxedFilter;
use warp::reply::Reply;

use crate::consumers::routing::Router;
use crate::http::answers::{Answer, plain, try_later};
use crate::http::head::{Head, MAX_HEAD};
use crate::http::server::{Arrival, internal_routes, public_routes};
use crate::metrics::ByReason;
use crate::node::Node;
use crate::origin::split_port;
use crate::seldom::Seldom;
use crate::socket::addresses::Visitor;

/// How long nothing is accepted when there are no more files for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are answered at the same time. A request costs some 25 KB until it is answered, the
/// socket that it becomes a tenth of that: of a storm, the others wait for their turn.
const AT_ONCE: usize = 512;

/// How long a complete request waits for its turn. Then it goes on all the same: what hangs, the database for
/// example, must not keep others out.
const TURN: Duration = Duration::from_millis(500);

/// How long an answer given at the last moment may take to be written.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Serves browsers until `stop`, on so many connections at once, sockets included.
pub(crate) async fn serve_public(
    node: Arc<Node>,
    router: Arc<Router>,
    listener: TcpListener,
    most: usize,
    stop: CancellationToken,
) {
    Arc::new(Entrance::new(public_routes(&node, &router), true, most, node)).accept(listener, stop).await;
}

/// Serves operators and publishers until `stop`, on so many connections at once.
pub(crate) async fn serve_internal(node: Arc<Node>, listener: TcpListener, most: usize, stop: CancellationToken) {
    Arc::new(Entrance::new(internal_routes(&node), false, most, node)).accept(listener, stop).await;
}

/// The same connection, to be looked at beside who serves it.
fn once_more(stream: &TcpStream) -> std::io::Result<TcpStream> {
    TcpStream::from_std(socket2::SockRef::from(stream).try_clone()?.into())
}

/// Counts a connection that is given up before it has become a socket.
fn reject(node: &Node, reason: &'static str) {
    node.metrics.handshakes_rejected.get_or_create(&ByReason { reason }).inc();
}

fn displaced(node: &Node) {
    static LINE: Seldom = Seldom::new();
    reject(node, "displaced");
    if let Some(times) = LINE.again() {
        tracing::warn!(
            times,
            "all places are taken, many by connections that do not finish a request or take its answer: the oldest \
             of them are closed. More open files make more places; limits.connections_per_address bounds who takes them"
        );
    }
}

/// A listener, and what its connections share.
struct Entrance {
    node: Arc<Node>,
    routes: BoxedFilter<(Answer,)>,
    is_public: bool,
    most: usize,
    connections: TaskTracker,
    turns: Arc<Semaphore>,
}

/// A connection whose first request is complete.
struct Caller<'a> {
    entrance: &'a Entrance,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    /// On the public listener, with the moment by which the answer must be there.
    visitor: Option<(&'a Arc<Visitor>, Instant)>,
    has_bare_lf: bool,
    /// Of a request that may take long to be answered: what it came on.
    connection: Option<Arc<TcpStream>>,
    /// Ends with the first answer.
    turn: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Entrance {
    fn new(routes: BoxedFilter<(Answer,)>, is_public: bool, most: usize, node: Arc<Node>) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { node, routes, is_public, most, connections: TaskTracker::new(), turns }
    }

    /// Accepts until `stop`, whenever there is a place.
    async fn accept(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(self.next(&listener)).await {
            match accepted {
                Ok((stream, peer)) if self.is_public => self.welcome(stream, peer, &stop),
                Ok((stream, peer)) => {
                    // There is no deadline for a whole visit here, but who takes no answer is given up.
                    #[cfg(target_os = "linux")]
                    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(self.patience()));
                    let entrance = Arc::clone(&self);
                    let serve = async move { entrance.serve_many(stream, peer).await };
                    self.connections.spawn(stop.clone().run_until_cancelled_owned(serve));
                }
                Err(error) => {
                    // No free file descriptor, mostly: some sockets have to go first.
                    self.node.metrics.accept_errors.inc();
                    tracing::warn!(error = &error as &dyn std::error::Error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The next connection, once there is a place for it; if need be, one is made. Not before it has come: nobody goes
    /// for nothing.
    async fn next(&self, listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
        let accepted = listener.accept().await?;
        let addresses = &self.node.registry.addresses;
        while self.is_full() {
            if self.is_public && addresses.displace(Instant::now().into_std()) {
                displaced(&self.node);
                // It goes at once; if not, another one has to.
                let _ = timeout(PAUSE, addresses.gone()).await;
            } else {
                self.node.metrics.accept_pauses.inc();
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(accepted)
    }

    fn is_full(&self) -> bool {
        let here = match self.is_public {
            // Those that become a socket just now count twice, which does no harm.
            true => self.node.registry.addresses.visitors() + self.node.tasks.len(),
            false => self.connections.len(),
        };
        here >= self.most
    }

    /// Serves a visitor until somebody else is to have its place.
    fn welcome(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, stop: &CancellationToken) {
        let config = &self.node.config;
        let (is_proxy, limit) = (config.trusts(peer.ip()), config.limits.connections_per_address);
        let Some(visitor) = self.node.registry.addresses.arrive(peer.ip(), is_proxy, limit, Instant::now().into_std())
        else {
            return reject(&self.node, "connections_per_address");
        };
        let (entrance, stop) = (Arc::clone(self), stop.clone());
        self.connections.spawn(async move {
            let visitor = Arc::new(visitor);
            tokio::select! {
                () = entrance.serve_one(stream, peer, &visitor) => {}
                () = visitor.displaced() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Answers one request, if it comes and its answer is taken in time.
    async fn serve_one(&self, stream: TcpStream, peer: SocketAddr, visitor: &Arc<Visitor>) {
        let deadline = Instant::now() + self.patience();
        let Some(head) = self.head(&stream, deadline).await else { return };
        visitor.waits(false);
        let served = Box::pin(self.serve(stream, peer, head, Some((visitor, deadline))));
        if timeout_at(deadline + LAST_ANSWER, served).await.is_err() {
            reject(&self.node, "too_slow");
        }
    }

    /// Answers requests for as long as they come.
    async fn serve_many(&self, stream: TcpStream, peer: SocketAddr) {
        if let Some(head) = self.head(&stream, Instant::now() + self.patience()).await {
            Box::pin(self.serve(stream, peer, head, None)).await;
        }
    }

    fn patience(&self) -> Duration {
        match self.node.config.limits.handshake {
            Duration::ZERO => Duration::from_secs(3600),
            patience => patience,
        }
    }

    /// Waits for the first request. While it is incomplete it costs its bytes and nothing else.
    async fn head(&self, stream: &TcpStream, deadline: Instant) -> Option<Head> {
        match timeout_at(deadline, Head::read(stream)).await {
            Ok(head) => head.ok(),
            Err(_) => {
                reject(&self.node, "too_slow");
                None
            }
        }
    }

    /// Waits for a turn. Questions about health are answered at once, whatever hangs.
    async fn turn(&self, head: &Head) -> Option<OwnedSemaphorePermit> {
        if head.is_about_health() {
            return None;
        }
        timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await.ok()?.ok()
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, head: Head, visitor: Option<(&Arc<Visitor>, Instant)>) {
        let turn = Mutex::new(self.turn(&head).await);
        let local = stream.local_addr().ok();
        // hyper does not tell of a client that leaves before the answer, see below.
        let is_bridged = visitor.is_some() && head.path().is_some_and(|path| self.node.bridges.find(path).is_some());
        let connection = is_bridged.then(|| once_more(&stream)).and_then(Result::ok).map(Arc::new);
        let has_bare_lf = head.has_bare_lf;
        let caller = Caller { entrance: self, peer, local, visitor, has_bare_lf, connection, turn };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience())
            .max_buf_size(MAX_HEAD)
            // Without it hyper keeps a second buffer ready, to hear of a client that leaves before the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(head.before(stream)), service_fn(|request| caller.answer(request)))
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(error = &error as &dyn std::error::Error, %peer, "HTTP connection ended");
        }
    }
}

impl Caller<'_> {
    async fn answer(&self, request: Request<Incoming>) -> Result<warp::reply::Response, Infallible> {
        let turn = self.turn.lock().take();
        let mut answer = match self.objection(&request) {
            Some((status, reason, text)) => {
                reject(&self.entrance.node, reason);
                plain(status, text).into_response()
            }
            None => self.route(request).await?,
        };
        drop(turn);
        if let Some((visitor, _)) = self.visitor
            && answer.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            // What follows would be another visit. And now it is the peer's turn.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            visitor.waits(true);
        }
        Ok(answer)
    }

    async fn route(&self, mut request: Request<Incoming>) -> Result<warp::reply::Response, Infallible> {
        let visitor = self.visitor.map(|(visitor, _)| Arc::clone(visitor));
        let deadline = self.visitor.map(|(_, deadline)| deadline);
        let (version, connection) = (request.version(), self.connection.clone());
        let arrival = Arrival { peer: self.peer, local: self.local, deadline, version, visitor, connection };
        request.extensions_mut().insert(arrival);
        let answer = warp::service(self.entrance.routes.clone()).call(request);
        match self.visitor {
            None => answer.await,
            Some((_, deadline)) => timeout_at(deadline, answer).await.unwrap_or_else(|_| {
                static LINE: Seldom = Seldom::new();
                reject(&self.entrance.node, "too_slow");
                if let Some(times) = LINE.again() {
                    tracing::warn!(times, "requests were not answered within limits.handshake_seconds, but with 503");
                }
                Ok(try_later().into_response())
            }),
        }
    }

    /// What is wrong with a request, whatever it asks for.
    fn objection(&self, request: &Request<Incoming>) -> Option<(StatusCode, &'static str, &'static str)> {
        if self.has_bare_lf && self.visitor.is_some() {
            return Some((StatusCode::BAD_REQUEST, "malformed", "a line must end in CR LF"));
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        let (host, another) = (hosts.next(), hosts.next());
        if another.is_some() || (host.is_none() && request.version() != Version::HTTP_10) {
            return Some((StatusCode::BAD_REQUEST, "malformed", "exactly one Host is needed"));
        }
        if self.entrance.node.config.dev && !host.is_some_and(is_loopback) {
            static LINE: Seldom = Seldom::new();
            let text = "with --dev only localhost is answered, by that name or as 127.0.0.1 or [::1]";
            if LINE.again().is_some() {
                tracing::warn!(?host, "{text}");
            }
            return Some((StatusCode::FORBIDDEN, "host", text));
        }
        None
    }
}

/// Whether a `Host` can only mean this machine. A page whose own name was made to point here must not get in.
fn is_loopback(host: &HeaderValue) -> bool {
    let Some((host, _)) = host.to_str().ok().and_then(split_port) else { return false };
    let name = host.to_ascii_lowercase();
    name == "localhost"
        || name.strip_suffix(".localhost").is_some_and(|label| !label.is_empty())
        || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        || name == "[::1]"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST:8000", "app.localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:80", "[::1]"]
        {
            assert!(is_loopback(&HeaderValue::from_static(host)), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "notlocalhost",
            ".localhost",
            "128.0.0.1",
            "[::2]",
            "::1",
            "localhost:x",
            "localhost@example.com",
            "0.0.0.0:8000",
        ] {
            assert!(!is_loopback(&HeaderValue::from_static(host)), "{host}");
        }
    }
}
