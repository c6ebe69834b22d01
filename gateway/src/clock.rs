//! The node's own clock: whole seconds since it started, monotonic, cheap to read.

use std::time::Instant;

/// Seconds since a node started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(self) -> u32 {
        self.0.elapsed().as_secs() as u32
    }
}

/// Wall-clock seconds since 1970, for tokens.
pub(crate) fn unix_seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
