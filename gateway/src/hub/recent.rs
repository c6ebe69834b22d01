//! The newest events of a stream, kept in memory for clients that come back: a storm of them does not
//! become a storm on the database.
//!
//! They always end at the node's own position and have no hole; whatever cannot keep to that is
//! forgotten, and the database is asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use channel_layer::Event;
use uuid::Uuid;

use crate::handlers::SharedHandler;
use crate::websocket::WireFrame;

/// Bounds of one stream.
const STREAM_EVENTS: u32 = 1024;
const STREAM_BYTES: usize = 256 * 1024;

/// More than so many would most likely have no room, so they are not read.
const WORTH_READING: u32 = 400;

/// How long an event is of use: clients of a node that left are back by then.
const KEEP: Duration = Duration::from_secs(300);

/// What an entry costs beside its texts, about.
const EVENT_COST: usize = 700;
const FRAME_COST: usize = 100;

/// An amount of memory that all streams of a node share.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// At most so many bytes; 0 keeps nothing.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Bytes in use, about.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The events of one stream up to the node's position, which is the owner's to know.
#[derive(Debug)]
pub(crate) struct Recent {
    memory: Arc<Memory>,
    /// How many are kept at most.
    most: u32,
    /// Older ones may be read from the database and put before.
    grows_back: bool,
    /// Changes whenever everything is dropped: what was read before may be no more what the database has.
    generation: u16,
    /// Most streams are quiet: boxed, they cost a pointer.
    window: Option<Box<Window>>,
}

#[derive(Debug, Default)]
struct Window {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Nothing older can be put before the first: there is none, or no room for it.
    complete: bool,
}

#[derive(Debug)]
struct Entry {
    id: Uuid,
    body: Body,
    bytes: usize,
    since: Instant,
}

/// An event becomes a frame when it is delivered, or else when the first client asks for it; all others share
/// the bytes.
#[derive(Debug)]
enum Body {
    Event(Arc<Event>),
    Frame(WireFrame),
}

