//! What a link carries for groups: joining and leaving, events both ways, renderings of shared handlers.
//!
//! An event that many sockets of a worker hear is one frame, at the end of which the sockets are listed: the list grows
//! for as long as the frame is the last one that waits to be written.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use channel_layer::{ChannelLayer, ChannelName, Event, GroupName, LayerError};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::link::{Link, LinkError, Takes};
use super::seat::Seat;
use super::wire::{self, Frame, kind};
use crate::seldom::SeldomOfKind;

/// Bytes of events, also of those to be rendered, that wait to be written to one worker. A socket for which there is no
/// room is closed.
pub(super) const EVENTS: usize = 16 << 20;

/// Sockets listed in one frame.
const LISTED: usize = 4096;

/// What a worker may have asked for without an answer: joins, and events to be sent.
const ASKED: usize = 65_536;

/// Bytes of what a consumer may leave for the next one.
const MAX_STATE: usize = 4096;

/// How long sending to one channel may take.
const SEND_TIME: Duration = Duration::from_secs(5);

/// How long it waits when the layer's queue is full and nothing can be heard of it.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// What became of a wish to join.
pub(crate) enum Joining {
    Joined,
    /// Not a name, or too many.
    Refused,
    /// When this is over.
    Later(BoxFuture<'static, ()>),
}

/// What became of an event for one channel, as frames say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Taken = 0,
    Full = 1,
    Away = 2,
    Refused = 3,
}

/// What a link keeps for groups.
#[derive(Default)]
pub(super) struct Groups {
    joins: Mutex<Vec<Join>>,
    joins_ready: Notify,
    to_send: Mutex<VecDeque<Outgoing>>,
    to_send_ready: Notify,
    /// Taken by the layer, or dropped, and not told to the worker yet.
    published: AtomicU32,
    told: SeldomOfKind,
    pub(super) renders: Mutex<Renders>,
}

type Join = BoxFuture<'static, (Arc<Seat>, String)>;

enum Outgoing {
    Group(GroupName, Event),
    Channel(u32, ChannelName, Event),
}

/// What a worker has been asked to render.
#[derive(Default)]
pub(super) struct Renders {
    pub(super) last: u64,
    pub(super) asked: HashMap<u64, super::class::Render>,
}

/// The frame of an event that is the last one in the buffer.
#[derive(Default)]
pub(super) struct LastEvent {
    event: Option<Arc<Event>>,
    start: usize,
    end: usize,
    listed: usize,
}

impl LastEvent {
    /// Adds a socket to the list of its frame, if it is of this event and still the last.
    fn add(&mut self, event: &Arc<Event>, sid: u64, out: &mut Vec<u8>) -> bool {
        let is_last = self.end == out.len() && self.listed < LISTED;
        if !is_last || !self.event.as_ref().is_some_and(|last| Arc::ptr_eq(last, event)) {
            return false;
        }
        let Some(length) = out.get_mut(self.start..).and_then(|frame| frame.first_chunk_mut::<4>()) else {
            return false;
        };
        *length = (u32::from_le_bytes(*length) + 8).to_le_bytes();
        out.extend_from_slice(&sid.to_le_bytes());
        self.end = out.len();
        self.listed += 1;
        true
    }
}

impl Link {
    /// Hands an event to the socket's application. `false` if there is no room for it.
    pub(super) fn event(&self, sid: u64, event: &Arc<Event>) -> bool {
        {
            let mut out = self.out.lock();
            let out = &mut *out;
            if out.is_over || out.last_event.add(event, sid, &mut out.bytes) {
                return true;
            }
            if out.event_bytes > EVENTS {
                return false;
            }
        }
        // Once for all sockets that the worker has.
        let Ok(bytes) = event.to_msgpack() else {
            self.tell_dropped("unreadable_event", "an event cannot be written for a worker, and is dropped");
            return true;
        };
        if bytes.len() > super::MAX_MESSAGE {
            self.tell_dropped("large_event", "an event is too large for a link, and is dropped");
            return true;
        }
        let mut out = self.out.lock();
        let out = &mut *out;
        if out.is_over || out.last_event.add(event, sid, &mut out.bytes) {
            return true;
        }
        let (was_empty, start) = (out.bytes.is_empty(), out.bytes.len());
        let length = (bytes.len() as u32).to_le_bytes();
        wire::put(&mut out.bytes, kind::EVENT, 0, &[&length, &bytes, &sid.to_le_bytes()]);
        let end = out.bytes.len();
        out.event_bytes += end - start;
        out.last_event = LastEvent { event: Some(Arc::clone(event)), start, end, listed: 1 };
        if was_empty {
            self.out_ready.notify_one();
        }
        true
    }

    /// Says what the worker has to know to put its own layer in the place of the site's.
    pub(super) fn tell_layer(&self) {
        self.queue(kind::LAYER, 0, &[&self.bridge.layer_body()]);
    }

