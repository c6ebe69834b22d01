//! Warnings that strangers can cause, at a rate that a log can bear.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often a warning of a kind is written at most.
const EVERY: Duration = Duration::from_secs(60);

/// Lets a warning of each kind through once a minute. Kinds are words of the program, so there are few.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    kinds: Mutex<HashMap<(&'static str, &'static str), Kind>>,
}

#[derive(Debug)]
struct Kind {
    written: Instant,
    kept_back: u64,
}

impl Seldom {
    /// Whether to write a warning of this kind now: then how many like it were not written since the last one.
    pub(crate) fn now(&self, of: &'static str, reason: &'static str) -> Option<u64> {
        self.at(Instant::now(), of, reason)
    }

    fn at(&self, now: Instant, of: &'static str, reason: &'static str) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        match kinds.get_mut(&(of, reason)) {
            Some(kind) if now.duration_since(kind.written) < EVERY => {
                kind.kept_back += 1;
                None
            }
            known => {
                let kept_back = known.map_or(0, |kind| kind.kept_back);
                kinds.insert((of, reason), Kind { written: now, kept_back: 0 });
                Some(kept_back)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_once_a_minute_and_tells_how_many_there_were() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.at(start, "chat_message", "no_seal"), Some(0));
        assert_eq!(seldom.at(start, "chat_message", "stale"), Some(0));
        for _ in 0..3 {
            assert_eq!(seldom.at(start + EVERY / 2, "chat_message", "no_seal"), None);
        }
        assert_eq!(seldom.at(start + EVERY, "chat_message", "no_seal"), Some(3));
        assert_eq!(seldom.at(start + EVERY, "chat_message", "no_seal"), None);
    }
}
