//! One group on this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use channel_layer::{Event, GroupName};
use parking_lot::Mutex;
use persistence::{Head, Stream};
use uuid::Uuid;

use crate::hub::listeners::Listeners;
use crate::hub::position::{Offer, Position, Question};
use crate::hub::recent::{Memory, Recent};
use crate::socket::{FRAME_COST, Socket};
use crate::websocket::WireFrame;
use crate::words::EventType;

/// How long a group without members is kept.
const LINGER: Duration = Duration::from_secs(5);

/// How often clients are told, at most, that a stream grew by an import.
const TELL_OF_GROWTH: Duration = Duration::from_secs(10);

/// A socket in a group.
pub(super) struct Member {
    pub(super) socket: Arc<Socket>,
    /// Stored frames up to here reached the socket by a resume; they are not sent again.
    sent: u64,
    hold: Option<Box<Hold>>,
}

/// How many redactions wait until a client has caught up.
const REDACTIONS: usize = 100;

/// Stored frames that wait until their client has caught up. All streams of a socket share what may wait.
struct Hold {
    socket: Arc<Socket>,
    frames: Vec<(u64, WireFrame)>,
    bytes: usize,
    /// There were more than may wait; the database has them.
    overflowed: bool,
    /// The stream has begun afresh since: what the client has caught up with was of another history.
    afresh: bool,
    /// They follow what the client is being sent, which may have been read before them.
    redactions: Vec<WireFrame>,
}

impl Hold {
    fn new(socket: &Arc<Socket>) -> Box<Self> {
        Box::new(Self {
            socket: Arc::clone(socket),
            frames: Vec::new(),
            bytes: 0,
            overflowed: false,
            afresh: false,
            redactions: Vec::new(),
        })
    }

