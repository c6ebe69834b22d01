//! Waiting for conditions.

use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(10);

/// Asks `yes` every 10 ms until it is true. Panics with `what` when `limit` has passed.
pub fn until(what: &str, limit: Duration, mut yes: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !yes() {
        assert!(Instant::now() < deadline, "{what} did not happen within {limit:?}");
        std::thread::sleep(STEP);
    }
}
