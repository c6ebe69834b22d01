//! From the layer to the sockets' outboxes (steps 5 to 7 of a message's path).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use channel_layer::{ChannelName, Delivery, Event, GroupName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::group::{Cause, Group};
use super::twin::Twin;
use super::{Filled, Hub, Work};
use crate::close::{self, CloseReason};
use crate::consumer::{ConsumerClass, Lookup, Rendering};
use crate::consumers::ROOMS_CHANGED;
use crate::events;
use crate::metrics::{ByReason, ByType};
use crate::position::Offer;
use crate::socket::{Pushed, Socket};

/// Sockets flushed before other tasks get a turn.
const FLUSHES_PER_TURN: usize = 256;

/// Events queued on the sockets before the first of them is flushed.
const EVENTS_PER_FLUSH: usize = 128;

/// A shard's dispatcher: takes everything that has come, queues it on the sockets, flushes each once.
pub(super) async fn dispatch(hub: Arc<Hub>, shard: usize) {
    let shard = &hub.shards[shard];
    let mut taken = VecDeque::new();
    let mut dirty = Vec::new();
    loop {
        std::mem::swap(&mut *shard.queue.lock(), &mut taken);
        if taken.is_empty() {
            shard.ready.notified().await;
            continue;
        }
        while !taken.is_empty() {
            for work in taken.drain(..taken.len().min(EVENTS_PER_FLUSH)) {
                hub.deliver(work, &mut dirty);
            }
            for turn in dirty.chunks(FLUSHES_PER_TURN) {
                turn.iter().for_each(|socket: &Arc<Socket>| socket.flush());
                if turn.len() == FLUSHES_PER_TURN {
                    tokio::task::yield_now().await;
                }
            }
            dirty.clear();
        }
    }
}

impl Hub {
    fn deliver(&self, work: Work, dirty: &mut Vec<Arc<Socket>>) {
        match work {
            Work::Layer(Delivery::Group { group, event }) => {
                if let Some(group) = self.group(&group) {
                    self.deliver_to_group(&group, event, dirty);
                }
            }
            Work::Layer(Delivery::Channel { channel, event }) => self.deliver_to_channel(&channel, event, dirty),
            Work::Layer(Delivery::Disconnected | Delivery::Reconnected(_)) => {}
            Work::Twin(Twin { group, channel, event }) => {
                // Decided here, where the group's own event is delivered, so that it is sent once.
                if self.hears(&group, &channel) {
                    self.dropped("twin").inc();
                } else {
                    self.deliver_to_channel(&channel, event, dirty);
                }
            }
            Work::Filled(filled) => {
                if let Some(group) = self.group(&filled.group) {
                    self.deliver_filled(&group, filled, dirty);
                }
            }
        }
    }

    /// Position checked, a hole filled first.
    fn deliver_to_group(&self, group: &Group, event: Arc<Event>, dirty: &mut Vec<Arc<Socket>>) {
        let stored = group.is_inbox().filter(|&inbox| is_stored_type(&event, inbox));
        let Some((_, place)) = stored.zip(events::position(&event)) else {
            self.fan_out(group, &event, false, dirty);
            if event.event_type() == Some(ROOMS_CHANGED) {
                self.silence(group, &event);
            }
            return;
        };
        if crate::lossy::is_lossy() {
            return self.fan_out(group, &event, true, dirty);
        }
        let mut ready = Vec::new();
        match group.offer(&event, place, &mut ready) {
            Some(Offer::Ready) => {
                self.metrics.layer_delivery_seconds.observe(age(&event));
                ready.iter().for_each(|event| self.fan_out(group, event, true, dirty));
            }
            Some(Offer::Held | Offer::OtherEpoch) => self.request_fill(group, Cause::Hole),
            Some(Offer::Old) => {
                self.dropped("old").inc();
            }
            None => self.fan_out(group, &event, false, dirty),
        }
    }

    /// Takes sockets out of a room that was taken from them, before they have looked at their memberships:
    /// a socket may be busy, and hears nothing more of it all the same. `group` is the user's, or the room's own.
    fn silence(&self, group: &Group, event: &Event) {
        let removed = event.text("removed").and_then(|room| self.names.room(room).ok());
        let looks = |socket: &Socket| matches!(socket.class.lookup(ROOMS_CHANGED), Lookup::Own);
        match group.is_inbox() {
            Some(true) => {
                let Some(room) = removed.and_then(|room| self.group(&room)) else { return };
                let mut sockets = Vec::new();
                group.for_each(|member| {
                    if looks(&member.socket) {
                        sockets.push(Arc::clone(&member.socket));
                    }
                });
                sockets.iter().for_each(|socket| room.remove(socket));
            }
            Some(false) => {
                // The room may be gone, and its messages with it.
                group.doubt();
                if removed.as_ref() == Some(&group.name) {
                    group.retain(|socket| !looks(socket));
                }
            }
            None => {}
        }
    }

