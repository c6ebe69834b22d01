//! Changes of a room's members and of its name. Each is made once, and the later one counts, whichever is stored first.
//!
//! A change is kept as a word on each member that it names; the words on the room's own name are on nobody. A word has a
//! place: the id of its entry in the stream of events. A change that comes directly has the time by the same clock, and is
//! later than all known words. Words are kept as long as receipts. The word with the last place counts. An entry that comes
//! late, because a dead node had taken it, therefore changes nothing that was changed after it.
//!
//! An identity that comes again is the same word, at the first of its places. It may be met there last. Then the words
//! between the two places count after all, which is why the words before the last are kept too.
//!
//! All of this happens under the lock of the room's head.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult,
    sea_query::{Expr, OnConflict, Query},
};
use uuid::Uuid;

use crate::{
    AppendError, Change, ChangeKind, ChangeTime, Changed, Key, Room, Store, StoreError, clock,
    db::{Transaction, dated_rows, rows},
    entity::{memberships, room_words, rooms},
    error::Fault,
    heads::{HeadRow, head_lock, select_heads},
    kind::Kind,
    receipts::{self, Claim, Hash, Identity},
    types::{MAX_DISPLAY_NAME_CHARS, MAX_EVENT_ID_BYTES},
    values::{MAX_LIST, builder, check_name, date, distinct, padded, signed},
};

/// The member of the words on a room's own name: nobody has this name.
const NAME: &str = "";

/// A place among words.
type Place = (i64, i64);

/// A word on one member.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
struct Word {
    user_name: String,
    key_hash: Vec<u8>,
    said_ms: i64,
    said_seq: i64,
    joins: bool,
    display_name: Option<String>,
}

impl Word {
    fn place(&self) -> Place {
        (self.said_ms, self.said_seq)
    }

    /// How it stands to others; no two are equal.
    fn order(&self) -> (Place, &[u8]) {
        (self.place(), &self.key_hash)
    }
}

/// What becomes of the words on one member.
#[derive(Debug, PartialEq, Eq)]
struct Settled {
    /// The word to be written, which is new or has another place.
    write: Option<Word>,
    /// The word that counts now, if that is another one than before.
    turn: Option<Word>,
    /// What counts is this word.
    counts: bool,
}

/// Adds a word to those that are known on a member.
fn settle(known: &[&Word], mut word: Word, time: ChangeTime, repeated: bool) -> Settled {
    let last = |words: &mut dyn Iterator<Item = &Word>| words.max_by(|a, b| a.order().cmp(&b.order())).cloned();
    let before = last(&mut known.iter().copied());
    let earlier = known.iter().find(|known| known.key_hash == word.key_hash);
    let nothing = |counts| Settled { write: None, turn: None, counts };
    let is_ours = |last: &Option<Word>| last.as_ref().is_some_and(|last| last.key_hash == word.key_hash);
    (word.said_ms, word.said_seq) = match time {
        ChangeTime::At(ms, seq) => (signed(ms), signed(seq)),
        // What came within the same millisecond came before it.
        ChangeTime::Now(ms) => (signed(ms), i64::MAX).max(before.as_ref().map_or((0, 0), |last| next(last.place()))),
    };
    match earlier {
        // Something later has made it forgotten, or it is no word of that kind.
        None if repeated => return nothing(false),
        Some(earlier) if matches!(time, ChangeTime::Now(_)) || earlier.place() <= word.place() => {
            return nothing(is_ours(&before));
        }
        _ => {}
    }
    let others = known.iter().copied().filter(|known| known.key_hash != word.key_hash);
    let after = last(&mut others.chain(std::iter::once(&word)));
    let counts = is_ours(&after);
    let turn = after.filter(|after| before.as_ref().is_none_or(|before| before.key_hash != after.key_hash));
    Settled { write: Some(word), turn, counts }
}

/// The first place behind this one.
fn next((ms, seq): Place) -> Place {
    match seq.checked_add(1) {
        Some(seq) => (ms, seq),
        None => (ms.saturating_add(1), 0),
    }
}

