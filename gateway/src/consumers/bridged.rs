//! A consumer that is the site's own: what the client says goes over a link to the application, and what that sends to
//! the client.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use channel_layer::{Event, GroupName};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::bridge::{Bridge, Class, Client, Joining, Message, Queued, Rendering, Said, Seat, Seated};
use crate::close::{CloseReason, is_sendable};
use crate::consumers::framework::{AnyConsumer, Context, Frame, Outcome, Refusal, Terms};
use crate::handlers::{Lookup, Table};
use crate::metrics::{ByCate, ByType};
use crate::node::Node;
use crate::socket::ear::{self, Ear, Shown};
use crate::socket::{Pushed, Socket};
use crate::websocket::WireFrame;
use crate::words::EventType;

/// Bytes over its limit that an outbox takes: what was on its way when the application was told to wait.
pub(crate) const SLACK: usize = 33 << 20;

/// How often it is looked whether a client is still there of whom nothing is read.
const LOOK: Duration = Duration::from_secs(1);

/// Groups that one socket may be in.
const MAX_GROUPS: usize = 10_000;

/// Longest wait for the layer before joining a group is put off.
const JOIN_TIME: Duration = Duration::from_secs(1);

/// How long what clients say and groups bring waits for a consumer that goes on elsewhere; how many events, and their
/// bytes.
const HOLD_TIME: Duration = Duration::from_secs(10);
const HELD: usize = 256;
const HELD_BYTES: usize = 4 << 20;

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
pub(crate) struct LinkedSocket {
    me: Weak<Self>,
    socket: Arc<Socket>,
    node: Arc<Node>,
    bridge: Arc<Bridge>,
    groups: Arc<Groups>,
    current: Mutex<CurrentSeat>,
    /// It has another seat, or will have none.
    swapped: Notify,
    /// It goes on with another worker just now.
    is_moving: AtomicBool,
    moves: AtomicU64,
    /// Its consumer's class goes on elsewhere when the worker leaves.
    reattaches: AtomicBool,
    /// The application has closed it, by a code of its own.
    is_closed_by_app: AtomicBool,
}

/// Where a socket sits.
#[derive(Default)]
struct CurrentSeat {
    seated: Option<Arc<Seated>>,
    /// By what it is opened again; kept for those that may be.
    opening: Vec<u8>,
    has_ended: bool,
}

impl LinkedSocket {
    pub(crate) fn new(socket: Arc<Socket>, node: Arc<Node>, bridge: Arc<Bridge>) -> Arc<Self> {
        let groups = Arc::new(Groups { socket: Arc::downgrade(&socket), ..Groups::default() });
        socket.hear_with(Arc::clone(&groups) as Arc<dyn Ear>);
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            socket,
            node,
            bridge,
            groups,
            current: Mutex::default(),
            swapped: Notify::new(),
            is_moving: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            reattaches: AtomicBool::new(false),
            is_closed_by_app: AtomicBool::new(false),
        })
    }

    fn seated(&self) -> Option<Arc<Seated>> {
        self.current.lock().seated.clone()
    }

    /// Whether the socket has ended, or is about to.
    fn is_over(&self) -> bool {
        self.socket.closing().is_some() || self.groups.state.lock().is_over
    }

    /// Goes on with another worker, or has the client come back.
    async fn go_on(self: Arc<Self>) {
        let moved = self.move_on().await;
        let is_over = self.is_over();
        // One that was closed for what it had to hold is over by then.
        if moved.is_some() || !is_over || self.groups.has_overflowed() {
            self.bridge.moved(moved);
        }
        match moved {
            None if is_over => {}
            None => self.restart(self.bridge.spread()),
            Some(silence) => {
                let worker = self.seated().map_or_else(String::new, |seated| seated.worker().to_owned());
                tracing::debug!(
                    channel = %self.socket.channel_name, worker, seconds = silence.as_secs_f64(),
                    "a socket has another worker"
                );
                self.is_moving.store(false, Ordering::SeqCst);
                // It may have gone in the meantime, and nobody has listened.
                if self.seated().is_some_and(|seated| seated.seat().is_lost()) {
                    self.reattach();
                }
            }
        }
    }

    /// How long the application was silent; none if nobody goes on.
    async fn move_on(self: &Arc<Self>) -> Option<Duration> {
        let (old, opening) = {
            let current = self.current.lock();
            (current.seated.clone()?, current.opening.clone())
        };
        let seat = old.seat();
        // The old one serves it until a new one can.
        let turn = async {
            self.bridge.has_worker().await;
            self.bridge.turn_to_move().await
        };
        let _turn = timeout(seat.window().max(HOLD_TIME), turn).await.ok()??;
        if self.is_over() {
            return None;
        }
        let begun = self.groups.hold(seat);
        let deadline = begun + HOLD_TIME;
        timeout_at(deadline, seat.has_ended()).await.ok()?;
        if self.is_over() {
            return None;
        }
        let (left, attempt) = (seat.left(), self.moves.fetch_add(1, Ordering::Relaxed) + 1);
        let client: Arc<dyn Client> = Arc::clone(self) as Arc<dyn Client>;
        let new = self.bridge.open_again(&opening, attempt, left.as_deref(), &client, deadline).await;
        let new = Arc::new(
            new.inspect_err(|refused| {
                tracing::info!(channel = %self.socket.channel_name, ?refused, "a socket finds no other worker");
            })
            .ok()?,
        );
        {
            let mut current = self.current.lock();
            if current.has_ended {
                return None;
            }
            current.seated = Some(Arc::clone(&new));
        }
        let was_whole = self.groups.let_go(new.seat());
        self.swapped.notify_waiters();
        was_whole.then(|| begun.elapsed())
    }
}

