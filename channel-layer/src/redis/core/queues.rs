//! Our queues: one for each client id and channel prefix, as long as a channel of that name lives. All
//! queues of a client id are read together, by one reader for each shard.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::keys;

/// One of our queues, on all shards. It ends with the last channel that holds it.
pub(super) struct Queue {
    /// The channel names' part up to the `!`.
    pub(super) name: String,
    pub(super) key: Bytes,
    /// How many receivers on its channels have no event. What is taken out of the queue beyond that would
    /// be taken for nobody.
    pub(super) hungry: Arc<AtomicUsize>,
    /// Whose readers read it.
    pub(super) readers: Arc<Readers>,
    /// By shard: whether the reader's present command names it.
    asked: Box<[AtomicBool]>,
}

/// What the readers of some queues share, one reader for each shard.
pub(super) struct Readers {
    /// For the layer's health.
    pub(super) name: Box<str>,
    /// A message under this key ends the wait for all the others. `None` if there are no others.
    pub(super) wake_key: Option<Bytes>,
    queues: Mutex<Vec<Weak<Queue>>>,
    shards: Box<[Turn]>,
}

/// One command of a reader.
#[derive(Default)]
struct Turn {
    /// Ends the connection: the probe has found it deaf.
    reset: Notify,
    /// The queues it names; `None` between two commands.
    names: Mutex<Option<Vec<Arc<Queue>>>>,
    /// Where the next command begins, so that a busy queue does not starve the others.
    next: AtomicUsize,
}

impl Readers {
    /// The readers of a queue, and of others that are added if there is a key to wake them with.
    pub(super) fn with_queue(layer_prefix: &str, name: &str, wake_key: Option<Bytes>, shards: usize) -> Arc<Queue> {
        let shards = (0..shards).map(|_| Turn::default()).collect();
        let readers = Arc::new(Self { name: name.into(), wake_key, queues: Mutex::default(), shards });
        readers.add(layer_prefix, name)
    }

    /// Another queue to read.
    pub(super) fn add(self: &Arc<Self>, layer_prefix: &str, name: &str) -> Arc<Queue> {
        let queue = Arc::new(Queue {
            key: keys::queue(layer_prefix, name),
            name: name.to_owned(),
            hungry: Arc::default(),
            readers: self.clone(),
            asked: self.shards.iter().map(|_| AtomicBool::new(false)).collect(),
        });
        self.queues.lock().push(Arc::downgrade(&queue));
        queue
    }

    /// The queues that still are; forgets the others.
    fn live(&self) -> Vec<Arc<Queue>> {
        let mut live = Vec::new();
        self.queues.lock().retain(|queue| queue.upgrade().map(|queue| live.push(queue)).is_some());
        live
    }

    /// The key of one of the queues; `None` if there is none any more, and nothing to read.
    pub(super) fn any_key(&self) -> Option<Bytes> {
        self.queues.lock().iter().find_map(|queue| Some(queue.upgrade()?.key.clone()))
    }

    /// Whether somebody receives on one of the queues and has no event.
    pub(super) fn are_hungry(&self) -> bool {
        let queues = self.queues.lock();
        queues.iter().filter_map(Weak::upgrade).any(|queue| queue.hungry.load(Ordering::Acquire) > 0)
    }

    /// The keys of the queues the next command on a shard is to name: all, or those that somebody is hungry for.
    pub(super) fn begin(&self, shard: usize, all: bool) -> Vec<Bytes> {
        let turn = &self.shards[shard];
        let mut names = turn.names.lock();
        let mut queues = self.live();
        let first = turn.next.fetch_add(1, Ordering::Relaxed);
        let first = first % queues.len().max(1);
        queues.rotate_left(first);
        queues.retain(|queue| {
            let asked = all || queue.hungry.load(Ordering::Acquire) > 0;
            // While the lock is held: whoever is told that it is not named sees a command to interrupt.
            queue.asked[shard].store(asked, Ordering::Release);
            asked
        });
        let keys = queues.iter().map(|queue| queue.key.clone()).collect();
        *names = Some(queues);
        keys
    }

    /// The command that [`begin`](Self::begin) was for is over.
    pub(super) fn end(&self, shard: usize) {
        let over = self.shards[shard].names.lock().take();
        for queue in over.into_iter().flatten() {
            queue.asked[shard].store(false, Ordering::Release);
        }
    }

    pub(super) fn reset(&self, shard: usize) -> &Notify {
        &self.shards[shard].reset
    }

    /// Whether the reader on a shard waits, and not for all the queues.
    pub(super) fn misses_one(&self, shard: usize) -> bool {
        let names = self.shards[shard].names.lock();
        names.is_some() && self.live().iter().any(|queue| !queue.asked[shard].load(Ordering::Acquire))
    }
}

impl Queue {
    /// Whether the reader on a shard waits for other queues only.
    pub(super) fn is_missed(&self, shard: usize) -> bool {
        !self.asked[shard].load(Ordering::Acquire) && self.readers.shards[shard].names.lock().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: Vec<Bytes>) -> Vec<String> {
        keys.into_iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_reader_asks_for_what_is_wanted_in_turn_and_forgets_what_is_gone() {
        let one = Readers::with_queue("p", "one.id!", Some(Bytes::new()), 2);
        let readers = one.readers.clone();
        let two = readers.add("p", "two.id!");
        assert_eq!(keys(readers.begin(0, false)), [""; 0]);
        assert!(one.is_missed(0) && !one.is_missed(1) && readers.misses_one(0) && !readers.misses_one(1));
        readers.end(0);
        assert!(!one.is_missed(0), "no command, nothing to interrupt");
        two.hungry.fetch_add(1, Ordering::AcqRel);
        assert!(readers.are_hungry());
        assert_eq!(keys(readers.begin(0, false)), ["ptwo.id!"]);
        assert!(one.is_missed(0) && !two.is_missed(0));
        readers.end(0);
        let (first, second) = (keys(readers.begin(1, true)), keys(readers.begin(1, true)));
        assert_eq!((first.len(), &first[0], &first[1]), (2, &second[1], &second[0]));
        assert!(!readers.misses_one(1));
        readers.end(1);
        drop(two);
        assert_eq!(keys(readers.begin(1, true)), ["pone.id!"]);
        readers.end(1);
        drop(one);
        assert!(readers.any_key().is_none());
    }
}
