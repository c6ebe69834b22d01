//! The schema's history. A released migration is never changed; a new one is added at the end.

mod m20261123_000001_init;
mod m20261124_000002_leases;
mod m20261129_000003_secrets;
mod m20261130_000004_data;
mod m20261130_000005_room_words;
mod m20261130_000006_imported;
mod m20261130_000007_redacted;

use sea_orm_migration::{
    MigrationTrait, MigratorTrait,
    sea_orm::{DynIden, sea_query::IntoIden},
};

pub(crate) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_init::Migration),
            Box::new(m20261124_000002_leases::Migration),
            Box::new(m20261129_000003_secrets::Migration),
            Box::new(m20261130_000004_data::Migration),
            Box::new(m20261130_000005_room_words::Migration),
            Box::new(m20261130_000006_imported::Migration),
            Box::new(m20261130_000007_redacted::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        "gateway_migrations".into_iden()
    }
}
