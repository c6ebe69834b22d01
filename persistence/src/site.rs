//! The site's own tables: sessions and users as Django's migrations make them, or an own user model's.
//!
//! They are only read, and nothing but the named columns, so a role needs no more than `SELECT` on those. The types of
//! columns differ by database and by user model; what a session says of its user is text. So the type of the id is
//! asked for once, and ids that cannot be of that type are nobody's.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use sea_orm::{
    ConnectionTrait, DbBackend, FromQueryResult, Statement, Value,
    sea_query::{Alias, Expr, ExprTrait, Func, IntoTableRef, Query, SelectStatement, SimpleExpr, TableRef},
};
use time::{Date, Month, PrimitiveDateTime, Time};
use uuid::Uuid;

use crate::{Backend, Store, StoreError, StoreOptions, db::Db, values::padded};

/// Most keys of one statement.
const CHUNK: usize = 1_000;
/// The same on SQLite, whose driver reads all rows of a statement ahead.
const CHUNK_OF_SQLITE: usize = 128;

/// Bytes of text a session may have: what a payload of 1 MiB takes, encoded. Of a longer one nothing is read.
const SESSION_TEXT: i32 = 1_500_000;

/// Bytes of sessions that are read at once; what is left is asked for again.
const SESSIONS_TEXT: usize = 8 << 20;

/// Names of the site's tables and columns. A table may be `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteTables {
    /// Table of the sessions (`django_session`).
    pub sessions: String,
    /// Table of the users (`auth_user`).
    pub users: String,
    /// Column of the primary key (`id`).
    pub user_id: String,
    /// Column of the name (`username`).
    pub user_name: String,
    /// Column of the password's hash (`password`).
    pub user_password: String,
    /// Column that says whether the user may sign in (`is_active`), if there is one.
    pub user_active: Option<String>,
}

/// A row of the sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSession {
    /// The signed text; none if it is too long to be one.
    pub data: Option<String>,
    /// When it ends.
    pub expires: SiteMoment,
}

/// A moment as the site's database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteMoment {
    /// Microseconds since 1970.
    Unix(i64),
    /// A date and time without a zone: the site's settings know it.
    Local(PrimitiveDateTime),
}

/// A row of the users.
#[derive(Clone, PartialEq, Eq)]
pub struct SiteUser {
    /// The primary key as Django writes it: a number, or a UUID in lower case with dashes.
    pub id: String,
    /// The name.
    pub name: String,
    /// The password's hash, as stored.
    pub password: String,
    /// Whether the user may sign in.
    pub active: bool,
}

impl fmt::Debug for SiteUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiteUser").field("id", &self.id).field("active", &self.active).finish_non_exhaustive()
    }
}

/// The site's database, read only. Clones share its connections.
#[derive(Clone)]
pub struct Site {
    db: Arc<Db>,
    tables: Arc<SiteTables>,
    /// Known once it has been asked for.
    id_kind: Arc<Mutex<Option<Kind>>>,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("backend", &self.db.backend).field("tables", &self.tables).finish_non_exhaustive()
    }
}

/// What ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    /// A type of the database's own.
    Uuid,
    /// A UUID as 32 hex digits.
    Hex,
    Text,
}

/// An id as values of its column are compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Id {
    Whole(i64),
    Uuid(Uuid),
    Text(String),
}

#[derive(FromQueryResult)]
struct SessionRow {
    session_key: String,
    session_data: Option<String>,
    unix: Option<i64>,
    local: Option<String>,
}

#[derive(FromQueryResult)]
struct UserRow {
    id: String,
    name: Option<String>,
    password: Option<String>,
    active: Option<i64>,
}

#[derive(FromQueryResult)]
struct KindRow {
    kind: String,
}

impl Site {
    /// In the gateway's own database.
    pub fn beside(store: &Store, tables: SiteTables) -> Self {
        Self { db: Arc::clone(&store.db), tables: Arc::new(tables), id_kind: Arc::default() }
    }

    /// In a database of its own. It is connected to when it is first asked.
    pub fn at(options: StoreOptions, tables: SiteTables) -> Result<Self, StoreError> {
        Ok(Self { db: Arc::new(Db::of_a_site(options)?), tables: Arc::new(tables), id_kind: Arc::default() })
    }

