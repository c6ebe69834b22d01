//! The life of one socket: connect, then frames and events one after another, then goodbye.
//!
//! Before the upgrade the connection is a [`Handshake`], owned by the request; after it a task owned
//! by the node's tracker. Whatever ends either of them, dropping the context leaves every group.

use std::future::{poll_fn, ready};
use std::io::{ErrorKind, Read};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{self, Context as TaskContext, Poll};
use std::time::Duration;

use channel_layer::Event;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::close::CloseReason;
use crate::consumer::{AnyConsumer, Context, Frame, Outcome, Refusal, Streams};
use crate::metrics::{ByCode, ByReason};
use crate::node::Node;
use crate::scope::Scope;
use crate::socket::Socket;
use crate::websocket::{Decoder, Message, ProtocolError, WireFrame};

/// How long a closing handshake may take: our close frame out, the client's back.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How long a consumer may take to say goodbye (Channels gives it 10 s too).
const DISCONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a client of `gateway.v1` may take to say that it wants to resume.
const FIRST_FRAME_TIME: Duration = Duration::from_secs(2);

/// Characters of a path that are logged.
const LOGGED_PATH: usize = 256;

/// Bytes read from a socket at a time, into a buffer that its thread's sockets share.
const READ_BYTES: usize = 16 * 1024;

/// A connection whose consumer has accepted it and which waits for the upgrade.
pub(crate) struct Handshake {
    consumer: Box<dyn AnyConsumer>,
    ctx: Context,
}

impl Handshake {
    /// Runs the consumer's `connect`; a panic in it is a failure of this connection alone.
    pub(crate) async fn connect(node: &Arc<Node>, socket: Arc<Socket>, scope: Scope) -> Result<Self, Refusal> {
        let mut consumer = socket.class.make();
        let keeps_scope = socket.class.keeps_scope;
        let mut ctx = Context::new(Arc::clone(node), socket, scope);
        let connected = AssertUnwindSafe(consumer.connect(&mut ctx)).catch_unwind().await;
        match connected {
            Ok(Ok(())) => {
                if !keeps_scope {
                    ctx.forget_scope();
                }
                Ok(Self { consumer, ctx })
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                node.metrics.handler_errors.inc();
                Err(Refusal::Failed)
            }
        }
    }

    /// Waits for the upgrade, then serves the connection. What is waited for only once is boxed, here and
    /// below: an idle socket's task is as large as the largest thing it may wait for.
    pub(crate) fn serve(self, on_upgrade: OnUpgrade) -> impl Future<Output = ()> + Send {
        let upgrade = Box::pin(self.upgrade(on_upgrade));
        async move {
            if let Some(connection) = upgrade.await {
                connection.run().await;
            }
        }
    }

    async fn upgrade(self, on_upgrade: OnUpgrade) -> Option<Box<Connection>> {
        let patience = self.ctx.node().config.limits.handshake.max(Duration::from_secs(1));
        // A client that left between request and answer is none; dropping `self` cleans up.
        let upgraded = timeout(patience, on_upgrade).await.ok()?.ok()?;
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            tracing::error!("the upgraded connection is not a TCP stream");
            return None;
        };
        let (io, early) = (parts.io.into_inner(), parts.read_buf);
        let connection = Box::new(Connection::new(self, &early));
        connection.ctx.socket().attach(io);
        Some(connection)
    }
}

/// A live connection.
struct Connection {
    consumer: Box<dyn AnyConsumer>,
    ctx: Context,
    decoder: Decoder,
    /// Whose turn it is when client and layer both have something.
    layer_first: bool,
}

/// What happens next to a connection.
enum Step {
    Message(Message),
    Event(Arc<Event>),
    Close(CloseReason),
}

impl Connection {
    fn new(handshake: Handshake, early: &[u8]) -> Self {
        let Handshake { consumer, ctx } = handshake;
        let mut decoder = Decoder::new(ctx.node().config.limits.frame_bytes);
        if !early.is_empty() {
            decoder.feed(early);
        }
        Self { consumer, ctx, decoder, layer_first: false }
    }

    async fn run(mut self: Box<Self>) {
        let node = Arc::clone(self.ctx.node());
        node.metrics.connections.inc();
        node.metrics.connections_opened.inc();
        tracing::info!(channel = %self.ctx.channel_name(), user = ?self.ctx.username(), "WSCONNECT {}", logged(&self.ctx.socket().path));
        drop(node);
        let reason = self.serve().await;
        Box::pin(self.end(reason)).await;
    }

