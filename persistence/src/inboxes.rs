//! Inboxes: the head of each user's notifications. A user is known when there is one.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ExprTrait, FromQueryResult,
    sea_query::{Expr, Query},
};

use crate::{
    Head, Store, StoreError,
    entity::inboxes,
    heads::HeadRow,
    kind::Kind,
    values::{MAX_LIST, check_name, distinct, padded, unsigned},
};

#[derive(FromQueryResult)]
struct UserRow {
    user_name: String,
}

impl From<HeadRow> for Head {
    fn from(row: HeadRow) -> Self {
        Self { epoch: row.epoch, last_seq: unsigned(row.last_seq), last_id: row.last_id }
    }
}

impl Store {
    /// Makes these users known. A read when all of them are, one more statement for those that are not.
    pub async fn see_users(&self, names: &[String]) -> Result<(), StoreError> {
        for name in names {
            check_name("user name", name)?;
        }
        let known = self.known_users(names).await?;
        let missing = distinct(names.iter().map(String::as_str).filter(|name| !known.contains(*name)));
        if missing.is_empty() {
            return Ok(());
        }
        self.db.run(|| async { self.insert_heads(&self.db.writes(), Kind::Inbox, &missing).await }).await
    }

    /// Those of these names that are known users.
    pub async fn known_users(&self, names: &[String]) -> Result<HashSet<String>, StoreError> {
        let mut known = HashSet::with_capacity(names.len());
        for names in distinct(names.iter().map(String::as_str)).chunks(MAX_LIST) {
            let select = Query::select()
                .column(inboxes::Column::UserName)
                .from(inboxes::Entity)
                .and_where(Expr::col(inboxes::Column::UserName).is_in(padded(names)))
                .to_owned();
            known.extend(self.db.select::<UserRow>(&select).await?.into_iter().map(|row| row.user_name));
        }
        Ok(known)
    }

    /// The inbox heads of those of these users that are known; one statement for up to 1,000.
    pub async fn inbox_heads(&self, users: &[String]) -> Result<HashMap<String, Head>, StoreError> {
        self.heads(Kind::Inbox, users).await
    }
}
