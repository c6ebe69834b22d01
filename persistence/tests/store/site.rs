//! Reading a site's own tables, as Django makes them on each database.

use std::collections::HashMap;

use persistence::{Site, SiteMoment, SiteTables, StoreError, StoreOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, sqlite::SqliteConnectOptions};
use testkit::{mariadb::MariaDb, postgres::Postgres};

const UUID: &str = "12345678-1234-5678-9abc-def012345678";

fn tables() -> SiteTables {
    SiteTables {
        sessions: "django_session".into(),
        users: "auth_user".into(),
        user_id: "id".into(),
        user_name: "username".into(),
        user_password: "password".into(),
        user_active: Some("is_active".into()),
    }
}

/// People with a UUID and an address for a name, none of them ever inactive.
fn people(users: &str) -> SiteTables {
    SiteTables { users: users.into(), user_name: "e\"mail`".into(), user_active: None, ..tables() }
}

/// The tables of a site. `stamp` is the type of a date, `uuid` and its writing that of a UUID.
fn schema(stamp: &str, uuid: &str, stored: &str, boolean: &str, date: &str, people: &str, mail: &str) -> String {
    let (on, off) = if boolean == "boolean" { ("true", "false") } else { ("1", "0") };
    let long = if boolean == "bool" { "hex(zeroblob(750001))" } else { "repeat('x', 1500001)" };
    format!(
        "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data {text} NOT NULL, expire_date {stamp} \
         NOT NULL);\
         INSERT INTO django_session VALUES ('key-00000001', 'one', '{date}'), ('key-00000002', 'two', '{date}'),\
         ('key-00000003', {long}, '{date}');\
         CREATE TABLE auth_user (id integer PRIMARY KEY, password varchar(128) NOT NULL, username varchar(150) NOT NULL, \
         is_active {boolean} NOT NULL, secret varchar(10));\
         INSERT INTO auth_user VALUES (1, 'hash-1', 'alice', {on}, NULL), (2, 'hash-2', 'ünï-名前', {off}, NULL);\
         CREATE TABLE {people} (id {uuid} PRIMARY KEY, password varchar(128) NOT NULL, {mail} varchar(150) NOT NULL);\
         INSERT INTO {people} VALUES ('{stored}', 'hash-3', 'grace@example.com');",
        text = if stamp.starts_with("datetime(6)") { "longtext" } else { "text" },
    )
}

async fn check(site: &Site, is_local: bool) {
    site.check(true).await.unwrap();
    let keys = ["key-00000001", "key-00000002", "KEY-00000002", "key-00000003", "missing", "nul\0", "key-00000001"];
    let found = site.sessions(&keys, |session| session).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found["key-00000001"].data.as_deref(), Some("one"));
    assert_eq!(found["key-00000003"].data, None, "too long");
    match found["key-00000002"].expires {
        // 2026-01-15 12:30:00.000007 UTC
        SiteMoment::Unix(micros) if !is_local => assert_eq!(micros, 1_768_480_200_000_007),
        SiteMoment::Local(date) if is_local => {
            assert_eq!((date.hour(), date.minute(), date.microsecond()), (12, 30, 7));
        }
        other => panic!("{other:?}"),
    }
    let users = site.users(&["1", "2", "3", "no number", "-1", "1"]).await.unwrap();
    let user = |id: &str| users.get(id).map(|user| (&*user.id, &*user.name, &*user.password, user.active));
    assert_eq!(user("1"), Some(("1", "alice", "hash-1", true)));
    assert_eq!(user("2"), Some(("2", "ünï-名前", "hash-2", false)));
    assert_eq!(users.len(), 2);
    assert!(site.users(&[]).await.unwrap().is_empty());
    // Both with one statement.
    let before = site.statements();
    let both = site.read(&keys, &["1", "2", "3"], |session| session.data).await.unwrap();
    assert_eq!(site.statements() - before, 1);
    let found: HashMap<String, Option<String>> = found.into_iter().map(|(key, session)| (key, session.data)).collect();
    assert_eq!((both.sessions, both.users), (found, users));
}

async fn check_people(site: &Site) {
    site.check(false).await.unwrap();
    let simple = UUID.replace('-', "");
    let users = site.users(&[UUID, &simple, "1", "no uuid"]).await.unwrap();
    assert_eq!(users.len(), 2);
    for asked in [UUID, &simple] {
        let user = &users[asked];
        assert_eq!((&*user.id, &*user.name, user.active), (UUID, "grace@example.com", true));
    }
}

