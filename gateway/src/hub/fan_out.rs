//! What a dispatcher has for one group at a time: rendered once, queued on each member once.
//!
//! Under load many events of a group are there together. Their frames are then put into one piece of
//! bytes that all members share, so that a member costs one queue entry and one write, whatever the
//! number of frames.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use channel_layer::Event;
use persistence::Stream;

use super::Hub;
use super::group::{Group, Member};
use crate::close::{self, CloseReason};
use crate::events;
use crate::handlers::{Lookup, Rendering, Table};
use crate::metrics::{ByReason, ByType};
use crate::socket::{Pushed, Socket};
use crate::tail::{Passed, To, What};
use crate::websocket::WireFrame;

/// Frames are joined up to this size: what a socket writes at a time anyway.
const JOINED_BYTES: usize = 64 * 1024;

/// A joined piece is at most this part of what may wait for a client, so that the limit stays exact enough.
const OUTBOX_PART: usize = 4;

/// What a dispatcher has taken and not yet queued, and the sockets it then has to flush.
#[derive(Default)]
pub(super) struct Turn {
    /// Where renderings come back to.
    pub(super) hub: Weak<Hub>,
    groups: Vec<GroupBatch>,
    pub(super) dirty: Vec<Arc<Socket>>,
}

/// Events of one group, in order.
struct GroupBatch {
    group: Arc<Group>,
    /// With the position of those that the group's stream brought.
    events: Vec<(Arc<Event>, Option<u64>)>,
}

/// What an event is to a class of sockets.
pub(super) enum Kind {
    Frame(Rendering),
    Own,
    Disconnect(CloseReason),
    Nothing,
}

/// Events of a group as one class of sockets sees it; groups nearly always have one class.
struct Rendered {
    class: *const Table,
    kinds: Vec<Kind>,
    /// All frames in one piece, if all sockets of the class get all of them.
    joined: Option<WireFrame>,
    /// How many sockets got the joined piece, and each frame by itself.
    joined_sent: u64,
    sent: Vec<u64>,
}

impl Turn {
    pub(super) fn of(hub: &Arc<Hub>) -> Self {
        Self { hub: Arc::downgrade(hub), ..Self::default() }
    }

    pub(super) fn add(&mut self, group: &Arc<Group>, event: Arc<Event>, seq: Option<u64>) {
        match self.groups.iter_mut().rev().find(|batch| Arc::ptr_eq(&batch.group, group)) {
            Some(batch) => batch.events.push((event, seq)),
            None => self.groups.push(GroupBatch { group: Arc::clone(group), events: vec![(event, seq)] }),
        }
    }
}

/// How many sockets have got the frame of an event.
fn sockets(rendered: &[Rendered], at: usize) -> u64 {
    rendered.iter().map(|one| one.joined_sent + one.sent.get(at).copied().unwrap_or_default()).sum()
}

/// Follows each event to its end on this node.
fn tell_of(batch: &GroupBatch, rendered: &[Rendered]) {
    for (at, (event, seq)) in batch.events.iter().enumerate() {
        tracing::debug!(
            group = batch.group.name.as_str(),
            event_type = event.event_type(),
            id = event.text("id"),
            seq,
            traceparent = event.text("traceparent"),
            sockets = sockets(rendered, at),
            "an event is in its sockets' outboxes"
        );
    }
}

impl Hub {
    /// Queues what has been added on the members of its groups.
    pub(super) fn fan_out(&self, turn: &mut Turn) {
        for batch in turn.groups.drain(..) {
            let first_seq = batch.events.iter().filter_map(|(_, seq)| *seq).min();
            let mut rendered: Vec<Rendered> = Vec::with_capacity(1);
            batch.group.for_each(|member| {
                let class = Arc::as_ptr(&member.socket.table);
                let at = rendered.iter().position(|rendered| rendered.class == class).unwrap_or_else(|| {
                    rendered.push(self.render(&batch, member));
                    rendered.len() - 1
                });
                let rendered = &mut rendered[at];
                match &rendered.joined {
                    Some(joined) if member.takes_all(first_seq) => {
                        rendered.joined_sent += self.push_frame(&member.socket, joined, &mut turn.dirty);
                    }
                    _ => self.hand_over_each(&batch, rendered, member, &mut turn.dirty),
                }
            });
            rendered.iter().for_each(|rendered| self.count(rendered));
            if tracing::enabled!(tracing::Level::DEBUG) {
                tell_of(&batch, &rendered);
            }
            if self.tail.is_watched() {
                self.show(&batch, &rendered);
            }
            if let (Some(_), Some(rendered)) = (first_seq, rendered.first()) {
                keep_frames(&batch, &rendered.kinds);
            }
        }
    }

