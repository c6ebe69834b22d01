//! Where a node stands in a stream, and what happens to events that come too early or too late.
//!
//! Pure, without clock or network. `seq` is contiguous by the database's word, so a jump proves that
//! something is missing: what is behind the hole is held until the hole is filled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use channel_layer::Event;
use persistence::Head;
use uuid::Uuid;

use crate::handlers::SharedHandler;
use crate::hub::recent::{Memory, Recent};
use crate::websocket::WireFrame;

/// Where a client stands in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientPosition {
    /// The last `seq` it has.
    pub seq: u64,
    /// The id at that `seq`, which tells another history apart.
    pub id: Option<Uuid>,
}

/// Events behind a hole that are held; what is over is fetched again from the database later.
const MAX_HELD: usize = 1024;

/// A node's place in one stream.
#[derive(Debug)]
pub(crate) struct Position {
    epoch: i64,
    seq: u64,
    /// The id at `seq`, by which a client checks its place.
    id: Option<Uuid>,
    /// The stream may have another history by now: clients' places are the database's to judge.
    doubtful: bool,
    /// The events up to here.
    recent: Recent,
    /// What may be held, of all streams.
    memory: Arc<Memory>,
    /// Boxed, as most streams have nothing of it, and each user has one.
    unsettled: Option<Box<Unsettled>>,
}

/// What has come out of order, or is for the database to judge.
#[derive(Debug, Default)]
struct Unsettled {
    /// What is behind a hole.
    held: BTreeMap<u64, Held>,
    /// The first event of another epoch, until the database has said which one is right; without the event itself
    /// where there is no room for it.
    foreign: Option<(i64, u64, Option<Held>)>,
    /// An epoch that the database has said is not, or no more, the stream's.
    refused: Option<i64>,
    /// Where another message than the one that was delivered has shown itself, and the id of that one.
    disputed: Option<(u64, Uuid)>,
    /// Questions to the database that brought nothing.
    fruitless: u8,
}

impl Unsettled {
    /// The database has named the stream's epoch. Takes the first event of another one, if its question was about that.
    fn judge_epoch(&mut self, right: i64, asked: Option<i64>) -> Option<(i64, u64, Option<Held>)> {
        let foreign = self.foreign.take_if(|(epoch, ..)| asked == Some(*epoch) || right == *epoch)?;
        if foreign.0 != right {
            self.refused = Some(foreign.0);
        }
        Some(foreign)
    }

    fn has_hole(&self) -> bool {
        !self.held.is_empty() || self.foreign.is_some() || self.disputed.is_some()
    }

    /// Keeps an event for later. Where there is no room, the last of all goes; `false` if that is this one.
    fn hold(&mut self, seq: u64, event: &Arc<Event>, memory: &Arc<Memory>) -> bool {
        if self.held.contains_key(&seq) {
            return true;
        }
        loop {
            let held = if self.held.len() < MAX_HELD { Held::new(event, memory) } else { None };
            if let Some(held) = held {
                self.held.insert(seq, held);
                return true;
            }
            if self.held.last_key_value().is_none_or(|(last, _)| *last <= seq) {
                return false;
            }
            self.held.pop_last();
        }
    }
}

/// What the database is asked about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    /// Where the node stands.
    pub(crate) at: u64,
    /// The rows after this place are wanted.
    pub(crate) after: u64,
    /// Whether this is the stream's epoch.
    pub(crate) epoch: Option<i64>,
}

/// An event that waits, and its part of the memory for that.
#[derive(Debug)]
struct Held {
    event: Arc<Event>,
    bytes: usize,
    memory: Arc<Memory>,
}

