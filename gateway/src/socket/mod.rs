//! What the rest of the node knows of one connection: who it is, its outbox, and how to wake its owner.
//!
//! Everything here is shared between the connection's own task and whoever delivers to it. Nobody
//! waits for a slow client: a push only queues, a flush writes what the kernel takes, and an outbox
//! over its limit closes that client alone.

pub(crate) mod addresses;
pub(crate) mod ear;
mod kernel;
pub(crate) mod registry;
#[cfg_attr(not(all(feature = "io-uring", target_os = "linux")), path = "no_ring.rs")]
mod ring;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use channel_layer::{ChannelName, Event};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::net::TcpStream;

use crate::auth::recheck::Recheck;
use crate::close::CloseReason;
use crate::handlers::Table;
use crate::lines::About;
use crate::scope::Access;
use crate::websocket::WireFrame;

/// Events for *own* handlers that may wait per connection, so that a stuck consumer cannot take the node's memory.
const INBOX_EVENTS: usize = 256;

/// The same in bytes, about.
const INBOX_BYTES: usize = 1 << 20;

/// Nothing is read, because a handler is at work.
const DEAF: u8 = 1;
/// That handler waits for the client.
const WAITS: u8 = 2;

/// What a frame takes in an outbox beside its bytes, about. A flood of pongs is many times its bytes.
pub(crate) const FRAME_COST: usize = 64;

/// Frames that are joined into one write.
const WRITE_BYTES: usize = 64 * 1024;

/// Fewer sockets are as cheap one by one.
const WORTH_A_RING: usize = 4;

// `write_together` has a bit for each.
const _: () = assert!(ring::AT_ONCE <= u64::BITS as usize);

/// More bytes take so long that other sockets, which are locked meanwhile, are not to wait for them.
const RING_BYTES: usize = 16 * 1024;

/// One connection, as everybody but its own task sees it.
pub struct Socket {
    /// The name under which the channel layer reaches this socket alone.
    pub channel_name: ChannelName,
    /// The signed-in user.
    pub user: Arc<str>,
    /// Path of the request as it was sent, percent-encoded.
    pub path: Arc<str>,
    /// When it connected.
    pub since: OffsetDateTime,
    /// Whether the client speaks the subprotocol `gateway.v1`.
    pub v1: bool,
    /// What the user may do.
    pub(crate) access: Access,
    /// The client's address, where addresses are limited.
    pub(crate) counted_address: Option<IpAddr>,
    /// What its consumer makes of events. Sockets of one class share it.
    pub(crate) table: Arc<Table>,
    /// Bytes that may wait in the outbox; 0 is no limit.
    outbox_limit: usize,
    /// Boxed: only sockets whose consumer is the site's own have it.
    of_site: Option<Box<OfSite>>,
    io: OnceLock<TcpStream>,
    state: Mutex<Queues>,
    waker: AtomicWaker,
    /// Seconds on the node's clock when the client was last heard of.
    heard_at: AtomicU32,
    /// The client has taken something off a kernel's buffer that was full.
    takes: AtomicBool,
    /// A ping is out and nothing has been heard since.
    pub(crate) pinged: AtomicBool,
    /// Whether anybody listens to the client: [`DEAF`], [`WAITS`].
    listening: AtomicU8,
    /// Bytes that wait until it has caught up, of all its streams.
    held: AtomicUsize,
    /// Bytes of its own that wait to be stored.
    unstored: AtomicU32,
    /// Nothing is read until fewer of them do.
    held_back: AtomicBool,
    /// Version of the stored memberships this socket hears; 0 when it hears no rooms.
    pub(crate) memberships: AtomicU64,
    /// Milliseconds on the node's clock when the sign-in ends; [`NEVER`](crate::clock::NEVER) if it does not.
    pub(crate) expires_at: AtomicU64,
    /// A sign-in that is looked at again. On its own, as most have none.
    recheck: Option<Box<Recheck>>,
}

/// What a socket has whose consumer is the site's own.
struct OfSite {
    /// Bytes more that may wait in the outbox: who fills it is told to wait.
    slack: usize,
    /// Who waits while the client is behind, to be told when it is not any more.
    feeder: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// What hears groups for it.
    ear: OnceLock<Arc<dyn ear::Ear>>,
}

