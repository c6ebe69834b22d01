//! Deleting what is older than it shall become. Always from the old end, so that streams stay whole.

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, Query},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Retention, Store, StoreError,
    entity::{inboxes, messages, notifications, receipts, rooms},
    values::{micros, padded, signed},
};

/// Rows deleted by one statement: others write in between.
const SLICE: u64 = 500;
/// Streams looked at by one query.
const PAGE: u64 = 500;

#[derive(FromQueryResult)]
struct StreamRow {
    id: Uuid,
    last_seq: i64,
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

/// A table of messages and what in it belongs to one stream.
macro_rules! delete_old {
    ($store:expr, $entity:ident, $stream:ident, $id:expr, $keep_after:expr, $before:expr) => {{
        let mut deleted = 0;
        loop {
            let select = Query::select()
                .columns([$entity::Column::Seq, $entity::Column::Date])
                .from($entity::Entity)
                .and_where(Expr::col($entity::Column::$stream).eq($id))
                .order_by($entity::Column::Seq, Order::Asc)
                .limit(SLICE)
                .to_owned();
            let oldest = $store.db.select::<Old>(&select).await?;
            let last = oldest
                .iter()
                .take_while(|old| old.seq <= $keep_after || $before.is_some_and(|before| old.date < before))
                .map(|old| old.seq)
                .last();
            let Some(last) = last else { break };
            let delete = Query::delete()
                .from_table($entity::Entity)
                .and_where(Expr::col($entity::Column::$stream).eq($id))
                .and_where(Expr::col($entity::Column::Seq).lte(last))
                .to_owned();
            deleted +=
                $store.db.run(|| async { Ok($store.db.writes().execute(&delete).await?) }).await?.rows_affected();
            if oldest.last().is_none_or(|old| old.seq != last) || (oldest.len() as u64) < SLICE {
                break;
            }
        }
        deleted
    }};
}

impl Store {
    /// Deletes what the retention names and returns how many rows that were. It works in small
    /// statements; one node of a deployment is enough to call it, now and then.
    pub async fn apply_retention(&self, retention: &Retention) -> Result<u64, StoreError> {
        let mut deleted = 0;
        if retention.messages_before.is_some() || retention.messages_per_room.is_some() {
            let before = retention.messages_before.map(micros);
            let mut after = None;
            loop {
                let mut select = Query::select();
                select.columns([rooms::Column::Id, rooms::Column::LastSeq]).from(rooms::Entity);
                if let Some(after) = after {
                    select.and_where(Expr::col(rooms::Column::Id).gt::<Uuid>(after));
                }
                select.order_by(rooms::Column::Id, Order::Asc).limit(PAGE);
                let page = self.db.select::<StreamRow>(&select).await?;
                for room in &page {
                    let keep_after =
                        retention.messages_per_room.map_or(0, |keep| room.last_seq.saturating_sub(signed(keep)));
                    deleted += delete_old!(self, messages, RoomId, room.id, keep_after, before);
                }
                after = page.last().map(|room| room.id);
                if after.is_none() {
                    break;
                }
            }
        }
        if let Some(before) = retention.notifications_before.map(micros) {
            let mut after = None;
            loop {
                let mut select = Query::select();
                select.columns([inboxes::Column::Id, inboxes::Column::LastSeq]).from(inboxes::Entity);
                if let Some(after) = after {
                    select.and_where(Expr::col(inboxes::Column::Id).gt::<Uuid>(after));
                }
                select.order_by(inboxes::Column::Id, Order::Asc).limit(PAGE);
                let page = self.db.select::<StreamRow>(&select).await?;
                for inbox in page.iter().filter(|inbox| inbox.last_seq > 0) {
                    deleted += delete_old!(self, notifications, InboxId, inbox.id, 0, Some(before));
                }
                after = page.last().map(|inbox| inbox.id);
                if after.is_none() {
                    break;
                }
            }
        }
        if let Some(before) = retention.receipts_before {
            deleted += self.purge_receipts(before).await?;
        }
        Ok(deleted)
    }

    /// Deletes the receipts made before `before` and returns how many. A key without its receipt is
    /// new again: 7 days are promised.
    pub async fn purge_receipts(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let mut deleted = 0;
        loop {
            let select = Query::select()
                .column(receipts::Column::KeyHash)
                .from(receipts::Entity)
                .and_where(Expr::col(receipts::Column::CreatedAt).lt(micros(before)))
                .order_by(receipts::Column::CreatedAt, Order::Asc)
                .limit(SLICE)
                .to_owned();
            let keys: Vec<_> = self.db.select::<Key>(&select).await?.into_iter().map(|key| key.key_hash).collect();
            if keys.is_empty() {
                return Ok(deleted);
            }
            let delete = Query::delete()
                .from_table(receipts::Entity)
                .and_where(Expr::col(receipts::Column::KeyHash).is_in(padded(&keys)))
                .to_owned();
            deleted += self.db.run(|| async { Ok(self.db.writes().execute(&delete).await?) }).await?.rows_affected();
        }
    }
}
