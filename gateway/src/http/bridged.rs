//! A request to a path of the site's own consumers: the node decides on origin, limits and overload, the application on
//! everything else.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::auth::recheck::Recheck;
use crate::auth::{NotSignedIn, SignedIn};
use crate::bridge::{self, Accept, Bridge, Client, Deny, Headers, MAX_MESSAGE, Refused};
use crate::clock::NEVER;
use crate::consumers::bridged::{Bridged, Leaves, LinkedSocket, SLACK, table};
use crate::consumers::connection::Handshake;
use crate::consumers::framework::{Context, Refusal, Terms};
use crate::http::answers::{Answer, plain};
use crate::http::visit::Visit;
use crate::lines::{self, About, Of};
use crate::scope::{Access, parse_cookies};
use crate::socket::registry::LimitReached;
use crate::socket::{Identity, Socket, addresses};
use crate::traces::{Parent, SpanKind};
use crate::websocket::handshake;

/// What a plain request to a bridged path is told.
const NOT_HERE: &str = "this path belongs to the site's own consumers and speaks WebSocket only: plain requests to it are \
                        the site's web server's, not the gateway's";

/// Left of the time for a handshake, to answer in.
const TO_ANSWER: Duration = Duration::from_millis(250);

/// Longest wait for the user's group.
const JOIN_TIME: Duration = Duration::from_secs(1);

/// What belongs to the node, or to one connection only.
const OWN_HEADERS: [HeaderName; 9] = [
    CONNECTION,
    UPGRADE,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TRAILER,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL,
    HeaderName::from_static("keep-alive"),
];

/// Whether a request wants to become a WebSocket, well or badly.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    let values = headers.get_all(UPGRADE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|entry| entry.trim().eq_ignore_ascii_case("websocket"))
}

