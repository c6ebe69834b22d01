//! What passes this node, for who watches it (`GET /api/tail`, `gateway tail`). While nobody does, it costs one atomic read
//! for what is delivered together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use channel_layer::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::events::rfc3339;

/// How long after the last question somebody is taken to watch still.
const WATCHED: Duration = Duration::from_secs(60);

/// What is kept for who asks next, in number and in bytes, about; the oldest go.
const MOST: usize = 4096;
const MOST_BYTES: usize = 4 << 20;

/// What one takes beside its event.
const COST: usize = 256;

/// What of an event is text that somebody has written.
const TEXTS: [&str; 3] = ["message", "text", "data"];

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Tail {
    start: Instant,
    /// Milliseconds since the start; 0 while nobody watches.
    watched_until: AtomicU64,
    passing: Mutex<Passing>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Passing {
    /// The number of the first.
    first: u64,
    passed: VecDeque<(usize, Passed)>,
    bytes: usize,
}

/// Something that passed.
#[derive(Debug, Clone)]
pub(crate) struct Passed {
    pub(crate) at: OffsetDateTime,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// An event that was handed to the sockets of a group.
    Event { to: To, event: Arc<Event>, seq: Option<u64>, sockets: u64 },
    /// A socket that was opened, or closed with a code.
    Socket { user: Arc<str>, path: String, channel: String, code: Option<u16> },
}

/// Whose group it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum To {
    Room(String),
    User(String),
    Everyone,
    /// Another group, or one socket.
    Other(String),
}

/// What somebody wants to see.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) user: Option<String>,
    pub(crate) room: Option<String>,
    pub(crate) texts: bool,
}

/// A part of what passed.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) events: Vec<Value>,
    /// To ask with for what follows.
    pub(crate) next: u64,
    /// How many had to go before they were asked for.
    pub(crate) missed: u64,
}

impl Tail {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), watched_until: AtomicU64::new(0), passing: Mutex::default(), more: Notify::new() }
    }

    fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Whether somebody watches.
    pub(crate) fn is_watched(&self) -> bool {
        let until = self.watched_until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        if self.millis() <= until {
            return true;
        }
        self.watched_until.store(0, Ordering::Relaxed);
        let passing = &mut *self.passing.lock();
        passing.first += passing.passed.len() as u64;
        (passing.passed, passing.bytes) = (VecDeque::new(), 0);
        false
    }

    /// Keeps something for who watches.
    pub(crate) fn pass(&self, passed: Passed) {
        let bytes = COST
            + match &passed.what {
                What::Event { event, .. } => event.weight(),
                What::Socket { path, .. } => path.len(),
            };
        {
            let passing = &mut *self.passing.lock();
            passing.bytes += bytes;
            passing.passed.push_back((bytes, passed));
            while passing.passed.len() > MOST || (passing.bytes > MOST_BYTES && passing.passed.len() > 1) {
                let Some((bytes, _)) = passing.passed.pop_front() else { break };
                passing.bytes -= bytes;
                passing.first += 1;
            }
        }
        self.more.notify_waiters();
    }

    /// What has passed since a number, at most so many; from now on without one. Waits so long for something to show.
    pub(crate) async fn after(&self, after: Option<u64>, filter: &Filter, most: usize, wait: Duration) -> Part {
        let deadline = tokio::time::Instant::now() + wait;
        let mut from = after.unwrap_or_else(|| self.passing.lock().end());
        let mut missed = 0;
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let until = self.millis() + WATCHED.as_millis() as u64;
            self.watched_until.fetch_max(until.max(1), Ordering::Relaxed);
            let part = self.passing.lock().part(from, filter, most);
            missed += part.missed;
            if !part.events.is_empty() || tokio::time::timeout_at(deadline, more).await.is_err() {
                return Part { missed, ..part };
            }
            from = part.next;
        }
    }
}

impl Passing {
    /// The number of the one that comes next.
    fn end(&self) -> u64 {
        self.first + self.passed.len() as u64
    }

    fn part(&self, after: u64, filter: &Filter, most: usize) -> Part {
        // A number of an earlier life of the node is none of this one's.
        let from = if after > self.end() { self.end() } else { after.max(self.first) };
        let missed = from.saturating_sub(after);
        let (mut events, mut next) = (Vec::new(), from);
        for (_, passed) in self.passed.iter().skip((from - self.first) as usize) {
            if events.len() == most {
                break;
            }
            next += 1;
            if passed.what.is_for(filter) {
                events.push(passed.shown(filter.texts));
            }
        }
        Part { events, next, missed }
    }
}