impl Held {
    /// `None` if there is no room.
    fn new(event: &Arc<Event>, memory: &Arc<Memory>) -> Option<Self> {
        let bytes = event.weight();
        memory.take(bytes).then(|| Self { event: Arc::clone(event), bytes, memory: Arc::clone(memory) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// What memory has for a client that comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recall {
    /// Everything after the client's place, up to this `seq`.
    Missed(Vec<WireFrame>, u64),
    /// Rows up to `to`, of this epoch, would have to be read for an answer.
    Before { epoch: i64, to: u64, generation: u16 },
    /// Only the database can tell.
    Unknown,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It, and perhaps held ones after it, are to be delivered now.
    Ready,
    /// It waits for what is missing before it.
    Held,
    /// It would have to wait, and there is no room: the database has it.
    NoRoom,
    /// It has been delivered before.
    Old,
    /// Another one has been delivered in its place; the database has to be asked.
    Disputed,
    /// It belongs to another epoch; the database has to be asked.
    OtherEpoch,
}

impl Position {
    /// A stream whose head the database gave; what comes after it will be delivered.
    pub(crate) fn at(head: &Head, recent: Recent, held: &Arc<Memory>) -> Self {
        Self {
            epoch: head.epoch,
            seq: head.last_seq,
            id: head.last_id,
            doubtful: false,
            recent,
            memory: Arc::clone(held),
            unsettled: None,
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
            let unsettled = self.unsettled.get_or_insert_default();
            if unsettled.refused == Some(epoch) {
                return Offer::Old;
            }
            if unsettled.foreign.as_ref().is_none_or(|(known, first, _)| *known != epoch || seq < *first) {
                // What it replaces makes room first.
                unsettled.foreign = None;
                unsettled.foreign = Some((epoch, seq, Held::new(&event, &self.memory)));
            }
            return Offer::OtherEpoch;
        }
        if seq <= self.seq {
            return self.compare(seq, &event);
        }
        if seq > self.seq + 1 || self.disputed().is_some() {
            let unsettled = self.unsettled.get_or_insert_default();
            return if unsettled.hold(seq, &event, &self.memory) { Offer::Held } else { Offer::NoRoom };
        }
        self.deliver(seq, event, ready);
        self.deliver_held(ready);
        Offer::Ready
    }

    /// Gives back the memory of the newest events: the database is asked for them.
    pub(crate) fn forget_recent(&mut self) {
        self.recent.forget();
    }

    /// Holds an event against the one that was delivered in its place, if that is still known.
    fn compare(&mut self, seq: u64, event: &Event) -> Offer {
        let back = self.seq - seq;
        let recent = || usize::try_from(back).ok().and_then(|back| self.recent.id(back));
        let delivered = if back == 0 { self.id } else { recent() };
        match delivered.zip(id_of(event)) {
            Some((delivered, id)) if delivered != id => {
                if self.disputed().is_none_or(|(first, _)| seq < first) {
                    self.unsettled.get_or_insert_default().disputed = Some((seq, delivered));
                }
                self.doubt();
                Offer::Disputed
            }
            _ => Offer::Old,
        }
    }

    /// What to ask the database: for what is missing, and for what is disputed.
    pub(crate) fn question(&self) -> Question {
        let after = self.disputed().map_or(self.seq, |(seq, _)| seq - 1);
        let foreign = self.unsettled.as_ref().and_then(|unsettled| unsettled.foreign.as_ref());
        Question { at: self.seq, after, epoch: foreign.map(|(epoch, ..)| *epoch) }
    }

    /// The answer to a question settles a dispute, if there was one when it was asked. Returns whether
    /// the database does not have what was delivered: the stream has another history.
    pub(crate) fn settle(&mut self, question: &Question, rows: &[(i64, u64, Arc<Event>)]) -> bool {
        let disputed = self.unsettled.as_mut().map(|unsettled| &mut unsettled.disputed);
        let Some((seq, delivered)) = disputed.and_then(|it| it.take_if(|(seq, _)| *seq > question.after)) else {
            return false;
        };
        let row = rows.iter().find(|(_, of_row, _)| *of_row == seq);
        row.and_then(|(_, _, event)| id_of(event)) != Some(delivered)
    }

    /// Something is missing before what is held, or contradicts what was delivered, or another epoch has
    /// shown itself.
    pub(crate) fn has_hole(&self) -> bool {
        self.unsettled.as_ref().is_some_and(|unsettled| unsettled.has_hole())
    }

    fn disputed(&self) -> Option<(u64, Uuid)> {
        self.unsettled.as_ref()?.disputed
    }

    /// Lets go of what is held before `seq`.
    fn hold_from(&mut self, seq: u64) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.held.retain(|held, _| *held >= seq);
        }
    }

    /// Gives up on what is missing before `seq`: the database does not have it (any more).
    pub(crate) fn skip_to(&mut self, seq: u64, ready: &mut Vec<Arc<Event>>) {
        if seq > self.seq + 1 {
            self.seq = seq - 1;
            self.id = None;
            self.recent.forget();
            self.hold_from(seq);
            self.deliver_held(ready);
        }
    }

    /// Goes on from the head: whatever lies before it is nobody's to be sent.
    pub(crate) fn pass_to(&mut self, head: &Head) {
        if head.last_seq > self.seq {
            self.seq = head.last_seq;
            self.id = head.last_id;
            self.recent.forget();
            self.hold_from(head.last_seq + 1);
            self.bears_fruit();
        }
    }

    /// The database's head has been read in answer to a question. Returns whether the stream begins afresh: it has another epoch, or it has gone back behind us or has another message
    /// where we are or were (a restored backup). `refuted` is what [`settle`](Self::settle) has said.
    pub(crate) fn check_head(
        &mut self,
        head: &Head,
        question: &Question,
        refuted: bool,
        ready: &mut Vec<Arc<Event>>,
    ) -> bool {
        // Whether one that has come since the question is of the stream is not said yet.
        let foreign = self.unsettled.as_mut().and_then(|unsettled| unsettled.judge_epoch(head.epoch, question.epoch));
        self.doubtful = false;
        if head.epoch == self.epoch && head.last_seq >= question.at && !refuted && !self.is_another(head) {
            return false;
        }
        let afresh = self.epoch != 0;
        self.recent.forget();
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.held.clear();
            unsettled.disputed = None;
        }
        self.epoch = head.epoch;
        match foreign {
            Some((epoch, seq, Some(first))) if epoch == head.epoch => {
                self.seq = seq - 1;
                self.deliver(seq, Arc::clone(&first.event), ready);
            }
            _ => {
                self.seq = head.last_seq;
                self.id = head.last_id;
            }
        }
        afresh
    }

