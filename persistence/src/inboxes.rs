//! Inboxes: the head of each user's notifications. A user is known when there is one.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, OnConflict, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Head, Store, StoreError, clock,
    entity::inboxes,
    error::Fault,
    values::{MAX_LIST, builder, check_name, distinct, new_epoch, padded, unsigned},
};

/// A row of inboxes.
#[derive(Debug, Clone, FromQueryResult)]
pub(crate) struct InboxRow {
    pub(crate) id: Uuid,
    pub(crate) user_name: String,
    pub(crate) epoch: i64,
    pub(crate) last_seq: i64,
    pub(crate) last_id: Option<Uuid>,
    pub(crate) created_at: i64,
}

/// The columns of [`InboxRow`].
pub(crate) const COLUMNS: [inboxes::Column; 6] = [
    inboxes::Column::Id,
    inboxes::Column::UserName,
    inboxes::Column::Epoch,
    inboxes::Column::LastSeq,
    inboxes::Column::LastId,
    inboxes::Column::CreatedAt,
];

#[derive(FromQueryResult)]
struct UserRow {
    user_name: String,
}

/// The inboxes of these users, in the order of the index on names.
pub(crate) fn select_inboxes(users: &[&str]) -> SelectStatement {
    Query::select()
        .columns(COLUMNS)
        .from(inboxes::Entity)
        .and_where(Expr::col(inboxes::Column::UserName).is_in(padded(users)))
        .order_by(inboxes::Column::UserName, Order::Asc)
        .to_owned()
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
        self.db.run(|| async { self.insert_inboxes(&*self.db.writes(), &missing).await }).await
    }

    /// Inserts the inboxes that are missing; `users` are distinct and sorted.
    pub(crate) async fn insert_inboxes(&self, connection: &impl ConnectionTrait, users: &[&str]) -> Result<(), Fault> {
        for users in users.chunks(MAX_LIST) {
            let mut insert = Query::insert();
            insert.into_table(inboxes::Entity).columns(COLUMNS);
            for user in users {
                insert
                    .values([
                        Uuid::now_v7().into(),
                        (*user).into(),
                        new_epoch().into(),
                        0_i64.into(),
                        None::<Uuid>.into(),
                        clock::micros(self.backend()),
                    ])
                    .map_err(builder)?;
            }
            let column = inboxes::Column::UserName;
            insert.on_conflict(OnConflict::column(column).do_nothing_on([column]).to_owned());
            connection.execute(&insert).await?;
        }
        Ok(())
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
        let mut heads = HashMap::with_capacity(users.len());
        for users in distinct(users.iter().map(String::as_str)).chunks(MAX_LIST) {
            for row in self.db.select::<InboxRow>(&select_inboxes(users)).await? {
                let head = Head { epoch: row.epoch, last_seq: unsigned(row.last_seq), last_id: row.last_id };
                heads.insert(row.user_name, head);
            }
        }
        Ok(heads)
    }
}
