//! A link to a worker, from both proofs to its end: frames of many sockets in order, both ways.
//!
//! What goes out is written by the link's own task, all that has come together in one piece; control frames are few
//! and small, messages of clients take room that is given back when they are written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::dial::{Reader, Writer};
use super::discovery::Address;
use super::groups::{EVENTS, Groups, LastEvent};
use super::metrics::BridgeMetrics;
use super::pool::Bridge;
use super::seat::{Accept, Answer, CANCELLED, Client, Deny, Queued, RAISED, Seat, Seated};
use super::wire::{self, Frame, MAX_FRAME, kind};

/// Bytes of clients' messages that wait to be written to one worker.
pub(super) const ROOM: usize = 16 << 20;

/// How often a link is looked after.
const TICK: Duration = Duration::from_millis(500);

/// How often it is asked whether the worker lives, in ticks; and after what silence it gets no more sockets, or is
/// given up. Ticks and not time: who was frozen has not listened either.
const PING_TICKS: u32 = 10;
const QUIET_TICKS: u32 = 20;
const SILENT_TICKS: u32 = 120;

/// What is kept of a buffer that was larger.
const KEPT: usize = 256 * 1024;

/// Bytes read at a time, at least.
const READ: usize = 64 * 1024;

/// How long the last frames may take when the node stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a rendering may take before another worker is asked.
const RENDER_TIME: Duration = Duration::from_secs(10);

/// Pause between two waves of sockets that are told to leave.
const WAVE: Duration = Duration::from_millis(100);

/// Why a link is over, or never was one.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it cannot be reached")]
    Address(#[source] std::io::Error),
    #[error("TLS fails")]
    Tls(#[source] std::io::Error),
    #[error("it does not answer in time")]
    Late,
    #[error("it knows another secret")]
    Secret,
    #[error("it has closed the link")]
    Closed(#[source] std::io::Error),
    #[error("it has sent a frame of kind {0}, which says that it speaks another protocol")]
    UnknownKind(u8),
    #[error("it has sent what cannot be read, in a frame of kind {0}")]
    Malformed(u8),
    #[error("it has sent a frame of a length that no frame may have")]
    TooLarge,
    #[error("nothing has been heard of it for a minute")]
    Silent,
}

impl LinkError {
    /// As metrics show it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Tls(_) => "tls",
            Self::Late => "late",
            Self::Secret => "secret",
            Self::Closed(_) => "closed",
            Self::UnknownKind(_) => "unknown_kind",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
            Self::Silent => "silent",
        }
    }
}

/// See the [module](self).
pub(super) struct Link {
    pub(super) bridge: Arc<Bridge>,
    pub(super) address: Address,
    /// What the worker calls itself, and its application.
    pub(super) worker: String,
    pub(super) app: String,
    /// Handshakes at once.
    pub(super) max_opening: usize,
    /// Sockets that the worker takes; 0 is no limit.
    pub(super) max_sockets: usize,
    pub(super) opening: AtomicUsize,
    /// It knows the frames of groups.
    has_groups: bool,
    pub(super) groups: Groups,
    opens: Mutex<()>,
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    pub(super) out: Mutex<Out>,
    pub(super) out_ready: Notify,
    room: Semaphore,
    heard: AtomicBool,
    is_quiet: AtomicBool,
    draining: Mutex<Option<Duration>>,
    drain_begins: Notify,
    /// Its address is its successor's.
    is_let_go: AtomicBool,
    /// Those whose application waits for the client.
    waiting: Mutex<Vec<Arc<Seat>>>,
    counts: Mutex<HashMap<String, u64>>,
}

#[derive(Default)]
pub(super) struct Out {
    pub(super) bytes: Vec<u8>,
    /// Room to be given back when they are written.
    room: usize,
    pub(super) is_over: bool,
    /// Bytes of events among them.
    pub(super) event_bytes: usize,
    pub(super) last_event: LastEvent,
    last_sid: u64,
}

/// Room for a message.
pub(super) struct Room(u32);

/// What a frame takes while it waits to be written.
pub(super) enum Takes {
    /// Nothing that is counted.
    Nothing,
    /// Room of a client's message.
    Room(Room),
    /// Room of events, by its length.
    Event,
}

