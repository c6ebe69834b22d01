//! Nodes on the core layer: what differs from pub/sub, and what must not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{NodeProcess, TestNode, eventually};
use serde_json::json;
use testkit::python::{Kind, Peer};
use testkit::redis::RedisServer;

/// A database file that several nodes of a test share.
struct Database {
    _directory: tempfile::TempDir,
    url: String,
}

impl Database {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
        Self { _directory: directory, url }
    }
}

/// The members of a group, as Redis has them.
fn members(redis: &RedisServer, group: &str) -> Vec<String> {
    redis.cli(&["ZRANGE", &format!("asgi:group:{group}"), "0", "-1"]).split_whitespace().map(str::to_owned).collect()
}

/// The client id in a channel's name.
fn client_of(channel: &str) -> &str {
    channel.split('!').next().unwrap().rsplit('.').next().unwrap()
}

async fn channel_of(node: &TestNode, user: &str) -> String {
    let (_, answer) = node.at().api("GET", &format!("/api/users/{user}"), None).await;
    answer["sockets"][0]["channel_name"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_chat_redis_comes_back_empty_and_a_stopped_node_leaves_its_groups() {
    let (mut redis, database) = (RedisServer::start(), Database::new());
    let url = redis.url();
    let node = |name| {
        let (url, database) = (&url, &database.url);
        async move {
            TestNode::start(&[("redis-url", url), ("layer", "core"), ("database-url", database), ("node-id", name)])
                .await
        }
    };
    let (one, two) = (node("one").await, node("two").await);
    let (mut alice, mut bob) = (one.join("alice", "lobby").await, two.join("bob", "lobby").await);
    let mut carol = two.join("carol", "lobby").await;
    assert_eq!(members(&redis, "chat_lobby").len(), 2, "a node joins a group once");
    alice.say("lobby", "before").await;
    assert_eq!(
        (alice.hears().await, bob.hears().await, carol.hears().await),
        ("before".into(), "before".into(), "before".into())
    );
    bob.send(json!({"cate": "notification", "user_name": "alice", "message": "psst"})).await;
    assert_eq!(alice.until(|frame| frame["type"] == "notification").await["message"], "psst");
    eventually("the nodes know each other", || async {
        one.at().api("GET", "/api/nodes", None).await.1["nodes"].as_array().unwrap().len() == 2
    })
    .await;
    // A node that answers the others too late is left out of one answer.
    eventually("all are online", || async {
        one.at().api("GET", "/api/rooms/lobby", None).await.1["online"] == json!(["alice", "bob", "carol"])
    })
    .await;

    redis.kill();
    // Stored and acked all the same, and late but live on both nodes.
    assert_eq!(alice.say_acked("lobby", "without redis", "1").await["seq"], 2);
    assert_eq!(bob.hears().await, "without redis");
    eventually("not ready", || async { one.at().get("/readyz").await.0 == 503 }).await;
    redis.restart_empty();
    eventually("ready again", || async {
        one.at().get("/readyz").await.0 == 200 && two.at().get("/readyz").await.0 == 200
    })
    .await;
    bob.say("lobby", "after").await;
    let frame = bob.frame().await;
    assert_eq!((frame["message"].as_str(), frame["seq"].as_u64()), (Some("after"), Some(3)));
    assert_eq!(alice.until(|frame| frame["seq"] == 3 && frame["type"] == "chat").await["message"], "after");
    eventually("counted", || async { one.metric("gateway_layer_reconnects_total").await >= 1.0 }).await;

    two.running.drain().await;
    assert_eq!(members(&redis, "chat_lobby").len(), 1, "the node that stopped has left");
    assert!(members(&redis, "bob").is_empty());
    alice.say("lobby", "alone").await;
    alice.until(|frame| frame["message"] == "alone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_killed_node_are_removed_by_the_others() {
    let (redis, database) = (RedisServer::start(), Database::new());
    let settings = [("redis-url", redis.url()), ("layer", "core".into()), ("database-url", database.url.clone())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut killed = NodeProcess::start(&settings);
    let _bob = killed.door.join("bob", "lobby").await;
    let before = redis.cli(&["ZRANGE", "gateway:clients:asgi", "0", "-1"]);
    let other = TestNode::start(&settings).await;
    let mut alice = other.join("alice", "lobby").await;
    assert_eq!((members(&redis, "chat_lobby").len(), members(&redis, "bob").len()), (2, 1));
    killed.process.kill();
    // Three quarters of a minute later, without waiting for them.
    for client in before.split_whitespace() {
        redis.cli(&["ZADD", "gateway:clients:asgi", "1", client]);
    }
    eventually("the dead node's members are gone", || async {
        members(&redis, "chat_lobby").len() == 1 && members(&redis, "bob").is_empty()
    })
    .await;
    alice.say("lobby", "still here").await;
    assert_eq!(alice.hears().await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_django_puts_into_a_group_it_hears_anyway_hears_it_once() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("layer", "core")]).await;
    let django = Peer::start(Kind::Core, &json!({"hosts": [redis.url()]}));
    let _first = node.join("first", "lobby").await;
    let group = members(&redis, "chat_lobby").pop().unwrap();
    // A message names all its readers of one client id, so the two ways meet in one message only if the
    // socket's channel and the node's membership have the same.
    let (mut same, mut other) = (None, None);
    for number in 0..200 {
        let user = format!("user-{number}");
        let socket = node.join(&user, "lobby").await;
        let channel = channel_of(&node, &user).await;
        let place = if client_of(&channel) == client_of(&group) { &mut same } else { &mut other };
        place.get_or_insert((socket, channel));
        if same.is_some() && other.is_some() {
            break;
        }
    }
    let ((mut socket, twin), (mut other, others)) = same.zip(other).unwrap();
    django.group_add("chat_lobby", &twin);
    django.group_add("side", &twin);
    let event =
        |text: &str| json!({"type": "chat.message", "message": text, "group_name": "lobby", "from_user": "django"});
    django.group_send("chat_lobby", &event("both ways"));
    assert_eq!((socket.hears().await, other.hears().await), ("both ways".into(), "both ways".into()));
    // A stored message, whose place in the stream tells, whatever the client ids.
    django.group_add("chat_lobby", &others);
    other.say_acked("lobby", "stored", "1").await;
    assert_eq!(socket.hears().await, "stored");
    // Once before or after the ack, and then no more.
    other.say("lobby", "next").await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|text| text != "next") {
        heard.push(other.hears().await);
    }
    assert!(heard == ["stored", "next"] || heard == ["next"], "{heard:?}");
    assert_eq!(socket.hears().await, "next");
    // Through a group of Django's own, and by its name alone, it hears as ever.
    django.group_send("side", &event("aside"));
    assert_eq!(socket.hears().await, "aside");
    django.send(&twin, &event("alone"));
    assert_eq!(socket.hears().await, "alone");
    socket.hears_nothing_before_own("lobby").await;
    assert!(node.metric("gateway_layer_events_dropped_total{reason=\"duplicate\"}").await >= 1.0);
}

/// R20: the type of an event picks a handler out of a table, and nothing else; what a browser sends
/// never picks one at all.
#[tokio::test(flavor = "multi_thread")]
async fn r20_no_type_from_redis_or_a_browser_reaches_what_is_no_handler() {
    const TYPES: [&str; 16] = [
        "send",
        "close",
        "accept",
        "receive",
        "connect",
        "disconnect",
        "dispatch",
        "group_add",
        "group.send",
        "websocket.receive",
        "websocket.disconnect",
        "websocket.close",
        "_private",
        ".private",
        "http.request",
        "",
    ];
    let redis = RedisServer::start();
    for layer in ["core", "pubsub"] {
        let node = TestNode::start(&[
            ("redis-url", &redis.url()),
            ("layer", layer),
            ("layer-prefix", layer),
            ("namespace", layer),
        ])
        .await;
        let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
        let config = json!({"hosts": [redis.url()], "prefix": layer});
        let python = Peer::start(if layer == "core" { Kind::Core } else { Kind::PubSub }, &config);
        for kind in TYPES {
            let event = json!({"type": kind, "text": "{\"cate\":\"chat\"}", "code": 4403, "message": "x"});
            python.group_send("chat_lobby", &event);
            alice.send(json!({"cate": kind, "group_name": "lobby", "message": "x", "code": 4403})).await;
            let refusal = alice.frame().await;
            let codes = [json!("unknown_cate"), json!("invalid")];
            assert!(refusal["type"] == "error" && codes.contains(&refusal["code"]), "{kind}: {refusal}");
        }
        // Nothing of it reached anybody, and everybody is still there.
        let last = json!({"type": "chat.message", "message": "still here", "from_user": "site"});
        python.group_send("chat_lobby", &last);
        for client in [&mut alice, &mut bob] {
            let frame = client.frame().await;
            assert_eq!((&frame["type"], &frame["message"]), (&json!("chat"), &json!("still here")), "{frame}");
        }
    }
}
