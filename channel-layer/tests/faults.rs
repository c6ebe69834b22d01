//! What the pub/sub layer survives, on real servers: R1, R3, R17 and subscribers that are cut.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, LayerError, RedisPubSubLayer, Relay, RelaySink};
use testkit::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(15);

struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        for delivery in batch.drain(..) {
            let _ = self.0.try_send(delivery);
        }
    }
}

struct Site {
    layer: RedisPubSubLayer,
    _relay: Relay,
    deliveries: mpsc::Receiver<Delivery>,
    group: GroupName,
}

impl Site {
    async fn start(server: &RedisServer) -> Self {
        let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
        let (sender, deliveries) = mpsc::channel(1000);
        let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
        let group = GroupName::parse("room").unwrap();
        relay.join(std::slice::from_ref(&group)).await.unwrap();
        Self { layer, _relay: relay, deliveries, group }
    }

    /// Waits for a delivery of this kind; others are skipped.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Delivery) -> bool) {
        let found = async {
            loop {
                if wanted(&self.deliveries.recv().await.unwrap()) {
                    break;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in time: {what}"));
    }

    /// An event sent now arrives.
    async fn works(&mut self) {
        let mark = format!("{:?}", std::time::Instant::now());
        let event = Event::new("test.event").with("mark", mark.as_str());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Err(error) = self.layer.group_send(&self.group, &event).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
        }
        self.until(
            "an event",
            |delivery| matches!(delivery, Delivery::Group { event, .. } if event.text("mark") == Some(&mark)),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_redis_killed_and_back_empty() {
    let mut server = RedisServer::start();
    let mut site = Site::start(&server).await;
    site.works().await;
    server.kill();
    site.until("the loss is noticed", |delivery| matches!(delivery, Delivery::Disconnected)).await;
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(LayerError::Unavailable(_) | LayerError::Timeout))), "fails, and soon: {failed:?}");
    assert!(site.layer.ping().await.is_err());
    server.restart_empty();
    site.until("subscriptions are restored", |delivery| matches!(delivery, Delivery::Reconnected)).await;
    site.works().await;
    assert!(site.layer.stats().reconnects >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_redis_frozen_is_noticed_and_survived() {
    let mut server = RedisServer::start();
    let mut site = Site::start(&server).await;
    server.pause();
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(_))), "every command has a deadline: {failed:?}");
    site.until("the silence is noticed", |delivery| matches!(delivery, Delivery::Disconnected)).await;
    server.resume();
    site.until("subscriptions are restored", |delivery| matches!(delivery, Delivery::Reconnected)).await;
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscriber_comes_back() {
    let server = RedisServer::start();
    let mut site = Site::start(&server).await;
    for _ in 0..3 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        site.until("subscriptions are restored", |delivery| matches!(delivery, Delivery::Reconnected)).await;
        site.works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_poison_is_counted_and_skipped() {
    let server = RedisServer::start();
    let mut site = Site::start(&server).await;
    let deep = [0x91; 100_000];
    let poison: [&[u8]; 8] = [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x93\x01\x02\x03",
        b"\x81\x01\x02",
        b"\x81\xa4type",
        b"\x81\xa1a\xa1\xff",
        &deep,
    ];
    for payload in poison {
        server.raw(&[b"PUBLISH", b"asgi__group__room", payload]);
    }
    site.works().await;
    assert_eq!(site.layer.stats().undecodable, poison.len() as u64);
}
