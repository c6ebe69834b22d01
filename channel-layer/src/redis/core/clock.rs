//! Redis' time, without asking for it: kept by our own monotonic clock and set right by every
//! heartbeat.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// From this difference on, the log says that two clocks disagree.
const SKEW: Duration = Duration::from_secs(2);

pub(super) struct Clock {
    start: Instant,
    /// Redis' time at `start`, in microseconds since 1970.
    offset: AtomicI64,
    heard: AtomicBool,
}

impl Clock {
    /// Believes the system's clock until Redis has been heard.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), offset: AtomicI64::new(system()), heard: AtomicBool::new(false) }
    }

    fn since_start(&self, now: Instant) -> i64 {
        now.duration_since(self.start).as_micros() as i64
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> f64 {
        (self.offset.load(Ordering::Relaxed) + self.since_start(Instant::now())) as f64 / 1e6
    }

    /// When a message must have been sent that is not older than `expiry` seconds. As long as nobody knows
    /// what time it is, none is too old.
    pub(super) fn oldest(&self, expiry: f64) -> f64 {
        match self.heard.load(Ordering::Relaxed) {
            true => self.now() - expiry,
            false => f64::NEG_INFINITY,
        }
    }

    /// Notes what Redis has said, in an answer that came just now; returns how far the system's clock is
    /// from it if that is too far.
    pub(super) fn set(&self, seconds: i64, micros: i64) -> Option<f64> {
        let theirs = seconds * 1_000_000 + micros;
        self.offset.store(theirs - self.since_start(Instant::now()), Ordering::Relaxed);
        self.heard.store(true, Ordering::Relaxed);
        let skew = (system() - theirs) as f64 / 1e6;
        (skew.abs() > SKEW.as_secs_f64()).then_some(skew)
    }
}

fn system() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as i64
}
