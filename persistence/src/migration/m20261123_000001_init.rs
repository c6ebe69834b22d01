//! All tables of the first release.
//!
//! Every step can be repeated, as MySQL cannot undo the first half of a migration that broke off.

use sea_orm_migration::{
    MigrationName, MigrationTrait, SchemaManager,
    async_trait::async_trait,
    sea_orm::{
        ConnectionTrait, DbBackend, DbErr, Statement,
        sea_query::{ColumnDef, ForeignKey, ForeignKeyAction, Index, IntoIden, Table, TableCreateStatement},
    },
};

use crate::{
    entity::{deployment, inboxes, memberships, receipts, rooms},
    types::{MAX_DISPLAY_NAME_CHARS, MAX_EVENT_ID_BYTES, MAX_NAME_CHARS},
};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m20261123_000001_init"
    }
}

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let dialect = Dialect::of(manager).await?;
        manager.create_table(rooms(&dialect)).await?;
        manager.create_table(inboxes(&dialect)).await?;
        manager.create_table(memberships(&dialect)).await?;
        manager.create_table(messages(&dialect)).await?;
        manager.create_table(notifications(&dialect)).await?;
        manager.create_table(receipts(&dialect)).await?;
        manager.create_table(deployment(&dialect)).await?;
        for (table, name, index) in [
            (
                memberships::Entity.into_iden(),
                "gateway_memberships_user",
                Index::create()
                    .table(memberships::Entity)
                    .col(memberships::Column::UserName)
                    .col(memberships::Column::RoomId)
                    .to_owned(),
            ),
            (
                "gateway_notifications".into_iden(),
                "gateway_notifications_unseen",
                Index::create().table("gateway_notifications").col("inbox_id").col("seen_at").col("seq").to_owned(),
            ),
            (
                receipts::Entity.into_iden(),
                "gateway_receipts_created",
                Index::create().table(receipts::Entity).col(receipts::Column::CreatedAt).to_owned(),
            ),
        ] {
            // MySQL has no CREATE INDEX IF NOT EXISTS.
            if !manager.has_index(table.to_string(), name).await? {
                let mut index = index;
                manager.create_index(index.name(name).to_owned()).await?;
            }
        }
        Ok(())
    }
}

/// How this database writes types and compares text. The defaults of MySQL and MariaDB take `a`,
/// `A` and `a ` for the same; identities are compared by bytes on all databases here.
pub(super) struct Dialect {
    backend: DbBackend,
    collation: &'static str,
}

impl Dialect {
    pub(super) async fn of(manager: &SchemaManager<'_>) -> Result<Self, DbErr> {
        let backend = manager.get_database_backend();
        let mut collation = "";
        if backend == DbBackend::MySql {
            let version = Statement::from_string(backend, "SELECT VERSION()");
            let row = manager.get_connection().query_one_raw(version).await?;
            let version: String = row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default();
            collation = if version.contains("MariaDB") { "utf8mb4_nopad_bin" } else { "utf8mb4_0900_bin" };
        }
        Ok(Self { backend, collation })
    }

    pub(super) fn table(&self, name: impl IntoIden) -> TableCreateStatement {
        let mut table = Table::create();
        table.table(name.into_iden()).if_not_exists();
        if self.backend == DbBackend::MySql {
            table.engine("InnoDB").character_set("utf8mb4").collate(self.collation);
        }
        table
    }

    pub(super) fn text(&self, column: impl IntoIden, chars: usize) -> ColumnDef {
        let mut column = ColumnDef::new(column);
        match self.backend {
            DbBackend::Postgres => column.custom(format!("varchar({chars}) COLLATE \"C\"")),
            _ => column.string_len(u32::try_from(chars).unwrap_or(u32::MAX)),
        };
        column
    }

    pub(super) fn long_text(&self, column: impl IntoIden) -> ColumnDef {
        let mut column = ColumnDef::new(column);
        match self.backend {
            // MySQL's TEXT ends at 64 KiB.
            DbBackend::MySql => column.custom("mediumtext"),
            _ => column.text(),
        };
        column
    }
}

