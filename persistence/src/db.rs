//! Connections, transactions, retries and time-outs: what every query goes through.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use rand::RngExt;
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    FromQueryResult, IsolationLevel, QueryResult, SqliteTransactionMode, Statement, StreamTrait, TransactionOptions,
    TransactionTrait,
    sea_query::SelectStatement,
    sqlx::{
        self,
        postgres::{PgArguments, PgRow},
        sqlite::{SqliteArguments, SqliteRow},
    },
};
use std::sync::{PoisonError, RwLock};
use tokio::time::error::Elapsed;

#[cfg(unix)]
use crate::bell::Bell;
use crate::{
    Backend, StoreError, StoreOptions,
    error::{Fault, connect_error, query_error},
    kept::{AppendConnections, PoolUse},
    known::KnownHeads,
    options::Target,
    pools::Pools,
    unnamed::{Inner, Pooled},
};

/// Attempts of a transaction that met a conflict or a broken connection.
const ATTEMPTS: u32 = 4;

/// What asks whether the database is there. It is sent every few seconds and not counted.
pub(crate) const PING: &str = "SELECT 1";

/// Ends the named statements of sqlx that somebody has left on the server's connection. Those of a pooler that keeps
/// names apart have other names.
const FORGET_NAMES: &str = "DO $$ DECLARE left_over text; BEGIN \
     FOR left_over IN SELECT name FROM pg_prepared_statements WHERE name LIKE 'sqlx\\_s\\_%' \
     LOOP EXECUTE format('DEALLOCATE %I', left_over); END LOOP; END $$";

/// What a transaction says first that may take any time, also between its statements.
const SNAPSHOT_OF_POSTGRES: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
/// The first comment is read by MariaDB only, the second by MySQL only.
const SNAPSHOT_OF_MYSQL: &str = "SET SESSION net_write_timeout = 3600 \
     /*M!100300 , SESSION idle_transaction_timeout = 0, SESSION max_statement_time = 0 */\
     /*!50708 , SESSION max_execution_time = 0 */";

/// The pools of a store and what is counted about them.
pub(crate) struct Db {
    pub(crate) backend: Backend,
    target: RwLock<Target>,
    options: StoreOptions,
    pools: RwLock<(u64, Pools)>,
    statements: Arc<AtomicU64>,
    pub(crate) known: KnownHeads,
    #[cfg(unix)]
    bell: Bell,
    conflicts: AtomicU64,
    broken: AtomicU64,
    renewed: AtomicU64,
}

/// What a store has had to do again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Attempts repeated because of a deadlock, a lock that did not come, or another conflict.
    pub conflicts: u64,
    /// Attempts repeated because their connection broke.
    pub broken: u64,
    /// Times that all connections were left, because an answer did not come in time or the server takes no writes.
    pub renewed: u64,
}

impl Db {
    pub(crate) fn new(options: StoreOptions) -> Result<Self, StoreError> {
        let target = Target::parse(&options.url)?;
        target.keep_private();
        Ok(Self::with(target, options))
    }

