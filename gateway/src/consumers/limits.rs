//! What one client may send: a token bucket for frames, and patience with bad ones.

use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::config::Limits;

/// Bad frames in a row that end a connection.
const BAD_FRAMES: u8 = 20;

/// Between two pings that cost no token.
const PING: Duration = Duration::from_secs(5);

/// Per connection, some bytes of state.
#[derive(Debug)]
pub(super) struct Guard {
    tokens: f32,
    refilled: Instant,
    /// Frames over the limit since the client last kept it.
    excess: u16,
    bad: u8,
    pinged: Option<Instant>,
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
        Self { tokens: limits.frames_burst as f32, refilled: Instant::now(), excess: 0, bad: 0, pinged: None }
    }

    /// Whether a `ping` is one that costs no token. It shows a client that is refused everything else that
    /// its connection lives.
    pub(super) fn ping_is_free(&mut self, now: Instant) -> bool {
        let free = self.pinged.is_none_or(|last| now.duration_since(last) >= PING);
        if free {
            self.pinged = Some(now);
        }
        free
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
    fn one_ping_in_five_seconds_costs_nothing() {
        let (limits, now) = (limits(), Instant::now());
        let mut guard = Guard::new(&limits);
        assert!(guard.ping_is_free(now) && !guard.ping_is_free(now + Duration::from_secs(4)));
        assert!(guard.ping_is_free(now + Duration::from_secs(5)));
        assert!(!guard.ping_is_free(now + Duration::from_secs(9)));
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
