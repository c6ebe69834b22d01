//! Where a node stands in a stream: holes, repeats, events of other histories, and comparisons with the database.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use channel_layer::{ChannelLayer, Event, GroupName, RedisPubSubLayer};
use common::{Client, TestNode, eventually};
use persistence::{Append, Appended, Stream};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::proxy::{ChaosProxy, Way};
use testkit::redis::RedisServer;

const QUIET: [(&str, &str); 2] = [("retention.interval_seconds", "0"), ("limits.frames_per_second", "0")];

async fn start(own: &[(&str, &str)]) -> TestNode {
    TestNode::start(&[&QUIET[..], own].concat()).await
}

/// Stores messages without telling the layer, as a node does that dies after its commit.
async fn store(node: &TestNode, stream: &Stream, texts: &[&str]) -> Vec<Appended> {
    let append = |text: &&str| Append {
        stream: stream.clone(),
        from_user: "ops".into(),
        message: (*text).into(),
        data: None,
        key: None,
        create_inbox: true,
        origin: None,
    };
    let appends: Vec<_> = texts.iter().map(append).collect();
    node.running.node().store.append(&appends).await.unwrap().into_iter().map(Result::unwrap).collect()
}

/// The event of a stored message, as any node publishes it.
fn event(stream: &Stream, text: &str, stored: &Appended) -> (GroupName, Event) {
    let (group, event) = match stream {
        Stream::Room(room) => (format!("chat_{room}"), Event::new("chat_message").with("group_name", room.as_str())),
        Stream::Inbox(user) => (user.clone(), Event::new("notification_message")),
    };
    let event = event
        .with("message", text)
        .with("from_user", "ops")
        .with("id", stored.id.to_string())
        .with("seq", stored.seq as i64)
        .with("epoch", stored.epoch);
    (GroupName::parse(&group).unwrap(), event)
}

/// All of them in one go, sealed as a node does it.
fn publish(node: &TestNode, events: impl IntoIterator<Item = (GroupName, Event)>) {
    let node = node.running.node();
    for (group, event) in events {
        node.layer.group_send_later(&group, &node.sealed(&group, event)).unwrap();
    }
}

fn lobby() -> Stream {
    Stream::Room("lobby".into())
}

