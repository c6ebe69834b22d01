//! What a node leaves behind that dies, or that has lost its database: the entries it had taken, its users'
//! presence. Some of these tests wait for half a minute; they run side by side.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Client, Heard, Lock, NodeProcess, TestNode, eventually, eventually_within};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::proxy::{ChaosProxy, Way};
use testkit::redis::RedisServer;

const EVENTS: &str = "gateway:events";

/// Entries of a dead node are claimed after 30 s, looked for every 5 s; positions are compared every 24 to 36 s.
const HALF_A_MINUTE: Duration = Duration::from_secs(60);

/// Users of a dead node are offline within this.
const TWO_MINUTES: Duration = Duration::from_secs(120);

fn start_node(redis: &str, database: &str, name: &str) -> NodeProcess {
    NodeProcess::start(&[
        ("redis-url", redis),
        ("database-url", database),
        ("node-id", name),
        ("limits.frames_per_second", "0"),
    ])
}

fn add(redis: &RedisServer, user: &str, id: &str) {
    let (to, data) = (format!("user:{user}"), json!({"message": id, "from_user": "shop"}).to_string());
    redis.cli(&["XADD", EVENTS, "*", "id", id, "source", "shop", "type", "notification", "to", &to, "data", &data]);
}

fn length(redis: &RedisServer) -> usize {
    redis.cli(&["XLEN", EVENTS]).trim().parse().unwrap()
}

/// How many entries a node has taken and not finished.
fn pending(redis: &RedisServer, node: &str) -> usize {
    let entries = redis.cli(&["XPENDING", EVENTS, "gateway", "-", "+", "1000", node]);
    entries.lines().filter(|line| line.trim() == node).count()
}

async fn nothing_is_left(redis: &RedisServer) {
    eventually("everything is acked and deleted", || async { length(redis) == 0 }).await;
    let pending = redis.cli(&["XPENDING", EVENTS, "gateway"]);
    assert!(pending.trim_start().starts_with('0'), "{pending}");
    assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
}

/// Keeps everybody from writing to any inbox.
async fn lock_inboxes(postgres: &'static Postgres, database: &str) -> Lock {
    let free = "SELECT count(*) = 0 FROM (SELECT 1 FROM gateway_inboxes FOR UPDATE SKIP LOCKED) AS free";
    Lock::take(postgres, database, "SELECT 1 FROM gateway_inboxes FOR UPDATE", free).await
}

