//! The real `channels_redis` on the other side, both ways.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, ChannelName, Delivery, Event, GroupName, RedisPubSubLayer, RelaySink};
use serde_json::{Value as Json, json};
use testkit::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends by itself when its standard input ends, so also when the test is killed.
const SCRIPT: &str = r#"
import asyncio, json, sys
from channels_redis.pubsub import RedisPubSubChannelLayer

def bare(value):
    if isinstance(value, dict): return {key: bare(item) for key, item in value.items()}
    if isinstance(value, list): return [bare(item) for item in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value

async def main():
    layer = RedisPubSubChannelLayer(hosts=[sys.argv[1]], prefix=sys.argv[2])
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        op, *arguments = json.loads(line)
        if op == "receive":
            answer = await asyncio.wait_for(layer.receive(*arguments), 15)
        else:
            answer = await getattr(layer, op)(*arguments)
        print(json.dumps(bare(answer)), flush=True)

asyncio.run(main())
"#;

struct Python {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(redis: &RedisServer, prefix: &str) -> Self {
        let mut process = Command::new(testkit::python::python())
            .args(["-c", SCRIPT, &redis.url(), prefix])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, orders, answers }
    }

    fn order(&mut self, order: Json) -> Json {
        writeln!(self.orders, "{order}").unwrap();
        let answer = self.answers.next().expect("the Python process lives").unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        batch.drain(..).for_each(|delivery| self.0.try_send(delivery).unwrap());
    }
}

fn from_python() -> Json {
    json!({"type": "chat.message", "text": "héllo ✓ 😀", "n": -7, "big": u64::MAX, "f": 0.1, "yes": true, "none": null,
           "list": [1, [2, {"deep": []}]], "map": {"z": 1, "a": 2}})
}

fn as_event(json: &Json) -> Event {
    Event::from_serialize(json).unwrap()
}

/// Python subscribes without waiting for Redis' confirmation, so the test waits for it.
async fn subscribed(redis: &RedisServer, topic: &str, subscribers: usize) {
    let wanted = format!("{topic}\n{subscribers}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while redis.cli(&["PUBSUB", "NUMSUB", topic]) != wanted {
        assert!(tokio::time::Instant::now() < deadline, "nobody subscribes to {topic}");
        tokio::task::yield_now().await;
    }
}

// The prefix has a character that means something in a Redis pattern.
const PREFIX: &str = "si[te]*:";

#[tokio::test(flavor = "multi_thread")]
async fn python_and_rust_hear_each_other() {
    let redis = RedisServer::start();
    let mut python = Python::start(&redis, PREFIX);
    let layer = RedisPubSubLayer::builder(&redis.url()).prefix(PREFIX).connect().await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(100);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let room = GroupName::parse("room.1").unwrap();
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &own).await.unwrap();
    relay.join(std::slice::from_ref(&room)).await.unwrap();

    // Python's group_send reaches a member channel and a relay.
    python.order(json!(["group_send", "room.1", from_python()]));
    let heard = timeout(PATIENCE, layer.receive(&own)).await.unwrap().unwrap();
    assert_eq!(heard.deserialize::<Json>().unwrap(), from_python());
    match timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
        Delivery::Group { group, event } => {
            assert_eq!((group, event.deserialize::<Json>().unwrap()), (room.clone(), from_python()));
        }
        other => panic!("{other:?}"),
    }
    // Python's send reaches both kinds of channel.
    python.order(json!(["send", own.as_str(), from_python()]));
    let heard = timeout(PATIENCE, layer.receive(&own)).await.unwrap().unwrap();
    assert_eq!(heard.deserialize::<Json>().unwrap(), from_python());
    let relayed = relay.new_channel();
    python.order(json!(["send", relayed.as_str(), from_python()]));
    match timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
        Delivery::Channel { channel, event } => {
            assert_eq!((channel, event.deserialize::<Json>().unwrap()), (relayed, from_python()));
        }
        other => panic!("{other:?}"),
    }

    // Rust's group_send and send reach Python's consumers, bytes as bytes.
    let theirs = python.order(json!(["new_channel"]));
    let theirs = theirs.as_str().unwrap();
    python.order(json!(["group_add", "room.1", theirs]));
    subscribed(&redis, theirs, 1).await;
    subscribed(&redis, &format!("{PREFIX}__group__room.1"), 2).await;
    let ours = as_event(&from_python()).with("bytes", vec![0_u8, 0xff]);
    let mut wanted = from_python();
    wanted["bytes"] = json!({"hex": "00ff"});
    layer.group_send(&room, &ours).await.unwrap();
    assert_eq!(python.order(json!(["receive", theirs])), wanted);
    let channel = ChannelName::parse_any(theirs).unwrap();
    layer.send(&channel, &ours).await.unwrap();
    assert_eq!(python.order(json!(["receive", theirs])), wanted);

    // A group that Python leaves is still ours.
    python.order(json!(["group_discard", "room.1", theirs]));
    subscribed(&redis, &format!("{PREFIX}__group__room.1"), 1).await;
    layer.group_send(&room, &ours).await.unwrap();
    assert_eq!(timeout(PATIENCE, layer.receive(&own)).await.unwrap().unwrap(), ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_with_odd_group_names_is_heard_if_it_says_so() {
    let redis = RedisServer::start();
    let mut python = Python::start(&redis, "asgi");
    let odd = GroupName::parse_any("any/thing with spaces: é").unwrap();
    let layer = RedisPubSubLayer::builder(&redis.url()).raw_group_names(true).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&odd, &channel).await.unwrap();
    python.order(json!(["group_send", odd.as_str(), {"type": "t"}]));
    let heard = timeout(PATIENCE, layer.receive(&channel)).await.unwrap().unwrap();
    assert_eq!(heard, Event::new("t"));
    // Without the setting such a name is refused.
    let strict = RedisPubSubLayer::connect(&redis.url()).await.unwrap();
    assert!(strict.group_send(&odd, &heard).await.is_err());
}
