//! What becomes of each item of a batch: pure arithmetic between the statements.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    Append, AppendError, Appended, Stream,
    heads::HeadRow,
    kind::Kind,
    receipts::{Claim, Hash, Identity, Receipt},
    values::{date, unsigned},
};

/// The locked heads of the batch's streams, by name, as they were before the batch.
#[derive(Default)]
pub(super) struct Heads {
    rooms: HashMap<String, HeadRow>,
    inboxes: HashMap<String, HeadRow>,
    /// When the last of them was locked, by the database's clock: the date of what is stored.
    locked_at: i64,
}

impl Heads {
    /// Notes a head that was locked at that moment.
    pub(super) fn insert(&mut self, kind: Kind, row: HeadRow, locked_at: i64) {
        let heads = match kind {
            Kind::Room => &mut self.rooms,
            Kind::Inbox => &mut self.inboxes,
        };
        heads.insert(row.name.clone(), row);
        self.locked_at = self.locked_at.max(locked_at);
    }

    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&HeadRow> {
        match kind {
            Kind::Room => self.rooms.get(name),
            Kind::Inbox => self.inboxes.get(name),
        }
    }

    pub(super) fn of(&self, stream: &Stream) -> Option<&HeadRow> {
        self.get(stream.kind(), stream.name())
    }

    /// Epoch of a stream, if it is there.
    fn epoch(&self, stream: &Stream) -> Result<i64, AppendError> {
        self.of(stream).map(|head| head.epoch).ok_or(match stream {
            Stream::Room(_) => AppendError::RoomNotFound,
            Stream::Inbox(_) => AppendError::UserNotFound,
        })
    }
}

/// The fate of one item.
#[derive(Debug)]
enum Fate {
    Refused(AppendError),
    /// Stored by this batch.
    New {
        id: Uuid,
        seq: u64,
        epoch: i64,
    },
    /// Stored by an earlier batch.
    Earlier {
        id: Uuid,
        seq: u64,
        epoch: i64,
        date: i64,
    },
    /// The same key as that item of this batch.
    Repeats(usize),
}

/// One message to insert.
pub(super) struct NewMessage<'a> {
    pub(super) append: &'a Append,
    pub(super) id: Uuid,
    pub(super) seq: u64,
}

