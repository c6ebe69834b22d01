//! Lines of the log that others can provoke: one in a while, and how many it stands for.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most one line in this time.
const EVERY: Duration = Duration::from_secs(10);

/// Says when a line is due.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    times: u64,
}

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { last: None, times: 0 }))
    }

    /// One more time. If a line is due: how often it has happened since the last one.
    pub(crate) fn again(&self) -> Option<u64> {
        let mut state = self.0.lock();
        state.times += 1;
        if state.last.is_some_and(|last| last.elapsed() < EVERY) {
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stands_for_many() {
        let seldom = Seldom::default();
        assert_eq!((seldom.again(), seldom.again(), seldom.again()), (Some(1), None, None));
        seldom.0.lock().last = Instant::now().checked_sub(EVERY);
        assert_eq!(seldom.again(), Some(3));
    }
}
