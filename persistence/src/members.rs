//! Who belongs to which room.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ConnectionTrait, ExprTrait, FromQueryResult, Order,
    sea_query::{Expr, OnConflict, Query, SelectStatement},
};
use uuid::Uuid;

use crate::{
    Membership, Room, Store, StoreError, clock,
    db::rows,
    entity::{memberships, rooms},
    error::Fault,
    heads::{HeadRow, add_columns, select_heads},
    kind::Kind,
    values::{MAX_LIST, builder, check_name, distinct, is_valid_name, padded},
};

/// Most pairs looked up at once: all these rooms with all these users are read.
const MAX_PAIRS: usize = 250;

#[derive(FromQueryResult)]
pub(crate) struct Member {
    pub(crate) user_name: String,
}

#[derive(FromQueryResult)]
struct Pair {
    name: String,
    user_name: String,
}

/// A room beside the user it was asked for, and since when it is that user's.
#[derive(FromQueryResult)]
struct UserRoom {
    user_name: String,
    member_since: i64,
    #[sea_orm(nested)]
    room: HeadRow,
}

/// Members of a room, in the order of their names' bytes.
pub(crate) fn members_of(room: &str) -> SelectStatement {
    let user = (memberships::Entity, memberships::Column::UserName);
    let of_room = Expr::col((rooms::Entity, rooms::Column::Id));
    Query::select()
        .column(user)
        .from(memberships::Entity)
        .inner_join(rooms::Entity, of_room.equals((memberships::Entity, memberships::Column::RoomId)))
        .and_where(Expr::col((rooms::Entity, rooms::Column::Name)).eq(room))
        .order_by(user, Order::Asc)
        .to_owned()
}

impl Store {
    /// Puts users into rooms, making users known and, where asked, missing rooms. The answer says of
    /// each pair whether the user is a member now: `false` means there is no such room. The whole batch
    /// costs three reads when all is so already, and a few statements more when not.
    pub async fn add_members(&self, pairs: &[Membership]) -> Result<Vec<bool>, StoreError> {
        for pair in pairs {
            check_name("user name", &pair.user)?;
            if pair.create_room {
                check_name("room name", &pair.room)?;
            }
        }
        let mut answers = Vec::with_capacity(pairs.len());
        for pairs in pairs.chunks(MAX_PAIRS) {
            answers.extend(self.add_some_members(pairs).await?);
        }
        Ok(answers)
    }

    async fn add_some_members(&self, pairs: &[Membership]) -> Result<Vec<bool>, StoreError> {
        let present = self.present(pairs).await?;
        let missing: Vec<_> = pairs
            .iter()
            .filter(|pair| is_valid_name(&pair.room) && !present.contains(&(&*pair.room, &*pair.user)))
            .collect();
        let mut joined = HashSet::new();
        if !missing.is_empty() {
            self.see_users(&missing.iter().map(|pair| pair.user.clone()).collect::<Vec<_>>()).await?;
            joined = self.db.run(|| self.try_add(&missing)).await?;
        }
        Ok(pairs
            .iter()
            .map(|pair| present.contains(&(&*pair.room, &*pair.user)) || joined.contains(&*pair.room))
            .collect())
    }