    /// Whether this head is of another history: at our very `seq` it has another message.
    pub(crate) fn is_another(&self, head: &Head) -> bool {
        head.last_seq == self.seq && self.id.zip(head.last_id).is_some_and(|(ours, theirs)| ours != theirs)
    }

    /// What a client at `place` has missed, if memory has it. Not more than `most` events; 0 is any number.
    pub(crate) fn recall(&mut self, place: ClientPosition, most: u64, render: SharedHandler) -> Recall {
        let Some(missed) = self.seq.checked_sub(place.seq).filter(|_| !self.doubtful) else {
            return Recall::Unknown;
        };
        let checked = place.id.filter(|_| place.seq > 0);
        if missed == 0 {
            let same = checked.is_none() || checked == self.id;
            return if same { Recall::Missed(Vec::new(), self.seq) } else { Recall::Unknown };
        }
        if most > 0 && missed > most {
            return Recall::Unknown;
        }
        // With an id, the row that the client has is needed too.
        let needed = missed + u64::from(checked.is_some());
        let kept = self.recent.len() as u64;
        if needed > kept {
            let to = self.seq - kept;
            let worth_it = self.epoch != 0 && self.recent.wants(needed);
            let generation = self.recent.generation();
            return if worth_it { Recall::Before { epoch: self.epoch, to, generation } } else { Recall::Unknown };
        }
        let Ok(count) = usize::try_from(missed) else { return Recall::Unknown };
        if checked.is_some() && self.recent.id(count) != checked {
            return Recall::Unknown;
        }
        self.recent.frames(count, render).map_or(Recall::Unknown, |frames| Recall::Missed(frames, self.seq))
    }

