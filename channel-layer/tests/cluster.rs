//! Redis Cluster: nodes die, hang and give slots away.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::sync::Arc;

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, RedisCoreLayer, RelaySink, Value};
use common::{PATIENCE, until_ok};
use testkit::redis::Cluster;
use tokio::{sync::mpsc, time::timeout};

struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        batch.drain(..).for_each(|delivery| self.0.try_send(delivery).unwrap());
    }
}

/// Groups on every node.
fn groups() -> Vec<GroupName> {
    (0..60).map(|n| GroupName::parse(&format!("room.{n}")).unwrap()).collect()
}

async fn next(deliveries: &mut mpsc::Receiver<Delivery>) -> Delivery {
    timeout(PATIENCE, deliveries.recv()).await.expect("a delivery in time").unwrap()
}

async fn until_reconnected(deliveries: &mut mpsc::Receiver<Delivery>) {
    while !matches!(next(deliveries).await, Delivery::Reconnected(_)) {}
}

/// Sends to each group until it works, then hears each of them once.
async fn every_group_is_heard(layer: &RedisCoreLayer, deliveries: &mut mpsc::Receiver<Delivery>, round: i64) {
    let groups = groups();
    for group in &groups {
        let event = Event::new("t").with("round", round);
        until_ok(&format!("a send to {group}"), async || layer.group_send(group, &event).await).await;
    }
    let mut missing: std::collections::HashSet<_> = groups.iter().collect();
    while !missing.is_empty() {
        match timeout(PATIENCE, deliveries.recv()).await {
            Ok(Some(Delivery::Group { group, event })) if event.get("round").and_then(Value::as_i64) == Some(round) => {
                assert!(missing.remove(&group), "{group} twice");
            }
            Ok(Some(_)) => {}
            other => panic!("round {round}: {missing:?} heard nothing: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn core_survives_a_dead_primary_a_moved_slot_and_a_hanging_node() {
    let mut cluster = Cluster::start();
    let layer = RedisCoreLayer::connect(&cluster.url()).await.unwrap();
    let other = RedisCoreLayer::connect(&cluster.url()).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(100_000);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    relay.join(&groups()).await.unwrap();
    every_group_is_heard(&other, &mut deliveries, 1).await;

    let lost = cluster.kill_primary_of("asgi:group:room.0");
    assert!(matches!(next(&mut deliveries).await, Delivery::Disconnected));
    cluster.wait_failover(lost);
    until_reconnected(&mut deliveries).await;
    every_group_is_heard(&other, &mut deliveries, 2).await;

    let slot = cluster.slot_of("asgi:group:room.1");
    let from = cluster.owner_of(slot).unwrap();
    let mut owners = groups().into_iter().map(|group| cluster.primary_of(&format!("asgi:group:{group}")));
    let to = owners.find(|owner| *owner != from).unwrap();
    cluster.move_slot(slot, from, to);
    every_group_is_heard(&other, &mut deliveries, 3).await;

    let (channel, direct) = (relay.new_channel(), Event::new("direct"));
    until_ok("a send", async || other.send(&channel, &direct).await).await;
    loop {
        if let Delivery::Channel { channel: heard, event } = next(&mut deliveries).await {
            assert_eq!((heard, &*event), (channel, &direct));
            break;
        }
    }

    let hanging = cluster.primary_of("asgi:group:room.2");
    let healthy = groups().into_iter().find(|group| cluster.primary_of(&format!("asgi:group:{group}")) != hanging);
    let healthy = healthy.unwrap();
    cluster.pause(hanging);
    // The hanging node costs the others the time it takes to notice, once.
    until_ok("a send", async || other.group_send(&healthy, &Event::new("t")).await).await;
    cluster.resume(hanging);
    until_ok("a ping", async || layer.ping().await.and(other.ping().await)).await;
    every_group_is_heard(&other, &mut deliveries, 4).await;
}

/// In a cluster a command names keys of one slot, so each queue has a reader of its own as long as it is used.
#[tokio::test(flavor = "multi_thread")]
async fn channel_prefixes_of_a_cluster_give_their_connections_back() {
    let cluster = Cluster::start();
    let layer = RedisCoreLayer::connect(&cluster.url()).await.unwrap();
    for round in 0..150 {
        let own = layer.new_channel(&format!("channel{round}")).await.unwrap();
        if round % 50 == 0 {
            layer.send(&own, &Event::new("t").with("round", round)).await.unwrap();
            let event = timeout(PATIENCE, layer.receive(&own)).await.unwrap().unwrap();
            assert_eq!(event.get("round").and_then(Value::as_i64), Some(round));
        }
        layer.remove_channel(&own).await.unwrap();
    }
    layer.ping().await.unwrap();
}
