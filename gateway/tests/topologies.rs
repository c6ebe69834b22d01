//! Nodes behind Sentinels, on a cluster and over TLS: the layer, and what a node keeps beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{NodeProcess, TestNode, eventually};
use serde_json::json;
use testkit::redis::{Cluster, RedisServer, Sentinels};
use testkit::tls::TlsOptions;

const ENTRY: &[&str] = &["source", "shop", "type", "notification", "to", "user:alice", "data", r#"{"message":"paid"}"#];

/// Writes to the stream of durable events.
fn add(redis: &RedisServer, id: &str, fields: &[&str]) {
    redis.cli(&[&["XADD", "gateway:events", "*", "id", id], fields].concat());
}

async fn notified(node: &TestNode, count: usize) {
    eventually("stored", || async {
        let (_, inbox) = node.at().api("GET", "/api/users/alice/notifications", None).await;
        inbox["notifications"].as_array().is_some_and(|all| all.len() == count)
    })
    .await;
}

async fn chats(node: &TestNode) {
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
    let text = uuid::Uuid::new_v4().to_string();
    alice.say("lobby", &text).await;
    assert_eq!((alice.hears().await, bob.hears().await), (text.clone(), text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_the_primary_that_sentinels_name() {
    let mut sentinels = Sentinels::start();
    let node = TestNode::start(&[("redis-url", &sentinels.url()), ("layer", "core")]).await;
    chats(&node).await;
    add(sentinels.primary(), "1", ENTRY);
    notified(&node, 1).await;
    sentinels.switch_over();
    sentinels.wait_failover();
    eventually("ready again", || async { node.at().get("/readyz").await.0 == 200 }).await;
    add(sentinels.primary(), "2", ENTRY);
    notified(&node, 2).await;
    chats(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_cluster_chats_and_reads_the_stream_with_its_dead_letters() {
    let cluster = Cluster::start();
    for layer in ["core", "pubsub"] {
        let settings = [
            ("redis-url", cluster.url()),
            ("layer", layer.into()),
            ("layer-prefix", layer.into()),
            ("namespace", layer.into()),
        ];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let node = TestNode::start(&settings).await;
        chats(&node).await;
        let stream = format!("{layer}:events");
        let redis = cluster.node(cluster.primary_of(&stream));
        redis.cli(&[&["XADD", &stream, "*", "id", "1"], ENTRY].concat());
        notified(&node, 1).await;
        let chat = ["id", "2", "source", "s", "type", "chat", "to", "room:later", "data", r#"{"message":"hi"}"#];
        redis.cli(&[&["XADD", stream.as_str(), "*"][..], &chat].concat());
        eventually("a dead letter", || async {
            node.at().api("GET", "/api/dead", None).await.1["dead"].as_array().is_some_and(|all| all.len() == 1)
        })
        .await;
        let (_, dead) = node.at().api("GET", "/api/dead", None).await;
        let id = dead["dead"][0]["dead_id"].as_str().unwrap();
        node.at().api("PUT", "/api/rooms/later", None).await;
        assert_eq!(node.at().api("POST", &format!("/api/dead/{id}/retry"), None).await.0, 200);
        eventually("it works now", || async { node.at().api("GET", "/api/rooms/later", None).await.1["seq"] == 1 })
            .await;
        eventually("the stream is empty", || async { redis.cli(&["XLEN", &stream]).trim() == "0" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_from_files_open_a_server_that_wants_them() {
    let redis = RedisServer::start();
    let tls = redis.switch_tls_on(&TlsOptions { client_certificates: true, ..TlsOptions::default() });
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, certificate, key) =
        (file("ca.pem", &tls.ca), file("client.pem", &tls.client_certificate), file("client.key", &tls.client_key));
    for layer in ["core", "pubsub"] {
        let node = TestNode::start(&[
            ("redis-url", &tls.url()),
            ("redis-ca", &ca),
            ("redis-client-certificate", &certificate),
            ("redis-client-key", &key),
            ("layer", layer),
            ("layer-prefix", layer),
            ("namespace", layer),
        ])
        .await;
        chats(&node).await;
        let path = format!("/api/dead?{layer}");
        assert_eq!(node.at().api("GET", &path, None).await, (200, json!({"dead": [], "has_more": false})));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_when_the_site_seems_to_use_the_other_layer() {
    let redis = RedisServer::start();
    redis.cli(&["ZADD", "asgi:group:chat_lobby", "1", "specific.x!y"]);
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    eventually("it says so", || async { node.log().contains("--layer core") }).await;
    let node = NodeProcess::start(&[
        ("redis-url", &redis.url()),
        ("layer", "core"),
        ("namespace", "other"),
        ("layer-prefix", "other"),
    ]);
    assert!(!node.log().contains("--layer pubsub"), "{}", node.log());
    let mut subscribed =
        NodeProcess::start(&[("redis-url", &redis.url()), ("namespace", "third"), ("layer-prefix", "third")]);
    eventually("it has a group", || async { redis.cli(&["PUBSUB", "CHANNELS", "third__group__*"]).contains("nodes") })
        .await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(["check-config", "--live", "--layer", "core", "--layer-prefix", "third", "--redis-url", &redis.url()])
        .envs([("GATEWAY_JWT_SECRET", common::SECRET), ("GATEWAY_DATABASE_URL", "sqlite::memory:")])
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("warning:") && printed.contains("--layer pubsub"), "{printed}");
    // What the other node has claimed is not for a database of one's own.
    assert!(String::from_utf8_lossy(&output.stderr).contains("another deployment") && !output.status.success());
    subscribed.process.kill();
}
