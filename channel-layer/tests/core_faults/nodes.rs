//! Other processes that stop, die, forget or have a wrong clock: R13 to R16 and R18.

use std::{collections::HashSet, time::Duration};

use channel_layer::{ChannelLayer, RedisCoreLayer};
use serde_json::json;
use testkit::{
    python::{Kind, Peer},
    redis::RedisServer,
};
use tokio::time::{Instant, timeout};

use crate::{
    ALIVE,
    common::{Collector, PATIENCE, channel, group, until},
    long,
    node::Node,
    number, numbered, pass,
};

/// 150 messages to each of twenty groups, while the node that has joined them is stopped: how many it gets
/// of them afterwards.
async fn what_a_stopped_node_gets(clients: usize) -> u64 {
    let server = RedisServer::start();
    let mut node = Node::start(&json!({ "hosts": [server.url()], "clients": clients }));
    let groups: Vec<String> = (0..20).map(|n| format!("room.{n}")).collect();
    let names: Vec<&str> = groups.iter().map(String::as_str).collect();
    node.join(&names);
    node.signal("STOP");
    let python = Peer::core(&json!({ "hosts": [server.url()] }));
    for name in &names {
        python.group_send_many(name, &json!({"type": "t"}), 150, Duration::ZERO).value();
    }
    node.signal("CONT");
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    until("its queues are empty", || server.cli(&["KEYS", "asgispecific.*"]).is_empty()).await;
    // What it has popped it takes in at once.
    let (mut last, mut count) = (0, node.count());
    while count == 0 || count != last {
        pass(Duration::from_millis(200)).await;
        (last, count) = (count, node.count());
    }
    // It works as before.
    layer.group_send(&group("room.0"), &numbered(1)).await.unwrap();
    until("it hears again", || node.count() == count + 1).await;
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_a_stopped_node_loses_less_with_more_client_ids() {
    let (one, four) = (what_a_stopped_node_gets(1).await, what_a_stopped_node_gets(4).await);
    // Python's capacity of 100 a queue, and what was on its way when it stopped.
    assert!((100..=202).contains(&one), "{one}");
    assert!((400..=808).contains(&four), "{four}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_a_stopped_node_hinders_nobody_and_is_counted() {
    let server = RedisServer::start();
    let mut node = Node::start(&json!({ "hosts": [server.url()] }));
    node.join(&["room"]);
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 10).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    node.signal("STOP");
    for n in 0..1_000 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&collected.group(&room).await), n);
    }
    let dropped = layer.stats().over_capacity;
    assert!((850..=900).contains(&dropped), "{dropped}");
    node.signal("CONT");
    until("it gets what waited", || node.count() >= 1_000 - dropped).await;
}

/// A sink that takes its time keeps nobody else's queue from being read.
#[tokio::test(flavor = "multi_thread")]
async fn r13_the_reader_waits_for_no_receiver() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 2_000).await;
    let room = group("room");
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    // Nobody receives on this one; its inbox is full after 100.
    let idle = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &idle).await.unwrap();
    for n in 0..1_000 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&collected.group(&room).await), n);
    }
    assert_eq!(layer.stats().dropped, 900);
    assert_eq!(layer.stats().over_capacity, 0);
}

/// A sender removes those who joined more than two seconds ago.
#[tokio::test(flavor = "multi_thread")]
async fn r14_a_sender_with_a_group_expiry_of_2_seconds_reaches_us() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 100).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &own).await.unwrap();
    let python = Peer::core(&json!({ "hosts": [server.url()], "group_expiry": 2 }));
    pass(Duration::from_secs(4)).await;
    for n in 0..3 {
        python.group_send("room", &json!({"type": "t", "n": n}));
        assert_eq!(number(&collected.group(&room).await), n);
        pass(Duration::from_secs(1)).await;
    }
    assert_eq!(server.cli(&["ZCARD", "asgi:group:room"]), "2");
}

