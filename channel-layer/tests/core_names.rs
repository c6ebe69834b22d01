//! What may be asked of the core layer: names of any kind (R19), and the reserved key (R21).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use channel_layer::{ChannelLayer, ChannelName, Event, GroupName, LayerError, RedisCoreLayer, Value};
use common::{Collector, PATIENCE, channel, group, heard};
use proptest::prelude::*;
use serde_json::json;
use testkit::{python::Peer, redis::RedisServer};
use tokio::time::timeout;

fn numbered(n: i64) -> Event {
    Event::new("test.message").with("n", n)
}

fn number(event: &Event) -> i64 {
    event.get("n").and_then(Value::as_i64).expect("a number")
}

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
    // The heartbeat of the start may come late.
    if words.get(1).is_some_and(|key| key.starts_with("gateway:")) {
        return None;
    }
    match *words.first()? {
        "ZADD" | "ZCOUNT" | "ZRANGE" | "ZREMRANGEBYSCORE" | "EXPIRE" | "ZREM" => Some((*words.get(1)?).to_owned()),
        "PING" | "TIME" | "EVAL" | "SELECT" | "CLIENT" | "INFO" => None,
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
