//! The consumer framework: one consumer serves one connection, its events strictly one after another.
//!
//! A handler is chosen by the event's type (`chat.message` → `chat_message`) and comes in two kinds:
//!
//! - *shared*: a pure function from event to frame. It runs once per node and event, and all sockets
//!   of the consumer's class share the frame. Use it for everything that looks the same to everybody.
//! - *own*: runs for one connection, one event after another, with the consumer's state. What Channels has.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use channel_layer::{ChannelLayer, ChannelName, Event, GroupName};
use futures_util::future::BoxFuture;
use persistence::{Store, Stream};
use serde::Serialize;

use crate::close::CloseReason;
use crate::events;
use crate::handlers::{AnyShared, Lookup, Rendering, Table};
use crate::hub::Released;
use crate::node::Node;
use crate::scope::{Access, Scope};
use crate::socket::Socket;
use crate::websocket::WireFrame;
use crate::words::{EventType, FrameType};

/// What a handler answers: go on, or close for a reason.
pub type Outcome = Result<(), CloseReason>;

/// A client's frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Text, valid UTF-8.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

/// Why a consumer did not accept its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 401, or 4401 after the upgrade for clients of `gateway.v1`.
    Unauthorized,
    /// 403, or 4403.
    Forbidden,
    /// 404, or 4404. Also for what exists and may not be entered.
    NotFound,
    /// 429: a limit of this user or address is reached.
    TooMany,
    /// 503: the node is draining, overloaded or cut off from what it needs.
    Unavailable,
    /// 500: a handler failed.
    Failed,
}

/// Serves one connection. Made by the route's function, then `connect`, any number of `receive` and
/// own handlers, then `disconnect`, whatever ended the connection.
pub trait Consumer: Sized + Send + 'static {
    /// Whether [`Context::scope`] keeps headers, cookies and query after `connect`. They cost about a KiB per socket.
    const KEEPS_SCOPE: bool = true;

    /// Whether visitors are let in who show no credentials, where `anonymous` allows them. What they may do then is the
    /// consumer's to keep to ([`Context::access`]).
    const TAKES_ANONYMOUS: bool = false;

    /// Names the handlers of this class; called once per route.
    fn handlers(_handlers: &mut Handlers<Self>) {}

    /// Runs before the handshake is answered. `Ok` accepts; the default accepts everybody who is signed in.
    fn connect(&mut self, _ctx: &mut Context) -> impl Future<Output = Result<(), Refusal>> + Send {
        async { Ok(()) }
    }

    /// A frame of the client. The default ignores it.
    fn receive(&mut self, _ctx: &mut Context, _frame: Frame) -> impl Future<Output = Outcome> + Send {
        async { Ok(()) }
    }

    /// The client has begun to send more than `limits.frames_per_second`: this frame and those that follow are
    /// dropped until it keeps to the limit, and if it goes on it is closed with 1008. `dropped` is none where it was
    /// a control frame, or a piece of one that has not ended. The default says nothing.
    fn rate_limited(&mut self, _ctx: &mut Context, _dropped: Option<&Frame>) -> Outcome {
        Ok(())
    }

    /// The connection has ended with this code. Groups are left by themselves.
    fn disconnect(&mut self, _ctx: &mut Context, _code: u16) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// An own handler: runs in the connection's turn.
pub type OwnHandler<C> = for<'a> fn(&'a mut C, &'a mut Context, &'a Event) -> BoxFuture<'a, Outcome>;

/// The handlers of a consumer class, by event type.
pub struct Handlers<C> {
    table: HashMap<String, Handler<C>>,
}

enum Handler<C> {
    Shared(AnyShared),
    Own(OwnHandler<C>),
}

impl<C> Handlers<C> {
    /// `gateway.disconnect` and `gateway.send` are known to every class.
    fn new() -> Self {
        let mut handlers = Self { table: HashMap::new() };
        handlers.shared(EventType::Send.as_str(), events::gateway_send);
        handlers
    }

    /// Registers a shared handler for an event type (`.` and `_` mean the same): from event to what sockets are sent,
    /// `None` for nothing. It may hold what all connections of its route share; [`Router::route_with`] brings that in.
    ///
    /// [`Router::route_with`]: crate::Router::route_with
    pub fn shared(
        &mut self,
        event_type: &str,
        handler: impl Fn(&Event) -> Option<Rendering> + Send + Sync + 'static,
    ) -> &mut Self {
        self.table.insert(event_type.replace('.', "_"), Handler::Shared(Box::new(handler)));
        self
    }

    /// Registers an own handler for an event type (`.` and `_` mean the same).
    pub fn own(&mut self, event_type: &str, handler: OwnHandler<C>) -> &mut Self {
        self.table.insert(event_type.replace('.', "_"), Handler::Own(handler));
        self
    }
}

/// All connections of one route share this: how to make a consumer, and which events it knows.
pub(crate) struct ConsumerClass {
    pub(crate) table: Arc<Table>,
    make: Box<dyn Fn() -> Box<dyn AnyConsumer> + Send + Sync>,
    pub(crate) keeps_scope: bool,
    pub(crate) takes_anonymous: bool,
}

