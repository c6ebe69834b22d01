//! Databases that die, freeze and come back.

use std::time::{Duration, Instant};

use persistence::{Append, Range, Store, StoreError, StoreOptions};
use sea_orm::ConnectionTrait;
use testkit::{
    mariadb::MariaDb,
    postgres::Postgres,
    proxy::{ChaosProxy, Way},
};

use crate::common::*;

/// What the two servers have in common.
trait Server {
    fn url(&self) -> String;
    fn kill9(&mut self);
    fn restart(&mut self);
    fn pause(&mut self);
    fn resume(&mut self);
}

macro_rules! server {
    ($type:ty) => {
        impl Server for $type {
            fn url(&self) -> String {
                self.url()
            }
            fn kill9(&mut self) {
                self.kill9();
            }
            fn restart(&mut self) {
                self.restart();
            }
            fn pause(&mut self) {
                self.pause();
            }
            fn resume(&mut self) {
                self.resume();
            }
        }
    };
}
server!(Postgres);
server!(MariaDb);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_dies_and_comes_back() {
    dies_and_comes_back(Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_dies_and_comes_back() {
    dies_and_comes_back(MariaDb::start()).await;
}

async fn connect(server: &impl Server, change: impl FnOnce(&mut StoreOptions)) -> Store {
    let mut options = StoreOptions::new(server.url());
    change(&mut options);
    let store = Store::connect(options).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    store
}

/// Appends until one succeeds; each failure must be one to retry.
async fn append_again(store: &Store) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match store.append(&[chat("lobby", "alice", "again")]).await {
            Ok(results) => return results[0].as_ref().unwrap().seq,
            Err(error) => assert!(error.is_retryable() && Instant::now() < deadline, "{error:?}"),
        }
    }
}

