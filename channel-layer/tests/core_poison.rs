//! What others may put into Redis, and what may be asked of the core layer: R17, R19 and R21.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/node.rs"]
mod node;

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use channel_layer::{ChannelLayer, ChannelName, Event, GroupName, LayerError, RedisCoreLayer, Value};
use common::{Collector, PATIENCE, channel, group, heard, until};
use node::Node;
use proptest::prelude::*;
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
    let sent = async {
        loop {
            match layer.send(&own, &numbered(1)).await {
                Ok(()) => break,
                Err(LayerError::Unavailable(_)) => tokio::task::yield_now().await,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    timeout(PATIENCE, sent).await.expect("the queue is cleared");
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
    layer.ping().await.unwrap();
}

// ---- R19: names ----

/// Names that have done harm somewhere.
const NAMES: [&str; 16] = [
    "room:*",
    "a\r\nDEL x",
    "!",
    "a!b!c",
    "$inflight",
    "a$inflight",
    "room\n",
    "\u{663}",
    "a\u{e9}",
    "a b",
    "",
    "{a}b",
    "a\0",
    "../a",
    "' redis.call('FLUSHALL') '",
    "specific.0123456789abcdef0123456789abcdef!x\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn r19_names_that_are_none_never_reach_redis() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    let long = "a".repeat(1 << 20);
    for name in NAMES.into_iter().chain([&*long]) {
        assert!(ChannelName::parse(name).is_err() && GroupName::parse(name).is_err(), "{name:?}");
        // Names of pub/sub can be other texts, and must be refused by what they are given to.
        if let Ok(group) = GroupName::parse_any(name) {
            assert!(matches!(layer.group_add(&group, &own).await, Err(LayerError::Name(_))), "{name:?}");
            assert!(matches!(layer.group_discard(&group, &own).await, Err(LayerError::Name(_))), "{name:?}");
            assert!(matches!(layer.group_send(&group, &numbered(1)).await, Err(LayerError::Name(_))), "{name:?}");
            assert!(matches!(layer.group_send_later(&group, &numbered(1)), Err(LayerError::Name(_))), "{name:?}");
            let (relay, _collected) = Collector::relay(&layer, 1).await;
            assert!(matches!(relay.join(&[group]).await, Err(LayerError::Name(_))), "{name:?}");
        }
        if let Ok(channel) = ChannelName::parse_any(name) {
            assert!(matches!(layer.send(&channel, &numbered(1)).await, Err(LayerError::Name(_))), "{name:?}");
            assert!(matches!(layer.receive(&channel).await, Err(LayerError::Name(_))), "{name:?}");
            assert!(matches!(layer.group_add(&group("room"), &channel).await, Err(LayerError::Name(_))), "{name:?}");
            // Leaving with it is fine and does nothing.
            let _ = layer.group_discard(&group("room"), &channel).await;
        }
        assert!(name.is_empty() || layer.new_channel(name).await.is_err(), "{name:?}");
    }
    assert_eq!(server.cli(&["KEYS", "*"]), "gateway:clients:asgi");
}

/// The commands a server is given, one a line.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn start(server: &RedisServer) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// All up to the one with this mark, which the test sends itself.
    fn until(&mut self, mark: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.contains(mark) {
                return lines;
            }
            lines.push(line);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any input yields a valid key or a refusal, and a send with it names exactly one key.
    #[test]
    fn r19_any_name_is_one_key_or_a_refusal(name in any_name()) {
        thread_local! {
            static SITE: Site = Site::start();
        }
        SITE.with(|site| site.check(&name))?;
    }
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z0-9._-]{1,99}",
        "[A-Za-z0-9._-]{1,60}![A-Za-z0-9._-]{0,38}",
        "[A-Za-z0-9._!-]{0,105}",
        any::<String>(),
        proptest::sample::select(&NAMES[..]).prop_map(str::to_owned),
    ]
}

struct Site {
    server: RedisServer,
    runtime: tokio::runtime::Runtime,
    layer: RedisCoreLayer,
}

impl Site {
    fn start() -> Self {
        let server = RedisServer::start();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let layer = runtime.block_on(async {
            RedisCoreLayer::builder(&server.url())
                // No heartbeat comes in between.
                .intervals(Duration::from_secs(3_600), Duration::from_secs(7_200))
                .connect()
                .await
                .unwrap()
        });
        Self { server, runtime, layer }
    }

