//! How to reach a database.

use std::{fmt, str::FromStr, time::Duration};

use sea_orm::sqlx::{
    ConnectOptions as _,
    mysql::MySqlConnectOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{Backend, StoreError, private, values::MAX_LIST};

/// Rows of a foreign SQLite file that are read ahead.
const ROWS_AHEAD: usize = 128;

/// Where the database is and how long to wait for it.
#[derive(Clone)]
pub struct StoreOptions {
    /// `sqlite://file.db?mode=rwc`, `sqlite::memory:`, `postgres://…` or `mysql://…`. May hold a password: `Debug` hides it.
    pub url: String,
    /// Most connections open at once (10). An in-memory SQLite always has one.
    pub max_connections: u32,
    /// How long to wait for a free connection (2 s).
    pub acquire_timeout: Duration,
    /// How long one statement may take, where the database can bound it (10 s). A whole call may
    /// take this and `acquire_timeout` together, on every database.
    pub statement_timeout: Duration,
}

impl StoreOptions {
    /// Options with the defaults for this URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("url", &scheme(&self.url))
            .field("max_connections", &self.max_connections)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// All of a URL that may be shown.
fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

/// A parsed URL. The pools are made by hand, as SeaORM's own way in puts the URL into its spans.
#[derive(Clone)]
pub(crate) enum Target {
    Sqlite {
        options: SqliteConnectOptions,
        in_memory: bool,
        create: bool,
    },
    Postgres {
        options: PgConnectOptions,
        /// Connections last for a transaction: `pgbouncer=true` in the URL.
        pooled: bool,
    },
    MySql(MySqlConnectOptions),
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        // The parser's own text is dropped: it may repeat parts of the URL.
        let invalid = |_| StoreError::Invalid(format!("the {} database URL cannot be parsed", scheme(url)));
        match scheme(url) {
            "sqlite" => {
                let in_memory = url.contains(":memory:") || url.contains("mode=memory");
                let create = url.contains("mode=rwc");
                let options = SqliteConnectOptions::from_str(url)
                    .map_err(invalid)?
                    .journal_mode(SqliteJournalMode::Wal)
                    // FULL: an acknowledged message survives a power failure.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(5))
                    .foreign_keys(true)
                    .statement_cache_capacity(256)
                    // As many as a list may have: with fewer, the connection's thread and ours would
                    // wake each other up row by row.
                    .row_buffer_size(MAX_LIST)
                    .disable_statement_logging();
                Ok(Self::Sqlite { options, in_memory, create })
            }
            "postgres" | "postgresql" => {
                let (url, pooled) = without_pgbouncer(url)?;
                let options = PgConnectOptions::from_str(&url)
                    .map_err(invalid)?
                    .application_name("gateway")
                    .disable_statement_logging();
                let options = match pooled {
                    // A pooler knows no other parameters at the start of a session than the usual ones.
                    true => options.statement_cache_capacity(0).extra_float_digits(None),
                    false => options.statement_cache_capacity(256),
                };
                Ok(Self::Postgres { options, pooled })
            }
            "mysql" | "mariadb" => Ok(Self::MySql(
                MySqlConnectOptions::from_str(url)
                    .map_err(invalid)?
                    .charset("utf8mb4")
                    // As `clock.rs` reads it.
                    .timezone("+00:00".to_owned())
                    .statement_cache_capacity(256)
                    .disable_statement_logging(),
            )),
            _ => {
                Err(StoreError::Invalid("the database URL must begin with sqlite:, postgres:// or mysql://".to_owned()))
            }
        }
    }

    /// As [`parse`](Self::parse), of a database that is another program's and only read: nothing of a file is changed,
    /// not even how it is written.
    pub(crate) fn parse_foreign(url: &str) -> Result<Self, StoreError> {
        let target = Self::parse(url)?;
        let Self::Sqlite { options, in_memory, .. } = target else { return Ok(target) };
        if in_memory {
            return Err(StoreError::Invalid("a database in memory is its process's own".to_owned()));
        }
        let options = SqliteConnectOptions::new()
            .filename(options.get_filename())
            .read_only(true)
            .busy_timeout(Duration::from_secs(5))
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        Ok(Self::Sqlite { options, in_memory, create: false })
    }

    /// Sees to it that a database in a file is its owner's only.
    pub(crate) fn keep_private(&self) {
        if let Self::Sqlite { options, in_memory: false, create } = self {
            let file = options.get_filename();
            if *create {
                private::create(file);
            }
            private::check(file);
        }
    }

    /// Whether this is the same database, whoever signs in to it.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            // A file has no account, and the options of a foreign one are not those of its URL.
            (Self::Sqlite { options: own, .. }, Self::Sqlite { options: other, .. }) => {
                own.get_filename() == other.get_filename()
            }
            (Self::Postgres { options: own, pooled }, Self::Postgres { options: other, pooled: other_pooled }) => {
                let place = |options: &PgConnectOptions| {
                    let socket = options.get_socket().cloned();
                    (
                        options.get_host().to_owned(),
                        options.get_port(),
                        socket,
                        options.get_database().map(str::to_owned),
                    )
                };
                pooled == other_pooled && place(own) == place(other)
            }
            (Self::MySql(own), Self::MySql(other)) => {
                let place = |options: &MySqlConnectOptions| {
                    let socket = options.get_socket().cloned();
                    (
                        options.get_host().to_owned(),
                        options.get_port(),
                        socket,
                        options.get_database().map(str::to_owned),
                    )
                };
                place(own) == place(other)
            }
            _ => false,
        }
    }
    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Sqlite { .. } => Backend::Sqlite,
            Self::Postgres { .. } => Backend::Postgres,
            Self::MySql(_) => Backend::MySql,
        }
    }
}

