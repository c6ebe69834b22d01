//! "channels_redis, pub/sub": each on one server and through Sentinels.

use std::{
    collections::HashSet,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use channel_layer::{ChannelLayer, ChannelName, Event, RedisPubSubLayer};
use serde_json::json;
use testkit::{
    python::Peer,
    redis::{RedisServer, Sentinels},
};
use tokio::time::timeout;

use crate::{
    common::{as_event, group, heard, message, subscribed, until},
    elsewhere, next, number, numbered, pass, several, silent,
};

static SERVER: OnceLock<[RedisServer; 1]> = OnceLock::new();
static SENTINELS: OnceLock<Mutex<Sentinels>> = OnceLock::new();
static SITES: AtomicU32 = AtomicU32::new(0);

/// One server or one set of Sentinels, shared by all tests; each has a prefix of its own, which its plain
/// channels begin with too.
struct Site {
    sentinel: bool,
    prefix: String,
}

impl Site {
    fn direct() -> Self {
        SERVER.get_or_init(|| [RedisServer::start()]);
        Self::new(false)
    }

    fn sentinel() -> Self {
        SENTINELS.get_or_init(|| Mutex::new(Sentinels::start()));
        Self::new(true)
    }

    fn new(sentinel: bool) -> Self {
        Self { sentinel, prefix: format!("site{}.", SITES.fetch_add(1, Ordering::Relaxed)) }
    }

    fn url(&self) -> String {
        match self.sentinel {
            true => SENTINELS.get().unwrap().lock().unwrap().url(),
            false => SERVER.get().unwrap()[0].url(),
        }
    }

    async fn layer(&self) -> RedisPubSubLayer {
        RedisPubSubLayer::builder(&self.url()).prefix(&self.prefix).connect().await.unwrap()
    }

    fn plain(&self) -> ChannelName {
        ChannelName::parse(&format!("{}job", self.prefix)).unwrap()
    }
}

macro_rules! checklist {
    ($($name:ident)*) => {
        mod direct {
            use super::Site;
            $(#[tokio::test] async fn $name() { super::$name(Site::direct()).await })*
        }
        mod sentinel {
            use super::Site;
            $(#[tokio::test] async fn $name() { super::$name(Site::sentinel()).await })*
        }
    };
}

checklist! {
    pubsub_a_message_arrives_with_all_its_keys
    pubsub_three_messages_arrive_in_order
    pubsub_messages_of_synchronous_code_arrive_in_order
    pubsub_of_three_members_the_discarded_one_hears_nothing
    pubsub_three_members_of_one_process_each_hear_one_message_once
    pubsub_another_layer_receives_on_a_plain_channel_it_did_not_create
    pubsub_waiting_on_a_silent_channel_can_time_out
    pubsub_discarding_before_any_add_does_nothing
    pubsub_own_channels_are_received_on_from_several_runtimes
    pubsub_receives_cancelled_at_many_moments_neither_hang_nor_lose
    pubsub_repeated_group_sends_from_synchronous_code_do_not_fail
    pubsub_channel_names_stay_unique
    pubsub_five_messages_to_a_member_nobody_reads_raise_nothing
}

async fn pubsub_a_message_arrives_with_all_its_keys(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    let event = as_event(&message(1));
    layer.send(&channel, &event).await.unwrap();
    assert_eq!(heard(&layer, &channel).await, event);
}

async fn pubsub_three_messages_arrive_in_order(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    for n in 1..=3 {
        layer.send(&channel, &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3]);
}

async fn pubsub_messages_of_synchronous_code_arrive_in_order(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    for n in 1..=3 {
        let (sender, channel) = (layer.clone(), channel.clone());
        elsewhere(async move { sender.send(&channel, &numbered(n)).await }).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3]);
}

async fn pubsub_of_three_members_the_discarded_one_hears_nothing(site: Site) {
    three_members(&site.layer().await).await;
}

async fn three_members(layer: &RedisPubSubLayer) {
    let room = group("test-group");
    let mut members = Vec::new();
    for _ in 0..3 {
        let member = layer.new_channel("test-gr-chan").await.unwrap();
        layer.group_add(&room, &member).await.unwrap();
        members.push(member);
    }
    layer.group_discard(&room, &members[1]).await.unwrap();
    layer.group_send(&room, &numbered(1)).await.unwrap();
    assert_eq!(next(layer, &members[0]).await, 1);
    assert_eq!(next(layer, &members[2]).await, 1);
    silent(layer, &members[1], Duration::from_secs(1)).await;
}

async fn pubsub_three_members_of_one_process_each_hear_one_message_once(site: Site) {
    let layer = site.layer().await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let member = layer.new_channel("").await.unwrap();
        layer.group_add(&group("test-group"), &member).await.unwrap();
        members.push(member);
    }
    layer.group_send(&group("test-group"), &numbered(1)).await.unwrap();
    for member in &members {
        assert_eq!(next(&layer, member).await, 1);
        silent(&layer, member, Duration::from_millis(300)).await;
    }
}

async fn pubsub_another_layer_receives_on_a_plain_channel_it_did_not_create(site: Site) {
    let (sender, receiver, job) = (site.layer().await, site.layer().await, site.plain());
    // Receiving subscribes; until then nothing is heard.
    let sending = async {
        loop {
            sender.send(&job, &numbered(1)).await.unwrap();
            pass(Duration::from_millis(20)).await;
        }
    };
    let heard = tokio::select! {
        heard = next(&receiver, &job) => heard,
        () = sending => unreachable!(),
    };
    assert_eq!(heard, 1);
}

async fn pubsub_waiting_on_a_silent_channel_can_time_out(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    assert!(timeout(Duration::from_secs(1), layer.receive(&channel)).await.is_err());
    layer.send(&channel, &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &channel).await, 1);
}