async fn notification(client: &mut Client, patience: Duration) -> (Value, Value) {
    match client.hear_within(patience).await {
        Some(Heard::Frame(frame)) if frame["type"] == "notification" => {
            (frame["message"].clone(), frame["seq"].clone())
        }
        other => panic!("a notification was expected, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_killed_node_are_claimed_and_stored_and_delivered_once() {
    let redis = RedisServer::start();
    let (postgres, link) = (Postgres::shared(), ChaosProxy::redis(redis.port()));
    let database = postgres.fresh_database();
    let mut one = start_node(&redis.url(), &database, "one");
    for user in ["alice", "bob"] {
        let event = json!({"type": "notification", "to": format!("user:{user}"), "data": {"message": "first", "from_user": "shop"}});
        assert_eq!(one.door.api("POST", "/api/events", Some(event)).await.0, 200);
    }
    let lock = lock_inboxes(postgres, &database).await;
    // The first node dies while it cannot commit ...
    add(&redis, "alice", "order-1");
    eventually("node one has taken the entry", || async { pending(&redis, "one") == 1 }).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("it waits to store it", || async { postgres.sql(&database, waiting).trim() != "0" }).await;
    one.process.kill();
    // A server learns of a dead client only when it answers it; until then the statement waits on, and would commit.
    postgres.sql(&database, &waiting.replace("count(*)", "pg_terminate_backend(pid)"));
    // ... and the second one between its commit and its XACK.
    let mut two = start_node(&link.url(), &database, "two");
    add(&redis, "bob", "order-2");
    eventually("node two has taken the entry", || async { pending(&redis, "two") == 1 }).await;
    link.hold(Way::ToServer);
    lock.let_go().await;
    eventually("node two has committed", || async {
        postgres.sql(&database, "SELECT last_seq FROM gateway_inboxes WHERE user_name = 'bob'").trim() == "2"
    })
    .await;
    two.process.kill();
    assert_eq!((length(&redis), pending(&redis, "one"), pending(&redis, "two")), (2, 1, 1));
    assert_eq!(postgres.sql(&database, "SELECT last_seq FROM gateway_inboxes WHERE user_name = 'alice'").trim(), "1");

    let three = start_node(&redis.url(), &database, "three");
    let mut alice = three.door.connect("/ws/notifications/", "alice").await;
    let mut bob = three.door.connect("/ws/notifications/", "bob").await;
    assert_eq!(notification(&mut alice, HALF_A_MINUTE).await, (json!("order-1"), json!(2)));
    nothing_is_left(&redis).await;
    // Each once, and also the publisher's own repetition changes nothing.
    for (user, client, id) in [("alice", &mut alice, "order-1"), ("bob", &mut bob, "order-2")] {
        add(&redis, user, id);
        add(&redis, user, "next");
        assert_eq!(notification(client, common::PATIENCE).await, (json!("next"), json!(3)));
        nothing_is_left(&redis).await;
        let (_, inbox) = three.door.api("GET", &format!("/api/users/{user}/notifications"), None).await;
        let messages: Vec<_> = inbox["notifications"].as_array().unwrap().iter().map(|row| &row["message"]).collect();
        assert_eq!(messages, ["first", id, "next"]);
    }
    let finished =
        async |result: &str| three.door.metric(&format!("gateway_stream_events_total{{result=\"{result}\"}}")).await;
    assert_eq!((finished("stored").await, finished("repeated").await), (3.0, 3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_database_leaves_the_stream_to_others_until_it_has_it_again() {
    const ENTRIES: usize = 20;
    let redis = RedisServer::start();
    let postgres = Postgres::shared();
    let (database, link) = (postgres.fresh_database(), ChaosProxy::to(postgres.port()));
    let through_link = database.replace(&format!(":{}/", postgres.port()), &format!(":{}/", link.port()));
    assert_ne!(database, through_link);
    let stored = async |node: &NodeProcess| node.door.metric("gateway_stream_events_total{result=\"stored\"}").await;
    let cut_off = start_node(&redis.url(), &through_link, "cut-off");
    add(&redis, "alice", "before");
    nothing_is_left(&redis).await;

    link.black_hole(Way::Both);
    eventually("it is not ready", || async { cut_off.door.get("/readyz").await.0 == 503 }).await;
    eventually("it does not read", || async {
        let clients = redis.cli(&["CLIENT", "LIST"]);
        !clients.lines().any(|client| client.contains("flags=b") && client.contains("cmd=xreadgroup"))
    })
    .await;
    for number in 0..ENTRIES {
        add(&redis, "alice", &format!("order-{number}"));
    }
    let tried = link.accepted();
    eventually("it has looked for its database again and again", || async { link.accepted() >= tried + 3 }).await;
    assert_eq!((length(&redis), pending(&redis, "cut-off")), (ENTRIES, 0));
    // Whoever watches over the backlog sees it grow all the same.
    eventually("the backlog shows", || async {
        cut_off.door.metric("gateway_stream_length").await as usize == ENTRIES
            && cut_off.door.metric("gateway_stream_pending").await == 0.0
    })
    .await;

    let mut healthy = start_node(&redis.url(), &database, "healthy");
    nothing_is_left(&redis).await;
    assert_eq!(stored(&healthy).await as usize, ENTRIES);
    assert_eq!(stored(&cut_off).await, 1.0, "only what it took while it had its database");

    link.pass();
    eventually("it is ready again", || async { cut_off.door.get("/readyz").await.0 == 200 }).await;
    healthy.process.kill();
    add(&redis, "alice", "after");
    nothing_is_left(&redis).await;
    assert_eq!(stored(&cut_off).await, 2.0);
    let (_, inbox) = cut_off.door.api("GET", "/api/users/alice/notifications?limit=100", None).await;
    assert_eq!(inbox["unseen"], ENTRIES + 2);
}

/// One user on the killed node alone, one on two nodes, one on another node with two devices.
async fn presence_after_a_kill(layer: &str) {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let start = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("layer", layer),
            ("database-url", &database),
            ("node-id", name),
        ])
    };
    let (mut one, two, three) = (start("one"), start("two"), start("three"));
    let _killed = [one.door.join("alice", "lobby").await, one.door.join("bob", "lobby").await];
    let _bob = two.door.join("bob", "lobby").await;
    let phone = three.door.join("carol", "lobby").await;
    let mut laptop = three.door.join("carol", "lobby").await;
    let online = async |door: common::Door| door.api("GET", "/api/rooms/lobby", None).await.1["online"].clone();
    for door in [one.door, two.door, three.door] {
        eventually("all are online, seen from every node", || async {
            online(door).await == json!(["alice", "bob", "carol"])
        })
        .await;
    }
    phone.close().await;
    eventually("one device less", || async {
        two.door.api("GET", "/api/users/carol", None).await.1["sockets"].as_array().unwrap().len() == 1
    })
    .await;
    // A node that answers the others too late is left out of one answer, here and below.
    eventually("a user is online with any device", || async {
        online(two.door).await == json!(["alice", "bob", "carol"])
    })
    .await;

    one.process.kill();
    for door in [two.door, three.door] {
        eventually_within(TWO_MINUTES, "alice is offline", || async {
            let has = |now: &Value, user: &str| now.as_array().unwrap().iter().any(|name| name == user);
            let mut now = online(door).await;
            for _ in 0..2 {
                if !(has(&now, "bob") && has(&now, "carol")) {
                    now = online(door).await;
                }
            }
            assert!(has(&now, "bob") && has(&now, "carol"), "users of other nodes stay online: {now}");
            !has(&now, "alice")
        })
        .await;
    }
    while laptop.ask(json!({"cate": "presence", "group_name": "lobby"})).await["users"] != json!(["bob", "carol"]) {}
    let (_, alice) = two.door.api("GET", "/api/users/alice", None).await;
    assert_eq!(alice["sockets"], json!([]));
    eventually("bob is on node two", || async {
        let (_, bob) = three.door.api("GET", "/api/users/bob", None).await;
        bob["sockets"].as_array().unwrap().iter().map(|socket| &socket["node"]).eq(["two"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_killed_node_are_offline_and_all_others_stay_online() {
    presence_after_a_kill("pubsub").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_killed_node_are_offline_and_all_others_stay_online_on_the_core_layer() {
    presence_after_a_kill("core").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_lost_of_a_quiet_stream_comes_with_the_next_comparison() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let link = ChaosProxy::redis(redis.port());
    let node = async |redis: &str| TestNode::start(&[("redis-url", redis), ("database-url", &database)]).await;
    let (deaf, other) = (node(&link.url()).await, node(&redis.url()).await);
    let (mut alice, mut bob) = (deaf.join("alice", "lobby").await, other.join("bob", "lobby").await);
    link.drop_replies(|reply| reply.windows(4).any(|part| part == b"lost"));
    bob.say("lobby", "lost").await;
    assert_eq!(bob.hears().await, "lost");
    eventually("it is lost", || async { link.dropped() == 1 }).await;
    let Some(Heard::Frame(frame)) = alice.hear_within(HALF_A_MINUTE).await else { panic!("nothing came") };
    assert_eq!((&frame["message"], &frame["seq"]), (&json!("lost"), &json!(1)));
    assert_eq!(deaf.metric("gateway_layer_reconnects_total").await, 0.0, "the connection was well all the time");
    assert_eq!(deaf.metric("gateway_layer_gaps_filled_total").await, 1.0);
}

/// The usual interval is a minute, so this is only for the long run.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_word_about_a_removed_member_is_noticed_by_the_version() {
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return;
    }
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let link = ChaosProxy::redis(redis.port());
    let node = async |redis: &str| {
        TestNode::start(&[("redis-url", redis), ("database-url", &database), ("room-policy", "members")]).await
    };
    let (deaf, other) = (node(&link.url()).await, node(&redis.url()).await);
    for path in ["/api/rooms/lobby", "/api/rooms/lobby/members/alice"] {
        assert_eq!(other.at().api("PUT", path, None).await.0, 200);
    }
    let alice = tokio::sync::Mutex::new(deaf.at().connect("/ws/chat/", "alice").await);
    link.drop_replies(|reply| reply.windows(13).any(|part| part == b"rooms_changed"));
    assert_eq!(other.at().api("DELETE", "/api/rooms/lobby/members/alice", None).await.0, 200);
    assert_eq!(alice.lock().await.rooms().await, ["lobby"], "the word was lost");
    eventually_within(TWO_MINUTES, "it is noticed", || async { alice.lock().await.rooms().await.is_empty() }).await;
    assert_eq!(deaf.metric("gateway_layer_reconnects_total").await, 0.0);
    assert_eq!(alice.lock().await.say_acked("lobby", "still in?", "1").await["code"], "room_not_found");
}