/// A batch between its statements.
pub(super) struct Plan<'a> {
    batch: &'a [Append],
    identities: Vec<Option<Identity>>,
    pub(super) heads: Heads,
    pub(super) date: i64,
    fates: Vec<Fate>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(batch: &'a [Append], checked: &[Result<Option<Identity>, AppendError>], heads: Heads) -> Self {
        let mut first: HashMap<Hash, (usize, Hash)> = HashMap::new();
        let mut fates = Vec::with_capacity(batch.len());
        for (index, (append, checked)) in batch.iter().zip(checked).enumerate() {
            fates.push(match (checked, heads.epoch(&append.stream)) {
                (Err(error), _) => Fate::Refused(error.clone()),
                (_, Err(error)) => Fate::Refused(error),
                (Ok(identity), Ok(epoch)) => {
                    let new = Fate::New { id: Uuid::now_v7(), seq: 0, epoch };
                    match identity {
                        None => new,
                        Some(identity) => match first.get(&identity.key) {
                            None => {
                                first.insert(identity.key, (index, identity.content));
                                new
                            }
                            Some((first, content)) if *content == identity.content => Fate::Repeats(*first),
                            Some(_) => Fate::Refused(AppendError::KeyReused),
                        },
                    }
                }
            });
        }
        let identities = checked.iter().map(|checked| checked.as_ref().ok().copied().flatten()).collect();
        let mut plan = Self { batch, identities, date: heads.locked_at, heads, fates };
        plan.number();
        plan
    }

    /// Gives positions to what is new, in the order of the batch.
    fn number(&mut self) {
        let mut last: HashMap<&Stream, u64> = HashMap::new();
        for (append, fate) in self.batch.iter().zip(&mut self.fates) {
            if let Fate::New { seq, .. } = fate {
                let before = self.heads.of(&append.stream).map_or(0, |head| unsigned(head.last_seq));
                let last = last.entry(&append.stream).or_insert(before);
                *last += 1;
                *seq = *last;
            }
        }
    }

    /// The keys of what is new.
    pub(super) fn claims(&self) -> Vec<Claim> {
        self.identities
            .iter()
            .zip(&self.fates)
            .filter_map(|(identity, fate)| match (identity, fate) {
                (Some(identity), Fate::New { id, seq, epoch }) => {
                    Some(Claim { identity: *identity, id: *id, seq: *seq, epoch: *epoch, date: self.date })
                }
                _ => None,
            })
            .collect()
    }

    /// Takes out what was stored before, and numbers the rest again.
    pub(super) fn settle_repeats(&mut self, earlier: &HashMap<Hash, Receipt>) {
        for (identity, fate) in self.identities.iter().zip(&mut self.fates) {
            if let (Some(identity), Fate::New { .. }) = (identity, &fate)
                && let Some(receipt) = earlier.get(&identity.key)
            {
                *fate = if receipt.content_hash == identity.content {
                    Fate::Earlier {
                        id: receipt.id,
                        seq: unsigned(receipt.seq),
                        epoch: receipt.epoch,
                        date: receipt.date,
                    }
                } else {
                    Fate::Refused(AppendError::KeyReused)
                };
            }
        }
        self.number();
    }

    /// What is to be inserted, in the order of the batch.
    pub(super) fn new_messages(&self) -> impl Iterator<Item = NewMessage<'a>> {
        self.batch.iter().zip(&self.fates).filter_map(|(append, fate)| match fate {
            Fate::New { id, seq, .. } => Some(NewMessage { append, id: *id, seq: *seq }),
            _ => None,
        })
    }

    /// The new last position and id of each stream that has got something.
    pub(super) fn new_heads(&self) -> HashMap<&'a Stream, (u64, Uuid)> {
        self.new_messages().map(|new| (&new.append.stream, (new.seq, new.id))).collect()
    }

    pub(super) fn refuses_any(&self) -> bool {
        self.fates.iter().any(|fate| matches!(fate, Fate::Refused(_)))
    }

    pub(super) fn answers(&self) -> Vec<Result<Appended, AppendError>> {
        (0..self.fates.len()).map(|index| self.answer(index)).collect()
    }

    fn answer(&self, index: usize) -> Result<Appended, AppendError> {
        let display_name = || self.heads.of(&self.batch[index].stream)?.display_name.clone();
        let answer = |id: Uuid, seq, epoch, micros, repeated| {
            Ok(Appended { id, seq, epoch, date: date(micros), display_name: display_name(), repeated })
        };
        match &self.fates[index] {
            Fate::Refused(error) => Err(error.clone()),
            Fate::New { id, seq, epoch } => answer(*id, *seq, *epoch, self.date, false),
            Fate::Earlier { id, seq, epoch, date } => answer(*id, *seq, *epoch, *date, true),
            // One step only: the item repeated is the first with its key.
            Fate::Repeats(first) => self.answer(*first).map(|first| Appended { repeated: true, ..first }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::Key;

    fn heads(rooms: &[(&str, i64)]) -> Heads {
        let rooms = rooms.iter().map(|(name, last_seq)| {
            let room = HeadRow {
                id: Uuid::now_v7(),
                name: (*name).to_owned(),
                display_name: Some((*name).to_owned()),
                epoch: 7,
                last_seq: *last_seq,
                last_id: None,
                created_at: 0,
            };
            (room.name.clone(), room)
        });
        Heads { rooms: rooms.collect(), ..Heads::default() }
    }

    fn append((room, key, text): (usize, Option<u8>, u8)) -> Append {
        Append {
            stream: Stream::Room(["a", "b", "missing"][room].to_owned()),
            from_user: "alice".into(),
            message: text.to_string().into(),
            data: None,
            key: key.map(|key| Key::Client { user: "alice".into(), client_id: key.to_string() }),
            create_inbox: false,
            origin: None,
        }
    }

    proptest! {
        /// Whatever the batch, and whichever of its keys were used before: no hole, and one row a key.
        #[test]
        fn positions_have_no_holes(
            items in prop::collection::vec((0..3_usize, prop::option::of(0..6_u8), 0..2_u8), 0..40),
            used in prop::collection::hash_set(0..6_u8, 0..4),
        ) {
            let batch: Vec<_> = items.iter().copied().map(append).collect();
            let checked: Vec<_> = batch.iter().map(|append| Ok(Identity::of(append))).collect();
            let mut plan = Plan::new(&batch, &checked, heads(&[("a", 10), ("b", 0)]));
            let earlier = used.iter().filter_map(|key| {
                let identity = Identity::of(&append((0, Some(*key), 0)))?;
                Some((identity.key, Receipt::sample(identity)))
            });
            plan.settle_repeats(&earlier.collect());
            let mut last = HashMap::from([("a", 10), ("b", 0)]);
            for new in plan.new_messages() {
                let last = last.get_mut(new.append.stream.name()).expect("a room that exists");
                *last += 1;
                prop_assert_eq!(new.seq, *last);
            }
            let claims = plan.claims();
            let keys: HashSet<_> = claims.iter().map(|claim| claim.identity.key).collect();
            prop_assert_eq!(keys.len(), claims.len());
            for (item, answer) in items.iter().zip(plan.answers()) {
                match answer {
                    Err(error) => prop_assert_eq!(error == AppendError::RoomNotFound, item.0 == 2),
                    Ok(answer) => prop_assert!(!answer.repeated || item.1.is_some()),
                }
            }
        }
    }
}
