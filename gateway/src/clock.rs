//! What time it is, and by whose clock.
//!
//! The node's own clock counts from its start and never jumps; all limits, pings and sign-ins of open sockets go by it.
//! The database's dates what is stored, and judges what has expired, sign-ins included: all nodes see one time, whatever
//! their own clocks say. Between two measurements (`upkeep/skew.rs`) the node's own carries it on. The system's clock is
//! asked until the database has answered, and when a socket came.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// A moment of [`Clock::millis`] that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// The clocks of a node; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    start: Instant,
    /// The database's time at `start`, in microseconds since 1970. The system's, until the database has been asked.
    database_at_start: Arc<AtomicI64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), database_at_start: Arc::new(AtomicI64::new(system_micros())) }
    }

    /// Whole seconds since the node started.
    pub(crate) fn seconds(&self) -> u32 {
        self.start.elapsed().as_secs() as u32
    }

    /// Milliseconds since the node started.
    pub(crate) fn millis(&self) -> u64 {
        self.millis_at(Instant::now())
    }

    /// What [`millis`](Self::millis) says at that moment.
    pub(crate) fn millis_at(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.start).as_millis() as u64
    }

    /// When, in [`millis`](Self::millis), it will be so many seconds since 1970 by the database's clock as it stands now.
    /// Whatever that clock does later, the moment stays.
    pub(crate) fn deadline(&self, unix_seconds: i64) -> u64 {
        let left = unix_seconds.saturating_mul(1000).saturating_sub(self.unix_micros() / 1000);
        self.millis().saturating_add_signed(left)
    }

    /// When the node started, in microseconds since 1970, as the system's clock would have it now: it changes when
    /// that clock is set.
    pub(crate) fn system_at_start(&self) -> i64 {
        system_micros() - self.start.elapsed().as_micros() as i64
    }

    /// The time by the database's clock.
    pub(crate) fn database(&self) -> OffsetDateTime {
        let nanos = i128::from(self.unix_micros()) * 1000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The same in seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> i64 {
        self.unix_micros().div_euclid(1_000_000)
    }

    /// The same in microseconds since 1970.
    pub(crate) fn unix_micros(&self) -> i64 {
        self.database_at_start.load(Ordering::Relaxed) + self.start.elapsed().as_micros() as i64
    }

    /// Notes what time it was by the database's clock, so long ago.
    pub(crate) fn set_database(&self, time: OffsetDateTime, ago: Duration) {
        let at_start = time + ago - self.start.elapsed();
        self.database_at_start.store((at_start.unix_timestamp_nanos() / 1000) as i64, Ordering::Relaxed);
    }
}

/// Microseconds since 1970 by the system's clock.
pub(crate) fn system_micros() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_as_far_away_as_the_database_s_clock_says_when_it_is_asked_for() {
        let clock = Clock::start();
        let away = |unix: i64| clock.deadline(unix).saturating_sub(clock.millis());
        assert!((58_000..=60_000).contains(&away(system_micros() / 1_000_000 + 60)), "not asked yet");
        clock.set_database(OffsetDateTime::now_utc() + time::Duration::HOUR, Duration::ZERO);
        assert!((58_000..=60_000).contains(&away(clock.unix_seconds() + 60)));
        assert!(clock.unix_seconds() >= system_micros() / 1_000_000 + 3590);
        assert_eq!(away(clock.unix_seconds() - 60), 0);
        assert_eq!((clock.deadline(i64::MIN), away(i64::MAX) > u64::MAX / 4000), (0, true));
    }

    #[test]
    fn the_database_s_time_is_what_it_said_and_goes_on() {
        let clock = Clock::start();
        let said = OffsetDateTime::now_utc() - time::Duration::days(10);
        clock.set_database(said, Duration::from_secs(5));
        let first = clock.database();
        // Both are cut to microseconds.
        assert!(first - said >= time::Duration::milliseconds(4999) && first - said < time::Duration::MINUTE);
        assert!(clock.clone().database() >= first);
    }
}