impl ConsumerClass {
    /// `more` adds handlers to those that the class names itself.
    pub(crate) fn new<C: Consumer>(
        make: impl Fn() -> C + Send + Sync + 'static,
        more: impl FnOnce(&mut Handlers<C>),
    ) -> Self {
        let mut handlers = Handlers::new();
        C::handlers(&mut handlers);
        more(&mut handlers);
        let mut own = HashMap::new();
        // A consumer's own goes over it.
        let mut lookups = HashMap::from([(EventType::Disconnect.as_str().to_owned(), Lookup::Disconnect)]);
        for (name, handler) in handlers.table {
            let lookup = match handler {
                Handler::Shared(handler) => Lookup::Shared(handler),
                Handler::Own(handler) => {
                    own.insert(name.clone(), handler);
                    Lookup::Own
                }
            };
            lookups.insert(name, lookup);
        }
        let (table, own) = (Arc::new(Table::new(lookups)), Arc::new(own));
        let make = move || -> Box<dyn AnyConsumer> { Box::new(Instance { consumer: make(), own: Arc::clone(&own) }) };
        Self { table, make: Box::new(make), keeps_scope: C::KEEPS_SCOPE, takes_anonymous: C::TAKES_ANONYMOUS }
    }

    pub(crate) fn make(&self) -> Box<dyn AnyConsumer> {
        (self.make)()
    }
}

impl std::fmt::Debug for ConsumerClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerClass").field("handlers", &self.table).finish_non_exhaustive()
    }
}

/// A consumer of any class.
pub(crate) trait AnyConsumer: Send {
    fn connect<'a>(&'a mut self, ctx: &'a mut Context) -> BoxFuture<'a, Result<(), Refusal>>;
    fn receive<'a>(&'a mut self, ctx: &'a mut Context, frame: Frame) -> BoxFuture<'a, Outcome>;
    fn rate_limited(&mut self, ctx: &mut Context, dropped: Option<&Frame>) -> Outcome;
    fn handle<'a>(&'a mut self, ctx: &'a mut Context, event: &'a Event) -> BoxFuture<'a, Outcome>;
    fn disconnect<'a>(&'a mut self, ctx: &'a mut Context, code: u16) -> BoxFuture<'a, ()>;

    /// The connection ends with this code and the client's reason, if it gave one. Before goodbyes are said.
    fn ending(&mut self, _code: u16, _reason: &str) {}

    /// The worker that serves it, if it is the site's own.
    fn worker(&self) -> Option<&str> {
        None
    }

    /// What is other about its connection.
    fn terms(&self) -> Terms {
        Terms::default()
    }
}

/// What a consumer's connection keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes of a client's message; none: `limits.frame_bytes`.
    pub(crate) frame_bytes: Option<usize>,
    /// Whether `limits.frames_per_second` holds.
    pub(crate) is_metered: bool,
    /// How long what is queued may take to reach the client when the connection is closed.
    pub(crate) last_words: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { frame_bytes: None, is_metered: true, last_words: Duration::ZERO }
    }
}

struct Instance<C> {
    consumer: C,
    own: Arc<HashMap<String, OwnHandler<C>>>,
}

impl<C: Consumer> AnyConsumer for Instance<C> {
    fn connect<'a>(&'a mut self, ctx: &'a mut Context) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(self.consumer.connect(ctx))
    }

    fn receive<'a>(&'a mut self, ctx: &'a mut Context, frame: Frame) -> BoxFuture<'a, Outcome> {
        Box::pin(self.consumer.receive(ctx, frame))
    }

    fn rate_limited(&mut self, ctx: &mut Context, dropped: Option<&Frame>) -> Outcome {
        self.consumer.rate_limited(ctx, dropped)
    }

    fn handle<'a>(&'a mut self, ctx: &'a mut Context, event: &'a Event) -> BoxFuture<'a, Outcome> {
        match event.handler_name().ok().and_then(|name| self.own.get(name.as_ref())) {
            Some(handler) => handler(&mut self.consumer, ctx, event),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn disconnect<'a>(&'a mut self, ctx: &'a mut Context, code: u16) -> BoxFuture<'a, ()> {
        Box::pin(self.consumer.disconnect(ctx, code))
    }
}

/// What a consumer does things with. Dropping it leaves every group and ends the link of user and
/// socket, so that this happens whatever ended the connection, a panicking handler included.
pub struct Context {
    node: Arc<Node>,
    socket: Arc<Socket>,
    scope: Option<Box<Scope>>,
    groups: Vec<GroupName>,
    streams: Streams,
}

/// Whether stored frames reach the client. A client of `gateway.v1` may want to catch up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Until the first frame has been handled, or 2 seconds have passed.
    Held,
    /// A resume is under way, or waits for the database.
    Resuming,
    Live,
}

impl Context {
    pub(crate) fn new(node: Arc<Node>, socket: Arc<Socket>, scope: Scope) -> Self {
        let streams = if socket.v1 { Streams::Held } else { Streams::Live };
        Self { node, socket, scope: Some(Box::new(scope)), groups: Vec::new(), streams }
    }

