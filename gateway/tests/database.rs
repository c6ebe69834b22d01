//! A database that is full or far too slow: what can be said of it, and what goes on without it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Heard, Lock, NodeProcess, eventually};
use serde_json::{Value, json};
use testkit::disk::Disk;
use testkit::mariadb::MariaDb;
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

const EVENTS: &str = "gateway:events";
/// As long as a message may be that MariaDB keeps with its row, and much longer.
const SHORT: usize = 3_000;
const LONG: usize = 30_000;
/// A store's call may take 12 s (`StoreOptions`), and wait for one before it.
const ANSWER: Duration = Duration::from_secs(30);

fn settings<'a>(redis: &'a str, database: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("redis-url", redis), ("database-url", database), ("limits.frames_per_second", "0")]
}

/// What somebody has said in the lobby, and what became of it.
struct Speaker {
    client: Client,
    said: usize,
    /// Of a text.
    length: usize,
    /// By `client_id`, as the others.
    texts: BTreeMap<usize, String>,
    acked: BTreeMap<usize, Value>,
    refused: Vec<usize>,
}

impl Speaker {
    async fn new(node: &NodeProcess, user: &str) -> Self {
        let mut client = node.door.v1("/ws/chat/lobby/", user).await;
        client.patience = ANSWER;
        Self { client, said: 0, length: SHORT, texts: BTreeMap::new(), acked: BTreeMap::new(), refused: Vec::new() }
    }

    /// Says something and waits for the answer: whether it was acked.
    async fn say(&mut self, number: usize) -> bool {
        let text = self.texts.entry(number).or_insert_with(|| format!("{number} {}", "x".repeat(self.length)));
        let answer = self.client.say_acked("lobby", text, &number.to_string()).await;
        match answer["type"].as_str() {
            Some("ack") => assert!(self.acked.insert(number, answer["seq"].clone()).is_none()),
            _ => {
                assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("unavailable")), "{answer}");
                // No SQL, path or name of the database.
                assert_eq!(answer["detail"], "try again");
                self.refused.push(number);
            }
        }
        self.acked.contains_key(&number)
    }

    async fn says_something_new(&mut self) -> bool {
        self.said += 1;
        self.say(self.said).await
    }

    async fn repeats_what_was_refused(&mut self) {
        for number in std::mem::take(&mut self.refused) {
            while !self.say(number).await {}
        }
    }
}

/// Two who are in the lobby, and ten messages.
async fn talking(node: &NodeProcess) -> (Speaker, Client) {
    let mut alice = Speaker::new(node, "alice").await;
    let bob = node.door.v1("/ws/chat/lobby/", "bob").await;
    for _ in 0..10 {
        assert!(alice.says_something_new().await);
    }
    (alice, bob)
}

/// Goes on until there is no more room: what the database has reserved is used up first.
async fn is_refused(alice: &mut Speaker) {
    while alice.says_something_new().await {
        assert!(alice.said < 5_000, "still stored on a full disk");
    }
}

/// D6: writes are refused and never acked, reads and live events go on, and space is all it takes to recover.
/// `length` is that of a service's message.
async fn full_disk(redis: &RedisServer, node: &NodeProcess, length: usize, disk: &Disk) {
    let (mut alice, mut bob) = talking(node).await;
    disk.fill();
    is_refused(&mut alice).await;
    for _ in 0..20 {
        alice.says_something_new().await;
    }
    let event = json!({"type": "chat", "to": "room:lobby", "id": "order-1", "data": {"message": "x".repeat(length), "from_user": "shop"}});
    let (status, problem) = node.door.api("POST", "/api/events", Some(event.clone())).await;
    assert_eq!(status, 503, "{problem}");
    let data = event["data"].to_string();
    let fields = "* id order-2 source shop type chat to room:lobby data";
    let words: Vec<&str> = ["XADD", EVENTS].into_iter().chain(fields.split(' ')).chain([data.as_str()]).collect();
    redis.cli(&words);
    // Reading works, and what needs no database.
    let history = alice.client.ask(json!({"cate": "history", "group_name": "lobby", "after": 0, "limit": 10})).await;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(10), "{history}");
    alice.client.send(json!({"cate": "typing", "group_name": "lobby"})).await;
    bob.until(|frame| frame["type"] == "typing").await;
    let waiting = redis.cli(&["XLEN", EVENTS]);
    assert_eq!(waiting.trim(), "1", "the entry waits");

    disk.free();
    alice.repeats_what_was_refused().await;
    assert_eq!(node.door.api("POST", "/api/events", Some(event)).await.0, 200);
    eventually("the entry is stored", || async { redis.cli(&["XLEN", EVENTS]).trim() == "0" }).await;
    everything_is_there(alice, bob, 2).await;
}

