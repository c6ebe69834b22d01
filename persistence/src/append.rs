//! Storing messages: one transaction for a batch, positions without holes, repeats recognised.
//!
//! In order: lock the heads of all streams of the batch (sorted, rooms before inboxes) and read the clock, claim the
//! keys, number what is left, insert it, write the heads, commit. The head's lock is held to the
//! commit, so in one stream the order of positions is the order of commits, and a transaction that
//! rolls back gives its positions back.

mod import;
mod plan;
mod postgres;
mod sqlite;
mod together;
mod write;

use crate::{
    Append, AppendError, Appended, Backend, Refused, Store, StoreError, Stream,
    append::plan::{Heads, Plan},
    clock,
    db::{Transaction, dated_rows},
    error::Fault,
    heads::{HeadRow, head_lock, select_heads},
    kind::Kind,
    known::Known,
    receipts::{self, Identity},
    types::{MAX_DATA_BYTES, MAX_EVENT_ID_BYTES, MAX_MESSAGE_BYTES, MAX_NAME_CHARS},
    values::{MAX_LIST, distinct, is_valid_name, signed},
};

impl Store {
    /// Stores a batch in one transaction and answers for each item, in the order asked. An item that
    /// is refused costs its neighbours nothing and takes no position. The outer error means that
    /// nothing was stored, or, when the database was lost during the commit, that it is unknown:
    /// then repeat with the same keys.
    ///
    /// Up to 32 messages are one statement on PostgreSQL and SQLite, unless a stream is missing or a key was used
    /// before; on PostgreSQL they must all be for rooms, or all for inboxes; on SQLite one more is asked after somebody
    /// else has written to one of the streams. A lone one is five statements on
    /// MySQL, BEGIN and COMMIT included, and one more with a key. A thousand to any number of streams, with
    /// keys, are nine.
    pub async fn append(&self, batch: &[Append]) -> Result<Vec<Result<Appended, AppendError>>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let checked = checked(batch);
        self.db.run(|| self.try_append(batch, &checked, false)).await
    }

    /// As [`append`](Self::append), but all or nothing: when an item is refused, nothing of the batch is
    /// stored, and the answer is the first refusal. A repeat is no refusal.
    pub async fn append_all(&self, batch: &[Append]) -> Result<Result<Vec<Appended>, Refused>, StoreError> {
        if batch.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let checked = checked(batch);
        let answers = self.db.run(|| self.try_append(batch, &checked, true)).await?;
        let numbered = answers.into_iter().enumerate();
        Ok(numbered.map(|(index, answer)| answer.map_err(|error| Refused { index, error })).collect())
    }

    async fn try_append(
        &self,
        batch: &[Append],
        checked: &[Result<Option<Identity>, AppendError>],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Appended, AppendError>>, Fault> {
        if let Some(answers) = self.append_together(batch, checked, all_or_nothing).await? {
            return Ok(answers);
        }
        // Boxed, as it is rare and many times the size of the rest, which is moved for every message.
        Box::pin(self.append_in_steps(batch, checked, all_or_nothing)).await
    }

    async fn append_in_steps(
        &self,
        batch: &[Append],
        checked: &[Result<Option<Identity>, AppendError>],
        all_or_nothing: bool,
    ) -> Result<Vec<Result<Appended, AppendError>>, Fault> {
        let transaction = self.db.begin().await?;
        let mut heads = Heads::default();
        for kind in Kind::ALL {
            self.lock_heads(&transaction, kind, batch, &mut heads).await?;
        }
        let mut plan = Plan::new(batch, checked, heads);
        if all_or_nothing && plan.refuses_any() {
            return Ok(plan.answers());
        }
        let mut claims = plan.claims();
        if !claims.is_empty() {
            let earlier = receipts::claim(&transaction, &mut claims).await?;
            if !earlier.is_empty() {
                plan.settle_repeats(&earlier);
                if all_or_nothing && plan.refuses_any() {
                    // The dropped transaction gives back what was claimed.
                    return Ok(plan.answers());
                }
                receipts::amend(&transaction, &mut plan.claims()).await?;
            }
        }
        for kind in Kind::ALL {
            write::messages(&transaction, kind, &plan).await?;
        }
        for kind in Kind::ALL {
            write::heads(&transaction, kind, &plan).await?;
        }
        transaction.commit().await?;
        if self.backend() == Backend::Sqlite {
            for (stream, (seq, _)) in plan.new_heads() {
                if let Some(HeadRow { epoch, display_name, .. }) = plan.heads.of(stream) {
                    let known = Known { last_seq: signed(seq), epoch: *epoch, display_name: display_name.clone() };
                    self.db.known.note(stream, known);
                }
            }
        }
        Ok(plan.answers())
    }

    /// Locks the heads of a kind. A user who is to be known is made known.
    async fn lock_heads(
        &self,
        transaction: &Transaction<'_>,
        kind: Kind,
        batch: &[Append],
        heads: &mut Heads,
    ) -> Result<(), Fault> {
        let streams = || batch.iter().filter(|append| append.stream.kind() == kind);
        self.lock_these(transaction, kind, &distinct(streams().map(|append| append.stream.name())), heads).await?;
        let is_missing = |append: &&Append| {
            kind == Kind::Inbox && append.create_inbox && heads.get(kind, append.stream.name()).is_none()
        };
        let missing = distinct(streams().filter(is_missing).map(|append| append.stream.name()));
        if !missing.is_empty() {
            self.insert_heads(&transaction.inner, kind, &missing).await?;
            self.lock_these(transaction, kind, &missing, heads).await?;
        }
        Ok(())
    }

    async fn lock_these(
        &self,
        transaction: &Transaction<'_>,
        kind: Kind,
        names: &[&str],
        heads: &mut Heads,
    ) -> Result<(), Fault> {
        for names in names.chunks(MAX_LIST) {
            let mut select = select_heads(kind, names);
            write::force_index(&mut select, kind.tables().name_index).lock(head_lock(self.backend()));
            select.expr_as(clock::micros(self.backend()), "now");
            for (row, now) in dated_rows::<HeadRow>(&transaction.inner, &select).await? {
                heads.insert(kind, row, now);
            }
        }
        Ok(())
    }
}

fn checked(batch: &[Append]) -> Vec<Result<Option<Identity>, AppendError>> {
    batch.iter().map(|append| check(append).map(|()| Identity::of(append))).collect()
}

/// Refuses what not all databases can store. One bad item must not fail the whole insert.
fn check(append: &Append) -> Result<(), AppendError> {
    // A name that cannot exist is like one that does not; but none is made of it.
    if !is_valid_name(append.stream.name()) {
        return Err(match &append.stream {
            Stream::Room(_) => AppendError::RoomNotFound,
            Stream::Inbox(_) if append.create_inbox => AppendError::Invalid("user name"),
            Stream::Inbox(_) => AppendError::UserNotFound,
        });
    }
    if append.from_user.contains('\0') || append.from_user.chars().count() > MAX_NAME_CHARS {
        return Err(AppendError::Invalid("from_user"));
    }
    if append.message.contains('\0') || append.message.len() > MAX_MESSAGE_BYTES {
        return Err(AppendError::Invalid("message"));
    }
    if append.data.as_ref().is_some_and(|data| data.contains('\0') || data.len() > MAX_DATA_BYTES) {
        return Err(AppendError::Invalid("data"));
    }
    if let Some((source, id)) = &append.origin
        && [source, id].into_iter().any(|text| text.contains('\0') || text.len() > MAX_EVENT_ID_BYTES)
    {
        return Err(AppendError::Invalid("origin"));
    }
    Ok(())
}