/// Leaves a socket's groups when it is dropped: the socket has ended, or has never come to be.
pub(crate) struct Leaves(Arc<LinkedSocket>);

impl Leaves {
    pub(crate) fn of(linked: &Arc<LinkedSocket>) -> Self {
        Self(Arc::clone(linked))
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let joined = {
            let mut state = self.0.groups.state.lock();
            state.is_over = true;
            std::mem::take(&mut state.joined)
        };
        joined.iter().for_each(|group| self.0.node.hub.unlisten(&self.0.socket, group));
        // The seat keeps this alive.
        let mut current = self.0.current.lock();
        current.has_ended = true;
        let seated = current.seated.take();
        drop(current);
        drop(seated);
    }
}

/// The groups of a socket's consumer, and where it hears them.
#[derive(Default)]
struct Groups {
    socket: Weak<Socket>,
    state: Mutex<GroupsState>,
    hearing: Mutex<Hearing>,
    class: OnceLock<Arc<Shared>>,
}

#[derive(Default)]
struct GroupsState {
    joined: Vec<GroupName>,
    /// Those of a consumer that is gone, which its successor has not joined.
    stale: Vec<GroupName>,
    is_over: bool,
}

#[derive(Default)]
struct Hearing {
    seat: Weak<Seat>,
    /// While nobody is there to hear.
    held: Option<Box<Held>>,
}

#[derive(Default)]
struct Held {
    events: Vec<Arc<Event>>,
    bytes: usize,
    overflowed: bool,
    since: Option<Instant>,
}

impl Groups {
    /// From here on events wait, and the application finishes. Returns when that began.
    fn hold(&self, seat: &Seat) -> Instant {
        let begun = {
            let mut hearing = self.hearing.lock();
            let held = hearing.held.get_or_insert_default();
            let begun = *held.since.get_or_insert_with(Instant::now);
            // Under the lock: what was handed on before is for it, the rest is not.
            seat.detach();
            begun
        };
        let mut state = self.state.lock();
        state.stale = state.joined.clone();
        begun
    }

    fn has_overflowed(&self) -> bool {
        self.hearing.lock().held.as_ref().is_some_and(|held| held.overflowed)
    }

    /// Somebody is there again. `false` if something was lost meanwhile.
    fn let_go(&self, seat: &Arc<Seat>) -> bool {
        let mut hearing = self.hearing.lock();
        hearing.seat = Arc::downgrade(seat);
        let Some(held) = hearing.held.take() else { return true };
        held.events.iter().for_each(|event| seat.event(event));
        !held.overflowed
    }
}

impl Ear for Groups {
    fn hear(&self, event: &Arc<Event>) {
        let mut hearing = self.hearing.lock();
        let Some(held) = &mut hearing.held else {
            if let Some(seat) = hearing.seat.upgrade() {
                seat.event(event);
            }
            return;
        };
        let bytes = event.weight();
        if !held.overflowed && held.events.len() < HELD && (held.bytes + bytes <= HELD_BYTES || held.events.is_empty())
        {
            held.bytes += bytes;
            held.events.push(Arc::clone(event));
        } else if !std::mem::replace(&mut held.overflowed, true) {
            held.events = Vec::new();
            drop(hearing);
            if let Some(socket) = self.socket.upgrade() {
                socket.close(CloseReason::Restart { min_ms: 0, max_ms: 1000 });
            }
        }
    }

    fn class(&self) -> Option<Arc<dyn ear::Class>> {
        self.class.get().map(|class| Arc::clone(class) as Arc<dyn ear::Class>)
    }

