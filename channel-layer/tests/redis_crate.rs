//! What the crate `redis` cannot do yet, and what we therefore do ourselves. A test that fails here after an update of
//! the crate shows that a file of ours may go: it is named there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
#[path = "common/fake.rs"]
mod fake;

use std::time::Duration;

use channel_layer::{ChannelLayer, Event, RedisPubSubLayer};
use common::PATIENCE;
use fake::FakeRedis;
use redis::{
    AsyncCommands, ConnectionAddr,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use testkit::redis::{Cluster, Sentinels};
use tokio::time::{Instant, timeout};

/// `src/redis/topology/sentinel.rs`; with ours it works: `a_user_without_role_and_info_believes_the_sentinels`.
#[tokio::test(flavor = "multi_thread")]
async fn its_sentinel_client_refuses_a_primary_whose_user_may_not_ask_for_the_role() {
    let mut redis = Sentinels::start();
    redis.primary().cli(&["ACL", "SETUSER", "site", "on", ">pw", "allkeys", "+@all", "-role", "-info"]);
    let addresses = redis.addresses().into_iter().map(|address| {
        let (host, port) = address.split_once(':').unwrap();
        ConnectionAddr::Tcp(host.to_owned(), port.parse().unwrap())
    });
    let client = SentinelClientBuilder::new(addresses, redis.master_name(), SentinelServerType::Master).unwrap();
    let mut client = client.set_client_to_redis_username("site").set_client_to_redis_password("pw").build().unwrap();
    let error = client.get_async_connection().await.expect_err("topology/sentinel.rs may go").to_string();
    assert!(error.contains("NoPerm") || error.contains("NOPERM"), "{error}");
}

/// `src/redis/commands/cluster.rs`. It follows `MOVED` only if it also says again what may have been done: both are
/// `retries` (`cluster_handling/async_connection/request.rs`, lines 204 to 213 and 228 to 234 in 1.8.1).
#[tokio::test(flavor = "multi_thread")]
async fn its_cluster_connection_says_twice_what_may_have_been_done() {
    let redis = FakeRedis::start().await;
    redis.hang_up_on("PUBLISH");
    let client = ClusterClient::new(vec![redis.url()]).unwrap();
    let mut connection = client.get_async_connection().await.unwrap();
    connection.publish::<_, _, i64>("topic", "message").await.unwrap_err();
    assert!(redis.hung_up() > 1, "commands/cluster.rs may go");

    let redis = FakeRedis::start().await;
    let layer = RedisPubSubLayer::connect(&redis.cluster_url()).await.unwrap();
    redis.hang_up_on("PUBLISH");
    let channel = layer.new_channel("").await.unwrap();
    timeout(PATIENCE, layer.send(&channel, &Event::new("t"))).await.unwrap().unwrap_err();
    assert_eq!(redis.hung_up(), 1, "nothing is sent twice");
}

/// `src/redis/topology/cluster.rs` and `commands/cluster.rs`; with ours nobody waits:
/// `a_frozen_primary_delays_nobody_and_its_map_does_not_last`. The map is asked for, and connections to all nodes are
/// made, under the lock that each command needs (`cluster_handling/async_connection/mod.rs`, line 983 in 1.8.1).
#[tokio::test(flavor = "multi_thread")]
async fn its_cluster_connection_waits_for_a_node_that_hangs_whenever_it_asks_for_the_map() {
    const LIMIT: Duration = Duration::from_secs(2);
    let mut cluster = Cluster::start();
    let urls = cluster.urls();
    let client = ClusterClientBuilder::new(urls).connection_timeout(LIMIT).response_timeout(LIMIT).build().unwrap();
    let mut connection = client.get_async_connection().await.unwrap();
    let key = "moved";
    let slot = cluster.slot_of(key);
    let from = cluster.owner_of(slot).unwrap();
    let mut others = (0..3).filter(|index| *index != from);
    let (to, hanging) = (others.next().unwrap(), others.next().unwrap());
    cluster.move_slot(slot, from, to);
    cluster.pause(hanging);
    let began = Instant::now();
    // Both nodes that are asked are well; the second command waits for the map that the first one has made it want, or
    // even fails.
    for _ in 0..2 {
        let _ = connection.set::<_, _, ()>(key, "value").await;
    }
    assert!(began.elapsed() > LIMIT / 2, "topology/cluster.rs and commands/cluster.rs may go");
    cluster.resume(hanging);
}
