//! A value that is replaced while others read it, without their noticing.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often it can be replaced. What was there before stays until the end, as somebody may still read it.
const MOST: usize = 1000;

/// The newest version of something; who has a reference keeps the version it looked at.
pub struct Current<T> {
    first: T,
    /// Boxed: a place that stays empty is a pointer, not room for all settings.
    later: Box<[OnceLock<Box<T>>]>,
    /// How many of `later` are there.
    count: AtomicUsize,
}

impl<T> Current<T> {
    pub(crate) fn new(first: T) -> Self {
        Self { first, later: (0..MOST).map(|_| OnceLock::new()).collect(), count: AtomicUsize::new(0) }
    }

    /// From now on this is what is read. `false` if it was replaced too often. For one at a time.
    pub(crate) fn replace(&self, next: T) -> bool {
        let count = self.count.load(Ordering::Acquire);
        let replaced = self.later.get(count).is_some_and(|place| place.set(Box::new(next)).is_ok());
        if replaced {
            self.count.store(count + 1, Ordering::Release);
        }
        replaced
    }
}

impl<T> Deref for Current<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let count = self.count.load(Ordering::Acquire);
        count.checked_sub(1).and_then(|last| self.later[last].get()).map_or(&self.first, |later| later)
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        T::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_read_and_an_older_one_stays_for_who_has_it() {
        let current = Current::new("first".to_owned());
        let first: &str = &current;
        for number in 0..MOST {
            assert!(current.replace(number.to_string()));
            assert_eq!(*current, number.to_string());
        }
        assert!(!current.replace("one too many".to_owned()));
        assert_eq!((first, &**current), ("first", "999"));
    }
}
