//! The stream `gateway:events`: one `XADD`, stored and delivered, whatever fails in between.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{NodeProcess, TestNode, eventually};
use serde_json::json;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

fn add(redis: &RedisServer, fields: &[&str]) {
    redis.cli(&[&["XADD", "gateway:events", "*"], fields].concat());
}

fn notification(redis: &RedisServer, id: &str, message: &str) {
    let data = json!({"message": message, "from_user": "shop"}).to_string();
    add(redis, &["id", id, "source", "shop", "type", "notification", "to", "user:alice", "data", &data]);
}

async fn is_empty(redis: &RedisServer) {
    eventually("everything is acked and deleted", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" })
        .await;
    let pending = redis.cli(&["XPENDING", "gateway:events", "gateway"]);
    assert!(pending.trim_start().starts_with('0'), "{pending}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_stored_once_and_delivered_also_if_written_before_the_node_came() {
    let redis = RedisServer::start();
    notification(&redis, "order-1", "early");
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    is_empty(&redis).await;
    let (_, inbox) = node.at().api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!(inbox["notifications"][0]["message"], "early");
    let mut alice = node.at().connect("/ws/chat/", "alice").await;
    notification(&redis, "order-2", "paid");
    notification(&redis, "order-2", "paid");
    notification(&redis, "order-2", "other content changes nothing");
    notification(&redis, "order-3", "sent");
    assert_eq!((alice.frame().await["message"].as_str(), alice.frame().await["seq"].as_u64()), (Some("paid"), Some(3)));
    is_empty(&redis).await;
    let (_, inbox) = node.at().api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!(inbox["unseen"], 3);
    // Lists of recipients, rooms, an end by date, and a goodbye.
    node.at().api("PUT", "/api/rooms/lobby", None).await;
    add(&redis, &["id", "1", "source", "s", "type", "chat", "to", "room:lobby", "data", r#"{"message":"hi"}"#]);
    let to = r#"["user:alice","user:bob"]"#;
    add(&redis, &["id", "2", "source", "s", "type", "notification", "to", to, "data", r#"{"message":"all"}"#]);
    let past = "2020-01-01T00:00:00Z";
    add(
        &redis,
        &[
            "id",
            "3",
            "source",
            "s",
            "type",
            "notification",
            "to",
            "user:alice",
            "data",
            r#"{"message":"late"}"#,
            "expires_at",
            past,
        ],
    );
    assert_eq!(alice.frame().await["message"], "all");
    is_empty(&redis).await;
    assert_eq!(node.at().api("GET", "/api/rooms/lobby", None).await.1["seq"], 1);
    assert_eq!(node.at().api("GET", "/api/users/bob/notifications", None).await.1["unseen"], 1);
    assert_eq!(node.metric(r#"gateway_stream_events_total{result="expired"}"#).await, 1.0);
    add(&redis, &["id", "4", "source", "s", "type", "gateway.disconnect", "to", "user:alice", "data", "{}"]);
    assert_eq!(alice.closed().await, 4403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_browsers_and_python_write_as_json_is_read() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let mut alice = node.at().connect("/ws/notifications/", "alice").await;
    let entry = |id: &str, kind: &str, to: &str, data: &str| {
        add(&redis, &["id", id, "source", "s", "type", kind, "to", to, "data", data]);
    };
    entry("1", "notification", "user:alice", r#"{"message":"cut \ud83d","from_user":"\udead"}"#);
    let frame = alice.frame().await;
    assert_eq!((&frame["message"], &frame["from_user"]), (&json!("cut \u{fffd}"), &json!("\u{fffd}")));
    entry("2", "notification", "\u{feff}[\"user:alice\"]", "\u{feff}{\"message\":\"marked\",\"n\":[NaN]}");
    assert_eq!(alice.frame().await["message"], "marked");
    entry("3", "gateway.disconnect", "user:alice", r#"{"code":4100.0,"reason":"\ud83d"}"#);
    assert_eq!(alice.closed().await, 4100);
    is_empty(&redis).await;
    assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_goes_to_the_dead_letters_and_may_be_tried_again() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let door = node.at();
    let entry = |kind: &'static str, to: &'static str, data: &str| {
        add(&redis, &["id", "1", "source", "s", "type", kind, "to", to, "data", data]);
    };
    entry("chat", "room:later", r#"{"message":"patience"}"#);
    entry("notification", "user:a", "no json");
    entry("notification", "user:a", "{}");
    entry("dance", "user:a", "{}");
    entry("notification", "somebody", r#"{"message":"x"}"#);
    entry("notification", "user:a", &json!({"message": "x".repeat(70_000)}).to_string());
    add(&redis, &["only", "nonsense"]);
    is_empty(&redis).await;
    let (_, dead) = door.api("GET", "/api/dead", None).await;
    let dead = dead["dead"].as_array().unwrap();
    assert_eq!(dead.len(), 7, "{dead:#?}");
    let first = dead.last().unwrap();
    assert_eq!(
        (first["fields"]["to"].as_str(), first["fields"]["deliveries"].as_str()),
        (Some("room:later"), Some("1"))
    );
    assert!(first["fields"]["reason"].as_str().unwrap().starts_with("no_room") && first["fields"]["at"].is_string());
    door.api("PUT", "/api/rooms/later", None).await;
    let id = first["dead_id"].as_str().unwrap();
    assert_eq!(door.api("POST", &format!("/api/dead/{id}/retry"), None).await.0, 200);
    eventually("it works now", || async { door.api("GET", "/api/rooms/later", None).await.1["seq"] == 1 }).await;
    assert_eq!(door.api("GET", &format!("/api/dead/{id}"), None).await.0, 404);
    let id = dead[0]["dead_id"].as_str().unwrap();
    assert_eq!(door.api("DELETE", &format!("/api/dead/{id}"), None).await.0, 200);
    assert_eq!(door.api("GET", "/api/dead", None).await.1["dead"].as_array().unwrap().len(), 5);
    assert_eq!(door.api("GET", "/api/dead/x", None).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_and_a_stopped_database_are_survived() {
    let redis = RedisServer::start();
    let mut postgres = Postgres::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url()), ("database-url", &postgres.url())]);
    notification(&redis, "1", "one");
    is_empty(&redis).await;
    redis.cli(&["FLUSHALL"]);
    notification(&redis, "2", "two");
    is_empty(&redis).await;
    postgres.kill9();
    for n in 3..20 {
        notification(&redis, &n.to_string(), "waits");
    }
    postgres.restart();
    is_empty(&redis).await;
    let (_, inbox) = node.door.api("GET", "/api/users/alice/notifications?limit=100", None).await;
    assert_eq!((inbox["unseen"].as_u64(), inbox["notifications"].as_array().unwrap().len()), (Some(19), 19));
    assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_group_that_vanished_is_made_again_and_nothing_is_stored_twice() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    for n in 1..=3 {
        notification(&redis, &n.to_string(), "before");
        is_empty(&redis).await;
        assert_eq!(redis.cli(&["XGROUP", "DESTROY", "gateway:events", "gateway"]).trim(), "1");
        notification(&redis, &n.to_string(), "before");
        notification(&redis, &format!("{n} again"), "after");
        is_empty(&redis).await;
    }
    let (_, inbox) = node.at().api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!(inbox["unseen"], 6);
    assert_eq!(node.metric("gateway_stream_events_total{result=\"stored\"}").await, 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_begins_with_what_it_had_taken_before_it_stopped_and_a_backlog_takes_few_transactions() {
    const BACKLOG: usize = 1000;
    let redis = RedisServer::start();
    for n in 0..BACKLOG {
        notification(&redis, &n.to_string(), "waits");
    }
    redis.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0"]);
    redis.cli(&["XREADGROUP", "GROUP", "gateway", "one", "COUNT", "2", "STREAMS", "gateway:events", ">"]);
    // The first of them is trimmed away meanwhile, as some publishers do: nobody knows any more what it said.
    let first = redis.cli(&["XPENDING", "gateway:events", "gateway", "-", "+", "1", "one"]);
    let first = first.lines().next().unwrap().trim();
    assert_eq!(redis.cli(&["XDEL", "gateway:events", first]).trim(), "1");
    let node = TestNode::start(&[("redis-url", &redis.url()), ("node-id", "one")]).await;
    is_empty(&redis).await;
    let (_, inbox) = node.at().api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!(inbox["unseen"], BACKLOG - 1);
    assert_eq!(node.metric("gateway_stream_events_total{result=\"deleted\"}").await, 1.0);
    assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0", "it is no dead letter");
    let transactions = node.metric("gateway_store_batch_size_count").await;
    assert!(transactions <= 50.0, "{transactions} transactions for {BACKLOG} entries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_stored_in_its_order_and_of_one_identity_the_first_counts() {
    const ENTRIES: usize = 600;
    let redis = RedisServer::start();
    for n in 0..ENTRIES {
        // Each identity twice, one right behind the other.
        let (id, data) = ((n / 2).to_string(), json!({"message": n.to_string()}).to_string());
        add(&redis, &["id", &id, "source", "s", "type", "notification", "to", "user:alice", "data", &data]);
        let id = format!("own-{n}");
        // What means nothing may be anything.
        redis.raw(&[
            b"XADD",
            b"gateway:events",
            b"*",
            b"id",
            id.as_bytes(),
            b"source",
            b"s",
            b"type",
            b"notification",
            b"to",
            b"user:bob",
            b"data",
            data.as_bytes(),
            b"note",
            b"\xff",
            b"\xfe",
            b"x",
        ]);
    }
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    is_empty(&redis).await;
    let messages = async |user: &str| {
        let (mut all, mut before) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/users/{user}/notifications?limit=100{before}");
            let (_, page) = node.at().api("GET", &path, None).await;
            let page = page["notifications"].as_array().unwrap().clone();
            let Some(first) = page.first() else { return all };
            before = format!("&before={}", first["seq"]);
            let texts = page.iter().map(|one| one["message"].as_str().unwrap().parse::<usize>().unwrap());
            all.splice(0..0, texts);
        }
    };
    assert_eq!(messages("bob").await, (0..ENTRIES).collect::<Vec<_>>());
    assert_eq!(messages("alice").await, (0..ENTRIES).step_by(2).collect::<Vec<_>>());
}
