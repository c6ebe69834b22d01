//! Delivery into a relay's sink, in order, without a task and without holding the layer's lock.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{Delivery, RelaySink};

/// What may wait while another call is delivering.
const BOUND: usize = 65_536;
/// The same in bytes, about.
const BOUND_BYTES: usize = 64 << 20;

/// One relay's way out. Whoever finds it idle delivers, also what others push meanwhile; so events
/// keep their order, and a sink that sends from inside `deliver` does not lock itself out.
pub(super) struct Outlet {
    sink: Arc<dyn RelaySink>,
    queue: Mutex<Queue>,
    /// Set when the relay's handle is gone: its sink must hear nothing more.
    closed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Delivery>,
    bytes: usize,
    delivering: bool,
}

impl Outlet {
    pub(super) fn new(sink: Arc<dyn RelaySink>) -> Self {
        Self { sink, queue: Mutex::default(), closed: AtomicBool::new(false) }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Delivers, now or by whoever is delivering; returns how many events had to be dropped.
    pub(super) fn push(&self, delivery: Delivery) -> u64 {
        let bytes = match &delivery {
            Delivery::Group { event, .. } | Delivery::Channel { event, .. } => event.weight(),
            Delivery::Disconnected | Delivery::Reconnected(_) => 0,
        };
        let mut queue = self.queue.lock();
        let full = queue.waiting.len() >= BOUND || queue.bytes + bytes > BOUND_BYTES;
        if full && !queue.waiting.is_empty() {
            return 1;
        }
        queue.bytes += bytes;
        queue.waiting.push_back(delivery);
        if queue.delivering {
            return 0;
        }
        queue.delivering = true;
        drop(queue);
        let _turn = Turn(self);
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                if queue.waiting.is_empty() {
                    // Under the lock, so that nobody can push and rely on us any more.
                    queue.delivering = false;
                    return 0;
                }
                queue.bytes = 0;
                batch.extend(queue.waiting.drain(..));
            }
            if !self.closed.load(Ordering::Acquire) {
                self.sink.deliver(&mut batch);
            }
            batch.clear();
        }
    }
}

/// Gives the turn back if a sink panics; the next push then delivers what was left.
struct Turn<'a>(&'a Outlet);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().delivering = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::{Event, GroupName};

    /// Sends more from inside, while it has the turn.
    #[derive(Default)]
    struct Greedy {
        outlet: OnceLock<Arc<Outlet>>,
        dropped: Mutex<Option<u64>>,
        seen: Mutex<usize>,
    }

    fn delivery() -> Delivery {
        let event = Event::new("big").with("text", "x".repeat(1 << 20));
        Delivery::Group { group: GroupName::parse("g").unwrap(), event: Arc::new(event) }
    }

    impl RelaySink for Greedy {
        fn deliver(&self, batch: &mut Vec<Delivery>) {
            *self.seen.lock() += batch.len();
            let mut dropped = self.dropped.lock();
            if dropped.is_none() {
                let outlet = self.outlet.get().unwrap();
                *dropped = Some((0..100).map(|_| outlet.push(delivery())).sum());
            }
        }
    }

    #[test]
    fn what_waits_for_a_sink_is_bounded_in_bytes() {
        let sink = Arc::new(Greedy::default());
        let outlet = Arc::new(Outlet::new(sink.clone()));
        assert!(sink.outlet.set(outlet.clone()).is_ok());
        assert_eq!(outlet.push(delivery()), 0);
        let waited = BOUND_BYTES / (1 << 20) - 1;
        assert_eq!((*sink.dropped.lock(), *sink.seen.lock()), (Some(100 - waited as u64), 1 + waited));
        assert_eq!(outlet.push(delivery()), 0, "there is room again");
    }
}