    fn wants(&self, group: &GroupName) -> bool {
        self.state.lock().joined.contains(group)
    }
}

/// A class of consumers, as groups know it.
struct Shared(Arc<Class>);

impl ear::Class for Shared {
    fn id(&self) -> u64 {
        self.0.id()
    }

    fn shares(&self, event: &Event) -> bool {
        self.0.shares(event)
    }

    fn render(self: Arc<Self>, event: &Arc<Event>, done: ear::Done) {
        let shown = |rendering| match rendering {
            Rendering::Own => Shown::Own,
            Rendering::Said(said) => Shown::Frames(said.iter().map(frame).collect()),
        };
        Arc::clone(&self.0).render(event, Box::new(move |rendering| done(shown(rendering))));
    }
}

fn frame(said: &Said) -> WireFrame {
    match said {
        Said::Text(text) => WireFrame::text(text),
        Said::Binary(bytes) => WireFrame::binary(bytes),
    }
}

/// Joins a group that this node does not hear yet. While the layer is away that is put off, and counts as joined: the
/// application goes on.
async fn join(node: Arc<Node>, socket: Arc<Socket>, groups: Arc<Groups>, group: GroupName) {
    let hub = &node.hub;
    let joined = match hub.is_layer_down() {
        true => false,
        false => match timeout(JOIN_TIME, hub.listen(&socket, &group)).await {
            Ok(joined) => joined.is_ok(),
            Err(_late) => false,
        },
    };
    if !joined {
        hub.listen_later(&socket, &group);
    } else if !groups.wants(&group) {
        // It has left meanwhile.
        hub.unlisten(&socket, &group);
    }
}

