//! What the tests of this crate share.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests"
)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, ChannelName, Delivery, Event, GroupName, Relay, RelaySink, Value};
use serde_json::{Value as Json, json};
use testkit::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// The longest anything may take that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Who looks without a pause takes the time of those that are to do it.
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

/// A name that the other side made.
pub fn channel(name: &str) -> ChannelName {
    ChannelName::parse_any(name).unwrap()
}

/// The next event of a channel, in time.
pub async fn heard(layer: &dyn ChannelLayer, channel: &ChannelName) -> Event {
    let event = timeout(PATIENCE, layer.receive(channel)).await;
    event.unwrap_or_else(|_| panic!("nothing arrives on {channel}")).unwrap()
}

/// Looks until it is so.
pub async fn until(what: &str, mut yes: impl FnMut() -> bool) {
    until_async(what, || std::future::ready(yes())).await;
}

/// Looks until it is so.
pub async fn until_async<F: Future<Output = bool>>(what: &str, mut yes: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !yes().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        sleep(LOOK_EVERY).await;
    }
}

/// Tries until it works.
pub async fn until_ok<T, E: std::fmt::Debug>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{what} did not work: {error:?}"),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Waits until a topic has so many subscribers on all these servers together; Python subscribes without
/// waiting for Redis' confirmation.
pub async fn subscribed(servers: &[RedisServer], topic: &str, wanted: usize) {
    let count = |server: &RedisServer| {
        let answer = server.cli(&["PUBSUB", "NUMSUB", topic]);
        answer.lines().last().and_then(|line| line.parse::<usize>().ok()).unwrap_or(0)
    };
    let what = format!("{wanted} subscriptions to {topic}");
    until(&what, || servers.iter().map(count).sum::<usize>() == wanted).await;
}

/// A sink that keeps what it is given.
pub struct Collector(mpsc::Sender<Delivery>);

impl Collector {
    /// A relay with a sink that has room for so many deliveries; more are thrown away.
    pub async fn relay(layer: &dyn ChannelLayer, room: usize) -> (Relay, Collected) {
        let (sender, received) = mpsc::channel(room);
        (layer.relay(Arc::new(Self(sender))).await.unwrap(), Collected(received))
    }
}

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        for delivery in batch.drain(..) {
            let _ = self.0.try_send(delivery);
        }
    }
}

/// What a [`Collector`] keeps.
pub struct Collected(mpsc::Receiver<Delivery>);

impl Collected {
    /// The next delivery, in time.
    pub async fn next(&mut self) -> Delivery {
        timeout(PATIENCE, self.0.recv()).await.expect("a delivery in time").expect("the relay lives")
    }

    /// The next delivery, which is for this group.
    pub async fn group(&mut self, wanted: &GroupName) -> Event {
        match self.next().await {
            Delivery::Group { group, event } if group == *wanted => (*event).clone(),
            other => panic!("{other:?} is not for {wanted}"),
        }
    }

    /// The next delivery, which is for this channel.
    pub async fn channel(&mut self, wanted: &ChannelName) -> Event {
        match self.next().await {
            Delivery::Channel { channel, event } if channel == *wanted => (*event).clone(),
            other => panic!("{other:?} is not for {wanted}"),
        }
    }
}

/// A message with everything that JSON can hold; in both formats it arrives as it is.
pub fn message(n: usize) -> Json {
    json!({"type": "chat.message", "n": n, "text": "héllo ✓ 😀", "negative": -7, "big": u64::MAX, "f": 0.1, "yes": true,
           "none": null, "list": [1, [2, {"deep": []}]], "map": {"z": 1, "a": 2}})
}

pub fn as_event(json: &Json) -> Event {
    Event::from_serialize(json).unwrap()
}

/// As a Python peer would answer it: keys without order, bytes as `{"hex": "00ff"}`.
pub fn as_json(event: &Event) -> Json {
    event.iter().map(|(key, value)| (key.to_owned(), value_as_json(value))).collect()
}

fn value_as_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::UInt(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Text(value) => json!(value),
        Value::Bytes(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
        Value::List(items) => items.iter().map(value_as_json).collect(),
        Value::Map(items) => items.iter().map(|(key, value)| (key.clone(), value_as_json(value))).collect(),
    }
}