    /// Shows to who watches what has passed.
    fn show(&self, batch: &GroupBatch, rendered: &[Rendered]) {
        let name = &batch.group.name;
        let to = match batch.group.stream() {
            Some(Stream::Room(room)) => To::Room(room),
            Some(Stream::Inbox(user)) => To::User(user),
            None => self.names.room_of(name).map_or(To::Other(name.to_string()), |room| To::Room(room.to_owned())),
        };
        for (at, (event, seq)) in batch.events.iter().enumerate() {
            let sockets = sockets(rendered, at);
            let what = What::Event { to: to.clone(), event: Arc::clone(event), seq: *seq, sockets };
            self.tail.pass(Passed { at: self.health.clock.database(), what });
        }
    }

    fn render(&self, batch: &GroupBatch, member: &Member) -> Rendered {
        let class = &member.socket.table;
        let kinds: Vec<Kind> =
            batch.events.iter().map(|(event, _)| self.kind_of(event, class, batch.group.name.as_str())).collect();
        let joined = join(&kinds, member.socket.outbox_limit());
        let sent = vec![0; kinds.len()];
        Rendered { class: Arc::as_ptr(class), kinds, joined, joined_sent: 0, sent }
    }

    /// One after another, for a member that does not get all of them alike.
    fn hand_over_each(
        &self,
        batch: &GroupBatch,
        rendered: &mut Rendered,
        member: &mut Member,
        dirty: &mut Vec<Arc<Socket>>,
    ) {
        for (((event, seq), kind), sent) in batch.events.iter().zip(&rendered.kinds).zip(&mut rendered.sent) {
            if let Kind::Frame(rendering) = kind {
                let takes = match seq {
                    Some(seq) => member.takes(*seq, &rendering.frame),
                    None => member.takes_unstored(event, &rendering.frame),
                };
                if !takes {
                    continue;
                }
            }
            *sent += self.hand_over(&member.socket, event, kind, dirty);
        }
    }

    /// Queues what the event is to this socket. Returns 1 for a frame, so that frames can be summed up.
    pub(super) fn hand_over(
        &self,
        socket: &Arc<Socket>,
        event: &Arc<Event>,
        kind: &Kind,
        dirty: &mut Vec<Arc<Socket>>,
    ) -> u64 {
        match kind {
            Kind::Frame(rendering) if rendering.is_for(socket.v1, &socket.user, socket.channel_name.as_str()) => {
                return self.push_frame(socket, &rendering.frame, dirty);
            }
            Kind::Own => {
                if !socket.push_event(Arc::clone(event)) {
                    self.metrics.inbox_full.inc();
                    if let Some(times) = self.warnings.again("inbox", "full") {
                        tracing::warn!(
                            event_type = event.event_type(), channel = %socket.channel_name, user = &*socket.user, times,
                            "an event was dropped: the consumer's own handlers take longer than its events come. \
                             Have them wait for less, or make them shared"
                        );
                    }
                }
            }
            Kind::Disconnect(reason) => socket.close(reason.clone()),
            Kind::Frame(_) | Kind::Nothing => {}
        }
        0
    }

    fn push_frame(&self, socket: &Arc<Socket>, frame: &WireFrame, dirty: &mut Vec<Arc<Socket>>) -> u64 {
        match socket.push(frame) {
            Pushed::MustFlush => dirty.push(Arc::clone(socket)),
            Pushed::Queued => {}
            Pushed::Full => {
                self.metrics.outbox_full.inc();
                return 0;
            }
            Pushed::Closed => return 0,
        }
        1
    }

    /// What the class's handlers make of an event that has come for a group or channel.
    pub(super) fn kind_of(&self, event: &Event, class: &Table, target: &str) -> Kind {
        let lookup = event.handler_name().map_or(&Lookup::Unknown, |name| class.lookup(&name));
        match lookup {
            Lookup::Shared(handler) => match handler(event) {
                Some(rendering) => Kind::Frame(rendering),
                None => {
                    self.tell_lack(event, target);
                    Kind::Nothing
                }
            },
            Lookup::Own => Kind::Own,
            Lookup::Disconnect => Kind::Disconnect(disconnect_reason(event)),
            Lookup::Nothing => Kind::Nothing,
            Lookup::Unknown => {
                self.metrics.layer_events_unhandled.inc();
                // Once a second at most: anybody on the layer can send any number of them.
                let now = self.started.elapsed().as_secs() + 1;
                if self.warned_at.swap(now, Ordering::Relaxed) != now {
                    tracing::warn!(event_type = event.event_type(), "no handler knows this event");
                }
                Kind::Nothing
            }
        }
    }