    /// Keeps the frames that these of the last events have become.
    pub(crate) fn become_frames<'a>(
        &mut self,
        frames: impl DoubleEndedIterator<Item = (&'a Arc<Event>, &'a WireFrame)>,
    ) {
        self.recent.become_frames(frames);
    }

    /// Puts rows from the database before what is in memory, if they still fit there: ascending, the
    /// last one is `to`, and nothing was forgotten since they were asked for. `complete`: there are no older
    /// ones. Returns whether they fitted.
    pub(crate) fn remember(
        &mut self,
        (epoch, to, generation): (i64, u64, u16),
        rows: Vec<(u64, Uuid, WireFrame)>,
        complete: bool,
    ) -> bool {
        let contiguous = rows.iter().rev().enumerate().all(|(back, (seq, ..))| *seq + back as u64 == to);
        let fits = epoch == self.epoch
            && generation == self.recent.generation()
            && self.seq.checked_sub(to) == Some(self.recent.len() as u64)
            && contiguous;
        if fits {
            self.recent.put_before(rows.into_iter().map(|(_, id, frame)| (id, frame)).collect(), complete);
        }
        fits
    }

    /// The stream may be gone, or another one by now: until it shows itself again the database answers.
    pub(crate) fn doubt(&mut self) {
        self.recent.forget();
        self.doubtful = true;
    }

    /// Forgets what is too old to be asked for.
    pub(crate) fn trim_recent(&mut self, now: Instant) {
        self.recent.trim(now);
    }

    /// Called when the database had nothing for a hole. What is held although the database knows of
    /// nothing like it is of a history that is no more; it is dropped at the third time.
    pub(crate) fn give_up_after_a_while(&mut self) {
        let Some(unsettled) = &mut self.unsettled else { return };
        unsettled.fruitless += 1;
        if unsettled.fruitless >= 3 {
            unsettled.held.clear();
            unsettled.foreign = None;
            unsettled.fruitless = 0;
        }
    }

    /// What is held and may be delivered now.
    pub(crate) fn deliver_held(&mut self, ready: &mut Vec<Arc<Event>>) {
        while let Some(unsettled) = &mut self.unsettled
            && unsettled.disputed.is_none()
            && let Some(held) = unsettled.held.remove(&(self.seq + 1))
        {
            self.deliver(self.seq + 1, Arc::clone(&held.event), ready);
        }
    }

    /// The stream has gone on. What is settled by now takes no memory any more.
    fn bears_fruit(&mut self) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.fruitless = 0;
            if !unsettled.has_hole() && unsettled.refused.is_none() {
                self.unsettled = None;
            }
        }
    }

    fn deliver(&mut self, seq: u64, event: Arc<Event>, ready: &mut Vec<Arc<Event>>) {
        self.seq = seq;
        self.doubtful = false;
        self.id = id_of(&event);
        self.recent.push(self.id, &event);
        self.bears_fruit();
        ready.push(event);
    }
}

