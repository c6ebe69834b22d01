//! One socket at its place on a link: whether the application has accepted it, what it has not received yet, and how
//! it ended. Shared by the socket's task and the link's reader.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use channel_layer::Event;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::class::Class;
use super::groups::Joining;
use super::link::Link;
use super::wire::{Headers, Message, kind};

/// Messages of a client's that the application need not have received; and their bytes. One larger one goes alone.
const UNRECEIVED: usize = 8;
const UNRECEIVED_BYTES: usize = 64 * 1024;

/// How an application ends, beside returning.
pub(super) const RAISED: u8 = 1;
pub(super) const CANCELLED: u8 = 2;
const NOT_TAKEN: u8 = 3;

/// The socket, as the link needs it.
pub(crate) trait Client: Send + Sync {
    /// Queues a message of the application's.
    fn queue(&self, message: Message<'_>) -> Queued;

    /// Writes what is queued.
    fn flush(&self);

    /// It has this seat now.
    fn seated(&self, seat: &Arc<Seat>);

    /// Adds it to a group; for its successor, where the one who asks leaves.
    fn join(&self, group: &str, leaves: bool) -> Joining;

    /// Takes it out of a group.
    fn leave(&self, group: &str);

    /// Its consumer's `connect()` has returned, after it was opened again.
    fn ready(&self);

    /// Its worker leaves, or is gone, and its consumer's class goes on elsewhere.
    fn reattach(&self);

    /// The class of its consumer, some of whose handlers may be shared, and whether it goes on elsewhere when the
    /// worker leaves.
    fn is_of(&self, class: &Arc<Class>, reattaches: bool);

    /// Whether so much waits for the client that the application has to. If so, [`Seat::resume`] is called when it
    /// need not any more.
    fn is_behind(&self) -> bool;

    /// The application closes it.
    fn close(&self, code: u16, reason: &str);

    /// The application has returned, or failed.
    fn end(&self, failed: bool);

    /// What the worker says of an application that failed.
    fn failed(&self, why: &str);

    /// The application had not returned some time after its disconnect, and the worker ended it.
    fn cancelled(&self, worker: &str);

    /// The application has waited for it for too long.
    fn too_slow(&self);

    /// Its worker leaves, or is gone: it comes back within this time.
    fn restart(&self, within: Duration);
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It waits to be flushed.
    MustFlush,
    /// It waits for the client.
    Waits,
    /// The socket is closing.
    Closed,
}

/// How the application accepted a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: Headers,
}

/// What the application answered instead.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Deny {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

/// Headers may hold cookies, and the body is a page: neither is for the log.
impl fmt::Debug for Deny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deny").field("status", &self.status).finish_non_exhaustive()
    }
}

/// What became of a handshake.
#[derive(Debug)]
pub(super) enum Answer {
    Accept(Accept),
    Deny(Deny),
    /// This worker has no room for it, and the application has not seen it.
    NotTaken,
    /// The link is gone.
    Lost,
}

/// See the [module](self).
pub(crate) struct Seat {
    pub(super) sid: u64,
    link: Arc<Link>,
    client: Arc<dyn Client>,
    state: Mutex<SeatState>,
    /// The socket's task, which waits for the answer or for credit.
    waker: AtomicWaker,
    /// Who waits for its end.
    ending: AtomicWaker,
}

#[derive(Default)]
struct SeatState {
    /// The answer is there, or nobody waits for it any more.
    is_answered: bool,
    is_open: bool,
    /// Not taken yet.
    answer: Option<Answer>,
    /// It takes one of the worker's handshakes.
    has_slot: bool,
    /// Bytes of messages that the application has not received, and since when.
    unreceived: VecDeque<(u32, Instant)>,
    unreceived_bytes: usize,
    is_paused: bool,
    waiting_since: Option<Instant>,
    has_ended: bool,
    is_closed: bool,
    /// Its consumer's class goes on elsewhere when the worker leaves.
    reattaches: bool,
    /// It does so now: the application gets no more, and what it does with groups does not count.
    is_detached: bool,
    /// What the consumer has left for the next one.
    left: Option<Box<[u8]>>,
}

impl Seat {
    pub(super) fn new(sid: u64, link: Arc<Link>, client: Arc<dyn Client>) -> Self {
        let state = Mutex::new(SeatState { has_slot: true, ..SeatState::default() });
        Self { sid, link, client, state, waker: AtomicWaker::new(), ending: AtomicWaker::new() }
    }

    pub(super) fn client(&self) -> &dyn Client {
        &*self.client
    }

