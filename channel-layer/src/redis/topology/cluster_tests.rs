use std::collections::HashSet;

use tokio::time::timeout;

use super::*;
use crate::{
    LayerError,
    redis::{refusal, tls::TlsOptions, topology::Topology},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn cluster(url: &str) -> Arc<Cluster> {
    match Topology::of(&[url.into()], &TlsOptions::default()) {
        Ok(Topology::Cluster(cluster)) => cluster,
        Ok(Topology::Shards(_)) => panic!("no cluster"),
        Err(error) => panic!("{error}"),
    }
}

fn at(cluster: &testkit::redis::Cluster, index: usize) -> Node {
    Node::new("127.0.0.1", cluster.node(index).port())
}

/// Asks again and again until the slot is where it should be.
async fn until_owner(known: &Cluster, slot: u16, wanted: &Node) {
    let asking = async {
        while known.node_of(slot).as_ref() != Some(wanted) {
            // There may be nobody to ask for a moment.
            let _ = known.refresh().await;
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("slot {slot} at {wanted}: {:?}", known.node_of(slot)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_that_of_the_cluster_and_follows_it() {
    let mut redis = testkit::redis::Cluster::with_password("secret");
    let known = cluster(&redis.url());
    assert_eq!((known.node_of(0), known.nodes()), (None, Vec::new()), "nothing is known before it was asked for");
    let mut version = known.version();
    known.refresh().await.unwrap();
    assert!(version.has_changed().unwrap() && *version.borrow_and_update() == 1);
    for slot in [0, 5461, 5462, 10_922, 10_923, 16_383] {
        assert_eq!(known.node_of(slot), redis.owner_of(slot).map(|index| at(&redis, index)), "{slot}");
    }
    let nodes: HashSet<Node> = known.nodes().into_iter().collect();
    assert_eq!(nodes, (0..3).map(|index| at(&redis, index)).collect());
    for node in &nodes {
        known.target(node).open("channel-layer:test").await.unwrap();
    }
    known.refresh().await.unwrap();
    assert!(!version.has_changed().unwrap(), "the same map is no news");

    // A moved slot.
    redis.move_slot(0, 0, 1);
    until_owner(&known, 0, &at(&redis, 1)).await;
    assert_eq!(known.node_of(1), Some(at(&redis, 0)));
    assert!(version.has_changed().unwrap() && *version.borrow_and_update() == 2);

    // A primary that dies, and one that hands over.
    redis.kill(2);
    let heir = redis.wait_failover(2);
    until_owner(&known, 16_383, &at(&redis, heir)).await;
    assert!(!known.nodes().contains(&at(&redis, 2)));
    redis.bring_back(2);
    let heir = redis.switch_over(0);
    until_owner(&known, 1, &at(&redis, heir)).await;
    assert!(version.has_changed().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_delays_nobody_and_its_map_does_not_last() {
    let mut redis = testkit::redis::Cluster::start();
    // Only the one that will be frozen is configured.
    let known = cluster(&redis.urls()[0].replace("redis://", "redis+cluster://"));
    known.refresh().await.unwrap();
    redis.pause(0);
    // Also while it is the first to be asked, and with nobody in its place yet.
    for _ in 0..3 {
        timeout(PATIENCE, known.refresh()).await.unwrap().unwrap();
    }
    let heir = redis.wait_failover(0);
    until_owner(&known, 0, &at(&redis, heir)).await;
    // It wakes up and takes itself for a primary, until the others have told it.
    redis.resume(0);
    for _ in 0..6 {
        known.refresh().await.unwrap();
    }
    until_owner(&known, 0, &at(&redis, heir)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_together_share_an_answer() {
    let redis = testkit::redis::Cluster::start();
    let known = cluster(&redis.url());
    known.refresh().await.unwrap();
    let asked = || -> usize {
        let calls = |index| {
            let stats = redis.node(index).cli(&["INFO", "commandstats"]);
            let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_cluster|slots:calls="));
            line.and_then(|line| line.split(',').next()?.parse::<usize>().ok()).unwrap_or(0)
        };
        (0..6).map(calls).sum()
    };
    assert_eq!(asked(), 1);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let known = known.clone();
        all.spawn(async move { known.refresh().await.map_err(|error| error.to_string()) });
    }
    while let Some(result) = all.join_next().await {
        result.unwrap().unwrap();
    }
    // The first to come, and those who came while that one was being served.
    assert!(asked() <= 3, "{}", asked());
    // One that is given up takes nobody with it.
    assert!(timeout(Duration::ZERO, known.refresh()).await.is_err());
    known.refresh().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_a_map_are_named_and_the_old_map_stays() {
    let mut redis = testkit::redis::Cluster::with_password("secret");
    let known = cluster(&redis.url());
    known.refresh().await.unwrap();
    let error = cluster(&redis.url().replace("secret", "guessed")).refresh().await.unwrap_err();
    assert!(refusal::is_denied(&error) && error.to_string().contains("WRONGPASS"), "{error}");
    assert!(!error.to_string().contains("guessed"), "{error}");
    (0..6).for_each(|index| redis.kill(index));
    let error = known.refresh().await.unwrap_err().to_string();
    assert!((0..6).all(|index| error.contains(&at(&redis, index).to_string())), "{error}");
    assert_eq!(known.nodes().len(), 3);

    let alone = testkit::redis::RedisServer::start();
    let url = alone.url().replace("redis://", "redis+cluster://");
    let error = cluster(&url).refresh().await.unwrap_err().to_string();
    assert!(error.contains("cluster support disabled"), "{error}");
    let two = [url, alone.url()];
    assert!(matches!(Topology::of(&two.map(crate::Host::from), &TlsOptions::default()), Err(LayerError::Config(_))));
}

#[test]
fn an_answer_counts_by_the_clusters_health_and_epoch() {
    let text = |it: &str| Value::BulkString(it.into());
    let node = Value::Array(vec![text("a"), Value::Int(1), text("id")]);
    let slots = Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(9), node])]);
    let info = |state: &str, epoch| text(&format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n"));
    let rank = |info: Value| match answer(&[slots.clone(), info], "h", 5).unwrap() {
        Found::Good(said) => (true, said.epoch),
        Found::Doubtful(rank, said) => (false, rank.min(said.epoch)),
    };
    assert_eq!(rank(info("ok", 5)), (true, 5));
    assert_eq!(rank(info("ok", 6)), (true, 6));
    assert_eq!(rank(info("ok", 4)), (false, 4));
    assert_eq!(rank(info("fail", 6)), (false, 6));
    assert_eq!(rank(crate::redis::answer::error("NOPERM no")), (true, 5));
    assert!(answer(&[crate::redis::answer::error("ERR no cluster"), info("ok", 1)], "h", 0).is_err());
}
