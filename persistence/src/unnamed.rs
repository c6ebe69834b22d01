//! PostgreSQL behind a pooler that gives out its connections for one transaction at a time, such as PgBouncer.
//!
//! Nothing of a session lasts there: a statement that was prepared may be another server's by the next message, and a
//! setting may be some other program's. So every statement is unnamed and in a transaction, which begins with the
//! settings it needs.

use async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement,
    sqlx::{self, AssertSqlSafe, Executor, PgPool, Postgres, postgres::PgRow, query::Query},
};
use sea_query_sqlx::SqlxValues;
use tokio::sync::Mutex;

use crate::error::{connect_error, exec_error, query_error};

/// The connections of such a pooler.
#[derive(Clone)]
pub(crate) struct Pooled {
    pool: PgPool,
    /// What each transaction begins with.
    begin: String,
}

/// A transaction whose statements have no names.
pub(crate) struct Unnamed(Mutex<sqlx::Transaction<'static, Postgres>>);

/// A transaction of either kind.
pub(crate) enum Inner {
    Usual(DatabaseTransaction),
    Unnamed(Unnamed),
}

impl Pooled {
    pub(crate) fn new(pool: PgPool, begin: String) -> Self {
        Self { pool, begin }
    }

    pub(crate) async fn begin(&self) -> Result<Unnamed, DbErr> {
        // Boxed: it is 15 KiB, a part of the future of every statement, and those are moved some times.
        let begin = Box::pin(self.pool.begin_with(AssertSqlSafe(self.begin.clone())));
        Ok(Unnamed(Mutex::new(begin.await.map_err(connect_error)?)))
    }

    /// Reads the rows of a statement that writes, in a transaction of its own.
    pub(crate) async fn write(
        &self,
        sql: &'static str,
        values: sqlx::postgres::PgArguments,
    ) -> Result<Vec<PgRow>, DbErr> {
        let transaction = self.begin().await?;
        let rows = transaction.fetch(sql, values).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

fn query(statement: Statement) -> Query<'static, Postgres, SqlxValues> {
    let values = SqlxValues(statement.values.unwrap_or(sea_orm::Values(Vec::new())));
    sqlx::query_with(AssertSqlSafe(statement.sql), values).persistent(false)
}

impl Unnamed {
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        self.0.into_inner().commit().await.map_err(exec_error)
    }

    /// Rows of a statement whose values are ready.
    pub(crate) async fn fetch(
        &self,
        sql: &'static str,
        values: sqlx::postgres::PgArguments,
    ) -> Result<Vec<PgRow>, DbErr> {
        let mut transaction = self.0.lock().await;
        let rows = sqlx::query_with(sql, values).persistent(false).fetch_all(&mut **transaction).await;
        rows.map_err(query_error)
    }

    /// Reads rows until `take` has enough.
    pub(crate) async fn read_while(
        &self,
        statement: Statement,
        mut take: impl FnMut(QueryResult) -> Result<bool, DbErr>,
    ) -> Result<(), DbErr> {
        use futures_util::TryStreamExt as _;
        let mut transaction = self.0.lock().await;
        let mut rows = query(statement).fetch(&mut **transaction);
        while let Some(row) = rows.try_next().await.map_err(query_error)? {
            if !take(row.into())? {
                break;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ConnectionTrait for Unnamed {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut transaction = self.0.lock().await;
        query(statement).execute(&mut **transaction).await.map(Into::into).map_err(exec_error)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut transaction = self.0.lock().await;
        let done = transaction.execute(AssertSqlSafe(sql.to_owned())).await;
        done.map(Into::into).map_err(exec_error)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut transaction = self.0.lock().await;
        let row = query(statement).fetch_optional(&mut **transaction).await;
        row.map(|row| row.map(Into::into)).map_err(query_error)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut transaction = self.0.lock().await;
        let rows = query(statement).fetch_all(&mut **transaction).await;
        rows.map(|rows| rows.into_iter().map(Into::into).collect()).map_err(query_error)
    }
}

#[async_trait]
impl ConnectionTrait for Inner {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Usual(usual) => usual.get_database_backend(),
            Self::Unnamed(_) => DbBackend::Postgres,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self {
            Self::Usual(usual) => usual.execute_raw(statement).await,
            Self::Unnamed(unnamed) => unnamed.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self {
            Self::Usual(usual) => usual.execute_unprepared(sql).await,
            Self::Unnamed(unnamed) => unnamed.execute_unprepared(sql).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self {
            Self::Usual(usual) => usual.query_one_raw(statement).await,
            Self::Unnamed(unnamed) => unnamed.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Self::Usual(usual) => usual.query_all_raw(statement).await,
            Self::Unnamed(unnamed) => unnamed.query_all_raw(statement).await,
        }
    }
}