    /// The client has taken enough: the application goes on.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.is_paused) {
            state.waiting_since = None;
            if !state.is_closed {
                self.link.queue(kind::RESUME, self.sid, &[]);
            }
        }
    }

    /// Hands an event to the application; who has no room for that is too slow.
    pub(crate) fn event(&self, event: &Arc<Event>) {
        if !self.link.event(self.sid, event) {
            self.link.tell_dropped(
                "events_full",
                "a worker takes no events, and sockets that hear some are closed with 4008",
            );
            self.client.too_slow();
        }
    }

    // ---- what the link's reader has for it ----

    /// The class of its consumer.
    pub(super) fn set_class(&self, class: &Arc<Class>, reattaches: bool) {
        self.state.lock().reattaches = reattaches;
        self.client.is_of(class, reattaches);
    }

    /// What the consumer has left for the next one.
    pub(super) fn leave_state(&self, state: &[u8]) {
        self.state.lock().left = if state.is_empty() { None } else { Some(state.into()) };
    }

    /// Whether the socket is open and stays so when the worker leaves.
    pub(super) fn may_reattach(&self) -> bool {
        let state = self.state.lock();
        state.reattaches && state.is_open
    }

    pub(super) fn is_detached(&self) -> bool {
        self.state.lock().is_detached
    }

    /// The application's answer. `false` when there was one already.
    pub(super) fn answered(&self, answer: Answer) -> bool {
        let mut state = self.state.lock();
        self.free_slot(&mut state);
        if std::mem::replace(&mut state.is_answered, true) {
            return false;
        }
        state.is_open = matches!(answer, Answer::Accept(_));
        state.answer = Some(answer);
        drop(state);
        self.waker.wake();
        true
    }

    fn free_slot(&self, state: &mut SeatState) {
        if std::mem::take(&mut state.has_slot) {
            self.link.free_slot();
        }
    }

    /// Whether the application may send.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().is_open
    }

    /// After messages were queued: makes the application wait if the client is behind.
    pub(super) fn pause_if_behind(&self) {
        // Under the lock, so that a `resume` in between comes after it on the link, too.
        let mut state = self.state.lock();
        if !state.is_paused && !state.is_closed && self.client.is_behind() {
            state.is_paused = true;
            self.link.queue(kind::PAUSE, self.sid, &[]);
        }
    }

    /// A `send()` of the application has begun to wait. `true` if that is news.
    pub(super) fn waits(&self) -> bool {
        let mut state = self.state.lock();
        let is_news = state.is_paused && state.waiting_since.is_none();
        if is_news {
            state.waiting_since = Some(Instant::now());
        }
        is_news
    }

    /// Since when a `send()` of the application has waited.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.state.lock().waiting_since
    }

    /// The application has received so many messages.
    pub(super) fn credit(&self, count: u32) {
        let mut state = self.state.lock();
        let count = state.unreceived.len().min(count as usize);
        for _ in 0..count {
            if let Some((bytes, since)) = state.unreceived.pop_front() {
                state.unreceived_bytes -= bytes as usize;
                self.link.metrics().received(since.elapsed().as_secs_f64());
            }
        }
        drop(state);
        self.waker.wake();
    }

    /// The application is done with it. `true` once it is to be forgotten.
    pub(super) fn ended(&self, outcome: u8) -> bool {
        let answer = match outcome {
            NOT_TAKEN => Answer::NotTaken,
            _ => Answer::Deny(Deny { status: 500, headers: Vec::new(), body: Vec::new() }),
        };
        // One that was detached has a successor.
        if !self.answered(answer) && self.is_open() && !self.is_detached() {
            self.client.end(outcome == RAISED);
        }
        let mut state = self.state.lock();
        state.has_ended = true;
        // Nobody receives any more.
        state.unreceived = VecDeque::new();
        state.unreceived_bytes = 0;
        let is_over = state.is_closed || state.is_detached || outcome == NOT_TAKEN;
        drop(state);
        self.waker.wake();
        self.ending.wake();
        is_over
    }

    /// The link is gone.
    pub(super) fn lost(&self, within: Duration) {
        self.answered(Answer::Lost);
        let (was_open, reattaches, was_detached) = {
            let mut state = self.state.lock();
            state.has_ended = true;
            let (reattaches, was_detached) = (state.reattaches, state.is_detached);
            state.is_detached |= reattaches;
            (std::mem::take(&mut state.is_open), reattaches, was_detached)
        };
        self.waker.wake();
        self.ending.wake();
        match (was_open, reattaches) {
            // Who has detached it waits for its end.
            (true, true) if was_detached => {}
            (true, true) => self.client.reattach(),
            (true, false) => self.client.restart(within),
            (false, _) => {}
        }
    }

    // ---- what the socket's task does with it ----

    /// Lets the application finish with what it has, and go. Nothing that comes later is for it.
    pub(crate) fn detach(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.is_detached, true) && !state.has_ended {
            self.link.queue(kind::DETACH, self.sid, &[]);
        }
        drop(state);
        self.waker.wake();
    }

    /// Waits until the application has ended; for who has detached it.
    pub(crate) async fn has_ended(&self) {
        poll_fn(|task| {
            self.ending.register(task.waker());
            if self.state.lock().has_ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// What the consumer has left for the next one.
    pub(crate) fn left(&self) -> Option<Box<[u8]>> {
        self.state.lock().left.clone()
    }

    /// Whether its worker is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.link.is_over()
    }

    /// How long its worker lets it stay.
    pub(crate) fn window(&self) -> Duration {
        self.link.window()
    }

    fn poll_answer(&self, task: &Context<'_>) -> Poll<Answer> {
        self.waker.register(task.waker());
        self.state.lock().answer.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether a message of so many bytes goes now, and then counts as not received; or never, because nobody is there
    /// any more.
    fn poll_credit(&self, bytes: usize) -> Poll<bool> {
        let mut state = self.state.lock();
        if state.has_ended || state.is_detached {
            return Poll::Ready(false);
        }
        let fits = state.unreceived.len() < UNRECEIVED && state.unreceived_bytes + bytes <= UNRECEIVED_BYTES;
        if !state.unreceived.is_empty() && !fits {
            return Poll::Pending;
        }
        state.unreceived.push_back((u32::try_from(bytes).unwrap_or(u32::MAX), Instant::now()));
        state.unreceived_bytes += bytes;
        Poll::Ready(true)
    }
}

/// A socket's hold on its seat. Dropped without a word it counts as lost: the application hears 1006.
pub(crate) struct Seated(Arc<Seat>);

impl Seated {
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        Self(seat)
    }

    /// The seat itself, for who tells it that the client has taken something.
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.0
    }

    /// The worker's name.
    pub(crate) fn worker(&self) -> &str {
        &self.0.link.worker
    }

    /// Waits for what becomes of the handshake.
    pub(super) async fn answer(&self) -> Answer {
        poll_fn(|task| self.0.poll_answer(task)).await
    }

    /// Hands on a message of the client's once the application has received enough of those before it, and the link
    /// has room. Nothing is handed on any more when the socket `is_over`, which also registers who is to be woken then.
    /// `false` if the application goes on elsewhere: the message is for its next seat.
    pub(crate) async fn send(&self, message: Message<'_>, is_over: impl Fn(&Waker) -> bool) -> bool {
        let (seat, bytes) = (&self.0, message.bytes());
        let goes = poll_fn(|task| {
            seat.waker.register(task.waker());
            if is_over(task.waker()) { Poll::Ready(false) } else { seat.poll_credit(bytes.len()) }
        });
        if !goes.await {
            return !seat.is_detached();
        }
        let mut room = pin!(seat.link.room(bytes.len()));
        let room = poll_fn(|task| if is_over(task.waker()) { Poll::Ready(None) } else { room.as_mut().poll(task) });
        match room.await {
            None => !seat.is_detached(),
            Some(room) => {
                // Under the lock: it must not come behind DETACH.
                let state = seat.state.lock();
                if state.is_detached {
                    seat.link.give_back(room);
                } else {
                    seat.link.queue_message(message.kind(), seat.sid, bytes, room);
                }
                !state.is_detached
            }
        }
    }

    /// Tells the application how the socket ended. Only the first time counts.
    pub(crate) fn closed(&self, code: u16, reason: &str) {
        let mut state = self.0.state.lock();
        if std::mem::replace(&mut state.is_closed, true) {
            return;
        }
        // Nobody waits for an answer any more; the worker's place is taken until it has given one.
        state.is_answered = true;
        state.is_open = false;
        state.waiting_since = None;
        let is_over = state.has_ended;
        let knows_it = matches!(state.answer, Some(Answer::NotTaken)) || (state.is_detached && is_over);
        if !knows_it {
            self.0.link.queue(kind::CLOSED, self.0.sid, &[&code.to_le_bytes(), reason.as_bytes()]);
        }
        drop(state);
        if is_over {
            self.0.link.forget(self.0.sid);
        }
    }

    /// Gives it up without a word: the worker has not taken it.
    pub(super) fn not_taken(self) {
        self.0.state.lock().is_closed = true;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.closed(1006, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_shows_no_cookie_and_no_page_of_a_refusal() {
        let headers = vec![(b"set-cookie".to_vec(), b"sessionid=secret".to_vec())];
        let refused = Answer::Deny(Deny { status: 403, headers, body: b"a page".to_vec() });
        assert_eq!(format!("{refused:?}"), "Deny(Deny { status: 403, .. })");
    }
}
