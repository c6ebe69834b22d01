//! What the pub/sub layer survives, on real servers: R1, R3, R17 and subscribers that are cut.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, LayerError, RedisPubSubLayer, Relay, RelaySink};
use testkit::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Groups by their place among three shards: Python's hash decides.
const SHARD_GROUPS: [&str; 3] = ["room.1", "room.2", "room.8"];
const SHARD_NEW: [&str; 2] = ["room.11", "room.9"];
const SHARD_DEAD: &str = "room.3";
/// Far below what a dead shard costs those who wait for it.
const AT_ONCE: Duration = Duration::from_secs(3);
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
    relay: Relay,
    deliveries: mpsc::Receiver<Delivery>,
    group: GroupName,
    /// How often the relay was told of a loss, and of a return.
    downs: usize,
    ups: usize,
}

impl Site {
    async fn start(server: &RedisServer) -> Self {
        let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
        let (sender, deliveries) = mpsc::channel(1000);
        let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
        let group = GroupName::parse("room").unwrap();
        relay.join(std::slice::from_ref(&group)).await.unwrap();
        Self { layer, relay, deliveries, group, downs: 0, ups: 0 }
    }

    /// Waits for the event with this mark.
    async fn hears(&mut self, wanted: &str) {
        let what = format!("the event {wanted}");
        self.until(
            &what,
            |_, last| matches!(last, Some(Delivery::Group { event, .. }) if event.text("mark") == Some(wanted)),
        )
        .await;
    }

    /// Waits for the loss of a connection to have been told as often as this.
    async fn is_down(&mut self, times: usize) {
        self.until("the loss is told", |site, _| site.downs >= times).await;
        assert_eq!(self.downs, times, "told once");
    }

    /// Waits for the return of all subscriptions to have been told as often as this.
    async fn is_up(&mut self, times: usize) {
        self.until("the return is told", |site, _| site.ups >= times).await;
        assert_eq!(self.ups, times, "told once");
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self, Option<&Delivery>) -> bool) {
        let mut last = None;
        let found = async {
            while !done(self, last.as_ref()) {
                last = self.deliveries.recv().await;
                match &last {
                    Some(Delivery::Disconnected) => self.downs += 1,
                    Some(Delivery::Reconnected) => self.ups += 1,
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in time: {what}"));
    }

    /// An event sent now arrives; for a while sending may fail.
    async fn works(&mut self) {
        let mark = format!("{:?}", std::time::Instant::now());
        let event = Event::new("test.event").with("mark", mark.as_str());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while let Err(error) = self.layer.group_send(&self.group, &event).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
        }
        self.hears(&mark).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_redis_killed_and_back_empty() {
    let mut server = RedisServer::start();
    let mut site = Site::start(&server).await;
    site.works().await;
    server.kill();
    site.is_down(1).await;
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(LayerError::Unavailable(_) | LayerError::Timeout))), "fails, and soon: {failed:?}");
    assert!(site.layer.ping().await.is_err());
    server.restart_empty();
    site.is_up(1).await;
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
    site.is_down(1).await;
    server.resume();
    site.is_up(1).await;
    site.works().await;
}

/// Three servers, a group on each, and a relay in all of them.
async fn three_shards() -> ([RedisServer; 3], Site, [GroupName; 3]) {
    let servers = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let layer = RedisPubSubLayer::builder_with_hosts(servers.each_ref().map(RedisServer::url)).connect().await.unwrap();
    let (sender, deliveries) = mpsc::channel(1000);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let groups = SHARD_GROUPS.map(|name| GroupName::parse(name).unwrap());
    relay.join(&groups).await.unwrap();
    for (server, group) in servers.iter().zip(&groups) {
        let topic = format!("asgi__group__{group}");
        assert!(server.cli(&["PUBSUB", "NUMSUB", &topic]).ends_with('1'), "{group}");
    }
    let site = Site { layer, relay, deliveries, group: groups[0].clone(), downs: 0, ups: 0 };
    (servers, site, groups)
}

/// With one of three shards out of order, the two others do everything they did before, at once.
async fn the_others_go_on(site: &mut Site, groups: &[GroupName; 3]) {
    for group in &groups[1..] {
        site.group = group.clone();
        site.works().await;
        // As long as the first is away, and not only until somebody has noticed.
        let again = site.relay.join(std::slice::from_ref(group));
        timeout(AT_ONCE, again).await.expect("a join on a healthy shard").unwrap();
    }
    for name in SHARD_NEW {
        let fresh = [GroupName::parse(name).unwrap()];
        timeout(AT_ONCE, site.relay.join(&fresh)).await.expect("a new group on a healthy shard").unwrap();
        site.group = fresh[0].clone();
        site.works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_one_dead_shard_does_not_touch_the_others() {
    let (mut servers, mut site, groups) = three_shards().await;
    servers[0].kill();
    the_others_go_on(&mut site, &groups).await;
    site.is_down(1).await;
    the_others_go_on(&mut site, &groups).await;
    assert!(site.layer.ping().await.is_err(), "not all is well");
    let dead = [GroupName::parse(SHARD_DEAD).unwrap()];
    let relay = site.relay.clone();
    let joining = relay.join(&dead);
    tokio::pin!(joining);
    assert!(timeout(Duration::from_millis(300), &mut joining).await.is_err(), "it waits for its shard");
    servers[0].restart_empty();
    timeout(PATIENCE, joining).await.unwrap().unwrap();
    site.is_up(1).await;
    site.group = groups[0].clone();
    site.works().await;
    // And again, for another one.
    servers[2].kill();
    site.is_down(2).await;
    servers[2].restart_empty();
    site.is_up(2).await;
    the_others_go_on(&mut site, &groups).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_one_frozen_shard_does_not_touch_the_others() {
    let (mut servers, mut site, groups) = three_shards().await;
    servers[0].pause();
    the_others_go_on(&mut site, &groups).await;
    site.is_down(1).await;
    the_others_go_on(&mut site, &groups).await;
    servers[0].resume();
    site.is_up(1).await;
    site.group = groups[0].clone();
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscriber_comes_back() {
    let server = RedisServer::start();
    let mut site = Site::start(&server).await;
    for times in 1..=3 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        site.is_up(times).await;
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
