//! Reading the chat of a room.

use sea_orm::{
    ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, IntoColumnRef, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Message, Range, Store, StoreError,
    entity::{messages, rooms},
    values::{date, is_valid_name, signed, unsigned},
};

/// What is read of a message, beside the epoch of its room.
pub(crate) const COLUMNS: [messages::Column; 5] = [
    messages::Column::Id,
    messages::Column::Seq,
    messages::Column::FromUser,
    messages::Column::Message,
    messages::Column::Date,
];

#[derive(FromQueryResult)]
struct MessageRow {
    id: Uuid,
    seq: i64,
    epoch: i64,
    from_user: String,
    message: String,
    date: i64,
}

/// Restricts a query to a range of `seq`.
pub(crate) fn limit_to(select: &mut SelectStatement, seq: impl IntoColumnRef + Clone, range: Range, limit: u64) {
    let column = seq.clone().into_column_ref();
    match range {
        Range::Latest => select.order_by(column, Order::Desc),
        Range::Before(end) => select.and_where(Expr::col(seq).lt(signed(end))).order_by(column, Order::Desc),
        Range::After(start) => select.and_where(Expr::col(seq).gt(signed(start))).order_by(column, Order::Asc),
        Range::Between(start, end) => select
            .and_where(Expr::col(seq.clone()).gt(signed(start)))
            .and_where(Expr::col(seq).lt(signed(end)))
            .order_by(column, Order::Asc),
    }
    .limit(signed(limit).unsigned_abs());
}

/// The rows were read from the near end; results always ascend.
pub(crate) fn ascending<T>(mut rows: Vec<T>, range: Range) -> Vec<T> {
    if !range.is_forward() {
        rows.reverse();
    }
    rows
}

impl Store {
    /// Up to `limit` messages of a room, ascending; none when there is no such room. When the first
    /// of `After(n)` is not n + 1, older messages have been deleted.
    pub async fn messages(&self, room: &str, range: Range, limit: u64) -> Result<Vec<Message>, StoreError> {
        Ok(self.messages_within(room, range, limit, usize::MAX).await?.0)
    }

    /// The same, but not many more than so many bytes of text; two messages at least, if there are. Tells whether
    /// that left out any.
    pub async fn messages_within(
        &self,
        room: &str,
        range: Range,
        limit: u64,
        bytes: usize,
    ) -> Result<(Vec<Message>, bool), StoreError> {
        if !is_valid_name(room) {
            return Ok((Vec::new(), false));
        }
        let mut select = Query::select();
        select
            .columns(COLUMNS.map(|column| (messages::Entity, column)))
            .column((rooms::Entity, rooms::Column::Epoch))
            .from(rooms::Entity)
            .inner_join(
                messages::Entity,
                Expr::col((messages::Entity, messages::Column::RoomId)).equals((rooms::Entity, rooms::Column::Id)),
            )
            .and_where(Expr::col((rooms::Entity, rooms::Column::Name)).eq(room));
        limit_to(&mut select, (messages::Entity, messages::Column::Seq), range, limit);
        let (rows, cut) = self.db.select_within::<MessageRow>(&select, bytes, |row| row.message.len()).await?;
        let messages = ascending(rows, range)
            .into_iter()
            .map(|row| Message {
                id: row.id,
                seq: unsigned(row.seq),
                epoch: row.epoch,
                room: room.to_owned(),
                from_user: row.from_user,
                message: row.message,
                date: date(row.date),
            })
            .collect();
        Ok((messages, cut))
    }
}