    /// The database has answered for a hole: what it has goes on, what it has not is given up.
    fn deliver_filled(&self, group: &Group, filled: Filled, dirty: &mut Vec<Arc<Socket>>) {
        let mut ready = Vec::new();
        let afresh = group.with_position(|stream, position| {
            if filled.head.as_ref().is_some_and(|head| position.check_head(head, filled.asked_at, &mut ready)) {
                return Some(stream.clone());
            }
            let before = position.seq();
            for (epoch, seq, event) in filled.events {
                position.skip_to(seq, &mut ready);
                if position.offer(epoch, seq, event, &mut ready) == Offer::Ready {
                    self.metrics.layer_gaps_filled.inc();
                }
            }
            if position.seq() == before {
                position.give_up_after_a_while();
            }
            None
        });
        group.end_fill();
        if let Some(stream) = afresh.flatten() {
            group.begin_afresh();
            self.tell_afresh(group, &stream, dirty);
        }
        ready.iter().for_each(|event| self.fan_out(group, event, true, dirty));
        if filled.more {
            self.request_fill(group, Cause::Behind);
        } else if group.has_hole() {
            self.request_fill(group, Cause::Hole);
        }
    }

    /// One rendering per class, the same bytes into each member's outbox.
    fn fan_out(&self, group: &Group, event: &Arc<Event>, stored: bool, dirty: &mut Vec<Arc<Socket>>) {
        let seq = events::position(event).map(|(_, seq)| seq).filter(|_| stored);
        let (mut renderer, mut sent) = (Renderer::new(event), 0);
        group.for_each(|member| {
            let kind = renderer.kind_for(&member.socket.class);
            if let (Some(seq), Kind::Frame(rendering)) = (seq, kind)
                && !member.takes(seq, &rendering.frame)
            {
                return;
            }
            sent += self.hand_over(&member.socket, event, kind, dirty);
        });
        self.count(&renderer, sent);
    }

    /// A `send` to one socket's channel name runs the same handlers for that socket alone.
    fn deliver_to_channel(&self, channel: &ChannelName, event: Arc<Event>, dirty: &mut Vec<Arc<Socket>>) {
        let Some(socket) = self.registry.by_channel(channel) else {
            self.dropped("no_channel").inc();
            return;
        };
        // A stored message that the socket's own stream brings, in its place there.
        if self.stream_of(&event, &socket).is_some_and(|group| group.has(&socket)) {
            self.dropped("twin").inc();
            return;
        }
        let mut renderer = Renderer::new(&event);
        let kind = renderer.kind_for(&socket.class);
        let sent = self.hand_over(&socket, &event, kind, dirty);
        self.count(&renderer, sent);
    }

    /// The group in whose stream this event has a place, as far as this socket may hear it.
    fn stream_of(&self, event: &Event, socket: &Socket) -> Option<Arc<Group>> {
        events::position(event)?;
        let name = match &*event.handler_name().ok()? {
            events::CHAT_MESSAGE => self.names.room(event.text("group_name")?),
            events::NOTIFICATION_MESSAGE => self.names.user(&socket.user),
            _ => return None,
        };
        self.group(&name.ok()?)
    }

    /// Whether the socket of this channel is in the group through this node.
    fn hears(&self, group: &GroupName, channel: &ChannelName) -> bool {
        let socket = self.registry.by_channel(channel);
        socket.zip(self.group(group)).is_some_and(|(socket, group)| group.has(&socket))
    }

    /// Queues what the event is to this socket. Returns 1 for a frame, so that frames can be summed up.
    fn hand_over(&self, socket: &Arc<Socket>, event: &Arc<Event>, kind: &Kind, dirty: &mut Vec<Arc<Socket>>) -> u64 {
        match kind {
            Kind::Frame(rendering) => {
                if !rendering.is_for(socket) {
                    return 0;
                }
                match socket.push(&rendering.frame) {
                    Pushed::MustFlush => dirty.push(Arc::clone(socket)),
                    Pushed::Queued => {}
                    Pushed::Full => {
                        self.metrics.outbox_full.inc();
                        return 0;
                    }
                    Pushed::Closed => return 0,
                }
                return 1;
            }
            Kind::Own => {
                if !socket.push_event(Arc::clone(event)) {
                    self.metrics.inbox_full.inc();
                }
            }
            Kind::Disconnect(reason) => socket.close(reason.clone()),
            Kind::Nothing => {}
        }
        0
    }