impl Store {
    /// Makes a change, once by its key, unless a later one is known already. The room of a change of
    /// members must be there; a change that says that there is a room makes it.
    ///
    /// It is a transaction of some eight statements, whatever the number of members up to 1,000, and locks the room as
    /// storing a message does.
    pub async fn change(&self, change: &Change) -> Result<Result<Changed, AppendError>, StoreError> {
        check_name("room name", &change.room)?;
        if let Err(invalid) = check(change) {
            return Ok(Err(invalid));
        }
        if let ChangeKind::Joins(users) | ChangeKind::Leaves(users) = &change.kind {
            for user in users {
                check_name("user name", user)?;
            }
            if self.room(&change.room).await?.is_none() {
                return Ok(Err(AppendError::RoomNotFound));
            }
        }
        if let ChangeKind::Joins(users) = &change.kind {
            for users in users.chunks(MAX_LIST) {
                self.see_users(users).await?;
            }
        }
        self.db.run(|| self.try_change(change)).await
    }

    async fn try_change(&self, change: &Change) -> Result<Result<Changed, AppendError>, Fault> {
        let transaction = self.db.begin().await?;
        let mut found = self.lock_room(&transaction, &change.room).await?;
        let is_new = found.is_none();
        if is_new && matches!(change.kind, ChangeKind::Is(_)) {
            self.insert_heads(&transaction.inner, Kind::Room, &[&change.room]).await?;
            found = self.lock_room(&transaction, &change.room).await?;
        }
        let Some((mut room, now)) = found else { return Ok(Err(AppendError::RoomNotFound)) };
        let (mut key, mut repeated) = (random_key(), false);
        if let Some(identity) = identity(change) {
            let claim = Claim { identity, id: Uuid::now_v7(), seq: 0, epoch: room.epoch, date: now };
            let earlier = receipts::claim(&transaction, &mut [claim]).await?;
            if let Some(receipt) = earlier.get(&identity.key) {
                if receipt.content_hash != identity.content {
                    return Ok(Err(AppendError::KeyReused));
                }
                repeated = true;
            }
            key = identity.key;
        }
        if repeated && is_new {
            // It was made before, and deleted since: the dropped transaction undoes it.
            let (room, date) = (Room::from(room), date(now));
            return Ok(Ok(Changed { room, repeated, counts: Vec::new(), moved: 0, date }));
        }
        let outcome = self.apply(&transaction, &room, change, key, repeated, now).await?;
        if let Some(name) = outcome.name {
            room.display_name = Some(name);
        }
        transaction.commit().await?;
        let (room, date) = (Room::from(room), date(now));
        Ok(Ok(Changed { room, repeated, counts: outcome.counts, moved: outcome.moved, date }))
    }

    async fn lock_room(&self, transaction: &Transaction<'_>, room: &str) -> Result<Option<(HeadRow, i64)>, Fault> {
        let mut select = select_heads(Kind::Room, &[room]);
        select.lock(head_lock(self.backend())).expr_as(clock::micros(self.backend()), "now");
        Ok(dated_rows::<HeadRow>(&transaction.inner, &select).await?.pop())
    }

