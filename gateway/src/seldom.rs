//! What is said over and over is said now and then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// At most one line of a kind in this time.
const EVERY: Duration = Duration::from_secs(10);

/// Tells when it is time for a line of one kind again.
#[derive(Debug)]
pub(crate) struct Seldom {
    since: Instant,
    /// Milliseconds since then when the last one was due, and one more.
    last: AtomicU64,
}

impl Seldom {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0) }
    }

    /// `true` for one of all that ask at the same time, the first time and then every ten seconds.
    pub(crate) fn is_due(&self) -> bool {
        let now = self.since.elapsed().as_millis() as u64 + 1;
        let due = |last: u64| (last == 0 || now >= last + EVERY.as_millis() as u64).then_some(now);
        self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_those_right_after_it_are_not() {
        let seldom = Seldom::new();
        assert_eq!([(); 3].map(|()| seldom.is_due()), [true, false, false]);
    }
}