/// Takes `pgbouncer=true` out of a URL, where sqlx would not know it.
fn without_pgbouncer(url: &str) -> Result<(String, bool), StoreError> {
    let Some((place, parameters)) = url.split_once('?') else { return Ok((url.to_owned(), false)) };
    let mut pooled = false;
    let mut others = Vec::new();
    for parameter in parameters.split('&') {
        match parameter.split_once('=') {
            Some(("pgbouncer", "true" | "1")) => pooled = true,
            Some(("pgbouncer", "false" | "0")) => pooled = false,
            Some(("pgbouncer", _)) => {
                return Err(StoreError::Invalid("pgbouncer in the database URL must be true or false".to_owned()));
            }
            _ => others.push(parameter),
        }
    }
    Ok((format!("{place}?{}", others.join("&")), pooled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_database() {
        for (url, backend) in [
            ("sqlite::memory:", Backend::Sqlite),
            ("sqlite://gateway.db?mode=rwc", Backend::Sqlite),
            ("postgres://u:p@h/d?sslmode=verify-full", Backend::Postgres),
            ("postgresql://h/d", Backend::Postgres),
            ("postgres://h/d?pgbouncer=true&sslmode=disable", Backend::Postgres),
            ("mysql://u@h:3307/d", Backend::MySql),
            ("mariadb://u@h/d", Backend::MySql),
        ] {
            assert_eq!(Target::parse(url).map(|target| target.backend()).ok(), Some(backend), "{url}");
        }
    }

    #[test]
    fn a_pooler_is_told_by_the_url() {
        for (url, rest, pooled) in [
            ("postgres://h/d", "postgres://h/d", false),
            ("postgres://h/d?pgbouncer=true", "postgres://h/d?", true),
            ("postgres://h/d?sslmode=disable&pgbouncer=1&x=y", "postgres://h/d?sslmode=disable&x=y", true),
            ("postgres://h/d?pgbouncer=false", "postgres://h/d?", false),
        ] {
            assert_eq!(without_pgbouncer(url).unwrap(), (rest.to_owned(), pooled), "{url}");
        }
        assert!(Target::parse("postgres://h/d?pgbouncer=maybe").is_err());
    }

    #[test]
    fn a_password_shows_nowhere() {
        let options = StoreOptions::new("postgres://u:hunter2@[bad/x");
        assert!(!format!("{options:?}").contains("hunter2"));
        let error = Target::parse(&options.url).err().expect("must fail");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let error = Target::parse("mongo://u:hunter2@h/x").err().expect("must fail");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
