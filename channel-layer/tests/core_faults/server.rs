//! A Redis that dies, forgets, hangs, is slow or full: R1 to R7.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use channel_layer::{ChannelLayer, Delivery, Event, LayerError, RedisCoreLayer};
use testkit::{
    proxy::{ChaosProxy, Way},
    redis::RedisServer,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    ALIVE,
    common::{Collector, PATIENCE, channel, group, heard, until},
    log::Log,
    long, number, numbered, over, site,
};

#[tokio::test(flavor = "multi_thread")]
async fn r1_redis_killed_and_back_empty() {
    let mut server = RedisServer::start();
    let mut site = site(&server.url()).await;
    let own = site.layer.new_channel("").await.unwrap();
    let other = group("other");
    site.layer.group_add(&other, &own).await.unwrap();
    site.works().await;
    let killed = Instant::now();
    server.kill();
    site.is_down(1).await;
    assert!(killed.elapsed() < Duration::from_secs(10), "not ready soon");
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(LayerError::Unavailable(_) | LayerError::Timeout))), "fails, and soon: {failed:?}");
    assert!(site.layer.ping().await.is_err());
    // A join waits, a leave is told Redis later.
    let (layer, joined) = (site.layer.clone(), own.clone());
    let joining = async move { layer.group_add(&group("joined"), &joined).await };
    site.layer.group_discard(&other, &own).await.unwrap();
    let back = async {
        server.restart_empty();
        timeout(Duration::from_secs(15), site.is_up(1)).await.expect("some seconds after its return all is restored");
    };
    let (joined, ()) = tokio::join!(joining, back);
    joined.unwrap();
    site.works().await;
    site.layer.ping().await.unwrap();
    assert_eq!(site.layer.stats().reconnects, 1);
    assert_eq!(server.cli(&["ZCARD", "asgi:group:joined"]), "1");
    assert_eq!(server.cli(&["EXISTS", "asgi:group:other"]), "0", "what was left is not restored");
    site.layer.group_send(&group("joined"), &numbered(5)).await.unwrap();
    assert_eq!(number(&heard(&*site.layer, &own).await), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_ten_thousand_memberships_are_back_within_seconds() {
    let mut server = RedisServer::start();
    let site = site(&server.url()).await;
    let groups: Vec<_> = (0..10_000).map(|n| group(&format!("room.{n}"))).collect();
    site.relay.join(&groups).await.unwrap();
    server.restart_empty();
    let back = Instant::now();
    until("all are back", || server.cli(&["DBSIZE"]).parse::<usize>().unwrap() >= 10_000).await;
    assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
}

/// The group's key is deleted, evicted or expired: nothing tells.
async fn r2_a_lost_group_is_healed(heartbeat: Duration, limit: Duration) {
    let server = RedisServer::start();
    let mut site = over(RedisCoreLayer::builder(&server.url()).intervals(heartbeat, ALIVE)).await;
    site.works().await;
    let lost = Instant::now();
    server.cli(&["DEL", "asgi:group:room"]);
    site.works_again().await;
    assert!(lost.elapsed() < limit, "{:?}", lost.elapsed());
    assert_eq!(site.downs, 0);
}

/// Everything is deleted: the next heartbeat finds our own key gone, and the relay is told.
async fn r2_a_flushed_redis_is_healed(heartbeat: Duration, limit: Duration) {
    let server = RedisServer::start();
    let mut site = over(RedisCoreLayer::builder(&server.url()).intervals(heartbeat, ALIVE)).await;
    site.works().await;
    let (lost, told) = (Instant::now(), site.ups);
    server.cli(&["FLUSHALL"]);
    site.until("the return is told", |site, _| site.ups > told).await;
    // On a machine that stood still that may have been the return of a queue that seemed deaf.
    until("the membership is back", || server.cli(&["ZCARD", "asgi:group:room"]) == "1").await;
    assert!(lost.elapsed() < limit, "{:?}", lost.elapsed());
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r2_a_lost_group_is_healed_by_the_next_renewal() {
    r2_a_lost_group_is_healed(Duration::from_millis(250), Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r2_a_flushed_redis_is_noticed_by_the_next_heartbeat() {
    r2_a_flushed_redis_is_healed(Duration::from_millis(500), Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r2_with_the_usual_intervals_all_is_healed_within_30_seconds() {
    if long() {
        let (heartbeat, limit) = (Duration::from_secs(5), Duration::from_secs(30));
        tokio::join!(r2_a_lost_group_is_healed(heartbeat, limit), r2_a_flushed_redis_is_healed(heartbeat, limit));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_redis_frozen_is_noticed_and_survived() {
    let mut server = RedisServer::start();
    let mut site = site(&server.url()).await;
    server.pause();
    let failed = timeout(Duration::from_secs(6), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(_))), "every command has a deadline: {failed:?}");
    site.is_down(1).await;
    assert!(site.layer.ping().await.is_err());
    server.resume();
    timeout(Duration::from_secs(15), site.is_up(1)).await.expect("restored within seconds");
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_a_redis_frozen_for_20_seconds_costs_one_return() {
    if !long() {
        return;
    }
    let mut server = RedisServer::start();
    let mut site = site(&server.url()).await;
    server.pause();
    crate::pass(Duration::from_secs(20)).await;
    server.resume();
    site.is_up(1).await;
    site.works_again().await;
    assert_eq!((site.downs, site.ups), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_a_half_open_link_is_noticed_and_survived() {
    let server = RedisServer::start();
    let mut cases = JoinSet::new();
    for (n, (way, hold)) in
        [(Way::Both, false), (Way::ToClient, false), (Way::ToServer, true), (Way::Both, true)].into_iter().enumerate()
    {
        cases.spawn(half_open(ChaosProxy::to(server.port()), n, way, hold));
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

async fn half_open(proxy: ChaosProxy, case: usize, way: Way, hold: bool) {
    // They share a server.
    let mut site = over(RedisCoreLayer::builder(&proxy.url()).prefix(&format!("case{case}:"))).await;
    match hold {
        true => proxy.hold(way),
        false => proxy.black_hole(way),
    }
    let failed = timeout(Duration::from_secs(7), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(_))), "every command has a deadline: {way:?} {failed:?}");
    site.is_down(1).await;
    proxy.pass();
    timeout(Duration::from_secs(7), site.until("all is restored", |site, _| site.ups >= 1)).await.unwrap();
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_a_slow_server_delays_nobody_without_end() {
    let server = Arc::new(RedisServer::start());
    let mut site = site(&server.url()).await;
    let slow = Arc::new(AtomicBool::new(true));
    let nemesis = {
        let (server, slow) = (server.clone(), slow.clone());
        std::thread::spawn(move || {
            while slow.load(Ordering::SeqCst) {
                // The next command, also of this loop, is answered when the pause is over.
                server.cli(&["CLIENT", "PAUSE", "1800", "ALL"]);
            }
        })
    };
    let mut sends = JoinSet::new();
    for n in 0..300 {
        let (layer, room) = (site.layer.clone(), site.group.clone());
        sends.spawn(async move {
            let sent = async {
                match n % 3 {
                    0 => layer.send(&channel("nobody"), &Event::new("x")).await,
                    1 => layer.group_add(&room, &channel("nobody")).await,
                    _ => layer.group_send(&room, &Event::new("x")).await,
                }
            };
            timeout(Duration::from_secs(8), sent).await
        });
    }
    // What cannot be sent is refused at the bound, and not piled up.
    let event = Event::new("x").with("text", "x".repeat(1_000));
    let refused = (0..100_000).filter(|_| site.layer.group_send_later(&site.group, &event).is_err()).count();
    assert!(refused > 50_000, "only {refused} of 100,000 were refused");
    while let Some(sent) = sends.join_next().await {
        let _ = sent.unwrap().expect("every command has a deadline");
    }
    slow.store(false, Ordering::SeqCst);
    nemesis.join().unwrap();
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r5_with_redis_full_sends_and_joins_fail_and_what_waits_is_read() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    let room = group("room");
    layer.group_add(&room, &own).await.unwrap();
    for n in 0..5 {
        layer.send(&own, &numbered(n)).await.unwrap();
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = |result: Result<(), LayerError>| match result {
        Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains("OOM"), "{why}"),
        other => panic!("{other:?}"),
    };
    full(layer.send(&own, &numbered(9)).await);
    full(layer.group_send(&room, &numbered(9)).await);
    full(layer.group_add(&group("other"), &own).await);
    for n in 0..5 {
        assert_eq!(number(&heard(&layer, &own).await), n, "what waits is read");
    }
    layer.group_discard(&room, &own).await.unwrap();
    assert_eq!(server.cli(&["EXISTS", "asgi:group:room"]), "0", "leaving works");
    let failed = layer.stats().publish_failed;
    assert_eq!(failed, 2);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    layer.group_add(&group("other"), &own).await.unwrap();
    layer.group_send(&group("other"), &numbered(10)).await.unwrap();
    assert_eq!(number(&heard(&layer, &own).await), 10);
    assert_eq!(server.cli(&["KEYS", "asgi:group:*"]), "asgi:group:other");
}

/// A relay that could not join is in no group, and in when it tries again.
#[tokio::test(flavor = "multi_thread")]
async fn r5_a_relays_join_fails_as_a_whole_and_succeeds_later() {
    let server = RedisServer::start();
    let mut site = site(&server.url()).await;
    site.works().await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let groups = [group("a"), site.group.clone(), group("b")];
    assert!(matches!(site.relay.join(&groups).await, Err(LayerError::Unavailable(_))));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(server.cli(&["KEYS", "asgi:group:*"]), "asgi:group:room", "what was joined before stays");
    site.works().await;
    site.relay.join(&groups).await.unwrap();
    site.layer.group_send(&group("b"), &numbered(1)).await.unwrap();
    let b = group("b");
    site.until("b is heard", |_, last| matches!(last, Some(Delivery::Group { group, .. }) if *group == b)).await;
}

#[tokio::test]
async fn r6_a_redis_that_evicts_is_reported() {
    let server = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let line = "it should have noeviction policy=\"allkeys-lru\"";
    let (log, _guard) = Log::collect();
    let _layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    until("the log says it", || log.count(line) == 1).await;
}

#[tokio::test]
async fn r6_a_redis_that_does_not_evict_is_not_reported() {
    let server = RedisServer::start_with(&["--maxmemory", "100mb"]);
    let (log, _guard) = Log::collect();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    layer.ping().await.unwrap();
    assert_eq!(log.count("noeviction"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_scripts_forgotten_all_the_time_lose_nothing_that_was_acknowledged() {
    let server = Arc::new(RedisServer::start());
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 10_000).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let nemesis = {
        let (server, ends) = (server.clone(), ends.clone());
        std::thread::spawn(move || {
            let mut times = 0;
            while !ends.load(Ordering::SeqCst) {
                assert_eq!(server.cli(&["SCRIPT", "FLUSH"]), "OK");
                times += 1;
            }
            times
        })
    };
    let (mut ledger, mut arrived) = (Vec::new(), HashSet::new());
    for n in 0..2_000 {
        match n % 2 {
            0 => layer.group_send(&room, &numbered(n)).await.unwrap(),
            _ => layer.group_send_later(&room, &numbered(n)).unwrap(),
        }
        ledger.push(n);
        if n % 10 == 9 {
            relay.join(&[group(&format!("other.{n}"))]).await.unwrap();
            while arrived.len() < ledger.len() {
                arrived.insert(number(&collected.group(&room).await));
            }
        }
    }
    ends.store(true, Ordering::SeqCst);
    assert!(nemesis.join().unwrap() > 100);
    assert_eq!(arrived.len(), ledger.len());
    assert_eq!(layer.stats().publish_failed, 0);
    assert!(timeout(PATIENCE, layer.ping()).await.unwrap().is_ok());
}
