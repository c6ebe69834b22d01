//! What others may put into Redis: R17.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/log.rs"]
mod log;
#[path = "common/node.rs"]
mod node;

use std::{collections::HashSet, time::Duration};

use channel_layer::{ChannelLayer, Event, GroupName, LayerError, RedisCoreLayer, Value};
use common::{Collector, PATIENCE, channel, group, heard, until, until_async, until_ok};
use node::Node;
use serde_json::json;
use testkit::{python::Peer, redis::RedisServer};
use tokio::time::timeout;

#[test]
fn node_process() {
    node::run();
}

fn numbered(n: i64) -> Event {
    Event::new("test.message").with("n", n)
}

fn number(event: &Event) -> i64 {
    event.get("n").and_then(Value::as_i64).expect("a number")
}

/// Every payload that must not hurt, without the random bytes before it.
fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let deep = |opening: u8| vec![opening; 100_000];
    let mut deep_map = Vec::new();
    (0..100_000).for_each(|_| deep_map.extend_from_slice(b"\x81\xa1a"));
    vec![
        ("empty", b"".to_vec()),
        ("no msgpack", b"\xc1".to_vec()),
        ("a list of 4 billion", b"\xdd\xff\xff\xff\xff".to_vec()),
        ("a map of 4 billion", b"\xdf\xff\xff\xff\xff".to_vec()),
        ("a text of 4 billion bytes", b"\x81\xa4type\xdb\xff\xff\xff\xff".to_vec()),
        ("bytes of 4 billion bytes", b"\x81\xa4type\xc6\xff\xff\xff\xff".to_vec()),
        ("100,000 nested lists", deep(0x91)),
        ("100,000 nested maps", deep_map),
        ("a list instead of a map", b"\x93\x01\x02\x03".to_vec()),
        ("a number instead of a map", b"\x07".to_vec()),
        ("nothing at all", b"\xc0".to_vec()),
        ("an integer as a key", b"\x81\x01\x02".to_vec()),
        ("cut off", b"\x82\xa4type\xa1t\xa1a".to_vec()),
        ("no UTF-8", b"\x82\xa4type\xa1t\xa1a\xa2\xff\xfe".to_vec()),
        ("something behind it", b"\x81\xa4type\xa1t\x00".to_vec()),
        ("JSON", br#"{"type": "t"}"#.to_vec()),
    ]
}

