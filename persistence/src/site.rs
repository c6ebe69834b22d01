//! The site's own tables: sessions and users as Django's migrations make them, or an own user model's.
//!
//! They are only read, and nothing but the named columns, so a role needs no more than `SELECT` on those. The types of
//! columns differ by database and by user model; what a session says of its user is text. So the type of the id is
//! asked for once, and ids that cannot be of that type are nobody's.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    iter,
    sync::{Arc, Mutex, PoisonError},
};

use sea_orm::{
    ConnectionTrait, DbBackend, FromQueryResult, Statement, Value,
    sea_query::{Alias, Expr, ExprTrait, Func, IntoTableRef, Query, SelectStatement, SimpleExpr, TableRef, UnionType},
};
use time::{Date, Month, PrimitiveDateTime, Time};
use uuid::Uuid;

use crate::{Backend, Store, StoreError, StoreOptions, db::Db};

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

/// What was found of what was asked for.
#[derive(Debug)]
pub struct SiteRows<T> {
    /// Sessions, by their keys.
    pub sessions: HashMap<String, T>,
    /// Users, by their ids as they were asked for.
    pub users: HashMap<String, SiteUser>,
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

/// Of either table, so that one statement can read both.
#[derive(FromQueryResult)]
struct Row {
    is_user: i64,
    /// A session's key, a user's id.
    id: String,
    /// What a session holds, a user's name.
    text_1: Option<String>,
    /// When a session ends by the site's own time, a user's password.
    text_2: Option<String>,
    /// When a session ends in microseconds since 1970; whether a user may sign in.
    number: Option<i64>,
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

    /// As [`Store::take_credentials`].
    pub fn take_credentials(&self, url: &str) -> Result<bool, StoreError> {
        self.db.take_credentials(url)
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
            self.db.select::<Row>(&select).await?;
        }
        self.db.select::<Row>(&self.select_users().and_where(none()).to_owned()).await?;
        Ok(())
    }

    /// What `open` makes of the sessions with these keys, which are compared by bytes.
    pub async fn sessions<T>(
        &self,
        keys: &[&str],
        open: impl Fn(SiteSession) -> T,
    ) -> Result<HashMap<String, T>, StoreError> {
        Ok(self.read(keys, &[], open).await?.sessions)
    }

    /// The users with these ids, by the id as it was asked for.
    pub async fn users(&self, ids: &[&str]) -> Result<HashMap<String, SiteUser>, StoreError> {
        Ok(self.read(&[], ids, drop).await?.users)
    }

    /// Both of them, in one statement where there are not too many. A session may be large, so a few of them are in
    /// memory at a time.
    pub async fn read<T>(
        &self,
        keys: &[&str],
        ids: &[&str],
        open: impl Fn(SiteSession) -> T,
    ) -> Result<SiteRows<T>, StoreError> {
        let found = self.read_rows(keys, ids, open).await;
        if !ids.is_empty() && matches!(found, Err(StoreError::Other(_) | StoreError::Invalid(_))) {
            // The table may have changed under us.
            *self.id_kind.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        found
    }

    async fn read_rows<T>(
        &self,
        keys: &[&str],
        ids: &[&str],
        open: impl Fn(SiteSession) -> T,
    ) -> Result<SiteRows<T>, StoreError> {
        let kind = if ids.is_empty() { Kind::Text } else { self.id_kind().await? };
        let asked: Vec<(&str, Id)> = ids.iter().filter_map(|id| Some((*id, kind.read(id)?))).collect();
        let mut keys = distinct(keys.iter().copied().filter(|key| !key.contains('\0')));
        let mut ids = distinct(asked.iter().map(|(_, id)| id.clone()));
        let mut sessions = HashMap::with_capacity(keys.len());
        let mut users: HashMap<Id, SiteUser> = HashMap::with_capacity(ids.len());
        while !keys.is_empty() || !ids.is_empty() {
            let (some_keys, some_ids) = (first(&keys, self.chunk()), first(&ids, self.chunk()));
            let Some(select) = self.select(some_keys, some_ids, kind) else { break };
            let (rows, is_cut) = self.db.select_within(&select, SESSIONS_TEXT, Row::bytes).await?;
            let before = sessions.len() + users.len();
            for row in rows {
                if row.is_user != 0 {
                    if let Some(id) = kind.read(&row.id) {
                        users.insert(id.clone(), row.user(&id));
                    }
                } else if some_keys.contains(&&*row.id) {
                    // Databases that fold case find others as well.
                    let (key, session) = row.session();
                    sessions.insert(key, open(session));
                }
            }
            if is_cut && sessions.len() + users.len() > before {
                keys.retain(|key| !sessions.contains_key(*key));
                ids.retain(|id| !users.contains_key(id));
            } else {
                let (done_keys, done_ids) = (some_keys.len(), some_ids.len());
                keys.drain(..done_keys);
                ids.drain(..done_ids);
            }
        }
        let users = asked.into_iter().filter_map(|(asked, id)| Some((asked.to_owned(), users.get(&id)?.clone())));
        Ok(SiteRows { sessions, users: users.collect() })
    }

    /// One statement for all of these, if there are any.
    fn select(&self, keys: &[&str], ids: &[Id], kind: Kind) -> Option<SelectStatement> {
        // Both lists are as long as the longer one, so that there are no more statements than lengths.
        let length = keys.len().max(ids.len()).next_power_of_two();
        let sessions = (!keys.is_empty()).then(|| {
            let column = Expr::col(Alias::new("session_key"));
            self.select_sessions().and_where(column.is_in(padded(keys, length))).to_owned()
        });
        let users = (!ids.is_empty()).then(|| {
            let values: Vec<SimpleExpr> = ids.iter().map(|id| kind.value(id)).collect();
            let column = Expr::col(Alias::new(&self.tables.user_id));
            self.select_users().and_where(column.is_in(padded(&values, length))).to_owned()
        });
        match (sessions, users) {
            (Some(mut sessions), Some(users)) => Some(sessions.union(UnionType::All, users).to_owned()),
            (sessions, users) => sessions.or(users),
        }
    }

    fn chunk(&self) -> usize {
        if self.db.backend == Backend::Sqlite { CHUNK_OF_SQLITE } else { CHUNK }
    }

    /// What text is called here.
    fn text(&self) -> Alias {
        Alias::new(if self.db.backend == Backend::MySql { "char" } else { "text" })
    }

    /// What whole numbers are called here.
    fn whole(&self) -> &'static str {
        if self.db.backend == Backend::MySql { "signed" } else { "bigint" }
    }

