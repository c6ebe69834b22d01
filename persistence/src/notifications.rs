//! What of a user's notifications has been seen.

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult,
    sea_query::{Expr, Query, SelectStatement},
};

use crate::{
    Seen, Store, StoreError, clock,
    kind::Kind,
    values::{MAX_LIST, is_valid_name, padded, signed, unsigned},
};

#[derive(FromQueryResult)]
struct Count {
    unseen: i64,
}

/// The id of a user's inbox.
fn inbox_of(user: &str) -> SelectStatement {
    let tables = Kind::Inbox.tables();
    Query::select().column("id").from(tables.heads).and_where(Expr::col(tables.name).eq(user)).to_owned()
}

impl Store {
    /// How many notifications a user has not seen.
    pub async fn unseen(&self, user: &str) -> Result<u64, StoreError> {
        if !is_valid_name(user) {
            return Ok(0);
        }
        let select = Query::select()
            .expr_as(Expr::col("seq").count(), "unseen")
            .from(Kind::Inbox.tables().rows)
            .and_where(Expr::col("inbox_id").in_subquery(inbox_of(user)))
            .and_where(Expr::col("seen_at").is_null())
            .to_owned();
        Ok(self.db.select::<Count>(&select).await?.first().map_or(0, |count| unsigned(count.unseen)))
    }

    /// Marks notifications of a user as seen and returns how many are still unseen. Ids of other
    /// users' notifications, and what is seen already, are left alone.
    pub async fn mark_seen(&self, user: &str, which: Seen) -> Result<u64, StoreError> {
        if !is_valid_name(user) {
            return Ok(0);
        }
        let mut update = Query::update();
        update
            .table(Kind::Inbox.tables().rows)
            .value("seen_at", clock::micros(self.backend()))
            .and_where(Expr::col("inbox_id").in_subquery(inbox_of(user)))
            .and_where(Expr::col("seen_at").is_null());
        let updates: Vec<_> = match which {
            Seen::UpTo(seq) => {
                vec![update.and_where(Expr::col("seq").lte(signed(seq))).to_owned()]
            }
            Seen::Ids(ids) => ids
                .chunks(MAX_LIST)
                .map(|ids| update.clone().and_where(Expr::col("id").is_in(padded(ids))).to_owned())
                .collect(),
        };
        for update in &updates {
            self.db.run(|| async { Ok(self.db.writes().execute(update).await?) }).await?;
        }
        self.unseen(user).await
    }
}