impl Client for LinkedSocket {
    fn queue(&self, message: Message<'_>) -> Queued {
        let frame = match message {
            Message::Text(text) => WireFrame::text(text),
            Message::Binary(bytes) => WireFrame::binary(bytes),
        };
        let queued = match self.socket.push(&frame) {
            Pushed::MustFlush => Queued::MustFlush,
            Pushed::Queued => Queued::Waits,
            Pushed::Full => {
                self.node.metrics.outbox_full.inc();
                return Queued::Closed;
            }
            Pushed::Closed => return Queued::Closed,
        };
        self.node.metrics.frames_sent.get_or_create(&ByType { r#type: BRIDGE }).inc();
        queued
    }

    fn flush(&self) {
        self.socket.flush();
    }

    fn seated(&self, seat: &Arc<Seat>) {
        self.groups.hearing.lock().seat = Arc::downgrade(seat);
    }

    fn join(&self, group: &str, leaves: bool) -> Joining {
        // A name that the layer refuses would hold up all that is joined together with it.
        let Ok(name) = self.node.names.plain(group) else { return Joining::Refused };
        {
            let mut state = self.groups.state.lock();
            if !leaves {
                state.stale.retain(|stale| *stale != name);
            }
            if state.joined.contains(&name) {
                return Joining::Joined;
            }
            if state.is_over || state.joined.len() >= MAX_GROUPS {
                return Joining::Refused;
            }
            state.joined.push(name.clone());
            if leaves {
                // What it brings is for the successor, if that joins it too.
                state.stale.push(name.clone());
            }
        }
        if self.node.hub.listen_now(&self.socket, &name) {
            return Joining::Joined;
        }
        let (node, socket) = (Arc::clone(&self.node), Arc::clone(&self.socket));
        Joining::Later(join(node, socket, Arc::clone(&self.groups), name).boxed())
    }

    fn leave(&self, group: &str) {
        let left = {
            let mut state = self.groups.state.lock();
            state.stale.retain(|stale| stale.as_str() != group);
            let at = state.joined.iter().position(|joined| joined.as_str() == group);
            at.map(|at| state.joined.swap_remove(at))
        };
        if let Some(name) = left {
            self.node.hub.unlisten(&self.socket, &name);
        }
    }

    fn ready(&self) {
        let stale = {
            let mut state = self.groups.state.lock();
            let stale = std::mem::take(&mut state.stale);
            state.joined.retain(|joined| !stale.contains(joined));
            stale
        };
        stale.iter().for_each(|group| self.node.hub.unlisten(&self.socket, group));
    }

    fn is_of(&self, class: &Arc<Class>, reattaches: bool) {
        let _ = self.groups.class.set(Arc::new(Shared(Arc::clone(class))));
        self.reattaches.store(reattaches, Ordering::Relaxed);
    }

    fn reattach(&self) {
        if let Some(seated) = self.seated().filter(|seated| seated.seat().is_lost()) {
            // Nobody hears from now on.
            let mut hearing = self.groups.hearing.lock();
            hearing.held.get_or_insert_default().since.get_or_insert_with(Instant::now);
            drop(hearing);
            drop(seated);
        }
        if !self.is_moving.swap(true, Ordering::SeqCst)
            && let Some(me) = self.me.upgrade()
        {
            self.node.tasks.spawn(me.go_on());
        }
    }

    fn is_behind(&self) -> bool {
        self.socket.is_behind()
    }

    fn close(&self, code: u16, reason: &str) {
        self.is_closed_by_app.store(true, Ordering::Relaxed);
        let code = if is_sendable(code) { code } else { 1011 };
        self.socket.close(CloseReason::asked(code, reason));
    }

    fn end(&self, failed: bool) {
        self.socket.close(if failed { CloseReason::InternalError } else { CloseReason::Normal });
    }

    fn failed(&self, why: &str) {
        let why = why.escape_debug();
        tracing::warn!(channel = %self.socket.channel_name, user = &*self.socket.user, "the application failed on {:?}: {why}", self.socket.path);
    }

    fn cancelled(&self, worker: &str) {
        tracing::warn!(
            channel = %self.socket.channel_name, user = &*self.socket.user, worker, path = self.bridge.path(),
            "a consumer had not returned 10 s after its disconnect and was cancelled"
        );
    }

    fn too_slow(&self) {
        self.node.metrics.outbox_full.inc();
        self.socket.close(CloseReason::SlowConsumer);
    }

    fn restart(&self, within: Duration) {
        let max_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.socket.close(CloseReason::Restart { min_ms: 0, max_ms });
    }
}

/// See the [module](self).
pub(crate) struct Bridged {
    linked: Arc<LinkedSocket>,
    worker: String,
    _leaves: Leaves,
    bridge: Arc<Bridge>,
    terms: Terms,
}

impl Bridged {
    /// Of a socket that its application has accepted; by `opening` it is opened again.
    pub(crate) fn new(
        linked: Arc<LinkedSocket>,
        leaves: Leaves,
        seated: Seated,
        opening: Vec<u8>,
        terms: Terms,
    ) -> Self {
        // The socket must not keep the seat, which keeps the socket.
        let groups = Arc::downgrade(&linked.groups);
        linked.socket.when_caught_up(move || {
            let seat = groups.upgrade().and_then(|groups| groups.hearing.lock().seat.upgrade());
            if let Some(seat) = seat {
                seat.resume();
            }
        });
        let (bridge, worker, seated) = (Arc::clone(&linked.bridge), seated.worker().to_owned(), Arc::new(seated));
        {
            let mut current = linked.current.lock();
            current.seated = Some(Arc::clone(&seated));
            if linked.reattaches.load(Ordering::Relaxed) {
                current.opening = opening;
            }
        }
        if seated.seat().is_lost() && linked.reattaches.load(Ordering::Relaxed) {
            // While it was accepted.
            linked.reattach();
        }
        bridge.opened();
        Self { linked, worker, _leaves: leaves, bridge, terms }
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
            let limits = &ctx.node().config.limits;
            loop {
                let mut swapped = pin!(self.linked.swapped.notified());
                swapped.as_mut().enable();
                let Some(seated) = self.linked.seated() else { return Ok(()) };
                let mut sending = pin!(seated.send(message, is_over));
                // Most go at once.
                let mut sent = sending.as_mut().now_or_never();
                // Nothing is read meanwhile, so nobody would see that the client is gone. What it said before it left is
                // handed on all the same, to an application that takes something within the time of a ping.
                let mut patience = limits.ping + limits.pong;
                while sent.is_none() {
                    sent = timeout(patience, sending.as_mut()).await.ok();
                    if sent.is_none() && has_left(socket) {
                        self.bridge.drop_one("client_left");
                        socket.close(CloseReason::Lost);
                    }
                    patience = LOOK;
                }
                if sent != Some(false) {
                    return Ok(());
                }
                // Its application goes on elsewhere.
                let goes_on = poll_fn(|task| match is_over(task.waker()) {
                    true => Poll::Ready(false),
                    false => swapped.as_mut().poll(task).map(|()| true),
                });
                if !goes_on.await {
                    return Ok(());
                }
            }
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
        let seated = {
            let mut current = self.linked.current.lock();
            current.has_ended = true;
            current.seated.clone()
        };
        if let Some(seated) = seated {
            seated.closed(code, reason);
        }
        let by_app = self.linked.is_closed_by_app.load(Ordering::Relaxed);
        self.bridge.closed(if by_app { None } else { Some(code) });
    }

    fn terms(&self) -> Terms {
        self.terms
    }

    fn worker(&self) -> Option<&str> {
        Some(&self.worker)
    }
}
