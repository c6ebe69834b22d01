//! Fifty identical publishes at once leave one row, through every door and on every database.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::task::JoinSet;

use crate::common::{Client, Door, NodeProcess, eventually};

const REPEATS: usize = 50;
const SOCKETS: usize = 10;

async fn fifty_identical_publishes(database: &str) {
    let redis = RedisServer::start();
    let start = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("database-url", database),
            ("node-id", name),
            ("limits.frames_per_second", "0"),
        ])
    };
    let (one, two) = (start("one"), start("two"));
    let doors = [one.door, two.door];
    let mut bob = one.door.join("bob", "lobby").await;

    let first = by_http(doors).await;
    let second = by_sockets(doors).await;
    let data = json!({"message": "by the stream", "from_user": "shop"}).to_string();
    let entry = ["id", "same", "source", "shop", "type", "chat", "to", "room:lobby", "data", &data];
    for _ in 0..REPEATS {
        redis.cli(&[&["XADD", crate::EVENTS, "*"], &entry[..]].concat());
    }
    eventually("the stream is empty", || async { redis.cli(&["XLEN", crate::EVENTS]).trim() == "0" }).await;

    let (_, history) = two.door.api("GET", "/api/rooms/lobby/history", None).await;
    let rows: Vec<_> = history["messages"].as_array().unwrap().iter().map(|row| row["message"].clone()).collect();
    assert_eq!(rows, ["by http", "by sockets", "by the stream"]);
    assert_eq!((&history["messages"][0]["id"], &history["messages"][1]["id"]), (&first, &second));
    for (seq, message) in (1_u64..).zip(rows) {
        let frame = bob.until(|frame| frame["type"] == "chat").await;
        assert_eq!((frame["seq"].as_u64(), &frame["message"]), (Some(seq), &message));
    }
    assert_eq!(bob.hear_within(Duration::from_millis(500)).await, None);
}

/// The id that all of them are answered with.
async fn by_http(doors: [Door; 2]) -> Value {
    let mut calls = JoinSet::new();
    for number in 0..REPEATS {
        calls.spawn(async move {
            let event =
                json!({"type": "chat", "to": "room:lobby", "data": {"message": "by http", "from_user": "shop"}});
            let headers = [("authorization", "Bearer key"), ("idempotency-key", "same")];
            let (status, answer) = doors[number % 2].api_with("POST", "/api/events", Some(event), &headers).await;
            assert_eq!(status, 200, "{answer}");
            answer["results"][0].clone()
        });
    }
    let results = calls.join_all().await;
    assert_eq!(results.iter().filter(|result| result["repeated"] == false).count(), 1);
    let places: BTreeSet<_> = results.iter().map(|result| format!("{} {}", result["seq"], result["id"])).collect();
    assert_eq!(places.len(), 1, "{places:?}");
    results[0]["id"].clone()
}

async fn by_sockets(doors: [Door; 2]) -> Value {
    let mut sockets: Vec<Client> = Vec::new();
    for number in 0..SOCKETS {
        sockets.push(doors[number % 2].join("alice", "lobby").await);
    }
    let mut senders = JoinSet::new();
    for mut socket in sockets {
        senders.spawn(async move {
            let frame = json!({"cate": "chat", "group_name": "lobby", "message": "by sockets", "client_id": "same"});
            for _ in 0..REPEATS / SOCKETS {
                socket.send(frame.clone()).await;
            }
            let (mut acks, mut heard) = (Vec::new(), 0);
            while acks.len() < REPEATS / SOCKETS || heard < 1 {
                let frame = socket.frame().await;
                match frame["type"].as_str() {
                    Some("ack") => acks.push(frame["id"].clone()),
                    Some("chat") if frame["message"] == "by sockets" => heard += 1,
                    // A late one of the other door.
                    Some("chat") => {}
                    _ => panic!("{frame}"),
                }
            }
            assert_eq!(heard, 1);
            acks
        });
    }
    let ids = senders.join_all().await.concat();
    assert_eq!(ids.len(), REPEATS);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    ids[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_identical_publishes_leave_one_row_on_postgresql() {
    fifty_identical_publishes(&Postgres::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_identical_publishes_leave_one_row_on_mariadb() {
    fifty_identical_publishes(&MariaDb::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_identical_publishes_leave_one_row_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    fifty_identical_publishes(&format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display())).await;
}
