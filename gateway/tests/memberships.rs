//! Joining and leaving rooms while sockets are open: from the command line, by the API, on another node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, TestNode, eventually};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::proxy::ChaosProxy;
use testkit::redis::RedisServer;

/// A second is promised; a busy machine gets more.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn start(redis: &str, database: &str, name: &str) -> TestNode {
    TestNode::start(&[
        ("redis-url", redis),
        ("database-url", database),
        ("node-id", name),
        ("room-policy", "members"),
        ("limits.frames_per_second", "0"),
    ])
    .await
}

/// Runs a command of the operator's.
async fn gateway(node: &TestNode, arguments: &[&str]) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
        .env("GATEWAY_API_URL", format!("http://{}", node.at().internal))
        .env("GATEWAY_API_KEY", "key")
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until a socket hears these rooms and no others.
async fn hears_only(client: &mut Client, rooms: &[&str]) {
    let since = Instant::now();
    while client.rooms().await != rooms {
        assert!(since.elapsed() < AT_ONCE, "{rooms:?} not within {AT_ONCE:?}");
    }
}

async fn say(node: &TestNode, room: &str, text: &str) {
    let event = json!({"type": "chat", "to": format!("room:{room}"), "data": {"message": text, "from_user": "ops"}});
    assert_eq!(node.at().api("POST", "/api/events", Some(event)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_on_all_nodes_at_once_and_who_is_removed_hears_and_reads_nothing() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let (one, two) = (start(&redis.url(), &database, "one").await, start(&redis.url(), &database, "two").await);
    let api = async |node: &TestNode, method: &str, path: &str| {
        assert_eq!(node.at().api(method, path, None).await.0, 200, "{method} {path}");
    };
    for room in ["base", "lobby"] {
        api(&one, "PUT", &format!("/api/rooms/{room}")).await;
    }
    api(&one, "PUT", "/api/rooms/base/members/alice").await;
    let mut sockets = [
        one.at().connect("/ws/chat/", "alice").await,
        two.at().connect("/ws/chat/", "alice").await,
        two.at().v1("/ws/chat/", "alice").await,
    ];
    for alice in &mut sockets {
        hears_only(alice, &["base"]).await;
    }
    say(&one, "lobby", "before").await;
    let comings = async |way: &str| match way {
        "command line" => gateway(&two, &["room", "add", "lobby", "alice"]).await,
        _ => api(&one, "PUT", "/api/rooms/lobby/members/alice").await,
    };
    let goings = async |way: &str| match way {
        "command line" => gateway(&one, &["room", "remove", "lobby", "alice"]).await,
        _ => api(&two, "DELETE", "/api/rooms/lobby/members/alice").await,
    };
    for way in ["command line", "API"] {
        comings(way).await;
        for alice in &mut sockets {
            hears_only(alice, &["base", "lobby"]).await;
        }
        say(&one, "lobby", way).await;
        for alice in &mut sockets {
            assert_eq!(alice.hears().await, way);
        }
        goings(way).await;
        for alice in &mut sockets {
            hears_only(alice, &["base"]).await;
        }
        say(&two, "lobby", "secret").await;
        say(&two, "base", "for all").await;
        for alice in &mut sockets {
            assert_eq!(alice.hears().await, "for all");
            for frame in [
                json!({"cate": "history", "group_name": "lobby"}),
                json!({"cate": "presence", "group_name": "lobby"}),
                json!({"cate": "typing", "group_name": "lobby"}),
                json!({"cate": "chat", "group_name": "lobby", "message": "let me in"}),
            ] {
                alice.send(frame.clone()).await;
                let answer = alice.until(|frame| frame["type"] != "resumed").await;
                assert_eq!(answer["code"], "room_not_found", "{frame}");
            }
            alice.send(json!({"cate": "resume", "rooms": {"lobby": 0, "base": 0}})).await;
            loop {
                let frame = alice.frame().await;
                match frame["type"].as_str() {
                    Some("chat") => assert_eq!(frame["group_name"], "base"),
                    _ => {
                        assert_eq!(frame["rooms"], json!({"lobby": false, "base": true}));
                        break;
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_sent_nothing_more_also_in_the_middle_of_a_long_resume() {
    const MESSAGES: usize = 200;
    for recent_bytes in ["0", "33554432"] {
        let node = TestNode::start(&[
            ("room-policy", "members"),
            ("limits.outbox_bytes", "150000"),
            ("limits.frames_per_second", "0"),
            ("limits.recent_bytes", recent_bytes),
        ])
        .await;
        let door = node.at();
        for path in ["/api/rooms/lobby", "/api/rooms/lobby/members/alice"] {
            assert_eq!(door.api("PUT", path, None).await.0, 200);
        }
        let text = "x".repeat(60_000);
        for _ in 0..MESSAGES {
            say(&node, "lobby", &text).await;
        }
        let mut alice = door.v1("/ws/chat/", "alice").await;
        alice.send(json!({"cate": "resume", "rooms": {"lobby": 0}})).await;
        eventually("the resume is under way", || async {
            node.metric("gateway_frames_sent_total{type=\"chat\"}").await >= 2.0
        })
        .await;
        // She reads nothing yet, so her socket's own turn does not come.
        assert_eq!(door.api("DELETE", "/api/rooms/lobby/members/alice", None).await.0, 200);
        eventually("she is not in the room", || async {
            door.api("GET", "/api/rooms/lobby", None).await.1["online"] == json!([])
        })
        .await;
        say(&node, "lobby", "secret").await;
        let mut frames = 0;
        let resumed = loop {
            let frame = alice.frame().await;
            match frame["type"].as_str() {
                Some("chat") => {
                    assert_ne!(frame["message"], "secret");
                    frames += 1;
                }
                _ => break frame,
            }
        };
        assert_eq!(resumed["rooms"], json!({"lobby": false}));
        assert!(frames < MESSAGES, "nothing is read any more: {frames} of {MESSAGES}");
        assert_eq!(alice.rooms().await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_memberships_cannot_be_read_there_is_silence() {
    let redis = RedisServer::start();
    let postgres = Postgres::shared();
    let (database, link) = (postgres.fresh_database(), ChaosProxy::to(postgres.port()));
    let through_link = database.replace(&format!(":{}/", postgres.port()), &format!(":{}/", link.port()));
    let cut_off = start(&redis.url(), &through_link, "cut-off").await;
    let other = start(&redis.url(), &database, "other").await;
    for room in ["lobby", "extra"] {
        for path in [format!("/api/rooms/{room}"), format!("/api/rooms/{room}/members/alice")] {
            assert_eq!(other.at().api("PUT", &path, None).await.0, 200);
        }
    }
    let mut alice = cut_off.at().connect("/ws/chat/", "alice").await;
    link.refuse();
    link.cut();
    assert_eq!(other.at().api("DELETE", "/api/rooms/lobby/members/alice", None).await.0, 200);
    say(&other, "lobby", "secret").await;
    let mut heard: Vec<Value> = Vec::new();
    let code = loop {
        match alice.hear().await {
            common::Heard::Frame(frame) => heard.push(frame),
            common::Heard::Closed(code, _) => break code,
            common::Heard::Gone => panic!("no close frame"),
        }
    };
    assert_eq!((code, heard), (1013, vec![]));
}

/// How often Redis was asked to do something, so far.
fn asked(redis: &RedisServer, command: &str) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let line =
        stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")).map(str::to_owned));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_rooms_that_are_new_to_the_node_are_joined_with_one_command() {
    // On core the script also runs for the node's own groups, now and then.
    for (layer, command, most) in [("pubsub", "subscribe", 1), ("core", "eval", 5)] {
        let redis = RedisServer::start();
        let node = TestNode::start(&[("redis-url", &redis.url()), ("layer", layer), ("room-policy", "members")]).await;
        let rooms: Vec<String> = (10..40).map(|number| format!("room{number}")).collect();
        for room in &rooms {
            assert_eq!(node.at().api("PUT", &format!("/api/rooms/{room}"), None).await.0, 200);
            assert_eq!(node.at().api("PUT", &format!("/api/rooms/{room}/members/alice"), None).await.0, 200);
        }
        let before = asked(&redis, command);
        let mut alice = node.at().connect("/ws/chat/", "alice").await;
        let commands = asked(&redis, command) - before;
        assert!((1..=most).contains(&commands), "{commands} times {command} for a connect");
        assert_eq!(alice.rooms().await, rooms);
        for room in [&rooms[0], &rooms[29]] {
            say(&node, room, room).await;
            assert_eq!(&alice.hears().await, room);
        }
    }
}