fn id_of(event: &Event) -> Option<Uuid> {
    event.text("id")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;
    use crate::hub::recent::Memory;
    use proptest::prelude::*;

    fn event(seq: u64) -> Arc<Event> {
        Arc::new(Event::new("chat_message").with("seq", seq as i64))
    }

    fn seqs(ready: &[Arc<Event>]) -> Vec<u64> {
        ready.iter().map(|event| event.get("seq").and_then(channel_layer::Value::as_u64).unwrap()).collect()
    }

    fn start(seq: u64) -> Position {
        start_within(seq, &Memory::new(1 << 20))
    }

    fn start_within(seq: u64, held: &Arc<Memory>) -> Position {
        let head = Head { epoch: 1, last_seq: seq, last_id: None };
        Position::at(&head, Recent::shared(&Memory::new(1 << 20)), held)
    }

    /// What was asked by a node at this place that knew every epoch by then.
    fn asked(at: u64) -> Question {
        Question { at, after: at, epoch: Some(2) }
    }

    fn id(seq: u64) -> Uuid {
        Uuid::from_u128(seq.into())
    }

    fn place(seq: u64) -> ClientPosition {
        ClientPosition { seq, id: Some(id(seq)) }
    }

    fn stored(seq: u64) -> Arc<Event> {
        let event = Event::new("chat_message").with("message", seq.to_string()).with("group_name", "lobby");
        Arc::new(event.with("id", id(seq).to_string()).with("seq", seq as i64).with("epoch", 1))
    }

    fn row(seq: u64) -> (u64, Uuid, WireFrame) {
        (seq, id(seq), WireFrame::text(&seq.to_string()))
    }

    /// At 10, with 8, 9 and 10 in memory.
    fn at_ten() -> Position {
        let (mut position, mut ready) = (start(7), Vec::new());
        for seq in 8..=10 {
            position.offer(1, seq, stored(seq), &mut ready);
        }
        position
    }

    fn recall(position: &mut Position, place: ClientPosition) -> Recall {
        position.recall(place, 1000, events::chat_message)
    }

    fn missed(recall: Recall) -> usize {
        match recall {
            Recall::Missed(frames, 10) => frames.len(),
            other => panic!("{other:?}"),
        }
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
    fn what_is_held_has_a_bound_in_number_and_in_bytes_and_the_nearest_stay() {
        let memory = Memory::new(20 * event(0).weight());
        let (mut one, mut other, mut ready) = (start_within(0, &memory), start_within(0, &memory), Vec::new());
        for seq in (11..=40).rev() {
            assert_eq!(one.offer(1, seq, event(seq), &mut ready), Offer::Held);
        }
        assert_eq!(
            one.unsettled.as_ref().unwrap().held.keys().copied().collect::<Vec<_>>(),
            (11..=30).collect::<Vec<_>>()
        );
        assert_eq!(one.offer(1, 31, event(31), &mut ready), Offer::NoRoom);
        assert_eq!(other.offer(1, 5, event(5), &mut ready), Offer::NoRoom, "all streams share it");
        assert_eq!(other.offer(2, 5, event(5), &mut ready), Offer::OtherEpoch);
        assert!(
            other.has_hole()
                && other.check_head(&Head { epoch: 2, last_seq: 7, last_id: None }, &asked(0), false, &mut ready)
        );
        assert_eq!((other.seq(), ready.len()), (7, 0), "an event that was not kept is the database's");
        one.skip_to(11, &mut ready);
        assert_eq!((seqs(&ready), memory.used()), ((11..=30).collect(), 0));

        let mut many = start_within(0, &Memory::new(1 << 30));
        let held = (2..).take_while(|seq| many.offer(1, *seq, event(*seq), &mut ready) == Offer::Held).count();
        assert_eq!(held, MAX_HELD);
    }

    #[test]
    fn what_was_imported_is_passed_over_and_what_is_live_behind_it_goes_on() {
        let (mut position, mut ready) = (start(10), Vec::new());
        for seq in [500, 1002, 1003] {
            assert_eq!(position.offer(1, seq, event(seq), &mut ready), Offer::Held);
        }
        let id = Uuid::now_v7();
        position.pass_to(&Head { epoch: 1, last_seq: 1001, last_id: Some(id) });
        assert_eq!((position.seq(), position.id()), (1001, Some(id)));
        position.deliver_held(&mut ready);
        assert_eq!((seqs(&ready), position.seq(), position.has_hole()), (vec![1002, 1003], 1003, false));
        // A head that was read before.
        position.pass_to(&Head { epoch: 1, last_seq: 1001, last_id: Some(id) });
        assert_eq!(position.seq(), 1003);
    }

    #[test]
    fn another_epoch_moves_nothing_before_the_database_says_so() {
        let (mut position, mut ready) = (start(4), Vec::new());
        assert_eq!(position.offer(2, 1, event(1), &mut ready), Offer::OtherEpoch);
        assert_eq!((position.seq(), ready.len()), (4, 0));
        assert!(!position.check_head(&Head { epoch: 1, last_seq: 4, last_id: None }, &asked(4), false, &mut ready));
        assert!(!position.has_hole());
        assert_eq!(position.offer(2, 1, event(1), &mut ready), Offer::Old, "asked once for each");
        // One that has come since the question is not answered by it.
        let before = position.question();
        assert_eq!(position.offer(3, 1, event(1), &mut ready), Offer::OtherEpoch);
        assert!(!position.check_head(&Head { epoch: 1, last_seq: 4, last_id: None }, &before, false, &mut ready));
        assert!(position.has_hole());
        let head = Head { epoch: 3, last_seq: 1, last_id: None };
        assert!(position.check_head(&head, &position.question(), false, &mut ready));
        assert_eq!((position.epoch(), position.seq(), seqs(&ready)), (3, 1, vec![1]));
        // What was refused may become the stream's, when a backup is restored.
        let head = Head { epoch: 2, last_seq: 7, last_id: None };
        assert!(position.check_head(&head, &position.question(), false, &mut ready));
        assert_eq!(position.offer(2, 8, event(8), &mut ready), Offer::Ready);
    }

    #[test]
    fn a_restored_backup_starts_afresh_and_made_up_events_are_dropped() {
        let (mut position, mut ready) = (start(9), Vec::new());
        assert!(position.check_head(&Head { epoch: 1, last_seq: 5, last_id: None }, &asked(9), false, &mut ready));
        assert_eq!(position.seq(), 5);
        position.offer(1, 1_000_000, event(1_000_000), &mut ready);
        (0..3).for_each(|_| position.give_up_after_a_while());
        assert!(!position.has_hole() && ready.is_empty());
    }

    #[test]
    fn what_was_missed_comes_from_memory_where_the_place_is_known() {
        let mut position = at_ten();
        assert_eq!(missed(recall(&mut position, place(8))), 2);
        assert_eq!(missed(recall(&mut position, place(10))), 0);
        assert_eq!(missed(recall(&mut position, ClientPosition { seq: 7, id: None })), 3);
        // The row of the place itself is not there, nor what is before it.
        let before = Recall::Before { epoch: 1, to: 7, generation: 0 };
        assert_eq!(recall(&mut position, place(7)), before);
        assert_eq!(recall(&mut position, ClientPosition { seq: 0, id: None }), before);
        for other in
            [ClientPosition { seq: 9, id: Some(id(1)) }, ClientPosition { seq: 10, id: Some(id(1)) }, place(11)]
        {
            assert_eq!(recall(&mut position, other), Recall::Unknown, "{other:?}");
        }
        assert_eq!(position.recall(place(8), 1, events::chat_message), Recall::Unknown, "more than may be sent");
    }

    #[test]
    fn rows_read_before_something_was_redacted_are_not_remembered() {
        let mut position = at_ten();
        position.forget_recent();
        let Recall::Before { epoch, to, generation } = recall(&mut position, place(9)) else { panic!() };
        position.forget_recent();
        assert!(!position.remember((epoch, to, generation), vec![row(9), row(10)], false));
        assert!(position.remember((epoch, to, generation + 1), vec![row(9), row(10)], false));
    }

    #[test]
    fn rows_are_remembered_only_where_they_fit() {
        let mut position = at_ten();
        assert!(!position.remember((2, 7, 0), vec![row(6), row(7)], false), "another epoch");
        assert!(!position.remember((1, 6, 0), vec![row(5), row(6)], false), "not right before");
        assert!(!position.remember((1, 7, 0), vec![row(5), row(7)], false), "a hole");
        assert_eq!(recall(&mut position, place(7)), Recall::Before { epoch: 1, to: 7, generation: 0 });
        assert!(position.remember((1, 7, 0), vec![row(6), row(7)], false));
        assert_eq!(missed(recall(&mut position, place(6))), 4);
        assert_eq!(recall(&mut position, place(5)), Recall::Before { epoch: 1, to: 5, generation: 0 });
        assert!(position.remember((1, 5, 0), Vec::new(), true));
        assert_eq!(recall(&mut position, place(5)), Recall::Unknown, "the database has nothing older");
    }

    #[test]
    fn in_doubt_nothing_is_remembered() {
        let mut ready = Vec::new();
        let doubts: [&dyn Fn(&mut Position); 5] = [
            &|position| position.skip_to(20, &mut Vec::new()),
            &|position| position.doubt(),
            // An event without an id.
            &|position| assert_eq!(position.offer(1, 11, event(11), &mut Vec::new()), Offer::Ready),
            &|position| {
                assert!(position.check_head(
                    &Head { epoch: 2, last_seq: 10, last_id: None },
                    &asked(10),
                    false,
                    &mut Vec::new()
                ));
            },
            // The same place, but another message there.
            &|position| {
                let head = Head { epoch: 1, last_seq: 10, last_id: Some(id(77)) };
                assert!(position.check_head(&head, &asked(10), false, &mut Vec::new()));
                assert_eq!(position.id(), Some(id(77)));
            },
        ];
        for (number, doubt) in doubts.iter().enumerate() {
            let mut position = at_ten();
            doubt(&mut position);
            assert!(!matches!(recall(&mut position, place(9)), Recall::Missed(..)), "{number}");
        }
        let mut position = at_ten();
        position.doubt();
        assert_eq!(recall(&mut position, place(10)), Recall::Unknown);
        assert_eq!(position.offer(1, 11, stored(11), &mut ready), Offer::Ready);
        assert!(matches!(recall(&mut position, place(11)), Recall::Missed(..)), "it has shown itself");
        let mut position = at_ten();
        assert!(!position.check_head(
            &Head { epoch: 1, last_seq: 10, last_id: Some(id(10)) },
            &asked(10),
            false,
            &mut ready
        ));
        assert_eq!(missed(recall(&mut position, place(9))), 1);
    }

    /// A message at `seq` that is not the one that was delivered there.
    fn other(seq: u64) -> Arc<Event> {
        Arc::new(Event::clone(&stored(seq)).with("id", id(seq + 100).to_string()))
    }

    #[test]
    fn what_contradicts_a_delivered_message_is_the_databases_to_settle() {
        let head = |seq| Head { epoch: 1, last_seq: seq, last_id: None };
        let rows = |seqs: std::ops::RangeInclusive<u64>, event: fn(u64) -> Arc<Event>| {
            seqs.map(|seq| (1, seq, event(seq))).collect::<Vec<_>>()
        };
        for disputed in [10, 8] {
            let (mut position, mut ready) = (at_ten(), Vec::new());
            assert_eq!(position.offer(1, disputed, stored(disputed), &mut ready), Offer::Old);
            let before = position.question();
            assert_eq!(position.offer(1, disputed, other(disputed), &mut ready), Offer::Disputed);
            assert!(position.has_hole());
            assert_eq!(recall(&mut position, place(10)), Recall::Unknown);
            // What comes after it may be of either history.
            assert_eq!(position.offer(1, 11, stored(11), &mut ready), Offer::Held);
            assert_eq!(position.question(), Question { at: 10, after: disputed - 1, epoch: None });
            // An answer to what was asked before says nothing about it.
            assert!(!position.settle(&before, &[]) && position.has_hole());

            let question = position.question();
            assert!(!position.settle(&question, &rows(disputed..=11, stored)));
            assert!(!position.check_head(&head(11), &asked(10), false, &mut ready));
            position.deliver_held(&mut ready);
            assert_eq!((seqs(&ready), position.has_hole()), (vec![11], false), "the database has what was delivered");

            let (mut position, mut ready) = (at_ten(), Vec::new());
            position.offer(1, disputed, other(disputed), &mut ready);
            position.offer(1, 11, other(11), &mut ready);
            assert!(position.settle(&question, &rows(disputed..=11, other)), "the database has the other one");
            assert!(position.check_head(&head(11), &asked(10), true, &mut ready));
            assert_eq!((position.seq(), ready.len(), position.has_hole()), (11, 0, false));
            // Neither: deleted since.
            let mut position = at_ten();
            position.offer(1, disputed, other(disputed), &mut ready);
            assert!(position.settle(&question, &rows(11..=11, stored)));
        }
        // Older than what is known.
        assert_eq!(at_ten().offer(1, 7, other(7), &mut Vec::new()), Offer::Old);
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
