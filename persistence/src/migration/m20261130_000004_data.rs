//! What a sender gives beside the text of a message.
//!
//! The columns may be null: nodes of the version before neither write nor read them, and go on beside those of this one.
//! Every step can be repeated, as MySQL cannot undo the first half of a migration that broke off.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{DbErr, sea_query::Table},
};

use super::m20261123_000001_init::Dialect;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261130_000004_data"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let dialect = Dialect::of(manager).await?;
        for table in ["gateway_messages", "gateway_notifications"] {
            if !manager.has_column(table, "data").await? {
                let column = dialect.long_text("data").null().to_owned();
                manager.alter_table(Table::alter().table(table).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }
}
