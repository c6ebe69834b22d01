//! One channel's unread events.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{ChannelName, Event, LayerError};

/// How many unread events an inbox holds; then the oldest go, as in channels_redis.
const CAPACITY: usize = 100;

pub(super) struct Inbox {
    pub(super) name: ChannelName,
    events: Mutex<VecDeque<Arc<Event>>>,
    arrived: Notify,
    closed: AtomicBool,
}

impl Inbox {
    pub(super) fn new(name: ChannelName) -> Self {
        Self { name, events: Mutex::default(), arrived: Notify::new(), closed: AtomicBool::new(false) }
    }

    /// Adds an event; tells whether the oldest had to go for it.
    pub(super) fn push(&self, event: Arc<Event>) -> bool {
        let mut events = self.events.lock();
        let full = events.len() >= CAPACITY;
        if full {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.arrived.notify_one();
        full
    }

    /// The next event. An event leaves the inbox only in the moment it is returned, so dropping the
    /// future loses nothing.
    pub(super) async fn pop(&self) -> Result<Event, LayerError> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(event) = self.events.lock().pop_front() {
                return Ok(Arc::unwrap_or_clone(event));
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
