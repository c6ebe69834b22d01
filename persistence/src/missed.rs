//! The head of a stream together with what comes after a place in it: what a node reads that has missed
//! something, in one statement.

use sea_orm::{
    ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Head, Message, Notification, Room, Store, StoreError,
    entity::{inboxes, messages, notifications, rooms},
    values::{date, is_valid_name, signed, unsigned},
};

/// A row of the stream beside its head; nothing but the head when nothing comes after the place.
#[derive(FromQueryResult)]
struct MessageRow {
    display_name: String,
    epoch: i64,
    last_seq: i64,
    last_id: Option<Uuid>,
    seq: Option<i64>,
    id: Option<Uuid>,
    from_user: Option<String>,
    message: Option<String>,
    date: Option<i64>,
}

#[derive(FromQueryResult)]
struct NotificationRow {
    epoch: i64,
    last_seq: i64,
    last_id: Option<Uuid>,
    seq: Option<i64>,
    id: Option<Uuid>,
    from_user: Option<String>,
    message: Option<String>,
    date: Option<i64>,
    seen_at: Option<i64>,
    source: Option<String>,
    event_id: Option<String>,
}

impl Store {
    /// A room with up to `limit` of its messages after `seq`, ascending; `None` when there is no such
    /// room. When the first one is not `seq` + 1, older messages have been deleted.
    pub async fn messages_after(
        &self,
        room: &str,
        seq: u64,
        limit: u64,
    ) -> Result<Option<(Room, Vec<Message>)>, StoreError> {
        let read = self.messages_after_within(room, seq, limit, usize::MAX).await?;
        Ok(read.map(|(head, messages, _)| (head, messages)))
    }

    /// The same, but not many more than so many bytes of text; two messages at least, if there are. Tells whether that
    /// left out any.
    pub async fn messages_after_within(
        &self,
        room: &str,
        seq: u64,
        limit: u64,
        bytes: usize,
    ) -> Result<Option<(Room, Vec<Message>, bool)>, StoreError> {
        if !is_valid_name(room) {
            return Ok(None);
        }
        let column = |column| (messages::Entity, column);
        let mut select = Query::select();
        let head = [rooms::Column::DisplayName, rooms::Column::Epoch, rooms::Column::LastSeq, rooms::Column::LastId];
        select
            .columns(head.map(|column| (rooms::Entity, column)))
            .columns(crate::messages::COLUMNS.map(column))
            .from(rooms::Entity)
            .left_join(
                messages::Entity,
                Expr::col(column(messages::Column::RoomId))
                    .equals((rooms::Entity, rooms::Column::Id))
                    .and(Expr::col(column(messages::Column::Seq)).gt(signed(seq))),
            )
            .and_where(Expr::col((rooms::Entity, rooms::Column::Name)).eq(room))
            .order_by(column(messages::Column::Seq), Order::Asc);
        let text = |row: &MessageRow| row.message.as_ref().map_or(0, String::len);
        let (rows, cut) = self.db.select_within(&limited(select, limit), bytes, text).await?;
        let head = rows.first().map(|row| Room {
            name: room.to_owned(),
            display_name: row.display_name.clone(),
            epoch: row.epoch,
            last_seq: unsigned(row.last_seq),
            last_id: row.last_id,
        });
        let message = |row: MessageRow| {
            Some(Message {
                id: row.id?,
                seq: unsigned(row.seq?),
                epoch: row.epoch,
                room: room.to_owned(),
                from_user: row.from_user?,
                message: row.message?,
                date: date(row.date?),
            })
        };
        Ok(head.map(|head| (head, rows.into_iter().filter_map(message).collect(), cut)))
    }

    /// The head of a user's inbox with up to `limit` of the notifications after `seq`, ascending; `None`
    /// when nobody has heard of the user. As [`messages_after`](Self::messages_after).
    pub async fn notifications_after(
        &self,
        user: &str,
        seq: u64,
        limit: u64,
    ) -> Result<Option<(Head, Vec<Notification>)>, StoreError> {
        let read = self.notifications_after_within(user, seq, limit, usize::MAX).await?;
        Ok(read.map(|(head, notifications, _)| (head, notifications)))
    }

    /// The same, but not many more than so many bytes of text; two notifications at least, if there are. Tells whether that
    /// left out any.
    pub async fn notifications_after_within(
        &self,
        user: &str,
        seq: u64,
        limit: u64,
        bytes: usize,
    ) -> Result<Option<(Head, Vec<Notification>, bool)>, StoreError> {
        if !is_valid_name(user) {
            return Ok(None);
        }
        let column = |column| (notifications::Entity, column);
        let mut select = Query::select();
        let head = [inboxes::Column::Epoch, inboxes::Column::LastSeq, inboxes::Column::LastId];
        select
            .columns(head.map(|column| (inboxes::Entity, column)))
            .columns(crate::notifications::COLUMNS.map(column))
            .from(inboxes::Entity)
            .left_join(
                notifications::Entity,
                Expr::col(column(notifications::Column::InboxId))
                    .equals((inboxes::Entity, inboxes::Column::Id))
                    .and(Expr::col(column(notifications::Column::Seq)).gt(signed(seq))),
            )
            .and_where(Expr::col((inboxes::Entity, inboxes::Column::UserName)).eq(user))
            .order_by(column(notifications::Column::Seq), Order::Asc);
        let text = |row: &NotificationRow| row.message.as_ref().map_or(0, String::len);
        let (rows, cut) = self.db.select_within(&limited(select, limit), bytes, text).await?;
        let head =
            rows.first().map(|row| Head { epoch: row.epoch, last_seq: unsigned(row.last_seq), last_id: row.last_id });
        let notification = |row: NotificationRow| {
            Some(Notification {
                id: row.id?,
                seq: unsigned(row.seq?),
                epoch: row.epoch,
                from_user: row.from_user?,
                message: row.message?,
                date: date(row.date?),
                seen: row.seen_at.is_some(),
                source: row.source,
                event_id: row.event_id,
            })
        };
        Ok(head.map(|head| (head, rows.into_iter().filter_map(notification).collect(), cut)))
    }
}

/// At least one row, or there would be no head.
fn limited(mut select: SelectStatement, limit: u64) -> SelectStatement {
    select.limit(signed(Ord::max(limit, 1)).unsigned_abs()).to_owned()
}
