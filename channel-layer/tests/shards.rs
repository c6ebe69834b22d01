//! Several hosts, each with a share of the topics: one that fails does not touch the others.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "common/site.rs"]
mod site;

use std::time::Duration;

use channel_layer::{Delivery, GroupName, RedisPubSubLayer};
use site::{PATIENCE, Site};
use testkit::redis::RedisServer;
use tokio::time::timeout;

/// Groups by their place among three shards: Python's hash decides.
const SHARD_GROUPS: [&str; 3] = ["room.1", "room.2", "room.8"];
const SHARD_NEW: [&str; 2] = ["room.11", "room.9"];
const SHARD_DEAD: &str = "room.3";
/// Far below what a dead shard costs those who wait for it.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Three servers, a group on each, and a relay in all of them.
async fn three_shards() -> ([RedisServer; 3], Site, [GroupName; 3]) {
    let servers = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let layer = RedisPubSubLayer::builder_with_hosts(servers.each_ref().map(RedisServer::url)).connect().await.unwrap();
    let site = Site::new(layer, &SHARD_GROUPS).await;
    let groups = SHARD_GROUPS.map(|name| GroupName::parse(name).unwrap());
    for (server, group) in servers.iter().zip(&groups) {
        let topic = format!("asgi__group__{group}");
        assert!(server.cli(&["PUBSUB", "NUMSUB", &topic]).ends_with('1'), "{group}");
    }
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
async fn after_an_outage_a_relay_hears_which_groups_may_have_missed_something() {
    let (mut servers, mut site, groups) = three_shards().await;
    servers[1].kill();
    site.is_down(1).await;
    servers[1].restart_empty();
    let told = std::cell::RefCell::new(None);
    site.until("the return is told", |_, last| {
        if let Some(Delivery::Reconnected(missed)) = last {
            *told.borrow_mut() = Some(missed.groups.to_vec());
        }
        told.borrow().is_some()
    })
    .await;
    assert_eq!(told.into_inner().unwrap(), [groups[1].clone()]);
}
