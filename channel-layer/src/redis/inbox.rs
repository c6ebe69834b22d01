//! One channel's unread events.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{ChannelName, Event, LayerError, stats::Counters};

/// How many unread events an inbox holds unless told otherwise; then the oldest go, as in
/// channels_redis.
const CAPACITY: usize = 100;
/// About how many bytes of them, whatever it was told; one is always let in.
const BYTES: usize = 16 << 20;

pub(super) struct Inbox {
    pub(super) name: ChannelName,
    capacity: usize,
    inside: Mutex<Inside>,
    arrived: Notify,
    /// How many receivers there are, over several inboxes, for whom there is no event.
    hungry: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Inside {
    events: VecDeque<(Arc<Event>, Option<Instant>)>,
    bytes: usize,
    closed: bool,
    /// Receivers that have found nothing, and how many of them count as hungry.
    waiting: usize,
    hungry: usize,
}

impl Inside {
    /// The next event that is not too old; those before it are counted.
    fn pop(&mut self, counters: &Counters) -> Option<Event> {
        while let Some((event, expires)) = self.take() {
            if expires.is_none_or(|at| at > Instant::now()) {
                return Some(Arc::unwrap_or_clone(event));
            }
            counters.expired(1);
        }
        None
    }
}

impl Inside {
    fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }

    fn take(&mut self) -> Option<(Arc<Event>, Option<Instant>)> {
        let taken = self.events.pop_front()?;
        self.bytes -= taken.0.weight();
        Some(taken)
    }
}

impl Inbox {
    pub(super) fn new(name: ChannelName) -> Self {
        Self::of_queue(name, CAPACITY, Arc::default(), Arc::default())
    }

    /// An inbox whose receivers without an event are counted in `hungry`, and what it held for too long in
    /// `counters`.
    pub(super) fn of_queue(
        name: ChannelName,
        capacity: usize,
        hungry: Arc<AtomicUsize>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { name, capacity, inside: Mutex::default(), arrived: Notify::new(), hungry, counters }
    }

    /// Adds an event; tells whether the oldest had to go for it.
    pub(super) fn push(&self, event: Arc<Event>) -> bool {
        self.add(event, None)
    }

    /// Adds an event that nobody wants after `expires`; tells whether the oldest had to go for it.
    pub(super) fn push_until(&self, event: Arc<Event>, expires: Instant) -> bool {
        self.add(event, Some(expires))
    }

    fn add(&self, event: Arc<Event>, expires: Option<Instant>) -> bool {
        let full = self.change(|inside| {
            let (bytes, mut full) = (event.weight(), false);
            while inside.events.len() >= self.capacity || inside.bytes + bytes > BYTES {
                if inside.take().is_none() {
                    break;
                }
                full = true;
            }
            inside.bytes += bytes;
            inside.events.push_back((event, expires));
            full
        });
        self.arrived.notify_one();
        full
    }

    /// Every change goes through here, so that a receiver stops to count in the moment there is an event
    /// for it, and not only when it has been woken and has gone.
    fn change<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let mut inside = self.inside.lock();
        let result = change(&mut inside);
        let hungry = if inside.closed { 0 } else { inside.waiting.saturating_sub(inside.events.len()) };
        let before = std::mem::replace(&mut inside.hungry, hungry);
        match hungry.checked_sub(before) {
            Some(more) => self.hungry.fetch_add(more, Ordering::AcqRel),
            None => self.hungry.fetch_sub(before - hungry, Ordering::AcqRel),
        };
        result
    }

    /// The next event. An event leaves the inbox only in the moment it is returned, so dropping the
    /// future loses nothing.
    pub(super) async fn pop(&self) -> Result<Event, LayerError> {
        self.pop_or(|| {}).await
    }

    /// Like [`pop`](Self::pop); `hungry` is called whenever there is nothing, after that has been counted.
    pub(super) async fn pop_or(&self, hungry: impl Fn()) -> Result<Event, LayerError> {
        let mut waiting = Waiting { inbox: self, counted: false };
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Of two events that come between the look and the wait, only one would be remembered.
            arrived.as_mut().enable();
            if let Some(event) = waiting.pop() {
                return Ok(event);
            }
            if self.inside.lock().closed {
                // The next waiter must learn it too.
                self.arrived.notify_one();
                return Err(LayerError::Closed);
            }
            hungry();
            arrived.await;
        }
    }

    pub(super) fn clear(&self) {
        self.change(Inside::clear);
    }

    pub(super) fn close(&self) {
        self.change(|inside| {
            inside.closed = true;
            inside.clear();
        });
        self.arrived.notify_one();
    }
}