impl Recent {
    /// Nothing yet, of a stream that many clients come back to.
    pub(crate) fn shared(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), most: STREAM_EVENTS, grows_back: true, generation: 0, window: None }
    }

    /// Nothing yet, of one user's stream: what was there before is read by its client alone.
    pub(crate) fn private(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), most: STREAM_EVENTS, grows_back: false, generation: 0, window: None }
    }

    /// Keeps so many at most, for streams of which the database keeps few rows.
    pub(crate) fn at_most(mut self, most: usize) -> Self {
        self.most = u32::try_from(most).map_or(self.most, |most| most.min(self.most));
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.entries.len())
    }

    /// Whether it is of use to read older rows, until there are `wanted` in all.
    pub(crate) fn wants(&self, wanted: u64) -> bool {
        let open = self.grows_back && self.memory.limit > 0;
        let most = u64::from(self.most.min(WORTH_READING));
        open && wanted <= most && self.window.as_ref().is_none_or(|window| !window.complete)
    }

    /// Adds what the node has just handed on.
    pub(crate) fn push(&mut self, id: Option<Uuid>, event: &Arc<Event>) {
        let Some(id) = id else { return self.forget() };
        let bytes = EVENT_COST + event.iter().map(|(_, value)| value.as_str().map_or(0, str::len)).sum::<usize>();
        if bytes > STREAM_BYTES {
            return self.forget();
        }
        while self.len() >= self.most as usize || self.bytes() + bytes > STREAM_BYTES || !self.memory.take(bytes) {
            if !self.pop() {
                return self.forget();
            }
        }
        let window = self.window.get_or_insert_default();
        window.bytes += bytes;
        window.entries.push_back(Entry { id, body: Body::Event(Arc::clone(event)), bytes, since: Instant::now() });
    }

    /// Keeps the frames that these of the last events have become, instead of the events.
    pub(crate) fn become_frames<'a>(
        &mut self,
        frames: impl DoubleEndedIterator<Item = (&'a Arc<Event>, &'a WireFrame)>,
    ) {
        let Some(window) = &mut self.window else { return };
        let mut entries = window.entries.iter_mut().rev();
        for (event, frame) in frames.rev() {
            let same = |entry: &&mut Entry| matches!(&entry.body, Body::Event(held) if Arc::ptr_eq(held, event));
            let Some(entry) = entries.find(same) else { return };
            // One of escapes may be larger than its event was counted.
            if let Some(less) = entry.bytes.checked_sub(FRAME_COST + frame.len()) {
                entry.body = Body::Frame(frame.clone());
                entry.bytes -= less;
                window.bytes -= less;
                self.memory.give_back(less);
            }
        }
    }

    /// Puts rows before the first entry; `rows` are without a hole and end right before it. When not
    /// all of them have room, or `complete` says that there are no older ones, no more are taken.
    pub(crate) fn put_before(&mut self, rows: Vec<(Uuid, WireFrame)>, mut complete: bool) {
        let now = Instant::now();
        for (id, frame) in rows.into_iter().rev() {
            let bytes = FRAME_COST + frame.len();
            if self.len() >= self.most as usize || self.bytes() + bytes > STREAM_BYTES || !self.memory.take(bytes) {
                complete = true;
                break;
            }
            let window = self.window.get_or_insert_default();
            window.bytes += bytes;
            window.entries.push_front(Entry { id, body: Body::Frame(frame), bytes, since: now });
        }
        if complete {
            self.window.get_or_insert_default().complete = true;
        }
    }

    /// The id of the entry `back` places before the last (0 is the last).
    pub(crate) fn id(&self, back: usize) -> Option<Uuid> {
        let entries = &self.window.as_ref()?.entries;
        Some(entries.get(entries.len().checked_sub(back + 1)?)?.id)
    }

    /// The last `count` events as frames. `None` when there are not so many, or one that cannot be shown.
    pub(crate) fn frames(&mut self, count: usize, render: SharedHandler) -> Option<Vec<WireFrame>> {
        let entries = &mut self.window.as_mut()?.entries;
        let from = entries.len().checked_sub(count)?;
        entries
            .range_mut(from..)
            .map(|entry| {
                if let Body::Event(event) = &entry.body {
                    entry.body = Body::Frame(render(event)?.frame);
                }
                match &entry.body {
                    Body::Frame(frame) => Some(frame.clone()),
                    Body::Event(_) => None,
                }
            })
            .collect()
    }

    /// Drops what is older than it is of use.
    pub(crate) fn trim(&mut self, now: Instant) {
        let old = |window: &Window| window.entries.front().is_none_or(|first| now.duration_since(first.since) > KEEP);
        while self.window.as_deref().is_some_and(old) {
            if !self.pop() {
                self.window = None;
            }
        }
    }

    /// Drops everything: it may not be what the database has.
    pub(crate) fn forget(&mut self) {
        self.memory.give_back(self.bytes());
        self.window = None;
        self.generation = self.generation.wrapping_add(1);
    }

    pub(crate) fn generation(&self) -> u16 {
        self.generation
    }

    fn bytes(&self) -> usize {
        self.window.as_ref().map_or(0, |window| window.bytes)
    }

    /// Drops the oldest.
    fn pop(&mut self) -> bool {
        let Some(window) = &mut self.window else { return false };
        let Some(oldest) = window.entries.pop_front() else { return false };
        window.bytes -= oldest.bytes;
        window.complete = false;
        self.memory.give_back(oldest.bytes);
        true
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    fn event(text: &str) -> Arc<Event> {
        Arc::new(Event::new("chat_message").with("message", text).with("group_name", "lobby"))
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn text(frame: &WireFrame) -> String {
        String::from_utf8_lossy(frame.as_bytes()).into_owned()
    }

    #[test]
    fn the_last_events_come_back_as_frames_that_all_share() {
        let memory = Memory::new(1 << 20);
        let mut recent = Recent::shared(&memory);
        for n in 1..=3 {
            recent.push(Some(id(n)), &event(&format!("text {n}")));
        }
        let frames = recent.frames(2, events::chat_message).unwrap();
        assert!(frames.len() == 2 && text(&frames[0]).contains("text 2") && text(&frames[1]).contains("text 3"));
        let again = recent.frames(3, events::chat_message).unwrap();
        assert_eq!(again[1].as_bytes().as_ptr(), frames[0].as_bytes().as_ptr());
        assert_eq!((recent.id(0), recent.id(2), recent.id(3)), (Some(id(3)), Some(id(1)), None));
        assert!(recent.frames(4, events::chat_message).is_none());
        recent.push(Some(id(4)), &Arc::new(Event::new("chat_message")));
        assert!(recent.frames(1, events::chat_message).is_none(), "what cannot be shown is the database's");
    }

    #[test]
    fn what_was_delivered_is_kept_as_the_frames_that_were_sent() {
        let memory = Memory::new(1 << 20);
        let mut recent = Recent::shared(&memory);
        let events: Vec<_> = (1..=4).map(|n| event(&format!("text {n}"))).collect();
        for (n, event) in (1..).zip(&events) {
            recent.push(Some(id(n)), event);
        }
        let sent: Vec<_> = events.iter().map(|event| events::chat_message(event).unwrap().frame).collect();
        let (counted, stranger) = (memory.used(), event("text 2"));
        let delivered = [(&events[0], &sent[0]), (&stranger, &sent[1]), (&events[2], &sent[2])];
        recent.become_frames(delivered.into_iter().skip(1));
        let is_frame = |recent: &Recent| {
            let window = recent.window.as_ref().unwrap();
            window.entries.iter().map(|entry| matches!(entry.body, Body::Frame(_))).collect::<Vec<_>>()
        };
        assert_eq!(
            is_frame(&recent),
            [false, false, true, false],
            "an event that is not the one that was kept is none"
        );
        assert!(memory.used() < counted && memory.used() == recent.bytes());
        recent.become_frames(delivered.into_iter().take(1));
        assert_eq!(is_frame(&recent), [true, false, true, false]);
        let frames = recent.frames(4, events::chat_message).unwrap();
        assert_eq!(frames[2].as_bytes().as_ptr(), sent[2].as_bytes().as_ptr());
        assert_eq!((&frames[0], frames.len()), (&sent[0], 4));
        drop(recent);
        assert_eq!(memory.used(), 0);

        let mut recent = Recent::shared(&memory);
        let escapes = event(&"\u{1}".repeat(1000));
        recent.push(Some(id(1)), &escapes);
        let frame = events::chat_message(&escapes).unwrap().frame;
        recent.become_frames([(&escapes, &frame)].into_iter());
        assert_eq!(is_frame(&recent), [false], "a frame larger than what was counted");
    }

    #[test]
    fn every_bound_drops_the_oldest_and_the_memory_comes_back() {
        let memory = Memory::new(10 * 1024);
        let (mut few, mut recent) = (Recent::shared(&memory).at_most(2), Recent::private(&memory));
        for n in 1..=5 {
            few.push(Some(id(n)), &event("x"));
        }
        assert_eq!((few.len(), few.id(0), few.id(1)), (2, Some(id(5)), Some(id(4))));
        for n in 1..=100 {
            recent.push(Some(id(n)), &event("x"));
            assert!(memory.used() <= 10 * 1024);
            assert_eq!(recent.id(0), Some(id(n)));
        }
        drop(few);
        assert_eq!(memory.used(), recent.bytes());
        recent.push(Some(id(101)), &event(&"x".repeat(20_000)));
        assert_eq!((recent.len(), memory.used()), (0, 0), "what has no room leaves no hole behind");
        recent.push(None, &event("x"));
        assert_eq!(recent.len(), 0);
        let mut off = Recent::shared(&Memory::new(0));
        off.push(Some(id(1)), &event("x"));
        assert!(off.len() == 0 && !off.wants(4));
    }

    #[test]
    fn rows_from_the_database_go_before() {
        let memory = Memory::new(1 << 20);
        let mut recent = Recent::shared(&memory);
        recent.push(Some(id(5)), &event("5"));
        let row = |n: u128| (id(n), WireFrame::text(&n.to_string()));
        recent.put_before(vec![row(3), row(4)], false);
        assert!(recent.wants(4));
        assert_eq!([0, 1, 2].map(|back| recent.id(back)), [5, 4, 3].map(|n| Some(id(n))));
        let big = (id(2), WireFrame::text(&"x".repeat(STREAM_BYTES)));
        recent.put_before(vec![row(1), big], false);
        assert_eq!((recent.len(), recent.wants(4)), (3, false), "no hole for want of room");
        recent.forget();
        recent.put_before(Vec::new(), true);
        assert!(!recent.wants(4));
        recent.forget();
        assert!(recent.wants(4) && memory.used() == 0);
    }

    #[test]
    fn what_is_old_goes() {
        let memory = Memory::new(1 << 20);
        let mut recent = Recent::shared(&memory);
        recent.push(Some(id(1)), &event("x"));
        recent.trim(Instant::now());
        assert_eq!(recent.len(), 1);
        recent.trim(Instant::now() + KEEP * 2);
        assert_eq!((recent.len(), memory.used(), recent.window.is_some()), (0, 0, false));
    }
}