impl Link {
    pub(super) fn new(bridge: Arc<Bridge>, address: Address, welcome: wire::Welcome) -> Self {
        let own = bridge.settings.max_opening;
        Self {
            bridge,
            address,
            worker: welcome.worker,
            app: welcome.app,
            max_opening: if welcome.max_opening == 0 { own } else { own.min(welcome.max_opening) },
            max_sockets: welcome.max_sockets,
            opening: AtomicUsize::new(0),
            has_groups: welcome.groups,
            groups: Groups::default(),
            opens: Mutex::default(),
            seats: Mutex::default(),
            out: Mutex::default(),
            out_ready: Notify::new(),
            room: Semaphore::new(ROOM),
            heard: AtomicBool::new(true),
            is_quiet: AtomicBool::new(false),
            draining: Mutex::default(),
            drain_begins: Notify::new(),
            is_let_go: AtomicBool::new(false),
            waiting: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    pub(super) fn metrics(&self) -> &BridgeMetrics {
        &self.bridge.metrics
    }

    /// How many sockets it carries, those that are opening included.
    pub(super) fn sockets(&self) -> usize {
        self.seats.lock().len()
    }

    /// Whether it may get one more socket at all.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_quiet() && !self.is_draining() && (self.max_sockets == 0 || self.sockets() < self.max_sockets)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.out.lock().is_over
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.lock().is_some()
    }

    pub(super) fn is_let_go(&self) -> bool {
        self.is_let_go.load(Ordering::Relaxed)
    }

    pub(super) fn note_let_go(&self) {
        self.is_let_go.store(true, Ordering::Relaxed);
    }

    /// How long its sockets may stay when it leaves; nothing if it is gone.
    pub(super) fn window(&self) -> Duration {
        if self.is_over() { Duration::ZERO } else { self.draining.lock().unwrap_or(self.bridge.leaving.window) }
    }

    /// Gives a socket a seat; one of the worker's handshakes was taken for it.
    pub(super) fn open(self: &Arc<Self>, body: &[u8], client: Arc<dyn Client>) -> Seated {
        // Under one lock: workers see the numbers go up. Not under that of what is written: the client takes its own.
        let opens = self.opens.lock();
        let sid = {
            let mut out = self.out.lock();
            out.last_sid += 1;
            out.last_sid
        };
        let seat = Arc::new(Seat::new(sid, Arc::clone(self), client));
        seat.client().seated(&seat);
        let mut out = self.out.lock();
        if out.is_over {
            // It was lost after it was chosen.
            drop(out);
            drop(opens);
            seat.lost(Duration::ZERO);
        } else {
            self.seats.lock().insert(seat.sid, Arc::clone(&seat));
            wire::put(&mut out.bytes, kind::OPEN, seat.sid, &[body]);
            drop(out);
            self.out_ready.notify_one();
        }
        Seated::new(seat)
    }

    pub(super) fn free_slot(&self) {
        self.opening.fetch_sub(1, Ordering::Relaxed);
        self.bridge.changed();
    }

    pub(super) fn forget(&self, sid: u64) {
        self.seats.lock().remove(&sid);
        if self.max_sockets > 0 {
            // There is a place again.
            self.bridge.changed();
        }
    }

    /// Queues a control frame. `false` when the link is over.
    pub(super) fn queue(&self, kind: u8, sid: u64, body: &[&[u8]]) -> bool {
        self.put(kind, sid, body, Takes::Nothing)
    }

    /// Waits until a message of so many bytes may be queued. `None` when the link is over.
    pub(super) async fn room(&self, bytes: usize) -> Option<Room> {
        // Past 4 GiB no message gets here.
        let room = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        let permit = self.room.acquire_many(room).await.ok()?;
        permit.forget();
        Some(Room(room))
    }

    /// Room that is not needed after all.
    pub(super) fn give_back(&self, room: Room) {
        self.room.add_permits(room.0 as usize);
    }

    /// Queues a message of a client's.
    pub(super) fn queue_message(&self, kind: u8, sid: u64, message: &[u8], room: Room) {
        self.put(kind, sid, &[message], Takes::Room(room));
    }

    /// Queues a frame. `false` when the link is over, or has no room for one more event.
    pub(super) fn put(&self, kind: u8, sid: u64, body: &[&[u8]], takes: Takes) -> bool {
        let mut out = self.out.lock();
        if out.is_over || (matches!(takes, Takes::Event) && out.event_bytes > EVENTS) {
            return false;
        }
        let start = out.bytes.len();
        wire::put(&mut out.bytes, kind, sid, body);
        match takes {
            Takes::Nothing => {}
            Takes::Room(room) => out.room += room.0 as usize,
            Takes::Event => out.event_bytes += out.bytes.len() - start,
        }
        drop(out);
        if start == 0 {
            self.out_ready.notify_one();
        }
        true
    }

    /// Carries frames until the worker goes, or `stop`.
    pub(super) async fn run(
        self: &Arc<Self>,
        reader: Reader,
        writer: Writer,
        early: Vec<u8>,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        // Applications still hear how their sockets ended when the node stops; who does not take it in time hears 1006.
        let patience = async {
            stop.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        if self.has_groups {
            self.tell_layer();
        }
        tokio::select! {
            result = self.read(reader, early) => result,
            () = self.answer_joins() => Ok(()),
            () = self.send_waiting() => Ok(()),
            result = self.write(writer, stop) => result,
            result = self.look_after() => result,
            () = self.drain() => Ok(()),
            () = patience => Ok(()),
        }
    }

    /// Ends it for all its sockets.
    pub(super) fn end(&self) {
        self.out.lock().is_over = true;
        self.room.close();
        self.waiting.lock().clear();
        self.end_groups();
        let seats = std::mem::take(&mut *self.seats.lock());
        let within = self.bridge.leaving.spread(seats.len(), None);
        seats.values().for_each(|seat| seat.lost(within));
    }

    /// Writes what is queued as it comes; after `stop` only what is there.
    async fn write(&self, mut writer: Writer, stop: &CancellationToken) -> Result<(), LinkError> {
        let mut spare = Vec::new();
        loop {
            let (bytes, room) = {
                let mut out = self.out.lock();
                out.event_bytes = 0;
                out.last_event = LastEvent::default();
                (std::mem::replace(&mut out.bytes, std::mem::take(&mut spare)), std::mem::take(&mut out.room))
            };
            if bytes.is_empty() {
                spare = bytes;
                if stop.run_until_cancelled(self.out_ready.notified()).await.is_none() && self.is_written() {
                    return writer.shutdown().await.map_err(LinkError::Closed);
                }
                continue;
            }
            writer.write_all(&bytes).await.map_err(LinkError::Closed)?;
            writer.flush().await.map_err(LinkError::Closed)?;
            self.room.add_permits(room);
            spare = bytes;
            spare.clear();
            if spare.capacity() > KEPT {
                spare = Vec::new();
            }
        }
    }

    fn is_written(&self) -> bool {
        self.out.lock().bytes.is_empty()
    }

    async fn read(self: &Arc<Self>, mut reader: Reader, early: Vec<u8>) -> Result<(), LinkError> {
        let (mut buffer, mut wanted) = (early, 0);
        let mut touched: Vec<Arc<Seat>> = Vec::new();
        loop {
            let mut done = 0;
            while buffer.len() - done >= wanted {
                match wire::split(&buffer[done..], MAX_FRAME).map_err(|_| LinkError::TooLarge)? {
                    Err(needed) => wanted = needed,
                    Ok((frame, length)) => {
                        self.take(&frame, &mut touched)?;
                        done += length;
                        wanted = 0;
                    }
                }
            }
            for seat in touched.drain(..) {
                seat.client().flush();
                seat.pause_if_behind();
            }
            self.tell_published();
            buffer.drain(..done);
            if buffer.is_empty() && buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
            buffer.reserve(READ.max(wanted.saturating_sub(buffer.len())));
            if reader.read_buf(&mut buffer).await.map_err(LinkError::Closed)? == 0 {
                return Err(LinkError::Closed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Does what a frame says. Sockets that something was queued for are `touched`.
    fn take(self: &Arc<Self>, frame: &Frame<'_>, touched: &mut Vec<Arc<Seat>>) -> Result<(), LinkError> {
        let malformed = |_| LinkError::Malformed(frame.kind);
        match (frame.kind, frame.sid) {
            (kind::PING, 0) if frame.body.len() == 8 => {
                self.queue(kind::PONG, 0, &[frame.body]);
                return Ok(());
            }
            (kind::PONG, 0) => return Ok(()),
            (kind::DRAIN, 0) => {
                self.begin_drain(wire::drain(frame.body).map_err(malformed)?);
                return Ok(());
            }
            (kind::COUNTS, 0) => {
                self.count(wire::counts(frame.body).map_err(malformed)?);
                return Ok(());
            }
            (kind::PUBLISH | kind::SEND | kind::RENDERED, _) => return self.take_of_link(frame),
            (kind::PING | kind::DRAIN, _)
            | (kind::JOIN | kind::LEAVE | kind::CLASS, 0)
            | (kind::ACCEPT..=kind::WAITING, 0) => {
                return Err(LinkError::Malformed(frame.kind));
            }
            (kind::ACCEPT..=kind::CLOSE | kind::CREDIT..=kind::WAITING, _)
            | (kind::JOIN | kind::LEAVE | kind::CLASS | kind::STATE | kind::READY, _) => {}
            (kind::LATER.., _) => return Ok(()),
            _ => return Err(LinkError::UnknownKind(frame.kind)),
        }
        let Some(seat) = self.seats.lock().get(&frame.sid).cloned() else {
            self.metrics().drop_one("unknown_sid");
            return Ok(());
        };
        match frame.kind {
            kind::TEXT => {
                let text = std::str::from_utf8(frame.body).map_err(|_| LinkError::Malformed(frame.kind))?;
                self.message(seat, wire::Message::Text(text), touched);
            }
            kind::BINARY => self.message(seat, wire::Message::Binary(frame.body), touched),
            kind::CREDIT => seat.credit(wire::number(frame.body).map_err(malformed)?),
            kind::ACCEPT => {
                let (subprotocol, headers) = wire::accept(frame.body).map_err(malformed)?;
                self.answer(&seat, Answer::Accept(Accept { subprotocol, headers }));
            }
            kind::DENY => {
                let (status, headers, body) = wire::deny(frame.body).map_err(malformed)?;
                self.answer(&seat, Answer::Deny(Deny { status, headers, body }));
            }
            kind::CLOSE => {
                let (code, reason) = wire::code(frame.body).map_err(malformed)?;
                if seat.is_open() {
                    seat.client().close(code, reason);
                } else {
                    self.metrics().drop_one("not_open");
                }
            }
            kind::WAITING => {
                if seat.waits() {
                    self.waiting.lock().push(seat);
                }
            }
            kind::END => {
                let (outcome, text) = frame.body.split_first().ok_or(LinkError::Malformed(frame.kind))?;
                let text = String::from_utf8_lossy(text);
                match *outcome {
                    RAISED => seat.client().failed(&text),
                    CANCELLED => seat.client().cancelled(&self.worker),
                    _ => {}
                }
                if self.is_draining() && *outcome != RAISED && seat.is_open() && !seat.is_detached() {
                    // Its worker ends it rather than the application: it comes back elsewhere.
                    let window = *self.draining.lock();
                    seat.client().restart(self.bridge.leaving.spread(self.sockets(), window));
                }
                if seat.ended(*outcome) {
                    self.forget(seat.sid);
                }
            }
            _ => return self.take_of_seat(&seat, frame),
        }
        Ok(())
    }

    fn answer(&self, seat: &Seat, answer: Answer) {
        if !seat.answered(answer) {
            // Nobody waits for it any more, mostly.
            self.metrics().drop_one("not_open");
        }
    }

    fn message(&self, seat: Arc<Seat>, message: wire::Message<'_>, touched: &mut Vec<Arc<Seat>>) {
        if !seat.is_open() {
            return self.metrics().drop_one("not_open");
        }
        match seat.client().queue(message) {
            Queued::MustFlush => touched.push(seat),
            Queued::Waits => {
                if touched.last().is_none_or(|last| !Arc::ptr_eq(last, &seat)) {
                    touched.push(seat);
                }
            }
            Queued::Closed => self.metrics().drop_one("closing"),
        }
    }

    /// Takes over what the worker counts, as far as there is a place for it.
    fn count(&self, counts: Vec<(String, u64)>) {
        let mut known = self.counts.lock();
        for (reason, count) in counts {
            let Some(reason) = super::metrics::DROPPED.iter().find(|known| **known == reason) else { continue };
            let before = known.insert((*reason).to_owned(), count).unwrap_or_default();
            self.metrics().drop_many(reason, count.saturating_sub(before));
        }
    }

    fn begin_drain(&self, window: f64) {
        let mut draining = self.draining.lock();
        if draining.is_none() {
            *draining = Some(Duration::from_secs_f64(window));
            drop(draining);
            self.drain_begins.notify_one();
            self.bridge.let_go(self);
            self.bridge.changed();
        }
    }

    /// Once the worker asks for it: tells its sockets to come back elsewhere, spread over its window.
    async fn drain(&self) {
        self.drain_begins.notified().await;
        let window = self.draining.lock().unwrap_or_default();
        let seats: Vec<Arc<Seat>> = self.seats.lock().values().cloned().collect();
        let (told_over, back_within) = self.bridge.leaving.goodbye(seats.len(), window);
        tracing::info!(
            worker = self.worker,
            path = self.bridge.path(),
            sockets = seats.len(),
            "a worker leaves: its sockets are told to come back"
        );
        let tell = |seats: &[Arc<Seat>]| {
            seats.iter().for_each(|seat| send_elsewhere(seat, back_within));
        };
        let waves = (told_over.as_millis() / WAVE.as_millis()).max(1) as usize;
        let size = seats.len().div_ceil(waves).max(1);
        // Few sockets are told one by one, and leave as slowly.
        let pause = told_over / u32::try_from(seats.len().div_ceil(size)).unwrap_or(u32::MAX).max(1);
        for wave in seats.chunks(size) {
            tell(wave);
            sleep(pause).await;
        }
        loop {
            // Those that were opening meanwhile.
            let seats: Vec<Arc<Seat>> = self.seats.lock().values().cloned().collect();
            tell(&seats);
            sleep(WAVE).await;
        }
    }

    async fn look_after(&self) -> Result<(), LinkError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut count, mut silent) = (0_u64, 0);
        loop {
            ticks.tick().await;
            if count.is_multiple_of(u64::from(PING_TICKS)) {
                self.queue(kind::PING, 0, &[&count.to_le_bytes()]);
            }
            count += 1;
            silent = if self.heard.swap(false, Ordering::Relaxed) { 0 } else { silent + 1 };
            if silent >= SILENT_TICKS {
                return Err(LinkError::Silent);
            }
            let is_quiet = silent >= QUIET_TICKS;
            if self.is_quiet.swap(is_quiet, Ordering::Relaxed) != is_quiet {
                let seconds = silent / 2;
                match is_quiet {
                    true => tracing::warn!(
                        worker = self.worker,
                        path = self.bridge.path(),
                        seconds,
                        "a worker is silent: it gets no new sockets"
                    ),
                    false => tracing::warn!(worker = self.worker, path = self.bridge.path(), "a worker is heard again"),
                }
                self.bridge.changed();
            }
            self.look_at_waiting();
            self.look_at_renders(RENDER_TIME);
        }
    }

    /// Gives up those clients that applications have waited for too long.
    fn look_at_waiting(&self) {
        let slow = self.bridge.settings.slow;
        let mut too_slow = Vec::new();
        self.waiting.lock().retain(|seat| match seat.waiting_since() {
            None => false,
            Some(since) if since.elapsed() < slow => true,
            Some(_) => {
                too_slow.push(Arc::clone(seat));
                false
            }
        });
        too_slow.iter().for_each(|seat| seat.client().too_slow());
    }
}

/// The worker leaves: the socket is told to come back, or goes on with another worker.
fn send_elsewhere(seat: &Seat, within: Duration) {
    if seat.may_reattach() {
        seat.client().reattach();
    } else if seat.is_open() {
        seat.client().restart(within);
    }
}
