//! What is passed on to who is connected: frames of the site's own, goodbyes and announcements, through every door.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use channel_layer::{Event, GroupName};
use common::{Client, Heard, TestNode, eventually};
use serde_json::{Value, json};
use testkit::redis::RedisServer;

/// Two nodes that know of each other.
async fn two(redis: &RedisServer, layer: &str) -> [TestNode; 2] {
    let database = testkit::postgres::Postgres::shared().fresh_database();
    let url = redis.url();
    let node = async |name: &str| {
        let own = [
            ("redis-url", url.as_str()),
            ("layer", layer),
            ("database-url", &database),
            ("node-id", name),
            ("limits.frames_per_second", "0"),
        ];
        TestNode::start(&own).await
    };
    let nodes = [node("one").await, node("two").await];
    for node in &nodes {
        eventually("the nodes know of each other", || async {
            node.at().api("GET", "/api/nodes", None).await.1["nodes"] == json!(["one", "two"])
        })
        .await;
    }
    nodes
}

/// Sockets of every kind on both nodes.
async fn sockets(nodes: &[TestNode; 2]) -> Vec<Client> {
    let [one, two] = nodes.each_ref().map(TestNode::at);
    vec![
        one.v1("/ws/chat/lobby/", "alice").await,
        two.connect("/ws/chat/", "bob").await,
        one.connect("/ws/notifications/", "carol").await,
        two.v1("/ws/notifications/", "dave").await,
    ]
}

fn add(redis: &RedisServer, id: &str, kind: &str, to: &str, data: &Value) {
    let data = data.to_string();
    redis.cli(&["XADD", "gateway:events", "*", "id", id, "source", "s", "type", kind, "to", to, "data", &data]);
}

fn frame(frame: &Value) -> Value {
    json!({"text": frame.to_string()})
}

