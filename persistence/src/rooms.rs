//! Rooms, and the heads of their streams.

use std::collections::HashMap;

use sea_orm::{
    ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, LockType, OnConflict, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Backend, Room, Store, StoreError, clock,
    db::rows,
    entity::{memberships, messages, rooms},
    error::Fault,
    types::MAX_DISPLAY_NAME_CHARS,
    values::{MAX_LIST, builder, check_name, distinct, is_valid_name, new_epoch, padded, signed, unsigned},
};
use sea_orm::ConnectionTrait;

/// A row of rooms.
#[derive(Debug, Clone, FromQueryResult)]
pub(crate) struct RoomRow {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) display_name: String,
    pub(crate) epoch: i64,
    pub(crate) last_seq: i64,
    pub(crate) last_id: Option<Uuid>,
    pub(crate) created_at: i64,
}

impl From<RoomRow> for Room {
    fn from(row: RoomRow) -> Self {
        Self {
            name: row.name,
            display_name: row.display_name,
            epoch: row.epoch,
            last_seq: unsigned(row.last_seq),
            last_id: row.last_id,
        }
    }
}

/// The columns of [`RoomRow`].
pub(crate) const COLUMNS: [rooms::Column; 7] = [
    rooms::Column::Id,
    rooms::Column::Name,
    rooms::Column::DisplayName,
    rooms::Column::Epoch,
    rooms::Column::LastSeq,
    rooms::Column::LastId,
    rooms::Column::CreatedAt,
];

/// The rooms of these names, in the order of the index on names.
pub(crate) fn select_rooms(names: &[&str]) -> SelectStatement {
    Query::select()
        .columns(COLUMNS)
        .from(rooms::Entity)
        .and_where(Expr::col(rooms::Column::Name).is_in(padded(names)))
        .order_by(rooms::Column::Name, Order::Asc)
        .to_owned()
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
    /// Makes a room, or finds it; with a display name, sets that. The room's own name is the
    /// display name until then.
    pub async fn create_room(&self, name: &str, display_name: Option<&str>) -> Result<Room, StoreError> {
        check_name("room name", name)?;
        if let Some(display) = display_name
            && (display.contains('\0') || display.is_empty() || display.chars().count() > MAX_DISPLAY_NAME_CHARS)
        {
            return Err(StoreError::Invalid(format!("display name: 1 to {MAX_DISPLAY_NAME_CHARS} characters")));
        }
        if let Some(room) = self.room(name).await?
            && display_name.is_none_or(|display| display == room.display_name)
        {
            return Ok(room);
        }
        self.db.run(|| self.try_create_room(name, display_name)).await
    }

    async fn try_create_room(&self, name: &str, display_name: Option<&str>) -> Result<Room, Fault> {
        let transaction = self.db.begin().await?;
        self.insert_rooms(&transaction.inner, &[name]).await?;
        if let Some(display) = display_name {
            let update = Query::update()
                .table(rooms::Entity)
                .value(rooms::Column::DisplayName, display)
                .and_where(Expr::col(rooms::Column::Name).eq(name))
                .to_owned();
            transaction.inner.execute(&update).await?;
        }
        let made: Option<RoomRow> = rows(&transaction.inner, &select_rooms(&[name])).await?.pop();
        transaction.commit().await?;
        made.map(Room::from)
            .ok_or_else(|| StoreError::Unavailable("the room was deleted at the same time".into()).into())
    }

    /// Inserts the rooms that are missing; `names` are distinct and sorted.
    pub(crate) async fn insert_rooms(&self, connection: &impl ConnectionTrait, names: &[&str]) -> Result<(), Fault> {
        for names in names.chunks(MAX_LIST) {
            let mut insert = Query::insert();
            insert.into_table(rooms::Entity).columns(COLUMNS);
            for name in names {
                insert
                    .values([
                        Uuid::now_v7().into(),
                        (*name).into(),
                        (*name).into(),
                        new_epoch().into(),
                        0_i64.into(),
                        None::<Uuid>.into(),
                        clock::micros(self.backend()),
                    ])
                    .map_err(builder)?;
            }
            insert.on_conflict(OnConflict::column(rooms::Column::Name).do_nothing_on([rooms::Column::Name]).to_owned());
            connection.execute(&insert).await?;
        }
        Ok(())
    }

    /// The room of this name.
    pub async fn room(&self, name: &str) -> Result<Option<Room>, StoreError> {
        if !is_valid_name(name) {
            return Ok(None);
        }
        Ok(self.db.select::<RoomRow>(&select_rooms(&[name])).await?.pop().map(Room::from))
    }

    /// Deletes a room with its members and messages; `false` when there was none. Made again, it
    /// has a new epoch and starts at 1.
    pub async fn delete_room(&self, name: &str) -> Result<bool, StoreError> {
        if !is_valid_name(name) {
            return Ok(false);
        }
        self.db.run(|| self.try_delete_room(name)).await
    }

    async fn try_delete_room(&self, name: &str) -> Result<bool, Fault> {
        let transaction = self.db.begin().await?;
        let select = select_rooms(&[name]).lock(LockType::Update).to_owned();
        let Some(room) = rows::<RoomRow>(&transaction.inner, &select).await?.pop() else {
            return Ok(false);
        };
        for (table, column) in [
            (sea_orm::sea_query::IntoTableRef::into_table_ref(messages::Entity), Expr::col(messages::Column::RoomId)),
            (
                sea_orm::sea_query::IntoTableRef::into_table_ref(memberships::Entity),
                Expr::col(memberships::Column::RoomId),
            ),
            (sea_orm::sea_query::IntoTableRef::into_table_ref(rooms::Entity), Expr::col(rooms::Column::Id)),
        ] {
            let delete = Query::delete().from_table(table).and_where(column.eq(room.id)).to_owned();
            transaction.inner.execute(&delete).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Those of these rooms that exist, by name; one statement for up to 1,000 names.
    pub async fn room_heads(&self, rooms: &[String]) -> Result<HashMap<String, Room>, StoreError> {
        let mut heads = HashMap::with_capacity(rooms.len());
        for names in distinct(rooms.iter().map(String::as_str)).chunks(MAX_LIST) {
            for row in self.db.select::<RoomRow>(&select_rooms(names)).await? {
                heads.insert(row.name.clone(), row.into());
            }
        }
        Ok(heads)
    }

    /// All rooms in the order of their names' bytes, `limit` of them from the first after `after`.
    pub async fn rooms(&self, after: Option<&str>, limit: u64) -> Result<Vec<Room>, StoreError> {
        let mut select = Query::select();
        select
            .columns(COLUMNS)
            .from(rooms::Entity)
            .order_by(rooms::Column::Name, Order::Asc)
            .limit(signed(limit).unsigned_abs());
        if let Some(after) = after {
            // No database takes a NUL, and nothing that could be stored lies between.
            let after = after.split('\0').next().unwrap_or_default();
            select.and_where(Expr::col(rooms::Column::Name).gt(after));
        }
        Ok(self.db.select::<RoomRow>(&select).await?.into_iter().map(Room::from).collect())
    }
}
