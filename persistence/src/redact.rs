//! Taking away what was said: a message keeps its place, its sender and its date, and loses its text and data.

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, Query, SimpleExpr},
};
use uuid::Uuid;

use crate::{
    Store, StoreError, clock,
    db::rows,
    error::Fault,
    heads::{HeadRow, select_heads},
    kind::Kind,
    values::{is_valid_name, signed, unsigned},
};

const ROWS: &str = "gateway_messages";

#[derive(FromQueryResult)]
struct Place {
    id: Uuid,
    seq: i64,
}

impl Store {
    /// Takes away text and data of a message of a room, and returns its `seq`; `None` when there is no such message. Again
    /// is fine. The room is read for it.
    pub async fn redact(&self, room: &str, id: Uuid) -> Result<Option<u64>, StoreError> {
        let Some(room) = self.room_id(room).await? else { return Ok(None) };
        self.db.run(|| self.try_redact(room, Expr::col("id").eq(id))).await?;
        let select = Query::select()
            .columns(["id", "seq"])
            .from(ROWS)
            .and_where(Expr::col("room_id").eq(room))
            .and_where(Expr::col("id").eq(id))
            .to_owned();
        Ok(self.db.select::<Place>(&select).await?.pop().map(|place| unsigned(place.seq)))
    }

    /// The same for all that a user has written into a room. Returns ids and positions of the newest, `most` of them, and
    /// how many there were.
    pub async fn redact_user(&self, room: &str, user: &str, most: u64) -> Result<(Vec<(Uuid, u64)>, u64), StoreError> {
        let Some(room) = self.room_id(room).await?.filter(|_| is_valid_name(user)) else { return Ok((Vec::new(), 0)) };
        let select = Query::select()
            .columns(["id", "seq"])
            .from(ROWS)
            .and_where(Expr::col("room_id").eq(room))
            .and_where(Expr::col("from_user").eq(user))
            .and_where(Expr::col("redacted_at").is_null())
            .order_by("seq", Order::Desc)
            .limit(signed(most).unsigned_abs())
            .to_owned();
        let newest = self.db.select::<Place>(&select).await?;
        if newest.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let count = self.db.run(|| self.try_redact(room, Expr::col("from_user").eq(user))).await?;
        Ok((newest.into_iter().map(|place| (place.id, unsigned(place.seq))).collect(), count))
    }

    async fn try_redact(&self, room: Uuid, which: SimpleExpr) -> Result<u64, Fault> {
        let update = Query::update()
            .table(ROWS)
            .value("message", "")
            .value("data", None::<String>)
            .value("redacted_at", clock::micros(self.backend()))
            .and_where(Expr::col("room_id").eq(room))
            .and_where(which)
            .and_where(Expr::col("redacted_at").is_null())
            .to_owned();
        Ok(self.db.writes().execute(&update).await?.rows_affected())
    }

    /// Deletes a user's inbox, after which nobody has heard of them; `false` when nobody had.
    pub async fn delete_inbox(&self, user: &str) -> Result<bool, StoreError> {
        if !is_valid_name(user) {
            return Ok(false);
        }
        self.db.run(|| self.try_delete_inbox(user)).await
    }

    async fn try_delete_inbox(&self, user: &str) -> Result<bool, Fault> {
        let transaction = self.db.begin().await?;
        let select = select_heads(Kind::Inbox, &[user]).lock(sea_orm::sea_query::LockType::Update).to_owned();
        let Some(inbox) = rows::<HeadRow>(&transaction.inner, &select).await?.pop() else { return Ok(false) };
        for (table, column) in [("gateway_notifications", "inbox_id"), ("gateway_inboxes", "id")] {
            let delete = Query::delete().from_table(table).and_where(Expr::col(column).eq(inbox.id)).to_owned();
            transaction.inner.execute(&delete).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn room_id(&self, room: &str) -> Result<Option<Uuid>, StoreError> {
        if !is_valid_name(room) {
            return Ok(None);
        }
        Ok(self.db.select::<HeadRow>(&select_heads(Kind::Room, &[room])).await?.pop().map(|room| room.id))
    }
}
