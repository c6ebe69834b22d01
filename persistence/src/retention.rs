//! Deleting what is older than it shall become. Always from the old end, so that streams stay whole,
//! in small statements with pauses between them, so that writers get their turn.

use std::time::{Duration, Instant};

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{DeleteStatement, Expr, Query, SelectStatement, SimpleExpr},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Deleted, Retention, Store, StoreError, clock,
    entity::{receipts, room_words},
    kind::Kind,
    values::{micros, padded, signed},
};

/// Streams looked at by one query.
const PAGE: u64 = 500;

/// Rows deleted by one statement: as many as the database deletes within [`SLICE_TIME`], in these bounds.
const MIN_SLICE: u64 = 32;
const MAX_SLICE: u64 = 512;

/// What one statement should take: a writer behind it waits no longer than that.
const SLICE_TIME: Duration = Duration::from_millis(100);

/// The longest pause between two statements.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A stream with its oldest row.
#[derive(FromQueryResult)]
struct StreamRow {
    id: Uuid,
    last_seq: i64,
    first_seq: Option<i64>,
    first_date: Option<i64>,
}

#[derive(FromQueryResult)]
struct Old {
    seq: i64,
    date: i64,
}

#[derive(FromQueryResult)]
struct Key {
    key_hash: Vec<u8>,
}

#[derive(FromQueryResult)]
struct Dated {
    date: i64,
}

/// What of a stream is old.
#[derive(Clone, Copy)]
struct Limits {
    /// So many of the newest rows stay; what is older goes.
    keep: Option<i64>,
    /// What was stored before goes too.
    before: Option<i64>,
}

impl Limits {
    /// Whether a row of a stream goes. The newest never does: it is what readers see of a quiet stream.
    fn delete(self, last_seq: i64, seq: i64, date: i64) -> bool {
        let too_many = self.keep.is_some_and(|keep| seq <= last_seq.saturating_sub(keep));
        let too_old = self.before.is_some_and(|before| date < before);
        seq < last_seq && (too_many || too_old)
    }

    /// Of which rows the date says something. One that has not come yet was dated by a clock that was ahead: the
    /// row is as old as those behind it, and goes with them.
    fn dated(self, date: Expr, seq: Expr, last_seq: Expr, now: SimpleExpr) -> Option<SimpleExpr> {
        self.before?;
        let dated = date.lte(now);
        Some(match self.keep {
            Some(keep) => dated.or(seq.lte(last_seq.sub(keep))),
            None => dated,
        })
    }
}

/// Deletes slice after slice, neither too much at once nor without a pause.
struct Pace {
    slice: u64,
}

impl Pace {
    async fn delete(&mut self, store: &Store, delete: &DeleteStatement) -> Result<u64, StoreError> {
        let started = Instant::now();
        let done = store.db.run(|| async { Ok(store.db.writes().execute(delete).await?) }).await?;
        let took = started.elapsed();
        self.slice = if took > SLICE_TIME { self.slice / 2 } else { self.slice * 2 }.clamp(MIN_SLICE, MAX_SLICE);
        // Half of the time belongs to others.
        tokio::time::sleep(took.min(MAX_PAUSE)).await;
        Ok(done.rows_affected())
    }
}

/// The streams of a kind from the first after `after`, each with its oldest row.
fn select_streams(kind: Kind, limits: Limits, now: SimpleExpr, after: Option<Uuid>) -> SelectStatement {
    let tables = kind.tables();
    let (head, row) = (|column| (tables.heads, column), |column| (tables.rows, column));
    let oldest = |column| {
        let select = Query::select()
            .column(row(column))
            .from(tables.rows)
            .and_where(Expr::col(row(tables.stream)).equals(head("id")))
            .and_where_option(limits.dated(
                Expr::col(row("date")),
                Expr::col(row("seq")),
                Expr::col(head("last_seq")),
                now.clone(),
            ))
            .order_by(row("seq"), Order::Asc)
            .limit(1)
            .to_owned();
        Expr::SubQuery(None, Box::new(select.into()))
    };
    let mut select = Query::select();
    select
        .columns(["id", "last_seq"].map(head))
        .expr_as(oldest("seq"), "first_seq")
        .expr_as(oldest("date"), "first_date")
        .from(tables.heads)
        .and_where(Expr::col(head("last_seq")).gt(1));
    if let Some(after) = after {
        select.and_where(Expr::col(head("id")).gt(after));
    }
    select.order_by(head("id"), Order::Asc).limit(PAGE).to_owned()
}

/// The oldest rows of a stream.
fn select_oldest(kind: Kind, stream: &StreamRow, limits: Limits, now: SimpleExpr, slice: u64) -> SelectStatement {
    let tables = kind.tables();
    Query::select()
        .columns(["seq", "date"])
        .from(tables.rows)
        .and_where(Expr::col(tables.stream).eq(stream.id))
        .and_where_option(limits.dated(Expr::col("date"), Expr::col("seq"), Expr::value(stream.last_seq), now))
        .order_by("seq", Order::Asc)
        .limit(slice)
        .to_owned()
}

