//! Heads of streams as this store has left them, for SQLite.
//!
//! A statement that reads what it has written wakes whoever waits for it before it has committed, for nothing, and
//! reads again what its triggers had in hand. Who writes to a stream again knows what it would read, if nobody else
//! wrote in between; so it says what it expects, the statement fails where that is not so, and nothing is read.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::Stream;

/// How many are remembered, and how much their names may take each: some MiB together.
const MOST: usize = 4_096;
const NAMES: usize = 1_024;

/// What is known of a stream's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) last_seq: i64,
    pub(crate) epoch: i64,
    pub(crate) display_name: Option<String>,
}

/// The heads that are remembered.
#[derive(Default)]
pub(crate) struct KnownHeads(Mutex<HashMap<Stream, Known>>);

impl KnownHeads {
    fn heads(&self) -> MutexGuard<'_, HashMap<Stream, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of these streams, one after another; nothing unless it is known of all.
    pub(crate) fn of<'a>(&self, streams: impl Iterator<Item = &'a Stream>) -> Option<Vec<Known>> {
        let heads = self.heads();
        streams.map(|stream| heads.get(stream).cloned()).collect()
    }

    /// Remembers where a stream was left. Who comes later knows better, unless the stream was made again.
    pub(crate) fn note(&self, stream: &Stream, known: Known) {
        let mut heads = self.heads();
        if let Some(head) = heads.get_mut(stream) {
            if head.epoch != known.epoch || head.last_seq < known.last_seq {
                *head = known;
            }
            return;
        }
        if stream.name().len() + known.display_name.as_ref().map_or(0, String::len) > NAMES {
            return;
        }
        if heads.len() >= MOST {
            // Each is found again by its next message.
            heads.clear();
        }
        heads.insert(stream.clone(), known);
    }

    pub(crate) fn forget<'a>(&self, streams: impl Iterator<Item = &'a Stream>) {
        let mut heads = self.heads();
        for stream in streams {
            heads.remove(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_bound() {
        let (heads, room) = (KnownHeads::default(), |at: usize| Stream::Room(format!("room {at}")));
        let known = |last_seq, name: &str| Known { last_seq, epoch: 1, display_name: Some(name.to_owned()) };
        for at in 0..3 * MOST {
            heads.note(&room(at), known(1, "a room"));
            assert!(heads.heads().len() <= MOST);
        }
        assert!(heads.of([&room(3 * MOST - 1)].into_iter()).is_some());
        heads.note(&room(3 * MOST), known(1, &"x".repeat(NAMES)));
        assert_eq!(heads.of([&room(3 * MOST)].into_iter()), None);
    }

    #[test]
    fn the_last_place_counts() {
        let (heads, room) = (KnownHeads::default(), Stream::Room("lobby".to_owned()));
        let known = |epoch, last_seq| Known { last_seq, epoch, display_name: None };
        let seen = || heads.of([&room].into_iter()).map(|known| (known[0].epoch, known[0].last_seq));
        for (noted, then) in [((1, 5), (1, 5)), ((1, 4), (1, 5)), ((1, 6), (1, 6)), ((2, 1), (2, 1))] {
            heads.note(&room, known(noted.0, noted.1));
            assert_eq!(seen(), Some(then));
        }
        assert_eq!(heads.of([&room, &Stream::Inbox("lobby".to_owned())].into_iter()), None);
        heads.forget([&room].into_iter());
        assert_eq!(seen(), None);
    }
}
