//! "channels_redis, serializers and utils".

use channel_layer::{ChannelLayer, ChannelName, RedisCoreLayer, Serializer};
use serde_json::json;
use testkit::{python::Peer, redis::RedisServer};

use crate::{
    common::{PATIENCE, as_event, as_json, group, heard, message},
    next, numbered,
};

/// Its length in bytes, and the message as far as it is text.
fn first_message(server: &RedisServer, key: &str) -> (usize, String) {
    let length = "return #redis.call('ZRANGE', KEYS[1], 0, 0)[1]";
    (server.cli(&["EVAL", length, "1", key]).parse().unwrap(), server.cli(&["ZRANGE", key, "0", "0"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_formats_pass_both_ways_with_prefixes_of_8_12_0_and_no_bytes() {
    let server = RedisServer::start();
    let channel = ChannelName::parse("test-channel").unwrap();
    for (format, serializer) in [("msgpack", Serializer::MsgPack), ("json", Serializer::Json)] {
        // What Python calls -1 is 0 here.
        for (theirs, ours) in [(8, 8), (12, 12), (0, 0), (-1, 0)] {
            let what = format!("{format} with {theirs}");
            let prefix = format!("{format}.{theirs}.");
            let config = json!({"hosts": [server.url()], "prefix": prefix, "serializer_format": format, "random_prefix_length": theirs});
            let python = Peer::core(&config);
            let layer = RedisCoreLayer::builder(&server.url())
                .prefix(&prefix)
                .serializer(serializer)
                .random_prefix_length(ours)
                .connect()
                .await
                .unwrap();
            layer.send(&channel, &as_event(&message(1))).await.unwrap();
            let payload = match serializer {
                Serializer::Json => as_event(&message(1)).to_json().unwrap(),
                _ => as_event(&message(1)).to_msgpack().unwrap(),
            };
            assert_eq!(first_message(&server, &format!("{prefix}test-channel")).0, ours + payload.len(), "{what}");
            assert_eq!(python.receive("test-channel", PATIENCE), Some(message(1)), "{what}");
            python.send("test-channel", &message(2));
            assert_eq!(as_json(&heard(&layer, &channel).await), message(2), "{what}");
        }
    }
}

#[tokio::test]
async fn an_encrypted_message_differs_after_the_prefix_and_comes_back() {
    let server = RedisServer::start();
    let channel = ChannelName::parse("test-channel").unwrap();
    let build = |prefix: &str| RedisCoreLayer::builder(&server.url()).prefix(prefix).random_prefix_length(0);
    let plain = build("plain.").connect().await.unwrap();
    let secret = build("secret.").encryption_keys(["a-test-key"]).connect().await.unwrap();
    for layer in [&plain, &secret] {
        layer.send(&channel, &numbered(1)).await.unwrap();
    }
    let (open, closed) =
        (first_message(&server, "plain.test-channel").1, first_message(&server, "secret.test-channel").1);
    assert!(open.contains("test.message"), "{open}");
    // A Fernet token.
    assert!(closed.starts_with("gAAAAA") && !closed.contains("test.message"), "{closed}");
    for layer in [&plain, &secret] {
        assert_eq!(next(layer, &channel).await, 1);
    }
}

#[tokio::test]
async fn key_one_and_key_two_are_on_the_shards_of_python() {
    let server = RedisServer::start();
    for (shards, one, two) in [(1, 0, 0), (2, 1, 0), (10, 6, 4)] {
        let hosts: Vec<String> = (0..shards).map(|number| server.database(number)).collect();
        let layer = RedisCoreLayer::builder_with_hosts(hosts).connect().await.unwrap();
        let member = ChannelName::parse("somebody").unwrap();
        for (name, shard) in [("key_one", one), ("key_two", two)] {
            layer.group_add(&group(name), &member).await.unwrap();
            let key = format!("asgi:group:{name}");
            let found = (0..shards).find(|&number| exists(&server, number, &key));
            assert_eq!(found, Some(shard), "{name} of {shards}");
            layer.group_discard(&group(name), &member).await.unwrap();
        }
        layer.close().await.unwrap();
    }
}

/// Whether a database has a key: a script may look into any of them.
fn exists(server: &RedisServer, database: u8, key: &str) -> bool {
    let look = "redis.call('SELECT', ARGV[1]) return redis.call('EXISTS', KEYS[1])";
    server.cli(&["EVAL", look, "1", key, &database.to_string()]) == "1"
}
