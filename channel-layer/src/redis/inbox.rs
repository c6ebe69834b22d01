//! One channel's unread events.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{ChannelName, Event, LayerError};

/// How many unread events an inbox holds unless told otherwise; then the oldest go, as in
/// channels_redis.
const CAPACITY: usize = 100;

pub(super) struct Inbox {
    pub(super) name: ChannelName,
    capacity: usize,
    events: Mutex<VecDeque<(Arc<Event>, Option<Instant>)>>,
    arrived: Notify,
    closed: AtomicBool,
}

impl Inbox {
    pub(super) fn new(name: ChannelName) -> Self {
        Self::with_capacity(name, CAPACITY)
    }

    pub(super) fn with_capacity(name: ChannelName, capacity: usize) -> Self {
        Self { name, capacity, events: Mutex::default(), arrived: Notify::new(), closed: AtomicBool::new(false) }
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
        let mut events = self.events.lock();
        let full = events.len() >= self.capacity;
        if full {
            events.pop_front();
        }
        events.push_back((event, expires));
        drop(events);
        self.arrived.notify_one();
        full
    }

    /// How many events wait that are not too old.
    pub(super) fn fresh(&self) -> usize {
        let now = Instant::now();
        self.events.lock().iter().filter(|(_, expires)| expires.is_none_or(|at| at > now)).count()
    }

    /// The next event, if there is one.
    pub(super) fn try_pop(&self) -> Option<Event> {
        let mut events = self.events.lock();
        while let Some((event, expires)) = events.pop_front() {
            if expires.is_none_or(|at| at > Instant::now()) {
                return Some(Arc::unwrap_or_clone(event));
            }
        }
        None
    }

    /// The next event. An event leaves the inbox only in the moment it is returned, so dropping the
    /// future loses nothing.
    pub(super) async fn pop(&self) -> Result<Event, LayerError> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(event) = self.try_pop() {
                return Ok(event);
            }
            if self.closed.load(Ordering::Acquire) {
                // The next waiter must learn it too.
                self.arrived.notify_one();
                return Err(LayerError::Closed);
            }
            arrived.await;
        }
    }

    pub(super) fn clear(&self) {
        self.events.lock().clear();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.clear();
        self.arrived.notify_one();
    }
}