    /// For a consumer that keeps what it has to know by itself.
    pub(crate) fn bare(node: Arc<Node>, socket: Arc<Socket>) -> Self {
        Self { node, socket, scope: None, groups: Vec::new(), streams: Streams::Live }
    }

    /// What was known at connect. `None` only in classes that gave it up ([`Consumer::KEEPS_SCOPE`]).
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_deref()
    }

    pub(crate) fn forget_scope(&mut self) {
        self.scope = None;
    }

    /// The signed-in user's name.
    pub fn username(&self) -> &Arc<str> {
        &self.socket.user
    }

    /// What the user may do.
    pub fn access(&self) -> Access {
        self.socket.access
    }

    /// The name under which `send` on the layer reaches this connection alone.
    pub fn channel_name(&self) -> &ChannelName {
        &self.socket.channel_name
    }

    /// Whether the client speaks `gateway.v1`.
    pub fn is_v1(&self) -> bool {
        self.socket.v1
    }

    /// Sends a text frame. Never waits: a client whose outbox is full is closed with 4008.
    pub fn send_text(&self, text: &str) {
        self.push(WireFrame::text(text), "own");
    }

    /// Sends a binary frame.
    pub fn send_bytes(&self, bytes: &Bytes) {
        self.push(WireFrame::binary(bytes), "own");
    }

    /// Sends a value as JSON in a text frame.
    pub fn send_json(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string(value).map_err(|_| CloseReason::InternalError)?;
        self.send_text(&text);
        Ok(())
    }

    fn push(&self, frame: WireFrame, kind: &'static str) {
        self.node.send_to(&self.socket, &frame, kind);
    }

    /// Sends one of the protocol's own frames, counted by its type.
    pub(crate) fn send_frame(&self, kind: FrameType, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string(value).map_err(|_| CloseReason::InternalError)?;
        self.push(WireFrame::text(&text), kind.as_str());
        Ok(())
    }

    /// Closes the connection after what has been sent.
    pub fn close(&self, reason: CloseReason) {
        self.socket.close(reason);
    }

    /// Adds this connection to a group. Returns after the layer has confirmed it: what is sent to the
    /// group from then on arrives. Again is fine.
    pub async fn group_add(&mut self, group: &GroupName) -> Result<(), Refusal> {
        self.join(vec![(group.clone(), None)]).await
    }

    /// Adds this connection to groups that carry stored streams, all at once: from then on their
    /// messages arrive in `seq` order without a hole.
    pub async fn join_streams(&mut self, streams: Vec<(GroupName, Stream)>) -> Result<(), Refusal> {
        self.join(streams.into_iter().map(|(group, stream)| (group, Some(stream))).collect()).await
    }

    async fn join(&mut self, groups: Vec<(GroupName, Option<Stream>)>) -> Result<(), Refusal> {
        let new: Vec<_> = groups.into_iter().filter(|(group, _)| !self.groups.contains(group)).collect();
        if new.is_empty() {
            return Ok(());
        }
        // Noted before the wait, so that a connection dropped in between leaves them again.
        let before = self.groups.len();
        self.groups.reserve_exact(new.len());
        self.groups.extend(new.iter().map(|(group, _)| group.clone()));
        let joined = self.node.hub.join(&self.socket, new, self.streams != Streams::Live).await.map_err(|error| {
            self.tell("groups could not be joined", &error);
            Refusal::Unavailable
        })?;
        self.groups.truncate(before);
        self.groups.extend(joined);
        Ok(())
    }

    /// Takes this connection out of a group. Not a member is fine.
    pub fn group_discard(&mut self, group: &GroupName) {
        if let Some(at) = self.groups.iter().position(|joined| joined == group) {
            self.groups.swap_remove(at);
            self.node.hub.leave(&self.socket, group);
        }
    }

    /// Sends an event to everybody in a group, on all nodes and in every Django process.
    pub async fn group_send(&self, group: &GroupName, event: &Event) -> Result<(), channel_layer::LayerError> {
        self.layer().group_send(group, event).await
    }

    /// The channel layer.
    pub fn layer(&self) -> &dyn ChannelLayer {
        self.node.layer.as_ref()
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.node.store
    }

    /// Tells the operator what went wrong for this connection.
    pub(crate) fn tell(&self, what: &'static str, error: &(dyn std::error::Error + 'static)) {
        self.node.health.tell_of(what, error, Some((&self.socket.channel_name, &self.socket.user)));
    }

    pub(crate) fn streams(&self) -> Streams {
        self.streams
    }

    pub(crate) fn set_streams(&mut self, streams: Streams) {
        self.streams = streams;
    }

    /// Lets all streams go on live; what was held follows now.
    pub(crate) fn release_streams(&mut self) {
        self.streams = Streams::Live;
        for group in &self.groups {
            if self.node.hub.release(&self.socket, group, 0) == Released::Overflowed {
                self.socket.close(CloseReason::SlowConsumer);
            }
        }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.socket.shut();
        for group in &self.groups {
            self.node.hub.leave(&self.socket, group);
        }
        self.node.registry.remove(&self.socket);
    }
}
