//! Lines of the log that others can provoke: one a minute, and how many it stands for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most one line in this time.
const EVERY: Duration = Duration::from_secs(60);

/// Says when a line is due.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Times>);

/// Says when a line of each kind is due. Kinds are words of the program, so there are few.
#[derive(Debug, Default)]
pub(crate) struct SeldomOfKind(Mutex<HashMap<(&'static str, &'static str), Times>>);

#[derive(Debug, Default)]
struct Times {
    last: Option<Instant>,
    since: u64,
}

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Times { last: None, since: 0 }))
    }

    /// One more time. If a line is due: how often it has happened since the last one.
    pub(crate) fn again(&self) -> Option<u64> {
        self.0.lock().again(Instant::now())
    }
}

impl SeldomOfKind {
    /// As [`Seldom::again`], of this kind.
    pub(crate) fn again(&self, of: &'static str, reason: &'static str) -> Option<u64> {
        self.0.lock().entry((of, reason)).or_default().again(Instant::now())
    }
}

impl Times {
    fn again(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stands_for_many() {
        let (mut times, start) = (Times::default(), Instant::now());
        assert_eq!([0, 1, 30].map(|seconds| times.again(start + Duration::from_secs(seconds))), [Some(1), None, None]);
        assert_eq!(times.again(start + EVERY), Some(3));
        assert_eq!(times.again(start + EVERY), None);
    }

    #[test]
    fn each_kind_has_lines_of_its_own() {
        let seldom = SeldomOfKind::default();
        assert_eq!(seldom.again("chat_message", "no_seal"), Some(1));
        assert_eq!(seldom.again("chat_message", "stale"), Some(1));
        assert_eq!(seldom.again("chat_message", "no_seal"), None);
    }
}
