//! What goes to a queue in one command arrives as if it had gone by itself, and what leaves one in one command too.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use channel_layer::{ChannelLayer, ChannelName, Delivery, Event, GroupName, RedisCoreLayer, RelaySink};
use testkit::redis::RedisServer;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

const PATIENCE: Duration = Duration::from_secs(30);

fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

fn key(channel: &ChannelName) -> String {
    let (queue, _) = channel.as_str().split_once('!').unwrap();
    format!("asgi{queue}!")
}

async fn next(layer: &RedisCoreLayer, channel: &ChannelName) -> i64 {
    let event = timeout(PATIENCE, layer.receive(channel)).await.unwrap().unwrap();
    event.get("n").unwrap().as_i64().unwrap()
}

/// A layer with one client id, so one queue; two of them make two queues.
async fn layer(redis: &RedisServer, capacity: usize) -> RedisCoreLayer {
    RedisCoreLayer::builder(&redis.url()).client_ids(1).capacity(capacity).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_keeps_its_order_in_strictly_rising_scores_and_stops_at_the_capacity() {
    let redis = RedisServer::start();
    let (sender, one, other) = (layer(&redis, 10).await, layer(&redis, 10).await, layer(&redis, 10).await);
    let (first, second) = (one.new_channel("").await.unwrap(), other.new_channel("").await.unwrap());
    for (name, members) in [("first", &[&first][..]), ("both", &[&first, &second]), ("second", &[&second])] {
        for member in members {
            sender.group_add(&group(name), member).await.unwrap();
        }
    }
    // All of it waits while the sender is at its first command, and then goes together.
    for n in 0..24_i64 {
        let to = ["first", "both", "second"][n as usize % 3];
        sender.group_send_later(&group(to), &Event::new("test").with("n", n)).unwrap();
    }
    sender.ping().await.unwrap();
    for channel in [&first, &second] {
        let held = redis.cli(&["ZRANGE", &key(channel), "0", "-1", "WITHSCORES"]);
        let scores: Vec<f64> = held.lines().filter_map(|line| line.parse().ok()).filter(|score| *score > 1e9).collect();
        assert_eq!(scores.len(), 10, "{held}");
        assert!(scores.is_sorted_by(|one, next| one < next), "{scores:?}");
        let left: i64 = redis.cli(&["TTL", &key(channel)]).parse().unwrap();
        assert!((50..=60).contains(&left), "{left}");
    }
    // Of 16 each, 6 found no room.
    assert_eq!(sender.stats().over_capacity, 12);
    let mut heard = (Vec::new(), Vec::new());
    for _ in 0..10 {
        heard.0.push(next(&one, &first).await);
        heard.1.push(next(&other, &second).await);
    }
    assert_eq!(heard.0, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]);
    assert_eq!(heard.1, [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_on_behind_a_key_that_is_no_queue() {
    let redis = RedisServer::start();
    let (sender, one) = (layer(&redis, 100).await, layer(&redis, 100).await);
    let channel = one.new_channel("").await.unwrap();
    // Sorted before and behind the one that works.
    let odd = ["specific.00000000000000000000000000000000!a", "specific.zz!b"].map(|name| {
        redis.cli(&["SET", &key(&ChannelName::parse(name).unwrap()), "odd"]);
        ChannelName::parse(name).unwrap()
    });
    for member in odd.iter().chain([&channel]) {
        sender.group_add(&group("room"), member).await.unwrap();
    }
    for n in 0..5_i64 {
        sender.group_send_later(&group("room"), &Event::new("test").with("n", n)).unwrap();
    }
    sender.ping().await.unwrap();
    for n in 0..5 {
        assert_eq!(next(&one, &channel).await, n);
    }
    assert_eq!(sender.stats().over_capacity, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_that_wait_at_the_same_time_share_their_commands() {
    const CALLERS: usize = 16;
    const CALLS: usize = 50;
    let redis = RedisServer::start();
    let (sender, one) = (layer(&redis, 10_000).await, layer(&redis, 10_000).await);
    let channel = one.new_channel("").await.unwrap();
    one.group_add(&group("room"), &channel).await.unwrap();
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let sender = sender.clone();
        callers.spawn(async move {
            for n in 0..CALLS {
                sender.group_send(&group("room"), &Event::new("test").with("n", n as i64)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    let used = redis.cli(&["INFO", "commandstats"]);
    let scripts: usize = used
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_eval:calls=")?.split(',').next()?.parse().ok())
        .unwrap();
    // One that asks for the members and one that delivers, for all of them.
    assert!(scripts < 2 * CALLS * 3 / 2, "{scripts} scripts for {CALLS} sends of {CALLERS} callers each");
    for _ in 0..CALLERS * CALLS {
        next(&one, &channel).await;
    }
}

struct Forward(mpsc::Sender<Delivery>);

impl RelaySink for Forward {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        batch.drain(..).for_each(|delivery| self.0.try_send(delivery).unwrap());
    }
}

/// Channels and relays are read in order, from a server that may lack or forbid the newest command.
async fn is_read(redis: &RedisServer, url: &str) {
    let layer = RedisCoreLayer::builder(url).client_ids(1).connect().await.unwrap();
    let sender = RedisCoreLayer::connect(&redis.url()).await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("room"), &channel).await.unwrap();
    for round in 0..3 {
        for n in 0..30 {
            sender.group_send_later(&group("room"), &Event::new("test").with("n", 30 * round + n)).unwrap();
        }
        for n in 0..30 {
            assert_eq!(next(&layer, &channel).await, 30 * round + n);
        }
    }
    let (sink, mut deliveries) = mpsc::channel(1_000);
    let relay = layer.relay(Arc::new(Forward(sink))).await.unwrap();
    relay.join(&[group("hall")]).await.unwrap();
    for n in 0..90_i64 {
        sender.group_send_later(&group("hall"), &Event::new("test").with("n", n)).unwrap();
    }
    for n in 0..90 {
        match timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
            Delivery::Group { event, .. } => assert_eq!(event.get("n").unwrap().as_i64(), Some(n)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_with_one_command_where_the_server_knows_it() {
    let redis = RedisServer::start();
    is_read(&redis, &redis.url()).await;
    let used = redis.cli(&["INFO", "commandstats"]);
    assert!(used.contains("cmdstat_bzmpop"), "{used}");
    assert!(!used.contains("cmdstat_bzpopmin"), "{used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_from_a_server_that_does_not_know_bzmpop() {
    let redis = RedisServer::start_with(&["--rename-command", "BZMPOP", ""]);
    is_read(&redis, &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_by_a_user_who_may_not_use_bzmpop() {
    let redis = RedisServer::start();
    redis.cli(&["ACL", "SETUSER", "old", "on", ">secret", "~*", "&*", "+@all", "-bzmpop"]);
    is_read(&redis, &redis.url().replace("redis://", "redis://old:secret@")).await;
}