    /// How many statements have been sent over the same connections.
    pub fn statements(&self) -> u64 {
        self.db.statements()
    }

    /// Whether the users can be read, and the sessions if they are wanted: the tables and columns are there, and the
    /// role may read them.
    pub async fn check(&self, sessions: bool) -> Result<(), StoreError> {
        let none = || Expr::cust("1 = 0");
        if sessions {
            let select = self.select_sessions().and_where(none()).to_owned();
            self.db.select::<SessionRow>(&select).await?;
        }
        self.db.select::<UserRow>(&self.select_users().and_where(none()).to_owned()).await?;
        Ok(())
    }

    /// What `read` makes of the sessions with these keys, which are compared by bytes. A session may be large, so a few
    /// of them are in memory at a time.
    pub async fn sessions<T>(
        &self,
        keys: &[&str],
        read: impl Fn(SiteSession) -> T,
    ) -> Result<HashMap<String, T>, StoreError> {
        let mut found = HashMap::with_capacity(keys.len());
        for keys in distinct(keys.iter().copied().filter(|key| !key.contains('\0'))).chunks(self.chunk()) {
            let mut left = keys.to_vec();
            loop {
                let column = Expr::col(Alias::new("session_key"));
                let select = self.select_sessions().and_where(column.is_in(padded(&left))).to_owned();
                let (rows, is_cut) = self.db.select_within(&select, SESSIONS_TEXT, SessionRow::bytes).await?;
                let before = found.len();
                for row in rows {
                    // Databases that fold case find others as well.
                    if left.contains(&&*row.session_key) {
                        let (key, session) = row.into();
                        found.insert(key, read(session));
                    }
                }
                left.retain(|key| !found.contains_key(*key));
                if !is_cut || left.is_empty() || found.len() == before {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The users with these ids, by the id as it was asked for.
    pub async fn users(&self, ids: &[&str]) -> Result<HashMap<String, SiteUser>, StoreError> {
        let found = self.read_users(ids).await;
        if matches!(found, Err(StoreError::Other(_) | StoreError::Invalid(_))) {
            // The table may have changed under us.
            *self.id_kind.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        found
    }

    async fn read_users(&self, ids: &[&str]) -> Result<HashMap<String, SiteUser>, StoreError> {
        let kind = self.id_kind().await?;
        let asked: Vec<(&str, Id)> = ids.iter().filter_map(|id| Some((*id, kind.read(id)?))).collect();
        let mut found: HashMap<Id, SiteUser> = HashMap::with_capacity(asked.len());
        for ids in distinct(asked.iter().map(|(_, id)| id.clone())).chunks(self.chunk()) {
            let values: Vec<SimpleExpr> = ids.iter().map(|id| kind.value(id)).collect();
            let column = Expr::col(Alias::new(&self.tables.user_id));
            let select = self.select_users().and_where(column.is_in(padded(&values))).to_owned();
            for row in self.db.select::<UserRow>(&select).await? {
                if let Some(id) = kind.read(&row.id) {
                    let user = SiteUser {
                        id: id.written(),
                        name: row.name.unwrap_or_default(),
                        password: row.password.unwrap_or_default(),
                        active: row.active.is_some_and(|active| active != 0),
                    };
                    found.insert(id, user);
                }
            }
        }
        Ok(asked.into_iter().filter_map(|(asked, id)| Some((asked.to_owned(), found.get(&id)?.clone()))).collect())
    }

    fn chunk(&self) -> usize {
        if self.db.backend == Backend::Sqlite { CHUNK_OF_SQLITE } else { CHUNK }
    }

    /// What text is called here.
    fn text(&self) -> Alias {
        Alias::new(if self.db.backend == Backend::MySql { "char" } else { "text" })
    }

    fn select_sessions(&self) -> SelectStatement {
        let column = |name: &str| Expr::col(Alias::new(name));
        let octets = Func::cust(Alias::new("octet_length")).arg(column("session_data"));
        let data = Expr::case(Expr::expr(octets).lte(SESSION_TEXT), column("session_data").cast_as(self.text()));
        let end = column("expire_date");
        let (unix, local) = match self.db.backend {
            Backend::Postgres => {
                let seconds = Func::cust(Alias::new("date_part")).arg(Expr::cust("'epoch'")).arg(end);
                let micros = Expr::expr(Func::round(Expr::expr(seconds).mul(1_000_000)));
                (micros.cast_as(Alias::new("bigint")), Expr::cust("CAST(NULL AS text)"))
            }
            Backend::MySql => (Expr::cust("CAST(NULL AS signed)"), end.cast_as(self.text())),
            Backend::Sqlite => (Expr::cust("CAST(NULL AS integer)"), end.cast_as(self.text())),
        };
        Query::select()
            .expr_as(column("session_key").cast_as(self.text()), Alias::new("session_key"))
            .expr_as(SimpleExpr::Case(Box::new(data)), Alias::new("session_data"))
            .expr_as(unix, Alias::new("unix"))
            .expr_as(local, Alias::new("local"))
            .from(table(&self.tables.sessions))
            .to_owned()
    }

    fn select_users(&self) -> SelectStatement {
        let column = |name: &str| Expr::col(Alias::new(name));
        let active = match (&self.tables.user_active, self.db.backend) {
            // One that is a truth value becomes a small number first.
            (Some(name), Backend::Postgres) => {
                column(name).cast_as(Alias::new("integer")).cast_as(Alias::new("bigint"))
            }
            (Some(name), Backend::MySql) => column(name).cast_as(Alias::new("signed")),
            (Some(name), Backend::Sqlite) => column(name).cast_as(Alias::new("integer")),
            (None, Backend::MySql) => Expr::cust("CAST(1 AS signed)"),
            (None, _) => Expr::cust("CAST(1 AS bigint)"),
        };
        Query::select()
            .expr_as(column(&self.tables.user_id).cast_as(self.text()), Alias::new("id"))
            .expr_as(column(&self.tables.user_name).cast_as(self.text()), Alias::new("name"))
            .expr_as(column(&self.tables.user_password).cast_as(self.text()), Alias::new("password"))
            .expr_as(active, Alias::new("active"))
            .from(table(&self.tables.users))
            .to_owned()
    }

    async fn id_kind(&self) -> Result<Kind, StoreError> {
        let known = *self.id_kind.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = known {
            return Ok(kind);
        }
        let statement = self.ask_kind();
        let row = self
            .db
            .run(|| async {
                let row = self.db.reads().query_one_raw(statement.clone()).await?;
                Ok(row.map(|row| KindRow::from_query_result(&row, "")).transpose()?)
            })
            .await?;
        let Some(row) = row else {
            let (table, column) = (&self.tables.users, &self.tables.user_id);
            return Err(StoreError::Other(
                format!("there is no column {column} in {table}, or it may not be read").into(),
            ));
        };
        let kind = Kind::named(&row.kind);
        *self.id_kind.lock().unwrap_or_else(PoisonError::into_inner) = Some(kind);
        Ok(kind)
    }

    fn ask_kind(&self) -> Statement {
        let (schema, name) = split(&self.tables.users);
        let column = self.tables.user_id.as_str();
        match self.db.backend {
            Backend::Postgres => {
                let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
                let table = match schema {
                    Some(schema) => format!("{}.{}", quoted(schema), quoted(name)),
                    None => quoted(name),
                };
                Statement::from_sql_and_values(
                    DbBackend::Postgres,
                    "SELECT format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL) AS kind \
                     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                     WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped",
                    [Value::from(table), column.into()],
                )
            }
            Backend::MySql => Statement::from_sql_and_values(
                DbBackend::MySql,
                "SELECT CAST(LOWER(column_type) AS char) AS kind FROM information_schema.columns \
                 WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = ?",
                [Value::from(schema.map(str::to_owned)), name.into(), column.into()],
            ),
            Backend::Sqlite => Statement::from_sql_and_values(
                DbBackend::Sqlite,
                "SELECT LOWER(type) AS kind FROM pragma_table_info(?, ?) WHERE name = ?",
                [Value::from(name), schema.unwrap_or("main").into(), column.into()],
            ),
        }
    }
}

impl SessionRow {
    fn bytes(&self) -> usize {
        self.session_data.as_ref().map_or(0, String::len)
    }
}

impl From<SessionRow> for (String, SiteSession) {
    fn from(row: SessionRow) -> Self {
        let local = || SiteMoment::Local(row.local.as_deref().and_then(moment).unwrap_or(PrimitiveDateTime::MIN));
        let expires = row.unix.map_or_else(local, SiteMoment::Unix);
        (row.session_key, SiteSession { data: row.session_data, expires })
    }
}

impl Kind {
    fn named(kind: &str) -> Self {
        let kind = kind.to_ascii_lowercase();
        if kind.starts_with("uuid") {
            Self::Uuid
        } else if kind.contains("int") || kind.contains("serial") {
            Self::Whole
        } else if kind == "char(32)" {
            Self::Hex
        } else {
            Self::Text
        }
    }

    /// An id as text, or nothing if it cannot be one.
    fn read(self, text: &str) -> Option<Id> {
        match self {
            Self::Whole => text.parse().ok().map(Id::Whole),
            Self::Uuid => text.parse().ok().map(Id::Uuid),
            Self::Hex => text.trim_end().parse().map(Id::Uuid).ok().or_else(|| Self::Text.read(text)),
            Self::Text => (text.len() <= 1024 && !text.contains('\0')).then(|| Id::Text(text.to_owned())),
        }
    }

    fn value(self, id: &Id) -> SimpleExpr {
        match id {
            Id::Whole(number) => (*number).into(),
            Id::Uuid(uuid) if self == Self::Hex => uuid.simple().to_string().into(),
            Id::Uuid(uuid) => (*uuid).into(),
            Id::Text(text) => text.clone().into(),
        }
    }
}

impl Id {
    fn written(&self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Uuid(uuid) => uuid.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// Schema and name of a table.
fn split(table: &str) -> (Option<&str>, &str) {
    table.split_once('.').map_or((None, table), |(schema, name)| (Some(schema), name))
}

fn table(name: &str) -> TableRef {
    match split(name) {
        (Some(schema), name) => (Alias::new(schema), Alias::new(name)).into_table_ref(),
        (None, name) => Alias::new(name).into_table_ref(),
    }
}

fn distinct<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Reads `2026-01-31 23:59:58`, with or without parts of a second.
fn moment(text: &str) -> Option<PrimitiveDateTime> {
    let (date, time) = text.trim().split_once([' ', 'T'])?;
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<u16>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let date = Date::from_calendar_date(
        i32::from(year),
        Month::try_from(u8::try_from(month).ok()?).ok()?,
        u8::try_from(day).ok()?,
    );
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = time.splitn(3, ':').map(|part| part.parse::<u8>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0));
    let micros = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let time = Time::from_hms_micro(hour, minute, second, micros).ok()?;
    Some(PrimitiveDateTime::new(date.ok()?, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_their_column_takes() {
        let uuid = "12345678-1234-5678-9abc-def012345678";
        for (kind, text, id) in [
            ("integer", "17", Some("17")),
            ("bigint(20) unsigned", "17", Some("17")),
            ("integer", "seventeen", None),
            ("integer", "99999999999999999999", None),
            ("uuid", "12345678123456789ABCDEF012345678", Some(uuid)),
            ("char(32)", "12345678123456789abcdef012345678", Some(uuid)),
            ("char(32)", uuid, Some(uuid)),
            ("uuid", "1", None),
            ("varchar(150)", "some one", Some("some one")),
            ("varchar(150)", "nul\0", None),
        ] {
            assert_eq!(Kind::named(kind).read(text).map(|id| id.written()).as_deref(), id, "{kind} {text}");
        }
    }

    #[test]
    fn dates_without_a_zone() {
        for (text, micros) in [
            ("2026-01-31 23:59:58", 0),
            ("2026-01-31T23:59:58.5", 500_000),
            ("2026-01-31 23:59:58.000007", 7),
            ("2026-01-31 23:59:58.000007999", 7),
        ] {
            let moment = moment(text).unwrap();
            assert_eq!((moment.second(), moment.microsecond(), moment.day()), (58, micros, 31), "{text}");
        }
        for text in ["", "2026-01-31", "2026-13-31 00:00:00", "2026-02-30 00:00:00", "x"] {
            assert_eq!(moment(text), None, "{text}");
        }
    }
}
