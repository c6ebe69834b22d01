//! A primary that is none any more: R8, R9 and R10.

use std::time::Duration;

use channel_layer::{LayerError, RedisCoreLayer};
use testkit::{
    proxy::ChaosProxy,
    redis::{RedisServer, Sentinels},
};
use tokio::time::{Instant, timeout};

use crate::{
    ALIVE,
    common::{Collector, channel, group, heard, until},
    number, numbered, over, ready, site,
};

fn replicate(replica: &RedisServer, primary: &RedisServer) {
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    testkit::wait::until("the replica is linked", Duration::from_secs(20), || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
    });
}

/// The roles change while traffic runs: whoever meets `READONLY` goes where the address leads now.
#[tokio::test(flavor = "multi_thread")]
async fn r8_a_demoted_primary_costs_a_retry_and_no_error() {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    replicate(&second, &first);
    let proxy = ChaosProxy::to(first.port());
    let mut site = site(&proxy.url()).await;
    let own = site.layer.new_channel("").await.unwrap();
    site.layer.group_add(&group("room"), &own).await.unwrap();
    site.works().await;
    proxy.retarget(second.port());
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    replicate(&first, &second);
    // It still has the connection to the old one, which refuses; the command is sent once more.
    site.layer.send(&own, &numbered(1)).await.expect("no error");
    while number_or_mark(&heard(&*site.layer, &own).await) != Some(1) {}
    site.works_again().await;
    assert_eq!(second.cli(&["ZCARD", "asgi:group:room"]), "2");
    // And back again.
    proxy.retarget(first.port());
    first.cli(&["REPLICAOF", "NO", "ONE"]);
    replicate(&second, &first);
    site.works_again().await;
    ready(&*site.layer).await;
}

fn number_or_mark(event: &channel_layer::Event) -> Option<i64> {
    event.get("n").and_then(channel_layer::Value::as_i64)
}

/// Nobody has told the address: errors until the server is a primary again, and no storm of connections.
#[tokio::test(flavor = "multi_thread")]
async fn r8_a_replica_without_a_successor_is_not_ready_and_not_stormed() {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    let proxy = ChaosProxy::to(first.port());
    let mut site = site(&proxy.url()).await;
    site.works().await;
    replicate(&first, &second);
    match site.layer.group_send(&site.group, &numbered(1)).await {
        Err(LayerError::Unavailable(_)) => {}
        other => panic!("{other:?}"),
    }
    site.until("it is not ready", |site, _| site.downs >= 1).await;
    let (before, since) = (proxy.accepted(), Instant::now());
    crate::pass(Duration::from_secs(2)).await;
    let made = proxy.accepted() - before;
    assert!(made < 60, "{made} connections in {:?}", since.elapsed());
    assert!(site.layer.ping().await.is_err());
    first.cli(&["REPLICAOF", "NO", "ONE"]);
    site.works_again().await;
    ready(&*site.layer).await;
}

#[tokio::test]
async fn r8_a_layer_does_not_start_on_a_replica_and_says_why() {
    let (primary, replica) = (RedisServer::start(), RedisServer::start());
    replicate(&replica, &primary);
    match RedisCoreLayer::connect(&replica.url()).await {
        Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains("READONLY"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// The replica did not get the last joins: acknowledged, and lost with the primary.
#[tokio::test(flavor = "multi_thread")]
async fn r9_memberships_lost_in_a_failover_are_restored() {
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    let link = ChaosProxy::to(first.port());
    second.cli(&["REPLICAOF", "127.0.0.1", &link.port().to_string()]);
    testkit::wait::until("the replica is linked", Duration::from_secs(20), || {
        second.cli(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let proxy = ChaosProxy::to(first.port());
    let mut site = site(&proxy.url()).await;
    site.works().await;
    until("the replica has it", || second.cli(&["ZCARD", "asgi:group:room"]) == "1").await;
    link.hold(testkit::proxy::Way::Both);
    let (late, own) = (group("late"), site.layer.new_channel("").await.unwrap());
    site.relay.join(std::slice::from_ref(&late)).await.unwrap();
    site.layer.group_add(&late, &own).await.unwrap();
    assert_eq!(second.cli(&["EXISTS", "asgi:group:late"]), "0", "it is not there");
    proxy.retarget(second.port());
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    first.kill();
    timeout(Duration::from_secs(15), site.until("all is restored", |site, _| site.ups >= 1)).await.unwrap();
    assert_eq!(second.cli(&["ZCARD", "asgi:group:late"]), "2");
    site.layer.group_send(&late, &numbered(7)).await.unwrap();
    assert_eq!(number(&heard(&*site.layer, &own).await), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_primary_watched_by_sentinels_is_followed_within_ten_seconds() {
    let mut redis = Sentinels::start();
    let mut site = site(&redis.url()).await;
    let (plain, own) = (channel("job"), site.layer.new_channel("").await.unwrap());
    site.layer.group_add(&group("room"), &own).await.unwrap();
    site.works().await;
    // A reader of a plain channel is blocked when its server dies.
    let (layer, job) = (site.layer.clone(), plain.clone());
    let mut reader = tokio::task::JoinSet::new();
    reader.spawn(async move { layer.receive(&job).await });
    redis.kill_primary();
    site.is_down(1).await;
    // How long the Sentinels take is theirs.
    redis.wait_failover();
    timeout(Duration::from_secs(10), site.is_up(1)).await.expect("restored within ten seconds");
    site.works_again().await;
    site.layer.send(&plain, &numbered(1)).await.unwrap();
    let taken = timeout(Duration::from_secs(10), reader.join_next()).await.expect("the plain channel is read again");
    assert_eq!(number(&taken.unwrap().unwrap().unwrap()), 1);
    // A failover that was asked for: the old primary lives and refuses.
    redis.bring_back();
    redis.switch_over();
    redis.wait_failover();
    site.works_again().await;
    ready(&*site.layer).await;
}

/// Half of a failover: the readers stayed with the old server, which answers and never gets anything.
#[tokio::test(flavor = "multi_thread")]
async fn r10_a_queue_that_is_healthy_and_deaf_is_noticed() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let proxy = ChaosProxy::to(old.port());
    let builder = || RedisCoreLayer::builder(&proxy.url());
    let mut site = over(builder().intervals(Duration::from_millis(250), ALIVE)).await;
    site.works().await;
    let (relay, _collected) = Collector::relay(&*site.layer, 10).await;
    proxy.retarget(new.port());
    let clients = old.cli(&["CLIENT", "LIST"]);
    for line in clients.lines().filter(|line| line.contains("name=channel-layer:command")) {
        let id = line.split_whitespace().find_map(|word| word.strip_prefix("id=")).unwrap();
        old.cli(&["CLIENT", "KILL", "ID", id]);
    }
    site.until("the deafness is noticed", |site, _| site.downs >= 2).await;
    site.works_again().await;
    assert!(site.layer.stats().probes_missed >= 1);
    drop(relay);
    // Who hears misses nothing.
    let missed = site.layer.stats().probes_missed;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        site.works().await;
    }
    assert_eq!(site.layer.stats().probes_missed, missed);
}
