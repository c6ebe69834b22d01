//! Making the schema, and telling whether it is the one this program knows.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DbErr, FromQueryResult,
    sea_query::{OnConflict, Query},
    sqlx,
};
use sea_orm_migration::{MigratorTrait, SchemaManager};
use uuid::Uuid;

use crate::{
    Backend, Store, StoreError, clock,
    db::rows,
    entity::deployment,
    error::{Fault, query_error},
    migration::Migrator,
    values::builder,
};

/// How long a migration may take, the wait for another process's migration included.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);
/// The advisory lock of PostgreSQL: "gateway" in ASCII.
const POSTGRES_LOCK: i64 = 0x0067_6174_6577_6179;
/// The lock of MySQL, which is per server and so names the database.
const MYSQL_LOCK: &str = "CONCAT('gateway_migrate_', LEFT(SHA2(DATABASE(), 256), 32))";

#[derive(FromQueryResult)]
struct Applied {
    version: String,
}

#[derive(FromQueryResult)]
struct Deployment {
    id: Uuid,
}

impl Store {
    /// Applies the missing migrations and returns their names, oldest first. A lock in the database
    /// makes any number of processes take turns, so all of them succeed.
    pub async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        if let Err(ahead @ StoreError::SchemaAhead { .. }) = self.check_schema().await {
            return Err(ahead);
        }
        let applied = self.db.run_within(MIGRATION_LIMIT, || self.migrate_locked()).await?;
        self.deployment_id().await?;
        Ok(applied)
    }

    async fn migrate_locked(&self) -> Result<Vec<String>, Fault> {
        match self.backend() {
            Backend::MySql => {
                // Not a transaction: MySQL commits at every CREATE TABLE, so the lock has a connection of
                // its own. It is given back when that closes, at the latest with this pool, also when
                // the caller gives up.
                let pool = self.db.patient_pool(MIGRATION_LIMIT);
                let mut lock = pool.get_mysql_connection_pool().acquire().await.map_err(query_error)?;
                let wait = MIGRATION_LIMIT.as_secs();
                let got: Option<i64> =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT GET_LOCK({MYSQL_LOCK}, {wait})")))
                        .fetch_one(&mut *lock)
                        .await
                        .map_err(query_error)?;
                if got != Some(1) {
                    return Err(StoreError::Unavailable("another process is migrating".into()).into());
                }
                let result = apply(&pool).await;
                let _ = lock.close().await;
                Ok(result?)
            }
            Backend::Postgres | Backend::Sqlite => {
                let transaction = self.db.begin_migration().await?;
                if self.backend() == Backend::Postgres {
                    let lock = format!(
                        "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"
                    );
                    transaction.execute_unprepared(&lock).await?;
                }
                let applied = apply(&transaction).await?;
                transaction.commit().await.map_err(Fault::Commit)?;
                Ok(applied)
            }
        }
    }

    /// Every migration this program knows, oldest first, and whether the database has it.
    pub async fn migration_status(&self) -> Result<Vec<(String, bool)>, StoreError> {
        let applied = self.applied().await?;
        Ok(known().into_iter().map(|name| (applied.contains(&name), name)).map(|(has, name)| (name, has)).collect())
    }

    /// Fails with [`StoreError::SchemaBehind`] or [`StoreError::SchemaAhead`] unless the database
    /// has exactly the migrations this program knows.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let applied = self.applied().await?;
        let known = known();
        let unknown: Vec<_> = applied.iter().filter(|name| !known.contains(name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(StoreError::SchemaAhead { unknown });
        }
        let pending: Vec<_> = known.into_iter().filter(|name| !applied.contains(name)).collect();
        if !pending.is_empty() {
            return Err(StoreError::SchemaBehind { pending });
        }
        Ok(())
    }

    async fn applied(&self) -> Result<Vec<String>, StoreError> {
        self.db
            .run(|| async {
                if self.db.is_pooled() {
                    return Ok(applied(&self.db.begin_migration().await?).await?);
                }
                Ok(applied(self.db.reads().usual()).await?)
            })
            .await
    }

    /// The random id of the deployment this database belongs to; the same for ever, also after a restore.
    pub async fn deployment_id(&self) -> Result<Uuid, StoreError> {
        let select = Query::select().column(deployment::Column::Id).from(deployment::Entity).to_owned();
        if let Some(found) = self.db.select::<Deployment>(&select).await?.first() {
            return Ok(found.id);
        }
        let mut insert = Query::insert();
        insert
            .into_table(deployment::Entity)
            .columns([deployment::Column::Singleton, deployment::Column::Id, deployment::Column::CreatedAt])
            .values([1.into(), Uuid::new_v4().into(), clock::micros(self.backend())])
            .map_err(builder)?
            .on_conflict(
                OnConflict::column(deployment::Column::Singleton)
                    .do_nothing_on([deployment::Column::Singleton])
                    .to_owned(),
            );
        self.db.run(|| async { Ok(self.db.writes().execute(&insert).await?) }).await?;
        let made = self.db.run(|| async { Ok(rows::<Deployment>(&self.db.writes(), &select).await?) }).await?;
        made.first().map(|made| made.id).ok_or_else(|| StoreError::Other("the deployment id has vanished".into()))
    }
}

fn known() -> Vec<String> {
    Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect()
}

async fn applied<'c, C>(connection: &'c C) -> Result<Vec<String>, DbErr>
where
    C: ConnectionTrait,
    &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
{
    let table = Migrator::migration_table_name();
    if !SchemaManager::new(connection).has_table(table.to_string()).await? {
        return Ok(Vec::new());
    }
    let select = Query::select().column("version").from(table).order_by("version", sea_orm::Order::Asc).to_owned();
    Ok(rows::<Applied>(connection, &select).await?.into_iter().map(|row| row.version).collect())
}

/// Applies what is missing, and nothing when the database is newer than this program.
async fn apply<'c, C>(connection: &'c C) -> Result<Vec<String>, DbErr>
where
    C: ConnectionTrait,
    &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
{
    let pending: Vec<_> = Migrator::get_pending_migrations(connection)
        .await?
        .iter()
        .map(|migration| migration.name().to_owned())
        .collect();
    Migrator::up(connection, None).await?;
    Ok(pending)
}