async fn hears(client: &mut Client, seqs: impl IntoIterator<Item = u64>) {
    for seq in seqs {
        let frame = client.frame().await;
        assert_eq!(frame["seq"], seq, "{frame}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_closes_by_itself_costs_nothing_and_another_one_statement_for_all_members() {
    const MEMBERS: usize = 20;
    let redis = RedisServer::start();
    let proxy = ChaosProxy::redis(redis.port());
    let node = start(&[("redis-url", &proxy.url())]).await;
    let mut members = Vec::new();
    for number in 0..MEMBERS {
        members.push(node.join(&format!("user-{number}"), "lobby").await);
    }
    let rooms = store(&node, &lobby(), &["1", "2", "3", "4", "5", "6"]).await;
    let own = Stream::Inbox("user-0".into());
    let inbox = store(&node, &own, &["1", "2", "3"]).await;
    let of = |at: usize| event(&lobby(), "any", &rooms[at - 1]);
    let statements = || node.running.node().store.statements();
    let before = statements();
    // Two nodes commit in order and publish out of order. All three arrive together: a hole is given 50 ms to close.
    let others = RedisPubSubLayer::connect(&redis.url()).await.unwrap();
    proxy.hold(Way::ToClient);
    for (group, event) in [of(3), of(1), of(2)] {
        others.group_send(&group, &node.running.node().sealed(&group, event)).await.unwrap();
    }
    proxy.pass();
    for member in &mut members {
        hears(member, 1..=3).await;
    }
    // Lost for good: whatever the first jump asked for has been asked when this is answered.
    publish(&node, [of(6)]);
    for member in &mut members {
        hears(member, 4..=6).await;
    }
    assert_eq!(statements() - before, 1, "in a room");
    publish(&node, [event(&own, "3", &inbox[2])]);
    hears(&mut members[0], 1..=3).await;
    assert_eq!(statements() - before, 2, "in an inbox");
    // Those that were held were there.
    assert_eq!(node.metric("gateway_layer_gaps_filled_total").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_repeats_are_dropped() {
    let redis = RedisServer::start();
    let node = start(&[("redis-url", &redis.url())]).await;
    let mut alice = node.join("alice", "lobby").await;
    let stored = store(&node, &lobby(), &["1", "2", "3"]).await;
    let of = |seq: usize| event(&lobby(), "any", &stored[seq - 1]);
    publish(&node, [of(1), of(1), of(2), of(1), of(2), of(3)]);
    hears(&mut alice, 1..=3).await;
    alice.hears_nothing_before_own("lobby").await;
    assert_eq!(node.metric("gateway_layer_events_dropped_total{reason=\"old\"}").await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_an_epoch_or_of_another_one_moves_no_position() {
    let redis = RedisServer::start();
    let node = start(&[("redis-url", &redis.url())]).await;
    let mut alice = node.join("alice", "lobby").await;
    let stored = store(&node, &lobby(), &["1", "2", "3"]).await;
    let (group, real) = event(&lobby(), "1", &stored[0]);
    let outside = Event::new("chat.message").with("message", "outside").with("group_name", "lobby").with("seq", 2);
    let (_, foreign) =
        event(&lobby(), "foreign", &Appended { epoch: stored[0].epoch + 1, seq: 3, ..stored[2].clone() });
    publish(&node, [(group.clone(), outside), (group.clone(), foreign), (group, real)]);
    let frame = alice.frame().await;
    assert_eq!((&frame["message"], frame.get("seq")), (&json!("outside"), None));
    // The foreign one is shown to nobody. It made the node look at the database, which has all three.
    for (seq, text) in [(1, "1"), (2, "2"), (3, "3")] {
        let frame = alice.frame().await;
        assert_eq!((&frame["message"], &frame["seq"]), (&json!(text), &json!(seq)));
    }
    alice.hears_nothing_before_own("lobby").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_begins_afresh_for_all_and_reaches_who_has_resumed_before() {
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    let node = start(&[("database-url", &database)]).await;
    let mut bob = node.join("bob", "lobby").await;
    let mut acks = Vec::new();
    for n in 1..=5 {
        acks.push(bob.say_acked("lobby", &n.to_string(), &n.to_string()).await);
        assert_eq!(bob.hears().await, n.to_string());
    }
    let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
    alice.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": 5, "id": acks[4]["id"]}}})).await;
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": true}}));
    // A backup from before the third message, and the operator has given its streams new epochs.
    let id = acks[1]["id"].as_str().unwrap();
    let restore = format!(
        "DELETE FROM gateway_messages WHERE seq > 2; \
         UPDATE gateway_rooms SET epoch = epoch + 1, last_seq = 2, last_id = '{id}'"
    );
    postgres.sql(&database, &restore);
    bob.say("lobby", "after").await;
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": false}}));
    let frame = alice.frame().await;
    assert_eq!((&frame["message"], &frame["seq"]), (&json!("after"), &json!(3)));
    // A plain client is told nothing it did not ask for.
    let frame = bob.frame().await;
    assert_eq!((&frame["message"], &frame["seq"]), (&json!("after"), &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnection_brings_all_that_was_lost_however_much_it_is() {
    const LOST: u64 = 2500;
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let link = ChaosProxy::redis(redis.port());
    let node = async |redis: &str| start(&[("redis-url", redis), ("database-url", &database)]).await;
    let (deaf, other) = (node(&link.url()).await, node(&redis.url()).await);
    let mut alice = deaf.join("alice", "lobby").await;
    link.drop_replies(|reply| reply.windows(5).any(|part| part == b"lost-"));
    for from in (0..LOST).step_by(500) {
        let event = |number| json!({"type": "chat", "to": "room:lobby", "data": {"message": format!("lost-{number}"), "from_user": "ops"}});
        let events: Vec<Value> = (from..from + 500).map(event).collect();
        assert_eq!(other.at().api("POST", "/api/events", Some(events.into())).await.0, 200);
    }
    eventually("all of it is lost", || async { link.dropped() == LOST }).await;
    // Much sooner than the next regular comparison: every frame within the usual patience.
    link.pass();
    link.cut();
    hears(&mut alice, 1..=LOST).await;
    // A comparison while Redis is away may have brought it all before the connection is back.
    let back = async || deaf.metric("gateway_layer_reconnects_total").await == 1.0;
    eventually("the connection is back", back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_a_statement_for_all_rooms_and_one_for_all_inboxes() {
    const USERS: usize = 30;
    let mut redis = RedisServer::start();
    let node = start(&[("redis-url", &redis.url())]).await;
    let mut sockets = Vec::new();
    for number in 0..USERS {
        sockets.push(node.join(&format!("user-{number}"), &format!("room-{number}")).await);
    }
    redis.kill();
    let count = async |operation: &str| {
        node.metric(&format!("gateway_store_seconds_count{{operation=\"{operation}\"}}")).await as u64
    };
    eventually("positions are compared", || async { count("compare").await >= 1 }).await;
    // Memberships are looked at in between, with one statement for all users.
    let before = (count("compare").await, count("memberships").await, node.running.node().store.statements());
    eventually("every second, while Redis is away", || async { count("compare").await >= before.0 + 4 }).await;
    let statements = node.running.node().store.statements() - before.2;
    // Another one may have begun meanwhile.
    let most = 2 * (count("compare").await + 1 - before.0) + count("memberships").await + 1 - before.1;
    assert!(statements <= most, "{statements} statements, at most {most} expected");
    // What is stored meanwhile comes with the next one.
    store(&node, &Stream::Room("room-7".into()), &["without redis"]).await;
    assert_eq!(sockets[7].hears().await, "without redis");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_to_reload_a_room_that_it_has_left_and_hears_again() {
    let node = start(&[("room-policy", "members")]).await;
    let door = node.at();
    let put = async |path: &str| assert_eq!(door.api("PUT", path, None).await.0, 200, "{path}");
    let say = async |text: &str| {
        let event = json!({"type": "chat", "to": "room:lobby", "data": {"message": text, "from_user": "ops"}});
        assert_eq!(door.api("POST", "/api/events", Some(event)).await.0, 200);
    };
    put("/api/rooms/lobby").await;
    put("/api/rooms/lobby/members/alice").await;
    let mut alice = door.v1("/ws/chat/", "alice").await;
    let mut plain = door.connect("/ws/chat/", "alice").await;
    assert_eq!(alice.rooms().await, ["lobby"]);
    say("one").await;
    say("two").await;
    hears(&mut alice, 1..=2).await;
    hears(&mut plain, 1..=2).await;
    // Removed, and back when more has been said.
    assert_eq!(door.api("DELETE", "/api/rooms/lobby/members/alice", None).await.0, 200);
    while !alice.rooms().await.is_empty() {}
    while !plain.rooms().await.is_empty() {}
    say("three").await;
    put("/api/rooms/lobby/members/alice").await;
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": false}}));
    while plain.rooms().await.is_empty() {}
    say("four").await;
    hears(&mut alice, [4]).await;
    hears(&mut plain, [4]).await;
    // The room itself gone, and made again: its numbers begin at 1.
    assert_eq!(door.api("DELETE", "/api/rooms/lobby", None).await.0, 200);
    while !alice.rooms().await.is_empty() {}
    put("/api/rooms/lobby").await;
    put("/api/rooms/lobby/members/alice").await;
    assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {"lobby": false}}));
    say("afresh").await;
    let frame = alice.until(|frame| frame["type"] == "chat").await;
    assert_eq!((&frame["message"], &frame["seq"]), (&json!("afresh"), &json!(1)));
    // A room that is new to the socket is nothing to reload.
    put("/api/rooms/new").await;
    put("/api/rooms/new/members/alice").await;
    while alice.rooms().await.len() < 2 {}
}
