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
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= BOUND {
            return 1;
        }
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