fn rooms(dialect: &Dialect) -> TableCreateStatement {
    use rooms::Column::*;
    dialect
        .table(rooms::Entity)
        .col(ColumnDef::new(Id).uuid().not_null().primary_key())
        .col(dialect.text(Name, MAX_NAME_CHARS).not_null())
        .col(dialect.text(DisplayName, MAX_DISPLAY_NAME_CHARS).not_null())
        .col(ColumnDef::new(Epoch).big_integer().not_null())
        .col(ColumnDef::new(LastSeq).big_integer().not_null())
        .col(ColumnDef::new(LastId).uuid().null())
        .col(ColumnDef::new(CreatedAt).big_integer().not_null())
        .index(Index::create().name("gateway_rooms_name").col(Name).unique())
        .to_owned()
}

fn inboxes(dialect: &Dialect) -> TableCreateStatement {
    use inboxes::Column::*;
    dialect
        .table(inboxes::Entity)
        .col(ColumnDef::new(Id).uuid().not_null().primary_key())
        .col(dialect.text(UserName, MAX_NAME_CHARS).not_null())
        .col(ColumnDef::new(Epoch).big_integer().not_null())
        .col(ColumnDef::new(LastSeq).big_integer().not_null())
        .col(ColumnDef::new(LastId).uuid().null())
        .col(ColumnDef::new(CreatedAt).big_integer().not_null())
        .index(Index::create().name("gateway_inboxes_user").col(UserName).unique())
        .to_owned()
}

fn memberships(dialect: &Dialect) -> TableCreateStatement {
    use memberships::Column::*;
    dialect
        .table(memberships::Entity)
        .col(ColumnDef::new(RoomId).uuid().not_null())
        .col(dialect.text(UserName, MAX_NAME_CHARS).not_null())
        .col(ColumnDef::new(CreatedAt).big_integer().not_null())
        .primary_key(Index::create().col(RoomId).col(UserName))
        .foreign_key(
            ForeignKey::create()
                .name("gateway_memberships_room")
                .from(memberships::Entity, RoomId)
                .to(rooms::Entity, rooms::Column::Id)
                .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

fn messages(dialect: &Dialect) -> TableCreateStatement {
    dialect
        .table("gateway_messages")
        .col(ColumnDef::new("room_id").uuid().not_null())
        .col(ColumnDef::new("seq").big_integer().not_null())
        .col(ColumnDef::new("id").uuid().not_null())
        .col(dialect.text("from_user", MAX_NAME_CHARS).not_null())
        .col(dialect.long_text("message").not_null())
        .col(ColumnDef::new("date").big_integer().not_null())
        .col(dialect.text("source", MAX_EVENT_ID_BYTES).null())
        .col(dialect.text("event_id", MAX_EVENT_ID_BYTES).null())
        .primary_key(Index::create().col("room_id").col("seq"))
        .to_owned()
}

fn notifications(dialect: &Dialect) -> TableCreateStatement {
    dialect
        .table("gateway_notifications")
        .col(ColumnDef::new("inbox_id").uuid().not_null())
        .col(ColumnDef::new("seq").big_integer().not_null())
        .col(ColumnDef::new("id").uuid().not_null())
        .col(dialect.text("from_user", MAX_NAME_CHARS).not_null())
        .col(dialect.long_text("message").not_null())
        .col(ColumnDef::new("date").big_integer().not_null())
        .col(ColumnDef::new("seen_at").big_integer().null())
        .col(dialect.text("source", MAX_EVENT_ID_BYTES).null())
        .col(dialect.text("event_id", MAX_EVENT_ID_BYTES).null())
        .primary_key(Index::create().col("inbox_id").col("seq"))
        .to_owned()
}

fn receipts(dialect: &Dialect) -> TableCreateStatement {
    use receipts::Column::*;
    dialect
        .table(receipts::Entity)
        .col(ColumnDef::new(KeyHash).binary_len(32).not_null().primary_key())
        .col(ColumnDef::new(ContentHash).binary_len(32).not_null())
        .col(ColumnDef::new(Id).uuid().not_null())
        .col(ColumnDef::new(Seq).big_integer().not_null())
        .col(ColumnDef::new(Epoch).big_integer().not_null())
        .col(ColumnDef::new(Date).big_integer().not_null())
        .col(ColumnDef::new(CreatedAt).big_integer().not_null())
        .to_owned()
}

fn deployment(dialect: &Dialect) -> TableCreateStatement {
    use deployment::Column::*;
    dialect
        .table(deployment::Entity)
        .col(ColumnDef::new(Singleton).integer().not_null().primary_key())
        .col(ColumnDef::new(Id).uuid().not_null())
        .col(ColumnDef::new(CreatedAt).big_integer().not_null())
        .to_owned()
}
