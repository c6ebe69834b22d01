//! Every layer keeps the contract.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;

use channel_layer::{
    ChannelLayer, ChannelName, Event, GroupName, LayerError, MemoryLayer, RedisCoreLayer, RedisPubSubLayer,
    contract_suite,
};
use testkit::redis::RedisServer;

async fn memory() -> (Arc<dyn ChannelLayer>, ()) {
    (Arc::new(MemoryLayer::new()), ())
}

async fn redis_pubsub() -> (Arc<dyn ChannelLayer>, RedisServer) {
    let server = RedisServer::start();
    let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
    (Arc::new(layer), server)
}

async fn redis_core() -> (Arc<dyn ChannelLayer>, RedisServer) {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    (Arc::new(layer), server)
}

async fn redis_core_of_three_shards() -> (Arc<dyn ChannelLayer>, RedisServer) {
    let server = RedisServer::start();
    let hosts: Vec<String> = (0..3).map(|db| format!("{}/{db}", server.url())).collect();
    let layer = RedisCoreLayer::builder_with_hosts(&hosts).connect().await.unwrap();
    (Arc::new(layer), server)
}

contract_suite!(redis_core_layer, redis_core());
contract_suite!(redis_core_layer_of_three_shards, redis_core_of_three_shards());
contract_suite!(memory_layer, memory());
contract_suite!(redis_pubsub_layer, redis_pubsub());

#[tokio::test]
async fn a_full_channel_of_the_memory_layer_says_so() {
    let layer = MemoryLayer::with_capacity(3);
    let channel = layer.new_channel("").await.unwrap();
    let event = Event::new("test.event");
    for _ in 0..3 {
        layer.send(&channel, &event).await.unwrap();
    }
    assert!(matches!(layer.send(&channel, &event).await, Err(LayerError::ChannelFull(full)) if full == channel));
    layer.receive(&channel).await.unwrap();
    layer.send(&channel, &event).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_of_another_process_cannot_be_put_into_a_group() {
    let (layer, _server) = redis_pubsub().await;
    let foreign = ChannelName::parse("asgispecific.00000000000000000000000000000000").unwrap();
    assert!(matches!(
        layer.group_add(&GroupName::parse("room").unwrap(), &foreign).await,
        Err(LayerError::NotLocal(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_those_of_channels_redis() {
    let server = RedisServer::start();
    let layer = RedisPubSubLayer::builder(&server.url()).prefix("site").connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    assert!(
        channel.as_str().starts_with("sitespecific.") && channel.as_str().len() == "sitespecific.".len() + 32,
        "{channel}"
    );
    let group = GroupName::parse("room.1").unwrap();
    layer.group_add(&group, &channel).await.unwrap();
    let topics = server.cli(&["PUBSUB", "CHANNELS", "site*"]);
    let mut topics: Vec<&str> = topics.split_whitespace().collect();
    topics.sort_unstable();
    assert_eq!(topics, ["site__group__room.1", channel.as_str()]);
    layer.group_discard(&group, &channel).await.unwrap();
    // Leaving does not wait for Redis; a new subscription, confirmed behind it, does.
    layer.new_channel("").await.unwrap();
    assert!(!server.cli(&["PUBSUB", "CHANNELS", "site*"]).contains("__group__"));
}