    /// Of a database that is another program's, and only read.
    pub(crate) fn of_a_site(options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self::with(Target::parse_foreign(&options.url)?, options))
    }

    fn with(target: Target, options: StoreOptions) -> Self {
        let statements = Arc::new(AtomicU64::new(0));
        let pools = counted(Pools::new(&target, &options), &statements);
        let [conflicts, broken, renewed] = [const { AtomicU64::new(0) }; 3];
        let pools = RwLock::new((0, pools));
        let (backend, target) = (target.backend(), RwLock::new(target));
        Self {
            backend,
            target,
            options,
            pools,
            statements,
            known: KnownHeads::default(),
            #[cfg(unix)]
            bell: Bell::default(),
            conflicts,
            broken,
            renewed,
        }
    }

    /// Whether the two URLs mean the same database.
    pub(crate) fn is_same_place(one: &str, other: &str) -> bool {
        let parse = |url| Target::parse(url).ok();
        matches!((parse(one), parse(other)), (Some(one), Some(other)) if one.is_same_place(&other))
    }

    fn target(&self) -> Target {
        self.target.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Signs in as this URL says from now on, on new connections; those that are open stay. `false`, and nothing of it, if
    /// it is another database.
    pub(crate) fn take_credentials(&self, url: &str) -> Result<bool, StoreError> {
        let new = Target::parse(url)?;
        let is_same = self.target().is_same_place(&new);
        if is_same {
            self.pools().1.connect_as(&new);
        }
        // Nobody signs in to a file, and how a site's is opened is not in its URL.
        if is_same && self.backend != Backend::Sqlite {
            *self.target.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(is_same)
    }

    fn pools(&self) -> (u64, Pools) {
        self.pools.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Whether the connections last for a transaction only.
    pub(crate) fn is_pooled(&self) -> bool {
        self.pools().1.pooled.is_some()
    }

    /// The connections to read from.
    pub(crate) fn reads(&self) -> Connections {
        let pools = self.pools().1;
        Connections { _use: pools.append.pool_use(), pool: pools.reads, pooled: pools.pooled }
    }

    /// The connections to write to.
    pub(crate) fn writes(&self) -> Connections {
        let pools = self.pools().1;
        Connections { _use: pools.append.pool_use(), pool: pools.writes, pooled: pools.pooled }
    }

    /// Reads the rows of a statement that writes and commits by itself.
    pub(crate) async fn write_sqlite(
        &self,
        sql: &'static str,
        values: SqliteArguments,
    ) -> Result<Vec<SqliteRow>, DbErr> {
        let Pools { writes, append: AppendConnections::Sqlite(kept), .. } = self.pools().1 else {
            return Err(wrong_database());
        };
        let mut connection = kept.take_only(writes.get_sqlite_connection_pool()).await.map_err(connect_error)?;
        self.statements.fetch_add(1, Ordering::Relaxed);
        let rows = sqlx::query_with(sql, values).fetch_all(&mut *connection).await.map_err(query_error)?;
        kept.keep(connection);
        Ok(rows)
    }

    /// As [`write_sqlite`](Self::write_sqlite), of a statement that gives nothing to read.
    pub(crate) async fn execute_sqlite(&self, sql: &'static str, values: SqliteArguments) -> Result<(), DbErr> {
        let Pools { writes, append: AppendConnections::Sqlite(kept), .. } = self.pools().1 else {
            return Err(wrong_database());
        };
        let mut connection = kept.take_only(writes.get_sqlite_connection_pool()).await.map_err(connect_error)?;
        self.statements.fetch_add(1, Ordering::Relaxed);
        let statement = sqlx::query_with(sql, values).execute(&mut *connection);
        #[cfg(unix)]
        let statement = self.bell.wait(statement);
        statement.await.map_err(query_error)?;
        kept.keep(connection);
        Ok(())
    }

    /// As [`write_sqlite`](Self::write_sqlite).
    pub(crate) async fn write_postgres(&self, sql: &'static str, values: PgArguments) -> Result<Vec<PgRow>, DbErr> {
        let pools = self.pools().1;
        if let Some(pooled) = pools.pooled {
            self.statements.fetch_add(1, Ordering::Relaxed);
            // Boxed, as others have it moved for every message too.
            return Box::pin(pooled.write(sql, values)).await;
        }
        let Pools { writes, append: AppendConnections::Postgres(kept), .. } = pools else {
            return Err(wrong_database());
        };
        let mut connection = kept.take(writes.get_postgres_connection_pool()).await.map_err(connect_error)?;
        self.statements.fetch_add(1, Ordering::Relaxed);
        let rows = sqlx::query_with(sql, values).fetch_all(&mut *connection).await.map_err(query_error)?;
        kept.keep(connection);
        Ok(rows)
    }

    /// Connections of their own for a rare and slow piece of work, whose statements may take `limit`.
    pub(crate) fn patient_pool(&self, limit: Duration) -> DatabaseConnection {
        let options = StoreOptions { max_connections: 2, statement_timeout: limit, ..self.options.clone() };
        counted(Pools::new(&self.target(), &options), &self.statements).writes
    }

    pub(crate) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    pub(crate) fn stats(&self) -> StoreStats {
        let [conflicts, broken, renewed] =
            [&self.conflicts, &self.broken, &self.renewed].map(|count| count.load(Ordering::Relaxed));
        StoreStats { conflicts, broken, renewed }
    }

    /// Begins a transaction that may write at once.
    pub(crate) async fn begin(&self) -> Result<Transaction<'_>, Fault> {
        let writes = self.writes();
        if let Some(pooled) = &writes.pooled {
            let inner = Inner::Unnamed(pooled.begin().await?);
            self.statements.fetch_add(1, Ordering::Relaxed);
            return Ok(Transaction { inner, db: self, _use: writes._use });
        }
        let inner = writes
            .pool
            .begin_with_options(TransactionOptions {
                // A deferred one fails, without waiting, when it turns into a writer too late.
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await?;
        self.statements.fetch_add(1, Ordering::Relaxed);
        Ok(Transaction { inner: Inner::Usual(inner), db: self, _use: writes._use })
    }

    /// A transaction as migrations want it: its statements have names. Behind a pooler those of earlier ones may still
    /// be there.
    pub(crate) async fn begin_migration(&self) -> Result<DatabaseTransaction, Fault> {
        let writes = self.writes();
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let transaction = writes.pool.begin_with_options(options).await?;
        self.statements.fetch_add(1, Ordering::Relaxed);
        if writes.pooled.is_some() {
            transaction.execute_unprepared(FORGET_NAMES).await?;
        }
        Ok(transaction)
    }

    /// Begins a transaction that reads everything as it is now, however long that takes.
    pub(crate) async fn begin_snapshot(&self) -> Result<Transaction<'_>, Fault> {
        let reads = self.reads();
        self.statements.fetch_add(1, Ordering::Relaxed);
        if let Some(pooled) = &reads.pooled {
            let unnamed = pooled.begin().await?;
            unnamed.execute_unprepared(SNAPSHOT_OF_POSTGRES).await?;
            return Ok(Transaction { inner: Inner::Unnamed(unnamed), db: self, _use: reads._use });
        }
        let mut options = TransactionOptions::default();
        if self.backend == Backend::MySql {
            options.isolation_level = Some(IsolationLevel::RepeatableRead);
            options.access_mode = Some(AccessMode::ReadOnly);
        }
        let usual = reads.pool.begin_with_options(options).await?;
        let snapshot = match self.backend {
            Backend::Postgres => Some(SNAPSHOT_OF_POSTGRES),
            Backend::MySql => Some(SNAPSHOT_OF_MYSQL),
            Backend::Sqlite => None,
        };
        if let Some(statement) = snapshot {
            usual.execute_unprepared(statement).await?;
        }
        Ok(Transaction { inner: Inner::Usual(usual), db: self, _use: reads._use })
    }

    /// Runs `attempt` until it succeeds, fails for good, or time is up.
    pub(crate) async fn run<T, F, A>(&self, attempt: F) -> Result<T, StoreError>
    where
        F: Fn() -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let limit = self.options.acquire_timeout + self.options.statement_timeout;
        let generation = self.pools().0;
        match self.attempts(limit, attempt).await {
            Ok(result) => result,
            Err(elapsed) => {
                self.replace_pools(generation);
                Err(StoreError::Unavailable(elapsed.into()))
            }
        }
    }

    /// As `run`, in less time.
    pub(crate) async fn run_within<T, F, A>(&self, limit: Duration, attempt: F) -> Result<T, StoreError>
    where
        F: Fn() -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        self.attempts(limit, attempt).await.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into())))
    }

    async fn attempts<T, F, A>(&self, limit: Duration, attempt: F) -> Result<Result<T, StoreError>, Elapsed>
    where
        F: Fn() -> A,
        A: Future<Output = Result<T, Fault>>,
    {
        let generation = self.pools().0;
        tokio::time::timeout(limit, async {
            let mut left = ATTEMPTS;
            loop {
                left -= 1;
                match attempt().await {
                    Ok(value) => return Ok(value),
                    Err(fault) if left > 0 && fault.retry_now() => {
                        let count = if fault.is_conflict() { &self.conflicts } else { &self.broken };
                        count.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(?fault, left, "trying again");
                        let most = 20 * u64::from(ATTEMPTS - left);
                        let pause = rand::rng().random_range(most / 4..=most);
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                    Err(fault) => {
                        if fault.is_read_only() {
                            // The primary has become a replica; its successor is found by connecting anew.
                            self.replace_pools(generation);
                        }
                        return Err(fault.into_error());
                    }
                }
            }
        })
        .await
    }

    /// Leaves all connections to their fate and makes new ones. After a time-out: the driver has none
    /// of its own, and a connection whose peer has vanished would keep its place in the pool until TCP
    /// gives up.
    fn replace_pools(&self, generation: u64) {
        if self.backend == Backend::Sqlite {
            return;
        }
        let mut pools = self.pools.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pools.0 == generation {
            tracing::warn!("the database did not answer in time or takes no writes: connecting anew");
            self.renewed.fetch_add(1, Ordering::Relaxed);
            *pools = (generation + 1, counted(Pools::new(&self.target(), &self.options), &self.statements));
        }
    }

    /// Reads all rows of a query.
    pub(crate) async fn select<T: FromQueryResult>(&self, query: &SelectStatement) -> Result<Vec<T>, StoreError> {
        self.run(|| async { Ok(rows(&self.reads(), query).await?) }).await
    }

    /// Reads rows of a query until they have `most` bytes of text, and two at least. Tells whether that left out any.
    pub(crate) async fn select_within<T: FromQueryResult>(
        &self,
        query: &SelectStatement,
        most: usize,
        bytes: fn(&T) -> usize,
    ) -> Result<(Vec<T>, bool), StoreError> {
        if most == usize::MAX {
            return Ok((self.select(query).await?, false));
        }
        self.run(|| async {
            let reads = self.reads();
            let mut page = Page { rows: Vec::new(), total: 0, most, bytes, is_cut: false };
            if let Some(pooled) = &reads.pooled {
                let transaction = pooled.begin().await?;
                transaction.read_while(DbBackend::Postgres.build(query), |row| page.take(&row)).await?;
            } else {
                let mut stream = StreamTrait::stream(&reads.pool, query).await?;
                while let Some(row) = stream.try_next().await? {
                    if !page.take(&row)? {
                        break;
                    }
                }
            }
            Ok((page.rows, page.is_cut))
        })
        .await
    }
}