async fn next_own(client: &mut Client) -> Value {
    client.until(|frame| !["chat", "resumed", "rooms"].contains(&frame["type"].as_str().unwrap_or_default())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_on_all_nodes_hears_what_is_for_everyone() {
    for layer in ["pubsub", "core"] {
        let redis = RedisServer::start();
        let nodes = two(&redis, layer).await;
        let mut sockets = sockets(&nodes).await;
        let (one, two) = (nodes[0].at(), nodes[1].at());
        // As the Django app announces.
        add(&redis, "1", "gateway.send", "everyone", &frame(&json!({"type": "announcement", "message": "stream"})));
        for socket in &mut sockets {
            assert_eq!(next_own(socket).await, json!({"type": "announcement", "message": "stream"}), "{layer}");
        }
        let (status, answer) =
            two.api("POST", "/api/announce", Some(json!({"message": "Back \"soon\"", "data": {"minutes": 5.0}}))).await;
        assert_eq!((status, answer), (200, json!({"to": "everyone"})));
        for socket in &mut sockets {
            let wanted = json!({"type": "announcement", "message": "Back \"soon\"", "data": {"minutes": 5.0}});
            assert_eq!(next_own(socket).await, wanted, "{layer}");
        }
        let event =
            json!({"type": "gateway.send", "to": ["everyone"], "data": frame(&json!({"type": "cart", "n": 1}))});
        let (status, answer) = one.api("POST", "/api/events", Some(event)).await;
        assert_eq!((status, &answer["results"]), (200, &json!([{"to": "everyone"}])));
        for socket in &mut sockets {
            assert_eq!(next_own(socket).await, json!({"type": "cart", "n": 1}), "{layer}");
        }
        // To some only.
        let to = r#"["user:alice","room:lobby","user:dave"]"#;
        add(&redis, "2", "gateway.send", to, &frame(&json!({"type": "some"})));
        assert_eq!(next_own(&mut sockets[0]).await["type"], "some");
        assert_eq!(next_own(&mut sockets[3]).await["type"], "some");
        let (status, _) =
            one.api("POST", "/api/users/carol/disconnect", Some(json!({"code": 4401, "reason": "out"}))).await;
        assert_eq!(status, 200);
        assert_eq!(sockets[2].hear().await, Heard::Closed(4401, "out".into()), "{layer}");
        assert_eq!(
            two.api("POST", "/api/users/dave/disconnect", None).await.1,
            json!({"user": "dave", "disconnected": true})
        );
        assert_eq!(sockets[3].closed().await, 4403);
        add(&redis, "3", "gateway.disconnect", "everyone", &json!({"code": 4100, "reason": "all"}));
        assert_eq!(sockets[0].closed().await, 4100, "{layer}");
        assert_eq!(sockets[1].hear().await, Heard::Closed(4100, "all".into()), "{layer}: nothing else was for bob");
        eventually("acked and deleted", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" }).await;
        assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
    }
}

/// With the in-memory layer the node is alone, and everyone is here.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_is_everyone() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    assert_eq!(node.at().api("POST", "/api/announce", Some(json!({"message": "hello"}))).await.0, 200);
    assert_eq!(next_own(&mut alice).await, json!({"type": "announcement", "message": "hello"}));
    let all = json!({"type": "gateway.disconnect", "to": "everyone", "data": {}});
    assert_eq!(node.at().api("POST", "/api/events", Some(all)).await.0, 200);
    assert_eq!(alice.closed().await, 4403);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_online_is_asked_of_all_nodes() {
    let redis = RedisServer::start();
    let nodes = two(&redis, "pubsub").await;
    let _sockets = sockets(&nodes).await;
    let call = async |body: Value| nodes[1].at().api("POST", "/api/users/online", Some(body)).await;
    let users = ["alice", "nobody", "bob", "dave", "carol", "a/b", ""];
    for body in [json!({ "users": users }), json!(users)] {
        // A node that answers the others too late is left out of one answer.
        eventually("all are online", || async {
            call(body.clone()).await == (200, json!({"online": ["alice", "bob", "carol", "dave"]}))
        })
        .await;
    }
    assert_eq!(call(json!({"users": []})).await.1, json!({"online": []}));
    let names = |count: usize| json!({"users": (0..count).map(|n| format!("user{n}")).collect::<Vec<_>>()});
    assert_eq!((call(names(1_000)).await.0, call(names(1_001)).await.0), (200, 413));
    assert_eq!((call(json!({"users": "alice"})).await.0, call(json!({})).await.0), (400, 400));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_passed_on_is_dead_or_refused() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let wrong = [
        ("gateway.send", "everyone", json!({}), "missing_field"),
        ("gateway.send", "everyone", json!({"text": 7}), "malformed"),
        ("gateway.send", "everyone", json!({"text": "[1]"}), "malformed"),
        ("gateway.send", "user:alice", frame(&json!({"type": "chat", "message": "fake"})), "malformed"),
        ("gateway.send", "somebody", frame(&json!({"type": "x"})), "malformed"),
        ("gateway.send", r#"["everyone","user:alice"]"#, frame(&json!({"type": "x"})), "malformed"),
        ("chat", "everyone", json!({"message": "x"}), "malformed"),
        ("notification", "everyone", json!({"message": "x"}), "malformed"),
    ];
    for (index, (kind, to, data, reason)) in wrong.iter().enumerate() {
        add(&redis, &index.to_string(), kind, to, data);
        eventually("it is dead", || async {
            let (_, dead) = node.at().api("GET", "/api/dead?limit=1", None).await;
            let fields = &dead["dead"][0]["fields"];
            fields["id"] == *index.to_string() && fields["reason"].as_str().unwrap_or_default().starts_with(reason)
        })
        .await;
        let to = serde_json::from_str::<Value>(to).unwrap_or(json!(to));
        let event = json!({"type": kind, "to": to, "data": data});
        assert_eq!(node.at().api("POST", "/api/events", Some(event)).await.0, 400, "{kind} {data}");
    }
    for (path, body, status) in [
        ("/api/announce", json!({}), 400),
        ("/api/announce", json!({"message": 7}), 400),
        ("/api/announce", json!({"message": "x", "data": [1]}), 400),
        ("/api/announce", json!({"message": "x", "data": {"a": "x".repeat(20_000)}}), 413),
        ("/api/announce", json!({"message": "x".repeat(70_000)}), 413),
        ("/api/announce", json!({"message": "x", "to": "user:alice"}), 400),
        ("/api/users/alice/disconnect", json!({"code": 1005}), 400),
        ("/api/users/alice/disconnect", json!({"code": 70_000}), 400),
        ("/api/users/anon.x/disconnect", json!({}), 400),
    ] {
        assert_eq!(node.at().api("POST", path, Some(body.clone())).await.0, status, "{path} {body}");
    }
}

/// Everyone is a word of nodes: whoever can write to the layer reaches those groups that he can name, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_on_the_layer_can_speak_to_everyone() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    let layer = &node.running.node().layer;
    let nodes = GroupName::parse("r.gateway.nodes").unwrap();
    // Heard as nodes hear it, to be sent again.
    let ear = layer.new_channel("").await.unwrap();
    layer.group_add(&nodes, &ear).await.unwrap();
    let text = json!({"type": "cart"}).to_string();
    let forged = Event::new("gateway.everyone").with("what", "gateway.send").with("text", text.as_str());
    let counted = || async {
        let (_, text) = node.at().internal_get("/metrics").await;
        let lines = text.lines().filter(|line| line.starts_with("gateway_layer_events_forged_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    for event in [forged.clone(), forged.clone().with("seal", "AAAAAAAAAAAAAAAA"), forged.with("from", "other")] {
        layer.group_send(&nodes, &event).await.unwrap();
    }
    eventually("they are counted", || async { counted().await >= 3.0 }).await;
    assert_eq!(node.at().api("POST", "/api/announce", Some(json!({"message": "real"}))).await.0, 200);
    let real = loop {
        let event = tokio::time::timeout(common::PATIENCE, layer.receive(&ear)).await.unwrap().unwrap();
        if event.event_type() == Some("gateway.everyone") && event.get("once").is_some() {
            break event;
        }
    };
    layer.group_send(&nodes, &real).await.unwrap();
    eventually("it is heard once", || async { counted().await >= 4.0 }).await;
    assert_eq!(
        alice.until(|frame| frame["type"] == "announcement" || frame["type"] == "cart").await["message"],
        "real"
    );
    alice.hears_nothing_before_own("lobby").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_announces() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .args(arguments)
            .env("GATEWAY_API_URL", format!("http://{}", node.at().internal))
            .env("GATEWAY_API_KEY", "key");
        let output = command.output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (success, said, error) = run(&["announce", "Back soon", "--data", r#"{"n":1}"#]).await;
    assert!(success && said.trim() == r#"{"to":"everyone"}"#, "{said}{error}");
    assert_eq!(next_own(&mut alice).await, json!({"type": "announcement", "message": "Back soon", "data": {"n": 1}}));
    let (success, _, error) = run(&["announce", "x", "--data", "{"]).await;
    assert!(!success && error.contains("--data is not JSON"), "{error}");
}