/// A receiver.
struct Waiting<'a> {
    inbox: &'a Inbox,
    counted: bool,
}

impl Waiting<'_> {
    /// The next event, and then it waits no longer; or none, and it does from now on.
    fn pop(&mut self) -> Option<Event> {
        let counted = self.counted;
        let event = self.inbox.change(|inside| {
            let event = inside.pop(&self.inbox.counters);
            match (&event, counted) {
                (Some(_), true) => inside.waiting -= 1,
                (None, false) => inside.waiting += 1,
                _ => {}
            }
            event
        });
        self.counted = event.is_none();
        event
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.inbox.change(|inside| inside.waiting -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use futures_util::FutureExt;

    use super::*;

    fn inbox() -> (Inbox, impl Fn() -> usize) {
        let hungry = Arc::new(AtomicUsize::new(0));
        let inbox = Inbox::of_queue(ChannelName::parse("x").unwrap(), 2, hungry.clone(), Arc::default());
        (inbox, move || hungry.load(Ordering::SeqCst))
    }

    fn event() -> Arc<Event> {
        Arc::new(Event::new("t"))
    }

    #[test]
    fn a_receiver_is_hungry_until_there_is_an_event_for_it() {
        let (inbox, hungry) = inbox();
        let (mut one, mut two) = (Box::pin(inbox.pop()), Box::pin(inbox.pop()));
        assert!(one.as_mut().now_or_never().is_none() && two.as_mut().now_or_never().is_none());
        assert_eq!(hungry(), 2);
        inbox.push(event());
        assert_eq!(hungry(), 1, "before anybody has been woken");
        inbox.push(event());
        inbox.push(event());
        assert_eq!(hungry(), 0);
        assert!(one.as_mut().now_or_never().is_some());
        drop(two);
        let mut three = Box::pin(inbox.pop());
        assert!(three.as_mut().now_or_never().is_some(), "what was for one that has gone is for the next");
        let mut four = Box::pin(inbox.pop());
        assert!(four.as_mut().now_or_never().is_none());
        inbox.push(event());
        inbox.clear();
        assert_eq!(hungry(), 1, "what is forgotten feeds nobody");
        drop(four);
        assert_eq!(hungry(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_too_old_makes_its_receiver_hungry_again() {
        let (inbox, hungry) = inbox();
        let told = Cell::new(0);
        let mut receiver = Box::pin(inbox.pop_or(|| told.set(told.get() + 1)));
        assert!(receiver.as_mut().now_or_never().is_none());
        inbox.push_until(event(), Instant::now() + Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(hungry(), 0);
        assert!(receiver.as_mut().now_or_never().is_none());
        assert_eq!((hungry(), told.get()), (1, 2));
        assert_eq!(inbox.counters.snapshot().expired, 1);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_bytes() {
        let inbox = Inbox::of_queue(ChannelName::parse("x").unwrap(), usize::MAX, Arc::default(), Arc::default());
        let event = |number: i64| Event::new("t").with("number", number).with("text", "x".repeat(1 << 20));
        let full: Vec<bool> = (0..20).map(|number| inbox.push(Arc::new(event(number)))).collect();
        let fit = BYTES / (1 << 20) - 1;
        assert!(full.iter().enumerate().all(|(number, full)| *full == (number >= fit)));
        let first = inbox.pop().now_or_never().unwrap().unwrap();
        assert_eq!(first.get("number"), Some(&(20 - fit as i64).into()));
        inbox.clear();
        assert!(!inbox.push(Arc::new(event(0))), "there is room again");
        assert!(inbox.push(Arc::new(Event::new("t").with("text", "x".repeat(2 * BYTES)))));
        assert!(inbox.pop().now_or_never().is_some() && inbox.inside.lock().bytes == 0);
    }

    #[test]
    fn nobody_is_hungry_at_a_closed_inbox() {
        let (inbox, hungry) = inbox();
        let mut receivers = [Box::pin(inbox.pop()), Box::pin(inbox.pop())];
        assert!(receivers.iter_mut().all(|receiver| receiver.as_mut().now_or_never().is_none()));
        inbox.close();
        assert_eq!(hungry(), 0);
        let closed = |receiver| matches!(receiver, Some(Err(LayerError::Closed)));
        assert!(receivers.iter_mut().all(|receiver| closed(receiver.as_mut().now_or_never())));
        assert!(closed(inbox.pop().now_or_never()));
        assert_eq!(hungry(), 0);
    }
}