    /// Does what a frame of a socket's says.
    pub(super) fn take_of_seat(self: &Arc<Self>, seat: &Arc<Seat>, frame: &Frame<'_>) -> Result<(), LinkError> {
        let malformed = |_| LinkError::Malformed(frame.kind);
        match frame.kind {
            kind::JOIN => self.join(seat, wire::text(frame.body).map_err(malformed)?),
            kind::LEAVE => {
                let group = wire::text(frame.body).map_err(malformed)?;
                // What goes on elsewhere stays in its groups.
                if !seat.is_detached() {
                    seat.client().leave(group);
                }
            }
            kind::STATE if frame.body.len() <= MAX_STATE => seat.leave_state(frame.body),
            kind::STATE => return Err(LinkError::Malformed(frame.kind)),
            kind::READY => seat.client().ready(),
            kind::CLASS => {
                let about = wire::class(frame.body).map_err(malformed)?;
                let class = self.bridge.class(&about);
                class.add_link(self);
                seat.set_class(&class, about.reattaches);
            }
            _ => return Err(LinkError::UnknownKind(frame.kind)),
        }
        Ok(())
    }

    /// Does what a frame says that may be no socket's.
    pub(super) fn take_of_link(&self, frame: &Frame<'_>) -> Result<(), LinkError> {
        let malformed = |_| LinkError::Malformed(frame.kind);
        match frame.kind {
            kind::PUBLISH => {
                let (group, event) = wire::named(frame.body).map_err(malformed)?;
                match (group_name(group), Event::from_msgpack(event)) {
                    (Some(group), Ok(event)) => self.publish(group, event),
                    _ => self.not_published("unreadable_event", "an application sends what is no event"),
                }
            }
            kind::SEND => {
                let (request, rest) = frame.body.split_first_chunk::<4>().ok_or(LinkError::Malformed(frame.kind))?;
                let request = u32::from_le_bytes(*request);
                let (channel, event) = wire::named(rest).map_err(malformed)?;
                match (ChannelName::parse_any(channel), Event::from_msgpack(event)) {
                    (Ok(channel), Ok(event)) => self.send_to(request, channel, event),
                    _ => self.answer_send(request, Sent::Refused),
                }
            }
            kind::RENDERED => {
                let (request, shown) = wire::rendered(frame.body).map_err(malformed)?;
                if let Some(render) = self.groups.renders.lock().asked.remove(&request) {
                    render.done(shown, self);
                }
            }
            _ => return Err(LinkError::UnknownKind(frame.kind)),
        }
        Ok(())
    }

    fn join(&self, seat: &Arc<Seat>, group: &str) {
        match seat.client().join(group, seat.is_detached()) {
            Joining::Joined => self.joined(seat, group, true),
            Joining::Refused => self.joined(seat, group, false),
            Joining::Later(join) => {
                let (seat, group) = (Arc::clone(seat), group.to_owned());
                let mut joins = self.groups.joins.lock();
                if joins.len() >= ASKED {
                    drop(joins);
                    return self.joined(&seat, &group, false);
                }
                joins.push(async move { join.map(|()| (seat, group)).await }.boxed());
                drop(joins);
                self.groups.joins_ready.notify_one();
            }
        }
    }

    fn joined(&self, seat: &Seat, group: &str, joined: bool) {
        self.queue(kind::JOINED, seat.sid, &[&[u8::from(!joined)], group.as_bytes()]);
    }

