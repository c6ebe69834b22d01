//! Whether everything a layer needs is there: the connections for commands and for the queues.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::redis::refusal::ErrorClass;

/// One thing that can be away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The commands of a shard, and the memberships it must hold.
    Shard(usize),
    /// A reader of queues on a shard.
    Reader(usize, Box<str>),
}

pub(super) struct Health {
    missing: Mutex<HashSet<Part>>,
    whole: watch::Sender<bool>,
    /// What Redis said last when it refused to have us.
    refusal: watch::Sender<Option<String>>,
}

impl Health {
    pub(super) fn new(missing: impl IntoIterator<Item = Part>) -> Self {
        let missing = Mutex::new(missing.into_iter().collect());
        Self { missing, whole: watch::Sender::new(false), refusal: watch::Sender::new(None) }
    }

    /// Notes that a part is there or not; `tell` hears when that changes the whole, one change after
    /// another. It must not block.
    pub(super) fn set(&self, part: Part, there: bool, tell: impl FnOnce(bool)) {
        let mut missing = self.missing.lock();
        match there {
            true => missing.remove(&part),
            false => missing.insert(part),
        };
        let whole = missing.is_empty();
        if self.whole.send_replace(whole) != whole {
            tell(whole);
        }
    }

    /// Runs `look` while nothing can change.
    pub(super) fn look<T>(&self, look: impl FnOnce(bool) -> T) -> T {
        let missing = self.missing.lock();
        look(missing.is_empty())
    }

    pub(super) fn is_missing(&self, part: &Part) -> bool {
        self.missing.lock().contains(part)
    }

    pub(super) fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }

    pub(super) fn refused(&self, text: &str) {
        self.refusal.send_replace(Some(text.to_owned()));
    }

    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.borrow().clone()
    }

    /// Returns when Redis has refused us in a way that waiting does not mend.
    pub(super) async fn denied(&self) {
        let denied =
            |text: &Option<String>| text.as_deref().is_some_and(|text| ErrorClass::of(text) == ErrorClass::Denied);
        let _ = self.refusal.subscribe().wait_for(denied).await;
    }

    pub(super) async fn whole(&self) {
        // Fails only if the sender is gone, and that is part of ourselves.
        let _ = self.whole.subscribe().wait_for(|whole| *whole).await;
    }
}