    /// An event that anybody may send was not made as it has to be.
    fn tell_lack(&self, event: &Event, group: &str) {
        let Some((event_type, field)) = events::lack(event) else { return };
        self.metrics.layer_events_dropped.get_or_create(&ByReason { reason: "incomplete" }).inc();
        if let Some(times) = self.warnings.again(event_type, field) {
            tracing::warn!(event_type, group, missing = field, times, "an event is shown to nobody: it lacks a field");
        }
    }

    fn count(&self, rendered: &Rendered) {
        let mut counted = rendered.kinds.iter().zip(&rendered.sent).filter_map(|(kind, sent)| match kind {
            Kind::Frame(rendering) => Some((rendering.kind, sent + rendered.joined_sent)),
            _ => None,
        });
        // Neighbours are nearly always of one type.
        let Some((mut label, mut sum)) = counted.next() else { return };
        for (kind, sent) in counted {
            if kind != label {
                self.count_frames(label, sum);
                (label, sum) = (kind, 0);
            }
            sum += sent;
        }
        self.count_frames(label, sum);
    }

    pub(super) fn count_frames(&self, kind: &'static str, sent: u64) {
        if sent > 0 {
            self.metrics.frames_sent.get_or_create(&ByType { r#type: kind }).inc_by(sent);
        }
    }
}

/// Clients that come back get the frames that were sent: the events, many times their size, need not be kept.
fn keep_frames(batch: &GroupBatch, kinds: &[Kind]) {
    let frames = batch.events.iter().zip(kinds).filter_map(|((event, seq), kind)| match kind {
        Kind::Frame(rendering) if seq.is_some() && rendering.is_kept => Some((event, &rendering.frame)),
        _ => None,
    });
    batch.group.with_position(|_, position| position.become_frames(frames));
}

/// Several frames in one piece, if they are for everybody.
fn join(kinds: &[Kind], outbox_limit: usize) -> Option<WireFrame> {
    if kinds.len() < 2 {
        return None;
    }
    let mut frames = Vec::with_capacity(kinds.len());
    for kind in kinds {
        match kind {
            Kind::Frame(rendering) if rendering.is_for_all() => frames.push(&rendering.frame),
            _ => return None,
        }
    }
    let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
    (bytes <= JOINED_BYTES.min(outbox_limit / OUTBOX_PART)).then(|| WireFrame::join(&frames))
}

/// The close code an event asks for, 4403 if none or none that may be sent.
pub(super) fn disconnect_reason(event: &Event) -> CloseReason {
    let code = event.get("code").and_then(channel_layer::Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|&code| close::is_sendable(code)).unwrap_or(4403);
    match event.text("reason") {
        Some(reason) => CloseReason::asked(code, reason),
        None if code == 4403 => CloseReason::Forbidden,
        None => CloseReason::Custom(code, "".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Kind {
        Kind::Frame(Rendering::text("chat", text))
    }

    #[test]
    fn frames_for_everybody_are_joined_in_their_order() {
        let joined = join(&[frame("a"), frame("bc")], 1000).unwrap();
        assert_eq!(joined.as_bytes(), [&[0x81, 1][..], b"a", &[0x81, 2], b"bc"].concat());
    }

    #[test]
    fn what_is_not_for_everybody_or_too_much_is_not_joined() {
        assert!(join(&[frame("a")], 1000).is_none(), "one frame is shared as it is");
        assert!(join(&[frame("a"), Kind::Own], 1000).is_none());
        assert!(join(&[frame("a"), Kind::Frame(Rendering::text("seen", "b").v1_only())], 1000).is_none());
        assert!(join(&[frame("a"), Kind::Frame(Rendering::text("typing", "b").except_user("alice"))], 1000).is_none());
        assert!(join(&[frame("a"), frame("b")], 4 * 6).is_some());
        assert!(join(&[frame("a"), frame("b")], 4 * 6 - 4).is_none(), "more than a quarter of the outbox");
        assert!(join(&[frame(&"x".repeat(40_000)), frame(&"x".repeat(40_000))], 1 << 20).is_none());
    }
}