/// Who a socket is.
pub(crate) struct Identity {
    pub(crate) channel_name: ChannelName,
    pub(crate) user: Arc<str>,
    pub(crate) path: Arc<str>,
    pub(crate) v1: bool,
    pub(crate) access: Access,
    /// As [`Socket::expires_at`].
    pub(crate) expires_at: u64,
    pub(crate) recheck: Option<Box<Recheck>>,
    pub(crate) counted_address: Option<IpAddr>,
}

#[derive(Default)]
struct Queues {
    outbox: VecDeque<WireFrame>,
    /// Bytes of the first frame that are written already.
    written: u32,
    /// Bytes still to be written.
    waiting: usize,
    /// Bytes the kernel has taken that came behind the last ping of ours; below 0 until it has taken that one.
    behind_ping: i32,
    /// How many bytes the client's kernel had not confirmed, up to the end of that ping, when it was queued.
    ping_was_off: i32,
    /// The kernel's buffer was full at the last write; the owner waits for it to drain.
    blocked: bool,
    /// Somebody has queued frames and will flush.
    flush_due: bool,
    /// The feeder waits.
    behind: bool,
    /// While there is something in it.
    inbox: Option<Box<Inbox>>,
    /// Boxed, as it is seldom there for long.
    closing: Option<Box<CloseReason>>,
    /// Nothing is queued any more: the close frame is out, or the connection is gone.
    shut: bool,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// What [`Socket::push`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Queued, and the caller must flush.
    MustFlush,
    /// Queued; somebody else will flush.
    Queued,
    /// The outbox was full: the socket is closing with 4008.
    Full,
    /// The socket is closing; the frame was not queued.
    Closed,
}

impl Socket {
    pub(crate) fn new(identity: Identity, table: Arc<Table>, outbox_limit: usize, now: u32) -> Self {
        let Identity { channel_name, user, path, v1, access, expires_at, recheck, counted_address } = identity;
        Self {
            channel_name,
            user,
            path,
            since: OffsetDateTime::now_utc(),
            v1,
            access,
            counted_address,
            table,
            outbox_limit,
            of_site: None,
            io: OnceLock::new(),
            state: Mutex::default(),
            waker: AtomicWaker::new(),
            heard_at: AtomicU32::new(now),
            takes: AtomicBool::new(false),
            pinged: AtomicBool::new(false),
            listening: AtomicU8::new(0),
            held: AtomicUsize::new(0),
            unstored: AtomicU32::new(0),
            held_back: AtomicBool::new(false),
            memberships: AtomicU64::new(0),
            expires_at: AtomicU64::new(expires_at),
            recheck,
        }
    }

    /// The same for a consumer of the site's own. Its outbox is filled at the client's pace: who fills it asks whether it
    /// [is behind](Self::is_behind), and is told to wait. So much more may come until that is heard.
    pub(crate) fn of_site(self, slack: usize) -> Self {
        let of_site = OfSite { slack, feeder: OnceLock::new(), ear: OnceLock::new() };
        Self { of_site: Some(Box::new(of_site)), ..self }
    }

    /// What to do when a client that was behind is not any more, of a socket [of the site's](Self::of_site). Only the
    /// first one counts.
    pub(crate) fn when_caught_up(&self, feeder: impl Fn() + Send + Sync + 'static) {
        if let Some(of_site) = &self.of_site {
            let _ = of_site.feeder.set(Box::new(feeder));
        }
    }

    /// What hears groups for a socket [of the site's](Self::of_site). Only the first one counts.
    pub(crate) fn hear_with(&self, ear: Arc<dyn ear::Ear>) {
        if let Some(of_site) = &self.of_site {
            let _ = of_site.ear.set(ear);
        }
    }

    /// What hears groups for it, if its consumer is the site's own.
    pub(crate) fn ear(&self) -> Option<&Arc<dyn ear::Ear>> {
        self.of_site.as_ref()?.ear.get()
    }

    /// Whether half of what may wait for the client does. If so, the feeder is told once less than a quarter does.
    pub(crate) fn is_behind(&self) -> bool {
        let mut state = self.state.lock();
        state.behind |= !state.shut && state.cost() >= self.outbox_limit() / 2;
        state.behind
    }

