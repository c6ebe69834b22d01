//! When a message was redacted. It keeps its place, without its text and data.
//!
//! The column may be null: nodes of the version before neither write nor read it, and show an empty text. Every step can be
//! repeated, as MySQL cannot undo the first half of a migration that broke off.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{
        DbErr,
        sea_query::{ColumnDef, Table},
    },
};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261130_000007_redacted"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (table, column) = ("gateway_messages", "redacted_at");
        if manager.has_column(table, column).await? {
            return Ok(());
        }
        let column = ColumnDef::new(column).big_integer().null().to_owned();
        manager.alter_table(Table::alter().table(table).add_column(column).to_owned()).await
    }
}
