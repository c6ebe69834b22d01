//! One group on this node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use channel_layer::{Event, GroupName};
use parking_lot::Mutex;
use persistence::{Head, Stream};
use uuid::Uuid;

use crate::position::{Offer, Position};
use crate::socket::Socket;

/// How long a group without members is kept.
const LINGER: Duration = Duration::from_secs(5);

/// A socket in a group.
pub(super) struct Member {
    pub(super) socket: Arc<Socket>,
}

impl Member {
    pub(super) fn new(socket: &Arc<Socket>) -> Self {
        Self { socket: Arc::clone(socket) }
    }
}

pub(super) struct Group {
    pub(super) name: GroupName,
    inner: Mutex<Inner>,
}

struct Inner {
    /// `Dead` groups are no longer in the hub's map; who still holds one asks the hub again.
    alive: bool,
    members: Vec<Member>,
    stream: Option<(Stream, Position)>,
    filling: bool,
    /// When the last member left.
    empty_since: Option<Instant>,
}

impl Group {
    pub(super) fn new(name: GroupName) -> Self {
        let inner =
            Inner { alive: true, members: Vec::new(), stream: None, filling: false, empty_since: Some(Instant::now()) };
        Self { name, inner: Mutex::new(inner) }
    }

    /// Adds a member unless the group is dead or does not follow the stream yet.
    pub(super) fn add(&self, member: &mut Option<Member>, stream: Option<&Stream>) -> bool {
        let mut inner = self.inner.lock();
        if !inner.alive || (stream.is_some() && inner.stream.is_none()) {
            return false;
        }
        inner.empty_since = None;
        inner.members.extend(member.take());
        true
    }

    pub(super) fn remove(&self, socket: &Socket) {
        let mut inner = self.inner.lock();
        let found = inner.members.iter().position(|member| std::ptr::eq(Arc::as_ptr(&member.socket), socket));
        if let Some(at) = found {
            inner.members.swap_remove(at);
            if inner.members.is_empty() {
                inner.members = Vec::new();
                inner.empty_since = Some(Instant::now());
            } else if inner.members.len() * 4 < inner.members.capacity() {
                inner.members.shrink_to_fit();
            }
        }
    }

    /// Whether it can take members of this stream.
    pub(super) fn follows(&self, stream: Option<&Stream>) -> bool {
        let inner = self.inner.lock();
        inner.alive && (stream.is_none() || inner.stream.is_some())
    }

    /// Begins to follow a stream from its head, unless it does already.
    pub(super) fn follow(&self, stream: Stream, head: &Head) {
        let mut inner = self.inner.lock();
        if inner.stream.is_none() {
            inner.stream = Some((stream, Position::at(head)));
        }
    }

    /// Marks it dead if nobody has been in it for a while.
    pub(super) fn expire(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        if inner.empty_since.is_some_and(|since| now.duration_since(since) >= LINGER) {
            inner.alive = false;
        }
        !inner.alive
    }

    pub(super) fn position(&self) -> Option<(u64, Option<Uuid>)> {
        self.inner.lock().stream.as_ref().map(|(_, position)| (position.seq(), position.id()))
    }

    /// The stream with the place in it, if it has members.
    pub(super) fn standing(&self) -> Option<(Stream, i64, u64)> {
        let inner = self.inner.lock();
        let (stream, position) = inner.stream.as_ref()?;
        Some((stream.clone(), position.epoch(), position.seq()))
    }

    pub(super) fn begin_fill(&self) -> bool {
        !std::mem::replace(&mut self.inner.lock().filling, true)
    }

    pub(super) fn end_fill(&self) {
        self.inner.lock().filling = false;
    }

    pub(super) fn has_hole(&self) -> bool {
        self.inner.lock().stream.as_ref().is_some_and(|(_, position)| position.has_hole())
    }

    /// Whether this stream's events carry positions for it.
    pub(super) fn offer(&self, event: &Arc<Event>, place: (i64, u64), ready: &mut Vec<Arc<Event>>) -> Option<Offer> {
        let mut inner = self.inner.lock();
        let (_, position) = inner.stream.as_mut()?;
        Some(position.offer(place.0, place.1, Arc::clone(event), ready))
    }

    /// Lets `change` work on the position.
    pub(super) fn with_position<T>(&self, change: impl FnOnce(&Stream, &mut Position) -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.stream.as_mut().map(|(stream, position)| change(stream, position))
    }

    pub(super) fn is_inbox(&self) -> Option<bool> {
        self.inner.lock().stream.as_ref().map(|(stream, _)| matches!(stream, Stream::Inbox(_)))
    }

    /// Calls `visit` for every member, under the lock: it must only queue.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Arc<Socket>)) {
        for member in &self.inner.lock().members {
            visit(&member.socket);
        }
    }
}