/// Whoever joins with it lets the whole group expire in two seconds.
#[tokio::test(flavor = "multi_thread")]
async fn r14_a_group_that_expires_because_of_another_member_is_back_with_the_next_renewal() {
    let server = RedisServer::start();
    let layer =
        RedisCoreLayer::builder(&server.url()).intervals(Duration::from_millis(250), ALIVE).connect().await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 100).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let python = Peer::core(&json!({ "hosts": [server.url()], "group_expiry": 2 }));
    python.group_add("room", "job");
    pass(Duration::from_secs(4)).await;
    layer.group_send(&room, &numbered(1)).await.unwrap();
    assert_eq!(number(&collected.group(&room).await), 1);
}

/// A node with 5,000 members dies; the others clear them away, and sends no longer cost anything for them.
async fn r15(config: serde_json::Value, other: channel_layer::RedisCoreBuilder, server: &RedisServer, limit: Duration) {
    let layer = other.connect().await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 100).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let python = Peer::core(&json!({ "hosts": [server.url()] }));
    python.group_add("room", "somebody.of.python");
    let mut node = Node::start(&config);
    let names = node.open(5_000, "room");
    node.open(10, "other");
    assert_eq!(server.cli(&["ZCARD", "asgi:group:room"]), "5002");
    let queues: HashSet<String> = names.iter().map(|name| format!("asgi{}", channel(name).non_local())).collect();
    node.kill();
    let died = Instant::now();
    testkit::wait::until("its members are gone", limit, || server.cli(&["ZCARD", "asgi:group:room"]) == "2");
    testkit::wait::until("all of them", PATIENCE, || server.cli(&["EXISTS", "asgi:group:other"]) == "0");
    assert!(died.elapsed() < limit, "{:?}", died.elapsed());
    for queue in &queues {
        server.cli(&["DEL", queue]);
    }
    server.cli(&["CONFIG", "RESETSTAT"]);
    for n in 0..100 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&collected.group(&room).await), n);
    }
    assert!(queues.iter().all(|queue| server.cli(&["EXISTS", queue]) == "0"), "nothing is sent to the dead");
    assert_eq!(python.receive_many("somebody.of.python", 100, PATIENCE).len(), 100, "others' members stay");
    // The dead are forgotten too.
    until("they are", || server.cli(&["ZCARD", "gateway:clients:asgi"]) == "4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_members_of_a_killed_node_are_removed_by_the_others() {
    let server = RedisServer::start();
    let config = json!({ "hosts": [server.url()], "heartbeat": 250, "alive": 2_000 });
    let other =
        RedisCoreLayer::builder(&server.url()).intervals(Duration::from_millis(250), Duration::from_millis(2_000));
    r15(config, other, &server, Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_with_the_usual_intervals_members_of_a_killed_node_are_gone_within_2_minutes() {
    if long() {
        let server = RedisServer::start();
        let config = json!({ "hosts": [server.url()] });
        r15(config, RedisCoreLayer::builder(&server.url()), &server, Duration::from_secs(120)).await;
    }
}

/// Before anybody has cleared them away, sends pass over members of the dead.
#[tokio::test(flavor = "multi_thread")]
async fn r15_a_node_that_was_thought_dead_is_heard_again() {
    let server = RedisServer::start();
    let (heartbeat, alive) = (Duration::from_millis(250), Duration::from_secs(2));
    let mut node = Node::start(&json!({ "hosts": [server.url()], "heartbeat": 250, "alive": 2_000 }));
    node.join(&["room"]);
    let layer = RedisCoreLayer::builder(&server.url()).intervals(heartbeat, alive).connect().await.unwrap();
    let (_relay, _collected) = Collector::relay(&layer, 10).await;
    node.signal("STOP");
    until("its members are removed", || server.cli(&["EXISTS", "asgi:group:room"]) == "0").await;
    node.signal("CONT");
    let back = Instant::now();
    let heard = async {
        loop {
            let before = node.count();
            layer.group_send(&group("room"), &numbered(1)).await.unwrap();
            pass(Duration::from_millis(100)).await;
            if node.count() > before {
                break;
            }
        }
    };
    timeout(Duration::from_secs(10), heard).await.expect("it is a member again");
    assert!(back.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_node_with_a_wrong_clock_is_a_node_as_any() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 1_000).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let clients = || server.cli(&["ZRANGE", "gateway:clients:asgi", "0", "-1"]);
    let ours = clients();
    for (offset, seconds) in [("+2d", 172_800.0), ("-2d", -172_800.0), ("+90s", 90.0), ("-5s", -5.0)] {
        let mut node = Node::with_clock(&json!({ "hosts": [server.url()] }), offset);
        let skew = node.time() - std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((skew - seconds).abs() < 3.0, "the clock is wrong by {skew}");
        node.join(&["room"]);
        let own = node.relay_channel();
        for n in 0..10 {
            // Both ways: groups, and direct.
            assert!(node.group_send("room", n));
            assert_eq!(number(&collected.group(&room).await), n, "{offset}");
            layer.group_send(&room, &numbered(100 + n)).await.unwrap();
            assert_eq!(number(&collected.group(&room).await), 100 + n, "{offset}");
            layer.send(&channel(&own), &numbered(n)).await.unwrap();
        }
        until("the node has got all", || node.count() == 30).await;
        assert_eq!(server.cli(&["ZCARD", "asgi:group:room"]), "2", "{offset}: nobody was removed");
        node.kill();
        for client in clients().lines().filter(|client| !ours.lines().any(|own| own == *client)) {
            server.cli(&["ZREM", "gateway:clients:asgi", client]);
        }
        server.cli(&["ZREMRANGEBYRANK", "asgi:group:room", "0", "-1"]);
        relay.join(std::slice::from_ref(&room)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_wrong_clock_is_reported_and_a_right_one_is_not() {
    let server = RedisServer::start();
    let config = json!({ "hosts": [server.url()], "heartbeat": 250 });
    let line = "clock and Redis' differ";
    let (mut right, mut wrong) = (Node::start(&config), Node::with_clock(&config, "+2d"));
    until("it is reported", || !wrong.log(line).is_empty()).await;
    assert!(wrong.log(line)[0].contains("skew=172"), "{:?}", wrong.log(line));
    pass(Duration::from_secs(1)).await;
    assert_eq!((wrong.log(line).len(), right.log(line).len()), (1, 0), "once");
}

/// Messages for the dead wait for nobody, and never reach who comes after.
#[tokio::test(flavor = "multi_thread")]
async fn r18_what_was_sent_to_a_killed_node_reaches_no_other() {
    let server = RedisServer::start();
    let config = json!({ "hosts": [server.url()] });
    let mut node = Node::start(&config);
    node.join(&["room"]);
    let (own, opened) = (node.relay_channel(), node.open(3, "many"));
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    // It dies in the middle of its work.
    node.signal("STOP");
    for n in 0..30 {
        layer.group_send(&group("room"), &numbered(n)).await.unwrap();
        layer.send(&channel(&own), &numbered(n)).await.unwrap();
    }
    node.kill();
    let mut next = Node::start(&config);
    next.join(&["room"]);
    let next_opened = next.open(3, "many");
    assert!(next_opened.iter().all(|name| !opened.contains(name)));
    for name in opened.iter().chain([&own]) {
        layer.send(&channel(name), &numbered(1)).await.unwrap();
    }
    // The first and only thing it hears is what is sent to it.
    layer.group_send(&group("room"), &numbered(1)).await.unwrap();
    until("it hears that", || next.count() == 1).await;
    pass(Duration::from_millis(500)).await;
    assert_eq!(next.count(), 1);
}

/// A sender whose own clock is two days ahead counts nobody dead: only Redis' clock counts.
#[tokio::test(flavor = "multi_thread")]
async fn r16_python_two_days_ahead_deletes_no_heartbeat() {
    let server = RedisServer::start();
    let layer =
        RedisCoreLayer::builder(&server.url()).intervals(Duration::from_millis(250), ALIVE).connect().await.unwrap();
    let python = Peer::with_clock(Kind::Core, &json!({ "hosts": [server.url()] }), "+2d");
    python.group_send("room", &json!({"type": "t"}));
    python.flush();
    assert_eq!(server.cli(&["ZCARD", "gateway:clients:asgi"]), "4");
    layer.ping().await.unwrap();
}
