//! One request from its head to its 101: who is it, from where, and is there a place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{FORWARDED, HOST, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::auth::recheck::Recheck;
use crate::auth::{self, NotSignedIn, SignedIn};
use crate::clock::NEVER;
use crate::close::CloseReason;
use crate::consumers::connection::{FoundOrigin, Handshake, refused, refused_origin};
use crate::consumers::framework::Refusal;
use crate::consumers::routing::Router;
use crate::http::answers::{Answer, plain};
use crate::http::bridged::wants_websocket;
use crate::http::server::Arrival;
use crate::lines::{self, About, Of};
use crate::node::Node;
use crate::proxies::Seen;
use crate::scope::{Access, Scope, parse_cookies};
use crate::socket::addresses;
use crate::socket::registry::LimitReached;
use crate::socket::{Identity, Socket};
use crate::traces::{Parent, Span, SpanKind, TraceId, is_traceparent};
use crate::websocket::handshake;

/// A request that may become a socket.
pub(crate) struct Visit {
    pub(crate) node: Arc<Node>,
    /// Which consumer a path is for.
    pub(crate) router: Arc<Router>,
    pub(crate) method: Method,
    /// As it was sent, still encoded.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) arrival: Arrival,
    /// As it looks from outside.
    pub(crate) seen: Seen,
    /// From the request to its answer. Whoever refuses it notes why.
    pub(crate) span: Mutex<Span>,
}

impl Visit {
    pub(crate) async fn handshake(mut self, upgrade: Option<OnUpgrade>) -> Answer {
        if wants_websocket(&self.headers) {
            let mut span = self.node.traces.begin("connect", SpanKind::Server, Parent::of(&self.headers));
            span.set("url.path", || self.path.clone());
            span.set("client.address", || self.seen.client.to_string());
            self.span = Mutex::new(span);
        }
        let answer = lines::of(Of { about: None, trace: self.trace_id() }, self.decide(upgrade)).await;
        let (mut span, status) = (self.span.into_inner(), answer.status());
        span.set("http.response.status_code", || i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail("refused");
        }
        answer
    }

    /// For the lines of the log.
    pub(crate) fn trace_id(&self) -> Option<Box<TraceId>> {
        self.span.lock().trace_id().map(Box::new)
    }

    /// Begins a part of the handshake.
    pub(crate) fn part(&self, name: &'static str, kind: SpanKind) -> Span {
        self.span.lock().child(name, kind)
    }