impl What {
    fn is_for(&self, Filter { user, room, .. }: &Filter) -> bool {
        if user.is_none() && room.is_none() {
            return true;
        }
        match self {
            Self::Event { to, event, .. } => {
                let (to_user, to_room) = match to {
                    To::User(user) => (Some(user.as_str()), None),
                    To::Room(room) => (None, Some(room.as_str())),
                    To::Everyone => return true,
                    To::Other(_) => (None, None),
                };
                let is = |wanted: &Option<String>, given: Option<&str>| wanted.is_some() && wanted.as_deref() == given;
                is(user, to_user) || is(user, event.text("from_user")) || is(room, to_room)
            }
            Self::Socket { user: of, .. } => user.as_deref() == Some(of),
        }
    }
}

impl Passed {
    fn shown(&self, texts: bool) -> Value {
        let at = rfc3339(self.at);
        let (event, mut shown) = match &self.what {
            What::Socket { user, path, channel, code } => {
                let what = if code.is_some() { "socket closed" } else { "socket opened" };
                let mut shown = json!({"at": at, "what": what, "user": user, "path": path, "channel_name": channel});
                if let Some(code) = code {
                    shown["code"] = json!(code);
                }
                return shown;
            }
            What::Event { to, event, seq, sockets } => {
                let what = event.handler_name().map(std::borrow::Cow::into_owned).unwrap_or_default();
                let mut shown = json!({"at": at, "what": what, "sockets": sockets});
                match to {
                    To::Room(room) => shown["room"] = json!(room),
                    To::User(user) => shown["user"] = json!(user),
                    To::Everyone => shown["everyone"] = json!(true),
                    To::Other(group) => shown["group"] = json!(group),
                }
                if let Some(seq) = seq {
                    shown["seq"] = json!(seq);
                }
                (event, shown)
            }
        };
        for field in ["from_user", "id", "traceparent"].iter().chain(TEXTS.iter().filter(|_| texts)) {
            if let Some(value) = event.get(field).and_then(|value| serde_json::to_value(value).ok()) {
                shown[*field] = value;
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(room: &str, from: &str, text: &str) -> Passed {
        let event = Event::new("chat.message").with("message", text).with("from_user", from).with("data", 7);
        let to = if room.is_empty() { To::Everyone } else { To::Room(room.into()) };
        let what = What::Event { to, event: Arc::new(event), seq: Some(1), sockets: 2 };
        Passed { at: OffsetDateTime::UNIX_EPOCH, what }
    }

    async fn after(tail: &Tail, after: Option<u64>, filter: &Filter) -> Part {
        tail.after(after, filter, 10, Duration::ZERO).await
    }

    #[tokio::test]
    async fn who_watches_sees_what_passes_and_texts_only_if_asked_for() {
        let tail = Tail::new();
        assert!(!tail.is_watched());
        let first = after(&tail, None, &Filter::default()).await;
        assert!(tail.is_watched() && first.events.is_empty() && first.next == 0);
        for (room, from) in [("lobby", "alice"), ("attic", "bob"), ("", "ops")] {
            tail.pass(passed(room, from, "hello"));
        }
        let all = after(&tail, Some(0), &Filter::default()).await;
        assert_eq!((all.events.len(), all.next, all.missed), (3, 3, 0));
        assert_eq!(
            all.events[0],
            json!({"at": "1970-01-01T00:00:00.000000Z", "what": "chat_message", "room": "lobby", "from_user": "alice", "seq": 1, "sockets": 2})
        );
        let lobby = Filter { room: Some("lobby".into()), texts: true, ..Filter::default() };
        let lobby = after(&tail, Some(0), &lobby).await;
        assert_eq!((lobby.events.len(), lobby.next), (2, 3), "and what is for everyone");
        assert_eq!((&lobby.events[0]["message"], &lobby.events[0]["data"]), (&json!("hello"), &json!(7)));
        let bob = Filter { user: Some("bob".into()), ..Filter::default() };
        assert_eq!(after(&tail, Some(0), &bob).await.events[0]["room"], "attic");
        assert_eq!(after(&tail, Some(99), &bob).await.next, 3, "a number of another node");
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_in_number_and_in_bytes() {
        let tail = Tail::new();
        (0..MOST + 10).for_each(|_| tail.pass(passed("lobby", "alice", "x")));
        let part = after(&tail, Some(0), &Filter::default()).await;
        assert_eq!((part.missed, part.events.len(), part.next), (10, 10, 20));
        let long = "x".repeat(1 << 20);
        (0..6).for_each(|_| tail.pass(passed("lobby", "alice", &long)));
        assert!(tail.passing.lock().passed.len() < 5 && tail.passing.lock().bytes <= MOST_BYTES);
    }
}
