//! Where a node stands in a stream, and what happens to events that come too early or too late.
//!
//! Pure, without clock or network. `seq` is contiguous by the database's word, so a jump proves that
//! something is missing: what is behind the hole is held until the hole is filled.

use std::collections::BTreeMap;
use std::sync::Arc;

use channel_layer::Event;
use persistence::Head;
use uuid::Uuid;

/// Events behind a hole that are held; what is over is fetched again from the database later.
const MAX_HELD: usize = 1024;

/// A node's place in one stream.
#[derive(Debug)]
pub(crate) struct Position {
    epoch: i64,
    seq: u64,
    /// The id at `seq`, by which a client checks its place.
    id: Option<Uuid>,
    held: BTreeMap<u64, Arc<Event>>,
    /// The first event of another epoch, until the database has said which one is right.
    foreign: Option<(i64, u64, Arc<Event>)>,
    /// Questions to the database that brought nothing.
    fruitless: u8,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It, and perhaps held ones after it, are to be delivered now.
    Ready,
    /// It waits for what is missing before it.
    Held,
    /// It has been delivered before.
    Old,
    /// It belongs to another epoch; the database has to be asked.
    OtherEpoch,
}

impl Position {
    /// A stream whose head the database gave; what comes after it will be delivered.
    pub(crate) fn at(head: &Head) -> Self {
        Self {
            epoch: head.epoch,
            seq: head.last_seq,
            id: head.last_id,
            held: BTreeMap::new(),
            foreign: None,
            fruitless: 0,
        }
    }

    /// Epoch of the stream.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The last `seq` handed on.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The id at [`seq`](Self::seq), if known.
    pub(crate) fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Takes an event of the stream; what may be delivered now is appended to `ready`, in order.
    pub(crate) fn offer(&mut self, epoch: i64, seq: u64, event: Arc<Event>, ready: &mut Vec<Arc<Event>>) -> Offer {
        if epoch != self.epoch {
            if self.foreign.as_ref().is_none_or(|(known, first, _)| *known != epoch || seq < *first) {
                self.foreign = Some((epoch, seq, event));
            }
            return Offer::OtherEpoch;
        }
        if seq <= self.seq {
            return Offer::Old;
        }
        if seq > self.seq + 1 {
            self.held.insert(seq, event);
            if self.held.len() > MAX_HELD {
                self.held.pop_last();
            }
            return Offer::Held;
        }
        self.deliver(seq, event, ready);
        self.deliver_held(ready);
        Offer::Ready
    }

    /// Something is missing before what is held, or another epoch has shown itself.
    pub(crate) fn has_hole(&self) -> bool {
        !self.held.is_empty() || self.foreign.is_some()
    }

    /// Gives up on what is missing before `seq`: the database does not have it (any more).
    pub(crate) fn skip_to(&mut self, seq: u64, ready: &mut Vec<Arc<Event>>) {
        if seq > self.seq + 1 {
            self.seq = seq - 1;
            self.id = None;
            self.held.retain(|held, _| *held >= seq);
            self.deliver_held(ready);
        }
    }

    /// The database's head has been read, after the node had stood at `asked_at`. Returns whether the
    /// stream begins afresh: it has another epoch, or it has gone back behind us (a restored backup).
    pub(crate) fn check_head(&mut self, head: &Head, asked_at: u64, ready: &mut Vec<Arc<Event>>) -> bool {
        let foreign = self.foreign.take();
        if head.epoch == self.epoch && head.last_seq >= asked_at {
            return false;
        }
        let afresh = self.epoch != 0;
        self.held.clear();
        self.epoch = head.epoch;
        match foreign {
            Some((epoch, seq, event)) if epoch == head.epoch => {
                self.seq = seq - 1;
                self.deliver(seq, event, ready);
            }
            _ => {
                self.seq = head.last_seq;
                self.id = head.last_id;
            }
        }
        afresh
    }

    /// Called when the database had nothing for a hole. What is held although the database knows of
    /// nothing like it was made up by somebody on the layer; it is dropped at the third time.
    pub(crate) fn give_up_after_a_while(&mut self) {
        self.fruitless += 1;
        if self.fruitless >= 3 {
            self.held.clear();
            self.fruitless = 0;
        }
    }

    fn deliver_held(&mut self, ready: &mut Vec<Arc<Event>>) {
        while let Some(event) = self.held.remove(&(self.seq + 1)) {
            self.deliver(self.seq + 1, event, ready);
        }
    }

    fn deliver(&mut self, seq: u64, event: Arc<Event>, ready: &mut Vec<Arc<Event>>) {
        self.seq = seq;
        self.fruitless = 0;
        self.id = event.text("id").and_then(|id| id.parse().ok());
        ready.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(seq: u64) -> Arc<Event> {
        Arc::new(Event::new("chat_message").with("seq", seq as i64))
    }

    fn seqs(ready: &[Arc<Event>]) -> Vec<u64> {
        ready.iter().map(|event| event.get("seq").and_then(channel_layer::Value::as_u64).unwrap()).collect()
    }

    fn start(seq: u64) -> Position {
        Position::at(&Head { epoch: 1, last_seq: seq, last_id: None })
    }

    #[test]
    fn a_jump_is_held_until_it_is_filled() {
        let (mut position, mut ready) = (start(4), Vec::new());
        assert_eq!(position.offer(1, 6, event(6), &mut ready), Offer::Held);
        assert_eq!(position.offer(1, 4, event(4), &mut ready), Offer::Old);
        assert!(position.has_hole() && ready.is_empty());
        assert_eq!(position.offer(1, 5, event(5), &mut ready), Offer::Ready);
        assert_eq!(seqs(&ready), [5, 6]);
        assert!(!position.has_hole());
    }

    #[test]
    fn another_epoch_moves_nothing_before_the_database_says_so() {
        let (mut position, mut ready) = (start(4), Vec::new());
        assert_eq!(position.offer(2, 1, event(1), &mut ready), Offer::OtherEpoch);
        assert_eq!((position.seq(), ready.len()), (4, 0));
        assert!(!position.check_head(&Head { epoch: 1, last_seq: 4, last_id: None }, 4, &mut ready));
        assert!(!position.has_hole());
        assert_eq!(position.offer(2, 1, event(1), &mut ready), Offer::OtherEpoch);
        assert!(position.check_head(&Head { epoch: 2, last_seq: 1, last_id: None }, 4, &mut ready));
        assert_eq!((position.epoch(), position.seq(), seqs(&ready)), (2, 1, vec![1]));
    }

    #[test]
    fn a_restored_backup_starts_afresh_and_made_up_events_are_dropped() {
        let (mut position, mut ready) = (start(9), Vec::new());
        assert!(position.check_head(&Head { epoch: 1, last_seq: 5, last_id: None }, 9, &mut ready));
        assert_eq!(position.seq(), 5);
        position.offer(1, 1_000_000, event(1_000_000), &mut ready);
        (0..3).for_each(|_| position.give_up_after_a_while());
        assert!(!position.has_hole() && ready.is_empty());
    }

    proptest! {
        #[test]
        fn any_order_comes_out_in_order(order in Just((1..=30u64).collect::<Vec<_>>()).prop_shuffle(), twice in any::<bool>()) {
            let (mut position, mut ready) = (start(0), Vec::new());
            for &seq in order.iter().chain(if twice { order.iter() } else { [].iter() }) {
                position.offer(1, seq, event(seq), &mut ready);
            }
            prop_assert_eq!(seqs(&ready), (1..=30).collect::<Vec<_>>());
        }
    }
}
