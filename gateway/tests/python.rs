//! Django's side: the real `channels_redis` writes to browsers, and hears from them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{TestNode, eventually};
use serde_json::{Value, json};
use testkit::python::{Kind, Peer};
use testkit::redis::RedisServer;

const WITHIN: Duration = Duration::from_secs(10);

/// A node and Django with the same settings, each in its own words.
async fn site(kind: Kind, hosts: &[String], own: &[(&str, &str)], config: Value) -> (TestNode, Peer) {
    let urls = hosts.join(",");
    let layer = if kind == Kind::Core { "core" } else { "pubsub" };
    let settings = [&[("redis-url", urls.as_str()), ("layer", layer)][..], own].concat();
    let mut config = config;
    config["hosts"] = json!(hosts);
    (TestNode::start(&settings).await, Peer::start(kind, &config))
}

/// Django puts a channel of its own into a group, and the node hears of it.
async fn join(node: &TestNode, django: &Peer, group: &str) -> String {
    let mine = django.new_channel();
    django.group_add(group, &mine);
    // Python's pub/sub layer does not wait for Redis itself.
    let name = gateway::GroupName::parse(group).unwrap();
    let layer = &node.running.node().layer;
    eventually("Django's subscription", || async {
        layer.group_send(&name, &gateway::Event::new("typing.ping")).await.unwrap();
        django.receive(&mine, Duration::from_millis(200)).is_some()
    })
    .await;
    while django.receive(&mine, Duration::from_millis(200)).is_some() {}
    mine
}

async fn django_writes_to_browsers_and_hears_from_them(node: TestNode, django: Peer) {
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);

    // group_send to a room: everybody in it; no seq, a date of delivery, and no position moved.
    let event = json!({"type": "chat.message", "message": "from Django", "group_name": "lobby", "from_user": "django", "cate": "chat"});
    django.group_send("chat_lobby", &event);
    for socket in [&mut alice, &mut bob] {
        let frame = socket.frame().await;
        assert_eq!(
            (frame["type"].as_str(), frame["message"].as_str(), frame["from_user"].as_str()),
            (Some("chat"), Some("from Django"), Some("django"))
        );
        assert!(frame.get("seq").is_none() && frame["date"].is_string(), "{frame}");
    }
    // group_send to a user, by name.
    let event = json!({"type": "notification.message", "message": "paid", "from_user": "shop", "cate": "notification", "id": 7});
    django.group_send("alice", &event);
    let frame = alice.frame().await;
    assert_eq!(
        (frame["type"].as_str(), frame["id"].as_u64(), frame["message"].as_str()),
        (Some("notification"), Some(7), Some("paid"))
    );
    // send to one socket's channel name.
    let (_, answer) = node.at().api("GET", "/api/users/bob", None).await;
    let channel = answer["sockets"][0]["channel_name"].as_str().unwrap();
    django.send(channel, &json!({"type": "gateway.send", "text": "{\"type\":\"cart\",\"items\":2}"}));
    assert_eq!(bob.frame().await, json!({"type": "cart", "items": 2}));
    // A group of Django's own, with a browser's socket in it. Pub/sub knows no members of other processes.
    if channel.contains('!') {
        django.group_add("cart_7", channel);
        django.group_send("cart_7", &json!({"type": "gateway.send", "text": "{\"type\":\"cart\",\"items\":3}"}));
        assert_eq!(bob.frame().await, json!({"type": "cart", "items": 3}));
    }
    // What nobody knows closes nothing.
    let unhandled = node.metric("gateway_layer_events_unhandled_total").await;
    django.group_send("chat_lobby", &json!({"type": "no.such.thing"}));
    django.group_send("chat_lobby", &json!({"no": "type"}));
    eventually("counted", || async { node.metric("gateway_layer_events_unhandled_total").await == unhandled + 2.0 })
        .await;

    // And from a browser to Django.
    let mine = join(&node, &django, "chat_lobby").await;
    let ack = alice.say_acked("lobby", "héllo Django", "1").await;
    let event = django.receive(&mine, WITHIN).unwrap();
    assert_eq!(
        (
            event["type"].as_str(),
            event["message"].as_str(),
            event["group_name"].as_str(),
            event["from_user"].as_str(),
            event["cate"].as_str()
        ),
        (Some("chat_message"), Some("héllo Django"), Some("lobby"), Some("alice"), Some("chat"))
    );
    assert_eq!((&event["id"], &event["seq"], &event["date"]), (&ack["id"], &ack["seq"], &ack["date"]));
    assert!(event["epoch"].is_i64());
    // And to a channel of Django's.
    let name = channel_layer::ChannelName::parse(&mine).unwrap();
    node.running.node().layer.send(&name, &gateway::Event::new("job.done").with("n", 1)).await.unwrap();
    assert_eq!(django.receive(&mine, WITHIN), Some(json!({"type": "job.done", "n": 1})));

    django.group_send("alice", &json!({"type": "gateway.disconnect", "reason": "logged out"}));
    assert_eq!(alice.closed().await, 4403);
}

