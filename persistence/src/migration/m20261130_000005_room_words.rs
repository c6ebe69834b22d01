//! What was said of a room's members and of its name, so that the later word counts whichever is stored first.
//!
//! Nodes of the version before do not know the table and go on beside those of this one: what they do to members has no
//! place in the order. Every step can be repeated, as MySQL cannot undo the first half of a migration that broke off.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{
        DbErr,
        sea_query::{ColumnDef, ForeignKey, ForeignKeyAction, Index, IntoIden},
    },
};

use super::m20261123_000001_init::Dialect;
use crate::{
    entity::{room_words, rooms},
    types::{MAX_DISPLAY_NAME_CHARS, MAX_NAME_CHARS},
};

const INDEX: &str = "gateway_room_words_created";

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261130_000005_room_words"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use room_words::Column::*;
        let dialect = Dialect::of(manager).await?;
        let table = dialect
            .table(room_words::Entity)
            .col(ColumnDef::new(RoomId).uuid().not_null())
            .col(dialect.text(UserName, MAX_NAME_CHARS).not_null())
            .col(ColumnDef::new(KeyHash).binary_len(32).not_null())
            .col(ColumnDef::new(SaidMs).big_integer().not_null())
            .col(ColumnDef::new(SaidSeq).big_integer().not_null())
            .col(ColumnDef::new(Joins).boolean().not_null())
            .col(dialect.text(DisplayName, MAX_DISPLAY_NAME_CHARS).null())
            .col(ColumnDef::new(CreatedAt).big_integer().not_null())
            .primary_key(Index::create().col(RoomId).col(UserName).col(KeyHash))
            .foreign_key(
                ForeignKey::create()
                    .name("gateway_room_words_room")
                    .from(room_words::Entity, RoomId)
                    .to(rooms::Entity, rooms::Column::Id)
                    .on_delete(ForeignKeyAction::Cascade),
            )
            .to_owned();
        manager.create_table(table).await?;
        // MySQL has no CREATE INDEX IF NOT EXISTS.
        if !manager.has_index(room_words::Entity.into_iden().to_string(), INDEX).await? {
            let index = Index::create().name(INDEX).table(room_words::Entity).col(CreatedAt).to_owned();
            manager.create_index(index).await?;
        }
        Ok(())
    }
}