    /// Those of the pairs that are members already.
    async fn present<'a>(&self, pairs: &'a [Membership]) -> Result<HashSet<(&'a str, &'a str)>, StoreError> {
        let rooms = distinct(pairs.iter().map(|pair| &*pair.room));
        let users = distinct(pairs.iter().map(|pair| &*pair.user));
        let select = Query::select()
            .column((rooms::Entity, rooms::Column::Name))
            .column((memberships::Entity, memberships::Column::UserName))
            .from(memberships::Entity)
            .inner_join(
                rooms::Entity,
                Expr::col((rooms::Entity, rooms::Column::Id))
                    .equals((memberships::Entity, memberships::Column::RoomId)),
            )
            .and_where(Expr::col((rooms::Entity, rooms::Column::Name)).is_in(padded(&rooms)))
            .and_where(Expr::col((memberships::Entity, memberships::Column::UserName)).is_in(padded(&users)))
            .to_owned();
        let found: HashSet<(String, String)> =
            self.db.select::<Pair>(&select).await?.into_iter().map(|pair| (pair.name, pair.user_name)).collect();
        Ok(pairs
            .iter()
            .filter(|pair| found.contains(&(pair.room.clone(), pair.user.clone())))
            .map(|pair| (&*pair.room, &*pair.user))
            .collect())
    }

    /// Inserts these memberships and returns the rooms that exist. A room deleted in between is met
    /// by the foreign key, and the whole is tried again.
    async fn try_add<'a>(&self, pairs: &[&'a Membership]) -> Result<HashSet<&'a str>, Fault> {
        let transaction = self.db.begin().await?;
        let connection = &transaction.inner;
        let to_create = distinct(pairs.iter().filter(|pair| pair.create_room).map(|pair| &*pair.room));
        if !to_create.is_empty() {
            let existing: Vec<HeadRow> = rows(connection, &select_heads(Kind::Room, &to_create)).await?;
            let existing: HashSet<_> = existing.iter().map(|room| &*room.name).collect();
            let missing: Vec<_> = to_create.into_iter().filter(|name| !existing.contains(name)).collect();
            if !missing.is_empty() {
                self.insert_heads(connection, Kind::Room, &missing).await?;
            }
        }
        let names = distinct(pairs.iter().map(|pair| &*pair.room));
        let ids: HashMap<String, Uuid> = rows::<HeadRow>(connection, &select_heads(Kind::Room, &names))
            .await?
            .into_iter()
            .map(|room| (room.name, room.id))
            .collect();
        let mut members: Vec<_> = pairs.iter().filter_map(|pair| Some((*ids.get(&pair.room)?, &*pair.user))).collect();
        members.sort_unstable();
        members.dedup();
        if !members.is_empty() {
            let mut insert = Query::insert();
            insert.into_table(memberships::Entity).columns([
                memberships::Column::RoomId,
                memberships::Column::UserName,
                memberships::Column::CreatedAt,
            ]);
            for (room, user) in members {
                insert.values([room.into(), user.into(), clock::micros(self.backend())]).map_err(builder)?;
            }
            insert.on_conflict(
                OnConflict::columns([memberships::Column::RoomId, memberships::Column::UserName])
                    .do_nothing_on([memberships::Column::RoomId])
                    .to_owned(),
            );
            connection.execute(&insert).await?;
        }
        transaction.commit().await?;
        Ok(pairs.iter().map(|pair| &*pair.room).filter(|room| ids.contains_key(*room)).collect())
    }

    /// Takes a user out of a room; `false` when they were not in it.
    pub async fn remove_member(&self, room: &str, user: &str) -> Result<bool, StoreError> {
        if !is_valid_name(room) || !is_valid_name(user) {
            return Ok(false);
        }
        let id = Query::select()
            .column(rooms::Column::Id)
            .from(rooms::Entity)
            .and_where(Expr::col(rooms::Column::Name).eq(room))
            .to_owned();
        let delete = Query::delete()
            .from_table(memberships::Entity)
            .and_where(Expr::col(memberships::Column::RoomId).in_subquery(id))
            .and_where(Expr::col(memberships::Column::UserName).eq(user))
            .to_owned();
        let deleted = self.db.run(|| async { Ok(self.db.writes().execute(&delete).await?) }).await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// All members of a room, in the order of their names' bytes; none when there is no such room.
    pub async fn members(&self, room: &str) -> Result<Vec<String>, StoreError> {
        if !is_valid_name(room) {
            return Ok(Vec::new());
        }
        Ok(self.db.select::<Member>(&members_of(room)).await?.into_iter().map(|member| member.user_name).collect())
    }

    /// The rooms of each of these users, by user, the oldest membership first; one statement for up to 1,000 users.
    /// Users without a room are left out.
    pub async fn rooms_of(&self, users: &[String]) -> Result<HashMap<String, Vec<Room>>, StoreError> {
        let mut rooms_of: HashMap<String, Vec<(i64, Room)>> = HashMap::new();
        for users in distinct(users.iter().map(String::as_str)).chunks(MAX_LIST) {
            let mut select = Query::select();
            select.column((memberships::Entity, memberships::Column::UserName));
            let since = Expr::col((memberships::Entity, memberships::Column::CreatedAt));
            select.expr_as(since, "member_since");
            add_columns(&mut select, Kind::Room)
                .from(memberships::Entity)
                .inner_join(
                    rooms::Entity,
                    Expr::col((rooms::Entity, rooms::Column::Id))
                        .equals((memberships::Entity, memberships::Column::RoomId)),
                )
                .and_where(Expr::col((memberships::Entity, memberships::Column::UserName)).is_in(padded(users)));
            for row in self.db.select::<UserRoom>(&select).await? {
                rooms_of.entry(row.user_name).or_default().push((row.member_since, row.room.into()));
            }
        }
        let in_order = |(user, mut rooms): (String, Vec<(i64, Room)>)| {
            // Those of one moment by name: the order is the same whoever asks.
            rooms.sort_unstable_by(|(since, a), (other, b)| since.cmp(other).then_with(|| a.name.cmp(&b.name)));
            (user, rooms.into_iter().map(|(_, room)| room).collect())
        };
        Ok(rooms_of.into_iter().map(in_order).collect())
    }

    /// Whether two users are members of a room together.
    pub async fn share_room(&self, one: &str, other: &str) -> Result<bool, StoreError> {
        if !is_valid_name(one) || !is_valid_name(other) {
            return Ok(false);
        }
        let rooms_of = |user: &str| {
            Query::select()
                .column(memberships::Column::RoomId)
                .from(memberships::Entity)
                .and_where(Expr::col(memberships::Column::UserName).eq(user))
                .to_owned()
        };
        let select = rooms_of(one)
            .column(memberships::Column::UserName)
            .and_where(Expr::col(memberships::Column::RoomId).in_subquery(rooms_of(other)))
            .limit(1)
            .to_owned();
        Ok(!self.db.select::<Member>(&select).await?.is_empty())
    }
}
