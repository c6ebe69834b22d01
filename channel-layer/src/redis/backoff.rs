//! How long to wait before the next attempt.

use std::time::Duration;

use super::refusal;
use crate::BoxError;

const FIRST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_millis(500);
/// When the password or the rights are wrong: a person has to act, and servers may count attempts.
const DENIED: Duration = Duration::from_secs(5);

/// Doubles from 25 ms up to 500 ms, with jitter, so that the nodes of a site do not return at once.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = (FIRST * 2_u32.saturating_pow(self.0)).min(LONGEST);
        self.0 = (self.0 + 1).min(10);
        jittered(pause)
    }

    /// Like [`next_pause`](Self::next_pause), and several seconds if the server refused us for our
    /// password or rights.
    pub(super) fn pause_after(&mut self, error: &BoxError) -> Duration {
        match refusal::is_denied(error) {
            true => jittered(DENIED),
            false => self.next_pause(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_denied_tries_again_slowly() {
        let mut backoff = Backoff::default();
        let pause = backoff.pause_after(&refusal::Refused("WRONGPASS".into()).into());
        assert!(pause >= Duration::from_secs(2), "{pause:?}");
        let pause = backoff.pause_after(&"connection refused".into());
        assert!(pause <= FIRST, "{pause:?}");
    }
}
