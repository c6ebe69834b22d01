//! Rooms, and the heads of their streams.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, ExprTrait, Order,
    sea_query::{Expr, LockType, Query, UpdateStatement},
};

use crate::{
    Room, Store, StoreError,
    db::rows,
    entity::rooms,
    error::Fault,
    heads::{HeadRow, add_columns, select_heads},
    kind::Kind,
    types::MAX_DISPLAY_NAME_CHARS,
    values::{check_name, distinct, is_valid_name, signed, unsigned},
};

impl From<HeadRow> for Room {
    fn from(row: HeadRow) -> Self {
        Self {
            display_name: row.display_name.unwrap_or_else(|| row.name.clone()),
            name: row.name,
            epoch: row.epoch,
            last_seq: unsigned(row.last_seq),
            last_id: row.last_id,
        }
    }
}

impl Store {
    /// Makes a room, or finds it; with a display name, sets that. The room's own name is the
    /// display name until then.
    pub async fn create_room(&self, name: &str, display_name: Option<&str>) -> Result<Room, StoreError> {
        check_name("room name", name)?;
        display_name.map_or(Ok(()), check_display_name)?;
        if let Some(room) = self.room(name).await?
            && display_name.is_none_or(|display| display == room.display_name)
        {
            return Ok(room);
        }
        self.db.run(|| self.try_create_room(name, display_name)).await
    }

    async fn try_create_room(&self, name: &str, display_name: Option<&str>) -> Result<Room, Fault> {
        let transaction = self.db.begin().await?;
        self.insert_heads(&transaction.inner, Kind::Room, &[name]).await?;
        if let Some(display) = display_name {
            transaction.inner.execute(&rename(name, display)).await?;
        }
        let made: Option<HeadRow> = rows(&transaction.inner, &select_heads(Kind::Room, &[name])).await?.pop();
        transaction.commit().await?;
        made.map(Room::from)
            .ok_or_else(|| StoreError::Unavailable("the room was deleted at the same time".into()).into())
    }

    /// Makes these rooms, or finds them; where a display name is given, sets that. Returns how many were made. A few
    /// statements for up to 1,000, and one more for each display name that changes.
    pub async fn put_rooms(&self, wanted: &[(String, Option<String>)]) -> Result<u64, StoreError> {
        for (name, display_name) in wanted {
            check_name("room name", name)?;
            display_name.as_deref().map_or(Ok(()), check_display_name)?;
        }
        let names: Vec<_> = wanted.iter().map(|(name, _)| name.clone()).collect();
        let there = self.room_heads(&names).await?;
        let missing = distinct(names.iter().map(String::as_str).filter(|name| !there.contains_key(*name)));
        if !missing.is_empty() {
            self.db.run(|| async { self.insert_heads(&self.db.writes(), Kind::Room, &missing).await }).await?;
        }
        let mut display_names: Vec<_> =
            wanted.iter().filter_map(|(name, display_name)| Some((name, display_name.as_deref()?))).collect();
        // Of two for one room the later counts. In the order of their names, as others lock them.
        display_names.reverse();
        display_names.sort_by_key(|(name, _)| *name);
        display_names.dedup_by_key(|(name, _)| *name);
        display_names
            .retain(|(name, display_name)| there.get(*name).is_none_or(|room| room.display_name != *display_name));
        if !display_names.is_empty() {
            self.db.run(|| self.try_rename(&display_names)).await?;
        }
        Ok(missing.len() as u64)
    }

    async fn try_rename(&self, display_names: &[(&String, &str)]) -> Result<(), Fault> {
        let transaction = self.db.begin().await?;
        for (name, display_name) in display_names {
            transaction.inner.execute(&rename(name, display_name)).await?;
        }
        transaction.commit().await
    }

    /// The room of this name.
    pub async fn room(&self, name: &str) -> Result<Option<Room>, StoreError> {
        if !is_valid_name(name) {
            return Ok(None);
        }
        Ok(self.db.select::<HeadRow>(&select_heads(Kind::Room, &[name])).await?.pop().map(Room::from))
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
        let select = select_heads(Kind::Room, &[name]).lock(LockType::Update).to_owned();
        let Some(room) = rows::<HeadRow>(&transaction.inner, &select).await?.pop() else {
            return Ok(false);
        };
        for (table, column) in [
            ("gateway_messages", "room_id"),
            ("gateway_memberships", "room_id"),
            ("gateway_room_words", "room_id"),
            ("gateway_rooms", "id"),
        ] {
            let delete = Query::delete().from_table(table).and_where(Expr::col(column).eq(room.id)).to_owned();
            transaction.inner.execute(&delete).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Those of these rooms that exist, by name; one statement for up to 1,000 names.
    pub async fn room_heads(&self, rooms: &[String]) -> Result<HashMap<String, Room>, StoreError> {
        self.heads(Kind::Room, rooms).await
    }

    /// All rooms in the order of their names' bytes, `limit` of them from the first after `after`.
    pub async fn rooms(&self, after: Option<&str>, limit: u64) -> Result<Vec<Room>, StoreError> {
        let mut select = Query::select();
        add_columns(&mut select, Kind::Room)
            .from(rooms::Entity)
            .order_by(rooms::Column::Name, Order::Asc)
            .limit(signed(limit).unsigned_abs());
        if let Some(after) = after {
            // No database takes a NUL, and nothing that could be stored lies between.
            let after = after.split('\0').next().unwrap_or_default();
            select.and_where(Expr::col(rooms::Column::Name).gt(after));
        }
        Ok(self.db.select::<HeadRow>(&select).await?.into_iter().map(Room::from).collect())
    }
}

fn check_display_name(display_name: &str) -> Result<(), StoreError> {
    if is_valid_display_name(display_name) {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("display name: 1 to {MAX_DISPLAY_NAME_CHARS} characters")))
}

/// Whether a room can be called so.
pub fn is_valid_display_name(display_name: &str) -> bool {
    !display_name.contains('\0') && !display_name.is_empty() && display_name.chars().count() <= MAX_DISPLAY_NAME_CHARS
}

fn rename(name: &str, display_name: &str) -> UpdateStatement {
    Query::update()
        .table(rooms::Entity)
        .value(rooms::Column::DisplayName, display_name)
        .and_where(Expr::col(rooms::Column::Name).eq(name))
        .to_owned()
}