    fn count(&self, renderer: &Renderer<'_>, sent: u64) {
        if let Some((_, Kind::Frame(rendering))) = &renderer.cached
            && sent > 0
        {
            self.metrics.frames_sent.get_or_create(&ByType { r#type: rendering.kind }).inc_by(sent);
        }
        if renderer.unhandled {
            self.metrics.layer_events_unhandled.inc();
            // Once a second at most: anybody on the layer can send any number of them.
            let now = self.started.elapsed().as_secs() + 1;
            if self.warned_at.swap(now, Ordering::Relaxed) != now {
                tracing::warn!(event_type = renderer.event.event_type(), "no handler knows this event");
            }
        }
    }

    fn dropped(
        &self,
        reason: &'static str,
    ) -> impl std::ops::Deref<Target = prometheus_client::metrics::counter::Counter> {
        self.metrics.layer_events_dropped.get_or_create(&ByReason { reason })
    }

    /// A stream has another epoch: clients that keep positions have to reload it.
    fn tell_afresh(&self, group: &Group, stream: &persistence::Stream, dirty: &mut Vec<Arc<Socket>>) {
        let frame = match stream {
            persistence::Stream::Room(room) => serde_json::json!({"type": "resumed", "rooms": {room.as_str(): false}}),
            persistence::Stream::Inbox(_) => {
                serde_json::json!({"type": "resumed", "rooms": {}, "notifications": false})
            }
        };
        let Some(rendering) = Rendering::json("resumed", &frame).map(Rendering::v1_only) else { return };
        let kind = Kind::Frame(rendering);
        let event = Arc::new(Event::default());
        group.for_each(|member| {
            self.hand_over(&member.socket, &event, &kind, dirty);
        });
    }
}

/// Whether this event type carries positions of the group's stream.
fn is_stored_type(event: &Event, inbox: bool) -> bool {
    let Ok(name) = event.handler_name() else { return false };
    name == if inbox { events::NOTIFICATION_MESSAGE } else { events::CHAT_MESSAGE }
}

/// Seconds since the event's date.
fn age(event: &Event) -> f64 {
    let date = event.text("date").and_then(|date| OffsetDateTime::parse(date, &Rfc3339).ok());
    date.map_or(0.0, |date| (OffsetDateTime::now_utc() - date).as_seconds_f64().max(0.0))
}

/// What an event is to a class of sockets.
enum Kind {
    Frame(Rendering),
    Own,
    Disconnect(CloseReason),
    Nothing,
}

/// Renders an event once per class; groups nearly always have one class.
struct Renderer<'a> {
    event: &'a Event,
    cached: Option<(*const ConsumerClass, Kind)>,
    unhandled: bool,
}

impl<'a> Renderer<'a> {
    fn new(event: &'a Event) -> Self {
        Self { event, cached: None, unhandled: false }
    }

    fn kind_for(&mut self, class: &Arc<ConsumerClass>) -> &Kind {
        let key = Arc::as_ptr(class);
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != key) {
            let kind = self.render(class);
            return &self.cached.insert((key, kind)).1;
        }
        self.cached.as_ref().map_or(&Kind::Nothing, |(_, kind)| kind)
    }

    fn render(&mut self, class: &ConsumerClass) -> Kind {
        let lookup = self.event.handler_name().map_or(Lookup::Unknown, |name| class.lookup(&name));
        match lookup {
            Lookup::Shared(handler) => match handler(self.event) {
                Some(rendering) => Kind::Frame(rendering),
                None => {
                    tracing::debug!(event_type = self.event.event_type(), "the event makes no frame");
                    Kind::Nothing
                }
            },
            Lookup::Own => Kind::Own,
            Lookup::Disconnect => Kind::Disconnect(disconnect_reason(self.event)),
            Lookup::Unknown => {
                self.unhandled = true;
                Kind::Nothing
            }
        }
    }
}

/// The close code an event asks for, 4403 if none or none that may be sent.
fn disconnect_reason(event: &Event) -> CloseReason {
    let code = event.get("code").and_then(channel_layer::Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|&code| close::is_sendable(code)).unwrap_or(4403);
    match event.text("reason") {
        Some(reason) => CloseReason::Custom(code, reason.to_owned().into()),
        None if code == 4403 => CloseReason::Forbidden,
        None => CloseReason::Custom(code, "".into()),
    }
}
