//! Keys and receipts: how a repeat is told from a new message.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, DbBackend, ExprTrait, FromQueryResult, Statement,
    sea_query::{Expr, InsertStatement, OnConflict, Query},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Append, Key,
    db::{Transaction, rows},
    entity::receipts,
    error::Fault,
    kind::Kind,
    row,
    values::{MAX_LIST, builder, padded, signed},
};

pub(crate) type Hash = [u8; 32];

/// What an item's key and content come down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) key: Hash,
    pub(crate) content: Hash,
}

impl Identity {
    pub(crate) fn of(append: &Append) -> Option<Self> {
        let (kind, name) = (append.stream.kind().tables().word, append.stream.name());
        let key = match append.key.as_ref()? {
            // Unique per user and kind of frame: the same id for another room is a misuse.
            Key::Client { user, client_id } => digest(["client", user, client_id, kind]),
            // One event may go to many streams; it is known in each.
            Key::Event { source, id } => digest(["event", source, id, kind, name]),
        };
        Some(Self { key, content: digest([kind, name].into_iter().chain(row::content(append))) })
    }
}

impl Identity {
    /// Of an event that says something of a room; known where messages to the room are.
    pub(crate) fn of_change(source: &str, id: &str, room: &str, words: &[&str]) -> Self {
        let content = ["change"].into_iter().chain(words.iter().copied());
        Self { key: digest(["event", source, id, Kind::Room.tables().word, room]), content: digest(content) }
    }
}

/// Each part goes in behind its length, so that no two lists of parts give the same bytes.
fn digest<'p>(parts: impl IntoIterator<Item = &'p str>) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// A key about to be claimed, with the answer that a repeat shall get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) identity: Identity,
    pub(crate) id: Uuid,
    pub(crate) seq: u64,
    pub(crate) epoch: i64,
    pub(crate) date: i64,
}

/// What was answered to a key before.
#[derive(Debug, FromQueryResult)]
pub(crate) struct Receipt {
    key_hash: Vec<u8>,
    pub(crate) content_hash: Vec<u8>,
    pub(crate) id: Uuid,
    pub(crate) seq: i64,
    pub(crate) epoch: i64,
    pub(crate) date: i64,
}

/// When the receipts were made that stay.
const FOR_EVER: i64 = i64::MAX;

const COLUMNS: [receipts::Column; 7] = [
    receipts::Column::KeyHash,
    receipts::Column::ContentHash,
    receipts::Column::Id,
    receipts::Column::Seq,
    receipts::Column::Epoch,
    receipts::Column::Date,
    receipts::Column::CreatedAt,
];

/// Claims these keys. The answer holds the receipts of those that were claimed before; it is empty,
/// at the price of one statement, when all are new.
pub(crate) async fn claim(
    transaction: &Transaction<'_>,
    claims: &mut [Claim],
) -> Result<HashMap<Hash, Receipt>, Fault> {
    // In one order for everybody: two writers cannot wait for each other.
    claims.sort_unstable_by_key(|claim| claim.identity.key);
    let mut inserted = 0;
    for claims in claims.chunks(MAX_LIST) {
        let inserted_now =
            transaction.inner.execute_raw(ignoring(transaction, insert(claims, |claim| claim.date)?)).await?;
        inserted += inserted_now.rows_affected();
    }
    if inserted == claims.len() as u64 {
        return Ok(HashMap::new());
    }
    let mut earlier = known(transaction, claims.iter().map(|claim| claim.identity.key)).await?;
    // What was found under its own id has just been inserted.
    for claim in claims {
        if earlier.get(&claim.identity.key).is_some_and(|receipt| receipt.id == claim.id) {
            earlier.remove(&claim.identity.key);
        }
    }
    Ok(earlier)
}

