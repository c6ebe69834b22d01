//! Everything as it was at one moment, read piece by piece while others write.

use std::fmt;

use sea_orm::{
    ExprTrait, Order,
    sea_query::{Expr, Query},
};

use crate::{
    Message, Page, Range, Room, Store, StoreError, Stream,
    db::{Transaction, rows},
    entity::memberships,
    heads::{HeadRow, add_columns},
    kind::Kind,
    members::{Member, members_of},
    messages::{Epoch, page_of},
    row::Beside,
    values::signed,
};

/// A transaction that sees everything as it was when it began, and writes nothing. The database keeps what is deleted
/// or changed meanwhile until it ends.
pub struct Snapshot<'s>(Transaction<'s>);

impl fmt::Debug for Snapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

impl Store {
    /// Everything as it is now. Takes one of the connections, whose statements may then take any time: of a store that
    /// is used for little else.
    pub async fn snapshot(&self) -> Result<Snapshot<'_>, StoreError> {
        let transaction = self.db.begin_snapshot().await.map_err(crate::error::Fault::into_error)?;
        let snapshot = Snapshot(transaction);
        // Some databases take it when they are first asked.
        snapshot.rooms(None, 1).await?;
        Ok(snapshot)
    }
}

impl Snapshot<'_> {
    /// Rooms in the order of their names' bytes, `limit` of them from the first after `after`.
    pub async fn rooms(&self, after: Option<&str>, limit: u64) -> Result<Vec<Room>, StoreError> {
        Ok(self.heads(Kind::Room, after, limit).await?.into_iter().map(Room::from).collect())
    }

    /// Users whose inboxes have had notifications, likewise.
    pub async fn inboxes(&self, after: Option<&str>, limit: u64) -> Result<Vec<String>, StoreError> {
        Ok(self.heads(Kind::Inbox, after, limit).await?.into_iter().map(|head| head.name).collect())
    }

    async fn heads(&self, kind: Kind, after: Option<&str>, limit: u64) -> Result<Vec<HeadRow>, StoreError> {
        let tables = kind.tables();
        let name = (tables.heads, tables.name);
        let mut select = Query::select();
        add_columns(&mut select, kind)
            .from(tables.heads)
            .order_by(name, Order::Asc)
            .limit(signed(limit).unsigned_abs());
        if kind == Kind::Inbox {
            select.and_where(Expr::col((tables.heads, "last_seq")).gt(0));
        }
        if let Some(after) = after {
            select.and_where(Expr::col(name).gt(after));
        }
        Ok(rows(&self.0.inner, &select).await?)
    }

    /// Members of a room in the order of their names' bytes, `limit` of them from the first after `after`.
    pub async fn members(&self, room: &str, after: Option<&str>, limit: u64) -> Result<Vec<String>, StoreError> {
        let mut select = members_of(room);
        select.limit(signed(limit).unsigned_abs());
        if let Some(after) = after {
            select.and_where(Expr::col((memberships::Entity, memberships::Column::UserName)).gt(after));
        }
        let members = rows::<Member>(&self.0.inner, &select).await?;
        Ok(members.into_iter().map(|member| member.user_name).collect())
    }

    /// Messages of a stream after `seq`, ascending: at most `limit`, and not many more than so many bytes of text.
    pub async fn messages(
        &self,
        stream: &Stream,
        seq: u64,
        limit: u64,
        bytes: usize,
    ) -> Result<Vec<Message>, StoreError> {
        let select = page_of(stream, Page::new(Range::After(seq), limit));
        let (rows, _) = self.0.read_within(&select, bytes, |Beside::<Epoch>(_, row)| row.bytes()).await?;
        Ok(rows.into_iter().filter_map(|Beside(stream, row)| row.message(stream.epoch)).collect())
    }
}
