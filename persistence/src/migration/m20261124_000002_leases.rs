//! The table of leases: which node does the work that one node does for all.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{DbErr, sea_query::ColumnDef},
};

use super::m20261123_000001_init::Dialect;
use crate::entity::leases;

/// Longest name of a lease, in characters; ours to choose.
const MAX_LEASE_NAME: usize = 50;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261124_000002_leases"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        use leases::Column::*;
        let dialect = Dialect::of(manager).await?;
        let table = dialect
            .table(leases::Entity)
            .col(dialect.text(Name, MAX_LEASE_NAME).not_null().primary_key())
            .col(ColumnDef::new(Holder).uuid().not_null())
            .col(ColumnDef::new(ExpiresAt).big_integer().not_null())
            .col(ColumnDef::new(FinishedAt).big_integer().not_null())
            .to_owned();
        manager.create_table(table).await
    }
}