impl Visit {
    /// The handshake of a bridged socket.
    pub(crate) async fn bridged(&self, bridge: &Arc<Bridge>, upgrade: Option<OnUpgrade>) -> Answer {
        let accept = match handshake::accept_key(&self.method, self.arrival.version, &self.headers) {
            Ok(accept) => accept,
            Err(_) if !wants_websocket(&self.headers) => {
                return self.not_websocket(StatusCode::UPGRADE_REQUIRED, NOT_HERE);
            }
            Err(error) => return self.not_websocket(error.status(), error.text()),
        };
        let Some(upgrade) = upgrade else { return plain(StatusCode::BAD_REQUEST, "no upgrade") };
        if let Some(refusal) = self.overload() {
            return refusal;
        }
        if !self.origin_is_allowed() {
            return self.refuse_origin();
        }
        let subprotocols = handshake::offered_subprotocols(&self.headers);
        let signed_in = match bridge.settings.auth {
            bridge::Auth::App => None,
            bridge::Auth::Gateway => match self.signed_in(&subprotocols).await {
                Ok(signed_in) => Some(signed_in),
                Err(refusal) => return refusal,
            },
        };
        let node = &self.node;
        let Some(channel_name) = node.hub.new_channel() else { return self.refuse(Refusal::Unavailable, "layer") };
        let (client, limits) = (self.seen.client, &node.config.limits);
        let (user, proof, ends) = match signed_in {
            Some(SignedIn { user, proof, ends }) => (Some(user), proof, ends),
            None => (None, None, None),
        };
        let identity = Identity {
            channel_name,
            user: user.as_ref().map_or_else(|| Arc::from(""), |user| Arc::clone(&user.name)),
            path: self.path.as_str().into(),
            v1: false,
            access: Access::Full,
            expires_at: user.as_ref().and_then(|user| user.expires_at).map_or(NEVER, |unix| node.clock.deadline(unix)),
            recheck: proof.map(|proof| Box::new(Recheck::new(proof, ends, node.recheck(), &node.clock))),
            counted_address: (limits.connections_per_address > 0).then(|| addresses::network(client)),
        };
        let outbox_bytes = bridge.settings.outbox_bytes.unwrap_or(limits.outbox_bytes);
        let socket = Socket::new(identity, table(), outbox_bytes, node.clock.seconds()).of_site(SLACK);
        let socket = Arc::new(socket);
        let visitor = self.arrival.visitor.as_deref();
        match node.registry.add(&socket, limits, visitor) {
            Ok(()) => {}
            Err(LimitReached::Connections) => return self.refuse(Refusal::Unavailable, "connections"),
            Err(LimitReached::PerUser) => return self.refuse(Refusal::TooMany, "connections_per_user"),
            Err(LimitReached::PerAddress) => return self.refuse(Refusal::TooMany, "connections_per_address"),
        }
        // From here on dropping it takes the socket out again.
        let mut ctx = Context::bare(Arc::clone(node), Arc::clone(&socket));
        // So that it can be disconnected by its user's name. Without the layer it opens all the same.
        if let Some(group) = user.as_ref().and_then(|user| node.names.user(&user.name).ok()) {
            let _ = tokio::time::timeout(JOIN_TIME, ctx.group_add(&group)).await;
        }
        let linked = LinkedSocket::new(Arc::clone(&socket), Arc::clone(node), Arc::clone(bridge));
        let leaves = Leaves::of(&linked);
        let user = user.as_ref().map(|user| (&*user.name, user.id.as_deref()));
        self.note_socket(&socket);
        let mut span = self.part("bridge", SpanKind::Client);
        span.set("gateway.bridge", || bridge.path().to_owned());
        let traceparent = span.traceparent();
        let scope = self.scope(&subprotocols, socket.channel_name.as_str(), user, traceparent.as_deref());
        let of = || Of { about: Some(Arc::clone(&socket) as Arc<dyn About>), trace: self.trace_id() };
        let opening = bridge.open(&scope, Arc::clone(&linked) as Arc<dyn Client>, self.deadline());
        let opened = tokio::select! {
            opened = lines::of(of(), opening) => Some(opened),
            // Dropped, it tells the application 1006.
            () = left(self.arrival.connection.clone()) => None,
        };
        if let Some(Err(Refused::NoWorker | Refused::Busy | Refused::Late | Refused::Lost)) = &opened {
            span.fail("no worker answered");
        }
        drop(span);
        let refused = match opened {
            Some(Ok((seated, accepted, opening))) => match switching_protocols(accept, &accepted) {
                Some(answer) => {
                    let terms = Terms {
                        frame_bytes: Some(frame_bytes(bridge.settings.frame_bytes.unwrap_or(limits.frame_bytes))),
                        is_metered: false,
                        last_words: bridge.settings.slow,
                    };
                    let consumer = Bridged::new(linked, leaves, seated, opening, terms);
                    node.tasks.spawn(lines::of(of(), Handshake::accepted(Box::new(consumer), ctx).serve(upgrade)));
                    return answer;
                }
                None => {
                    tracing::warn!(
                        channel = %socket.channel_name, user = &*socket.user, path = bridge.path(),
                        subprotocol = ?accepted.subprotocol,
                        "an application accepted with a subprotocol or a header that no answer can carry"
                    );
                    self.refuse(Refusal::Failed, "app_failed")
                }
            },
            Some(Err(Refused::Denied(deny))) => self.denied(deny),
            Some(Err(Refused::NoWorker)) => self.refuse(Refusal::Unavailable, "no_worker"),
            Some(Err(Refused::Busy)) => self.refuse(Refusal::Unavailable, "workers_busy"),
            Some(Err(Refused::Late)) => self.refuse(Refusal::Unavailable, "app_late"),
            Some(Err(Refused::Lost)) => self.refuse(Refusal::Unavailable, "worker_lost"),
            // Nobody reads it.
            None => self.refuse(Refusal::Unavailable, "client_left"),
        };
        if let Some(visitor) = visitor {
            visitor.stays();
        }
        refused
    }

    /// Who it is, where the node decides that. Who is nobody by name is nobody.
    async fn signed_in(&self, subprotocols: &[String]) -> Result<SignedIn, Answer> {
        let cookies = parse_cookies(&self.headers);
        match self.sign_in(&self.credentials(subprotocols, &cookies)).await {
            Ok(signed_in) if signed_in.user.access == Access::Full => Ok(signed_in),
            Ok(_) => Err(self.refuse(Refusal::Unauthorized, "anonymous")),
            Err(NotSignedIn::CookieWithoutOrigin) => Err(self.refuse_origin()),
            Err(NotSignedIn::Unavailable(reason)) => Err(self.refuse(Refusal::Unavailable, reason)),
            Err(NotSignedIn::Nobody(reason)) => Err(self.refuse(Refusal::Unauthorized, reason)),
            Err(NotSignedIn::Forbidden(reason)) => Err(self.refuse(Refusal::Forbidden, reason)),
        }
    }