    fn keep(&mut self, seq: u64, frame: &WireFrame) {
        let bytes = frame.len() + FRAME_COST;
        self.bytes += bytes;
        if self.socket.begin_holding(bytes) && !self.overflowed {
            self.frames.push((seq, frame.clone()));
        } else {
            self.overflowed = true;
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.frames = Vec::new();
        self.socket.end_holding(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What became of a held stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    /// It goes on live.
    Live,
    /// Frames were dropped while it was held, and it still is.
    Overflowed,
}

impl Member {
    pub(super) fn new(socket: &Arc<Socket>, held: bool) -> Self {
        Self { socket: Arc::clone(socket), sent: 0, hold: held.then(|| Hold::new(socket)) }
    }

    /// Whether every frame of a run goes to the socket now; `first` is the lowest position in it.
    pub(super) fn takes_all(&self, first: Option<u64>) -> bool {
        first.is_none_or(|first| self.hold.is_none() && first > self.sent)
    }

    /// Whether a stored frame is to go to the socket now; a held one is kept.
    pub(super) fn takes(&mut self, seq: u64, frame: &WireFrame) -> bool {
        if seq <= self.sent {
            return false;
        }
        let Some(hold) = &mut self.hold else { return true };
        hold.keep(seq, frame);
        false
    }

    /// Whether the frame of an event that is not stored is to go to the socket now. Only redactions are kept, while
    /// their client catches up.
    pub(super) fn takes_unstored(&mut self, event: &Event, frame: &WireFrame) -> bool {
        let Some(hold) = &mut self.hold else { return true };
        if hold.redactions.len() >= REDACTIONS || EventType::of_event(event) != Some(EventType::Redacted) {
            return true;
        }
        hold.redactions.push(frame.clone());
        false
    }
}

/// Why the database is asked for what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Something is held; it may come by itself.
    Hole,
    /// The database has more than we do.
    Behind,
}

pub(super) struct Group {
    pub(super) name: GroupName,
    /// Looked at for each event; most groups have none.
    has_listeners: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    /// `Dead` groups are no longer in the hub's map; who still holds one asks the hub again.
    alive: bool,
    members: Vec<Member>,
    /// Those whose consumers are the site's own.
    listeners: Listeners,
    stream: Option<(Stream, Position)>,
    /// The database is about to be asked.
    filling: Option<Cause>,
    /// When the last member left.
    empty_since: Option<Instant>,
    /// When members were last told that the stream grew by an import.
    grown: Option<Box<Grown>>,
}

/// An import brings a stream many pieces, and each client that is told reads it anew.
struct Grown {
    told: Instant,
    /// More came since.
    again: bool,
}

impl Inner {
    /// After members have left.
    fn shrink(&mut self) {
        if self.members.is_empty() {
            self.members = Vec::new();
            if self.listeners.is_empty() {
                self.empty_since = Some(Instant::now());
            }
        } else if self.members.len() * 4 < self.members.capacity() {
            self.members.shrink_to_fit();
        }
    }
}

impl Group {
    pub(super) fn new(name: GroupName) -> Self {
        let inner = Inner {
            alive: true,
            members: Vec::new(),
            listeners: Listeners::default(),
            stream: None,
            filling: None,
            empty_since: Some(Instant::now()),
            grown: None,
        };
        Self { name, has_listeners: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    /// Adds a member unless the group is dead or does not follow the stream yet.
    pub(super) fn add(&self, member: &mut Option<Member>, stream: Option<&Stream>) -> bool {
        let mut inner = self.inner.lock();
        if !inner.alive || (stream.is_some() && inner.stream.is_none()) {
            return false;
        }
        inner.empty_since = None;
        if inner.members.is_empty() {
            // Most groups are a user's, with one socket.
            inner.members.reserve_exact(1);
        }
        inner.members.extend(member.take());
        true
    }

    pub(super) fn remove(&self, socket: &Socket) {
        let mut inner = self.inner.lock();
        let found = inner.members.iter().position(|member| std::ptr::eq(Arc::as_ptr(&member.socket), socket));
        if let Some(at) = found {
            inner.members.swap_remove(at);
            inner.shrink();
        }
    }

    /// Whether there are sockets of the site's own consumers.
    pub(super) fn has_listeners(&self) -> bool {
        self.has_listeners.load(Ordering::Acquire)
    }

    /// Adds a socket of such a consumer, unless the group is dead.
    pub(super) fn add_listener(&self, socket: &Arc<Socket>) -> bool {
        let mut inner = self.inner.lock();
        if !inner.alive {
            return false;
        }
        inner.empty_since = None;
        inner.listeners.add(socket);
        self.has_listeners.store(true, Ordering::Release);
        true
    }

    pub(super) fn remove_listener(&self, socket: &Socket) {
        let mut inner = self.inner.lock();
        if inner.listeners.remove(socket) {
            self.has_listeners.store(!inner.listeners.is_empty(), Ordering::Release);
            inner.shrink();
        }
    }

    /// Lets `change` work on them, under the lock: it must only queue.
    pub(super) fn with_listeners<T>(&self, change: impl FnOnce(&mut Listeners) -> T) -> T {
        change(&mut self.inner.lock().listeners)
    }

    /// Keeps those members for which `stays` holds.
    pub(super) fn retain(&self, stays: impl Fn(&Socket) -> bool) {
        let mut inner = self.inner.lock();
        let before = inner.members.len();
        inner.members.retain(|member| stays(&member.socket));
        if inner.members.len() < before {
            inner.shrink();
        }
    }

    /// Whether it can take members of this stream.
    pub(super) fn follows(&self, stream: Option<&Stream>) -> bool {
        let inner = self.inner.lock();
        inner.alive && (stream.is_none() || inner.stream.is_some())
    }

    /// Begins to follow a stream from its head, unless it does already.
    pub(super) fn follow(&self, stream: Stream, head: &Head, recent: Recent, held: &Arc<Memory>) {
        let mut inner = self.inner.lock();
        if inner.stream.is_none() {
            inner.stream = Some((stream, Position::at(head, recent, held)));
        }
    }

    /// Marks it dead if nobody has been in it for a while, and forgets events that are too old.
    pub(super) fn expire(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        if let Some((_, position)) = &mut inner.stream {
            position.trim_recent(now);
        }
        if inner.empty_since.is_some_and(|since| now.duration_since(since) >= LINGER) {
            inner.alive = false;
        }
        !inner.alive
    }

    /// Gives back the memory of its newest events.
    pub(super) fn forget_recent(&self) {
        self.with_position(|_, position| position.forget_recent());
    }

    /// The stream may be gone: what is known of it counts for nothing until it shows itself again.
    pub(super) fn doubt(&self) {
        self.with_position(|_, position| position.doubt());
    }

    pub(super) fn position(&self) -> Option<(u64, Option<Uuid>)> {
        self.inner.lock().stream.as_ref().map(|(_, position)| (position.seq(), position.id()))
    }

    /// Whether the database's head shows that something is missing here, or that it is another history.
    pub(super) fn is_behind(&self, head: &Head) -> bool {
        let inner = self.inner.lock();
        let Some((_, position)) = &inner.stream else { return false };
        head.epoch != position.epoch() || head.last_seq != position.seq() || position.is_another(head)
    }

    /// Notes that the stream grew by an import. Whether members are to be told at once; if not, [`is_due`](Self::is_due)
    /// says when.
    pub(super) fn grows(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        match &mut inner.grown {
            Some(grown) if now.duration_since(grown.told) < TELL_OF_GROWTH => {
                grown.again = true;
                false
            }
            grown => {
                *grown = Some(Box::new(Grown { told: now, again: false }));
                true
            }
        }
    }

    /// Whether members are to be told now of what was imported since they last were. It is noted that they are.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let Some(grown) = inner.grown.take_if(|grown| now.duration_since(grown.told) >= TELL_OF_GROWTH) else {
            return false;
        };
        if grown.again {
            inner.grown = Some(Box::new(Grown { told: now, again: false }));
        }
        grown.again
    }

    /// The stream with the place in it, if it has members.
    pub(super) fn standing(&self) -> Option<(Stream, i64, u64)> {
        let inner = self.inner.lock();
        let (stream, position) = inner.stream.as_ref()?;
        Some((stream.clone(), position.epoch(), position.seq()))
    }

    /// The stream, and what the database is to be asked about it.
    pub(super) fn question(&self) -> Option<(Stream, Question)> {
        let inner = self.inner.lock();
        let (stream, position) = inner.stream.as_ref()?;
        Some((stream.clone(), position.question()))
    }

    /// The stream that the node follows with it.
    pub(super) fn stream(&self) -> Option<Stream> {
        self.inner.lock().stream.as_ref().map(|(stream, _)| stream.clone())
    }

    /// The room, if it is the group of one that the node follows.
    pub(super) fn room(&self) -> Option<String> {
        match &self.inner.lock().stream {
            Some((Stream::Room(room), _)) => Some(room.clone()),
            _ => None,
        }
    }

    /// Whether somebody has to ask; `false` when that is under way.
    pub(super) fn begin_fill(&self, cause: Cause) -> bool {
        let filling = &mut self.inner.lock().filling;
        let begins = filling.is_none();
        *filling = (*filling).max(Some(cause));
        begins
    }

    pub(super) fn end_fill(&self) {
        self.inner.lock().filling = None;
    }

    /// Ends asking for what has come by itself.
    pub(super) fn is_filled(&self) -> bool {
        let mut inner = self.inner.lock();
        let holds = inner.stream.as_ref().is_some_and(|(_, position)| position.has_hole());
        let filled = inner.filling == Some(Cause::Hole) && !holds;
        if filled {
            inner.filling = None;
        }
        filled
    }

    /// The stream has another history now: nothing of the old one is known to the members or held for them.
    pub(super) fn begin_afresh(&self) {
        self.for_each(|member| {
            member.sent = 0;
            if let Some(hold) = &mut member.hold {
                hold.clear();
                hold.afresh = true;
            }
        });
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
    pub(super) fn for_each(&self, visit: impl FnMut(&mut Member)) {
        self.inner.lock().members.iter_mut().for_each(visit);
    }

    /// Keeps stored frames from a member until it is released.
    pub(super) fn hold(&self, socket: &Socket) {
        self.with_member(socket, |member| {
            member.hold.get_or_insert_with(|| Hold::new(&member.socket));
        });
    }

    /// Sends a member what was held for it after `sent`, and then everything as it comes.
    pub(super) fn release(&self, socket: &Socket, sent: u64) -> Released {
        self.with_member(socket, |member| {
            let hold = member.hold.take();
            if !hold.as_ref().is_some_and(|hold| hold.afresh) {
                member.sent = member.sent.max(sent);
            }
            let Some(mut hold) = hold else { return Released::Live };
            for (_, frame) in hold.frames.iter().filter(|(seq, _)| *seq > member.sent) {
                member.socket.push(frame);
            }
            let redactions = std::mem::take(&mut hold.redactions);
            if !hold.overflowed {
                for frame in &redactions {
                    member.socket.push(frame);
                }
                return Released::Live;
            }
            // What comes now must not pass what was dropped: the caller reads that and releases again.
            let mut hold = Hold::new(&member.socket);
            hold.redactions = redactions;
            member.hold = Some(hold);
            Released::Overflowed
        })
        .unwrap_or(Released::Live)
    }

    /// Whether the socket is a member.
    pub(super) fn has(&self, socket: &Socket) -> bool {
        self.with_member(socket, |_| ()).is_some() || self.with_listeners(|listeners| listeners.has(socket))
    }

    fn with_member<T>(&self, socket: &Socket, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.members.iter_mut().find(|member| std::ptr::eq(Arc::as_ptr(&member.socket), socket)).map(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Identity;

    #[test]
    fn a_group_is_small_as_each_user_has_one() {
        // In an `Arc`, and as large as the allocator makes it: 224 bytes.
        assert!(size_of::<Group>() + 16 <= 224, "{}", size_of::<Group>());
    }

    fn socket(outbox_limit: usize) -> Arc<Socket> {
        let identity = Identity {
            channel_name: "specific.test!one".parse().unwrap(),
            user: "alice".into(),
            path: "/".into(),
            v1: true,
            recheck: None,
            expires_at: u64::MAX,
            access: crate::scope::Access::Full,
            counted_address: None,
        };
        Arc::new(Socket::new(identity, Arc::default(), outbox_limit, 0))
    }

    #[test]
    fn of_an_import_in_many_pieces_members_are_told_now_and_then_and_at_its_end() {
        let (group, start) = (Group::new(GroupName::parse("one").unwrap()), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!group.is_due(at(0)) && group.grows(at(0)) && !group.is_due(at(20)), "told at once, and done");
        assert!(group.grows(at(30)) && !group.grows(at(31)) && !group.grows(at(32)));
        assert!(!group.is_due(at(39)) && group.is_due(at(40)) && !group.is_due(at(41)));
        assert!(!group.grows(at(45)) && group.is_due(at(50)) && !group.is_due(at(60)) && group.grows(at(61)));
    }

    #[test]
    fn a_redaction_follows_what_was_read_before_it() {
        let (socket, group) = (socket(100_000), Group::new(GroupName::parse("one").unwrap()));
        let (chat, redaction) = (WireFrame::text("chat"), WireFrame::text("redaction"));
        let event = Event::new(EventType::Redacted.as_str());
        assert!(group.add(&mut Some(Member::new(&socket, true)), None));
        group.for_each(|member| {
            assert!(!member.takes_unstored(&event, &redaction) && !member.takes(2, &chat));
        });
        assert_eq!((group.release(&socket, 1), socket.waiting()), (Released::Live, chat.len() + redaction.len()));
        group.for_each(|member| assert!(member.takes_unstored(&event, &redaction), "nothing is held any more"));
        // Also when the stream has to be read once more.
        group.hold(&socket);
        group.for_each(|member| {
            assert!(
                !member.takes_unstored(&event, &redaction) && !member.takes(3, &WireFrame::text(&"x".repeat(200_000)))
            );
        });
        assert_eq!((group.release(&socket, 2), socket.waiting()), (Released::Overflowed, chat.len() + redaction.len()));
        assert_eq!((group.release(&socket, 3), socket.waiting()), (Released::Live, chat.len() + 2 * redaction.len()));
    }

    #[test]
    fn what_is_held_for_a_socket_is_bounded_over_all_its_streams() {
        let (socket, frame) = (socket(100_000), WireFrame::text(&"x".repeat(10_000)));
        let group = |name: &str| Group::new(GroupName::parse(name).unwrap());
        let groups = [group("one"), group("two")];
        groups.iter().for_each(|group| assert!(group.add(&mut Some(Member::new(&socket, true)), None)));
        for seq in 1..=5 {
            groups.iter().for_each(|group| group.for_each(|member| assert!(!member.takes(seq, &frame))));
        }
        // The last of the second had no room.
        assert_eq!(groups[1].release(&socket, 0), Released::Overflowed);
        assert_eq!((groups[0].release(&socket, 0), socket.waiting()), (Released::Live, 5 * frame.len()));
        assert_eq!(groups[1].release(&socket, 5), Released::Live);
        assert!(socket.begin_holding(100_000), "all of it is given back");
    }
}