    fn select_sessions(&self) -> SelectStatement {
        let column = |name: &str| Expr::col(Alias::new(name));
        let octets = Func::cust(Alias::new("octet_length")).arg(column("session_data"));
        let data = Expr::case(Expr::expr(octets).lte(SESSION_TEXT), column("session_data").cast_as(self.text()));
        let end = column("expire_date");
        let (local, unix) = match self.db.backend {
            Backend::Postgres => {
                let seconds = Func::cust(Alias::new("date_part")).arg(Expr::cust("'epoch'")).arg(end);
                let micros = Expr::expr(Func::round(Expr::expr(seconds).mul(1_000_000)));
                (Expr::cust("CAST(NULL AS text)"), micros.cast_as(Alias::new("bigint")))
            }
            Backend::MySql | Backend::Sqlite => {
                (end.cast_as(self.text()), Expr::cust(format!("CAST(NULL AS {})", self.whole())))
            }
        };
        let id = column("session_key").cast_as(self.text());
        self.select_row(&self.tables.sessions, 0, [id, SimpleExpr::Case(Box::new(data)), local, unix])
    }

    fn select_users(&self) -> SelectStatement {
        let column = |name: &str| Expr::col(Alias::new(name));
        let active = match (&self.tables.user_active, self.db.backend) {
            // One that is a truth value becomes a small number first.
            (Some(name), Backend::Postgres) => {
                column(name).cast_as(Alias::new("integer")).cast_as(Alias::new("bigint"))
            }
            (Some(name), _) => column(name).cast_as(Alias::new(self.whole())),
            (None, _) => Expr::cust(format!("CAST(1 AS {})", self.whole())),
        };
        let text = |name: &str| column(name).cast_as(self.text());
        let SiteTables { user_id, user_name, user_password, .. } = &*self.tables;
        self.select_row(&self.tables.users, 1, [text(user_id), text(user_name), text(user_password), active])
    }

    /// The columns of a [`Row`].
    fn select_row(&self, from: &str, is_user: u8, columns: [SimpleExpr; 4]) -> SelectStatement {
        let mut select = Query::select();
        select.expr_as(Expr::cust(format!("CAST({is_user} AS {})", self.whole())), Alias::new("is_user"));
        for (column, name) in columns.into_iter().zip(["id", "text_1", "text_2", "number"]) {
            select.expr_as(column, Alias::new(name));
        }
        select.from(table(from)).to_owned()
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

impl Row {
    fn bytes(&self) -> usize {
        self.text_1.as_ref().map_or(0, String::len)
    }

    /// A session with its key.
    fn session(self) -> (String, SiteSession) {
        let local = || SiteMoment::Local(self.text_2.as_deref().and_then(moment).unwrap_or(PrimitiveDateTime::MIN));
        let expires = self.number.map_or_else(local, SiteMoment::Unix);
        (self.id, SiteSession { data: self.text_1, expires })
    }

    /// The user with this id.
    fn user(self, id: &Id) -> SiteUser {
        SiteUser {
            id: id.written(),
            name: self.text_1.unwrap_or_default(),
            password: self.text_2.unwrap_or_default(),
            active: self.number.is_some_and(|active| active != 0),
        }
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

fn first<T>(values: &[T], most: usize) -> &[T] {
    &values[..values.len().min(most)]
}

/// Repeats the last value until there are so many.
fn padded<T: Clone>(values: &[T], length: usize) -> Vec<T> {
    let last = values.last().cloned();
    values.iter().cloned().chain(iter::repeat_n(last, length.saturating_sub(values.len())).flatten()).collect()
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