/// Messages as they stand in a queue, each with another twelve bytes before it.
fn messages() -> Vec<Vec<u8>> {
    let with_prefix = payloads().into_iter().enumerate().map(|(n, (_, payload))| {
        let mut message = format!("random-{n:05}").into_bytes();
        message.extend(payload);
        message
    });
    // And those that are shorter than the prefix.
    with_prefix.chain([b"short".to_vec(), b"x".to_vec()]).collect()
}

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn put(server: &RedisServer, key: &str, score: &str, message: &[u8]) {
    let added = server.raw(&[b"ZADD", key.as_bytes(), score.as_bytes(), message]);
    assert_eq!(added, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_poison_in_a_queue_is_counted_and_skipped_and_the_reader_goes_on() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 1_000).await;
    let own = relay.new_channel();
    let queue = format!("asgi{}", own.non_local());
    let poison = messages();
    for (n, message) in poison.iter().enumerate() {
        put(&server, &queue, &now().to_string(), message);
        layer.send(&own, &numbered(n as i64)).await.unwrap();
        assert_eq!(number(&collected.channel(&own).await), n as i64);
    }
    until("all are counted", || layer.stats().undecodable == poison.len() as u64).await;
    // All at once.
    for message in &poison {
        put(&server, &queue, &now().to_string(), message);
    }
    layer.send(&own, &numbered(-1)).await.unwrap();
    assert_eq!(number(&collected.channel(&own).await), -1);
    until("all are counted", || layer.stats().undecodable == 2 * poison.len() as u64).await;
    layer.ping().await.unwrap();
    assert_eq!(layer.stats().reconnects, 0, "no connection was given up for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_poison_on_a_plain_channel_is_counted_and_skipped() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let job = channel("job");
    let poison = messages();
    for (n, message) in poison.iter().enumerate() {
        put(&server, "asgijob", &now().to_string(), message);
        layer.send(&job, &numbered(n as i64)).await.unwrap();
        assert_eq!(number(&heard(&layer, &job).await), n as i64);
    }
    assert_eq!(layer.stats().undecodable, poison.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_poison_costs_no_memory_and_no_stack() {
    let server = RedisServer::start();
    let mut node = Node::start(&json!({ "hosts": [server.url()] }));
    let own = node.relay_channel();
    let queue = format!("asgi{}", channel(&own).non_local());
    let poison = messages();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let before = node.peak();
    for round in 0..10_u64 {
        for message in &poison {
            put(&server, &queue, &now().to_string(), message);
        }
        layer.send(&channel(&own), &numbered(0)).await.unwrap();
        until("the node goes on", || node.count() == round + 1).await;
    }
    assert_eq!(node.undecodable(), 10 * poison.len() as u64);
    let grown = node.peak() - before;
    assert!(grown < 64 << 10, "grown by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_message_of_any_size_costs_a_connection_and_no_memory() {
    let server = RedisServer::start();
    let mut node = Node::start(&json!({ "hosts": [server.url()] }));
    let own = node.relay_channel();
    let queue = format!("asgi{}", channel(&own).non_local());
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let before = node.peak();
    for _ in 0..3 {
        let counted = node.count();
        let large = "return redis.call('ZADD', KEYS[1], ARGV[1], string.rep('x', 65 * 2^20))";
        until("a large message", || server.try_cli(&["EVAL", large, "1", &queue, &now().to_string()]).is_some()).await;
        // A server that makes 65 MiB can stand still for longer than a sender waits.
        until_ok("the next one is sent", async || layer.send(&channel(&own), &numbered(0)).await).await;
        until("the node goes on", || node.count() > counted).await;
    }
    let grown = node.peak() - before;
    assert!(grown < 64 << 10, "grown by {grown} KiB");
    // Whoever waits on a plain channel, too.
    let job = channel("job");
    let large = "return redis.call('ZADD', KEYS[1], ARGV[1], string.rep('x', 65 * 2^20))";
    until("a large message", || server.try_cli(&["EVAL", large, "1", "asgijob", &now().to_string()]).is_some()).await;
    until_ok("the next one is sent", async || layer.send(&job, &numbered(7)).await).await;
    assert_eq!(number(&until_ok("the next one is received", || layer.receive(&job)).await), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_scores_that_are_no_times_stop_neither_readers_nor_senders() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    let queue = format!("asgi{}", own.non_local());
    let message = |n: i64| {
        let event = numbered(n).with("__asgi_channel__", own.as_str());
        [b"random-bytes".to_vec(), event.to_msgpack().unwrap()].concat()
    };
    for (n, score) in ["+inf", "-inf", "1e300", "-1e300", "0", "1e-300"].into_iter().enumerate() {
        put(&server, &queue, score, &message(n as i64));
        layer.send(&own, &numbered(10 + n as i64)).await.unwrap();
        let mut all = HashSet::new();
        while !all.contains(&(10 + n as i64)) {
            all.insert(number(&heard(&layer, &own).await));
        }
        // What is too old or not yet here does not come, or comes now: it has not stayed.
        let _ = timeout(Duration::from_millis(50), layer.receive(&own)).await;
        assert_eq!(server.cli(&["ZCARD", &queue]), "0", "{score}");
    }
    // As members of a group's set they are as good as any.
    let room = group("room");
    for score in ["+inf", "1e300"] {
        server.cli(&["ZADD", "asgi:group:room", score, own.as_str()]);
        layer.group_send(&room, &numbered(20)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), 20);
    }
}

/// Routing keys of every type, which a reader must survive; none of them leads anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn r17_addresses_of_any_kind_lead_nowhere_and_stop_nobody() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 1_000).await;
    let relayed = relay.new_channel();
    let queue = format!("asgi{}", own.non_local());
    let process = own.non_local();
    let long = "x".repeat(1 << 20);
    let addresses = [
        json!(null),
        json!(7),
        json!(true),
        json!([]),
        json!([1, null, [own.as_str()]]),
        json!({ "a": own.as_str() }),
        json!(""),
        json!("!"),
        json!(process),
        json!(format!("{process}gffffffffffffffffffffffffffffffff")),
        json!(format!("{process}rffffffffffffffffffffffffffffffff")),
        json!(format!("{process}r")),
        json!(format!("{process}probe")),
        json!(format!("{process}probe0")),
        json!(long),
        json!([long, "a!b!c"]),
    ];
    for (n, address) in addresses.iter().enumerate() {
        let event = Event::from_serialize(&json!({"type": "t", "__asgi_channel__": address})).unwrap();
        let message = [format!("random-{n:05}").into_bytes(), event.to_msgpack().unwrap()].concat();
        put(&server, &queue, &now().to_string(), &message);
        layer.send(&own, &numbered(n as i64)).await.unwrap();
        layer.send(&relayed, &numbered(n as i64)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n as i64, "{address}");
        assert_eq!(number(&collected.channel(&relayed).await), n as i64, "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_members_of_a_group_that_are_no_names_are_passed_over() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let own = layer.new_channel("").await.unwrap();
    let long = vec![b'a'; 1 << 20];
    let members: [&[u8]; 14] = [
        b"",
        b"!",
        b"!a",
        b"a!b!c",
        b"\xff\xfe",
        b"a b",
        b"a\r\nDEL x",
        b"a\0b",
        b":group:room",
        b":group:other",
        b"job$inflight",
        b"*",
        "a\u{e9}".as_bytes(),
        &long,
    ];
    for member in members {
        put(&server, "asgi:group:room", "9999999999", member);
    }
    layer.group_add(&room, &own).await.unwrap();
    for n in 0..3 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n);
    }
    // Nothing was written under any of those names.
    let keys = server.cli(&["KEYS", "*"]);
    let mut keys: Vec<&str> = keys.lines().collect();
    keys.sort_unstable();
    assert_eq!(keys, ["asgi:group:room", "gateway:clients:asgi"]);
    assert_eq!(server.cli(&["ZCARD", "asgi:group:room"]), (members.len() + 1).to_string());
}

/// A member that is a channel by Python's rule and not by ours is written to as Python does.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_only_python_accepts_hear_what_we_send() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let python = Peer::core(&json!({ "hosts": [server.url()] }));
    python.group_add("room", "job.\u{663}");
    layer.group_send(&group("room"), &numbered(1)).await.unwrap();
    assert_eq!(python.receive("job.\u{663}", PATIENCE), Some(json!({"type": "test.message", "n": 1})));
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_queue_of_the_wrong_type_is_cleared_and_read_again() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 100).await;
    let own = relay.new_channel();
    let queue = format!("asgi{}", own.non_local());
    server.cli(&["SET", &queue, "a text"]);
    // Until it is noticed, senders hear that this is no queue.
    until_ok("the queue is cleared, and a send", async || match layer.send(&own, &numbered(1)).await {
        Err(other) if !matches!(other, LayerError::Unavailable(_)) => panic!("{other:?}"),
        sent => sent,
    })
    .await;
    assert_eq!(number(&collected.channel(&own).await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_one_members_queue_of_the_wrong_type_keeps_the_message_from_nobody_else() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let own = layer.new_channel("").await.unwrap();
    // It is the first one a send comes to.
    server.cli(&["SET", "asgijob", "a text"]);
    server.cli(&["ZADD", "asgi:group:room", &now().to_string(), "job"]);
    layer.group_add(&room, &own).await.unwrap();
    for n in 0..3 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n);
    }
    assert_eq!(server.cli(&["GET", "asgijob"]), "a text", "what is not ours stays");
    assert!(matches!(layer.send(&channel("job"), &numbered(1)).await, Err(LayerError::Unavailable(_))));
    assert_eq!(layer.stats().over_capacity, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_plain_channel_of_the_wrong_type_is_received_on_when_it_is_gone() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let job = channel("job");
    server.cli(&["SET", "asgijob", "a text"]);
    assert!(timeout(Duration::from_millis(300), layer.receive(&job)).await.is_err());
    server.cli(&["DEL", "asgijob"]);
    layer.send(&job, &numbered(1)).await.unwrap();
    assert_eq!(number(&heard(&layer, &job).await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_group_of_the_wrong_type_is_replaced_and_keeps_no_other_from_being_renewed() {
    let server = RedisServer::start();
    let heartbeat = Duration::from_millis(100);
    let layer =
        RedisCoreLayer::builder(&server.url()).intervals(heartbeat, Duration::from_secs(45)).connect().await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 1_000).await;
    let groups: Vec<GroupName> = (0..20).map(|n| group(&format!("room.{n}"))).collect();
    relay.join(&groups).await.unwrap();
    for name in &groups {
        let key = format!("asgi:group:{name}");
        server.cli(&["DEL", &key]);
        if name.as_str().ends_with('7') {
            server.cli(&["SET", &key, "a text"]);
        }
    }
    until("all are back", || groups.iter().all(|name| server.cli(&["ZCARD", &format!("asgi:group:{name}")]) == "1"))
        .await;
    for (n, name) in groups.iter().enumerate() {
        layer.group_send(name, &numbered(n as i64)).await.unwrap();
        assert_eq!(number(&collected.group(name).await), n as i64);
    }
    // A join replaces it at once.
    server.cli(&["SET", "asgi:group:new", "a text"]);
    assert!(matches!(layer.group_send(&group("new"), &numbered(1)).await, Err(LayerError::Unavailable(_))));
    relay.join(&[group("new")]).await.unwrap();
    layer.group_send(&group("new"), &numbered(1)).await.unwrap();
    assert_eq!(number(&collected.group(&group("new")).await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_our_own_key_of_the_wrong_type_is_replaced() {
    let server = RedisServer::start();
    server.cli(&["SET", "gateway:clients:asgi", "a text"]);
    let layer = RedisCoreLayer::builder(&server.url())
        .intervals(Duration::from_millis(100), Duration::from_secs(45))
        .connect()
        .await
        .unwrap();
    assert_eq!(server.cli(&["ZCARD", "gateway:clients:asgi"]), "4");
    server.cli(&["SET", "gateway:clients:asgi", "a text"]);
    until("it is back", || server.cli(&["ZCARD", "gateway:clients:asgi"]) == "4").await;
    until_async("it is ready", async || layer.ping().await.is_ok()).await;
}
