//! The secrets of the deployment, in the row that names it.
//!
//! Every step can be repeated, as MySQL cannot undo the first half of a migration that broke off.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{
        DbErr, Iden,
        sea_query::{ColumnDef, IntoIden, Table},
    },
};

use crate::entity::deployment;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261129_000003_secrets"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use deployment::Column::*;
        let table = deployment::Entity.into_iden().to_string();
        for (name, column) in [
            (Secret, ColumnDef::new(Secret).binary_len(32).null().to_owned()),
            (PreviousSecret, ColumnDef::new(PreviousSecret).binary_len(32).null().to_owned()),
            // Made so long ago that the first who asks makes one.
            (SecretMadeAt, ColumnDef::new(SecretMadeAt).big_integer().not_null().default(0).to_owned()),
        ] {
            if !manager.has_column(&table, name.unquoted()).await? {
                // SQLite takes one column at a time.
                manager.alter_table(Table::alter().table(deployment::Entity).add_column(column).to_owned()).await?;
            }
        }
        Ok(())
    }
}
