//! What the pub/sub layer survives, on real servers: R1, R3, R4, R8, R10, R12, R17 and subscribers that are cut.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "common/fake.rs"]
mod fake;
#[path = "common/site.rs"]
mod site;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use channel_layer::{ChannelLayer, Event, GroupName, LayerError, RedisPubSubLayer};
use fake::FakeRedis;
use site::{PATIENCE, Site};
use testkit::{
    proxy::{ChaosProxy, Way},
    redis::RedisServer,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

/// Every prefix an error of Redis may begin with (R12).
const ERRORS: [&str; 16] = [
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "NOREPLICAS Not enough good replicas to write.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN Hash slot not served",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM this user has no permissions to run the command",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "EXECABORT Transaction discarded because of previous errors.",
    "ERR max number of clients reached",
];

fn replicate(replica: &RedisServer, primary: &RedisServer) {
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    testkit::wait::until("the replica is linked", Duration::from_secs(20), || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
    });
}

/// One name for two servers that change their roles, while connections to the first stay open: what is published
/// there succeeds, is heard by who is subscribed there, and by nobody else.
async fn a_demoted_server_is_left(user: &str, rights: &[&str]) {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    for server in [&first, &second] {
        server.cli(&[&["ACL", "SETUSER", "site", "on", ">secret", "~*", "&*", "+@all"], rights].concat());
    }
    replicate(&second, &first);
    let proxy = ChaosProxy::to(first.port());
    let url = proxy.url().replace("redis://", &format!("redis://{user}"));
    let builder = RedisPubSubLayer::builder(&url).probe_every(Duration::from_millis(250));
    let mut site = Site::new(builder.connect().await.unwrap(), &["room"]).await;
    site.works().await;
    proxy.retarget(second.port());
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    replicate(&first, &second);
    site.is_down(1).await;
    site.is_up(1).await;
    let other = RedisPubSubLayer::connect(&second.url()).await.unwrap();
    other.group_send(&site.group, &Event::new("test.event").with("mark", "from the new primary")).await.unwrap();
    site.hears("from the new primary").await;
    assert_eq!(first.cli(&["PUBSUB", "NUMPAT"]), "0", "nobody is left on the old one");
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_server_that_becomes_a_replica_is_left_although_it_answers() {
    a_demoted_server_is_left("", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_user_without_role_leaves_a_demoted_server_too() {
    a_demoted_server_is_left("site:secret@", &["-role"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r1_redis_killed_and_back_empty() {
    let mut server = RedisServer::start();
    let mut site = Site::start(&server.url()).await;
    site.works().await;
    server.kill();
    site.is_down(1).await;
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(LayerError::Unavailable(_) | LayerError::Timeout))), "fails, and soon: {failed:?}");
    assert!(site.layer.ping().await.is_err());
    server.restart_empty();
    timeout(Duration::from_secs(5), site.is_up(1)).await.expect("5 seconds after its return all is restored");
    site.works().await;
    assert!(site.layer.stats().reconnects >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_redis_frozen_is_noticed_and_survived() {
    let mut server = RedisServer::start();
    let mut site = Site::start(&server.url()).await;
    server.pause();
    let failed = timeout(Duration::from_secs(5), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(_))), "every command has a deadline: {failed:?}");
    site.is_down(1).await;
    server.resume();
    site.is_up(1).await;
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscriber_comes_back() {
    let server = RedisServer::start();
    let mut site = Site::start(&server.url()).await;
    for times in 1..=3 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        site.is_up(times).await;
        site.works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_poison_is_counted_and_skipped() {
    let server = RedisServer::start();
    let mut site = Site::start(&server.url()).await;
    let deep = [0x91; 100_000];
    let poison: [&[u8]; 8] = [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x93\x01\x02\x03",
        b"\x81\x01\x02",
        b"\x81\xa4type",
        b"\x81\xa1a\xa1\xff",
        &deep,
    ];
    for payload in poison {
        server.raw(&[b"PUBLISH", b"asgi__group__room", payload]);
    }
    site.works().await;
    assert_eq!(site.layer.stats().undecodable, poison.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_message_of_any_size_costs_the_connection_and_no_memory() {
    let server = RedisServer::start();
    // As the operator may have set it: Redis itself would cut off a subscriber at 32 MB.
    server.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"]);
    let mut site = Site::start(&server.url()).await;
    for (times, mib) in [(1, 65), (2, 130)] {
        server.cli(&[
            "EVAL",
            &format!("redis.call('PUBLISH', 'asgi__group__room', string.rep('x', {mib} * 2^20))"),
            "0",
        ]);
        site.is_down(times).await;
        site.is_up(times).await;
        site.works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_a_half_open_link_is_noticed_and_survived() {
    let server = RedisServer::start();
    let mut cases = JoinSet::new();
    for (way, hold) in [(Way::Both, false), (Way::ToClient, false), (Way::ToServer, true), (Way::Both, true)] {
        cases.spawn(half_open(ChaosProxy::to(server.port()), way, hold));
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

async fn half_open(proxy: ChaosProxy, way: Way, hold: bool) {
    let mut site = Site::start(&proxy.url()).await;
    match hold {
        true => proxy.hold(way),
        false => proxy.black_hole(way),
    }
    let failed = timeout(Duration::from_secs(7), site.layer.group_send(&site.group, &Event::new("x"))).await;
    assert!(matches!(failed, Ok(Err(_))), "every command has a deadline: {way:?} {failed:?}");
    site.is_down(1).await;
    proxy.pass();
    timeout(Duration::from_secs(5), site.is_up(1)).await.expect("restored within 5 seconds");
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_a_slow_server_delays_nobody_without_end() {
    let server = Arc::new(RedisServer::start());
    let mut site = Site::start(&server.url()).await;
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
    for _ in 0..300 {
        let (layer, group) = (site.layer.clone(), site.group.clone());
        sends.spawn(async move { timeout(Duration::from_secs(8), layer.group_send(&group, &Event::new("x"))).await });
    }
    // What cannot be sent is refused at the bound, and not piled up.
    let event = Event::new("x").with("text", "x".repeat(1_000));
    let refused = (0..100_000).filter(|_| site.layer.group_send_later(&site.group, &event).is_err()).count();
    assert!(refused > 50_000, "only {refused} of 100,000 were refused");
    while let Some(sent) = sends.join_next().await {
        let _ = sent.unwrap().expect("every publish has a deadline");
    }
    slow.store(false, Ordering::SeqCst);
    nemesis.join().unwrap();
    site.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_subscription_that_is_healthy_and_deaf_is_noticed() {
    let server = RedisServer::start();
    let proxy = ChaosProxy::redis(server.port());
    let layer =
        RedisPubSubLayer::builder(&proxy.url()).probe_every(Duration::from_millis(300)).connect().await.unwrap();
    let mut site = Site::new(layer, &["room"]).await;
    let twin = Site::new(RedisPubSubLayer::connect(&proxy.url()).await.unwrap(), &["room"]).await;
    site.works().await;
    proxy.drop_messages(1);
    site.until("the deafness is noticed", |site, _| site.downs >= 1).await;
    assert!(site.layer.stats().probes_missed >= 2);
    twin.layer.ping().await.expect("nothing else notices: every PING is answered");
    assert_eq!((twin.downs, twin.layer.stats().reconnects), (0, 0));
    proxy.pass();
    site.works_again().await;
    let missed = site.layer.stats().probes_missed;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        site.works().await;
    }
    assert_eq!(site.layer.stats().probes_missed, missed, "who hears misses nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_subscriber_on_a_detached_replica_finds_the_way_back() {
    let (primary, replica) = (RedisServer::start(), RedisServer::start());
    let proxy = ChaosProxy::to(primary.port());
    let layer =
        RedisPubSubLayer::builder(&proxy.url()).probe_every(Duration::from_millis(300)).connect().await.unwrap();
    let mut site = Site::new(layer, &["room"]).await;
    // Half of a failover: the address leads elsewhere, and only the subscriber has followed it.
    proxy.retarget(replica.port());
    primary.client_kill("pubsub");
    site.is_up(1).await;
    assert_eq!(primary.cli(&["PUBSUB", "NUMSUB", "asgi__group__room"]), "asgi__group__room\n0");
    site.is_down(2).await;
    site.is_up(2).await;
    site.works_again().await;
    assert!(site.layer.stats().probes_missed >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_user_who_may_not_probe_is_served_without() {
    let server = RedisServer::start();
    server.set_user("site", "secret", &["resetchannels", "&asgi__group__*", "+@all"]);
    let layer = RedisPubSubLayer::builder(&server.url_as("site", "secret"))
        .probe_every(Duration::from_millis(100))
        .connect()
        .await
        .unwrap();
    let group = GroupName::parse("room").unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        layer.group_send(&group, &Event::new("x")).await.unwrap();
    }
    layer.ping().await.unwrap();
    assert_eq!((layer.stats().probes_missed, layer.stats().reconnects), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_publish_is_told_and_passes() {
    let fake = FakeRedis::start().await;
    let mut site = Site::start(&fake.url()).await;
    for error in ERRORS {
        fake.answer("PUBLISH", Some(error));
        let told = timeout(PATIENCE, site.layer.group_send(&site.group, &Event::new("x"))).await.unwrap();
        match told {
            Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains(error), "{error}: {why}"),
            other => panic!("{error}: {other:?}"),
        }
        fake.answer("PUBLISH", None);
        site.works().await;
    }
    assert_eq!(site.downs, 0, "the subscriptions had nothing to do with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_subscription_is_told_and_passes() {
    let fake = FakeRedis::start().await;
    let mut site = Site::start(&fake.url()).await;
    for (n, error) in ERRORS.iter().enumerate() {
        let groups = [GroupName::parse(&format!("other.{n}")).unwrap()];
        fake.answer("SUBSCRIBE", Some(error));
        match timeout(PATIENCE, site.relay.join(&groups)).await.unwrap() {
            Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains(error), "{error}: {why}"),
            other => panic!("{error}: {other:?}"),
        }
        site.works().await;
        fake.answer("SUBSCRIBE", None);
        site.relay.join(&groups).await.unwrap();
        site.works().await;
    }
    assert_eq!(site.downs, 0, "what was joined before stays joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_new_connection_is_told_and_tried_again() {
    let fake = FakeRedis::start().await;
    for error in ERRORS {
        fake.answer("PING", Some(error));
        match RedisPubSubLayer::connect(&fake.url()).await {
            Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains(error), "{error}: {why}"),
            other => panic!("{error}: {other:?}"),
        }
    }
    fake.answer("PING", Some(ERRORS[0]));
    let layer = RedisPubSubLayer::builder(&fake.url()).start().unwrap();
    let mut site = Site::new_later(layer).await;
    assert!(site.layer.ping().await.is_err());
    let before = fake.connections();
    testkit::wait::until("it tries again and again", PATIENCE, || fake.connections() >= before + 4);
    fake.answer("PING", None);
    site.is_up(1).await;
    site.relay.join(std::slice::from_ref(&site.group)).await.unwrap();
    site.works().await;
}
