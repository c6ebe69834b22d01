//! Migrations.

use persistence::{Range, Store, StoreError, StoreOptions};
use testkit::{mariadb::MariaDb, postgres::Postgres};

use crate::common::*;

on_all_databases!(three_processes_migrate_at_once, an_old_schema_is_told_from_a_new_one);

async fn three_processes_migrate_at_once(database: Database) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let store = database.connect().await;
        tasks.spawn(async move {
            let applied = store.migrate().await.unwrap();
            store.check_schema().await.unwrap();
            (applied.len(), store.deployment_id().await.unwrap())
        });
    }
    let results = tasks.join_all().await;
    let status = database.connect().await.migration_status().await.unwrap();
    assert!(status.iter().all(|(_, applied)| *applied));
    assert_eq!(results.iter().map(|(applied, _)| applied).sum::<usize>(), status.len(), "each applied once");
    assert!(results.iter().all(|(_, id)| *id == results[0].1 && !id.is_nil()));
}

async fn an_old_schema_is_told_from_a_new_one(database: Database) {
    let store = database.connect().await;
    let behind = store.check_schema().await.unwrap_err();
    assert!(matches!(&behind, StoreError::SchemaBehind { pending } if !pending.is_empty()));
    assert!(behind.to_string().contains("gateway migrate") && !behind.is_retryable());
    let status = store.migration_status().await.unwrap();
    assert!(!status.is_empty() && status.iter().all(|(_, applied)| !applied));
    assert_eq!(store.migrate().await.unwrap().len(), status.len());
    assert!(store.migrate().await.unwrap().is_empty());
    store.check_schema().await.unwrap();

    let newer = "INSERT INTO gateway_migrations VALUES ('m29990101_000001_future', 0)";
    match store.backend() {
        persistence::Backend::Postgres => drop(Postgres::shared().sql(&database.url, newer)),
        persistence::Backend::MySql => drop(MariaDb::shared().sql(&database.url, newer)),
        persistence::Backend::Sqlite => return,
    }
    for error in [store.check_schema().await.unwrap_err(), store.migrate().await.unwrap_err()] {
        assert!(matches!(&error, StoreError::SchemaAhead { unknown } if unknown == &["m29990101_000001_future"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_memory_lives_as_long_as_its_store() {
    let database = Database::memory();
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            stored(&store, chat("lobby", "alice", "hello")).await;
            store.messages("lobby", Range::Latest, 1).await.unwrap().len()
        });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<usize>(), 20);
    assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, 20);
    // Another store is another database.
    assert!(Database::memory().connect().await.check_schema().await.is_err());
}

/// Everybody's messages are in it, and SQLite's own mode lets everybody read it.
#[tokio::test]
async fn a_database_in_a_file_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let open = async |name: &str, mode: &str| {
        let store = Store::connect(StoreOptions::new(format!("sqlite://{}?mode={mode}", file(name).display()))).await?;
        store.migrate().await?;
        Ok::<_, StoreError>(store)
    };
    let modes = |name: &str| {
        ["", "-wal", "-shm"].map(|suffix| {
            file(&format!("{name}{suffix}")).metadata().map_or(0, |about| about.permissions().mode() & 0o777)
        })
    };
    let _new = open("new.db", "rwc").await.unwrap();
    assert_eq!(modes("new.db"), [0o600; 3]);
    // One that is there is left as it is; who wants none made gets none.
    std::fs::write(file("old.db"), "").unwrap();
    std::fs::set_permissions(file("old.db"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let _old = open("old.db", "rwc").await.unwrap();
    assert_eq!(modes("old.db"), [0o644; 3]);
    assert!(open("none.db", "rw").await.is_err());
    assert!(!file("none.db").exists());
}

#[tokio::test]
async fn no_secret_in_any_error() {
    let port = testkit::net::free_port();
    for url in [
        format!("postgres://user:hunter2@127.0.0.1:{port}/db"),
        format!("mysql://user:hunter2@127.0.0.1:{port}/db"),
        "oracle://user:hunter2@host/db".to_owned(),
        "postgres://user:hunter2@host:notaport/db".to_owned(),
        "hunter2".to_owned(),
    ] {
        let mut options = StoreOptions::new(&url);
        options.acquire_timeout = std::time::Duration::from_millis(200);
        assert!(!format!("{options:?}").contains("hunter2"));
        let error = Store::connect(options).await.unwrap_err();
        let mut text = format!("{error} {error:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text += &format!(" {error} {error:?}");
            source = error.source();
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
