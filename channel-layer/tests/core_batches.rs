//! What goes to a queue in one command arrives as if it had gone by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use channel_layer::{ChannelLayer, ChannelName, Event, GroupName, RedisCoreLayer};
use testkit::redis::RedisServer;
use tokio::time::timeout;

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
