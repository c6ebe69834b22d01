//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_millis(500);

/// Doubles from 25 ms up to 500 ms, with jitter, so that the nodes of a site do not return at once.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = (FIRST * 2_u32.saturating_pow(self.0)).min(LONGEST);
        self.0 = (self.0 + 1).min(10);
        pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}
