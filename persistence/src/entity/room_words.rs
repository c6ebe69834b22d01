//! What was said of a room's members, and of its name.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "gateway_room_words")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub room_id: Uuid,
    /// The member; empty for the room's own name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_name: String,
    /// Of the event's identity; random for who gave none.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_hash: Vec<u8>,
    /// Its place among the others: an id of the stream of events, which is milliseconds and a number.
    pub said_ms: i64,
    pub said_seq: i64,
    /// Whether the user is a member by this.
    pub joins: bool,
    pub display_name: Option<String>,
    /// When it was stored, by the database's clock.
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
