//! What an append costs: `cargo bench -p persistence --bench append`.
//!
//! A SQLite file, PostgreSQL and MariaDB that sync to the disk, and SQLite in memory. One message at a time, 32 and
//! 1,000 in a batch; and beside them an empty statement on the same connection, which is what the way to the database
//! and back costs. Medians in µs a call.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::time::Instant;

use persistence::{Append, Store, StoreOptions, Stream};
use testkit::{mariadb::MariaDb, postgres::Postgres};

fn chat(room: usize) -> Append {
    Append {
        stream: Stream::Room(format!("room{room}")),
        from_user: "alice".into(),
        message: "How are you? I am fine, and this is as long as most messages are.".into(),
        data: None,
        key: None,
        create_inbox: false,
        origin: None,
    }
}

async fn median<F: Future<Output = ()>>(count: usize, call: impl Fn() -> F) -> f64 {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let since = Instant::now();
        call().await;
        times.push(since.elapsed().as_nanos() as f64 / 1000.0);
    }
    times.sort_by(f64::total_cmp);
    times[count / 2]
}

async fn measure(name: &str, url: String) {
    let store = Store::connect(StoreOptions::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    for room in 0..100 {
        store.create_room(&format!("room{room}"), None).await.unwrap();
    }
    let batch = |size: usize| (0..size).map(|at| chat(at % 100)).collect::<Vec<_>>();
    let append = async |size: usize, count: usize| {
        let batch = batch(size);
        let store = &store;
        let batch = &batch;
        median(count, || async move { assert!(store.append(batch).await.unwrap().iter().all(Result::is_ok)) }).await
    };
    append(1, 200).await;
    let empty = median(2000, || async { store.ping().await.unwrap() }).await;
    let (one, few, many) = (append(1, 1000).await, append(32, 200).await, append(1000, 20).await);
    println!("| {name} | {empty:.0} | {one:.0} | {few:.0} | {many:.0} |");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("| database | empty | 1 message | 32 | 1,000 |\n| --- | ---: | ---: | ---: | ---: |");
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let file = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
        measure("SQLite, file", file).await;
        measure("SQLite, memory", "sqlite::memory:".to_owned()).await;
        let postgres = Postgres::start_durable();
        measure("PostgreSQL", postgres.fresh_database()).await;
        let mariadb = MariaDb::start_durable();
        measure("MariaDB", mariadb.fresh_database()).await;
    });
}
