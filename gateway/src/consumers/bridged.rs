//! A consumer that is the site's own: what the client says goes over a link to the application, and what that sends to
//! the client.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Waker;
use std::time::Duration;

use channel_layer::Event;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::io::Interest;
use tokio::time::timeout;

use crate::bridge::{Bridge, Client, Message, Queued, Seated};
use crate::close::{CloseReason, is_sendable};
use crate::consumers::framework::{AnyConsumer, Context, Frame, Outcome, Refusal, Terms};
use crate::handlers::{Lookup, Table};
use crate::metrics::{ByCate, ByType, Metrics};
use crate::socket::{Pushed, Socket};
use crate::websocket::WireFrame;
use crate::words::EventType;

/// Bytes over its limit that an outbox takes: what was on its way when the application was told to wait.
pub(crate) const SLACK: usize = 33 << 20;

/// How often it is looked whether a client is still there of whom nothing is read.
const LOOK: Duration = Duration::from_secs(1);

/// What the application's and the client's messages count as, whatever they hold.
const BRIDGE: &str = "bridge";

/// Close codes that the metrics know from the start.
pub(crate) const CODES: &[u16] = &[1000, 1001, 1005, 1006, 1009, 1011, 1012, 4000, 4008, 4401];

/// What bridged sockets make of events that come for them by name.
pub(crate) fn table() -> Arc<Table> {
    static TABLE: LazyLock<Arc<Table>> = LazyLock::new(|| {
        let all = EventType::ALL.iter().map(|kind| {
            // What else comes for the user is for the built-in consumers.
            let lookup = if *kind == EventType::Disconnect { Lookup::Disconnect } else { Lookup::Nothing };
            (kind.as_str().to_owned(), lookup)
        });
        Arc::new(Table::new(all))
    });
    Arc::clone(&TABLE)
}

/// A socket, as its link knows it.
pub(crate) struct Place {
    socket: Arc<Socket>,
    metrics: Arc<Metrics>,
    path: Arc<str>,
    /// The application has closed it, by a code of its own.
    is_closed_by_app: AtomicBool,
}

impl Place {
    pub(crate) fn new(socket: Arc<Socket>, metrics: Arc<Metrics>) -> Arc<Self> {
        let path = Arc::clone(&socket.path);
        Arc::new(Self { socket, metrics, path, is_closed_by_app: AtomicBool::new(false) })
    }
}

impl Client for Place {
    fn queue(&self, message: Message<'_>) -> Queued {
        let frame = match message {
            Message::Text(text) => WireFrame::text(text),
            Message::Binary(bytes) => WireFrame::binary(bytes),
        };
        let queued = match self.socket.push(&frame) {
            Pushed::MustFlush => Queued::MustFlush,
            Pushed::Queued => Queued::Waits,
            Pushed::Full => {
                self.metrics.outbox_full.inc();
                return Queued::Closed;
            }
            Pushed::Closed => return Queued::Closed,
        };
        self.metrics.frames_sent.get_or_create(&ByType { r#type: BRIDGE }).inc();
        queued
    }

    fn flush(&self) {
        self.socket.flush();
    }

    fn is_behind(&self) -> bool {
        self.socket.is_behind()
    }

    fn close(&self, code: u16, reason: &str) {
        self.is_closed_by_app.store(true, Ordering::Relaxed);
        let code = if is_sendable(code) { code } else { 1011 };
        self.socket.close(CloseReason::Custom(code, reason.to_owned().into()));
    }

    fn end(&self, failed: bool) {
        self.socket.close(if failed { CloseReason::InternalError } else { CloseReason::Normal });
    }

    fn failed(&self, why: &str) {
        let why = why.escape_debug();
        tracing::warn!(channel = %self.socket.channel_name, user = ?self.socket.user, "the application failed on {:?}: {why}", self.path);
    }

    fn too_slow(&self) {
        self.metrics.outbox_full.inc();
        self.socket.close(CloseReason::SlowConsumer);
    }

    fn restart(&self, within: Duration) {
        let max_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.socket.close(CloseReason::Restart { min_ms: 0, max_ms });
    }
}

/// See the [module](self).
pub(crate) struct Bridged {
    seated: Seated,
    place: Arc<Place>,
    bridge: Arc<Bridge>,
    terms: Terms,
}

impl Bridged {
    /// Of a socket that its application has accepted.
    pub(crate) fn new(bridge: &Arc<Bridge>, place: Arc<Place>, seated: Seated, terms: Terms) -> Self {
        // The socket must not keep the seat, which keeps the socket.
        let seat = Arc::downgrade(seated.seat());
        place.socket.when_caught_up(move || {
            if let Some(seat) = seat.upgrade() {
                seat.resume();
            }
        });
        bridge.opened();
        Self { seated, place, bridge: Arc::clone(bridge), terms }
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        self.bridge.left();
    }
}

/// Whether the client has ended its side of the connection, behind what has not been read.
fn has_left(socket: &Socket) -> bool {
    let ready = socket.io().and_then(|io| io.ready(Interest::READABLE).now_or_never());
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

impl AnyConsumer for Bridged {
    fn connect<'a>(&'a mut self, _ctx: &'a mut Context) -> BoxFuture<'a, Result<(), Refusal>> {
        ready(Ok(())).boxed()
    }

    fn receive<'a>(&'a mut self, ctx: &'a mut Context, frame: Frame) -> BoxFuture<'a, Outcome> {
        ctx.node().metrics.frames_received.get_or_create(&ByCate { cate: BRIDGE }).inc();
        async move {
            let socket = ctx.socket();
            let is_over = |waker: &Waker| {
                socket.register(waker);
                socket.closing().is_some()
            };
            let message = match &frame {
                Frame::Text(text) => Message::Text(text),
                Frame::Binary(bytes) => Message::Binary(bytes),
            };
            let mut sending = pin!(self.seated.send(message, is_over));
            // Most go at once.
            if sending.as_mut().now_or_never().is_some() {
                return Ok(());
            }
            // Nothing is read meanwhile, so nobody would see that the client is gone. What it said before it left is
            // handed on all the same, to an application that takes something within the time of a ping.
            let limits = &ctx.node().config.limits;
            let mut patience = limits.ping + limits.pong;
            while timeout(patience, sending.as_mut()).await.is_err() {
                if has_left(socket) {
                    self.bridge.drop_one("client_left");
                    socket.close(CloseReason::Lost);
                }
                patience = LOOK;
            }
            Ok(())
        }
        .boxed()
    }

    fn rate_limited(&mut self, _ctx: &mut Context, _dropped: Option<&Frame>) -> Outcome {
        Ok(())
    }

    fn handle<'a>(&'a mut self, _ctx: &'a mut Context, _event: &'a Event) -> BoxFuture<'a, Outcome> {
        ready(Ok(())).boxed()
    }

    fn disconnect<'a>(&'a mut self, _ctx: &'a mut Context, _code: u16) -> BoxFuture<'a, ()> {
        ready(()).boxed()
    }

    fn ending(&mut self, code: u16, reason: &str) {
        self.seated.closed(code, reason);
        let by_app = self.place.is_closed_by_app.load(Ordering::Relaxed);
        self.bridge.closed(if by_app { None } else { Some(code) });
    }

    fn terms(&self) -> Terms {
        self.terms
    }

    fn worker(&self) -> Option<&str> {
        Some(self.seated.worker())
    }
}
