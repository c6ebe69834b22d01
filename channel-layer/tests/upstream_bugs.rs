//! What was measured to go wrong in Python's layers, and does not here. Poison is in `core_poison.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use channel_layer::{ChannelLayer, Event, RedisCoreLayer, RedisPubSubLayer, Value};
use common::{Collector, PATIENCE, channel, group, heard};
use serde_json::{Value as Json, json};
use testkit::{
    python::{Kind, Peer},
    redis::RedisServer,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};

fn numbered(n: usize) -> Event {
    Event::new("test.message").with("n", n as i64)
}

fn number(event: &Event) -> usize {
    event.get("n").and_then(Value::as_u64).expect("a number") as usize
}

// ---- churn: Python lost 222 of 3,000 group messages ----

const CHURNED: usize = 3_000;
/// How many messages may be under way; a queue holds 100.
const UNDER_WAY: usize = 50;

/// Three receivers that open a channel, receive for 0 to 10 ms, give up and remove it, over and over, while a
/// fourth one stays.
async fn churn(layer: Arc<dyn ChannelLayer>, sender: Arc<dyn ChannelLayer>) {
    let room = group("room");
    let stable = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &stable).await.unwrap();
    let (ends, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut churners = JoinSet::new();
    for seed in 0..3_u64 {
        let (layer, ends, rounds) = (layer.clone(), ends.clone(), rounds.clone());
        churners.spawn(async move {
            let mut time = seed;
            while !ends.load(Ordering::Relaxed) {
                // As good as random, and the same in each run.
                time = (time * 7_919 + 4_441) % 10_000;
                let own = layer.new_channel("").await.unwrap();
                let _ = timeout(Duration::from_micros(time), layer.receive(&own)).await;
                layer.remove_channel(&own).await.unwrap();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (room_for, mut more) = mpsc::channel(UNDER_WAY);
    for _ in 0..UNDER_WAY {
        room_for.send(()).await.unwrap();
    }
    let sending = async {
        for n in 0..CHURNED {
            more.recv().await.unwrap();
            sender.group_send(&room, &numbered(n)).await.unwrap();
        }
    };
    let receiving = async {
        for n in 0..CHURNED {
            assert_eq!(number(&heard(&*layer, &stable).await), n, "all of them, in order");
            let _ = room_for.try_send(());
        }
    };
    tokio::join!(sending, receiving);
    ends.store(true, Ordering::Relaxed);
    churners.join_all().await;
    assert!(rounds.load(Ordering::Relaxed) > 100, "{rounds:?} rounds of churning");
}

#[tokio::test(flavor = "multi_thread")]
async fn churning_receivers_lose_nothing_of_a_stable_one_on_core() {
    let server = RedisServer::start();
    // One client id: all channels share a queue, as they do in Python.
    for clients in [1, 4] {
        let layer = RedisCoreLayer::builder(&server.url()).client_ids(clients).connect().await.unwrap();
        let sender = RedisCoreLayer::connect(&server.url()).await.unwrap();
        churn(Arc::new(layer.clone()), Arc::new(sender)).await;
        assert_eq!(layer.stats().dropped, 0);
        layer.flush().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn churning_receivers_lose_nothing_of_a_stable_one_on_pubsub() {
    let server = RedisServer::start();
    let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
    let sender = RedisPubSubLayer::connect(&server.url()).await.unwrap();
    churn(Arc::new(layer), Arc::new(sender)).await;
}

// ---- a plain channel with many readers: Python made 7,581 deliveries of 5,000 messages ----

const JOBS: usize = 5_000;

/// Four layers read a plain channel until nothing has come for a second; which of them got which.
async fn four_readers(server: &RedisServer, shards: u8, python: usize) -> (Vec<usize>, Vec<usize>) {
    let hosts: Vec<String> = (0..shards).map(|number| server.database(number)).collect();
    let build = || RedisCoreLayer::builder_with_hosts(&hosts).capacity(JOBS).connect();
    let job = channel("job");
    // They take long to start, and our readers give up when nothing comes.
    let peers: Vec<Peer> = (0..python).map(|_| Peer::core(&json!({ "hosts": hosts }))).collect();
    let sender = build().await.unwrap();
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (layer, job) = (build().await.unwrap(), job.clone());
        readers.spawn(async move {
            let mut taken = Vec::new();
            while let Ok(event) = timeout(Duration::from_secs(2), layer.receive(&job)).await {
                taken.push(number(&event.unwrap()));
            }
            taken
        });
    }
    let taking: Vec<_> = peers.iter().map(|peer| peer.receive_all("job", Duration::from_secs(2))).collect();
    for n in 0..JOBS {
        sender.send(&job, &numbered(n)).await.unwrap();
    }
    let ours = readers.join_all().await.concat();
    let theirs = tokio::task::spawn_blocking(move || {
        let lists = taking.into_iter().map(|taking| taking.list_within(Duration::from_secs(30)));
        lists.flatten().map(|message| message["n"].as_u64().unwrap() as usize).collect()
    });
    (ours, theirs.await.unwrap())
}

fn each_once(ours: &[usize]) {
    let mut sorted = ours.to_vec();
    sorted.sort_unstable();
    assert_eq!(ours.len(), JOBS, "deliveries");
    assert_eq!(sorted, (0..JOBS).collect::<Vec<_>>(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_readers_of_a_plain_channel_make_5000_deliveries_of_5000_messages() {
    let server = RedisServer::start();
    each_once(&four_readers(&server, 1, 0).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_readers_of_a_plain_channel_on_four_shards_make_5000_deliveries_of_5000_messages() {
    let server = RedisServer::start();
    each_once(&four_readers(&server, 4, 0).await.0);
}

/// One Python process holds a lock from the pop until it has taken the message out of its backup, and so does
/// not put back what it has.
#[tokio::test(flavor = "multi_thread")]
async fn four_readers_and_one_of_python_make_5000_deliveries_of_5000_messages() {
    let server = RedisServer::start();
    let (ours, theirs) = four_readers(&server, 1, 1).await;
    assert!(!ours.is_empty() && !theirs.is_empty(), "{} and {}", ours.len(), theirs.len());
    each_once(&[ours, theirs].concat());
}

/// Two Python processes put back what the other one is handling, so that it is taken again, by anybody. What
/// can be promised: each time a message is in the queue it is taken once, and we never put one back that was
/// delivered. A message gets into the queue by its sender or after Python has taken it, so no two of our
/// readers ever get the same one, and those that Python has not had are delivered once.
#[tokio::test(flavor = "multi_thread")]
async fn of_four_readers_beside_two_of_python_no_two_get_the_same_message_and_none_is_lost() {
    let server = RedisServer::start();
    let (ours, theirs) = four_readers(&server, 1, 2).await;
    let mut times: HashMap<usize, usize> = HashMap::new();
    for n in &ours {
        *times.entry(*n).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "delivered twice by us: {twice:?}");
    let all: HashSet<usize> = ours.iter().chain(&theirs).copied().collect();
    assert_eq!(all.len(), JOBS, "none is lost");
    let python: HashSet<usize> = theirs.iter().copied().collect();
    assert!(times.keys().any(|n| !python.contains(n)), "we have taken part");
}

// ---- direct sends on four shards: 12 of Python's 40 arrived ----

const DIRECT: usize = 40;

fn four_shards(server: &RedisServer) -> Vec<String> {
    (0..4).map(|number| server.database(number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_sends_on_four_shards_all_arrive() {
    let server = RedisServer::start();
    let hosts = four_shards(&server);
    let build = || RedisCoreLayer::builder_with_hosts(&hosts).connect();
    let (layer, sender) = (build().await.unwrap(), build().await.unwrap());
    for n in 0..DIRECT {
        let own = layer.new_channel("").await.unwrap();
        sender.send(&own, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n);
    }
    let (relay, mut collected) = Collector::relay(&layer, DIRECT).await;
    for n in 0..DIRECT {
        let own = relay.new_channel();
        sender.send(&own, &numbered(n)).await.unwrap();
        assert_eq!(number(&collected.channel(&own).await), n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_sends_to_python_on_four_shards_all_arrive() {
    let server = RedisServer::start();
    let hosts = four_shards(&server);
    let layer = RedisCoreLayer::builder_with_hosts(&hosts).connect().await.unwrap();
    let python = Peer::core(&json!({ "hosts": hosts }));
    for n in 0..DIRECT {
        let theirs = python.new_channel();
        layer.send(&channel(&theirs), &numbered(n)).await.unwrap();
        assert_eq!(python.receive(&theirs, PATIENCE), Some(json!({"type": "test.message", "n": n})));
    }
}

/// Python sends to the shard of the full name; we read them all.
#[tokio::test(flavor = "multi_thread")]
async fn direct_sends_of_python_on_four_shards_all_arrive() {
    let server = RedisServer::start();
    let hosts = four_shards(&server);
    let layer = RedisCoreLayer::builder_with_hosts(&hosts).connect().await.unwrap();
    let python = Peer::core(&json!({ "hosts": hosts }));
    for n in 0..DIRECT {
        let own = layer.new_channel("").await.unwrap();
        python.send(own.as_str(), &json!({"type": "test.message", "n": n}));
        assert_eq!(number(&heard(&layer, &own).await), n);
    }
    let (relay, mut collected) = Collector::relay(&layer, DIRECT).await;
    for n in 0..DIRECT {
        let own = relay.new_channel();
        python.send(own.as_str(), &json!({"type": "test.message", "n": n}));
        assert_eq!(number(&collected.channel(&own).await), n);
    }
}

// ---- clocks ----

fn of_python(n: usize) -> Json {
    json!({"type": "python", "n": n})
}

/// How long after Python's send a send of ours is heard again.
async fn deaf_after_a_send_from_the_future(heartbeat: Option<Duration>) -> Duration {
    let server = RedisServer::start();
    let mut builder = RedisCoreLayer::builder(&server.url());
    if let Some(heartbeat) = heartbeat {
        builder = builder.intervals(heartbeat, Duration::from_secs(45));
    }
    let layer = builder.connect().await.unwrap();
    let sender = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 100_000).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&room, &own).await.unwrap();
    sender.group_send(&room, &numbered(1)).await.unwrap();
    assert_eq!(number(&collected.group(&room).await), 1);
    let python = Peer::with_clock(Kind::Core, &json!({ "hosts": [server.url()] }), "+2d");
    // It removes the members before it reads them, and so reaches nobody.
    python.group_send("room", &of_python(2));
    let since = Instant::now();
    let healed = async {
        loop {
            sender.group_send(&room, &numbered(3)).await.unwrap();
            if let Ok(event) = timeout(Duration::from_millis(100), collected.group(&room)).await {
                break assert_eq!(number(&event), 3);
            }
        }
    };
    timeout(Duration::from_secs(30), healed).await.expect("healed within 30 seconds");
    let time = since.elapsed();
    // What is direct was never in danger, and both members are back.
    python.send(own.as_str(), &of_python(4));
    sender.send(&own, &numbered(5)).await.unwrap();
    let (mut direct, mut all) = (HashSet::from([4, 5]), HashSet::new());
    while !direct.is_empty() {
        let n = number(&heard(&layer, &own).await);
        direct.remove(&n);
        all.insert(n);
    }
    assert!(!all.contains(&2));
    testkit::wait::until("both members are back", PATIENCE, || server.cli(&["ZCARD", "asgi:group:room"]) == "2");
    time
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_emptied_by_a_publisher_two_days_ahead_is_whole_again_with_the_next_renewal() {
    let time = deaf_after_a_send_from_the_future(Some(Duration::from_millis(250))).await;
    assert!(time < Duration::from_secs(10), "{time:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_emptied_by_a_publisher_two_days_ahead_is_whole_again_within_30_seconds() {
    if std::env::var_os("GATEWAY_LONG").is_none() {
        return;
    }
    deaf_after_a_send_from_the_future(None).await;
}

/// Its sends delete what waits in a queue: that is a message or two, as long as somebody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_90_seconds_ahead_takes_nothing_from_who_is_being_read() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let sender = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let python = Peer::with_clock(Kind::Core, &json!({ "hosts": [server.url()] }), "+90s");
    let room = group("room");
    let (relay, mut collected) = Collector::relay(&layer, 10_000).await;
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    for n in 0..100 {
        sender.group_send(&room, &numbered(2 * n)).await.unwrap();
        assert_eq!(number(&collected.group(&room).await), 2 * n);
        python.group_send("room", &of_python(2 * n + 1));
        assert_eq!(number(&collected.group(&room).await), 2 * n + 1);
    }
    // What nobody reads is deleted, and what is sent after that is not.
    let quiet = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let unread = quiet.new_channel("").await.unwrap();
    for n in 0..3 {
        sender.send(&unread, &numbered(n)).await.unwrap();
    }
    python.send(unread.as_str(), &of_python(3));
    sender.send(&unread, &numbered(4)).await.unwrap();
    let mut left = [number(&heard(&quiet, &unread).await), number(&heard(&quiet, &unread).await)];
    left.sort_unstable();
    assert_eq!(left, [3, 4]);
    assert!(timeout(Duration::from_millis(300), quiet.receive(&unread)).await.is_err());
}

/// What waits is sorted by its sender's clock, so the late one's come first; nobody's own order changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_5_seconds_late_loses_nothing_and_each_sender_keeps_its_order() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let python = Peer::with_clock(Kind::Core, &json!({ "hosts": [server.url()] }), "-5s");
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&group("room"), &own).await.unwrap();
    for n in 0..20 {
        layer.send(&own, &numbered(2 * n)).await.unwrap();
        match n % 2 {
            0 => python.send(own.as_str(), &of_python(2 * n + 1)),
            _ => python.group_send("room", &of_python(2 * n + 1)),
        }
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let event = heard(&layer, &own).await;
        match event.event_type() {
            Some("python") => theirs.push(number(&event)),
            _ => ours.push(number(&event)),
        }
    }
    assert_eq!(ours, (0..20).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(theirs, (0..20).map(|n| 2 * n + 1).collect::<Vec<_>>());
    assert_eq!(layer.stats().expired, 0);
}
