//! Which messages were imported: stored with a date of their own, and brought to nobody as they were.
//!
//! The columns may be null: nodes of the version before neither write nor read them, and go on beside those of this one.
//! Every step can be repeated, as MySQL cannot undo the first half of a migration that broke off.

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
        "m20261130_000006_imported"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["gateway_messages", "gateway_notifications"] {
            if !manager.has_column(table, "imported").await? {
                let column = ColumnDef::new("imported").boolean().null().to_owned();
                manager.alter_table(Table::alter().table(table).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }
}
