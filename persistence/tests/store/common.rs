//! Fresh databases, and small words for what the tests do.

use persistence::{Append, Appended, Key, Membership, Store, StoreOptions, Stream};
use sea_orm::sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
use tempfile::TempDir;
use testkit::{mariadb::MariaDb, postgres::Postgres};
use tokio::sync::OnceCell;

const MEMORY: &str = "sqlite::memory:";

/// A database of one test.
pub(crate) struct Database {
    pub(crate) url: String,
    _dir: Option<TempDir>,
    /// In memory there is one store, which all share.
    memory: OnceCell<Store>,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", dir.path().join("gateway.db").display());
        Self { url, _dir: Some(dir), memory: OnceCell::new() }
    }

    pub(crate) fn memory() -> Self {
        Self { url: MEMORY.into(), _dir: None, memory: OnceCell::new() }
    }

    pub(crate) fn postgres() -> Self {
        Self { url: Postgres::shared().fresh_database(), _dir: None, memory: OnceCell::new() }
    }

    pub(crate) fn mariadb() -> Self {
        Self { url: MariaDb::shared().fresh_database(), _dir: None, memory: OnceCell::new() }
    }

    /// A store with connections of its own, unless it is in memory.
    pub(crate) async fn connect(&self) -> Store {
        let connect = || async { Store::connect(StoreOptions::new(&self.url)).await.unwrap() };
        if self.url == MEMORY { self.memory.get_or_init(connect).await.clone() } else { connect().await }
    }

    /// The first store, with the schema made.
    pub(crate) async fn store(&self) -> Store {
        let store = self.connect().await;
        store.migrate().await.unwrap();
        store
    }
}

impl Database {
    pub(crate) fn is_in_memory(&self) -> bool {
        self.url == MEMORY
    }

    /// Runs statements beside the store; nobody else gets at what is in memory.
    pub(crate) fn sql(&self, statements: &str) {
        match self.url.split_once("://") {
            Some(("postgres", _)) => drop(Postgres::shared().sql(&self.url, statements)),
            Some(("mysql", _)) => drop(MariaDb::shared().sql(&self.url, statements)),
            Some(("sqlite", _)) => {
                let (url, statements) = (self.url.clone(), statements.to_owned());
                std::thread::spawn(move || sqlite(&url, statements)).join().unwrap();
            }
            _ => panic!("{} cannot be asked", self.url),
        }
    }
}

/// Runs statements on a connection of their own.
fn sqlite(url: &str, statements: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        connection.execute(AssertSqlSafe(statements)).await.unwrap();
        connection.close().await.unwrap();
    });
}

/// Makes of each `async fn name(database: Database)` of this file a test on every database.
macro_rules! on_all_databases {
    ($($name:ident),+ $(,)?) => {
        on_databases! { sqlite: $($name),+ }
        on_databases! { memory: $($name),+ }
        on_databases! { postgres: $($name),+ }
        on_databases! { mariadb: $($name),+ }
    };
}

/// The same on one kind of database.
macro_rules! on_databases {
    ($database:ident: $($name:ident),+) => {
        mod $database {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::common::Database::$database()).await;
                }
            )+
        }
    };
}

pub(crate) fn chat(room: &str, from: &str, text: &str) -> Append {
    Append {
        stream: Stream::Room(room.into()),
        from_user: from.into(),
        message: text.into(),
        data: None,
        key: None,
        create_inbox: false,
        origin: None,
    }
}

pub(crate) fn notify(user: &str, text: &str) -> Append {
    Append { stream: Stream::Inbox(user.into()), create_inbox: true, ..chat("", "shop", text) }
}

pub(crate) fn client_key(user: &str, client_id: &str) -> Option<Key> {
    Some(Key::Client { user: user.into(), client_id: client_id.into() })
}

pub(crate) fn event_key(source: &str, id: &str) -> Option<Key> {
    Some(Key::Event { source: source.into(), id: id.into() })
}

/// Stores one message that must be accepted.
pub(crate) async fn stored(store: &Store, append: Append) -> Appended {
    store.append(&[append]).await.unwrap().pop().unwrap().unwrap()
}

pub(crate) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn member(room: &str, user: &str, create_room: bool) -> Membership {
    Membership { room: room.into(), user: user.into(), create_room }
}
