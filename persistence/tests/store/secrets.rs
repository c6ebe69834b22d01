//! The deployment's secrets.

use std::time::Duration;

use persistence::Backend;

use crate::common::*;

on_all_databases!(
    nodes_that_start_together_have_one_secret_and_a_new_one_leaves_the_old_one_valid,
    a_database_of_before_gets_its_secret
);

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

async fn nodes_that_start_together_have_one_secret_and_a_new_one_leaves_the_old_one_valid(database: Database) {
    let store = database.store().await;
    let mut nodes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = database.connect().await;
        nodes.spawn(async move { store.secrets(WEEK).await.unwrap() });
    }
    let first = nodes.join_all().await;
    assert!(first.iter().all(|secrets| secrets.current == first[0].current && secrets.previous.is_none()));
    assert!(first[0].age < Duration::from_secs(60));
    let skew = first[0].now - time::OffsetDateTime::now_utc().unix_timestamp();
    assert!(skew.abs() < 60, "{skew}");

    // However many find it old, it is replaced once.
    let old = "UPDATE gateway_deployment SET secret_made_at = secret_made_at - 7 * 24 * 3600";
    if !sql(&database, old) {
        return;
    }
    let mut nodes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = database.connect().await;
        nodes.spawn(async move { store.secrets(WEEK).await.unwrap() });
    }
    let second = nodes.join_all().await;
    for secrets in second {
        assert_ne!(secrets.current, first[0].current);
        assert_eq!(secrets.previous.as_ref(), Some(&first[0].current));
    }
    let before = store.statements();
    store.secrets(WEEK).await.unwrap();
    assert_eq!(store.statements() - before, 1);
}

async fn a_database_of_before_gets_its_secret(database: Database) {
    let store = database.connect().await;
    store.migrate().await.unwrap();
    let id = store.deployment_id().await.unwrap();
    // As a release left it that knew no secrets.
    let undo = "ALTER TABLE gateway_deployment DROP COLUMN secret; ALTER TABLE gateway_deployment DROP COLUMN previous_secret; \
                ALTER TABLE gateway_deployment DROP COLUMN secret_made_at; \
                DELETE FROM gateway_migrations WHERE version = 'm20261129_000003_secrets'";
    if !sql(&database, undo) {
        return;
    }
    assert!(store.check_schema().await.is_err());
    // Broken off after the first column, as MySQL can leave it.
    let half = match store.backend() {
        Backend::Postgres => "bytea",
        _ => "binary(32)",
    };
    sql(&database, &format!("ALTER TABLE gateway_deployment ADD COLUMN secret {half}"));
    assert_eq!(store.migrate().await.unwrap(), ["m20261129_000003_secrets"]);
    let secrets = store.secrets(WEEK).await.unwrap();
    assert_eq!((store.deployment_id().await.unwrap(), secrets.previous), (id, None));
    let shown = format!("{:?}", store.secrets(WEEK).await.unwrap());
    assert!(shown.contains("current: Secret, previous: None"), "{shown}");
}

/// Runs statements beside the store; `false` where nobody else has the database.
fn sql(database: &Database, statements: &str) -> bool {
    if database.is_in_memory() {
        return false;
    }
    database.sql(statements);
    true
}
