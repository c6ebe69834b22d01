//! From the layer to the sockets' outboxes (steps 5 to 7 of a message's path).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use channel_layer::{ChannelName, Delivery, Event, GroupName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::duplicate::Duplicate;
use super::fan_out::{Kind, Turn};
use super::group::{Cause, Group};
use super::{Filled, Hub, Work};
use crate::events::{self, Resumed};
use crate::handlers::{Lookup, Rendering, Table};
use crate::hub::position::Offer;
use crate::metrics::ByReason;
use crate::seal::Keys;
use crate::socket::Socket;
use crate::tail::{Passed, To, What};
use crate::words::{EventType, FrameType, Trust};

/// Sockets flushed before other tasks get a turn.
const FLUSHES_PER_TURN: usize = 256;

/// Events queued on the sockets before the first of them is flushed.
const EVENTS_PER_FLUSH: usize = 128;

/// A shard's dispatcher: takes everything that has come, queues it on the sockets, flushes each once.
pub(super) async fn dispatch(hub: Arc<Hub>, shard: usize) {
    let shard = &hub.shards[shard];
    let mut taken = VecDeque::new();
    let mut turn = Turn::of(&hub);
    loop {
        std::mem::swap(&mut *shard.queue.lock(), &mut taken);
        if taken.is_empty() {
            shard.ready.notified().await;
            continue;
        }
        let keys = hub.seals.keys();
        while !taken.is_empty() {
            let mut delivered = 0;
            for (bytes, work) in taken.drain(..taken.len().min(EVENTS_PER_FLUSH)) {
                hub.deliver(work, &keys, &mut turn);
                delivered += bytes;
            }
            hub.fan_out(&mut turn);
            hub.queued.fetch_sub(delivered, Ordering::Relaxed);
            for sockets in turn.dirty.chunks(FLUSHES_PER_TURN) {
                Socket::flush_all(sockets, hub.ring);
                if sockets.len() == FLUSHES_PER_TURN {
                    tokio::task::yield_now().await;
                }
            }
            turn.dirty.clear();
        }
    }
}

impl Hub {
    fn deliver(&self, work: Work, keys: &Keys, turn: &mut Turn) {
        match work {
            Work::Layer(Delivery::Group { group, event }) => {
                if let Some(group) = self.group(&group) {
                    if group.has_listeners() {
                        self.deliver_to_listeners(&group, &event, turn);
                    }
                    self.deliver_to_group(&group, event, keys, turn);
                }
            }
            Work::Layer(Delivery::Channel { channel, event }) => {
                self.deliver_to_channel(&channel, event, keys, turn);
            }
            Work::Layer(Delivery::Disconnected | Delivery::Reconnected(_)) => {}
            Work::Duplicate(Duplicate { group, channel, event }) => {
                // Decided here, where the group's own event is delivered, so that it is sent once.
                if self.hears(&group, &channel) {
                    self.dropped("duplicate").inc();
                } else {
                    self.deliver_to_channel(&channel, event, keys, turn);
                }
            }
            Work::Everyone(event) => self.hand_to_all(&event, turn),
            Work::Rendered(rendered) => self.show_rendered(*rendered, turn),
            Work::Filled(filled) => {
                if let Some(group) = self.group(&filled.group) {
                    self.deliver_filled(&group, filled, turn);
                }
            }
            Work::Grown(group) => {
                if let Some(group) = self.group(&group) {
                    self.tell_grown(&group, turn);
                }
            }
        }
    }

    /// Seal and position checked, a hole filled first.
    fn deliver_to_group(&self, group: &Arc<Group>, event: Arc<Event>, keys: &Keys, turn: &mut Turn) {
        let Some(event) = self.seals.believe(keys, event, group.name.as_str()) else { return };
        let event = self.with_room(group, event);
        let stored = group.is_inbox().filter(|&inbox| is_stored_type(&event, inbox));
        let place = stored.zip(events::position(&event));
        tracing::debug!(
            group = group.name.as_str(),
            event_type = event.event_type(),
            id = event.text("id"),
            seq = place.map(|(_, (_, seq))| seq),
            traceparent = event.text("traceparent"),
            "an event has come for a group"
        );
        let Some((_, place)) = place else {
            let event = self.dated(event);
            turn.add(group, Arc::clone(&event), None);
            match EventType::of_event(&event) {
                Some(EventType::RoomsChanged) => {
                    self.fan_out(turn);
                    self.silence(group, &event);
                }
                // Whoever comes back is to be sent what the database has.
                Some(EventType::Redacted) => {
                    self.fan_out(turn);
                    group.forget_recent();
                }
                _ => {}
            }
            return;
        };
        if crate::lossy::is_lossy() {
            return turn.add(group, event, Some(place.1));
        }
        let mut ready = Vec::new();
        match group.offer(&event, place, &mut ready) {
            Some(Offer::Ready) => {
                self.metrics.layer_delivery_seconds.observe(self.age(&event));
                add_ready(turn, group, ready);
            }
            Some(Offer::Held | Offer::OtherEpoch) => self.request_fill(group, Cause::Hole),
            Some(Offer::NoRoom) => {
                self.dropped("held_full").inc();
                if let Some(times) = self.warnings.again("stream", "held_full") {
                    let group = group.name.as_str();
                    tracing::warn!(
                        group,
                        times,
                        "a stored event found no room behind what is missing before it, and is read from the database \
                         later: Redis loses events, or the database is too slow to fill the holes"
                    );
                }
                self.request_fill(group, Cause::Behind);
            }
            Some(Offer::Old) => {
                self.dropped("old").inc();
            }
            Some(Offer::Disputed) => {
                self.dropped("disputed").inc();
                if let Some(times) = self.warnings.again("stream", "disputed") {
                    let group = group.name.as_str();
                    tracing::warn!(group, times, "two messages have one place in a stream; the database is asked");
                }
                self.request_fill(group, Cause::Hole);
            }
            None => turn.add(group, event, None),
        }
    }