async fn pubsub_discarding_before_any_add_does_nothing(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_discard(&group("test-group"), &channel).await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    layer.group_send(&group("test-group"), &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &channel).await, 1);
}

#[tokio::test]
async fn pubsub_python_in_another_process_receives_on_a_plain_channel_it_did_not_create() {
    let servers = [RedisServer::start()];
    let layer = RedisPubSubLayer::connect(&servers[0].url()).await.unwrap();
    let python = Peer::pubsub(&json!({ "hosts": [servers[0].url()] }));
    let receiving = python.receive_all("job", Duration::from_secs(2));
    subscribed(&servers, "job", 1).await;
    layer.send(&ChannelName::parse("job").unwrap(), &numbered(1)).await.unwrap();
    let heard = tokio::task::spawn_blocking(move || receiving.list_within(Duration::from_secs(10))).await.unwrap();
    assert_eq!(heard, [json!({"type": "test.message", "n": 1})]);
}

#[test]
fn pubsub_a_message_serializes_to_the_bytes_of_python() {
    let event = Event::from_serialize(&json!({"a": true, "b": null, "c": {"d": []}})).unwrap();
    let bytes = [0x83, 0xa1, 0x61, 0xc3, 0xa1, 0x62, 0xc0, 0xa1, 0x63, 0x81, 0xa1, 0x64, 0x90];
    assert_eq!(event.to_msgpack().unwrap(), bytes);
    assert_eq!(Event::from_msgpack(&bytes).unwrap(), event);
}

#[tokio::test]
async fn pubsub_a_dropped_layer_closes_its_connections_and_leaves_nothing() {
    let server = RedisServer::start();
    let ours = || server.cli(&["CLIENT", "LIST"]).matches("name=channel-layer").count();
    let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    assert_eq!(ours(), 2);
    drop(layer);
    until("the connections end", || ours() == 0).await;
    assert_eq!(server.cli(&["PUBSUB", "CHANNELS", "*"]), "");
}