    /// Says goodbye, to the client and to the consumer.
    async fn end(mut self: Box<Self>, reason: CloseReason) {
        let node = Arc::clone(self.ctx.node());
        self.say_goodbye(&reason).await;
        let code = reason.code();
        let goodbye = AssertUnwindSafe(self.consumer.disconnect(&mut self.ctx, code)).catch_unwind();
        if !matches!(timeout(DISCONNECT_TIME, goodbye).await, Ok(Ok(()))) {
            node.metrics.handler_errors.inc();
        }
        node.metrics.connections.dec();
        node.metrics.connections_closed.get_or_create(&ByCode { code: code_label(code) }).inc();
        tracing::info!(channel = %self.ctx.channel_name(), user = ?self.ctx.username(), "WSDISCONNECT {} {reason}", logged(&self.ctx.socket().path));
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
            if let Err(reason) = self.attend(step).await {
                if reason == CloseReason::InternalError {
                    self.ctx.node().metrics.handler_errors.inc();
                }
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
            let is_frame = matches!(step, Step::Message(Message::Text(_) | Message::Binary(_)));
            if let Err(reason) = self.attend(step).await {
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
    fn attend(&mut self, step: Step) -> impl Future<Output = Outcome> + Send {
        let (socket, clock) = (Arc::clone(self.ctx.socket()), self.ctx.node().clock.clone());
        let mut handler = self.take(step);
        let mut since = None;
        poll_fn(move |task| {
            let polled = handler.poll_unpin(task);
            match (&polled, since) {
                (Poll::Ready(_), None) => {}
                (Poll::Ready(_), Some(since)) => {
                    let now = clock.seconds();
                    socket.listen_again(now - since, now);
                }
                (Poll::Pending, _) => {
                    since.get_or_insert_with(|| {
                        socket.stop_listening();
                        clock.seconds()
                    });
                    socket.register(task.waker());
                    poll_flush(&socket, task);
                }
            }
            polled
        })
    }

    /// Does what is to be done. A panic in a handler ends this connection with 1011 and touches nothing else.
    fn take(&mut self, step: Step) -> impl Future<Output = Outcome> + Send {
        let handler: BoxFuture<'_, Outcome> = match step {
            Step::Message(Message::Text(text)) => self.consumer.receive(&mut self.ctx, Frame::Text(text)),
            Step::Message(Message::Binary(bytes)) => self.consumer.receive(&mut self.ctx, Frame::Binary(bytes)),
            Step::Event(event) => Box::pin(async move { self.consumer.handle(&mut self.ctx, &event).await }),
            Step::Message(Message::Ping(payload)) => {
                // Pings count as frames written: who floods them without reading fills its own outbox.
                self.ctx.node().send_to(self.ctx.socket(), &WireFrame::pong(&payload), "pong");
                ready(Ok(())).boxed()
            }
            Step::Message(Message::Pong) => ready(Ok(())).boxed(),
            Step::Message(Message::Close(None)) => ready(Err(CloseReason::ByClient(1005))).boxed(),
            Step::Message(Message::Close(Some((code, _)))) => ready(Err(CloseReason::ByClient(code))).boxed(),
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
        poll_flush(&socket, task);
        match socket.closing() {
            Some(reason) => Poll::Ready(Step::Close(reason)),
            None => Poll::Pending,
        }
    }

    fn poll_message(&mut self, socket: &Socket, task: &mut TaskContext<'_>) -> Poll<Step> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Poll::Ready(Step::Message(message)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Step::Close(close_reason(error))),
            }
            match task::ready!(poll_read(socket, task, &mut self.decoder)) {
                Ok(0) => return Poll::Ready(Step::Close(CloseReason::Lost)),
                Ok(_) => socket.heard(self.ctx.node().clock.seconds()),
                Err(_) => return Poll::Ready(Step::Close(CloseReason::Lost)),
            }
        }
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
        let answered = timeout(CLOSE_TIME, async {
            poll_fn(|task| {
                socket.register(task.waker());
                poll_flush(&socket, task);
                if socket.is_flushed() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
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

/// Waits until the kernel takes more, if something waits for that, and writes.
pub(crate) fn poll_flush(socket: &Socket, task: &mut TaskContext<'_>) {
    let Some(io) = socket.io() else { return };
    while socket.is_blocked() {
        match io.poll_write_ready(task) {
            Poll::Ready(_) => socket.flush(),
            Poll::Pending => return,
        }
        if socket.is_flushed() {
            return;
        }
    }
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

/// What the log shows of a path: anybody may send a long one.
fn logged(path: &str) -> &str {
    path.char_indices().nth(LOGGED_PATH).map_or(path, |(at, _)| &path[..at])
}

/// The label of a refused handshake.
pub(crate) fn refused(node: &Node, path: &str, reason: &'static str) {
    node.metrics.handshakes_rejected.get_or_create(&ByReason { reason }).inc();
    tracing::info!(reason, "WSREJECT {}", logged(path));
}
