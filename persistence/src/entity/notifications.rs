//! Notifications of users.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "gateway_notifications")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub inbox_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pub seq: i64,
    pub id: Uuid,
    pub from_user: String,
    pub message: String,
    pub date: i64,
    pub seen_at: Option<i64>,
    pub source: Option<String>,
    pub event_id: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
