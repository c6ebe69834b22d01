//! The one error of this crate, and how errors of the three databases map onto it.

use std::borrow::Cow;

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, sqlx};

/// An error of any type, kept as the source of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in the store. No variant's text ever holds a password or a database URL.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or is too busy; the same call may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] BoxError),
    /// The schema is older than this program: these migrations are missing.
    #[error("the database schema is behind this program, run `gateway migrate`; missing: {}", pending.join(", "))]
    SchemaBehind {
        /// Names of the migrations that have not been applied.
        pending: Vec<String>,
    },
    /// The schema is newer than this program, which does not know these migrations.
    #[error("the database schema is newer than this program, install a newer gateway; unknown: {}", unknown.join(", "))]
    SchemaAhead {
        /// Names of the applied migrations that this program does not know.
        unknown: Vec<String>,
    },
    /// An argument that no database can take, such as a name with a NUL character; do not retry.
    #[error("invalid: {0}")]
    Invalid(String),
    /// Anything else: a bug, a lost table, a refused password.
    #[error("the database refused the request")]
    Other(#[source] BoxError),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// An error inside one attempt. A failed commit is kept apart, as its outcome may be unknown.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Nothing was committed.
    Db(DbErr),
    /// The answer to COMMIT was an error or never came.
    Commit(DbErr),
    /// Already one of ours; never retried.
    Store(StoreError),
}

impl From<DbErr> for Fault {
    fn from(error: DbErr) -> Self {
        Self::Db(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What to do about a database error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The database rolled the transaction back and asks to try again.
    Conflict,
    /// The connection broke.
    Lost,
    /// No connection to be had, out of space, starting up, shutting down.
    Away,
    /// The text or value cannot be stored.
    Invalid,
    Other,
}

impl Fault {
    /// The error of a statement that commits by itself: when the connection broke, it may have.
    pub(crate) fn committing(error: DbErr) -> Self {
        match classify(&error) {
            Class::Lost => Self::Commit(error),
            _ => Self::Db(error),
        }
    }

    /// Whether trying at once again is both safe and useful.
    pub(crate) fn retry_now(&self) -> bool {
        match self {
            Self::Db(error) => matches!(classify(error), Class::Conflict | Class::Lost),
            // After a lost COMMIT the transaction may stand: a repeat could store twice.
            Self::Commit(error) => classify(error) == Class::Conflict,
            Self::Store(_) => false,
        }
    }

    /// Whether it is another transaction that stood in the way.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Db(error) | Self::Commit(error) if classify(error) == Class::Conflict)
    }

    /// Whether the database has told that it takes no writes, as one does after a failover.
    pub(crate) fn is_read_only(&self) -> bool {
        let Self::Db(DbErr::Exec(error) | DbErr::Query(error)) = self else { return false };
        let RuntimeErr::SqlxError(error) = error else { return false };
        let sqlx::Error::Database(error) = error.as_ref() else { return false };
        match error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
            Some(error) => [1290, 1836].contains(&error.number()),
            None => error.code().is_some_and(|code| code == "25006"),
        }
    }

    pub(crate) fn into_error(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Commit(error) => match classify(&error) {
                Class::Other => StoreError::Other(error.into()),
                _ => StoreError::Unavailable(error.into()),
            },
            Self::Db(error) => error.into(),
        }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match classify(&error) {
            Class::Conflict | Class::Lost | Class::Away => Self::Unavailable(error.into()),
            Class::Invalid => Self::Invalid(error.to_string()),
            Class::Other => Self::Other(error.into()),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        DbErr::Conn(RuntimeErr::SqlxError(error.into())).into()
    }
}

/// No connection for a statement that goes past SeaORM: nothing was sent.
pub(crate) fn connect_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

/// An error of a statement that went past SeaORM.
pub(crate) fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// The same of one that gives no rows.
pub(crate) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

/// Whether SQLite undid a statement because of what is stored, other than for a room that was deleted meanwhile.
pub(crate) fn constraint_failed(error: &DbErr) -> bool {
    let code = code(error).and_then(|code| code.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == 19 && code != 787)
}