/// What a site sets on both sides to encrypt JSON; Django has changed its key already.
fn encrypted() -> ([(&'static str, &'static str); 2], Value) {
    (
        [("layer-serializer", "json"), ("layer-encryption-keys", "key,new key")],
        json!({"serializer_format": "json", "symmetric_encryption_keys": ["new key", "key"]}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_pubsub_layer() {
    let redis = RedisServer::start();
    let (node, django) = site(Kind::PubSub, &[redis.url()], &[], json!({})).await;
    let _bob = node.join("carol", "lobby").await;
    let (_, answer) = node.at().api("GET", "/api/users/carol", None).await;
    let channel = answer["sockets"][0]["channel_name"].as_str().unwrap();
    assert!(channel.starts_with("asgispecific.") && channel.len() == "asgispecific.".len() + 32, "{channel}");
    django_writes_to_browsers_and_hears_from_them(node, django).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_core_layer() {
    let redis = RedisServer::start();
    let (node, django) = site(Kind::Core, &[redis.url()], &[], json!({})).await;
    django_writes_to_browsers_and_hears_from_them(node, django).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_encrypted_json_on_three_shards_of_the_core_layer() {
    let redis = RedisServer::start();
    let (own, config) = encrypted();
    let shards: Vec<String> = (0..3).map(|number| redis.database(number)).collect();
    let (node, django) = site(Kind::Core, &shards, &own, config).await;
    django_writes_to_browsers_and_hears_from_them(node, django).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_encrypted_json_on_three_shards_of_the_pubsub_layer() {
    let redis = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let (own, config) = encrypted();
    let (node, django) = site(Kind::PubSub, &redis.each_ref().map(RedisServer::url), &own, config).await;
    django_writes_to_browsers_and_hears_from_them(node, django).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_core_layer_under_another_prefix() {
    let redis = RedisServer::start();
    let own = [("layer-prefix", "site"), ("namespace", "site-gateway"), ("layer-serializer", "json")];
    let config = json!({"prefix": "site", "serializer_format": "json", "capacity": 7, "expiry": 5});
    let (node, django) = site(Kind::Core, &[redis.url()], &own, config).await;
    django_writes_to_browsers_and_hears_from_them(node, django).await;
    let keys = redis.cli(&["KEYS", "*"]);
    assert!(keys.contains("site:group:chat_lobby") && !keys.contains("asgi"), "{keys}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_costs_one_subscription_however_many_sockets_are_in_it() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(node.join("alice", "lobby").await);
    }
    let channels = redis.cli(&["PUBSUB", "CHANNELS", "asgi__group__*"]);
    let mut channels: Vec<&str> = channels.split_whitespace().collect();
    channels.retain(|channel| !channel.contains("__group__r.gateway.nodes"));
    channels.sort_unstable();
    assert_eq!(channels, ["asgi__group__alice", "asgi__group__chat_lobby"]);
    let counts = redis.cli(&["PUBSUB", "NUMSUB", "asgi__group__chat_lobby"]);
    assert_eq!(counts.split_whitespace().last(), Some("1"), "{counts}");
    // One command per publish, whatever the number of members.
    let commands = || -> u64 {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_publish:")).unwrap_or_default().to_owned();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse().ok()).unwrap_or(0)
    };
    let before = commands();
    for _ in 0..10 {
        sockets[0].say_acked("lobby", "x", &uuid::Uuid::new_v4().to_string()).await;
    }
    // The ack does not wait for Redis, so the last PUBLISH may still be on its way.
    eventually("ten are published", || async { commands() >= before + 10 }).await;
    let published = commands() - before;
    assert!(
        (10..=12).contains(&published),
        "{published} PUBLISH commands for 10 messages, greetings of the node aside"
    );
    // The last one out ends the subscription.
    for socket in sockets {
        socket.close().await;
    }
    eventually("unsubscribed", || async {
        redis.cli(&["PUBSUB", "NUMSUB", "asgi__group__chat_lobby"]).split_whitespace().last() == Some("0")
    })
    .await;
}