    /// The sign-in that is looked at again, if there is one.
    pub(crate) fn recheck(&self) -> Option<&Recheck> {
        self.recheck.as_deref()
    }

    /// Gives the socket its connection once the handshake is answered. What was pushed before goes out now.
    pub(crate) fn attach(&self, io: TcpStream) {
        if self.io.set(io).is_ok() {
            self.flush();
        }
    }

    /// Bytes that may wait; without a limit as many as the default.
    pub(crate) fn outbox_limit(&self) -> usize {
        if self.outbox_limit > 0 { self.outbox_limit } else { 1 << 20 }
    }

    /// Bytes that wait for the kernel.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    /// What waits for a client whose kernel takes no more.
    pub(crate) fn backlog(&self) -> usize {
        let state = self.state.lock();
        if state.blocked && state.closing.is_none() { state.cost() } else { 0 }
    }

    /// Closes it as too slow; what waits is given up at once and not only in its own turn.
    pub(crate) fn shed(&self) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.closing = Some(Box::new(CloseReason::SlowConsumer));
            state.give_up_queued();
            drop(state);
            self.waker.wake();
        }
    }

    /// Notes bytes that wait until it has caught up. `false` when they are more than may wait.
    pub(crate) fn begin_holding(&self, bytes: usize) -> bool {
        self.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.outbox_limit()
    }

    /// Notes that they wait no more.
    pub(crate) fn end_holding(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes bytes that wait to be stored.
    pub(crate) fn begin_storing(&self, bytes: u32) {
        self.unstored.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Notes that they wait no more.
    pub(crate) fn end_storing(&self, bytes: u32) {
        self.unstored.fetch_sub(bytes, Ordering::SeqCst);
        if self.held_back.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Whether so many bytes or fewer wait to be stored. If not, its owner is woken when that may have changed.
    pub(crate) fn is_within(&self, share: usize) -> bool {
        let within = || self.unstored.load(Ordering::SeqCst) as usize <= share;
        // Looked at again after the note, or what ends in between would wake nobody.
        within() || {
            self.held_back.store(true, Ordering::SeqCst);
            within()
        }
    }

    pub(crate) fn io(&self) -> Option<&TcpStream> {
        self.io.get()
    }

    /// Queues a frame. Waits for nothing.
    pub(crate) fn push(&self, frame: &WireFrame) -> Pushed {
        let slack = self.of_site.as_ref().map_or(0, |of_site| of_site.slack);
        self.push_within(frame, self.outbox_limit + slack)
    }

    /// The same for what no consumer has sent, and none can wait with.
    pub(crate) fn push_of_group(&self, frame: &WireFrame) -> Pushed {
        self.push_within(frame, self.outbox_limit)
    }

    fn push_within(&self, frame: &WireFrame, limit: usize) -> Pushed {
        let mut state = self.state.lock();
        if state.closing.is_some() || state.shut {
            return Pushed::Closed;
        }
        let is_full = |state: &Queues| self.outbox_limit > 0 && state.waiting > 0 && state.cost() + frame.len() > limit;
        // Many large events may come in one piece: no client is slow before the kernel has been asked to take them.
        // What it says is for the flush that is due anyway.
        if is_full(&state)
            && !state.blocked
            && let Some(io) = self.io.get()
        {
            let _ = state.write_to(io);
        }
        if is_full(&state) {
            state.closing = Some(Box::new(CloseReason::SlowConsumer));
            drop(state);
            self.waker.wake();
            return Pushed::Full;
        }
        state.waiting += frame.len();
        if state.outbox.capacity() == 0 {
            // Mostly one frame goes at a time, and its room stays: as many as would be made by itself take 128 bytes.
            state.outbox.reserve_exact(1);
        }
        state.outbox.push_back(frame.clone());
        if state.blocked || state.flush_due {
            return Pushed::Queued;
        }
        state.flush_due = true;
        Pushed::MustFlush
    }

    /// Queues a frame and writes it at once if the kernel takes it.
    pub(crate) fn send(&self, frame: &WireFrame) -> Pushed {
        let pushed = self.push(frame);
        if pushed == Pushed::MustFlush {
            self.flush();
        }
        pushed
    }

    /// Writes what is queued, as far as the kernel takes it. Whoever got [`Pushed::MustFlush`] calls this.
    pub(crate) fn flush(&self) {
        let Some(io) = self.io.get() else {
            // Before the upgrade: `attach` will flush.
            self.state.lock().flush_due = false;
            return;
        };
        let mut state = self.state.lock();
        state.flush_due = false;
        if state.shut {
            return;
        }
        let (blocked, waited) = (state.blocked, state.waiting);
        let written = state.write_to(io);
        if blocked && state.waiting < waited {
            self.takes.store(true, Ordering::Relaxed);
        }
        let caught_up = state.behind && state.cost() < self.outbox_limit() / 4;
        state.behind &= !caught_up;
        match written {
            Ok(true) => {
                state.blocked = false;
                drop(state);
            }
            Ok(false) => {
                // The owner has to wait for the kernel; wake it only for the news.
                let is_news = !std::mem::replace(&mut state.blocked, true);
                drop(state);
                if is_news {
                    self.waker.wake();
                }
            }
            Err(_) => {
                state.shut = true;
                state.drop_outbox();
                state.closing.get_or_insert_with(|| Box::new(CloseReason::Lost));
                drop(state);
                self.waker.wake();
            }
        }
        // Not before the lock is free: it takes others.
        if caught_up && let Some(feeder) = self.of_site.as_ref().and_then(|of_site| of_site.feeder.get()) {
            feeder();
        }
    }

    /// Flushes each of them; with `ring` in few system calls, where that can be had.
    pub(crate) fn flush_all(sockets: &[Arc<Self>], ring: bool) {
        let ring = ring && ring::is_open();
        for sockets in sockets.chunks(ring::AT_ONCE) {
            let done = if ring && sockets.len() >= WORTH_A_RING { Self::write_together(sockets) } else { 0 };
            let rest = sockets.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
            rest.for_each(|(_, socket)| socket.flush());
        }
    }

    /// Writes the one frame that most sockets have queued, as far as the kernel takes it. Answers with a bit for each
    /// socket that has nothing left, and is flushed.
    fn write_together(sockets: &[Arc<Self>]) -> u64 {
        let held = sockets.iter().enumerate().filter_map(|(at, socket)| {
            let io = socket.io.get()?;
            // Not waited for: somebody else may hold this one and want one of those that are held here.
            let state = socket.state.try_lock()?;
            let small = state.outbox.len() == 1 && state.waiting <= RING_BYTES;
            (small && !state.blocked && !state.shut).then_some((at, io, state))
        });
        let mut held: Vec<_> = held.collect();
        let writes: Vec<_> = held
            .iter()
            .map(|(_, io, state)| ring::Write {
                socket: io.as_fd(),
                bytes: &state.outbox[0].as_bytes()[state.written as usize..],
            })
            .collect();
        let written = ring::write(&writes);
        let mut done = 0;
        for ((at, _, state), count) in held.iter_mut().zip(written) {
            state.advance(count);
            if state.outbox.is_empty() {
                state.flush_due = false;
                done |= 1 << *at;
            }
        }
        done
    }

    /// Asks the connection to end for this reason. The first reason counts.
    pub fn close(&self, reason: CloseReason) {
        let mut state = self.state.lock();
        if state.closing.is_none() {
            state.closing = Some(Box::new(reason));
            drop(state);
            self.waker.wake();
        }
    }

    /// Replaces everything queued by the close frame, except a frame that is half written.
    pub(crate) fn queue_close(&self, frame: &WireFrame, keep_queued: bool) {
        let mut state = self.state.lock();
        if !keep_queued {
            state.give_up_queued();
        }
        state.waiting += frame.len();
        state.outbox.push_back(frame.clone());
        drop(state);
        self.flush();
    }

    /// Ends all delivery: from now on pushes are refused and memory is free.
    pub(crate) fn shut(&self) {
        let mut state = self.state.lock();
        state.shut = true;
        state.drop_outbox();
        state.inbox = None;
    }

    /// Queues an event for the consumer's own handler. `false` when the consumer does not keep up.
    pub(crate) fn push_event(&self, event: Arc<Event>) -> bool {
        let bytes = event.weight();
        let mut state = self.state.lock();
        let inbox = state.inbox.get_or_insert_default();
        let full = inbox.events.len() >= INBOX_EVENTS || inbox.bytes + bytes > INBOX_BYTES;
        if full && !inbox.events.is_empty() {
            return false;
        }
        inbox.bytes += bytes;
        inbox.events.push_back(event);
        drop(state);
        self.waker.wake();
        true
    }

    pub(crate) fn pop_event(&self) -> Option<Arc<Event>> {
        let mut state = self.state.lock();
        let inbox = state.inbox.as_mut()?;
        let event = inbox.events.pop_front();
        inbox.bytes -= event.as_ref().map_or(0, |event| event.weight());
        if inbox.events.is_empty() {
            state.inbox = None;
        }
        event
    }

    pub(crate) fn closing(&self) -> Option<CloseReason> {
        self.state.lock().closing.as_deref().cloned()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.state.lock().blocked
    }

    /// Waits until the kernel takes more, if something waits for that, and writes.
    pub(crate) fn poll_flush(&self, task: &mut std::task::Context<'_>) {
        let Some(io) = self.io() else { return };
        while self.is_blocked() {
            match io.poll_write_ready(task) {
                Poll::Ready(_) => self.flush(),
                Poll::Pending => return,
            }
            if self.is_flushed() {
                return;
            }
        }
    }

    /// Whether everything queued has reached the kernel, or never will.
    pub(crate) fn is_flushed(&self) -> bool {
        let state = self.state.lock();
        state.waiting == 0 || state.shut
    }

    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Notes that the client was heard of, at this second of the node's clock. Tells whether a ping was out.
    pub(crate) fn heard(&self, now: u32) -> bool {
        self.heard_at.store(now, Ordering::Relaxed);
        let pinged = self.pinged.load(Ordering::Relaxed);
        if pinged {
            self.pinged.store(false, Ordering::Relaxed);
        }
        pinged
    }

    /// Whether the client, since this was asked last, has taken something that waited for it.
    pub(crate) fn has_taken(&self) -> bool {
        self.takes.swap(false, Ordering::Relaxed)
    }

    /// Notes where the ping of ours ends that has been queued.
    pub(crate) fn note_ping(&self) {
        let Some(io) = self.io.get() else { return };
        let mut state = self.state.lock();
        state.behind_ping = -i32::try_from(state.waiting).unwrap_or(i32::MAX);
        state.ping_was_off = state.ping_is_off(io).unwrap_or_default();
    }

    /// Whether that ping cannot have been answered: it has not arrived, as it comes behind all that was sent before it,
    /// and of that the client's kernel has taken something since. What waits in our kernel's buffer makes no other sign.
    pub(crate) fn ping_is_on_its_way(&self) -> bool {
        let state = self.state.lock();
        let off = self.io.get().and_then(|io| state.ping_is_off(io));
        off.is_some_and(|off| (1..state.ping_was_off).contains(&off))
    }

    /// Notes that from now on nothing the client sends is read.
    pub(crate) fn stop_listening(&self) {
        self.listening.fetch_or(DEAF, Ordering::Relaxed);
    }

    /// The handler waits for the client to take something: until [`waits_no_more`](Self::waits_no_more) its silence
    /// counts, from this second on.
    pub(crate) fn waits_for_client(&self, now: u32) {
        self.heard(now);
        self.listening.fetch_or(WAITS, Ordering::Release);
    }

    pub(crate) fn waits_no_more(&self) {
        self.listening.fetch_and(!WAITS, Ordering::Release);
    }

    /// Ends that, at this second, after so many.
    pub(crate) fn listen_again(&self, seconds: u32, now: u32) {
        self.forgive(seconds, now);
        self.listening.fetch_and(!DEAF, Ordering::Release);
    }

    /// Seconds in which nobody listened are no silence of the client's.
    pub(crate) fn forgive(&self, seconds: u32, now: u32) {
        let later = |heard: u32| Some(heard.saturating_add(seconds).min(now).max(heard));
        // It never declines.
        let _ = self.heard_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// For how many seconds nothing has come from the client, and whether anybody listened.
    pub(crate) fn silence(&self, now: u32) -> (u32, bool) {
        // In this order: what `listen_again` has added goes with its second store.
        let listening = self.listening.load(Ordering::Acquire) != DEAF;
        (now.saturating_sub(self.heard_at.load(Ordering::Relaxed)), listening)
    }
}

impl About for Socket {
    fn channel(&self) -> &str {
        self.channel_name.as_str()
    }

    fn user(&self) -> &str {
        &self.user
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("channel_name", &self.channel_name)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Queues {
    /// What waits, about.
    fn cost(&self) -> usize {
        self.waiting + self.outbox.len() * FRAME_COST
    }

    /// How many bytes the client's kernel has not confirmed, up to the end of the last ping.
    fn ping_is_off(&self, io: &TcpStream) -> Option<i32> {
        Some(kernel::unconfirmed(io)?.saturating_sub(self.behind_ping))
    }

    /// Forgets what is queued, except a frame that is half written.
    fn give_up_queued(&mut self) {
        let half_written = (self.written > 0).then(|| self.outbox.pop_front()).flatten();
        self.waiting = half_written.as_ref().map_or(0, |frame| frame.len()) - self.written as usize;
        self.outbox = half_written.into_iter().collect();
    }

    /// `Ok(true)` when the outbox is empty now, `Ok(false)` when the kernel takes no more.
    fn write_to(&mut self, io: &TcpStream) -> std::io::Result<bool> {
        thread_local! {
            static JOINED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        while let Some(first) = self.outbox.front() {
            let first_rest = &first.as_bytes()[self.written as usize..];
            let written = if self.outbox.len() == 1 || first_rest.len() >= WRITE_BYTES {
                io.try_write(first_rest)
            } else {
                // Copying some hundred bytes costs less than a vector of pieces or a write for each.
                JOINED.with_borrow_mut(|joined| {
                    joined.clear();
                    joined.extend_from_slice(first_rest);
                    for frame in self.outbox.iter().skip(1) {
                        if joined.len() + frame.len() > WRITE_BYTES {
                            break;
                        }
                        joined.extend_from_slice(frame.as_bytes());
                    }
                    io.try_write(joined)
                })
            };
            match written {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.outbox.capacity() > 16 {
            self.outbox = VecDeque::new();
        }
        Ok(true)
    }

    fn advance(&mut self, count: usize) {
        self.waiting -= count;
        self.behind_ping = self.behind_ping.saturating_add(i32::try_from(count).unwrap_or(i32::MAX));
        let mut written = self.written as usize + count;
        while let Some(first) = self.outbox.front() {
            if written < first.len() {
                break;
            }
            written -= first.len();
            self.outbox.pop_front();
        }
        // A frame's length is limited by what may wait.
        self.written = written as u32;
    }

    fn drop_outbox(&mut self) {
        self.outbox = VecDeque::new();
        self.waiting = 0;
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn socket(outbox_limit: usize) -> Socket {
        let identity = Identity {
            channel_name: "specific.test!one".parse().unwrap(),
            user: "alice".into(),
            path: "/".into(),
            v1: true,
            recheck: None,
            expires_at: crate::clock::NEVER,
            access: crate::scope::Access::Full,
            counted_address: None,
        };
        Socket::new(identity, Arc::default(), outbox_limit, 0)
    }

    async fn attached(socket: &Socket) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
        let server = server.unwrap().0;
        server.writable().await.unwrap();
        socket.attach(server);
        client.unwrap()
    }

    #[test]
    fn a_socket_is_small() {
        // In an `Arc`, and as large as the allocator makes it: 320 bytes.
        assert!(size_of::<Socket>() + 16 <= 320, "{}", size_of::<Socket>());
    }

    #[tokio::test]
    async fn more_than_may_wait_can_come_in_one_turn_to_a_client_that_reads() {
        let socket = socket(40_000);
        let mut client = attached(&socket).await;
        let frame = WireFrame::text(&"x".repeat(16_000));
        // As a dispatcher does it: all of it is queued, then flushed once.
        let pushed: Vec<_> = (0..4).map(|_| socket.push(&frame)).collect();
        assert_eq!(pushed, [Pushed::MustFlush, Pushed::Queued, Pushed::Queued, Pushed::Queued]);
        socket.flush();
        let mut got = vec![0; 4 * frame.len()];
        client.read_exact(&mut got).await.unwrap();
        assert!(got.chunks(frame.len()).all(|one| one == frame.as_bytes()));
        assert!(socket.is_flushed());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_full_once_its_kernel_is() {
        let socket = socket(40_000);
        let _client = attached(&socket).await;
        let frame = WireFrame::text(&"x".repeat(16_000));
        // More than the kernel keeps for any connection.
        let full = (0..10_000).map(|_| socket.send(&frame)).find(|pushed| *pushed == Pushed::Full);
        assert_eq!(full, Some(Pushed::Full));
        assert!(matches!(socket.closing(), Some(CloseReason::SlowConsumer)));
        assert!(socket.waiting() <= 40_000);
        assert_eq!(socket.push(&frame), Pushed::Closed);
    }

    #[tokio::test]
    async fn many_small_frames_fill_an_outbox_by_what_they_really_take() {
        let socket = socket(40_000);
        let pong = WireFrame::pong(b"");
        let pushed = (0..).take_while(|_| socket.push(&pong) != Pushed::Full).count();
        assert!((500..=40_000 / FRAME_COST).contains(&pushed), "{pushed}");
    }

    /// Reads until that is so.
    async fn read_until(client: &mut TcpStream, socket: &Socket, is_so: impl Fn() -> bool) {
        let mut buffer = vec![0; 1 << 16];
        while !is_so() {
            socket.flush();
            let read = tokio::time::timeout(std::time::Duration::from_millis(10), client.read(&mut buffer));
            assert!(!matches!(read.await, Ok(Err(_) | Ok(0))));
        }
    }

    #[tokio::test]
    async fn a_ping_is_on_its_way_while_what_is_before_it_goes_on_arriving() {
        let socket = socket(1 << 20);
        let mut client = attached(&socket).await;
        let frame = WireFrame::text(&"x".repeat(16_000));
        while socket.backlog() == 0 {
            socket.send(&frame);
        }
        socket.send(&WireFrame::ping());
        socket.note_ping();
        assert!(!socket.ping_is_on_its_way(), "nothing has been taken");
        read_until(&mut client, &socket, || socket.ping_is_on_its_way()).await;
        read_until(&mut client, &socket, || !socket.ping_is_on_its_way()).await;
        assert!(socket.is_flushed());
    }

    #[tokio::test]
    async fn a_slow_client_that_is_shed_keeps_nothing() {
        let socket = socket(1 << 20);
        let _client = attached(&socket).await;
        let frame = WireFrame::text(&"x".repeat(16_000));
        while socket.backlog() == 0 {
            socket.send(&frame);
        }
        socket.send(&frame);
        assert!(socket.backlog() > frame.len());
        socket.shed();
        assert!(matches!(socket.closing(), Some(CloseReason::SlowConsumer)));
        assert!(socket.waiting() < frame.len() && socket.backlog() == 0);
    }

    #[test]
    fn an_inbox_is_full_by_number_and_by_bytes() {
        let (few, many) = (socket(0), socket(0));
        let event = |bytes: usize| Arc::new(Event::new("own").with("text", "x".repeat(bytes)));
        let pushed = |socket: &Socket, bytes: usize| (0..).take_while(|_| socket.push_event(event(bytes))).count();
        assert_eq!((pushed(&few, 300_000), pushed(&many, 1)), (3, INBOX_EVENTS));
        while few.pop_event().is_some() {}
        assert!(few.push_event(event(2 * INBOX_BYTES)), "one is let in whatever its size");
        assert_eq!(pushed(&few, 1), 0);
        few.pop_event().unwrap();
        assert!(few.state.lock().inbox.is_none());
    }

    #[test]
    fn who_has_too_much_to_be_stored_is_woken_when_some_of_it_is() {
        use std::sync::atomic::AtomicUsize;
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (socket, count) = (socket(0), Arc::new(Count(AtomicUsize::new(0))));
        let woken = || count.0.load(Ordering::SeqCst);
        socket.register(&Arc::clone(&count).into());
        socket.begin_storing(10);
        socket.begin_storing(10);
        assert!(socket.is_within(20));
        socket.end_storing(0);
        assert_eq!(woken(), 0, "nobody is held back");
        assert!(!socket.is_within(10));
        socket.end_storing(10);
        assert!(woken() == 1 && socket.is_within(10));
    }
}
