//! The pub/sub layer on a Redis Cluster: three primaries, each with a replica.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod common;
#[path = "common/site.rs"]
mod site;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, LayerError, RedisPubSubLayer, Value, contract_suite};
use common::until_ok;
use site::{PATIENCE, Site};
use testkit::{redis::Cluster, wait::until};
use tokio::time::{Instant, timeout};

/// A layer of its own, on the cluster that all tests of the suite share.
async fn on_a_cluster() -> (Arc<dyn ChannelLayer>, ()) {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    static SITES: AtomicUsize = AtomicUsize::new(0);
    let url = CLUSTER.get_or_init(Cluster::start).url();
    let prefix = format!("site{}.", SITES.fetch_add(1, Ordering::SeqCst));
    let layer = RedisPubSubLayer::builder(&url).prefix(&prefix).connect().await.unwrap();
    (Arc::new(layer), ())
}

contract_suite!(redis_pubsub_layer_on_a_cluster, on_a_cluster());

/// Groups enough to have some on every node.
fn rooms() -> Vec<String> {
    (0..60).map(|n| format!("room.{n}")).collect()
}

fn topic(group: &str) -> String {
    format!("asgi__group__{group}")
}

async fn site(cluster: &Cluster) -> Site {
    let layer = RedisPubSubLayer::builder(&cluster.url()).connect().await.unwrap();
    let rooms = rooms();
    Site::new(layer, &rooms.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Sends an event to each group, and one to a channel of the relay; each arrives exactly once.
async fn all_arrive_once(site: &mut Site) {
    site.answers().await;
    let channel = site.relay.new_channel();
    let run = format!("{:?}", Instant::now());
    let mut heard = BTreeSet::new();
    // What comes twice of the first round has come by the end of the second.
    for round in ["first", "second"] {
        let event = Event::new("t").with("run", run.as_str()).with("round", round);
        let wanted = heard.len() + rooms().len() + 1;
        for room in rooms() {
            let group = GroupName::parse(&room).unwrap();
            let event = event.clone().with("to", room.as_str());
            sent(site, async |site| site.layer.group_send(&group, &event).await).await;
        }
        let event = event.with("to", "own");
        sent(site, async |site| site.layer.send(&channel, &event).await).await;
        while heard.len() < wanted {
            match timeout(PATIENCE, site.deliveries.recv()).await.expect("all of them in time").unwrap() {
                Delivery::Group { event, .. } | Delivery::Channel { event, .. } => {
                    let [from, round, to] = ["run", "round", "to"].map(|key| event.text(key).unwrap_or("").to_owned());
                    assert!(from != run || heard.insert((round, to.clone())), "{to} came twice");
                }
                Delivery::Disconnected => site.downs += 1,
                Delivery::Reconnected(_) => site.ups += 1,
            }
        }
    }
}

/// Tries until it is sent. What is refused was not: the publisher finds a new node in its own time.
async fn sent(site: &mut Site, send: impl AsyncFn(&Site) -> Result<(), LayerError>) {
    until_ok("a send", async || send(site).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_sharded_topics_on_the_nodes_of_their_slots() {
    let cluster = Cluster::start();
    let mut site = site(&cluster).await;
    for room in rooms() {
        let topic = topic(&room);
        let owner = cluster.primary_of(&topic);
        for node in 0..6 {
            let count = cluster.node(node).cli(&["PUBSUB", "SHARDNUMSUB", &topic]);
            assert_eq!(count, format!("{topic}\n{}", u8::from(node == owner)), "{room} on {node}");
        }
    }
    all_arrive_once(&mut site).await;
    let group = [GroupName::parse("room.0").unwrap()];
    site.relay.leave(&group).await.unwrap();
    let topic = topic("room.0");
    let owner = cluster.node(cluster.primary_of(&topic));
    until("it is unsubscribed", PATIENCE, || owner.cli(&["PUBSUB", "SHARDNUMSUB", &topic]) == format!("{topic}\n0"));
    assert_eq!((site.downs, site.layer.stats().reconnects), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_takes_its_subscriptions_along() {
    let cluster = Cluster::start();
    let mut site = site(&cluster).await;
    let slot = cluster.slot_of(&topic("room.7"));
    let from = cluster.owner_of(slot).unwrap();
    let to = (from + 1) % 3;
    cluster.begin_move(slot, from, to);
    // While it is on its way everything is as before.
    all_arrive_once(&mut site).await;
    cluster.end_move(slot, from, to);
    site.is_down(1).await;
    site.is_up(1).await;
    all_arrive_once(&mut site).await;
    assert!(cluster.node(to).cli(&["PUBSUB", "SHARDNUMSUB", &topic("room.7")]).ends_with('1'));
    // One that moves unheard: who joins under the old map is sent on.
    let fresh = (0..).map(|n| format!("new.{n}")).find(|name| cluster.primary_of(&topic(name)) == from).unwrap();
    cluster.move_slot(cluster.slot_of(&topic(&fresh)), from, to);
    let group = GroupName::parse(&fresh).unwrap();
    timeout(Duration::from_secs(5), site.relay.join(std::slice::from_ref(&group))).await.unwrap().unwrap();
    site.group = group;
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_dead_node_is_replaced_and_everything_is_heard_again() {
    let mut cluster = Cluster::start();
    let mut site = site(&cluster).await;
    let lost = cluster.kill_primary_of(&topic("room.0"));
    site.is_down(1).await;
    let heir = cluster.wait_failover(lost);
    let back = Instant::now();
    site.is_up(1).await;
    assert!(back.elapsed() < Duration::from_secs(5), "5 seconds after the failover all is restored");
    site.group = GroupName::parse("room.0").unwrap();
    site.works_again().await;
    all_arrive_once(&mut site).await;
    assert!(cluster.node(heir).cli(&["PUBSUB", "SHARDNUMSUB", &topic("room.0")]).ends_with('1'));
    assert!(site.layer.stats().reconnects >= 1);
    // The dead one comes back as a replica, which changes nothing.
    cluster.bring_back(lost);
    all_arrive_once(&mut site).await;
    site.layer.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_a_frozen_node_is_replaced_and_everything_is_heard_again() {
    let mut cluster = Cluster::start();
    let mut site = site(&cluster).await;
    let lost = cluster.primary_of(&topic("room.0"));
    cluster.pause(lost);
    site.is_down(1).await;
    cluster.wait_failover(lost);
    site.until("the return is told", |site, _| site.ups >= 1).await;
    site.works_again().await;
    all_arrive_once(&mut site).await;
    cluster.resume(lost);
    all_arrive_once(&mut site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_node_that_hands_over_in_peace_is_left() {
    let cluster = Cluster::start();
    let mut site = site(&cluster).await;
    let old = cluster.primary_of(&topic("room.0"));
    let heir = cluster.switch_over(old);
    site.is_down(1).await;
    until("the new one has it all", PATIENCE, || {
        cluster.node(heir).cli(&["PUBSUB", "SHARDNUMSUB", &topic("room.0")]).ends_with('1')
    });
    until("the old one is left alone", PATIENCE, || cluster.node(old).cli(&["PUBSUB", "SHARDCHANNELS"]).is_empty());
    all_arrive_once(&mut site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_probes_of_every_node_are_heard_also_after_a_slot_has_moved() {
    let cluster = Cluster::start();
    let builder = RedisPubSubLayer::builder(&cluster.url()).probe_every(Duration::from_secs(1));
    let mut site = Site::new(builder.connect().await.unwrap(), &["room"]).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        site.works().await;
    }
    assert_eq!((site.layer.stats().probes_missed, site.downs), (0, 0), "probes are heard");
    // A probe's slot moves: nobody is deaf for that.
    let node = cluster.node(0);
    let probe = node.cli(&["PUBSUB", "SHARDCHANNELS", "asgi__group__specific.*"]);
    let probe = probe.lines().next().expect("a probe on every node");
    cluster.move_slot(cluster.slot_of(probe), 0, 1);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        site.works_again().await;
    }
    until("there is another probe", PATIENCE, || {
        !node.cli(&["PUBSUB", "SHARDCHANNELS", "asgi__group__specific.*"]).is_empty()
    });
    assert_eq!(site.layer.stats().reconnects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_is_never_doubled_while_slots_move() {
    let cluster = Cluster::start();
    let mut site = site(&cluster).await;
    let slot = cluster.slot_of(&topic("room.3"));
    let group = GroupName::parse("room.3").unwrap();
    let sender = RedisPubSubLayer::builder(&cluster.url()).connect().await.unwrap();
    let mut numbers = 0;
    for _ in 0..4 {
        let from = cluster.owner_of(slot).unwrap();
        let moves = site.ups;
        for step in 0..400 {
            numbers += 1;
            // Those that are sent in the moment of a move may be lost, and that is told.
            let _ = sender.group_send(&group, &Event::new("t").with("n", numbers)).await;
            if step == 200 {
                cluster.move_slot(slot, from, (from + 1) % 3);
            }
        }
        let heard = Mutex::new(Vec::new());
        let over = |site: &Site, last: Option<&Delivery>| {
            if let Some(Delivery::Group { event, .. }) = last {
                heard.lock().unwrap().push(event.get("n").and_then(Value::as_i64).unwrap());
            }
            site.ups > moves && site.ups == site.downs
        };
        site.until("the move is over", over).await;
        let heard = heard.into_inner().unwrap();
        assert!(heard.len() >= 150, "only {} were heard", heard.len());
        assert!(heard.is_sorted_by(|one, next| one < next), "in order and once: {heard:?}");
        assert!(*heard.last().unwrap() <= numbers);
    }
    site.group = group;
    site.works_again().await;
    site.answers().await;
}