#[tokio::test]
async fn pubsub_connections_closed_twice_amid_joins_and_leaves_reach_exactly_the_members() {
    let server = RedisServer::start();
    let layer = RedisPubSubLayer::connect(&server.url()).await.unwrap();
    let room = group("test-group");
    let mut channels = Vec::new();
    for n in 0..12 {
        let channel = layer.new_channel("").await.unwrap();
        layer.group_add(&room, &channel).await.unwrap();
        if n % 3 == 0 {
            layer.group_discard(&room, &channel).await.unwrap();
        }
        if n == 4 || n == 8 {
            server.client_kill("pubsub");
            server.client_kill("normal");
        }
        channels.push(channel);
    }
    pass(Duration::from_secs(1)).await;
    layer.group_send(&room, &numbered(1)).await.unwrap();
    for (n, channel) in channels.iter().enumerate() {
        match n % 3 {
            0 => silent(&layer, channel, Duration::from_millis(100)).await,
            _ => {
                assert_eq!(next(&layer, channel).await, 1);
                silent(&layer, channel, Duration::from_millis(20)).await;
            }
        }
    }
}

// What the list has for core, as far as this layer has it.

async fn pubsub_own_channels_are_received_on_from_several_runtimes(site: Site) {
    let layer = site.layer().await;
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.send(&one, &numbered(1)).await.unwrap();
    layer.send(&two, &numbered(2)).await.unwrap();
    let receive = |channel: ChannelName| {
        let layer = layer.clone();
        elsewhere(async move { next(&layer, &channel).await })
    };
    assert_eq!(tokio::join!(receive(one), receive(two)), (1, 2));
}

async fn pubsub_receives_cancelled_at_many_moments_neither_hang_nor_lose(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    let mut heard = Vec::new();
    for round in 0..100 {
        let event = numbered(round);
        let time = Duration::from_micros(100 * round as u64);
        let (received, sent) = tokio::join!(timeout(time, layer.receive(&channel)), layer.send(&channel, &event));
        sent.unwrap();
        heard.extend(received.ok().map(|event| number(&event.unwrap())));
    }
    while heard.len() < 100 {
        heard.push(next(&layer, &channel).await);
    }
    assert_eq!(heard, (0..100).collect::<Vec<_>>());
}

async fn pubsub_repeated_group_sends_from_synchronous_code_do_not_fail(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 0..10 {
        let sender = layer.clone();
        elsewhere(async move { sender.group_send(&group("test-group"), &numbered(n)).await }).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 10).await, (0..10).collect::<Vec<_>>());
}

async fn pubsub_channel_names_stay_unique(site: Site) {
    let mut names = HashSet::new();
    for _ in 0..5 {
        let layer = site.layer().await;
        for _ in 0..40 {
            names.insert(layer.new_channel("").await.unwrap());
        }
    }
    assert_eq!(names.len(), 200);
}

async fn pubsub_five_messages_to_a_member_nobody_reads_raise_nothing(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 0..5 {
        layer.group_send(&group("test-group"), &numbered(n)).await.unwrap();
    }
}

/// Ten servers, because pub/sub is the same in all databases of one.
async fn ten_shards() -> ([RedisServer; 10], RedisPubSubLayer) {
    let servers = std::array::from_fn(|_| RedisServer::start());
    let layer = RedisPubSubLayer::builder_with_hosts(servers.each_ref().map(RedisServer::url)).connect().await.unwrap();
    (servers, layer)
}

#[tokio::test]
async fn pubsub_groups_work_over_ten_shards() {
    let (_servers, layer) = ten_shards().await;
    three_members(&layer).await;
}

#[tokio::test]
async fn pubsub_group_sends_over_ten_shards_reach_1_10_and_100_members_in_time() {
    let (_servers, layer) = ten_shards().await;
    for (count, seconds) in [(1, 10), (10, 10), (100, 10)] {
        let room = group(&format!("test-group-{count}"));
        let mut members = Vec::new();
        for _ in 0..count {
            let member = layer.new_channel("").await.unwrap();
            layer.group_add(&room, &member).await.unwrap();
            members.push(member);
        }
        let all = async {
            layer.group_send(&room, &numbered(count)).await.unwrap();
            for member in &members {
                assert_eq!(number(&layer.receive(member).await.unwrap()), count);
            }
        };
        timeout(Duration::from_secs(seconds), all).await.unwrap_or_else(|_| panic!("{count} members in time"));
    }
}
