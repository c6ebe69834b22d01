//! What is old is deleted, by one node for all; what clients and services were promised stays.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Client, Door, TestNode, eventually, token};
use persistence::{Append, Range, Store, StoreOptions, Stream};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use uuid::Uuid;

async fn v1(door: Door, user: &str) -> Client {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    door.try_connect("/ws/chat/lobby/", &headers).await.unwrap()
}

fn chat(text: &str) -> Append {
    Append {
        stream: Stream::Room("lobby".into()),
        from_user: "alice".into(),
        message: text.into(),
        data: None,
        key: None,
        create_inbox: false,
        origin: None,
    }
}

/// A database with a room of so many messages.
async fn seeded(messages: u64) -> (String, Store) {
    let database = Postgres::shared().fresh_database();
    let store = Store::connect(StoreOptions::new(&database)).await.unwrap();
    store.migrate().await.unwrap();
    store.create_room("lobby", None).await.unwrap();
    Postgres::shared().sql(
        &database,
        &format!(
            "INSERT INTO gateway_messages (room_id, seq, id, from_user, message, date) \
             SELECT id, n, gen_random_uuid(), 'alice', 'old', 0 FROM gateway_rooms, generate_series(1, {messages}) n; \
             UPDATE gateway_rooms SET last_seq = {messages}"
        ),
    );
    (database, store)
}

async fn kept(store: &Store) -> Vec<u64> {
    store.messages("lobby", Range::After(0), 1000).await.unwrap().iter().map(|message| message.seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_one_deletes_what_is_old() {
    let redis = RedisServer::start();
    let (database, store) = seeded(100).await;
    let redis_url = redis.url();
    let own = [
        ("redis-url", redis_url.as_str()),
        ("database-url", database.as_str()),
        ("retention.messages_per_room", "10"),
        ("retention.interval_seconds", "3"),
    ];
    let (one, two) = (TestNode::start(&own).await, TestNode::start(&own).await);
    let sum = async |metric: &str| one.metric(metric).await + two.metric(metric).await;
    eventually("both have had their turn", || async {
        let turns = async |node: &TestNode| {
            node.metric("gateway_retention_runs_total{result=\"done\"}").await
                + node.metric("gateway_retention_runs_total{result=\"skipped\"}").await
        };
        turns(&one).await > 0.0 && turns(&two).await > 0.0 && kept(&store).await.len() == 10
    })
    .await;
    assert_eq!(kept(&store).await, (91..=100).collect::<Vec<_>>());
    assert_eq!(sum("gateway_retention_deleted_total{kind=\"message\"}").await, 90.0, "each row by one of them");
    assert!(sum("gateway_retention_runs_total{result=\"skipped\"}").await > 0.0);
    assert_eq!(sum("gateway_retention_runs_total{result=\"failed\"}").await, 0.0);
    // When its node has gone the other one does it.
    let gone = one.running.drain().await;
    assert_eq!(gone, 0);
    store.append(&(0..5).map(|_| chat("new")).collect::<Vec<_>>()).await.unwrap();
    eventually("the other node goes on", || async { kept(&store).await.len() == 10 }).await;
    assert_eq!(kept(&store).await, (96..=105).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_stops_in_the_middle() {
    let (database, store) = seeded(200_000).await;
    let node = TestNode::start(&[("database-url", &database), ("retention.messages_days", "1")]).await;
    let deleted = async || node.metric("gateway_retention_deleted_total{kind=\"message\"}").await;
    eventually("it has begun", || async { deleted().await > 0.0 }).await;
    node.running.drain().await;
    assert!(kept(&store).await.len() == 1000, "most of it is still there");
    let minute = std::time::Duration::from_secs(60);
    let taken = store.take_lease("retention", Uuid::new_v4(), minute, std::time::Duration::ZERO);
    assert!(taken.await.unwrap(), "and the next node can go on at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_older_than_what_is_kept_is_false_and_history_ends_there() {
    let node = TestNode::start(&[
        ("retention.messages_per_room", "5"),
        ("retention.interval_seconds", "1"),
        ("limits.frames_per_second", "0"),
    ])
    .await;
    let door = node.at();
    let mut bob = node.join("bob", "lobby").await;
    let mut ids = vec![Value::Null];
    for n in 1..=30 {
        ids.push(bob.say_acked("lobby", &n.to_string(), &n.to_string()).await["id"].clone());
    }
    let store = &node.running.node().store;
    eventually("the old ones are gone", || async { kept(store).await == [26, 27, 28, 29, 30] }).await;
    for (place, good) in [
        (json!(0), false),
        (json!({"seq": 1, "id": ids[1]}), false),
        (json!({"seq": 24, "id": ids[24]}), false),
        // Its row is gone, so nobody can tell whether it is of this history.
        (json!({"seq": 25, "id": ids[25]}), false),
        (json!(25), true),
        (json!({"seq": 26, "id": ids[26]}), true),
        (json!({"seq": 30, "id": ids[30]}), true),
    ] {
        let mut alice = v1(door, "alice").await;
        alice.send(json!({"cate": "resume", "rooms": {"lobby": place}})).await;
        let (mut heard, from) = (Vec::new(), place["seq"].as_u64().or(place.as_u64()).unwrap());
        let resumed = loop {
            let frame = alice.frame().await;
            match frame["type"].as_str() {
                Some("chat") => heard.push(frame["seq"].as_u64().unwrap()),
                _ => break frame,
            }
        };
        assert_eq!(resumed["rooms"]["lobby"], good, "{place}");
        assert_eq!(heard, if good { (from + 1..=30).collect() } else { Vec::new() }, "all of it or nothing: {place}");
        alice.close().await;
    }
    for (range, seqs) in [(json!({}), vec![26, 27, 28, 29, 30]), (json!({"before": 28}), vec![26, 27])] {
        let mut ask = json!({"cate": "history", "group_name": "lobby"});
        ask.as_object_mut().unwrap().extend(range.as_object().unwrap().clone());
        bob.send(ask).await;
        let history = bob.until(|frame| frame["type"] == "history").await;
        let found: Vec<u64> =
            history["messages"].as_array().unwrap().iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        assert_eq!((found, &history["has_more"]), (seqs, &json!(false)));
    }
    // A repeat of what is no longer there is a repeat all the same.
    let again = bob.say_acked("lobby", "3", "3").await;
    assert_eq!((&again["seq"], &again["id"]), (&json!(3), &ids[3]));
}
