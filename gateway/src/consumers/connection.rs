//! The life of one socket: connect, then frames and events one after another, then goodbye.
//!
//! Before the upgrade the connection is a [`Handshake`], owned by the request; after it a task owned
//! by the node's tracker. Whatever ends either of them, dropping the context leaves every group.

use std::future::{poll_fn, ready};
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{self, Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use channel_layer::Event;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::close::CloseReason;
use crate::consumers::frames::ClientFrame;
use crate::consumers::framework::{AnyConsumer, ConsumerClass, Context, Frame, Outcome, Refusal, Streams};
use crate::metrics::{ByCode, ByReason};
use crate::node::Node;
use crate::rate::{FrameRate, Verdict};
use crate::scope::Scope;
use crate::seldom::Seldom;
use crate::socket::Socket;
use crate::tail;
use crate::websocket::{Decoder, Message, ProtocolError, Rewound, WireFrame};

/// How long a closing handshake may take: our close frame out, the client's back.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How long a consumer may take to say goodbye (Channels gives it 10 s too).
const DISCONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a client of `gateway.v1` may take to say that it wants to resume.
const FIRST_FRAME_TIME: Duration = Duration::from_secs(2);

/// Characters of a path that are logged: anybody may send a long one.
const LOGGED_PATH: usize = 256;

/// Pings that are answered each for itself, of those that come together.
const PONGS: usize = 16;

/// Bytes read from a socket at a time, into a buffer that its thread's sockets share.
const READ_BYTES: usize = 16 * 1024;

/// A connection whose consumer has accepted it and which waits for the upgrade.
pub(crate) struct Handshake {
    consumer: Box<dyn AnyConsumer>,
    ctx: Context,
}

impl Handshake {
    /// Runs the consumer's `connect`; a panic in it is a failure of this connection alone.
    pub(crate) async fn connect(
        node: &Arc<Node>,
        class: &ConsumerClass,
        socket: Arc<Socket>,
        scope: Scope,
    ) -> Result<Self, Refusal> {
        let mut consumer = class.make();
        let mut ctx = Context::new(Arc::clone(node), socket, scope);
        let connected = AssertUnwindSafe(consumer.connect(&mut ctx)).catch_unwind().await;
        match connected {
            Ok(Ok(())) => {
                if !class.keeps_scope {
                    ctx.forget_scope();
                }
                Ok(Self { consumer, ctx })
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                consumer_failed(&ctx, "connect()");
                Err(Refusal::Failed)
            }
        }
    }

    /// One that is accepted already.
    pub(crate) fn accepted(consumer: Box<dyn AnyConsumer>, ctx: Context) -> Self {
        Self { consumer, ctx }
    }

    /// Waits for the upgrade, then serves the connection. What is waited for only once is boxed, here and
    /// below: an idle socket's task is as large as the largest thing it may wait for.
    pub(crate) fn serve(self, on_upgrade: OnUpgrade) -> impl Future<Output = ()> + Send {
        let upgrade = Box::pin(self.upgrade(on_upgrade));
        async move {
            if let Some(mut connection) = upgrade.await {
                connection.begin();
                let reason = connection.serve().await;
                // Nothing may look at the reason here, or the task would have room for it all the time.
                Box::pin(connection.end(reason)).await;
            }
        }
    }

    async fn upgrade(self, on_upgrade: OnUpgrade) -> Option<Box<Connection>> {
        let patience = match self.ctx.node().config.limits.handshake {
            // Off: an hour bounds it all the same.
            Duration::ZERO => Duration::from_secs(3600),
            patience => patience.max(Duration::from_secs(1)),
        };
        // A client that left between request and answer is none; dropping `self` cleans up.
        let upgraded = timeout(patience, on_upgrade).await.ok()?.ok()?;
        let Ok(parts) = upgraded.downcast::<TokioIo<Rewound>>() else {
            tracing::error!("the upgraded connection is not a TCP stream");
            return None;
        };
        let (io, unread) = parts.io.into_inner().into_parts();
        let connection = Box::new(Connection::new(self, &[&parts.read_buf[..], &unread]));
        connection.ctx.socket().attach(io);
        Some(connection)
    }
}

/// A live connection.
struct Connection {
    consumer: Box<dyn AnyConsumer>,
    ctx: Context,
    decoder: Decoder,
    /// Made with the first frame: most sockets only listen.
    rate: Option<Box<FrameRate>>,
    /// Frames of the client's.
    frames: u32,
    /// The answer to a ping of ours has not come yet; it is free.
    pong_is_due: bool,
    /// Whose turn it is when client and layer both have something.
    layer_first: bool,
    is_metered: bool,
    /// What the client gave as its reason to close.
    farewell: String,
}

/// Counts a consumer that failed, and names its socket in the log, once a minute at most. The panic has a line of its own.
fn consumer_failed(ctx: &Context, what: &'static str) {
    static LINE: Seldom = Seldom::new();
    ctx.node().metrics.handler_errors.inc();
    if let Some(times) = LINE.again() {
        let socket = ctx.socket();
        tracing::warn!(
            channel = %socket.channel_name, user = &*socket.user, times,
            "{what} of the consumer at {} failed: its socket ends", logged(&socket.path)
        );
    }
}

/// Shows to who watches that a socket was opened, or closed.
fn show(node: &Node, socket: &Socket, code: Option<u16>) {
    if node.hub.tail.is_watched() {
        let (user, path, channel) = (Arc::clone(&socket.user), logged(&socket.path), socket.channel_name.to_string());
        let what = tail::What::Socket { user, path, channel, code };
        node.hub.tail.pass(tail::Passed { at: node.clock.database(), what });
    }
}

/// What happens next to a connection.
enum Step {
    Frame(Frame),
    /// The client has begun to send more than it may; with what of it was dropped first.
    TooMany(Option<Frame>),
    Event(Arc<Event>),
    Close(CloseReason),
}

impl Connection {
    /// `early` is what came with the request.
    fn new(handshake: Handshake, early: &[&[u8]]) -> Self {
        let Handshake { consumer, ctx } = handshake;
        let terms = consumer.terms();
        let mut decoder = Decoder::new(terms.frame_bytes.unwrap_or(ctx.node().config.limits.frame_bytes));
        early.iter().filter(|bytes| !bytes.is_empty()).for_each(|bytes| decoder.feed(bytes));
        Self {
            consumer,
            ctx,
            decoder,
            rate: None,
            frames: 0,
            pong_is_due: false,
            layer_first: false,
            is_metered: terms.is_metered,
            farewell: String::new(),
        }
    }

    fn begin(&self) {
        let node = self.ctx.node();
        node.metrics.connections.inc();
        node.metrics.connections_opened.inc();
        tracing::info!(
            channel = %self.ctx.channel_name(), user = &**self.ctx.username(), worker = self.consumer.worker(),
            "WSCONNECT {}", logged(&self.ctx.socket().path)
        );
        show(node, self.ctx.socket(), None);
    }

    /// Says goodbye, to the client and to the consumer.
    async fn end(mut self: Box<Self>, reason: CloseReason) {
        if reason == CloseReason::InternalError {
            consumer_failed(&self.ctx, "a handler");
        }
        let node = Arc::clone(self.ctx.node());
        let code = reason.code();
        let said = match &reason {
            CloseReason::ByClient(_) => std::mem::take(&mut self.farewell),
            _ => reason.text().into_owned(),
        };
        self.consumer.ending(code, &said);
        self.say_goodbye(&reason).await;
        let goodbye = AssertUnwindSafe(self.consumer.disconnect(&mut self.ctx, code)).catch_unwind();
        if !matches!(timeout(DISCONNECT_TIME, goodbye).await, Ok(Ok(()))) {
            consumer_failed(&self.ctx, "disconnect()");
        }
        node.metrics.connections.dec();
        node.metrics.connections_closed.get_or_create(&ByCode { code: code_label(code) }).inc();
        let socket = self.ctx.socket();
        let seconds = (time::OffsetDateTime::now_utc() - socket.since).whole_seconds().max(0);
        tracing::info!(
            channel = %socket.channel_name, user = &*socket.user, code, reason = %reason.text(), seconds,
            frames = self.frames, "WSDISCONNECT {} {reason}", logged(&socket.path)
        );
        show(&node, socket, Some(code));
    }

    /// Serves events until something ends the connection.
    async fn serve(&mut self) -> CloseReason {
        if self.ctx.streams() == Streams::Held
            && let Some(reason) = Box::pin(self.first_frame()).await
        {
            return reason;
        }
        loop {
            let step = poll_fn(|task| self.poll_step(task)).await;
            if let Err(reason) = self.do_step(step).await {
                return reason;
            }
        }
    }

    /// A client that may want to catch up says so in its first frame; until then it is sent nothing stored.
    async fn first_frame(&mut self) -> Option<CloseReason> {
        let until = tokio::time::Instant::now() + FIRST_FRAME_TIME;
        while self.ctx.streams() == Streams::Held {
            let Ok(step) = tokio::time::timeout_at(until, poll_fn(|task| self.poll_step(task))).await else {
                self.ctx.release_streams();
                break;
            };
            let is_frame = matches!(step, Step::Frame(_));
            if let Err(reason) = self.do_step(step).await {
                return Some(reason);
            }
            if is_frame && self.ctx.streams() == Streams::Held {
                self.ctx.release_streams();
            }
        }
        None
    }

    /// Does what is to be done, however long it takes. Nothing is read meanwhile, so no silence of the client
    /// counts; what waits to be written still is. No `async fn`: its step would count in every idle socket's size.
    fn do_step(&mut self, step: Step) -> impl Future<Output = Outcome> + Send {
        let (socket, node) = (Arc::clone(self.ctx.socket()), Arc::clone(self.ctx.node()));
        let mut handler = self.handler_of(step);
        let mut since = None;
        poll_fn(move |task| {
            let polled = handler.poll_unpin(task);
            match (&polled, since) {
                (Poll::Ready(_), None) => {}
                (Poll::Ready(_), Some(since)) => {
                    let now = node.clock.seconds();
                    socket.listen_again(now - since, now);
                }
                (Poll::Pending, _) => {
                    since.get_or_insert_with(|| {
                        socket.stop_listening();
                        node.clock.seconds()
                    });
                    socket.register(task.waker());
                    socket.poll_flush(task);
                }
            }
            polled
        })
    }

    /// Does what is to be done. A panic in a handler ends this connection with 1011 and touches nothing else.
    fn handler_of(&mut self, step: Step) -> impl Future<Output = Outcome> + Send {
        let handler: BoxFuture<'_, Outcome> = match step {
            Step::Frame(frame) => self.consumer.receive(&mut self.ctx, frame),
            Step::TooMany(dropped) => {
                Box::pin(async move { self.consumer.rate_limited(&mut self.ctx, dropped.as_ref()) })
            }
            Step::Event(event) => Box::pin(async move { self.consumer.handle(&mut self.ctx, &event).await }),
            Step::Close(reason) => ready(Err(reason)).boxed(),
        };
        AssertUnwindSafe(handler).catch_unwind().map(|done| done.unwrap_or(Err(CloseReason::InternalError)))
    }

    /// The next thing to do. Cancel-safe: nothing is taken that is not returned.
    fn poll_step(&mut self, task: &mut TaskContext<'_>) -> Poll<Step> {
        let socket = Arc::clone(self.ctx.socket());
        // Registered before looking, so that what comes in between wakes us.
        socket.register(task.waker());
        if let Some(reason) = socket.closing() {
            return Poll::Ready(Step::Close(reason));
        }
        if self.layer_first
            && let Some(event) = socket.pop_event()
        {
            self.layer_first = false;
            return Poll::Ready(Step::Event(event));
        }
        if let Poll::Ready(step) = self.poll_message(&socket, task) {
            self.layer_first = true;
            return Poll::Ready(step);
        }
        self.layer_first = false;
        if let Some(event) = socket.pop_event() {
            return Poll::Ready(Step::Event(event));
        }
        socket.poll_flush(task);
        match socket.closing() {
            Some(reason) => Poll::Ready(Step::Close(reason)),
            None => Poll::Pending,
        }
    }

    fn poll_message(&mut self, socket: &Socket, task: &mut TaskContext<'_>) -> Poll<Step> {
        loop {
            if let Some(step) = self.decoded() {
                return Poll::Ready(step);
            }
            match task::ready!(poll_read(socket, task, &mut self.decoder)) {
                Ok(0) => return Poll::Ready(Step::Close(CloseReason::Lost)),
                Ok(_) => self.pong_is_due |= socket.heard(self.ctx.node().clock.seconds()),
                Err(_) => return Poll::Ready(Step::Close(CloseReason::Lost)),
            }
        }
    }

    /// What is next in the bytes that have been read. Pings up to there are answered in one write, and of very many
    /// only the newest, as RFC 6455 has it.
    fn decoded(&mut self) -> Option<Step> {
        let mut pongs = Vec::new();
        let step = loop {
            let message = match self.decoder.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break None,
                Err(error) => break Some(Step::Close(close_reason(error))),
            };
            let verdict = match self.count(&message) {
                Ok(verdict) => verdict,
                Err(reason) => break Some(Step::Close(reason)),
            };
            match (verdict, message) {
                (_, Message::Close(None)) => break Some(Step::Close(CloseReason::ByClient(1005))),
                (_, Message::Close(Some((code, reason)))) => {
                    self.farewell = reason;
                    break Some(Step::Close(CloseReason::ByClient(code)));
                }
                (Verdict::Warn, Message::Text(text)) => break Some(Step::TooMany(Some(Frame::Text(text)))),
                (Verdict::Warn, Message::Binary(bytes)) => break Some(Step::TooMany(Some(Frame::Binary(bytes)))),
                (Verdict::Warn, _) => break Some(Step::TooMany(None)),
                (Verdict::Ignore, _) | (_, Message::Pong | Message::Piece) => {}
                (Verdict::Serve, Message::Ping(payload)) => {
                    pongs.truncate(PONGS - 1);
                    pongs.push(WireFrame::pong(&payload));
                }
                (Verdict::Serve, Message::Text(text)) => break Some(Step::Frame(Frame::Text(text))),
                (Verdict::Serve, Message::Binary(bytes)) => break Some(Step::Frame(Frame::Binary(bytes))),
            }
        };
        // A client that reads nothing needs none: the newest would be the answer to all of them.
        let socket = self.ctx.socket();
        if !pongs.is_empty() && socket.waiting() <= socket.outbox_limit() {
            // They count as written: who does not read them fills its own outbox.
            self.ctx.node().send_to(self.ctx.socket(), &WireFrame::join(&pongs.iter().collect::<Vec<_>>()), "pong");
        }
        step
    }

    /// Takes a token for a frame of the client's, whatever it is.
    fn count(&mut self, message: &Message) -> Result<Verdict, CloseReason> {
        self.frames = self.frames.saturating_add(1);
        let node = self.ctx.node();
        let limits = &node.config.limits;
        let is_answer = matches!(message, Message::Pong) && std::mem::take(&mut self.pong_is_due);
        if limits.frames_per_second == 0 || limits.frames_burst == 0 || is_answer || !self.is_metered {
            return Ok(Verdict::Serve);
        }
        let now = Instant::now();
        let rate = self.rate.get_or_insert_with(|| Box::new(FrameRate::new(limits, now)));
        let is_ping = matches!(message, Message::Text(text) if ClientFrame::is_ping(text));
        if is_ping && rate.ping_is_free(now) {
            return Ok(Verdict::Serve);
        }
        let verdict = rate.frame(limits, now)?;
        if verdict != Verdict::Serve {
            node.metrics.frames_bad.get_or_create(&ByReason { reason: "rate_limited" }).inc();
        }
        Ok(verdict)
    }

    /// Closes with a close frame, waits shortly for the client's, and lets the kernel send the rest.
    async fn say_goodbye(&mut self, reason: &CloseReason) {
        let socket = Arc::clone(self.ctx.socket());
        let frame = match reason {
            CloseReason::Lost => return,
            CloseReason::ByClient(1005) => WireFrame::close_empty(),
            _ => WireFrame::close(reason.code(), &reason.text()),
        };
        // A slow client is not made to read a megabyte before it learns that it was too slow.
        let keep_queued = !matches!(reason, CloseReason::SlowConsumer | CloseReason::PingTimeout);
        socket.queue_close(&frame, keep_queued);
        let flushed = || {
            poll_fn(|task| {
                socket.register(task.waker());
                socket.poll_flush(task);
                if socket.is_flushed() { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        let last_words = self.consumer.terms().last_words;
        if keep_queued && !last_words.is_zero() && !matches!(reason, CloseReason::ByClient(_)) {
            // Past the time what is left is left.
            let _ = timeout(last_words, flushed()).await;
        }
        let answered = timeout(CLOSE_TIME, async {
            flushed().await;
            if let Some(io) = socket.io() {
                shut_down_writing(io);
            }
            if !matches!(reason, CloseReason::ByClient(_)) {
                self.drain(&socket).await;
            }
        });
        // Past the time the socket is dropped as it is.
        let _ = answered.await;
    }

    /// Reads until the client closes, so that closing does not reset what it has not read yet.
    async fn drain(&mut self, socket: &Socket) {
        loop {
            let mut ignored = Decoder::new(0);
            match poll_fn(|task| poll_read(socket, task, &mut ignored)).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Ends the sending side; the client then knows that nothing follows the close frame.
fn shut_down_writing(io: &TcpStream) {
    // A connection that is already gone cannot be shut down, which is all right.
    let _ = SockRef::from(io).shutdown(std::net::Shutdown::Write);
}

/// Reads once, through a buffer that all sockets of this thread share: an idle one needs none.
fn poll_read(socket: &Socket, task: &mut TaskContext<'_>, decoder: &mut Decoder) -> Poll<std::io::Result<usize>> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; READ_BYTES].into());
    }
    let Some(io) = socket.io() else { return Poll::Pending };
    loop {
        task::ready!(io.poll_read_ready(task))?;
        let read = BUFFER.with_borrow_mut(|buffer| {
            let mut read = None;
            let tried = io.try_io(Interest::READABLE, || {
                let count = (&*SockRef::from(io)).read(buffer)?;
                read = Some(count);
                // Less than there was room for: it is empty now, and need not be asked to be known so.
                let emptied = 0 < count && count < buffer.len();
                if emptied { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            let Some(read) = read else { return tried.map(|()| 0) };
            decoder.feed(&buffer[..read]);
            Ok(read)
        });
        match read {
            Err(error) if error_is_transient(&error) => {}
            result => return Poll::Ready(result),
        }
    }
}

fn error_is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn close_reason(error: ProtocolError) -> CloseReason {
    match error {
        ProtocolError::Violation(what) => CloseReason::ProtocolError(what),
        ProtocolError::NotUtf8 => CloseReason::NotUtf8,
        ProtocolError::TooLarge => CloseReason::TooLarge,
        ProtocolError::TooManyFragments => CloseReason::PolicyViolation("too many fragments"),
    }
}

/// Clients choose among thousands of codes; as labels only the usual ones stand for themselves.
fn code_label(code: u16) -> u16 {
    match code {
        1000..=1015 | 4000 | 4008 | 4401 | 4403 | 4404 => code,
        3000..=3999 => 3000,
        _ => 4999,
    }
}

/// What the log shows of a path: what was sent, in ASCII.
fn logged(path: &str) -> String {
    let mut left = LOGGED_PATH;
    let pieces = percent_encoding::utf8_percent_encode(path, percent_encoding::CONTROLS);
    let cut = pieces.map_while(move |piece| {
        let piece = &piece[..piece.len().min(left)];
        left -= piece.len();
        (!piece.is_empty()).then_some(piece)
    });
    cut.collect()
}

/// A handshake that came to nothing.
pub(crate) fn refused(node: &Node, path: &str, client: IpAddr, reason: &'static str) {
    node.metrics.handshakes_rejected.get_or_create(&ByReason { reason }).inc();
    tracing::info!(reason, %client, node = node.config.node_id, "WSREJECT {}", logged(path));
}

/// One that a page of another origin asked for: the log says what was compared, and what to change.
pub(crate) fn refused_origin(node: &Node, path: &str, client: IpAddr, found: &FoundOrigin<'_>) {
    let reason = "origin";
    node.metrics.handshakes_rejected.get_or_create(&ByReason { reason }).inc();
    let shown = |value: Option<&HeaderValue>| value.map(|value| logged(&String::from_utf8_lossy(value.as_bytes())));
    let FoundOrigin { origin, host, forwarded_host, change } = *found;
    let (origin, host, forwarded_host) = (shown(origin), shown(host), shown(forwarded_host));
    tracing::info!(
        reason, %client, node = node.config.node_id, origin, host, forwarded_host, change,
        "WSREJECT {}", logged(path)
    );
}

/// Where a page says that it comes from, and what that was compared with.
pub(crate) struct FoundOrigin<'a> {
    pub(crate) origin: Option<&'a HeaderValue>,
    pub(crate) host: Option<&'a HeaderValue>,
    pub(crate) forwarded_host: Option<&'a HeaderValue>,
    /// What an operator may want to change.
    pub(crate) change: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::{self, Of};

    /// What the task of a socket is made of.
    fn task_size<F: Future>(_: fn(Handshake, OnUpgrade) -> F) -> usize {
        fn size<F, G>(_: fn(Of, F) -> G) -> usize {
            size_of::<G>()
        }
        size(lines::of::<F>)
    }

    #[test]
    fn an_idle_connection_is_small() {
        // tokio and the tracker of tasks add 112 bytes, and it is as large as the allocator makes it: 256, or else 384.
        let task = task_size(Handshake::serve);
        assert!(task + 112 <= 256, "{task}");
        assert!(size_of::<Connection>() <= 160, "{}", size_of::<Connection>());
    }
}