    fn check(&self, name: &str) -> Result<(), TestCaseError> {
        let allowed = |text: &str| {
            (1..=99).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let process = name.split_once('!').map_or(name, |(process, _)| process);
        let is_group = allowed(name);
        let is_channel =
            name.len() <= 99 && allowed(process) && (name == process || allowed(&name.replacen('!', "", 1)));
        prop_assert_eq!(GroupName::parse(name).is_ok(), is_group, "{:?}", name);
        prop_assert_eq!(ChannelName::parse(name).is_ok(), is_channel, "{:?}", name);
        let mut keys = HashSet::new();
        let mut monitor = Monitor::start(&self.server);
        if let Ok(channel) = ChannelName::parse(name) {
            let non_local = name.find('!').map_or(name, |at| &name[..=at]);
            keys.insert(format!("asgi{non_local}"));
            self.runtime.block_on(self.layer.send(&channel, &numbered(1))).unwrap();
        }
        if let Ok(group) = GroupName::parse(name) {
            keys.insert(format!("asgi:group:{name}"));
            self.runtime.block_on(self.layer.group_send(&group, &numbered(1))).unwrap();
        }
        self.server.cli(&["ECHO", "that-was-all"]);
        let seen: HashSet<String> = monitor.until("that-was-all").iter().filter_map(|line| key_of(line)).collect();
        prop_assert_eq!(seen, keys, "{:?}", name);
        self.server.cli(&["FLUSHALL"]);
        Ok(())
    }
}

/// The key of a command in a monitor's line; what a script does has a line of its own. All these have one.
fn key_of(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
    // A heartbeat of the layer may come at any time.
    if words.get(1).is_some_and(|key| key.starts_with("gateway:")) {
        return None;
    }
    match *words.first()? {
        "ZADD" | "ZCARD" | "ZCOUNT" | "ZRANGE" | "ZREMRANGEBYSCORE" | "EXPIRE" | "ZREM" => {
            Some((*words.get(1)?).to_owned())
        }
        "PING" | "TIME" | "EVAL" | "SELECT" | "CLIENT" => None,
        other => panic!("{other} in {line}"),
    }
}

// ---- R21: the reserved key ----

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_reserved_key_in_an_event_redirects_nothing() {
    let server = RedisServer::start();
    // One client id, so that victim and receiver share a queue.
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let (own, victim) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    let room = group("room");
    layer.group_add(&room, &own).await.unwrap();
    let text = victim.as_str();
    let values = [json!(text), json!([text]), json!(null), json!(1), json!({ "a": text }), json!([text, text])];
    for (n, value) in values.iter().enumerate() {
        let event = Event::from_serialize(&json!({"type": "t", "__asgi_channel__": value, "n": n})).unwrap();
        // A direct send refuses it.
        for to in [&own, &channel("job")] {
            assert!(matches!(layer.send(to, &event).await, Err(LayerError::Encode(_))), "{value}");
        }
        // A group's send writes its own value, which nobody sees.
        layer.group_send(&room, &event).await.unwrap();
        let arrived = heard(&layer, &own).await;
        assert_eq!((number(&arrived), arrived.get("__asgi_channel__")), (n as i64, None), "{value}");
        layer.group_send_later(&room, &event).unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n as i64);
        // Further down it is a key as any other.
        let nested = Event::new("t")
            .with("n", n as i64)
            .with("data", Value::Map(vec![("__asgi_channel__".into(), text.into())]));
        layer.send(&own, &nested).await.unwrap();
        assert_eq!(heard(&layer, &own).await, nested, "{value}");
    }
    assert_eq!(server.cli(&["EXISTS", "asgijob"]), "0");
    assert!(timeout(Duration::from_millis(300), layer.receive(&victim)).await.is_err(), "the victim hears nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_a_reserved_key_from_python_redirects_nothing() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).client_ids(1).connect().await.unwrap();
    let (own, victim) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&group("room"), &own).await.unwrap();
    let python = Peer::core(&json!({ "hosts": [server.url()] }));
    python.group_send("room", &json!({"type": "t", "__asgi_channel__": [victim.as_str()], "n": 1}));
    assert_eq!(number(&heard(&layer, &own).await), 1);
    assert!(timeout(Duration::from_millis(300), layer.receive(&victim)).await.is_err());
}
