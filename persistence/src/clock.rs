//! Whose clock judges: the database's. It dates every row and says what is old, as nodes' clocks differ.
//!
//! SQLite is a part of its node and has no other clock; it is read here, as SQLite's own functions
//! know no microseconds.

use sea_orm::sea_query::{Expr, SimpleExpr};
use time::OffsetDateTime;

use crate::{Backend, values};

/// [`micros`] on PostgreSQL.
pub(crate) const POSTGRES_MICROS: &str = "CAST(date_part('epoch', clock_timestamp()) * 1000000 AS BIGINT)";

/// Microseconds since 1970, as a part of a statement. Read when a row is, so after the wait for its lock.
pub(crate) fn micros(backend: Backend) -> SimpleExpr {
    match backend {
        Backend::Sqlite => Expr::value(of_sqlite()),
        Backend::Postgres => Expr::cust(POSTGRES_MICROS),
        // The session's time zone is UTC (`options.rs`).
        Backend::MySql => Expr::cust("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', SYSDATE(6))"),
    }
}

/// Whole seconds since 1970, as a part of a statement.
pub(crate) fn seconds(backend: Backend) -> SimpleExpr {
    match backend {
        Backend::Sqlite => Expr::value(of_sqlite() / 1_000_000),
        Backend::Postgres => Expr::cust("CAST(floor(date_part('epoch', clock_timestamp())) AS BIGINT)"),
        Backend::MySql => Expr::cust("TIMESTAMPDIFF(SECOND, '1970-01-01', SYSDATE())"),
    }
}

/// [`micros`] on SQLite.
pub(crate) fn of_sqlite() -> i64 {
    values::micros(OffsetDateTime::now_utc())
}