    async fn decide(&self, upgrade: Option<OnUpgrade>) -> Answer {
        if let Some(bridge) = self.node.bridges.find(&self.path) {
            return Box::pin(self.bridged(bridge, upgrade)).await;
        }
        let Some((class, url_route)) = self.router.find(&self.path) else {
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
        // Who offers a token among them speaks the protocol, also without its name.
        let v1 = subprotocols.iter().any(|entry| entry == auth::V1 || entry.starts_with("bearer."));
        let refuse = |refusal, reason| self.refuse(refusal, reason);
        if let Some(refusal) = self.overload() {
            return refusal;
        }
        let cookies = parse_cookies(&self.headers);
        if !self.origin_is_allowed() {
            return self.refuse_origin();
        }
        let chosen = v1.then_some(auth::V1);
        let client = self.seen.client;
        let credentials = self.credentials(&subprotocols, &cookies);
        let SignedIn { user, proof, ends } = match self.sign_in(&credentials).await {
            Ok(signed_in) if signed_in.user.access == Access::Full || class.takes_anonymous => signed_in,
            Ok(_) => return self.refuse_or_close(Refusal::Unauthorized, "anonymous", v1, accept, upgrade),
            Err(NotSignedIn::CookieWithoutOrigin) => return self.refuse_origin(),
            Err(NotSignedIn::Unavailable(reason)) => return refuse(Refusal::Unavailable, reason),
            Err(NotSignedIn::Nobody(reason)) => {
                return self.refuse_or_close(Refusal::Unauthorized, reason, v1, accept, upgrade);
            }
            Err(NotSignedIn::Forbidden(reason)) => {
                return self.refuse_or_close(Refusal::Forbidden, reason, v1, accept, upgrade);
            }
        };
        let Some(channel_name) = self.node.hub.new_channel() else { return refuse(Refusal::Unavailable, "layer") };
        let limits = &self.node.config.limits;
        let identity = Identity {
            channel_name,
            user: Arc::clone(&user.name),
            path: self.path.as_str().into(),
            v1,
            access: user.access,
            expires_at: user.expires_at.map_or(NEVER, |unix| self.node.clock.deadline(unix)),
            recheck: proof.map(|proof| Box::new(Recheck::new(proof, ends, self.node.recheck(), &self.node.clock))),
            counted_address: (limits.connections_per_address > 0).then(|| addresses::network(client)),
        };
        let socket =
            Arc::new(Socket::new(identity, Arc::clone(&class.table), limits.outbox_bytes, self.node.clock.seconds()));
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
        self.note_socket(&socket);
        let connecting = self.part("consumer_connect", SpanKind::Internal);
        let of = || Of { about: Some(Arc::clone(&socket) as Arc<dyn About>), trace: self.trace_id() };
        let connected = lines::of(of(), Handshake::connect(&self.node, &class, Arc::clone(&socket), scope)).await;
        drop(connecting);
        match connected {
            Ok(connection) => {
                self.node.tasks.spawn(lines::of(of(), connection.serve(upgrade)));
                handshake::switching_protocols(accept, chosen).map(|()| Bytes::new())
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

    /// Who it is, with a span of its own: the site may be asked.
    pub(crate) async fn sign_in(&self, credentials: &auth::Request<'_>) -> Result<SignedIn, NotSignedIn> {
        let mut span = self.part("sign_in", SpanKind::Internal);
        let own = span.traceparent();
        // Of a trace that is not kept here, as it came.
        let given = || Parent::of(&self.headers).traceparent.filter(|trace| is_traceparent(trace));
        let traceparent = own.as_deref().or_else(|| if self.node.traces.are_on() { given() } else { None });
        let signed_in = self.node.sign_in.sign_in(&auth::Request { traceparent, ..*credentials }).await;
        match &signed_in {
            Ok(signed_in) => span.set("gateway.signed_in_by", || format!("{:?}", signed_in.user.by).to_lowercase()),
            Err(NotSignedIn::Unavailable(why)) => span.fail(why),
            Err(_) => {}
        }
        signed_in
    }

    /// What the trace is to show of a socket.
    pub(crate) fn note_socket(&self, socket: &Socket) {
        let mut span = self.span.lock();
        span.set("gateway.channel", || socket.channel_name.to_string());
        span.set("user.name", || socket.user.to_string());
    }

    /// What is said where there is no room for anybody.
    pub(crate) fn overload(&self) -> Option<Answer> {
        let refuse = |reason| Some(self.refuse(Refusal::Unavailable, reason));
        if self.node.is_draining() {
            return refuse("draining");
        }
        if self.node.memory.is_over() {
            return refuse("memory");
        }
        if self.is_within_rate() { None } else { refuse("handshakes_per_second") }
    }

    /// What it shows of who it is.
    pub(crate) fn credentials<'a>(
        &'a self,
        subprotocols: &'a [String],
        cookies: &'a [(String, String)],
    ) -> auth::Request<'a> {
        auth::Request {
            headers: &self.headers,
            subprotocols,
            query_string: &self.query,
            cookies,
            path: &self.path,
            client: self.seen.client,
            own_host: self.seen.host.as_deref(),
            scheme: self.scheme(),
            traceparent: None,
        }
    }

    /// Whether a page of this origin may connect; who is no browser has none.
    pub(crate) fn origin_is_allowed(&self) -> bool {
        let Some(origin) = self.headers.get_all(ORIGIN).iter().next_back() else { return true };
        let own_host = self.seen.host.as_deref();
        origin.to_str().is_ok_and(|origin| self.node.config.allowed_origins.allows(origin, own_host))
    }

    pub(crate) fn refuse_origin(&self) -> Answer {
        let forwarded_host = self.headers.get("x-forwarded-host").or_else(|| self.headers.get(FORWARDED));
        let origin = self.headers.get_all(ORIGIN).iter().next_back();
        let change = match origin {
            None => "a cookie counts only from a page: a program signs in with a token, and sends no cookie",
            Some(origin) if origin.as_bytes() == b"null" => {
                "a page without an origin of its own (a file, a sandboxed frame) cannot be let in"
            }
            Some(_) if self.node.config.allowed_origins.are_configured() => {
                "if this is a page of yours, add its origin to allowed_origins (GATEWAY_ALLOWED_ORIGINS)"
            }
            Some(_) if forwarded_host.is_some() && !self.node.config.trusts(self.arrival.peer.ip()) => {
                "if that came from a proxy of yours, add its address to trusted_proxies (GATEWAY_TRUSTED_PROXIES)"
            }
            Some(_) => {
                "let the proxy pass on the browser's Host header, port included, or set allowed_origins \
                 (GATEWAY_ALLOWED_ORIGINS)"
            }
        };
        let found = FoundOrigin { origin, host: self.headers.get(HOST), forwarded_host, change };
        self.span.lock().set("gateway.refused", || "origin");
        refused_origin(&self.node, &self.path, self.seen.client, &found);
        self.answer(Refusal::Forbidden)
    }

    /// The scheme of the browser's request: what a proxy of ours says, or else the page's, which a page of the same
    /// site nearly always shares.
    fn scheme(&self) -> &'static str {
        let origin = self.headers.get(ORIGIN).map(|origin| origin.as_bytes());
        let of_page = origin.filter(|origin| origin.starts_with(b"https://")).map_or("http", |_| "https");
        self.seen.scheme.unwrap_or(of_page)
    }

    /// Takes one of this second's handshakes.
    fn is_within_rate(&self) -> bool {
        let rate = self.node.config.limits.handshakes_per_second;
        rate == 0 || self.node.handshakes.lock().take(1, rate, rate, Instant::now()) == 1
    }

    pub(crate) fn refuse(&self, refusal: Refusal, reason: &'static str) -> Answer {
        self.note_refused(reason);
        self.answer(refusal)
    }

    /// Counts and logs that it came to nothing.
    pub(crate) fn note_refused(&self, reason: &'static str) {
        self.span.lock().set("gateway.refused", || reason);
        refused(&self.node, &self.path, self.seen.client, reason);
    }

    pub(crate) fn answer(&self, refusal: Refusal) -> Answer {
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
        self.note_refused(reason);
        self.node.tasks.spawn(close_after_upgrade(upgrade, close));
        handshake::switching_protocols(accept, Some(auth::V1)).map(|()| Bytes::new())
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
