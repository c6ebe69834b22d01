//! What one client may send: a token bucket for frames, and patience with bad ones.

use std::time::Instant;

use crate::close::CloseReason;
use crate::config::Limits;

/// Bad frames in a row that end a connection.
const BAD_FRAMES: u8 = 20;

/// Per connection, some bytes of state.
#[derive(Debug)]
pub(super) struct Guard {
    tokens: f32,
    refilled: Instant,
    /// Frames over the limit since the client last kept it.
    excess: u16,
    bad: u8,
}

/// What is to be done with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Serve,
    /// The first one over the limit: say so.
    Warn,
    /// Over the limit after the warning: not served, not answered.
    Ignore,
}

impl Guard {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { tokens: limits.frames_burst as f32, refilled: Instant::now(), excess: 0, bad: 0 }
    }

    /// Takes a token for a frame. Who goes on for another burst after the warning is flooding.
    pub(super) fn frame(&mut self, limits: &Limits, now: Instant) -> Result<Verdict, CloseReason> {
        if limits.frames_per_second == 0 {
            return Ok(Verdict::Serve);
        }
        let (rate, burst) = (limits.frames_per_second as f32, limits.frames_burst.max(1) as f32);
        self.tokens = (self.tokens + now.duration_since(self.refilled).as_secs_f32() * rate).min(burst);
        self.refilled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            if self.tokens >= burst / 2.0 {
                self.excess = 0;
            }
            return Ok(Verdict::Serve);
        }
        self.excess += 1;
        match u32::from(self.excess) {
            1 => Ok(Verdict::Warn),
            excess if excess > limits.frames_burst.max(1) => Err(CloseReason::PolicyViolation("flooding")),
            _ => Ok(Verdict::Ignore),
        }
    }

    pub(super) fn good(&mut self) {
        self.bad = 0;
    }

    /// Counts a bad frame; too many in a row end the connection.
    pub(super) fn bad(&mut self) -> Result<(), CloseReason> {
        self.bad += 1;
        if self.bad >= BAD_FRAMES { Err(CloseReason::PolicyViolation("too many bad frames")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> Limits {
        Limits { frames_per_second: 10, frames_burst: 5, ..Limits::default() }
    }

    #[test]
    fn a_burst_passes_then_a_warning_then_the_end() {
        let (limits, now) = (limits(), Instant::now());
        let mut guard = Guard::new(&limits);
        for _ in 0..5 {
            assert_eq!(guard.frame(&limits, now), Ok(Verdict::Serve));
        }
        assert_eq!(guard.frame(&limits, now), Ok(Verdict::Warn));
        for _ in 0..4 {
            assert_eq!(guard.frame(&limits, now), Ok(Verdict::Ignore));
        }
        assert_eq!(guard.frame(&limits, now).map_err(|reason| reason.code()), Err(1008));
    }

    #[test]
    fn keeping_the_rate_is_forgiven() {
        let (limits, mut now) = (limits(), Instant::now());
        let mut guard = Guard::new(&limits);
        for _ in 0..100 {
            now += Duration::from_millis(101);
            assert_eq!(guard.frame(&limits, now), Ok(Verdict::Serve));
        }
    }

    #[test]
    fn the_twentieth_bad_frame_in_a_row_ends_it() {
        let mut guard = Guard::new(&limits());
        for _ in 0..19 {
            guard.bad().unwrap();
        }
        guard.good();
        for _ in 0..19 {
            guard.bad().unwrap();
        }
        assert_eq!(guard.bad().map_err(|reason| reason.code()), Err(1008));
    }
}