/// Each message once, acked ones at the place that the ack named, all of them heard in order.
async fn everything_is_there(mut alice: Speaker, mut bob: Client, others: usize) {
    let count = alice.said + others;
    let mut stored = Vec::new();
    while stored.len() < count {
        let ask = json!({"cate": "history", "group_name": "lobby", "after": stored.len(), "limit": 100});
        let page = alice.client.ask(ask).await;
        let messages = page["messages"].as_array().unwrap();
        assert!(!messages.is_empty(), "{} of {count}: {page}", stored.len());
        stored.extend(messages.iter().map(|message| (message["seq"].clone(), message["message"].clone())));
    }
    assert_eq!(stored.len(), count);
    assert_eq!(alice.acked.len(), alice.said);
    for (number, seq) in &alice.acked {
        let at = seq.as_u64().unwrap() as usize - 1;
        assert_eq!(stored[at], (seq.clone(), json!(alice.texts[number])));
    }
    for (at, (seq, _)) in stored.iter().enumerate() {
        assert_eq!(seq, at + 1);
    }
    // He may have skipped the first ones.
    let mut heard = bob.until(|frame| frame["type"] == "chat").await["seq"].as_u64().unwrap() as usize;
    while heard < count {
        let frame = bob.until(|frame| frame["type"] == "chat").await;
        heard += 1;
        assert_eq!(frame["seq"], heard);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_full_disk_of_sqlite() {
    let redis = RedisServer::start();
    let (node, disk) =
        NodeProcess::start_on_small_disk(&[("redis-url", &redis.url()), ("limits.frames_per_second", "0")], 4);
    full_disk(&redis, &node, LONG, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_full_disk_of_postgres() {
    let (redis, database) = (RedisServer::start(), Postgres::start_on_small_disk(96));
    let node = NodeProcess::start(&settings(&redis.url(), &database.url()));
    full_disk(&redis, &node, LONG, database.disk()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_full_disk_of_mariadb() {
    let (redis, database) = (RedisServer::start(), MariaDb::start_on_small_disk(256));
    let node = NodeProcess::start(&settings(&redis.url(), &database.url()));
    full_disk(&redis, &node, SHORT, database.disk()).await;
}

/// PostgreSQL itself dies when not even its log finds room.
#[tokio::test(flavor = "multi_thread")]
async fn d6_postgres_dies_of_a_full_disk_and_comes_back() {
    let (redis, mut database) = (RedisServer::start(), Postgres::start_on_small_disk(96));
    let node = NodeProcess::start(&settings(&redis.url(), &database.url()));
    let (mut alice, bob) = talking(&node).await;
    database.disk().fill();
    // The next write needs a new file of the log.
    database.sql("postgres", "SELECT pg_switch_wal()");
    is_refused(&mut alice).await;
    database.disk().free();
    database.restart();
    alice.repeats_what_was_refused().await;
    everything_is_there(alice, bob, 0).await;
}

/// MariaDB 10.11 itself dies when a page for a long text cannot be had: its assertion fails.
#[tokio::test(flavor = "multi_thread")]
async fn d6_mariadb_dies_of_a_full_disk_and_comes_back() {
    let (redis, mut database) = (RedisServer::start(), MariaDb::start_on_small_disk(256));
    let node = NodeProcess::start(&settings(&redis.url(), &database.url()));
    let (mut alice, bob) = talking(&node).await;
    database.disk().fill();
    alice.length = LONG;
    is_refused(&mut alice).await;
    database.disk().free();
    database.restart();
    alice.repeats_what_was_refused().await;
    everything_is_there(alice, bob, 0).await;
}

/// D4: whoever needs the database is told in time that it has none; everybody else notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn d4_every_connection_waits_for_a_lock() {
    const SPEAKERS: u32 = 40;
    let (redis, postgres) = (RedisServer::start(), Postgres::shared());
    let database = postgres.fresh_database();
    // Less than a call may take.
    let pings = [("limits.ping_seconds", "1"), ("limits.pong_seconds", "9")];
    let node = NodeProcess::start(&[&settings(&redis.url(), &database)[..], &pings].concat());
    let (mut alice, mut bob) = talking(&node).await;
    let mut speakers = Vec::new();
    for number in 0..SPEAKERS {
        speakers.push(Speaker::new(&node, &format!("speaker-{number}")).await);
    }
    let tables = "SELECT string_agg(tablename, ', ') FROM pg_tables WHERE tablename LIKE 'gateway_%'";
    let tables = postgres.sql(&database, tables);
    let held = "SELECT count(*) > 0 FROM pg_locks \
                WHERE granted AND mode = 'AccessExclusiveLock' AND relation = 'gateway_messages'::regclass";
    let lock = Lock::take(postgres, &database, &format!("LOCK TABLE {}", tables.trim()), held).await;

    // More than there are connections, reads and writes.
    let (answered, released) = (Arc::new(Semaphore::new(0)), watch::Sender::new(false));
    let mut waiting = JoinSet::new();
    for (number, mut speaker) in speakers.into_iter().enumerate() {
        let (answered, released) = (Arc::clone(&answered), released.subscribe());
        waiting.spawn(async move {
            // What came before is no ping of now.
            while speaker.client.hear_within(Duration::from_millis(1)).await.is_some() {}
            speaker.client.pings = 0;
            if number % 2 == 0 {
                assert!(!speaker.says_something_new().await);
            } else {
                let history = json!({"cate": "history", "group_name": "lobby", "after": 0, "limit": 10});
                assert_eq!(speaker.client.ask(history).await["code"], "unavailable");
            }
            assert_ne!(speaker.client.pings, 0, "also to one whose frame waits");
            answered.add_permits(1);
            while !*released.borrow() {
                let heard = speaker.client.hear_within(Duration::from_millis(100)).await;
                assert!(matches!(heard, None | Some(Heard::Frame(_))), "{heard:?}");
            }
            speaker.repeats_what_was_refused().await;
            speaker
        });
    }
    let taken = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gateway' AND wait_event_type = 'Lock'";
    eventually("all connections wait", || async { postgres.sql(&database, taken).trim() == "10" }).await;
    let typing = json!({"cate": "typing", "group_name": "lobby"});
    let live = async {
        loop {
            alice.client.send(typing.clone()).await;
            bob.until(|frame| frame["type"] == "typing").await;
            bob.send(typing.clone()).await;
            alice.client.until(|frame| frame["type"] == "typing").await;
        }
    };
    tokio::select! {
        all = timeout(ANSWER, answered.acquire_many(SPEAKERS)) => drop(all.unwrap()),
        () = live => unreachable!("it does not end"),
    }

    lock.let_go().await;
    released.send_replace(true);
    let speakers = waiting.join_all().await;
    let said: usize = speakers.iter().map(|speaker| speaker.acked.len()).sum();
    assert_eq!(said, SPEAKERS as usize / 2);
    everything_is_there(alice, bob, said).await;
}

/// Connections that last for a transaction only: nothing of a session may be relied on.
#[tokio::test(flavor = "multi_thread")]
async fn d15_a_pooler_that_gives_out_connections_by_transactions_is_as_good_as_the_server() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let mut bouncer = PgBouncer::start(postgres, 3);
    let url = format!("{}?pgbouncer=true", bouncer.url(&database));
    let gateway = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.args(arguments).env("GATEWAY_DATABASE_URL", &url).env("GATEWAY_JWT_SECRET", common::SECRET);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(gateway(&["migrate"]).await.contains("applied"));
    assert!(gateway(&["migrate"]).await.contains("nothing to do"));
    assert!(!gateway(&["migrate", "status"]).await.contains("pending"));
    gateway(&["check-config", "--live"]).await;
    let redis = RedisServer::start();
    let redis_url = redis.url();
    let own = [settings(&redis_url, &url), vec![("retention.interval_seconds", "1"), ("retention.messages_days", "1")]]
        .concat();
    let nodes = [NodeProcess::start(&own), NodeProcess::start(&own)];
    // Many at once, so that each statement meets another server connection than the last.
    let speak = async |round: usize| {
        let mut tasks = JoinSet::new();
        for (number, node) in nodes.iter().enumerate() {
            for user in 0..8 {
                let door = node.door;
                tasks.spawn(async move {
                    let (user, room) = (format!("user-{number}-{user}"), format!("room-{}", user % 3));
                    let mut client = door.v1(&format!("/ws/chat/{room}/"), &user).await;
                    client.patience = ANSWER;
                    for message in 0..10 {
                        let id = format!("{round}-{message}");
                        let ack = client.say_acked(&room, &format!("{id} of {user}"), &id).await;
                        assert_eq!(ack["type"], "ack", "{ack}");
                    }
                    let page = client.ask(json!({"cate": "history", "group_name": room, "limit": 5})).await;
                    assert_eq!(page["messages"].as_array().unwrap().len(), 5, "{page}");
                    let note = json!({"cate": "notification", "user_name": user, "message": "x", "client_id": format!("n{round}")});
                    client.send(note).await;
                    client.until(|frame| frame["type"] == "notification").await;
                    let inbox = client.ask(json!({"cate": "notifications"})).await;
                    assert_eq!(inbox["notifications"][0]["message"], "x", "{inbox}");
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    };
    speak(0).await;
    bouncer.restart();
    for node in &nodes {
        eventually("it is ready again", async || common::ready(node.door.internal)).await;
    }
    speak(1).await;
    let count = |table: &str| postgres.sql(&database, &format!("SELECT count(*) FROM {table}")).trim().to_owned();
    assert_eq!((count("gateway_messages").as_str(), count("gateway_notifications").as_str()), ("320", "32"));
    for node in &nodes {
        for operation in ["append", "history", "retention", "admit", "secrets"] {
            let errors = format!("gateway_store_errors_total{{operation=\"{operation}\"}}");
            // While it was away there may have been some.
            assert!(node.door.metric(&errors).await <= 3.0, "{operation}: {}", node.log());
        }
        assert!(!node.log().contains("prepared statement") && !node.log().contains("unnamed"), "{}", node.log());
    }
}
