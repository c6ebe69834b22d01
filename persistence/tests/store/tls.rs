//! TLS to the databases: who asks for the check gets it, or no connection.

use std::path::Path;

use persistence::{Store, StoreError, StoreOptions};
use testkit::{mariadb::MariaDb, postgres::Postgres, tls::TlsOptions};

use crate::common::*;

async fn connect(url: &str) -> Result<Store, StoreError> {
    let store = Store::connect(StoreOptions::new(url)).await?;
    store.ping().await?;
    Ok(store)
}

/// The connection is refused for a reason with one of these words, and no password is told.
async fn is_refused(url: &str, words: &[&str]) {
    let error = connect(url).await.expect_err(url);
    let text = format!("{error:?}");
    assert!(words.iter().any(|word| text.contains(word)), "{url}: {text}");
    assert!(!text.contains("hunter2"), "{text}");
}

async fn works(url: &str) -> Store {
    let store = connect(url).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    stored(&store, chat("lobby", "alice", "hello")).await;
    store
}

/// The kinds of certificate that nobody may accept, and what the error says of them.
fn bad() -> [(TlsOptions, &'static str); 2] {
    [
        (TlsOptions { names: vec!["db.example.org".into()], ..TlsOptions::default() }, "NotValidForName"),
        (TlsOptions { expired: true, ..TlsOptions::default() }, "Expired"),
    ]
}

fn postgres_url(server: &Postgres, mode: &str, authority: Option<&Path>) -> String {
    let url = server.url().replace("postgres@", "postgres:hunter2@");
    let authority = authority.map(|file| format!("&sslrootcert={}", file.display())).unwrap_or_default();
    format!("{url}?sslmode={mode}{authority}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_who_it_says_it_is_or_there_is_no_connection() {
    let server = Postgres::start();
    is_refused(&postgres_url(&server, "verify-full", None), &["server does not support TLS"]).await;
    let authority = server.switch_tls_on(&TlsOptions::default());
    let store = works(&postgres_url(&server, "verify-full", Some(&authority))).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'gateway' AND ssl";
    assert_ne!(server.sql("postgres", encrypted).trim(), "0");
    drop(store);
    // Nobody else knows this authority.
    is_refused(&postgres_url(&server, "verify-full", None), &["UnknownIssuer"]).await;
    for (options, reason) in bad() {
        let authority = server.switch_tls_on(&options);
        is_refused(&postgres_url(&server, "verify-full", Some(&authority)), &[reason]).await;
    }
}

fn mariadb_url(server: &MariaDb, mode: &str, authority: Option<&Path>) -> String {
    let authority = authority.map(|file| format!("&ssl-ca={}", file.display())).unwrap_or_default();
    format!("{}?ssl-mode={mode}{authority}", server.url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_who_it_says_it_is_or_there_is_no_connection() {
    let url = mariadb_url(MariaDb::shared(), "VERIFY_IDENTITY", None);
    // From 11.4 on it has a certificate of its own.
    is_refused(&url, &["does not support TLS", "UnknownIssuer"]).await;
    let server = MariaDb::start_with_tls(&TlsOptions::default());
    let store = works(&mariadb_url(&server, "VERIFY_IDENTITY", Some(server.authority()))).await;
    drop(store);
    is_refused(&mariadb_url(&server, "VERIFY_IDENTITY", None), &["UnknownIssuer"]).await;
    for (options, reason) in bad() {
        let server = MariaDb::start_with_tls(&options);
        is_refused(&mariadb_url(&server, "VERIFY_IDENTITY", Some(server.authority())), &[reason]).await;
    }
}
