//! Whoever can write to the layer cannot take a place in a stream, nor speak as a node: that needs the database.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::Duration;

use channel_layer::{ChannelName, Event, GroupName};
use common::{Client, Heard, TestNode, eventually};
use persistence::{Append, Appended, Stream};
use serde_json::json;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::time::timeout;

const LAYERS: [&str; 3] = ["memory", "pubsub", "core"];

async fn start(redis: &RedisServer, layer: &str, own: &[(&str, &str)]) -> TestNode {
    let url = redis.url();
    let mut settings = vec![("retention.interval_seconds", "0"), ("limits.frames_per_second", "0")];
    if layer != "memory" {
        settings.extend([("redis-url", url.as_str()), ("layer", layer)]);
    }
    settings.extend(own);
    TestNode::start(&settings).await
}

fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

/// What anybody on the layer can do.
async fn send(node: &TestNode, to: &str, event: &Event) {
    node.running.node().layer.group_send(&group(to), event).await.unwrap();
}

/// The same by a node.
async fn send_sealed(node: &TestNode, to: &str, event: Event) {
    let sealed = node.running.node().sealed(&group(to), event);
    send(node, to, &sealed).await;
}

/// Somebody who listens on the layer.
struct Ear<'a> {
    node: &'a TestNode,
    channel: ChannelName,
}

impl<'a> Ear<'a> {
    async fn on(node: &'a TestNode, of: &str) -> Self {
        let layer = &node.running.node().layer;
        let channel = layer.new_channel("").await.unwrap();
        layer.group_add(&group(of), &channel).await.unwrap();
        Self { node, channel }
    }

    /// The next event of this type.
    async fn hears(&self, kind: &str) -> Event {
        let layer = &self.node.running.node().layer;
        loop {
            let event = timeout(common::PATIENCE * 2, layer.receive(&self.channel)).await.unwrap().unwrap();
            if event.event_type() == Some(kind) {
                return event;
            }
        }
    }
}

fn lobby() -> Stream {
    Stream::Room("lobby".into())
}

/// Stores a message without telling anybody.
async fn store(node: &TestNode, stream: Stream, text: &str) -> Appended {
    let (from_user, message) = ("ops".into(), text.into());
    let append = Append { stream, from_user, message, data: None, key: None, create_inbox: true, origin: None };
    node.running.node().store.append(&[append]).await.unwrap().pop().unwrap().unwrap()
}

fn chat(text: &str, epoch: i64, seq: u64, id: &str) -> Event {
    let event = Event::new("chat_message").with("message", text).with("group_name", "lobby").with("from_user", "ops");
    event.with("cate", "chat").with("id", id).with("seq", seq).with("epoch", epoch)
}

async fn hears(client: &mut Client, text: &str, seq: Option<u64>) {
    let frame = client.until(|frame| frame["type"] != "ack").await;
    assert_eq!((frame["message"].as_str(), frame["seq"].as_u64()), (Some(text), seq), "{frame}");
    assert!(frame["date"].is_string(), "{frame}");
}

async fn forged(node: &TestNode, reason: &str) -> f64 {
    node.metric(&format!("gateway_layer_events_forged_total{{reason=\"{reason}\"}}")).await
}