    /// Answers joins that take their time.
    pub(super) async fn answer_joins(&self) {
        let mut joining: FuturesUnordered<Join> = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.groups.joins_ready.notified() => {}
                Some((seat, group)) = joining.next(), if !joining.is_empty() => self.joined(&seat, &group, true),
            }
            joining.extend(std::mem::take(&mut *self.groups.joins.lock()));
        }
    }

    fn publish(&self, group: GroupName, event: Event) {
        let mut to_send = self.groups.to_send.lock();
        if to_send.is_empty() {
            match self.bridge.layer.group_send_later(&group, &event) {
                Err(LayerError::QueueFull) => {}
                result => {
                    drop(to_send);
                    return self.published(&result);
                }
            }
        }
        if to_send.len() >= ASKED {
            drop(to_send);
            return self.not_published("to_send", "an application sends more than the layer takes");
        }
        to_send.push_back(Outgoing::Group(group, event));
        drop(to_send);
        self.groups.to_send_ready.notify_one();
    }

    fn send_to(&self, request: u32, channel: ChannelName, event: Event) {
        let mut to_send = self.groups.to_send.lock();
        if to_send.len() >= ASKED {
            drop(to_send);
            return self.answer_send(request, Sent::Full);
        }
        to_send.push_back(Outgoing::Channel(request, channel, event));
        drop(to_send);
        self.groups.to_send_ready.notify_one();
    }

    fn published(&self, result: &Result<(), LayerError>) {
        match result {
            Ok(()) => {
                self.groups.published.fetch_add(1, Ordering::Relaxed);
            }
            Err(LayerError::Encode(_) | LayerError::Name(_)) => {
                self.not_published("unreadable_event", "an application sends what the layer cannot carry");
            }
            Err(_) => self.not_published("layer", "the layer is away, and what applications send to groups is lost"),
        }
    }

    fn not_published(&self, reason: &'static str, what: &str) {
        self.groups.published.fetch_add(1, Ordering::Relaxed);
        self.tell_dropped(reason, what);
    }

    pub(super) fn tell_dropped(&self, reason: &'static str, what: &str) {
        self.metrics().drop_one(reason);
        if let Some(times) = self.groups.told.again("bridge", reason) {
            tracing::warn!(worker = self.worker, path = self.bridge.path(), reason, times, "{what}");
        }
    }

    fn answer_send(&self, request: u32, sent: Sent) {
        self.queue(kind::SENT, 0, &[&request.to_le_bytes(), &[sent as u8]]);
    }

    /// Tells the worker how many of its events were taken.
    pub(super) fn tell_published(&self) {
        if self.groups.published.load(Ordering::Relaxed) > 0 {
            let count = self.groups.published.swap(0, Ordering::Relaxed);
            self.queue(kind::PUBLISHED, 0, &[&count.to_le_bytes()]);
        }
    }

    /// Sends what could not leave at once, in its order.
    pub(super) async fn send_waiting(&self) {
        let mut sending = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.groups.to_send_ready.notified() => {}
                Some((request, sent)) = sending.next(), if !sending.is_empty() => self.answer_send(request, sent),
            }
            loop {
                // What has not left stays the first, so that nothing passes it.
                let result = match self.groups.to_send.lock().front() {
                    None => break,
                    Some(Outgoing::Channel(..)) => None,
                    Some(Outgoing::Group(group, event)) => Some(self.bridge.layer.group_send_later(group, event)),
                };
                if let Some(Err(LayerError::QueueFull)) = result {
                    // It returns behind all that waits.
                    if self.bridge.layer.ping().await.is_err() {
                        sleep(FULL_PAUSE).await;
                    }
                    continue;
                }
                let first = self.groups.to_send.lock().pop_front();
                match (result, first) {
                    (Some(result), _) => self.published(&result),
                    (None, Some(Outgoing::Channel(request, channel, event))) => {
                        let mut send = send(Arc::clone(&self.bridge.layer), request, channel, event).boxed();
                        // With the first look it is in its place among what leaves.
                        match futures_util::poll!(&mut send) {
                            std::task::Poll::Ready((request, sent)) => self.answer_send(request, sent),
                            std::task::Poll::Pending => sending.push(send),
                        }
                    }
                    _ => {}
                }
            }
            self.tell_published();
        }
    }

    /// Gives up renderings that take too long; they are asked for elsewhere.
    pub(super) fn look_at_renders(&self, patience: Duration) {
        let mut late = Vec::new();
        self.groups.renders.lock().asked.retain(|_, render| {
            let is_late = render.since.elapsed() >= patience;
            if is_late {
                late.extend(render.take());
            }
            !is_late
        });
        if !late.is_empty() {
            self.tell_dropped("late_rendering", "a worker does not render what it was asked to; others are asked");
        }
        late.into_iter().for_each(|render| render.again(Some(self)));
    }

    /// Nothing comes of it any more.
    pub(super) fn end_groups(&self) {
        self.groups.joins.lock().clear();
        self.groups.to_send.lock().clear();
        let mut asked = std::mem::take(&mut self.groups.renders.lock().asked);
        asked.values_mut().filter_map(super::class::Render::take).for_each(|render| render.again(Some(self)));
    }

    /// Asks the worker for a rendering. It comes back if the link is over, or cannot take it.
    pub(super) fn render(
        &self,
        class: &str,
        event: &Event,
        render: super::class::Render,
    ) -> Result<(), super::class::Render> {
        let Ok(bytes) = event.to_msgpack() else { return Err(render) };
        if bytes.len() > super::MAX_MESSAGE {
            // No frame could carry it. For each socket it is dropped, and counted.
            return Err(render);
        }
        let request = {
            let mut renders = self.groups.renders.lock();
            renders.last += 1;
            let request = renders.last;
            renders.asked.insert(request, render.begin(Instant::now()));
            request
        };
        let length = (class.len() as u16).to_le_bytes();
        let body: [&[u8]; 4] = [&request.to_le_bytes(), &length, class.as_bytes(), &bytes];
        if self.put(kind::RENDER, 0, &body, Takes::Event) {
            return Ok(());
        }
        match self.groups.renders.lock().asked.remove(&request) {
            Some(render) => Err(render),
            // It has been asked for elsewhere meanwhile.
            None => Ok(()),
        }
    }
}

async fn send(layer: Arc<dyn ChannelLayer>, request: u32, channel: ChannelName, event: Event) -> (u32, Sent) {
    let sent = match timeout(SEND_TIME, layer.send(&channel, &event)).await {
        Ok(Ok(())) => Sent::Taken,
        Ok(Err(LayerError::ChannelFull(_))) => Sent::Full,
        Ok(Err(LayerError::Encode(_) | LayerError::Name(_))) => Sent::Refused,
        Ok(Err(_)) | Err(_) => Sent::Away,
    };
    (request, sent)
}

/// As the layer takes it: it refuses what it cannot carry.
pub(super) fn group_name(name: &str) -> Option<GroupName> {
    GroupName::parse(name).or_else(|_| GroupName::parse_any(name)).ok()
}