/// Rows until they have `most` bytes of text, and two at least.
struct Page<T> {
    rows: Vec<T>,
    total: usize,
    most: usize,
    bytes: fn(&T) -> usize,
    /// Whether a row was left out.
    is_cut: bool,
}

impl<T: FromQueryResult> Page<T> {
    /// Takes a row; `false` once there is no room for it.
    fn take(&mut self, row: &QueryResult) -> Result<bool, DbErr> {
        let row = T::from_query_result(row, "")?;
        self.total += (self.bytes)(&row);
        self.is_cut = self.total > self.most && self.rows.len() >= 2;
        if !self.is_cut {
            self.rows.push(row);
        }
        Ok(!self.is_cut)
    }
}

/// A pool in use.
pub(crate) struct Connections {
    pool: DatabaseConnection,
    /// Each statement is a transaction then.
    pooled: Option<Pooled>,
    _use: Option<PoolUse>,
}

impl Connections {
    /// As SeaORM knows them.
    pub(crate) fn usual(&self) -> &DatabaseConnection {
        &self.pool
    }
}

#[async_trait]
impl ConnectionTrait for Connections {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let Some(pooled) = &self.pooled else { return self.pool.execute_raw(statement).await };
        let transaction = pooled.begin().await?;
        let done = transaction.execute_raw(statement).await?;
        transaction.commit().await.map(|()| done)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.pool.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let Some(pooled) = &self.pooled else { return self.pool.query_one_raw(statement).await };
        let transaction = pooled.begin().await?;
        let row = transaction.query_one_raw(statement).await?;
        transaction.commit().await.map(|()| row)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let Some(pooled) = &self.pooled else { return self.pool.query_all_raw(statement).await };
        let transaction = pooled.begin().await?;
        let rows = transaction.query_all_raw(statement).await?;
        transaction.commit().await.map(|()| rows)
    }
}

