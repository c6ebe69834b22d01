//! Several nodes as real processes: one Redis, one database, a real balancer in front.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::balancer::Balancer;
use common::{Client, Door, NodeProcess, eventually};
use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

fn start_node(redis: &RedisServer, database: &str, name: &str) -> NodeProcess {
    NodeProcess::start(&[
        ("redis-url", &redis.url()),
        ("database-url", database),
        ("node-id", name),
        ("limits.frames_per_second", "0"),
    ])
}

/// On which node a user's only socket is.
async fn node_of(door: Door, user: &str) -> String {
    let (_, answer) = door.api("GET", &format!("/api/users/{user}"), None).await;
    answer["sockets"][0]["node"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn users_on_different_nodes_talk_through_a_balancer_and_a_killed_node_loses_nothing() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    // Three nodes together on an empty database all come up.
    let spawn = |name| {
        NodeProcess::spawn(&[
            ("redis-url", &redis.url()),
            ("database-url", &database),
            ("node-id", name),
            ("limits.frames_per_second", "0"),
        ])
    };
    let nodes = [spawn("one"), spawn("two"), spawn("three")];
    for node in &nodes {
        eventually("the node is ready", || async {
            node.process.running()
                && common::http_client()
                    .get(format!("http://{}/readyz", node.door.internal))
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }
    let [one, mut two, _three] = nodes;
    let balancer = Balancer::haproxy(&[one.door, two.door]);
    // Least connections: the first two sockets are on different nodes.
    let mut alice = balancer.door.join("alice", "lobby").await;
    let mut bob = balancer.door.join("bob", "lobby").await;
    eventually("the nodes know each other", || async {
        one.door.api("GET", "/api/nodes", None).await.1["nodes"].as_array().unwrap().len() == 3
    })
    .await;
    let (alices, bobs) = (node_of(one.door, "alice").await, node_of(one.door, "bob").await);
    assert_ne!(alices, bobs, "two nodes serve");
    alice.say("lobby", "from alice").await;
    assert_eq!(bob.hears().await, "from alice");
    bob.say("lobby", "from bob").await;
    assert_eq!((alice.hears().await, alice.hears().await), ("from alice".into(), "from bob".into()));
    bob.send(json!({"cate": "notification", "user_name": "alice", "message": "psst"})).await;
    assert_eq!(alice.until(|frame| frame["type"] == "notification").await["message"], "psst");
    // A node that answers the others too late is left out of one answer.
    eventually("both are online", || async {
        let (_, room) = one.door.api("GET", "/api/rooms/lobby", None).await;
        assert_eq!(room["members"], json!(["alice", "bob"]));
        room["online"] == json!(["alice", "bob"])
    })
    .await;

    // Acked on node two, which then dies without a word.
    let (mut on_one, mut on_two) = if alices == "one" { (alice, bob) } else { (bob, alice) };
    let ack = on_two.say_acked("lobby", "last words", "1").await;
    two.process.kill();
    // The node may have died between commit and PUBLISH; then the next message shows the hole, which is
    // filled first.
    on_one.say("lobby", "life goes on").await;
    assert_eq!(on_one.until(|frame| frame["message"] == "last words").await["seq"], ack["seq"]);
    let next = on_one.until(|frame| frame["type"] == "chat").await;
    assert_eq!(next["message"], "life goes on");
    assert_eq!(next["seq"].as_u64(), ack["seq"].as_u64().map(|seq| seq + 1));
    assert!(matches!(on_two.closed().await, 1006));
    // The balancer brings the user to the other node.
    eventually("the balancer has noticed", || async {
        balancer
            .door
            .try_connect("/ws/chat/", &[("authorization", &format!("Bearer {}", common::token("carol")))])
            .await
            .is_ok()
    })
    .await;
    let (_, history) = one.door.api("GET", "/api/rooms/lobby/history", None).await;
    let seqs: Vec<u64> =
        history["messages"].as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_killed_node_resumes_on_another() {
    let redis = RedisServer::start();
    let database = MariaDb::shared().fresh_database();
    let (one, mut two) = (start_node(&redis, &database, "one"), start_node(&redis, &database, "two"));
    let mut bob = one.door.join("bob", "lobby").await;
    let bearer = format!("Bearer {}", common::token("alice"));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    let mut alice = two.door.try_connect("/ws/chat/lobby/", &headers).await.unwrap();
    alice.send(json!({"cate": "rooms"})).await;
    alice.frame().await;
    bob.say("lobby", "1").await;
    let last = alice.until(|frame| frame["type"] == "chat").await;
    two.process.kill();
    for n in 2..=20 {
        bob.say_acked("lobby", &n.to_string(), &n.to_string()).await;
    }
    let mut alice = one.door.try_connect("/ws/chat/", &headers).await.unwrap();
    alice.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": last["seq"], "id": last["id"]}}})).await;
    for n in 2..=20 {
        let frame = alice.frame().await;
        assert_eq!((frame["seq"].as_u64(), frame["message"].as_str()), (Some(n), Some(n.to_string().as_str())));
    }
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": true}}));
}

/// 6 writers over two nodes: every member hears every message once, in order, without a hole.
async fn six_writers(layer: &str, database: &str) {
    const WRITERS: usize = 6;
    const EACH: usize = 40;
    let redis = RedisServer::start();
    let start = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("layer", layer),
            ("database-url", database),
            ("node-id", name),
            ("limits.frames_per_second", "0"),
        ])
    };
    let (one, two) = (start("one"), start("two"));
    let doors = [one.door, two.door];
    let mut readers = vec![one.door.join("reader-1", "busy").await, two.door.join("reader-2", "busy").await];
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let mut writer = doors[number % 2].join(&format!("writer-{number}"), "busy").await;
        writers.spawn(async move {
            for message in 0..EACH {
                writer.say_acked("busy", &format!("{number}/{message}"), &message.to_string()).await;
            }
            // What this socket heard beside its acks was checked for holes by nobody; its stay was.
            writer.close().await;
        });
    }
    let mut heard = Vec::new();
    for reader in &mut readers {
        heard.push(hear_all(reader, WRITERS * EACH).await);
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    assert_eq!(heard[0], heard[1]);
    assert_eq!(heard[0].iter().collect::<BTreeSet<_>>().len(), WRITERS * EACH);
    let (_, room) = one.door.api("GET", "/api/rooms/busy", None).await;
    assert_eq!(room["seq"], WRITERS * EACH);
}

async fn hear_all(reader: &mut Client, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        let frame: Value = reader.until(|frame| frame["type"] == "chat").await;
        heard.push(frame["message"].as_str().unwrap().to_owned());
        assert_eq!(frame["seq"], heard.len(), "in order, without a hole");
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn six_writers_on_postgresql() {
    six_writers("pubsub", &Postgres::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_writers_on_the_core_layer() {
    six_writers("core", &Postgres::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_writers_on_mariadb() {
    six_writers("pubsub", &MariaDb::shared().fresh_database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_writers_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    six_writers("pubsub", &format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_under_the_same_redis_is_refused() {
    let redis = RedisServer::start();
    let _one = start_node(&redis, &Postgres::shared().fresh_database(), "one");
    let other = NodeProcess::spawn(&[("redis-url", &redis.url()), ("database-url", "sqlite::memory:")]);
    eventually("it gives up", || async { !other.process.running() }).await;
    assert!(other.log().contains("another deployment"), "{}", other.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_keeps_sockets_open_and_messages_coming() {
    let mut redis = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let (one, two) = (start_node(&redis, &database, "one"), start_node(&redis, &database, "two"));
    let (mut alice, mut bob) = (one.door.join("alice", "lobby").await, two.door.join("bob", "lobby").await);
    alice.say("lobby", "before").await;
    assert_eq!((alice.hears().await, bob.hears().await), ("before".into(), "before".into()));
    redis.kill();
    // Stored and acked all the same, and late but live on both nodes.
    assert_eq!(alice.say_acked("lobby", "without redis", "1").await["seq"], 2);
    assert_eq!(bob.hears().await, "without redis");
    assert_eq!(one.door.get("/readyz").await.0, 503);
    redis.restart_empty();
    eventually("ready again", || async {
        one.door.get("/readyz").await.0 == 200 && two.door.get("/readyz").await.0 == 200
    })
    .await;
    bob.say("lobby", "after").await;
    let frame = bob.frame().await;
    assert_eq!((frame["message"].as_str(), frame["seq"].as_u64()), (Some("after"), Some(3)));
    assert_eq!(alice.until(|frame| frame["seq"] == 3 && frame["type"] == "chat").await["message"], "after");
}

async fn an_event_that_redis_refused_comes_late(layer: &str, denied: &str) {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let node = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("database-url", &database),
            ("node-id", name),
            ("layer", layer),
        ])
    };
    let (one, two) = (node("one"), node("two"));
    let (mut alice, mut bob) = (one.door.join("alice", "lobby").await, two.door.join("bob", "lobby").await);
    alice.say("lobby", "before").await;
    assert_eq!((alice.hears().await, bob.hears().await), ("before".into(), "before".into()));
    // Nobody's connection ends, so only the node that publishes can know of the loss.
    redis.cli(&["ACL", "SETUSER", "default", &format!("-{denied}")]);
    assert_eq!(alice.say_acked("lobby", "refused", "1").await["seq"], 2);
    let failures = "gateway_layer_publish_failures_total";
    eventually("the event is refused", || async { one.door.metric(failures).await >= 1.0 }).await;
    redis.cli(&["ACL", "SETUSER", "default", &format!("+{denied}")]);
    // Before the next of the comparisons every 30 s.
    assert_eq!((alice.hears().await, bob.hears().await), ("refused".into(), "refused".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_redis_refused_comes_late_on_pubsub() {
    an_event_that_redis_refused_comes_late("pubsub", "publish").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_redis_refused_comes_late_on_core() {
    an_event_that_redis_refused_comes_late("core", "@scripting").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_removed_while_redis_is_away_hear_nothing_any_more() {
    let mut redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let node = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("database-url", &database),
            ("node-id", name),
            ("room-policy", "members"),
            ("limits.frames_per_second", "0"),
        ])
    };
    let (one, two) = (node("one"), node("two"));
    for room in ["lobby", "extra"] {
        one.door.api("PUT", &format!("/api/rooms/{room}"), None).await;
    }
    one.door.api("PUT", "/api/rooms/lobby/members/dave", None).await;
    let mut sockets = [one.door.connect("/ws/chat/", "dave").await, two.door.connect("/ws/chat/", "dave").await];
    redis.kill();
    assert_eq!(one.door.api("DELETE", "/api/rooms/lobby/members/dave", None).await.0, 200);
    assert_eq!(one.door.api("PUT", "/api/rooms/extra/members/dave", None).await.0, 200);
    redis.restart_empty();
    for dave in &mut sockets {
        loop {
            dave.send(json!({"cate": "rooms"})).await;
            let rooms = dave.until(|frame| frame["type"] == "rooms").await;
            let names: Vec<_> =
                rooms["rooms"].as_array().unwrap().iter().map(|room| room["group_name"].clone()).collect();
            if names == ["extra"] {
                break;
            }
        }
        assert_eq!(dave.say_acked("lobby", "still in?", "1").await["code"], "room_not_found");
    }
    for (room, id) in [("lobby", "a"), ("extra", "b")] {
        let event = json!({"type": "chat", "to": format!("room:{room}"), "id": id, "data": {"message": room, "from_user": "ops"}});
        assert_eq!(two.door.api("POST", "/api/events", Some(event)).await.0, 200);
    }
    for dave in &mut sockets {
        assert_eq!(dave.hears().await, "extra");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_away_is_an_error_frame_and_nothing_is_acked() {
    let redis = RedisServer::start();
    let mut postgres = Postgres::start();
    let node = start_node(&redis, &postgres.url(), "one");
    let mut alice = node.door.join("alice", "lobby").await;
    assert_eq!(alice.say_acked("lobby", "before", "1").await["type"], "ack");
    assert_eq!(alice.hears().await, "before");
    postgres.kill9();
    let answer = alice.say_acked("lobby", "lost?", "2").await;
    assert_eq!((answer["type"].as_str(), answer["code"].as_str()), (Some("error"), Some("unavailable")));
    // Live events still flow.
    redis.cli(&["PING"]);
    postgres.restart();
    let mut answer = json!({"code": "unavailable"});
    while answer["code"] == "unavailable" {
        answer = alice.say_acked("lobby", "lost?", "2").await;
    }
    assert_eq!((answer["type"].as_str(), answer["seq"].as_u64()), (Some("ack"), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_while_redis_and_then_the_database_are_away_comes_up() {
    let (mut redis, mut postgres) = (RedisServer::start(), Postgres::start());
    redis.pause();
    let node = NodeProcess::spawn(&[("redis-url", &redis.url()), ("database-url", &postgres.url())]);
    eventually("it waits for Redis", || async { node.log().contains("the channel layer is not there yet") }).await;
    postgres.kill9();
    redis.resume();
    // Both listeners are there before the database is.
    eventually("it runs", || async { tokio::net::TcpStream::connect(node.door.public).await.is_ok() }).await;
    postgres.restart();
    eventually("it is ready", || async {
        assert!(node.process.running(), "{}", node.log());
        node.door.get("/readyz").await.0 == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_says_goodbye_and_exits_with_0() {
    let redis = RedisServer::start();
    let mut node = start_node(&redis, &Postgres::shared().fresh_database(), "one");
    let mut alice = node.door.join("alice", "lobby").await;
    node.process.signal("TERM");
    assert_eq!(alice.closed().await, 1012);
    eventually("the process ends", || async { !node.process.running() }).await;
    let log = node.log();
    assert!(log.contains("WSCONNECT /ws/chat/lobby/") && log.contains("WSDISCONNECT /ws/chat/lobby/ 1012"), "{log}");
    assert!(log.contains("drained=true left=0"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_chat_over_two_nodes() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let dev = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("database-url", &database),
            ("node-id", name),
            ("dev", "true"),
        ])
    };
    let (one, two) = (dev("one"), dev("two"));
    let (one, two) = (format!("http://{}/", one.door.public), format!("http://{}/", two.door.public));
    common::browser("browser.mjs", &[("GATEWAY_URL_A", &one), ("GATEWAY_URL_B", &two)]).await;
}