    /// Takes sockets out of a room that was taken from them, before they have looked at their memberships:
    /// a socket may be busy, and hears nothing more of it all the same. `group` is the user's, or the room's own.
    fn silence(&self, group: &Group, event: &Event) {
        let removed = event.text("removed").and_then(|room| self.names.room(room).ok());
        let looks = |socket: &Socket| matches!(socket.table.lookup(EventType::RoomsChanged.as_str()), Lookup::Own);
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
    fn deliver_filled(&self, group: &Arc<Group>, filled: Filled, turn: &mut Turn) {
        let mut ready = Vec::new();
        // How many of them come before what was imported.
        let mut before_import = None;
        let afresh = group.with_position(|stream, position| {
            let question = &filled.question;
            let refuted = position.settle(question, &filled.events);
            if filled.head.as_ref().is_some_and(|head| position.check_head(head, question, refuted, &mut ready)) {
                return Some(stream.clone());
            }
            let before = position.seq();
            for (epoch, seq, event) in filled.events.into_iter().filter(|(_, seq, _)| *seq > before) {
                if filled.imported && seq > position.seq() + 1 {
                    before_import.get_or_insert(ready.len());
                }
                position.skip_to(seq, &mut ready);
                if position.offer(epoch, seq, event, &mut ready) == Offer::Ready {
                    self.metrics.layer_gaps_filled.inc();
                }
            }
            if let Some(head) =
                filled.head.filter(|head| filled.imported && !filled.more && head.last_seq > position.seq())
            {
                before_import.get_or_insert(ready.len());
                position.pass_to(&head);
            }
            position.deliver_held(&mut ready);
            if position.seq() == before {
                position.give_up_after_a_while();
            }
            None
        });
        group.end_fill();
        if let Some(stream) = afresh.flatten() {
            // What is still of the old history goes out as such.
            self.fan_out(turn);
            group.begin_afresh();
            self.tell_afresh(group, &stream, turn);
        }
        if let Some(before) = before_import {
            let behind = ready.split_off(before);
            add_ready(turn, group, std::mem::replace(&mut ready, behind));
            if group.grows(Instant::now()) {
                self.tell_grown(group, turn);
            }
        }
        add_ready(turn, group, ready);
        if filled.more {
            self.request_fill(group, Cause::Behind);
        } else if group.has_hole() {
            self.request_fill(group, Cause::Hole);
        }
    }

    /// A `send` to one socket's channel name runs the same handlers for that socket alone.
    fn deliver_to_channel(&self, channel: &ChannelName, event: Arc<Event>, keys: &Keys, turn: &mut Turn) {
        let Some(socket) = self.registry.by_channel(channel) else {
            self.dropped("no_channel").inc();
            return;
        };
        if self.hear_alone(&socket, &event) {
            return;
        }
        // The group in whose stream it says to have a place, as far as this socket may hear that.
        let stream = events::position(&event).and_then(|_| self.stream_of(&event, &socket));
        let target = stream.as_ref().map_or(channel.as_str(), GroupName::as_str);
        let Some(event) = self.seals.believe(keys, event, target) else { return };
        // A stored message that the socket's own stream brings, in its place there.
        if events::position(&event).is_some() && stream.is_some_and(|group| self.has(&socket, &group)) {
            self.dropped("duplicate").inc();
            return;
        }
        let event = self.dated(event);
        // What came for its groups before this comes to the socket before this.
        self.fan_out(turn);
        let kind = self.kind_of(&event, &socket.table, channel.as_str());
        let sent = self.hand_over(&socket, &event, &kind, &mut turn.dirty);
        if self.tail.is_watched() {
            let to = To::Other(channel.to_string());
            let what = What::Event { to, event: Arc::clone(&event), seq: None, sockets: sent };
            self.tail.pass(Passed { at: self.health.clock.database(), what });
        }
        if let Kind::Frame(rendering) = kind {
            self.count_frames(rendering.kind, sent);
        }
    }

    /// To all sockets of this node, whatever groups they hear.
    fn hand_to_all(&self, event: &Arc<Event>, turn: &mut Turn) {
        self.fan_out(turn);
        let mut kinds: Vec<(*const Table, Kind, u64)> = Vec::with_capacity(2);
        for socket in self.registry.all() {
            let class = Arc::as_ptr(&socket.table);
            let at = kinds.iter().position(|(known, ..)| *known == class).unwrap_or_else(|| {
                kinds.push((class, self.kind_of(event, &socket.table, "everyone"), 0));
                kinds.len() - 1
            });
            let (_, kind, sent) = &mut kinds[at];
            *sent += self.hand_over(&socket, event, kind, &mut turn.dirty);
        }
        let sockets = kinds.iter().map(|(_, _, sent)| sent).sum();
        for (_, kind, sent) in kinds {
            if let Kind::Frame(rendering) = kind {
                self.count_frames(rendering.kind, sent);
            }
        }
        if self.tail.is_watched() {
            let what = What::Event { to: To::Everyone, event: Arc::clone(event), seq: None, sockets };
            self.tail.pass(Passed { at: self.health.clock.database(), what });
        }
    }

    fn stream_of(&self, event: &Event, socket: &Socket) -> Option<GroupName> {
        match EventType::of_event(event)? {
            EventType::ChatMessage => self.names.room(event.text("group_name")?).ok(),
            EventType::NotificationMessage => self.names.user(&socket.user).ok(),
            EventType::Disconnect
            | EventType::Send
            | EventType::Seen
            | EventType::Typing
            | EventType::RoomsChanged
            | EventType::Redacted => None,
        }
    }

    /// A chat message that does not name its room is of the room whose group it has come for.
    fn with_room(&self, group: &Group, event: Arc<Event>) -> Arc<Event> {
        let names_none = event.get("group_name").is_none_or(channel_layer::Value::is_null);
        if !names_none || EventType::of_event(&event) != Some(EventType::ChatMessage) {
            return event;
        }
        match group.room().or_else(|| self.names.room_of(&group.name).map(str::to_owned)) {
            Some(room) => Arc::new(Event::clone(&event).with("group_name", room)),
            None => event,
        }
    }

    /// Whether the socket of this channel is in the group through this node.
    fn hears(&self, group: &GroupName, channel: &ChannelName) -> bool {
        let socket = self.registry.by_channel(channel);
        socket.zip(self.group(group)).is_some_and(|(socket, group)| group.has(&socket))
    }

    /// The event, with a date if it is a message that nobody has stored: the time it came here.
    fn dated(&self, mut event: Arc<Event>) -> Arc<Event> {
        let is_message = EventType::of_event(&event).is_some_and(|kind| kind.trust() == Trust::Position);
        // One of its own stays if clients can read it.
        let is_date = |date| OffsetDateTime::parse(date, &Rfc3339).is_ok();
        if is_message && !event.text("date").is_some_and(is_date) {
            Arc::make_mut(&mut event).set("date", events::rfc3339(self.health.clock.database()));
        }
        event
    }

    /// Seconds since the event's date, which is the database's.
    fn age(&self, event: &Event) -> f64 {
        let date = event.text("date").and_then(|date| OffsetDateTime::parse(date, &Rfc3339).ok());
        date.map_or(0.0, |date| (self.health.clock.database() - date).as_seconds_f64().max(0.0))
    }

    fn dropped(
        &self,
        reason: &'static str,
    ) -> impl std::ops::Deref<Target = prometheus_client::metrics::counter::Counter> {
        self.metrics.layer_events_dropped.get_or_create(&ByReason { reason })
    }

    /// Messages of another system were brought into a stream: clients that keep positions have to reload it, and nobody
    /// is sent them.
    fn tell_grown(&self, group: &Group, turn: &mut Turn) {
        if let Some(stream) = group.stream() {
            self.fan_out(turn);
            self.tell_afresh(group, &stream, turn);
        }
    }

    /// A stream has another epoch, or has grown by an import: clients that keep positions have to reload it.
    fn tell_afresh(&self, group: &Group, stream: &persistence::Stream, turn: &mut Turn) {
        let frame = match stream {
            persistence::Stream::Room(room) => Resumed::new([(room.clone(), false)], None),
            persistence::Stream::Inbox(_) => Resumed::new([], Some(false)),
        };
        let rendering = Rendering::json(FrameType::Resumed.as_str(), &frame).map(Rendering::v1_only);
        let Some(rendering) = rendering else { return };
        let kind = Kind::Frame(rendering);
        let event = Arc::new(Event::default());
        group.for_each(|member| {
            self.hand_over(&member.socket, &event, &kind, &mut turn.dirty);
        });
    }
}

/// Adds events that the stream has put in order.
fn add_ready(turn: &mut Turn, group: &Arc<Group>, ready: Vec<Arc<Event>>) {
    for event in ready {
        let seq = events::position(&event).map(|(_, seq)| seq);
        turn.add(group, event, seq);
    }
}

/// Whether this event type carries positions of the group's stream.
fn is_stored_type(event: &Event, inbox: bool) -> bool {
    let kind = if inbox { EventType::NotificationMessage } else { EventType::ChatMessage };
    EventType::of_event(event) == Some(kind)
}