    fn scope<'a>(
        &'a self,
        subprotocols: &'a [String],
        channel_name: &'a str,
        user: Option<(&'a str, Option<&'a str>)>,
        traceparent: Option<&'a str>,
    ) -> bridge::Scope<'a> {
        let headers = self.headers.iter().filter(|(name, _)| !name.as_str().contains('_'));
        let peer = self.arrival.peer;
        // Behind a proxy nobody knows the client's port.
        let port = if peer.ip().to_canonical() == self.seen.client { peer.port() } else { 0 };
        bridge::Scope {
            raw_path: &self.path,
            query_string: &self.query,
            headers: headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect(),
            subprotocols,
            client: Some((self.seen.client.to_string(), port)),
            server: self.arrival.local.map(|local| (local.ip().to_canonical().to_string(), local.port())),
            scheme: if self.seen.scheme == Some("https") { "wss" } else { "ws" },
            channel_name,
            user,
            // Of a trace that is not kept here, as it came.
            traceparent: traceparent.or(Parent::of(&self.headers).traceparent),
        }
    }

    /// By when the application has to answer: a little before the visitor's own time is over.
    fn deadline(&self) -> Instant {
        let patience = match self.node.config.limits.handshake {
            Duration::ZERO => Duration::from_secs(3600),
            patience => patience,
        };
        let deadline = self.arrival.deadline.unwrap_or_else(|| Instant::now() + patience);
        deadline.checked_sub(TO_ANSWER.min(patience / 20)).unwrap_or(deadline)
    }

    /// The application's own refusal.
    fn denied(&self, deny: Deny) -> Answer {
        self.note_refused(if deny.status == 500 { "app_failed" } else { "app_denied" });
        let Ok(status) = StatusCode::from_u16(deny.status) else { return self.answer(Refusal::Failed) };
        if status.is_informational() {
            return self.answer(Refusal::Failed);
        }
        let mut headers = HeaderMap::new();
        let known = put(&mut headers, &deny.headers);
        if deny.body.is_empty() && deny.headers.is_empty() {
            let text = if status == StatusCode::FORBIDDEN { "not allowed" } else { "refused by the application" };
            return plain(status, if deny.status == 500 { "internal error" } else { text });
        }
        if known.is_none() {
            return self.answer(Refusal::Failed);
        }
        let mut answer = Response::new(Bytes::from(deny.body));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        answer
    }

    fn not_websocket(&self, status: StatusCode, text: &str) -> Answer {
        let mut answer = plain(status, text);
        if status == StatusCode::UPGRADE_REQUIRED {
            answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            answer.headers_mut().insert(http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        answer
    }
}

/// Waits until a client has left. Behind what it has sent too early that is not seen.
async fn left(connection: Option<Arc<TcpStream>>) {
    if let Some(connection) = connection
        && connection.peek(&mut [0]).await.unwrap_or(0) == 0
    {
        return;
    }
    pending().await
}

/// What a link can carry, also where the node has no limit.
fn frame_bytes(limit: usize) -> usize {
    if limit == 0 { MAX_MESSAGE } else { limit.min(MAX_MESSAGE) }
}

/// The 101 with what the application adds. `None` when no answer can carry it.
fn switching_protocols(key: HeaderValue, accepted: &Accept) -> Option<Answer> {
    let mut answer = handshake::switching_protocols(key, None).map(|()| Bytes::new());
    if let Some(subprotocol) = &accepted.subprotocol {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(subprotocol).ok()?);
    }
    put(answer.headers_mut(), &accepted.headers)?;
    Some(answer)
}

/// Adds an application's headers, less those that are the node's. `None` when one of them is none.
fn put(headers: &mut HeaderMap, added: &Headers) -> Option<()> {
    for (name, value) in added {
        let (name, value) = (HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        if !OWN_HEADERS.contains(&name) {
            headers.append(name, value);
        }
    }
    Some(())
}