/// The receipts of those of these keys that were claimed before.
pub(crate) async fn known(
    transaction: &Transaction<'_>,
    keys: impl Iterator<Item = Hash>,
) -> Result<HashMap<Hash, Receipt>, Fault> {
    let keys: Vec<_> = keys.map(|key| key.to_vec()).collect();
    let mut known = HashMap::new();
    for keys in keys.chunks(MAX_LIST) {
        let select = Query::select()
            .columns(COLUMNS)
            .from(receipts::Entity)
            .and_where(Expr::col(receipts::Column::KeyHash).is_in(padded(keys)))
            .to_owned();
        for receipt in rows::<Receipt>(&transaction.inner, &select).await? {
            if let Ok(key) = Hash::try_from(receipt.key_hash.as_slice()) {
                known.insert(key, receipt);
            }
        }
    }
    Ok(known)
}

/// Claims keys that nobody has or can claim meanwhile, for ever: retention finds their receipts made in a time that
/// does not come. `outdated` are those among them of which there are receipts that count no more.
pub(crate) async fn claim_for_ever(
    transaction: &Transaction<'_>,
    claims: &mut [Claim],
    outdated: &mut [Hash],
) -> Result<(), Fault> {
    outdated.sort_unstable();
    for keys in outdated.chunks(MAX_LIST) {
        let keys: Vec<_> = keys.iter().map(|key| key.to_vec()).collect();
        let delete = Query::delete()
            .from_table(receipts::Entity)
            .and_where(Expr::col(receipts::Column::KeyHash).is_in(padded(&keys)))
            .to_owned();
        transaction.inner.execute(&delete).await?;
    }
    claims.sort_unstable_by_key(|claim| claim.identity.key);
    for claims in claims.chunks(MAX_LIST) {
        transaction.inner.execute(&insert(claims, |_| FOR_EVER)?).await?;
    }
    Ok(())
}

/// Makes an insert pass over the keys that are there already, and count only the new ones.
fn ignoring(transaction: &Transaction<'_>, mut insert: InsertStatement) -> Statement {
    let backend = transaction.inner.get_database_backend();
    if backend == DbBackend::MySql {
        // The builder has only ON DUPLICATE KEY UPDATE, which counts the old ones too.
        let mut statement = backend.build(&insert);
        statement.sql = statement.sql.replacen("INSERT INTO", "INSERT IGNORE INTO", 1);
        return statement;
    }
    insert.on_conflict(OnConflict::column(receipts::Column::KeyHash).do_nothing().to_owned());
    backend.build(&insert)
}

/// Writes the positions of claims again, for when some of the batch turned out to be repeats and the
/// positions behind them moved.
pub(crate) async fn amend(transaction: &Transaction<'_>, claims: &mut [Claim]) -> Result<(), Fault> {
    claims.sort_unstable_by_key(|claim| claim.identity.key);
    for claims in claims.chunks(MAX_LIST) {
        let mut insert = insert(claims, |claim| claim.date)?;
        insert
            .on_conflict(OnConflict::column(receipts::Column::KeyHash).update_column(receipts::Column::Seq).to_owned());
        transaction.inner.execute(&insert).await?;
    }
    Ok(())
}

fn insert(claims: &[Claim], created_at: fn(&Claim) -> i64) -> Result<InsertStatement, Fault> {
    let mut insert = Query::insert();
    insert.into_table(receipts::Entity).columns(COLUMNS);
    for claim in claims {
        insert
            .values([
                claim.identity.key.to_vec().into(),
                claim.identity.content.to_vec().into(),
                claim.id.into(),
                signed(claim.seq).into(),
                claim.epoch.into(),
                claim.date.into(),
                created_at(claim).into(),
            ])
            .map_err(builder)?;
    }
    Ok(insert)
}

impl Receipt {
    /// The hash of what was stored.
    pub(crate) fn content(&self) -> Hash {
        Hash::try_from(self.content_hash.as_slice()).unwrap_or_default()
    }
}

#[cfg(test)]
impl Receipt {
    /// A receipt as an earlier batch would have left it.
    pub(crate) fn sample(identity: Identity) -> Self {
        let (key_hash, content_hash) = (identity.key.to_vec(), identity.content.to_vec());
        Self { key_hash, content_hash, id: Uuid::now_v7(), seq: 1, epoch: 7, date: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
        assert_ne!(digest(["a", ""]), digest(["a"]));
    }
}
