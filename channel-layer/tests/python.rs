//! The real `channels_redis` on the other side, both ways; every setting is in `python_matrix.rs`.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::slice;

use channel_layer::{ChannelLayer, Event, GroupName, RedisPubSubLayer};
use serde_json::json;
use testkit::python::Peer;
use testkit::redis::RedisServer;

use common::{Collector, PATIENCE, as_event, as_json, channel, group, heard, message, subscribed};

// The prefix has a character that means something in a Redis pattern.
const PREFIX: &str = "si[te]*:";

#[tokio::test(flavor = "multi_thread")]
async fn python_and_rust_hear_each_other() {
    let redis = RedisServer::start();
    let python = Peer::pubsub(&json!({"hosts": [redis.url()], "prefix": PREFIX}));
    let layer = RedisPubSubLayer::builder(&redis.url()).prefix(PREFIX).connect().await.unwrap();
    let (relay, mut deliveries) = Collector::relay(&layer, 100).await;
    let room = group("room.1");
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &own).await.unwrap();
    relay.join(slice::from_ref(&room)).await.unwrap();

    // Python's group_send reaches a member channel and a relay.
    python.group_send("room.1", &message(1));
    assert_eq!(as_json(&heard(&layer, &own).await), message(1));
    assert_eq!(as_json(&deliveries.group(&room).await), message(1));
    // Python's send reaches both kinds of channel.
    python.send(own.as_str(), &message(2));
    assert_eq!(as_json(&heard(&layer, &own).await), message(2));
    let relayed = relay.new_channel();
    python.send(relayed.as_str(), &message(3));
    assert_eq!(as_json(&deliveries.channel(&relayed).await), message(3));

    // Rust's group_send and send reach Python's consumers, bytes as bytes.
    let theirs = python.new_channel();
    python.group_add("room.1", &theirs);
    let (topic, server) = (format!("{PREFIX}__group__room.1"), slice::from_ref(&redis));
    subscribed(server, &theirs, 1).await;
    subscribed(server, &topic, 2).await;
    let ours = as_event(&message(4)).with("bytes", vec![0_u8, 0xff]);
    let mut wanted = message(4);
    wanted["bytes"] = json!({"hex": "00ff"});
    layer.group_send(&room, &ours).await.unwrap();
    assert_eq!(python.receive(&theirs, PATIENCE), Some(wanted.clone()));
    layer.send(&channel(&theirs), &ours).await.unwrap();
    assert_eq!(python.receive(&theirs, PATIENCE), Some(wanted));

    // A group that Python leaves is still ours.
    python.group_discard("room.1", &theirs);
    subscribed(server, &topic, 1).await;
    layer.group_send(&room, &ours).await.unwrap();
    assert_eq!(heard(&layer, &own).await, ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_with_odd_group_names_is_heard_if_it_says_so() {
    let redis = RedisServer::start();
    let python = Peer::pubsub(&json!({"hosts": [redis.url()]}));
    let odd = GroupName::parse_any("any/thing with spaces: é").unwrap();
    let layer = RedisPubSubLayer::builder(&redis.url()).raw_group_names(true).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&odd, &channel).await.unwrap();
    python.group_send(odd.as_str(), &json!({"type": "t"}));
    let event = heard(&layer, &channel).await;
    assert_eq!(event, Event::new("t"));
    // Without the setting such a name is refused.
    let strict = RedisPubSubLayer::connect(&redis.url()).await.unwrap();
    assert!(strict.group_send(&odd, &event).await.is_err());
}
