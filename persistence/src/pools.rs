//! The connection pools of a store.

use sea_orm::{
    DatabaseConnection, SqlxMySqlConnector, SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{self, Executor, mysql::MySqlPool, pool::PoolOptions, postgres::PgPool, sqlite::SqlitePool},
};

use crate::{StoreOptions, append_view, kept::AppendConnections, options::Target, trust::Trust, unnamed::Pooled};

/// How long a statement may wait for a lock before the transaction is tried again.
const LOCK_TIMEOUT_SECONDS: u64 = 3;
/// How long a frozen node may keep others from a stream.
const IDLE_IN_TRANSACTION_SECONDS: u64 = 15;

/// The connections of one store. They are the same pool twice, except for a SQLite file.
#[derive(Clone)]
pub(crate) struct Pools {
    pub(crate) reads: DatabaseConnection,
    pub(crate) writes: DatabaseConnection,
    /// For `writes`.
    pub(crate) append: AppendConnections,
    /// The same connections, if each is there for a transaction only.
    pub(crate) pooled: Option<Pooled>,
}

impl Pools {
    /// Pools that connect when first used.
    pub(crate) fn new(target: &Target, options: &StoreOptions) -> Self {
        match target {
            Target::Sqlite { options: file, in_memory, .. } => {
                // One writer: a second one would only wait for the file lock, without a queue.
                let writer: SqlitePool = common::<sqlx::Sqlite>(options)
                    .max_connections(1)
                    // An in-memory database lives in its one connection, which must never close.
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .test_before_acquire(false)
                    .after_connect(|connection, _| {
                        Box::pin(async move { connection.execute(append_view::SETUP.as_str()).await.map(drop) })
                    })
                    .connect_lazy_with(file.clone());
                let append = AppendConnections::sqlite();
                let connection = SqlxSqliteConnector::from_sqlx_sqlite_pool;
                if *in_memory {
                    let writer = connection(writer);
                    return Self { reads: writer.clone(), writes: writer, append, pooled: None };
                }
                let readers =
                    common::<sqlx::Sqlite>(options).test_before_acquire(false).connect_lazy_with(file.clone());
                Self { reads: connection(readers), writes: connection(writer), append, pooled: None }
            }
            Target::Postgres { options: postgres, pooled: true } => {
                let begin = format!(
                    "BEGIN; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
                     SET LOCAL idle_in_transaction_session_timeout = {}",
                    options.statement_timeout.as_millis(),
                    LOCK_TIMEOUT_SECONDS * 1000,
                    IDLE_IN_TRANSACTION_SECONDS * 1000,
                );
                let pool: PgPool = pinged(common(options), &Trust::default()).connect_lazy_with(postgres.clone());
                let pooled = Some(Pooled::new(pool.clone(), begin));
                let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
                Self {
                    reads: pool.clone(),
                    writes: pool,
                    append: AppendConnections::postgres(0, Trust::default()),
                    pooled,
                }
            }
            Target::Postgres { options: postgres, pooled: false } => {
                let setup = format!(
                    "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
                    options.statement_timeout.as_millis(),
                    LOCK_TIMEOUT_SECONDS * 1000,
                    IDLE_IN_TRANSACTION_SECONDS * 1000,
                );
                let trust = Trust::default();
                let pool: PgPool = setup_each(common(options), &trust, setup).connect_lazy_with(postgres.clone());
                let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
                Self {
                    reads: pool.clone(),
                    writes: pool,
                    append: AppendConnections::postgres(options.max_connections, trust),
                    pooled: None,
                }
            }
            Target::MySql(mysql) => {
                // READ COMMITTED: every statement sees what is committed, and no gap locks are taken.
                // The first comment is read by MariaDB only, the second by MySQL only.
                let setup = format!(
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
                     SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}\
                     /*M!100300 , SESSION max_statement_time = {}, SESSION idle_transaction_timeout = {IDLE_IN_TRANSACTION_SECONDS} */\
                     /*!50708 , SESSION max_execution_time = {} */",
                    options.statement_timeout.as_secs_f64(),
                    options.statement_timeout.as_millis(),
                );
                let pool: MySqlPool =
                    setup_each(common(options), &Trust::default(), setup).connect_lazy_with(mysql.clone());
                let pool = SqlxMySqlConnector::from_sqlx_mysql_pool(pool);
                Self { reads: pool.clone(), writes: pool, append: AppendConnections::MySql, pooled: None }
            }
        }
    }

    /// Connections that are made from now on are made as this says.
    pub(crate) fn connect_as(&self, target: &Target) {
        for pool in [&self.reads, &self.writes] {
            match target {
                Target::Sqlite { .. } => {}
                Target::Postgres { options, .. } => {
                    pool.get_postgres_connection_pool().set_connect_options(options.clone())
                }
                Target::MySql(options) => pool.get_mysql_connection_pool().set_connect_options(options.clone()),
            }
        }
    }
}

fn common<DB: sqlx::Database>(options: &StoreOptions) -> PoolOptions<DB> {
    PoolOptions::new().max_connections(options.max_connections.max(1)).acquire_timeout(options.acquire_timeout)
}

/// Pings a connection that has been idle before it is used.
fn pinged<DB: sqlx::Database>(pool: PoolOptions<DB>, trust: &Trust) -> PoolOptions<DB> {
    let trust = trust.clone();
    pool.test_before_acquire(false).before_acquire(move |connection, about| {
        let trust = trust.clone();
        Box::pin(async move { Ok(trust.answers(connection, about.idle_for).await) })
    })
}

/// Runs `setup` on every new connection, and pings one that has been idle before it is used.
fn setup_each<DB>(pool: PoolOptions<DB>, trust: &Trust, setup: String) -> PoolOptions<DB>
where
    DB: sqlx::Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    pinged(pool, trust).after_connect(move |connection, _| {
        let setup = setup.clone();
        Box::pin(async move {
            connection.execute(sqlx::AssertSqlSafe(setup)).await?;
            Ok(())
        })
    })
}