    /// Writes the words of a change, and does what has come to count by them.
    async fn apply(
        &self,
        transaction: &Transaction<'_>,
        room: &HeadRow,
        change: &Change,
        key: Hash,
        repeated: bool,
        now: i64,
    ) -> Result<Outcome, Fault> {
        let (users, display_name) = match &change.kind {
            ChangeKind::Joins(users) | ChangeKind::Leaves(users) => (distinct(users.iter().map(String::as_str)), None),
            ChangeKind::Is(None) => (Vec::new(), None),
            ChangeKind::Is(Some(name)) => (vec![NAME], Some(name.clone())),
        };
        let mut outcome = Outcome::default();
        for users in users.chunks(MAX_LIST) {
            let known = self.words(transaction, room.id, users).await?;
            let mut of: HashMap<&str, Vec<&Word>> = HashMap::new();
            for word in &known {
                of.entry(&word.user_name).or_default().push(word);
            }
            let (mut write, mut joins, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
            for user in users {
                let word = Word {
                    user_name: (*user).to_owned(),
                    key_hash: key.to_vec(),
                    said_ms: 0,
                    said_seq: 0,
                    joins: matches!(change.kind, ChangeKind::Joins(_)),
                    display_name: display_name.clone(),
                };
                let settled = settle(of.get(user).map_or(&[][..], Vec::as_slice), word, change.time, repeated);
                match settled.turn {
                    Some(turn) if *user == NAME => outcome.name = turn.display_name,
                    Some(turn) if turn.joins => joins.push(*user),
                    Some(_) => leaves.push(*user),
                    None => {}
                }
                if settled.counts && *user != NAME {
                    outcome.counts.push((*user).to_owned());
                }
                write.extend(settled.write);
            }
            // A change of now is later than the others, and stays so.
            if matches!(change.time, ChangeTime::Now(_)) && !known.is_empty() && !write.is_empty() {
                forget(transaction, room.id, users).await?;
            }
            write_words(transaction, room.id, &write, now).await?;
            outcome.moved += self.insert_members(transaction, room.id, &joins).await?;
            outcome.moved += delete_members(transaction, room.id, &leaves).await?;
        }
        if let Some(name) = &outcome.name {
            let update = Query::update()
                .table(rooms::Entity)
                .value(rooms::Column::DisplayName, name)
                .and_where(Expr::col(rooms::Column::Id).eq(room.id))
                .to_owned();
            transaction.inner.execute(&update).await?;
        }
        Ok(outcome)
    }

    async fn words(&self, transaction: &Transaction<'_>, room: Uuid, users: &[&str]) -> Result<Vec<Word>, Fault> {
        use room_words::Column::*;
        let select = Query::select()
            .columns([UserName, KeyHash, SaidMs, SaidSeq, Joins, DisplayName])
            .from(room_words::Entity)
            .and_where(Expr::col(RoomId).eq(room))
            .and_where(Expr::col(UserName).is_in(padded(users)))
            .to_owned();
        Ok(rows(&transaction.inner, &select).await?)
    }

    async fn insert_members(&self, transaction: &Transaction<'_>, room: Uuid, users: &[&str]) -> Result<u64, Fault> {
        use memberships::Column::*;
        if users.is_empty() {
            return Ok(0);
        }
        let mut insert = Query::insert();
        insert.into_table(memberships::Entity).columns([RoomId, UserName, CreatedAt]);
        for user in users {
            insert.values([room.into(), (*user).into(), clock::micros(self.backend())]).map_err(builder)?;
        }
        insert.on_conflict(OnConflict::columns([RoomId, UserName]).do_nothing_on([RoomId]).to_owned());
        Ok(transaction.inner.execute(&insert).await?.rows_affected())
    }
}

/// What a change has come to.
#[derive(Default)]
struct Outcome {
    counts: Vec<String>,
    moved: u64,
    name: Option<String>,
}

async fn delete_members(transaction: &Transaction<'_>, room: Uuid, users: &[&str]) -> Result<u64, Fault> {
    if users.is_empty() {
        return Ok(0);
    }
    let delete = Query::delete()
        .from_table(memberships::Entity)
        .and_where(Expr::col(memberships::Column::RoomId).eq(room))
        .and_where(Expr::col(memberships::Column::UserName).is_in(padded(users)))
        .to_owned();
    Ok(transaction.inner.execute(&delete).await?.rows_affected())
}

async fn forget(transaction: &Transaction<'_>, room: Uuid, users: &[&str]) -> Result<(), Fault> {
    let delete = Query::delete()
        .from_table(room_words::Entity)
        .and_where(Expr::col(room_words::Column::RoomId).eq(room))
        .and_where(Expr::col(room_words::Column::UserName).is_in(padded(users)))
        .to_owned();
    transaction.inner.execute(&delete).await?;
    Ok(())
}

async fn write_words(transaction: &Transaction<'_>, room: Uuid, words: &[Word], now: i64) -> Result<(), Fault> {
    use room_words::Column::*;
    if words.is_empty() {
        return Ok(());
    }
    let mut insert = Query::insert();
    insert.into_table(room_words::Entity).columns([
        RoomId,
        UserName,
        KeyHash,
        SaidMs,
        SaidSeq,
        Joins,
        DisplayName,
        CreatedAt,
    ]);
    for word in words {
        insert
            .values([
                room.into(),
                word.user_name.as_str().into(),
                word.key_hash.clone().into(),
                word.said_ms.into(),
                word.said_seq.into(),
                word.joins.into(),
                word.display_name.clone().into(),
                now.into(),
            ])
            .map_err(builder)?;
    }
    let same = OnConflict::columns([RoomId, UserName, KeyHash]).update_columns([SaidMs, SaidSeq]).to_owned();
    transaction.inner.execute(insert.on_conflict(same)).await?;
    Ok(())
}

fn check(change: &Change) -> Result<(), AppendError> {
    if let ChangeKind::Is(Some(name)) = &change.kind
        && (name.contains('\0') || name.is_empty() || name.chars().count() > MAX_DISPLAY_NAME_CHARS)
    {
        return Err(AppendError::Invalid("display name: 1 to 255 characters"));
    }
    if let Some(Key::Event { source, id }) = &change.key
        && [source, id].into_iter().any(|text| text.is_empty() || text.len() > MAX_EVENT_ID_BYTES)
    {
        return Err(AppendError::Invalid("key"));
    }
    Ok(())
}

fn identity(change: &Change) -> Option<Identity> {
    let Key::Event { source, id } = change.key.as_ref()? else { return None };
    let words: Vec<&str> = match &change.kind {
        ChangeKind::Joins(users) => std::iter::once("joins").chain(users.iter().map(String::as_str)).collect(),
        ChangeKind::Leaves(users) => std::iter::once("leaves").chain(users.iter().map(String::as_str)).collect(),
        ChangeKind::Is(name) => std::iter::once("is").chain(name.as_deref()).collect(),
    };
    Some(Identity::of_change(source, id, &change.room, &words))
}

/// For who gives no key: like no other.
fn random_key() -> Hash {
    rand::random()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(key: u8, joins: bool) -> Word {
        let (user_name, key_hash) = ("alice".to_owned(), vec![key]);
        Word { user_name, key_hash, said_ms: 0, said_seq: 0, joins, display_name: None }
    }

    /// The words on a member, as the table has them, and whether she is one.
    #[derive(Default)]
    struct Table {
        words: Vec<Word>,
        claimed: Vec<u8>,
        is_member: bool,
    }

    impl Table {
        fn apply(&mut self, key: u8, joins: bool, time: ChangeTime) -> Settled {
            let repeated = self.claimed.contains(&key);
            self.claimed.push(key);
            let settled = settle(&self.words.iter().collect::<Vec<_>>(), word(key, joins), time, repeated);
            if matches!(time, ChangeTime::Now(_)) && settled.write.is_some() {
                self.words.clear();
            }
            if let Some(write) = settled.write.clone() {
                self.words.retain(|word| word.key_hash != write.key_hash);
                self.words.push(write);
            }
            if let Some(turn) = &settled.turn {
                self.is_member = turn.joins;
            }
            settled
        }
    }

    #[test]
    fn the_later_word_counts_and_a_change_of_now_is_the_last() {
        let mut table = Table::default();
        assert!(table.apply(1, false, ChangeTime::At(20, 0)).counts && !table.is_member);
        assert!(!table.apply(2, true, ChangeTime::At(10, 0)).counts && !table.is_member);
        assert!(table.apply(3, true, ChangeTime::At(20, 1)).counts && table.is_member);
        // By a clock that is behind.
        assert!(table.apply(4, false, ChangeTime::Now(5)).counts && !table.is_member);
        assert_eq!((table.words.len(), table.words[0].place()), (1, (20, 2)));
        assert!(!table.apply(3, true, ChangeTime::At(30, 0)).counts && !table.is_member, "a repeat");
        assert!(table.apply(6, true, ChangeTime::At(40, 0)).counts && table.is_member);
        assert!(table.apply(6, true, ChangeTime::At(40, 0)).counts, "taken up again, it is told again");
    }

    #[test]
    fn a_repeat_that_was_met_first_is_put_in_its_place() {
        let mut table = Table::default();
        // Written: joins, leaves, joins again by the same identity, which changes nothing.
        table.apply(1, true, ChangeTime::At(12, 0));
        assert!(table.is_member);
        assert!(!table.apply(2, false, ChangeTime::At(11, 0)).counts && table.is_member);
        assert!(!table.apply(1, true, ChangeTime::At(10, 0)).counts && !table.is_member);
    }

    proptest! {
        /// Whatever the order in which entries are met, and however often: it ends as if they had come in theirs.
        #[test]
        fn any_order_ends_the_same(
            entries in prop::collection::vec((0..6_u8, any::<bool>()), 1..12),
            met in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            // One identity says one thing.
            let mut says = HashMap::new();
            let entries: Vec<(u8, bool)> = entries.into_iter().map(|(key, joins)| (key, *says.entry(key).or_insert(joins))).collect();
            let mut order: Vec<usize> = (0..entries.len()).collect();
            for (at, other) in met.iter().enumerate() {
                order.swap(at % entries.len(), other.index(entries.len()));
            }
            let mut table = Table::default();
            for at in order.iter().chain(&order) {
                let (key, joins) = entries[*at];
                table.apply(key, joins, ChangeTime::At(7, *at as u64));
            }
            let mut seen = Vec::new();
            let mut expected = false;
            for (key, joins) in &entries {
                if !seen.contains(key) {
                    seen.push(*key);
                    expected = *joins;
                }
            }
            prop_assert_eq!(table.is_member, expected);
        }
    }
}