fn wrong_database() -> DbErr {
    DbErr::Custom("the statement is for another database".to_owned())
}

fn counted(mut pools: Pools, statements: &Arc<AtomicU64>) -> Pools {
    for pool in [&mut pools.reads, &mut pools.writes] {
        let statements = Arc::clone(statements);
        pool.set_metric_callback(move |info| {
            if info.statement.sql != PING {
                statements.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    pools
}

/// Reads all rows of a query on this connection.
pub(crate) async fn rows<T: FromQueryResult>(
    connection: &impl ConnectionTrait,
    query: &SelectStatement,
) -> Result<Vec<T>, DbErr> {
    connection.query_all(query).await?.iter().map(|row| T::from_query_result(row, "")).collect()
}

/// As [`rows`], each with what its column `now` says.
pub(crate) async fn dated_rows<T: FromQueryResult>(
    connection: &impl ConnectionTrait,
    query: &SelectStatement,
) -> Result<Vec<(T, i64)>, DbErr> {
    let rows = connection.query_all(query).await?;
    rows.iter().map(|row| Ok((T::from_query_result(row, "")?, row.try_get("", "now")?))).collect()
}

/// An open transaction; dropped, it rolls back.
pub(crate) struct Transaction<'a> {
    pub(crate) inner: Inner,
    db: &'a Db,
    _use: Option<PoolUse>,
}

impl Transaction<'_> {
    /// Reads rows of a query until they have `most` bytes of text, and two at least. Tells whether that left out any.
    pub(crate) async fn read_within<T: FromQueryResult>(
        &self,
        query: &SelectStatement,
        most: usize,
        bytes: fn(&T) -> usize,
    ) -> Result<(Vec<T>, bool), DbErr> {
        let mut page = Page { rows: Vec::new(), total: 0, most, bytes, is_cut: false };
        self.db.statements.fetch_add(1, Ordering::Relaxed);
        match &self.inner {
            Inner::Unnamed(unnamed) => {
                unnamed.read_while(DbBackend::Postgres.build(query), |row| page.take(&row)).await?;
            }
            Inner::Usual(usual) => {
                let mut stream = StreamTrait::stream(usual, query).await?;
                while let Some(row) = stream.try_next().await? {
                    if !page.take(&row)? {
                        break;
                    }
                }
            }
        }
        Ok((page.rows, page.is_cut))
    }

    pub(crate) async fn commit(self) -> Result<(), Fault> {
        self.db.statements.fetch_add(1, Ordering::Relaxed);
        match self.inner {
            Inner::Usual(usual) => usual.commit().await,
            Inner::Unnamed(unnamed) => unnamed.commit().await,
        }
        .map_err(Fault::Commit)
    }
}
