//! Every layer keeps the contract.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use channel_layer::{
    ChannelLayer, ChannelName, Event, GroupName, LayerError, MemoryLayer, RedisCoreLayer, RedisPubSubLayer, Serializer,
    contract_suite,
};
use testkit::redis::{Cluster, RedisServer, Sentinels};

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

/// Every topic has its place on one of three servers.
async fn redis_pubsub_shards() -> (Arc<dyn ChannelLayer>, [RedisServer; 3]) {
    let servers = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let hosts = servers.each_ref().map(RedisServer::url);
    let layer = RedisPubSubLayer::builder_with_hosts(hosts).connect().await.unwrap();
    (Arc::new(layer), servers)
}

/// One server under several names: each connection hears everything.
async fn redis_pubsub_same_host_thrice() -> (Arc<dyn ChannelLayer>, RedisServer) {
    let server = RedisServer::start();
    let hosts = (0..3).map(|database| format!("{}/{database}", server.url()));
    let layer = RedisPubSubLayer::builder_with_hosts(hosts).connect().await.unwrap();
    (Arc::new(layer), server)
}

/// One cluster for all tests here; each has a prefix of its own.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

fn sentinels() -> &'static Sentinels {
    static SENTINELS: OnceLock<Sentinels> = OnceLock::new();
    SENTINELS.get_or_init(Sentinels::start)
}

fn unique_prefix() -> String {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    format!("test{}:", LAST.fetch_add(1, Ordering::Relaxed))
}

async fn redis_core_at(url: String) -> (Arc<dyn ChannelLayer>, ()) {
    let layer = RedisCoreLayer::builder(&url).prefix(&unique_prefix()).connect().await.unwrap();
    (Arc::new(layer), ())
}

/// JSON, encrypted, with an older key still to be read.
async fn redis_pubsub_encrypted() -> (Arc<dyn ChannelLayer>, RedisServer) {
    let server = RedisServer::start();
    let builder = RedisPubSubLayer::builder(&server.url()).serializer(Serializer::Json);
    (Arc::new(builder.encryption_keys(["new", "old"]).connect().await.unwrap()), server)
}

contract_suite!(memory_layer, memory());
contract_suite!(redis_core_layer, redis_core());
contract_suite!(redis_core_layer_of_three_shards, redis_core_of_three_shards());
contract_suite!(redis_core_layer_on_a_cluster, redis_core_at(cluster().url()));
contract_suite!(redis_core_layer_behind_sentinels, redis_core_at(sentinels().url()));
contract_suite!(redis_pubsub_layer, redis_pubsub());
contract_suite!(redis_pubsub_layer_with_encrypted_json, redis_pubsub_encrypted());
contract_suite!(redis_pubsub_layer_on_three_shards, redis_pubsub_shards());
contract_suite!(redis_pubsub_layer_on_one_host_thrice, redis_pubsub_same_host_thrice());

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
    assert_eq!(topics.len(), 3, "the third is the layer's probe: {topics:?}");
    assert!(topics[0] == "site__group__room.1" && topics.contains(&channel.as_str()), "{topics:?}");
    layer.group_discard(&group, &channel).await.unwrap();
    // Leaving does not wait for Redis; a new subscription, confirmed behind it, does.
    layer.new_channel("").await.unwrap();
    assert!(!server.cli(&["PUBSUB", "CHANNELS", "site*"]).contains("__group__"));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_on_the_shards_where_python_looks() {
    let servers: Vec<RedisServer> = (0..4).map(|_| RedisServer::start()).collect();
    let hosts: Vec<String> = servers.iter().map(RedisServer::url).collect();
    let layer = RedisPubSubLayer::builder_with_hosts(hosts).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    // `shards` of the golden vectors, over the whole topic: Python's CRC-32 of it.
    let expected = [("room.4", 0), ("room.1", 1), ("room.10", 2), ("room.8", 3)];
    for (name, at) in expected {
        let group = GroupName::parse(name).unwrap();
        layer.group_add(&group, &channel).await.unwrap();
        let topic = format!("asgi__group__{name}");
        for (index, server) in servers.iter().enumerate() {
            let count = server.cli(&["PUBSUB", "NUMSUB", &topic]);
            assert_eq!(count, format!("{topic}\n{}", u8::from(index == at)), "{name} on {index}");
        }
        layer.group_send(&group, &Event::new("t").with("to", name)).await.unwrap();
        assert_eq!(layer.receive(&channel).await.unwrap().text("to"), Some(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_can_be_changed_one_process_after_another() {
    let server = RedisServer::start();
    let layer = async |keys: &[&str]| {
        let builder = RedisPubSubLayer::builder(&server.url()).encryption_keys(keys.iter().copied());
        builder.connect().await.unwrap()
    };
    let (old, both, new, plain) =
        (layer(&["a"]).await, layer(&["b", "a"]).await, layer(&["b"]).await, layer(&[]).await);
    let event = Event::new("t").with("text", "hidden");
    for (from, to, passes) in [
        (&old, &both, true),
        (&both, &both, true),
        (&both, &new, true),
        (&both, &old, false),
        (&new, &old, false),
        (&plain, &new, false),
        (&new, &plain, false),
    ] {
        let channel = to.new_channel("").await.unwrap();
        let before = to.stats().undecodable;
        from.send(&channel, &event).await.unwrap();
        match passes {
            true => assert_eq!(to.receive(&channel).await.unwrap(), event),
            false => testkit::wait::until("it is counted and skipped", std::time::Duration::from_secs(10), || {
                to.stats().undecodable == before + 1
            }),
        }
    }
    assert!(matches!(
        RedisPubSubLayer::builder(&server.url()).encryption_keys([""]).connect().await,
        Err(LayerError::Config(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_the_reserved_key_is_refused_or_left_out() {
    let (layer, _server) = redis_pubsub().await;
    let channel = layer.new_channel("").await.unwrap();
    let group = GroupName::parse("room").unwrap();
    layer.group_add(&group, &channel).await.unwrap();
    let event = Event::new("t").with("__asgi_channel__", "asgispecific.other");
    assert!(matches!(layer.send(&channel, &event).await, Err(LayerError::Encode(_))));
    layer.group_send(&group, &event).await.unwrap();
    layer.group_send_later(&group, &event).unwrap();
    for _ in 0..2 {
        assert_eq!(layer.receive(&channel).await.unwrap(), Event::new("t"));
    }
}