fn statements(node: &TestNode) -> u64 {
    node.running.node().store.statements()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_position_is_no_position_and_the_real_message_keeps_its_place() {
    let redis = RedisServer::start();
    for layer in LAYERS {
        let node = start(&redis, layer, &[("namespace", layer), ("layer-prefix", layer)]).await;
        let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
        let ear = Ear::on(&node, "chat_lobby").await;
        let first = bob.say_acked("lobby", "one", "1").await;
        let stolen = ear.hears("chat_message").await;
        hears(&mut alice, "one", Some(1)).await;
        let epoch = stolen.get("epoch").unwrap().as_i64().unwrap();
        let before = statements(&node);
        let id = uuid::Uuid::new_v4().to_string();
        let fake = chat("forged", epoch, 2, &id);
        let seal = stolen.text("seal").unwrap();
        let others_text = Event::clone(&stolen).with("message", "forged");
        let forgeries = [
            fake.clone(),
            fake.clone().with("seal", seal),
            fake.clone().with("seal", 7),
            fake.clone().with("seal", "AAAAAAAAAAAAAAAA"),
            fake.clone().with("seal", "no seal but as long"),
            // A jump, another history, and what was stored with other words.
            chat("forged", epoch, 1000, &id),
            chat("forged", epoch + 1, 1, &id),
            others_text,
            Event::clone(&stolen).with("message", "forged").with("seq", 2),
            Event::clone(&stolen).with("from_user", "root").with("message", "forged"),
        ];
        for forgery in &forgeries {
            send(&node, "chat_lobby", forgery).await;
            hears(&mut alice, "forged", None).await;
        }
        // An unknown key has the node read the deployment's secrets once.
        assert!(statements(&node) <= before + 1, "no hole is looked for");
        let counted = async |node: &TestNode| {
            forged(node, "unsealed").await + forged(node, "wrong").await + forged(node, "unknown_key").await
        };
        assert_eq!(counted(&node).await, forgeries.len() as f64, "{layer}");

        let second = bob.say_acked("lobby", "two", "2").await;
        assert_eq!(second["seq"], 2);
        hears(&mut alice, "two", Some(2)).await;
        let mut carol = node.at().v1("/ws/chat/lobby/", "carol").await;
        carol.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": 1, "id": first["id"]}}})).await;
        let frame = carol.frame().await;
        assert_eq!((&frame["message"], &frame["seq"], &frame["id"]), (&json!("two"), &json!(2), &second["id"]));
        assert_eq!(carol.frame().await, json!({"type": "resumed", "rooms": {"lobby": true}}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_event_counts_once_and_in_its_own_stream() {
    let redis = RedisServer::start();
    for layer in LAYERS {
        let node = start(&redis, layer, &[("namespace", layer), ("layer-prefix", layer)]).await;
        let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "other").await);
        let (ear, own) = (Ear::on(&node, "chat_lobby").await, Ear::on(&node, "alice").await);
        alice.say("lobby", "one").await;
        hears(&mut alice, "one", Some(1)).await;
        let stored = ear.hears("chat_message").await;
        bob.send(json!({"cate": "notification", "user_name": "alice", "message": "psst"})).await;
        hears(&mut alice, "psst", Some(1)).await;
        let notified = own.hears("notification_message").await;

        // Again where it belongs: nothing. Elsewhere: as one that was not stored.
        send(&node, "chat_lobby", &stored).await;
        send(&node, "alice", &notified).await;
        alice.hears_nothing_before_own("lobby").await;
        eventually("both are dropped", || async {
            node.metric("gateway_layer_events_dropped_total{reason=\"old\"}").await == 2.0
        })
        .await;
        send(&node, "chat_other", &stored).await;
        hears(&mut bob, "one", None).await;
        send(&node, "bob", &notified).await;
        hears(&mut bob, "psst", None).await;
        assert_eq!(forged(&node, "wrong").await, 2.0, "{layer}");
        bob.say("other", "first").await;
        hears(&mut bob, "first", Some(1)).await;

        // By the name of a socket: the stored one is there already, a forged one is not stored.
        let (_, shown) = node.at().api("GET", "/api/users/alice", None).await;
        let channel = ChannelName::parse(shown["sockets"][0]["channel_name"].as_str().unwrap()).unwrap();
        let to_socket = async |event: &Event| node.running.node().layer.send(&channel, event).await.unwrap();
        to_socket(&stored).await;
        to_socket(&chat("forged", stored.get("epoch").unwrap().as_i64().unwrap(), 3, "x")).await;
        hears(&mut alice, "forged", None).await;
        assert_eq!(node.metric("gateway_layer_events_dropped_total{reason=\"duplicate\"}").await, 1.0, "{layer}");
        alice.say("lobby", "three").await;
        hears(&mut alice, "three", Some(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_database_is_a_stranger() {
    let redis = RedisServer::start();
    let node = start(&redis, "pubsub", &[]).await;
    let stranger = start(&redis, "memory", &[]).await;
    let mut alice = node.join("alice", "lobby").await;
    let stored = store(&node, lobby(), "real").await;
    let fake = chat("forged", stored.epoch, 1, &stored.id.to_string());
    send(&node, "chat_lobby", &stranger.running.node().sealed(&group("chat_lobby"), fake)).await;
    hears(&mut alice, "forged", None).await;
    assert_eq!(forged(&node, "unknown_key").await, 1.0);
    send_sealed(&node, "chat_lobby", chat("real", stored.epoch, 1, &stored.id.to_string())).await;
    hears(&mut alice, "real", Some(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_loses_nothing_whenever_a_node_learns_of_it() {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let node = async |name: &str| {
        let own = [("database-url", database.as_str()), ("node-id", name)];
        start(&redis, "pubsub", &own).await
    };
    let old = node("old").await;
    let mut alice = old.join("alice", "lobby").await;
    Postgres::shared().sql(&database, "UPDATE gateway_deployment SET secret_made_at = 1");
    // It finds the secret too old and makes another, which it does not use yet.
    let new = node("new").await;
    let secret = "SELECT count(*) FROM gateway_deployment WHERE previous_secret <> secret";
    assert_eq!(Postgres::shared().sql(&database, secret).trim(), "1");
    let mut bob = new.join("bob", "lobby").await;
    for (seq, text) in (1..).zip(["one", "two", "three"]) {
        let from = if seq == 2 { &mut alice } else { &mut bob };
        from.say("lobby", text).await;
        hears(&mut alice, text, Some(seq)).await;
        hears(&mut bob, text, Some(seq)).await;
    }
    assert_eq!((forged(&old, "unknown_key").await, forged(&new, "unknown_key").await), (0.0, 0.0));
    // Some time later a node starts and uses it. The old one has not read it, and does so at once.
    Postgres::shared().sql(&database, "UPDATE gateway_deployment SET secret_made_at = secret_made_at - 3600");
    let newest = node("newest").await;
    let mut carol = newest.join("carol", "lobby").await;
    carol.say("lobby", "four").await;
    hears(&mut bob, "four", Some(4)).await;
    alice.until(|frame| frame["message"] == "four" && frame["seq"] == 4).await;
    carol.say("lobby", "five").await;
    hears(&mut alice, "five", Some(5)).await;
    alice.say("lobby", "six").await;
    carol.until(|frame| frame["message"] == "six" && frame["seq"] == 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_contradicts_a_delivered_one_is_looked_up_at_once() {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let node = start(&redis, "pubsub", &[("database-url", &database)]).await;
    let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
    alice.rooms().await;
    for (seq, text) in (1..).zip(["one", "two", "three"]) {
        alice.say("lobby", text).await;
        hears(&mut alice, text, Some(seq)).await;
    }
    // A node of the deployment errs: what was delivered is what the database has, and nobody is told anything.
    let epoch = node.running.node().store.room("lobby").await.unwrap().unwrap().epoch;
    for (seq, next) in [(2, 4), (4, 5)] {
        let before = statements(&node);
        send_sealed(&node, "chat_lobby", chat("another", epoch, seq, &uuid::Uuid::new_v4().to_string())).await;
        eventually("the database is asked", || async { statements(&node) > before }).await;
        let text = format!("after {seq}");
        alice.say("lobby", &text).await;
        hears(&mut alice, &text, Some(next)).await;
    }
    // A restored backup that has kept its epochs: the place is taken again, by another message.
    let restore = "DELETE FROM gateway_messages WHERE seq > 4; UPDATE gateway_rooms SET last_seq = 4, \
                   last_id = (SELECT id FROM gateway_messages WHERE seq = 4)";
    Postgres::shared().sql(&database, restore);
    alice.say("lobby", "five again").await;
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": false}}));
    alice.say("lobby", "six").await;
    hears(&mut alice, "six", Some(6)).await;
    assert_eq!(node.metric("gateway_layer_events_dropped_total{reason=\"disputed\"}").await, 3.0);
}

/// What a stranger may say of the kind that only nodes say.
fn words() -> Vec<(&'static str, Event)> {
    let seen = Event::new("gateway_seen").with("up_to", 1).with("unseen", 0).with("at", now());
    vec![
        ("alice", Event::new("gateway_seen").with("frame", r#"{"type":"chat","message":"forged"}"#)),
        ("alice", Event::new("gateway.seen").with("frame", "no JSON at all")),
        ("alice", seen),
        ("chat_lobby", Event::new("gateway_typing").with("group_name", "lobby").with("from_user", "root")),
        ("alice", Event::new("gateway_rooms_changed")),
        ("alice", Event::new("gateway.rooms_changed").with("removed", "lobby")),
        ("chat_lobby", Event::new("gateway_rooms_changed").with("removed", "lobby").with("at", now())),
    ]
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_nodes_say_is_ignored_from_others_and_costs_nothing() {
    let redis = RedisServer::start();
    for layer in LAYERS {
        let node = start(&redis, layer, &[("namespace", layer), ("layer-prefix", layer)]).await;
        let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
        assert_eq!(alice.rooms().await, ["lobby"]);
        let before = statements(&node);
        for (to, word) in words() {
            send(&node, to, &word).await;
            send(&node, to, &node.running.node().sealed(&group(to), word.with("at", now() - 3600))).await;
        }
        let (_, shown) = node.at().api("GET", "/api/users/alice", None).await;
        let channel = ChannelName::parse(shown["sockets"][0]["channel_name"].as_str().unwrap()).unwrap();
        node.running.node().layer.send(&channel, &Event::new("gateway_rooms_changed")).await.unwrap();
        let all = words().len() as f64;
        eventually("all are counted", || async {
            (forged(&node, "unsealed").await, forged(&node, "stale").await) == (all + 1.0, all)
        })
        .await;
        // Nothing of it has come to the socket, whose own turn is now.
        alice.send(json!({"cate": "ping"})).await;
        assert!(matches!(alice.hear().await, Heard::Frame(frame) if frame["type"] == "pong"), "{layer}");
        // What is stale has the node look once at the database's clock, and it asks now and then whether that is there.
        assert!(statements(&node) < before + words().len() as u64 / 2, "{layer}");
        alice.say("lobby", "still here").await;
        hears(&mut alice, "still here", Some(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_of_a_node_is_heard_once() {
    let redis = RedisServer::start();
    let node = start(&redis, "pubsub", &[("room-policy", "members")]).await;
    let door = node.at();
    let put = async |path: &str| assert_eq!(door.api("PUT", path, None).await.0, 200);
    put("/api/rooms/lobby").await;
    put("/api/rooms/lobby/members/alice").await;
    let mut alice = door.v1("/ws/chat/", "alice").await;
    assert_eq!(alice.rooms().await, ["lobby"]);
    let ear = Ear::on(&node, "alice").await;
    assert_eq!(door.api("DELETE", "/api/rooms/lobby/members/alice", None).await.0, 200);
    let word = ear.hears("gateway_rooms_changed").await;
    while !alice.rooms().await.is_empty() {}
    put("/api/rooms/lobby/members/alice").await;
    while alice.rooms().await.is_empty() {}
    let before = statements(&node);
    for _ in 0..100 {
        send(&node, "alice", &word).await;
        send(&node, "bob", &word).await;
    }
    eventually("all are counted", || async { forged(&node, "repeated").await == 100.0 }).await;
    assert_eq!(alice.rooms().await, ["lobby"]);
    // The question for the rooms, and now and then whether the database is there.
    assert!(statements(&node) - before < 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_the_nodes_by_saying_hello() {
    let redis = RedisServer::start();
    for layer in ["pubsub", "core"] {
        let own = [("namespace", layer), ("layer-prefix", layer), ("node-id", "real")];
        let node = start(&redis, layer, &own).await;
        let nodes = format!("r.{layer}.nodes");
        let ear = Ear::on(&node, &nodes).await;
        // Its own, by which it is known that the mailbox is open.
        let hello = ear.hears("gateway.hello").await;
        let compared = async || node.metric("gateway_store_seconds_count{operation=\"compare\"}").await;
        let before = compared().await;
        for ghost in ["ghost-1", "ghost-2"] {
            send(&node, &nodes, &Event::new("gateway.hello").with("node", ghost).with("back", true)).await;
            send(&node, &nodes, &Event::clone(&hello).with("node", ghost)).await;
        }
        send(&node, &nodes, &hello).await;
        send(&node, &nodes, &Event::new("gateway.lost")).await;
        eventually("all are counted", || async {
            let (unsealed, wrong) = (forged(&node, "unsealed").await, forged(&node, "wrong").await);
            (unsealed, wrong, forged(&node, "repeated").await) == (3.0, 2.0, 1.0)
        })
        .await;
        assert_eq!(node.at().api("GET", "/api/nodes", None).await.1["nodes"], json!(["real"]), "{layer}");
        assert_eq!(compared().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_message_that_names_no_room_is_of_the_room_of_its_group() {
    let redis = RedisServer::start();
    for layer in LAYERS {
        let node = start(&redis, layer, &[("namespace", layer), ("layer-prefix", layer)]).await;
        let mut alice = node.join("alice", "lobby").await;
        let odd = node.running.node().names.room("Łódź").unwrap();
        assert!(odd.as_str().starts_with("r."));
        let mut bob = node.join("bob", "%C5%81%C3%B3d%C5%BA").await;
        let event = Event::new("chat.message").with("message", "hi").with("from_user", "django");
        send(&node, "chat_lobby", &event).await;
        let frame = alice.frame().await;
        assert_eq!((&frame["group_name"], &frame["display_name"]), (&json!("lobby"), &json!("lobby")));
        send(&node, "chat_lobby", &event.clone().with("group_name", channel_layer::Value::Null)).await;
        assert_eq!(alice.frame().await["group_name"], "lobby");
        send(&node, odd.as_str(), &event).await;
        assert_eq!(bob.frame().await["group_name"], "Łódź", "{layer}");
        // A user's group is of no room.
        send(&node, "alice", &event).await;
        send(&node, "chat_lobby", &Event::new("chat.message").with("text", "hi")).await;
        send(&node, "alice", &Event::new("gateway.send").with("text", "no JSON")).await;
        let dropped = async || node.metric("gateway_layer_events_dropped_total{reason=\"incomplete\"}").await;
        eventually("all are counted", || async { dropped().await == 3.0 }).await;
        alice.hears_nothing_before_own("lobby").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_in_no_answer_and_in_no_event() {
    let redis = RedisServer::start();
    let node = start(&redis, "pubsub", &[]).await;
    let mut alice = node.join("alice", "lobby").await;
    let ear = Ear::on(&node, "chat_lobby").await;
    alice.say("lobby", "one").await;
    hears(&mut alice, "one", Some(1)).await;
    let secrets = node.running.node().store.secrets(Duration::MAX).await.unwrap();
    let mut seen = format!("{:?} {:?} {secrets:?}", ear.hears("chat_message").await, node.running.node());
    for path in ["/metrics", "/api/nodes", "/readyz"] {
        seen += &node.at().internal_get(path).await.1;
    }
    let hex: String = secrets.current.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = format!("{:?}", secrets.current.bytes());
    for shown in [hex.as_str(), numbers.trim_matches(['[', ']'])] {
        assert!(!seen.contains(shown));
    }
}
