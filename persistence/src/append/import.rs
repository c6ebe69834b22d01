//! Messages of another system, with the dates that they have there.
//!
//! The steps are those of a batch, but the keys are looked for before they are claimed: they name their stream, whose
//! head is locked. Nothing is brought to anybody: the rows say that they were imported, and whoever follows a stream
//! passes over them ([`Store::after`]).

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, sea_query::Query};
use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use super::{check, plan::Heads, write};
use crate::{
    AppendError, Import, Imported, Store, StoreError, Stream,
    db::{Transaction, rows},
    error::Fault,
    heads::{HeadRow, select_heads},
    kind::Kind,
    receipts::{self, Claim, Hash, Identity},
    row,
    values::{MAX_BINDS, MAX_INSERT_BYTES, MAX_LIST, builder, distinct, micros, signed, unsigned},
};

/// A message that is new, with the row of its stream.
struct New<'a> {
    import: &'a Import,
    head: &'a HeadRow,
    id: Uuid,
    seq: u64,
}

impl Store {
    /// Stores a batch in one transaction and answers for each item, in the order asked, in which those of a stream are
    /// numbered too. What has a key that was used in its stream before is left as it is, however long ago that was,
    /// unless the stream was made again since. An item that is refused costs its neighbours nothing.
    pub async fn import(&self, batch: &[Import]) -> Result<Vec<Result<Imported, AppendError>>, StoreError> {
        let checked: Vec<_> = batch
            .iter()
            .map(|import| {
                check(&import.append)?;
                Identity::of(&import.append).ok_or(AppendError::Invalid("key"))
            })
            .collect();
        // A name that cannot be is refused above; it must not become a room.
        let good = || batch.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let names = |kind: Kind| {
            let of_kind = good().map(|(import, _)| &import.append.stream).filter(|stream| stream.kind() == kind);
            distinct(of_kind.map(Stream::name))
        };
        let names = Kind::ALL.map(|kind| (kind, names(kind)));
        self.db.run(|| self.try_import(batch, &checked, &names)).await
    }

    async fn try_import(
        &self,
        batch: &[Import],
        checked: &[Result<Identity, AppendError>],
        names: &[(Kind, Vec<&str>)],
    ) -> Result<Vec<Result<Imported, AppendError>>, Fault> {
        for (kind, names) in names {
            self.make_missing(*kind, names).await?;
        }
        let transaction = self.db.begin().await?;
        let mut heads = Heads::default();
        for (kind, names) in names {
            self.lock_these(&transaction, *kind, names, &mut heads).await?;
        }
        let mut known = receipts::known(&transaction, checked.iter().flatten().map(|identity| identity.key)).await?;
        let (mut answers, mut new, mut claims) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        let (mut last, mut outdated) = (HashMap::<&Stream, u64>::new(), Vec::new());
        let mut contents: HashMap<Hash, Hash> = HashMap::new();
        for (import, checked) in batch.iter().zip(checked) {
            let identity = match checked {
                Ok(identity) => identity,
                Err(error) => {
                    answers.push(Err(error.clone()));
                    continue;
                }
            };
            let Some(head) = heads.of(&import.append.stream) else {
                // Deleted since it was made; the next attempt makes it again.
                return Err(StoreError::Unavailable("a room was deleted at the same time".into()).into());
            };
            if let Some(receipt) = known.remove(&identity.key) {
                if receipt.epoch == head.epoch {
                    contents.insert(identity.key, receipt.content());
                } else {
                    outdated.push(identity.key);
                }
            }
            if let Some(content) = contents.get(&identity.key) {
                let same = *content == identity.content;
                answers.push(Ok(if same { Imported::Known } else { Imported::Changed }));
                continue;
            }
            contents.insert(identity.key, identity.content);
            let seq = last.entry(&import.append.stream).or_insert_with(|| unsigned(head.last_seq));
            *seq += 1;
            let (id, date) = (id_of(import.date), micros(import.date));
            claims.push(Claim { identity: *identity, id, seq: *seq, epoch: head.epoch, date });
            new.push(New { import, head, id, seq: *seq });
            answers.push(Ok(Imported::Stored(*seq)));
        }
        if new.is_empty() {
            return Ok(answers);
        }
        receipts::claim_for_ever(&transaction, &mut claims, &mut outdated).await?;
        for kind in Kind::ALL {
            let of_kind: Vec<_> = new.iter().filter(|new| new.import.append.stream.kind() == kind).collect();
            insert(&transaction, kind, &of_kind).await?;
            let ends: HashMap<Uuid, &New<'_>> = of_kind.into_iter().map(|new| (new.head.id, new)).collect();
            let ends = ends.into_values().map(|new| (new.head, signed(new.seq), new.id)).collect();
            write::move_heads(&transaction, kind, ends).await?;
        }
        transaction.commit().await?;
        Ok(answers)
    }

    /// Makes the streams of a kind that are missing; `names` are distinct and sorted.
    async fn make_missing(&self, kind: Kind, names: &[&str]) -> Result<(), Fault> {
        let mut missing = names.to_vec();
        for names in names.chunks(MAX_LIST) {
            let found = rows::<HeadRow>(&self.db.reads(), &select_heads(kind, names)).await?;
            let found: std::collections::HashSet<_> = found.iter().map(|head| &*head.name).collect();
            missing.retain(|name| !found.contains(name));
        }
        if missing.is_empty() { Ok(()) } else { self.insert_heads(&self.db.writes(), kind, &missing).await }
    }
}

/// A new id that says when the message was sent, as those of others do.
fn id_of(date: OffsetDateTime) -> Uuid {
    match u64::try_from(date.unix_timestamp()) {
        Ok(seconds) => Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, date.nanosecond())),
        Err(_) => Uuid::new_v7(Timestamp::from_unix(NoContext, 0, 0)),
    }
}

async fn insert(transaction: &Transaction<'_>, kind: Kind, new: &[&New<'_>]) -> Result<(), Fault> {
    let tables = kind.tables();
    let own = [tables.stream, "seq", "id", "date", "imported"];
    let names: Vec<_> = own
        .into_iter()
        .chain(tables.seen_at)
        .chain(tables.redacted_at)
        .chain(row::COLUMNS.iter().map(|column| column.name))
        .collect();
    let mut rest = new;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest
            .iter()
            .take(MAX_BINDS / names.len())
            .take_while(|new| {
                bytes += row::bytes(&new.import.append);
                bytes <= MAX_INSERT_BYTES
            })
            .count();
        let (slice, left) = rest.split_at(fits.clamp(1, rest.len()));
        rest = left;
        let mut insert = Query::insert();
        insert.into_table(tables.rows).columns(names.iter().copied());
        for New { import, head, id, seq } in slice {
            let date = micros(import.date);
            let own = [head.id.into(), signed(*seq).into(), (*id).into(), date.into(), true.into()];
            let seen_at = tables.seen_at.map(|_| import.seen.then_some(date).into());
            let texts = row::COLUMNS.iter().map(|column| (column.of)(&import.append).into());
            let redacted_at = tables.redacted_at.map(|_| import.redacted.then_some(date).into());
            insert.values(own.into_iter().chain(seen_at).chain(redacted_at).chain(texts)).map_err(builder)?;
        }
        transaction.inner.execute(&insert).await?;
    }
    Ok(())
}