/// Whether SQLite undid a statement because a trigger of ours said so, and not for a key that is taken.
pub(crate) fn trigger_refused(error: &DbErr) -> bool {
    code(error).is_some_and(|code| code == "1811")
}

/// Whether PostgreSQL undid a statement because something unique is there already.
pub(crate) fn key_taken(error: &DbErr) -> bool {
    code(error).is_some_and(|code| code == "23505")
}

fn code(error: &DbErr) -> Option<Cow<'_, str>> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return None;
    };
    error.as_database_error()?.code()
}

fn classify(error: &DbErr) -> Class {
    match error {
        DbErr::ConnectionAcquire(ConnAcquireErr::Timeout | ConnAcquireErr::ConnectionClosed) => Class::Away,
        DbErr::Conn(RuntimeErr::SqlxError(error)) => match classify_sqlx(error) {
            // While connecting, a lost link means the server is not there.
            Class::Lost | Class::Conflict => Class::Away,
            class => class,
        },
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => classify_sqlx(error),
        _ => Class::Other,
    }
}

fn classify_sqlx(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Class::Lost,
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::BeginFailed => Class::Away,
        sqlx::Error::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
                classify_mysql(error.number())
            } else if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
                classify_postgres(&error.code().unwrap_or_default())
            } else {
                classify_sqlite(error.code().and_then(|code| code.parse().ok()).unwrap_or(0))
            }
        }
        _ => Class::Other,
    }
}

fn classify_postgres(code: &str) -> Class {
    match code {
        // serialization failure, deadlock, lock time-out; 23503 is a room deleted under a join
        "40001" | "40P01" | "55P03" | "23503" => Class::Conflict,
        // cancelled by statement_timeout, read-only; admin shutdown, crash shutdown, starting up
        "57014" | "25006" => Class::Away,
        "57P01" | "57P02" | "57P03" | "25P03" => Class::Lost,
        "22021" | "22001" | "22P05" => Class::Invalid,
        code if code.starts_with("08") => Class::Lost,
        // out of memory, disk full, too many connections, I/O error
        code if code.starts_with("53") || code.starts_with("58") => Class::Away,
        _ => Class::Other,
    }
}

fn classify_mysql(number: u16) -> Class {
    match number {
        // lock wait time-out, deadlock, record changed since last read; 1452 as 23503 above
        1205 | 1213 | 1020 | 1452 => Class::Conflict,
        // too many connections, disk full, shutdown, statement time-out, read-only server
        1040 | 1203 | 1021 | 1114 | 1053 | 1969 | 3024 | 1290 | 1836 => Class::Away,
        1927 | 4031 | 1152 | 1158 | 1159 | 1160 | 1161 => Class::Lost,
        1366 | 1406 => Class::Invalid,
        _ => Class::Other,
    }
}

fn classify_sqlite(code: i32) -> Class {
    match code & 0xff {
        // BUSY with its extended codes (also BUSY_SNAPSHOT), LOCKED of a shared cache
        5 | 6 => Class::Conflict,
        // I/O error, disk full, cannot open, read-only
        10 | 13 | 14 | 8 => Class::Away,
        // constraint: 787 is a foreign key, a room deleted under a join
        19 if code == 787 => Class::Conflict,
        18 => Class::Invalid,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_of_all_three_are_retried() {
        for code in ["40001", "40P01", "55P03"] {
            assert_eq!(classify_postgres(code), Class::Conflict, "{code}");
        }
        for number in [1205, 1213, 1020] {
            assert_eq!(classify_mysql(number), Class::Conflict, "{number}");
        }
        for code in [5, 517, 261, 6] {
            assert_eq!(classify_sqlite(code), Class::Conflict, "{code}");
        }
    }

    #[test]
    fn a_lost_commit_is_not_repeated() {
        let lost =
            || DbErr::Query(RuntimeErr::SqlxError(sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into()).into()));
        assert!(Fault::Db(lost()).retry_now());
        assert!(!Fault::Commit(lost()).retry_now());
        assert!(Fault::Commit(lost()).into_error().is_retryable());
    }
}
