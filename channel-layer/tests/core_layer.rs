//! What is the core layer's own: plain channels that are shared, leaving on purpose, shards that are away,
//! groups that are large.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{collections::HashSet, time::Duration};

use channel_layer::{ChannelLayer, Delivery, Event, LayerError, RedisCoreLayer, Value};
use common::{Collector, PATIENCE, channel, group, heard, until, until_async};
use testkit::{proxy::ChaosProxy, redis::RedisServer};
use tokio::time::{Instant, timeout};

fn numbered(n: i64) -> Event {
    Event::new("test.message").with("n", n)
}

fn number(event: &Event) -> i64 {
    event.get("n").and_then(Value::as_i64).expect("a number")
}

/// What comes after that waits in Redis, where senders count it.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_has_its_event_takes_nothing_more_out_of_the_queue() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).capacity(3).connect().await.unwrap();
    for round in 0..20 {
        for name in [layer.new_channel("").await.unwrap(), channel(&format!("job.{round}"))] {
            let event = numbered(0);
            let heard = match round % 2 {
                // The event is there first.
                0 => {
                    layer.send(&name, &event).await.unwrap();
                    heard(&layer, &name).await
                }
                // The receiver is.
                _ => tokio::join!(heard(&layer, &name), async { layer.send(&name, &event).await.unwrap() }).0,
            };
            assert_eq!(number(&heard), 0);
            for n in 1..=3 {
                layer.send(&name, &numbered(n)).await.unwrap();
            }
            assert!(matches!(layer.send(&name, &numbered(4)).await, Err(LayerError::ChannelFull(_))), "{name}");
            layer.flush().await.unwrap();
        }
    }
}