/// Deletes the rows of a stream up to a `seq`.
fn delete_up_to(kind: Kind, stream: Uuid, last: i64) -> DeleteStatement {
    let tables = kind.tables();
    Query::delete()
        .from_table(tables.rows)
        .and_where(Expr::col(tables.stream).eq(stream))
        .and_where(Expr::col("seq").lte(last))
        .to_owned()
}

impl Store {
    /// Deletes what the retention names and returns how much that was; `progress` hears of each
    /// statement's part. It works in small statements, and can be dropped between any two of them: one
    /// node of a deployment is enough to call it, now and then.
    pub async fn apply_retention(
        &self,
        retention: &Retention,
        mut progress: impl FnMut(Deleted),
    ) -> Result<Deleted, StoreError> {
        let mut all = Deleted::default();
        let mut note = |deleted: Deleted| {
            all += deleted;
            progress(deleted);
        };
        let chat =
            Limits { keep: retention.messages_per_room.map(signed), before: retention.messages_before.map(micros) };
        let notified = Limits { keep: None, before: retention.notifications_before.map(micros) };
        self.clean_streams(Kind::Room, chat, |messages| note(Deleted { messages, ..Deleted::default() })).await?;
        let note_notifications = |notifications| note(Deleted { notifications, ..Deleted::default() });
        self.clean_streams(Kind::Inbox, notified, note_notifications).await?;
        if let Some(before) = retention.receipts_before {
            self.clean_receipts(before, |receipts| note(Deleted { receipts, ..Deleted::default() })).await?;
            self.clean_words(before, |receipts| note(Deleted { receipts, ..Deleted::default() })).await?;
        }
        Ok(all)
    }

    async fn clean_streams(&self, kind: Kind, limits: Limits, mut note: impl FnMut(u64)) -> Result<(), StoreError> {
        let now = || clock::micros(self.backend());
        if limits.keep.is_none() && limits.before.is_none() {
            return Ok(());
        }
        let (mut pace, mut after) = (Pace { slice: MAX_SLICE }, None);
        loop {
            let page = self.db.select::<StreamRow>(&select_streams(kind, limits, now(), after)).await?;
            for stream in &page {
                let oldest = stream.first_seq.zip(stream.first_date);
                if !oldest.is_some_and(|(seq, date)| limits.delete(stream.last_seq, seq, date)) {
                    continue;
                }
                loop {
                    let slice = pace.slice;
                    let select = select_oldest(kind, stream, limits, now(), slice);
                    let oldest = self.db.select::<Old>(&select).await?;
                    let old = oldest.iter().take_while(|row| limits.delete(stream.last_seq, row.seq, row.date));
                    let (count, last) = old.fold((0, None), |(count, _), row| (count + 1, Some(row.seq)));
                    let Some(last) = last else { break };
                    note(pace.delete(self, &delete_up_to(kind, stream.id, last)).await?);
                    if count < slice {
                        break;
                    }
                }
            }
            after = page.last().map(|stream| stream.id);
            if (page.len() as u64) < PAGE {
                return Ok(());
            }
        }
    }

    /// A key without its receipt is new again.
    async fn clean_receipts(&self, before: OffsetDateTime, mut note: impl FnMut(u64)) -> Result<(), StoreError> {
        let mut pace = Pace { slice: MAX_SLICE };
        loop {
            let select = Query::select()
                .column(receipts::Column::KeyHash)
                .from(receipts::Entity)
                .and_where(Expr::col(receipts::Column::CreatedAt).lt(micros(before)))
                .order_by(receipts::Column::CreatedAt, Order::Asc)
                .limit(pace.slice)
                .to_owned();
            let mut keys: Vec<_> = self.db.select::<Key>(&select).await?.into_iter().map(|key| key.key_hash).collect();
            if keys.is_empty() {
                return Ok(());
            }
            // In the order in which writers claim keys: nobody waits for each other in a circle.
            keys.sort_unstable();
            let delete = Query::delete()
                .from_table(receipts::Entity)
                .and_where(Expr::col(receipts::Column::KeyHash).is_in(padded(&keys)))
                .to_owned();
            note(pace.delete(self, &delete).await?);
        }
    }

    /// The order of what was said so long ago is settled.
    async fn clean_words(&self, before: OffsetDateTime, mut note: impl FnMut(u64)) -> Result<(), StoreError> {
        let (created_at, mut pace) = (room_words::Column::CreatedAt, Pace { slice: MAX_SLICE });
        loop {
            // What one change said has one date, and goes together.
            let select = Query::select()
                .expr_as(Expr::col(created_at), "date")
                .from(room_words::Entity)
                .and_where(Expr::col(created_at).lt(micros(before)))
                .order_by(created_at, Order::Asc)
                .limit(pace.slice)
                .to_owned();
            let Some(last) = self.db.select::<Dated>(&select).await?.pop() else { return Ok(()) };
            let delete = Query::delete()
                .from_table(room_words::Entity)
                .and_where(Expr::col(created_at).lte(last.date))
                .to_owned();
            note(pace.delete(self, &delete).await?);
        }
    }
}
