//! "channels, layers": the layer in memory.

use std::{sync::Arc, time::Duration};

use channel_layer::{ChannelLayer, ChannelName, GroupName, LayerError, MemoryLayer, RedisCoreLayer, RedisPubSubLayer};
use tokio::time::{advance, timeout};

use crate::{
    common::{as_event, group, heard, message},
    next, numbered, several, silent,
};

fn plain() -> ChannelName {
    ChannelName::parse("test-channel-1").unwrap()
}

#[tokio::test]
async fn memory_a_message_arrives_with_all_its_keys() {
    let layer = MemoryLayer::new();
    layer.send(&plain(), &as_event(&message(1))).await.unwrap();
    assert_eq!(heard(&layer, &plain()).await, as_event(&message(1)));
}

#[tokio::test]
async fn memory_a_channel_at_its_capacity_is_full() {
    let layer = MemoryLayer::with_capacity(3);
    for n in 0..3 {
        layer.send(&plain(), &numbered(n)).await.unwrap();
    }
    assert!(matches!(layer.send(&plain(), &numbered(3)).await, Err(LayerError::ChannelFull(name)) if name == plain()));
}

#[tokio::test]
async fn memory_a_message_to_an_own_channel_arrives() {
    let layer = MemoryLayer::new();
    let channel = layer.new_channel("").await.unwrap();
    assert!(channel.as_str().starts_with("specific.") && channel.as_str().contains('!'), "{channel}");
    layer.send(&channel, &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &channel).await, 1);
}

#[tokio::test]
async fn memory_three_messages_arrive_in_order() {
    let layer = MemoryLayer::new();
    for n in 1..=3 {
        layer.send(&plain(), &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &plain(), 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn memory_of_three_members_the_discarded_one_hears_nothing() {
    let layer = MemoryLayer::new();
    let room = group("test-group");
    let mut members = Vec::new();
    for _ in 0..3 {
        let member = layer.new_channel("test-gr").await.unwrap();
        layer.group_add(&room, &member).await.unwrap();
        members.push(member);
    }
    layer.group_discard(&room, &members[1]).await.unwrap();
    layer.group_send(&room, &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &members[0]).await, 1);
    assert_eq!(next(&layer, &members[2]).await, 1);
    silent(&layer, &members[1], Duration::from_millis(100)).await;
}

#[tokio::test]
async fn memory_a_full_member_is_ignored() {
    let layer = MemoryLayer::with_capacity(3);
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 1..=5 {
        layer.group_send(&group("test-group"), &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3]);
    silent(&layer, &channel, Duration::from_millis(100)).await;
}

#[tokio::test]
async fn memory_an_emptied_channel_leaves_no_trace() {
    let layer = MemoryLayer::new();
    layer.send(&plain(), &numbered(1)).await.unwrap();
    assert_eq!(layer.footprint(), (1, 0));
    assert_eq!(next(&layer, &plain()).await, 1);
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test]
async fn memory_a_channel_that_vanishes_while_somebody_waits_still_delivers() {
    // The first receiver empties the channel, and with that it is gone, while the second one waits on it.
    let (layer, channel) = (MemoryLayer::new(), plain());
    let sends = async {
        for n in 1..=2 {
            layer.send(&channel, &numbered(n)).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (first, second, ()) = tokio::join!(next(&layer, &channel), next(&layer, &channel), sends);
    assert_eq!(first + second, 3);
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn memory_an_unread_message_expires() {
    let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
    layer.send(&plain(), &numbered(1)).await.unwrap();
    advance(Duration::from_millis(3_001)).await;
    silent(&layer, &plain(), Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn memory_messages_expire_on_channels_nobody_reads() {
    let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
    let nobody = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &nobody).await.unwrap();
    layer.send(&nobody, &numbered(1)).await.unwrap();
    advance(Duration::from_millis(3_001)).await;
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn memory_several_messages_expire_at_once() {
    let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
    for n in 0..3 {
        layer.send(&plain(), &numbered(n)).await.unwrap();
    }
    advance(Duration::from_millis(3_001)).await;
    layer.send(&plain(), &numbered(9)).await.unwrap();
    assert_eq!(next(&layer, &plain()).await, 9);
    silent(&layer, &plain(), Duration::from_millis(10)).await;
}

#[test]
fn names_are_refused_with_their_kind_and_limit() {
    let long = "a".repeat(400);
    for wrong in [r"¯\_(ツ)_/¯", long.as_str()] {
        let channel = ChannelName::parse(wrong).unwrap_err().to_string();
        let group = GroupName::parse(wrong).unwrap_err().to_string();
        assert!(channel.contains("channel") && channel.contains("99"), "{channel}");
        assert!(group.contains("group") && group.contains("99"), "{group}");
    }
    assert!(ChannelName::parse("chat").is_ok() && GroupName::parse("chat").is_ok());
}

#[tokio::test]
async fn unknown_backends_are_configuration_errors() {
    for url in ["", "memcached://127.0.0.1", "http://127.0.0.1:6379", "redis://127.0.0.1:none"] {
        assert!(matches!(RedisCoreLayer::connect(url).await, Err(LayerError::Config(_))), "{url}");
        assert!(matches!(RedisPubSubLayer::connect(url).await, Err(LayerError::Config(_))), "{url}");
    }
    let none: [&str; 0] = [];
    assert!(matches!(RedisCoreLayer::builder_with_hosts(none).connect().await, Err(LayerError::Config(_))));
}

#[tokio::test]
async fn an_error_inside_a_backend_is_not_hidden() {
    // Nobody listens on this port.
    let url = "redis://127.0.0.1:1";
    for result in [RedisCoreLayer::connect(url).await.map(drop), RedisPubSubLayer::connect(url).await.map(drop)] {
        match result {
            Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains("refused"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_layer_for_tests_can_take_the_place_of_the_real_one() {
    async fn application(layer: Arc<dyn ChannelLayer>) -> i64 {
        let channel = layer.new_channel("").await.unwrap();
        layer.send(&channel, &numbered(5)).await.unwrap();
        timeout(Duration::from_secs(20), next(&*layer, &channel)).await.unwrap()
    }
    let server = testkit::redis::RedisServer::start();
    let layers: [Arc<dyn ChannelLayer>; 3] = [
        Arc::new(MemoryLayer::new()),
        Arc::new(RedisCoreLayer::connect(&server.url()).await.unwrap()),
        Arc::new(RedisPubSubLayer::connect(&server.url()).await.unwrap()),
    ];
    for layer in layers {
        assert_eq!(application(layer).await, 5);
    }
}