/// The pop goes on for a second after its receiver has gone: what it takes goes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_a_receiver_that_has_given_up_goes_to_another_one() {
    let server = RedisServer::start();
    let (first, second) =
        (RedisCoreLayer::connect(&server.url()).await.unwrap(), RedisCoreLayer::connect(&server.url()).await.unwrap());
    let job = channel("job");
    for n in 0..20 {
        assert!(timeout(Duration::from_millis(20), first.receive(&job)).await.is_err());
        second.send(&job, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&second, &job).await), n);
    }
    assert_eq!((first.stats().dropped, second.stats().dropped), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn close_gives_back_what_was_taken_and_ends_waiting_receivers() {
    let server = RedisServer::start();
    let (first, second) =
        (RedisCoreLayer::connect(&server.url()).await.unwrap(), RedisCoreLayer::connect(&server.url()).await.unwrap());
    let job = channel("job");
    for n in 0..5 {
        let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
        assert!(timeout(Duration::from_millis(20), layer.receive(&job)).await.is_err());
        // Its pop is still waiting when this comes.
        second.send(&job, &numbered(n)).await.unwrap();
        layer.close().await.unwrap();
        drop(layer);
        assert_eq!(number(&heard(&second, &job).await), n);
    }
    let waiting = first.receive(&job);
    let closing = async {
        until("it waits", || server.cli(&["CLIENT", "LIST"]).contains("cmd=bzpopmin")).await;
        first.close().await.unwrap();
    };
    let (ended, ()) = tokio::join!(timeout(PATIENCE, waiting), closing);
    assert!(matches!(ended.unwrap(), Err(LayerError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn close_leaves_all_groups_in_bulk_and_comes_back_no_more() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url())
        .intervals(Duration::from_millis(100), Duration::from_secs(45))
        .connect()
        .await
        .unwrap();
    let (relay, _collected) = Collector::relay(&layer, 10).await;
    let groups: Vec<_> = (0..12_000).map(|n| group(&format!("room.{n}"))).collect();
    relay.join(&groups).await.unwrap();
    for _ in 0..1_500 {
        let own = layer.new_channel("").await.unwrap();
        layer.group_add(&group("many"), &own).await.unwrap();
    }
    assert_eq!(server.cli(&["DBSIZE"]), "12002");
    layer.close().await.unwrap();
    assert_eq!(server.cli(&["DBSIZE"]), "0");
    let _ = timeout(Duration::from_millis(500), std::future::pending::<()>()).await;
    assert_eq!(server.cli(&["DBSIZE"]), "0", "no heartbeat any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_plain_channels_make_room_for_others() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    for n in 0..200 {
        let reply = channel(&format!("reply.{n}"));
        layer.send(&reply, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&layer, &reply).await), n);
    }
    let plain = || server.cli(&["CLIENT", "LIST"]).matches("name=channel-layer:plain").count();
    until("their connections end", || plain() <= 64).await;
    // Those that somebody waits on stay.
    let names: Vec<_> = (0..64).map(|n| channel(&format!("busy.{n}"))).collect();
    let waiting = futures_util::future::join_all(names.iter().map(|name| layer.receive(name)));
    let one_more = async {
        until("all are read", || plain() == 64).await;
        match layer.receive(&channel("one.more")).await {
            Err(LayerError::Config(text)) => assert!(text.contains("64"), "{text}"),
            other => panic!("{other:?}"),
        }
        for name in &names {
            layer.send(name, &numbered(1)).await.unwrap();
        }
    };
    let (all, ()) = tokio::join!(waiting, one_more);
    assert!(all.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_channel_prefix_is_no_loss_of_a_connection() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let (relay, mut collected) = Collector::relay(&layer, 10).await;
    let room = group("room");
    relay.join(std::slice::from_ref(&room)).await.unwrap();
    for n in 0..5 {
        let own = layer.new_channel(&format!("prefix.{n}")).await.unwrap();
        layer.send(&own, &numbered(n)).await.unwrap();
        assert_eq!(number(&heard(&layer, &own).await), n);
        layer.group_send(&room, &numbered(n)).await.unwrap();
        assert_eq!(number(&collected.group(&room).await), n, "nothing else was told");
    }
}

fn readers(server: &RedisServer) -> usize {
    server.cli(&["CLIENT", "LIST"]).matches("name=channel-layer:read").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_prefixes_may_come_and_go_and_cost_no_connection() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    for n in 0..500 {
        let own = layer.new_channel(&format!("channel{n}")).await.unwrap();
        if n % 100 == 0 {
            layer.send(&own, &numbered(n)).await.unwrap();
            assert_eq!(number(&heard(&layer, &own).await), n);
        }
        layer.remove_channel(&own).await.unwrap();
    }
    let mut channels = Vec::new();
    for n in 0..100 {
        channels.push(layer.new_channel(&format!("channel{n}")).await.unwrap());
    }
    let all = futures_util::future::join_all(channels.iter().map(|own| heard(&layer, own)));
    let send = async {
        until("they are read", || server.cli(&["CLIENT", "LIST"]).matches("cmd=bzmpop").count() == 4).await;
        for (n, own) in (0..).zip(&channels) {
            layer.send(own, &numbered(n)).await.unwrap();
        }
    };
    let (all, ()) = tokio::join!(all, send);
    assert_eq!(all.iter().map(number).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!(readers(&server), 4, "one for each client id");
}

/// Who waits for the messages of one prefix must not keep those of another waiting.
async fn a_reader_that_waits_for_one_prefix_also_hears_another(server: &RedisServer, url: &str, pop: &str) {
    for relays in [false, true] {
        let layer = RedisCoreLayer::builder(url).client_ids(1).connect().await.unwrap();
        let one = layer.new_channel("one").await.unwrap();
        let _relay = match relays {
            true => Some(Collector::relay(&layer, 10).await),
            false => None,
        };
        let waiting = async {
            assert_eq!(number(&heard(&layer, &one).await), 9);
        };
        let other = async {
            let waits = format!("cmd={pop}");
            for n in 0..5 {
                until("it waits", || server.cli(&["CLIENT", "LIST"]).contains(&waits)).await;
                let two = layer.new_channel(&format!("two.{n}")).await.unwrap();
                let began = Instant::now();
                layer.send(&two, &numbered(n)).await.unwrap();
                assert_eq!(number(&heard(&layer, &two).await), n);
                assert!(began.elapsed() < Duration::from_secs(4), "a pop waits for five seconds");
                layer.remove_channel(&two).await.unwrap();
            }
            layer.send(&one, &numbered(9)).await.unwrap();
        };
        tokio::join!(waiting, other);
        assert_eq!(layer.stats().unclaimed, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_hears_several_prefixes_in_one_command() {
    let server = RedisServer::start();
    a_reader_that_waits_for_one_prefix_also_hears_another(&server, &server.url(), "bzmpop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_hears_several_prefixes_where_it_may_not_pop_in_one_command() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "old", "on", ">secret", "~*", "+@all", "-bzmpop"]);
    let url = server.url().replace("redis://", "redis://old:secret@");
    a_reader_that_waits_for_one_prefix_also_hears_another(&server, &url, "bzpopmin").await;
}

/// The pop of a receiver that has given up goes on for a while, and what it takes may grow old here.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_expires_in_a_channel_s_inbox_is_counted() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::builder(&server.url()).expiry(1).connect().await.unwrap();
    let own = layer.new_channel("").await.unwrap();
    // On a busy machine a receiver may have given up before its pop is sent.
    while !server.cli(&["CLIENT", "LIST"]).contains("cmd=bzmpop") {
        assert!(timeout(Duration::from_millis(20), layer.receive(&own)).await.is_err());
    }
    layer.send(&own, &numbered(1)).await.unwrap();
    until("the pop takes it", || layer.stats().received == 1).await;
    assert!(timeout(Duration::from_millis(2_500), std::future::pending::<()>()).await.is_err());
    assert!(timeout(Duration::from_millis(20), layer.receive(&own)).await.is_err(), "it lives 2 seconds at most");
    assert_eq!(layer.stats().expired, 1);
}

/// A node that is cut off from one shard counts as dead there, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_cut_off_from_one_shard_stays_a_member_on_the_others() {
    let servers = [RedisServer::start(), RedisServer::start()];
    let proxy = ChaosProxy::to(servers[1].port());
    let (heartbeat, alive) = (Duration::from_millis(250), Duration::from_secs(2));
    let build = |second: String| {
        RedisCoreLayer::builder_with_hosts([servers[0].url(), second]).intervals(heartbeat, alive).connect()
    };
    let (node, other) = (build(proxy.url()).await.unwrap(), build(servers[1].url()).await.unwrap());
    // One group on each shard.
    let groups = [group("key_two"), group("key_one")];
    let (relay, mut collected) = Collector::relay(&node, 10_000).await;
    relay.join(&groups).await.unwrap();
    let keys = ["asgi:group:key_two", "asgi:group:key_one"];
    assert_eq!([servers[0].cli(&["ZCARD", keys[0]]), servers[1].cli(&["ZCARD", keys[1]])], ["1", "1"]);
    proxy.refuse();
    proxy.cut();
    assert!(matches!(collected.next().await, Delivery::Disconnected));
    let (mut gone, since) = (false, Instant::now());
    while !gone || since.elapsed() < Duration::from_secs(5) {
        assert!(since.elapsed() < PATIENCE, "the other one clears it away on the second shard");
        gone = servers[1].cli(&["EXISTS", keys[1]]) == "0";
        assert_eq!(servers[0].cli(&["ZCARD", keys[0]]), "1", "it lives on the first shard");
        // A send passes over those who are dead on the shard of its group.
        other.group_send(&groups[0], &numbered(1)).await.unwrap();
    }
    proxy.pass();
    until_async("it is back", async || node.ping().await.is_ok()).await;
    assert_eq!(servers[1].cli(&["ZCARD", keys[1]]), "1");
    other.group_send(&groups[1], &numbered(2)).await.unwrap();
    loop {
        if let Delivery::Group { group, event } = collected.next().await
            && group == groups[1]
        {
            break assert_eq!(number(&event), 2);
        }
    }
}

/// As many processes as this with one member each, as a large Django site may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_20000_queues_is_written_piece_by_piece() {
    const MEMBERS: usize = 20_000;
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let script = "\
for i = 1, tonumber(ARGV[1]) do
  redis.call('ZADD', KEYS[1], ARGV[2] + i, string.format('specific.%032x!x', i))
end";
    let score = (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).to_string();
    server.cli(&["EVAL", script, "1", "asgi:group:large", &MEMBERS.to_string(), &score]);
    let own = layer.new_channel("").await.unwrap();
    layer.group_add(&group("large"), &own).await.unwrap();
    timeout(Duration::from_secs(20), layer.group_send(&group("large"), &numbered(1))).await.unwrap().unwrap();
    assert_eq!(number(&heard(&layer, &own).await), 1);
    let queues = server.cli(&["EVAL", "return #redis.call('KEYS', 'asgispecific.*!')", "0"]);
    assert_eq!(queues, MEMBERS.to_string());
    let stats = layer.stats();
    assert_eq!((stats.publish_failed, stats.over_capacity), (0, 0));
}

/// Python's clients draw their ids; ours must not look like each other's either.
#[tokio::test]
async fn every_layer_has_client_ids_of_its_own() {
    let server = RedisServer::start();
    let mut processes = HashSet::new();
    for _ in 0..3 {
        let layer = RedisCoreLayer::builder(&server.url()).client_ids(64).connect().await.unwrap();
        for _ in 0..64 {
            processes.insert(layer.new_channel("").await.unwrap().non_local().to_owned());
        }
    }
    assert_eq!(processes.len(), 192);
    for wrong in [0, 65] {
        let layer = RedisCoreLayer::builder(&server.url()).client_ids(wrong).connect().await;
        assert!(matches!(layer, Err(LayerError::Config(_))));
    }
}
