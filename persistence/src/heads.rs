//! The heads of streams: a row for each room and each inbox, which counts its messages.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, LockType, OnConflict, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Backend, Store, StoreError, clock,
    error::Fault,
    kind::Kind,
    values::{MAX_LIST, builder, distinct, new_epoch, padded},
};

/// A row of heads.
#[derive(Debug, Clone, FromQueryResult)]
pub(crate) struct HeadRow {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    /// None for an inbox.
    pub(crate) display_name: Option<String>,
    pub(crate) epoch: i64,
    pub(crate) last_seq: i64,
    pub(crate) last_id: Option<Uuid>,
    pub(crate) created_at: i64,
}

/// The columns of a head as they are written, in the order of [`HeadRow`].
pub(crate) fn columns(kind: Kind) -> impl Iterator<Item = &'static str> {
    let tables = kind.tables();
    ["id", tables.name].into_iter().chain(tables.display_name).chain(["epoch", "last_seq", "last_id", "created_at"])
}

/// Adds the columns of [`HeadRow`] to a query of the heads' table.
pub(crate) fn add_columns(select: &mut SelectStatement, kind: Kind) -> &mut SelectStatement {
    let tables = kind.tables();
    for column in ["id", "epoch", "last_seq", "last_id", "created_at"] {
        select.column((tables.heads, column));
    }
    select.expr_as(Expr::col((tables.heads, tables.name)), "name").expr_as(display_name(kind), "display_name")
}

/// The display name in a query of the heads' table.
pub(crate) fn display_name(kind: Kind) -> Expr {
    match kind.tables().display_name {
        Some(column) => Expr::col((kind.tables().heads, column)),
        None => Expr::cust("NULL"),
    }
}

/// The heads of these names, in the order of the index on names.
pub(crate) fn select_heads(kind: Kind, names: &[&str]) -> SelectStatement {
    let tables = kind.tables();
    let mut select = Query::select();
    add_columns(&mut select, kind)
        .from(tables.heads)
        .and_where(Expr::col((tables.heads, tables.name)).is_in(padded(names)))
        .order_by((tables.heads, tables.name), Order::Asc);
    select
}

/// The lock under which a stream is numbered. On PostgreSQL the weaker one, which lets others refer
/// to the row (a user joins the room) meanwhile.
pub(crate) fn head_lock(backend: Backend) -> LockType {
    match backend {
        Backend::Postgres => LockType::NoKeyUpdate,
        Backend::MySql | Backend::Sqlite => LockType::Update,
    }
}

impl Store {
    /// Inserts the heads that are missing; `names` are distinct and sorted.
    pub(crate) async fn insert_heads(
        &self,
        connection: &impl ConnectionTrait,
        kind: Kind,
        names: &[&str],
    ) -> Result<(), Fault> {
        let tables = kind.tables();
        for names in names.chunks(MAX_LIST) {
            let mut insert = Query::insert();
            insert.into_table(tables.heads).columns(columns(kind));
            for name in names {
                let mut values = vec![Uuid::now_v7().into(), (*name).into()];
                values.extend(tables.display_name.map(|_| (*name).into()));
                let (last_seq, last_id) = (0_i64, None::<Uuid>);
                values.extend([new_epoch().into(), last_seq.into(), last_id.into(), clock::micros(self.backend())]);
                insert.values(values).map_err(builder)?;
            }
            insert.on_conflict(OnConflict::column(tables.name).do_nothing_on([tables.name]).to_owned());
            connection.execute(&insert).await?;
        }
        Ok(())
    }

    /// The heads of those of these names that exist, by name; one statement for up to 1,000.
    pub(crate) async fn heads<T: From<HeadRow>>(
        &self,
        kind: Kind,
        names: &[String],
    ) -> Result<HashMap<String, T>, StoreError> {
        let mut heads = HashMap::with_capacity(names.len());
        for names in distinct(names.iter().map(String::as_str)).chunks(MAX_LIST) {
            for row in self.db.select::<HeadRow>(&select_heads(kind, names)).await? {
                heads.insert(row.name.clone(), row.into());
            }
        }
        Ok(heads)
    }
}