async fn dies_and_comes_back(mut server: impl Server) {
    let store = connect(&server, |options| options.statement_timeout = Duration::from_secs(10)).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        // Killed under load: what was acknowledged must be there afterwards.
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let store = store.clone();
                async move {
                    let mut acknowledged = Vec::new();
                    for n in 0.. {
                        let append = chat("lobby", "alice", &format!("{round}-{writer}-{n}"));
                        match store.append(&[append]).await {
                            Ok(results) => acknowledged.push(results[0].as_ref().unwrap().id),
                            Err(error) => {
                                assert!(error.is_retryable(), "{error:?}");
                                break;
                            }
                        }
                    }
                    acknowledged
                }
            })
            .collect();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in writers {
            tasks.spawn(writer);
        }
        while store.messages("lobby", Range::Latest, 1).await.unwrap().is_empty() {}
        server.kill9();
        let before = acknowledged.len();
        acknowledged.extend(tasks.join_all().await.into_iter().flatten());
        assert!(round > 0 || acknowledged.len() > before);
        assert!(store.ping().await.unwrap_err().is_retryable());
        assert!(store.room("lobby").await.unwrap_err().is_retryable());
        server.restart();
        append_again(&store).await;
        store.ping().await.unwrap();
    }
    let read = store.messages("lobby", Range::After(0), 1_000_000).await.unwrap();
    assert!(read.iter().enumerate().all(|(at, message)| message.seq == at as u64 + 1), "no hole");
    let ids: std::collections::HashSet<_> = read.iter().map(|message| message.id).collect();
    assert!(acknowledged.iter().all(|id| ids.contains(id)), "nothing acknowledged is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_freezes() {
    freezes(Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_freezes() {
    freezes(MariaDb::start()).await;
}

async fn freezes(mut server: impl Server) {
    let store = connect(&server, |options| {
        options.acquire_timeout = Duration::from_millis(500);
        options.statement_timeout = Duration::from_secs(1);
    })
    .await;
    let first = append_again(&store).await;
    server.pause();
    let mut tasks = tokio::task::JoinSet::new();
    let asked = Instant::now();
    // More than there are connections: some wait for an answer, some for a connection.
    for _ in 0..12 {
        let store = store.clone();
        tasks.spawn(async move { store.append(&[chat("lobby", "alice", "hello")]).await });
    }
    for result in tasks.join_all().await {
        assert!(result.as_ref().is_err_and(StoreError::is_retryable), "{result:?}");
    }
    assert!(store.ping().await.unwrap_err().is_retryable());
    assert!(asked.elapsed() < Duration::from_secs(8), "bounded: {:?}", asked.elapsed());
    // Also while it stays frozen: the pool was replaced, so these fail for want of an answer.
    assert!(store.room("lobby").await.unwrap_err().is_retryable());
    server.resume();
    assert!(append_again(&store).await > first);
}

/// Append keeps its connection; one that was idle is looked at before it is trusted with a message again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_while_idle_costs_no_message() {
    let server = Postgres::shared();
    let (url, port) = (server.fresh_database(), server.port());
    let link = ChaosProxy::to(port);
    let store = Store::connect(StoreOptions::new(url.replace(&format!(":{port}/"), &format!(":{}/", link.port()))))
        .await
        .unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    for seq in 1..=3 {
        assert_eq!(stored(&store, chat("lobby", "alice", "hello")).await.seq, seq);
        link.cut();
        // It is time itself that makes a connection idle: two seconds of it.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_head_is_waited_for_and_then_given_up() {
    let server = Postgres::shared();
    let url = server.fresh_database();
    let mut options = StoreOptions::new(&url);
    options.statement_timeout = Duration::from_secs(1);
    let store = Store::connect(options).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    let mut holder = tokio::task::JoinSet::new();
    holder.spawn_blocking(move || {
        server.sql(&url, "BEGIN; SELECT 1 FROM gateway_rooms FOR UPDATE; SELECT pg_sleep(6); COMMIT");
    });
    // Until the lock is held, appends pass.
    let error = loop {
        if let Err(error) = store.append(&[chat("lobby", "alice", "x")]).await {
            break error;
        }
    };
    assert!(error.is_retryable(), "{error:?}");
    append_again(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_postgres_cut_anywhere_in_an_append_leaves_one_row_after_a_repeat() {
    let server = Postgres::shared();
    cut_anywhere(&server.fresh_database(), server.port()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_mariadb_cut_anywhere_in_an_append_leaves_one_row_after_a_repeat() {
    let server = MariaDb::shared();
    cut_anywhere(&server.fresh_database(), server.port()).await;
}

/// Cuts after every few bytes that an append sends and receives, COMMIT and its answer included. Whatever
/// the store said, the same key again leaves one row and no hole.
async fn cut_anywhere(url: &str, port: u16) {
    const STEP: usize = 16;
    let link = ChaosProxy::to(port);
    let through = url.replace(&format!(":{port}/"), &format!(":{}/", link.port()));
    assert_ne!(through, url);
    let mut options = StoreOptions::new(through);
    options.max_connections = 1;
    let store = Store::connect(options).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    let keyed = |n: usize| Append { key: client_key("alice", &n.to_string()), ..chat("lobby", "alice", "hello") };
    let (mut count, mut unknown) = (0, 0);
    for way in [Way::ToServer, Way::ToClient] {
        // The second append of a connection sends nothing that the third does not.
        for _ in 0..2 {
            count += 1;
            stored(&store, keyed(count)).await;
        }
        let before = link.bytes(way);
        count += 1;
        stored(&store, keyed(count)).await;
        let all = usize::try_from(link.bytes(way) - before).unwrap();
        // COMMIT's answer, near the end, is shorter than a step.
        for bytes in (1..all).step_by(STEP).chain((all.saturating_sub(40).max(1)..all).step_by(4)) {
            count += 1;
            link.cut_after(bytes as u64, way);
            let first = store.append(&[keyed(count)]).await;
            link.pass();
            let again = stored(&store, keyed(count)).await;
            assert_eq!(again.seq, count as u64);
            match first {
                Ok(results) => assert_eq!(results[0].as_ref().unwrap().id, again.id),
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    unknown += usize::from(again.repeated);
                }
            }
        }
    }
    assert!(unknown > 0, "some were committed, and nobody was told");
    let rows = store.messages("lobby", Range::After(0), 1_000_000).await.unwrap();
    assert!(rows.iter().map(|row| row.seq).eq(1..=count as u64), "{} rows of {count}", rows.len());
}

// ---- D3: connections in a black hole ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_a_firewall_that_forgets_the_connections_to_postgres_costs_no_message() {
    let server = Postgres::shared();
    stranded(&server.fresh_database(), server.port()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_a_firewall_that_forgets_the_connections_to_mariadb_costs_no_message() {
    let server = MariaDb::shared();
    stranded(&server.fresh_database(), server.port()).await;
}

/// D3: the connections that are open lead nowhere, new ones pass. Idle ones cost one ping in all, and no call fails;
/// calls that are under way are given up in time, and those after them find new connections.
async fn stranded(url: &str, port: u16) {
    const AT_ONCE: usize = 20;
    let link = ChaosProxy::to(port);
    let mut options = StoreOptions::new(url.replace(&format!(":{port}/"), &format!(":{}/", link.port())));
    options.statement_timeout = Duration::from_secs(2);
    let store = Store::connect(options).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    let mut count = 0;
    let mut new = || {
        count += 1;
        Append { key: client_key("alice", &count.to_string()), ..chat("lobby", "alice", "hello") }
    };
    let at_once = async |appends: Vec<Append>| {
        let mut tasks = tokio::task::JoinSet::new();
        for append in appends {
            let store = store.clone();
            tasks.spawn(async move {
                let answer = store.append(std::slice::from_ref(&append)).await;
                (append, answer)
            });
        }
        tasks.join_all().await
    };
    // All want the same room, so they wait for each other, each with a connection of its own.
    let fill = async |new: &mut dyn FnMut() -> Append| {
        while link.connections() < 8 {
            let answers = at_once((0..AT_ONCE).map(|_| new()).collect()).await;
            assert!(answers.iter().all(|(_, answer)| answer.is_ok()), "{answers:?}");
        }
    };
    fill(&mut new).await;
    // It is time itself that makes a connection idle: two seconds of it.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let before = link.accepted();
    link.strand();
    let began = Instant::now();
    stored(&store, new()).await;
    assert!(began.elapsed() < Duration::from_secs(2), "one ping, not one for each: {:?}", began.elapsed());
    assert!(link.accepted() > before && store.stats().renewed == 0);

    // In the middle of work nothing tells that nobody will answer, but the time it takes.
    for _ in 0..AT_ONCE {
        stored(&store, new()).await;
    }
    link.strand();
    let again = Instant::now();
    let answers = at_once((0..AT_ONCE).map(|_| new()).collect()).await;
    assert!(again.elapsed() < Duration::from_secs(10), "bounded: {:?}", again.elapsed());
    let failed: Vec<Append> = answers
        .into_iter()
        .filter_map(|(append, answer)| {
            assert!(answer.as_ref().err().is_none_or(StoreError::is_retryable), "{answer:?}");
            answer.is_err().then_some(append)
        })
        .collect();
    assert!(!failed.is_empty() && store.stats().renewed == 1, "{} {:?}", failed.len(), store.stats());
    let began = Instant::now();
    for append in failed {
        assert!(!stored(&store, append).await.repeated);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "they find new connections: {:?}", began.elapsed());
    let rows = store.messages("lobby", Range::After(0), 1_000_000).await.unwrap();
    assert!(rows.iter().map(|row| row.seq).eq(1..=count as u64), "{} rows of {count}", rows.len());
}

// ---- D5: deadlocks ----

/// D5: somebody else's transaction locks the same two rooms, the second one first, and gets the server to choose ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_deadlock_on_postgres_is_tried_again_and_nothing_is_lost() {
    let server = Postgres::shared();
    // It is found by who waits first for so long; ours does for the usual second.
    let transaction = |[first, second]: [&str; 2]| {
        format!(
            "BEGIN; SET LOCAL deadlock_timeout = '30s'; SELECT 1 FROM gateway_rooms WHERE name = '{first}' FOR UPDATE; \
             DO $$ BEGIN FOR n IN 1..500 LOOP PERFORM pg_stat_clear_snapshot(); EXIT WHEN EXISTS (SELECT 1 FROM \
             pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'gateway' AND datname = \
             current_database()); PERFORM pg_sleep(0.01); END LOOP; END $$; \
             SELECT 1 FROM gateway_rooms WHERE name = '{second}' FOR UPDATE; COMMIT"
        )
    };
    let held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%deadlock_timeout = ''30s''%' \
                AND state = 'active' AND datname = current_database() AND pid <> pg_backend_pid() AND wait_event = 'PgSleep'";
    deadlocked(server.fresh_database(), held, |url, sql| server.sql(url, sql), transaction).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_deadlock_on_mariadb_is_tried_again_and_nothing_is_lost() {
    let server = MariaDb::shared();
    // The server ends who has changed less.
    let transaction = |[first, second]: [&str; 2]| {
        format!(
            "CREATE TABLE IF NOT EXISTS much (n INT); START TRANSACTION; INSERT INTO much SELECT seq FROM seq_1_to_1000; \
             SELECT 1 FROM gateway_rooms WHERE name = '{first}' FOR UPDATE; DO SLEEP(2); \
             SELECT 1 FROM gateway_rooms WHERE name = '{second}' FOR UPDATE; COMMIT"
        )
    };
    let held = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'DO SLEEP(2)%' AND db = DATABASE()";
    deadlocked(server.fresh_database(), held, |url, sql| server.sql(url, sql), transaction).await;
}

async fn deadlocked(
    url: String,
    held: &str,
    sql: impl Fn(&str, &str) -> String + Copy + Send + 'static,
    transaction: impl Fn([&str; 2]) -> String,
) {
    let store = Store::connect(StoreOptions::new(&url)).await.unwrap();
    store.migrate().await.unwrap();
    for room in ["a", "b"] {
        store.create_room(room, None).await.unwrap();
    }
    // In one of the two orders they meet.
    for (round, order) in [["a", "b"], ["b", "a"]].into_iter().enumerate() {
        let mut other = tokio::task::JoinSet::new();
        let (of, statements) = (url.clone(), transaction(order));
        other.spawn_blocking(move || sql(&of, &statements));
        while sql(&url, held).trim() == "0" {
            assert!(other.try_join_next().is_none(), "it has not waited for us");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let both = [chat("a", "alice", "hello"), chat("b", "alice", "hello")];
        let answers = store.append(&both).await.unwrap();
        let seqs = answers.into_iter().map(|answer| answer.unwrap().seq).collect::<Vec<_>>();
        assert_eq!(seqs, [round as u64 + 1; 2]);
        // The other one had what it wanted, so it was ours that was ended.
        other.join_next().await.unwrap().unwrap();
    }
    assert_eq!((store.stats().conflicts, store.stats().broken), (1, 0));
    for room in ["a", "b"] {
        let rows = store.messages(room, Range::After(0), 9).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2]);
    }
}

/// On SQLite triggers do the steps of a lone message, in a statement of which the driver knows no transaction.
#[tokio::test]
async fn a_lone_message_that_fails_halfway_leaves_nothing_behind() {
    let database = Database::sqlite();
    let store = database.store().await;
    store.create_room("lobby", None).await.unwrap();
    let other = sea_orm::Database::connect(&database.url).await.unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON gateway_messages WHEN NEW.message = 'refused' \
                  BEGIN SELECT RAISE(ABORT, 'refused'); END";
    other.execute_unprepared(refuse).await.unwrap();
    let mut refused = chat("lobby", "alice", "refused");
    refused.key = client_key("alice", "1");
    store.append(std::slice::from_ref(&refused)).await.unwrap_err();
    // Neither the head nor the key has been moved, and others may write.
    assert_eq!(stored(&store, chat("lobby", "alice", "hello")).await.seq, 1);
    other.execute_unprepared("DROP TRIGGER refuse").await.unwrap();
    let after = stored(&store, refused).await;
    assert_eq!((after.seq, after.repeated), (2, false));
}