fn at(url: &str, tables: SiteTables) -> Site {
    Site::at(StoreOptions::new(url), tables).unwrap()
}

#[tokio::test]
async fn a_site_on_postgres_is_read_by_a_role_that_may_read_those_columns_only() {
    let server = Postgres::shared();
    let url = server.fresh_database();
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    let date = "2026-01-15 13:30:00.000007+01";
    let sql = schema("timestamptz", "uuid", UUID, "boolean", date, "\"Shop\".people", "\"e\"\"mail`\"");
    let role = format!("reader_{database}");
    server.sql(database, &format!("CREATE SCHEMA \"Shop\"; {sql}"));
    server.sql(
        database,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT ON django_session TO {role}; GRANT SELECT (id, username, password, \
             is_active) ON auth_user TO {role}; GRANT USAGE ON SCHEMA \"Shop\" TO {role}; GRANT SELECT ON \"Shop\".people \
             TO {role};"
        ),
    );
    let url = url.replace("postgres@", &format!("{role}@"));
    let site = at(&url, tables());
    check(&site, false).await;
    check_people(&at(&url, people("Shop.people"))).await;
    let wrong = at(&url, SiteTables { user_password: "secret".into(), ..tables() });
    assert!(matches!(wrong.check(true).await, Err(StoreError::Other(_))));
    let missing = at(&url, SiteTables { users: "nowhere".into(), ..tables() });
    assert!(matches!(missing.users(&["1"]).await, Err(StoreError::Other(_))));
    // Many are read with few statements, and large ones a few at a time.
    server.sql(
        database,
        "INSERT INTO django_session SELECT 'many-' || n, repeat('y', 20000), now() FROM generate_series(1, 1000) n",
    );
    let keys: Vec<String> = (1..=1000).map(|n| format!("many-{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let before = site.statements();
    let found = site.sessions(&keys, |session| session.data.map(|data| data.len())).await.unwrap();
    assert!(found.len() == 1000 && found.values().all(|length| *length == Some(20_000)));
    assert!(site.statements() - before <= 4, "{}", site.statements() - before);
    let both = site.read(&keys, &["1", "2"], |session| session.data.map(|data| data.len())).await.unwrap();
    assert_eq!((both.sessions.len(), both.users.len()), (1000, 2));
}

#[tokio::test]
async fn a_site_on_mariadb_is_read() {
    let server = MariaDb::shared();
    let url = server.fresh_database();
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    let date = "2026-01-15 12:30:00.000007";
    let hex = UUID.replace('-', "");
    server.sql(database, "ALTER DATABASE CHARACTER SET utf8mb4");
    let sql = schema("datetime(6)", "char(32)", &hex, "tinyint(1)", date, "people", "`e\"mail```");
    server.sql(database, &format!("SET NAMES utf8mb4; {sql}"));
    check(&at(&url, tables()), true).await;
    check_people(&at(&url, people("people"))).await;
    // As Django 5 makes it where the server has the type.
    server.sql(database, "CREATE TABLE natives (id uuid PRIMARY KEY, password varchar(128), `e\"mail``` varchar(150))");
    server.sql(database, &format!("INSERT INTO natives VALUES ('{UUID}', 'hash', 'grace@example.com')"));
    check_people(&at(&url, people(&format!("{database}.natives")))).await;
}

#[tokio::test]
async fn a_site_in_a_sqlite_file_is_read_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("site.sqlite3");
    let date = "2026-01-15 12:30:00.000007";
    let hex = UUID.replace('-', "");
    let mut connection = SqliteConnectOptions::new().filename(&file).create_if_missing(true).connect().await.unwrap();
    let sql = schema("datetime", "char(32)", &hex, "bool", date, "people", "\"e\"\"mail`\"");
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
    let before = std::fs::read(&file).unwrap();
    let url = format!("sqlite://{}", file.display());
    check(&at(&url, tables()), true).await;
    check_people(&at(&url, people("people"))).await;
    assert!(std::fs::read(&file).unwrap() == before, "not even the way it is written has changed");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let missing = at(&format!("sqlite://{}/none?mode=rwc", directory.path().display()), tables());
    assert!(matches!(missing.check(true).await, Err(StoreError::Unavailable(_))));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
