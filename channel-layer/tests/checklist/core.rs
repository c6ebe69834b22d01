//! "channels_redis, core": each on one server and through Sentinels.

use std::{collections::HashSet, time::Duration};

use channel_layer::{ChannelLayer, ChannelName, ChannelPattern, LayerError, RedisCoreLayer};
use testkit::redis::RedisServer;
use tokio::time::timeout;

use crate::{
    common::{group, heard, message, until},
    elsewhere,
    log::Log,
    next, number, numbered, pass, several, silent,
    site::Site,
};

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
    core_a_message_to_a_plain_channel_arrives_with_all_its_keys
    core_own_channels_are_received_on_from_several_runtimes
    core_with_capacity_3_the_fourth_unread_send_fails
    core_with_a_channel_capacity_of_1_the_second_send_fails
    core_a_message_to_an_own_channel_arrives
    core_three_messages_on_a_plain_channel_arrive_in_order
    core_a_wrong_name_is_refused_by_send_and_receive
    core_receiving_for_another_client_id_is_refused
    core_of_three_members_the_discarded_one_hears_nothing
    core_five_messages_to_a_member_nobody_reads_raise_nothing
    core_groups_work_over_ten_shards
    core_three_members_of_one_process_each_hear_one_message_once
    core_group_sends_over_ten_shards_reach_1_10_and_100_members_in_time
    core_with_capacity_3_the_fourth_group_message_is_lost_and_logged
    core_a_member_that_holds_a_message_has_room_for_two_and_it_is_logged
    core_repeated_group_sends_from_synchronous_code_do_not_fail
    core_receives_cancelled_at_many_moments_neither_hang_nor_lose
    core_names_and_client_ids_stay_unique
    core_of_messages_2_seconds_apart_the_first_expires_after_3
    core_messages_1_second_apart_all_arrive_within_3
    core_group_messages_expire_by_the_same_rule
    core_an_old_message_expires_for_its_member_and_group_messages_reach_both
    core_a_group_has_the_key_that_python_uses
    core_a_local_queue_keeps_the_newest_100
    core_waiting_on_a_silent_channel_can_time_out
    core_discarding_before_any_add_does_nothing
}

/// A channel of a process that is not this one.
async fn foreign(site: &Site) -> ChannelName {
    site.layer().await.new_channel("").await.unwrap()
}

async fn core_a_message_to_a_plain_channel_arrives_with_all_its_keys(site: Site) {
    let layer = site.layer().await;
    let (channel, event) = (ChannelName::parse("test-channel-1").unwrap(), crate::common::as_event(&message(1)));
    layer.send(&channel, &event).await.unwrap();
    assert_eq!(heard(&layer, &channel).await, event);
}

async fn core_own_channels_are_received_on_from_several_runtimes(site: Site) {
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

async fn core_with_capacity_3_the_fourth_unread_send_fails(site: Site) {
    let layer = site.builder().capacity(3).connect().await.unwrap();
    let channel = ChannelName::parse("test-channel-1").unwrap();
    for n in 0..3 {
        layer.send(&channel, &numbered(n)).await.unwrap();
    }
    match layer.send(&channel, &numbered(3)).await {
        Err(LayerError::ChannelFull(full)) => assert_eq!(full, channel),
        other => panic!("{other:?}"),
    }
}

async fn core_with_a_channel_capacity_of_1_the_second_send_fails(site: Site) {
    let layer = site.builder().channel_capacity(ChannelPattern::glob("one"), 1).connect().await.unwrap();
    let (one, other) = (ChannelName::parse("one").unwrap(), ChannelName::parse("other").unwrap());
    layer.send(&one, &numbered(0)).await.unwrap();
    assert!(matches!(layer.send(&one, &numbered(1)).await, Err(LayerError::ChannelFull(_))));
    for n in 0..2 {
        layer.send(&other, &numbered(n)).await.unwrap();
    }
}

async fn core_a_message_to_an_own_channel_arrives(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    assert!(channel.as_str().contains('!'));
    layer.send(&channel, &numbered(7)).await.unwrap();
    assert_eq!(next(&layer, &channel).await, 7);
}

async fn core_three_messages_on_a_plain_channel_arrive_in_order(site: Site) {
    let layer = site.layer().await;
    let channel = ChannelName::parse("test-channel-1").unwrap();
    for n in 1..=3 {
        layer.send(&channel, &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3]);
}

async fn core_a_wrong_name_is_refused_by_send_and_receive(site: Site) {
    assert!(ChannelName::parse("=+135!").is_err());
    let layer = site.layer().await;
    // The other way to make a name lets it pass.
    let wrong = ChannelName::parse_any("=+135!").unwrap();
    assert!(matches!(layer.send(&wrong, &numbered(1)).await, Err(LayerError::Name(_))));
    assert!(matches!(layer.receive(&wrong).await, Err(LayerError::Name(_))));
}

async fn core_receiving_for_another_client_id_is_refused(site: Site) {
    let layer = site.layer().await;
    let channel = foreign(&site).await;
    assert!(matches!(layer.receive(&channel).await, Err(LayerError::NotLocal(name)) if name == channel));
}

async fn three_members(layer: &RedisCoreLayer) {
    let room = group("test-group");
    let mut members = Vec::new();
    for _ in 0..3 {
        let member = layer.new_channel("test-gr").await.unwrap();
        layer.group_add(&room, &member).await.unwrap();
        members.push(member);
    }
    layer.group_discard(&room, &members[1]).await.unwrap();
    layer.group_send(&room, &numbered(1)).await.unwrap();
    assert_eq!(next(layer, &members[0]).await, 1);
    assert_eq!(next(layer, &members[2]).await, 1);
    silent(layer, &members[1], Duration::from_secs(1)).await;
}

async fn core_of_three_members_the_discarded_one_hears_nothing(site: Site) {
    three_members(&site.layer().await).await;
}

async fn core_five_messages_to_a_member_nobody_reads_raise_nothing(site: Site) {
    let layer = site.builder().capacity(3).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 0..5 {
        layer.group_send(&group("test-group"), &numbered(n)).await.unwrap();
    }
}

async fn core_groups_work_over_ten_shards(site: Site) {
    three_members(&site.sharded(10).connect().await.unwrap()).await;
}

async fn core_three_members_of_one_process_each_hear_one_message_once(site: Site) {
    // One client id: all three share a queue and so a message.
    let layer = site.builder().client_ids(1).connect().await.unwrap();
    let mut members = Vec::new();
    for _ in 0..3 {
        let member = layer.new_channel("").await.unwrap();
        layer.group_add(&group("test-group"), &member).await.unwrap();
        members.push(member);
    }
    layer.group_send(&group("test-group"), &numbered(1)).await.unwrap();
    for member in &members {
        assert_eq!(next(&layer, member).await, 1);
    }
    assert_eq!(layer.stats().received, 1);
    for member in &members {
        silent(&layer, member, Duration::from_millis(300)).await;
    }
}

async fn core_group_sends_over_ten_shards_reach_1_10_and_100_members_in_time(site: Site) {
    for (count, seconds) in [(1, 10), (10, 10), (100, 10)] {
        let layer = site.sharded(10).connect().await.unwrap();
        let room = group(&format!("test-group-{count}"));
        let mut members = Vec::new();
        for n in 0..count {
            let member = layer.new_channel(&format!("channel{n}")).await.unwrap();
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

async fn core_with_capacity_3_the_fourth_group_message_is_lost_and_logged(site: Site) {
    let (log, _guard) = Log::collect();
    let layer = site.builder().capacity(3).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 1..=4 {
        layer.group_send(&group("test-group"), &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3]);
    silent(&layer, &channel, Duration::from_millis(500)).await;
    let line = "INFO 1 of 1 channels over capacity in group test-group";
    assert_eq!(log.lines().iter().filter(|it| *it == line).count(), 1, "{:?}", log.lines());
    assert_eq!(layer.stats().over_capacity, 1);
}

async fn core_a_member_that_holds_a_message_has_room_for_two_and_it_is_logged(site: Site) {
    let (log, _guard) = Log::collect();
    let layer = site.builder().capacity(3).connect().await.unwrap();
    // Channels of one client id share a queue; these have one each.
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    assert_ne!(one.non_local(), two.non_local());
    for channel in [&one, &two] {
        layer.group_add(&group("test-group"), channel).await.unwrap();
    }
    layer.send(&two, &numbered(0)).await.unwrap();
    for n in 1..=3 {
        layer.group_send(&group("test-group"), &numbered(n)).await.unwrap();
    }
    assert_eq!(several(&layer, &one, 3).await, [1, 2, 3]);
    assert_eq!(several(&layer, &two, 3).await, [0, 1, 2]);
    silent(&layer, &two, Duration::from_millis(500)).await;
    assert_eq!(log.count("1 of 2 channels over capacity in group test-group"), 1, "{:?}", log.lines());
}

async fn core_repeated_group_sends_from_synchronous_code_do_not_fail(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    for n in 0..10 {
        let sender = layer.clone();
        elsewhere(async move { sender.group_send(&group("test-group"), &numbered(n)).await }).await.unwrap();
    }
    assert_eq!(several(&layer, &channel, 10).await, (0..10).collect::<Vec<_>>());
}

async fn core_receives_cancelled_at_many_moments_neither_hang_nor_lose(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    let plain = ChannelName::parse("test-channel-1").unwrap();
    for name in [&channel, &plain] {
        let mut heard = Vec::new();
        for round in 0..100 {
            let time = Duration::from_micros(100 * round);
            let event = numbered(round as i64);
            let sending = layer.send(name, &event);
            // The receive is given up before, while or after the message arrives.
            let (received, sent) = tokio::join!(timeout(time, layer.receive(name)), sending);
            sent.unwrap();
            heard.extend(received.ok().map(|event| number(&event.unwrap())));
        }
        while heard.len() < 100 {
            heard.push(next(&layer, name).await);
        }
        // A plain channel promises no order.
        heard.sort_unstable();
        assert_eq!(heard, (0..100).collect::<Vec<_>>(), "{name}");
        silent(&layer, name, Duration::from_millis(300)).await;
    }
}

async fn core_names_and_client_ids_stay_unique(site: Site) {
    let (mut names, mut processes) = (HashSet::new(), HashSet::new());
    for _ in 0..5 {
        let layer = site.layer().await;
        for _ in 0..200 {
            let name = layer.new_channel("").await.unwrap();
            processes.insert(name.non_local().to_owned());
            names.insert(name);
        }
    }
    assert_eq!((names.len(), processes.len()), (1_000, 20));
}

const EXPIRY: u64 = 3;

async fn core_of_messages_2_seconds_apart_the_first_expires_after_3(site: Site) {
    let layer = site.builder().expiry(EXPIRY).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    for n in 1..=3 {
        layer.send(&channel, &numbered(n)).await.unwrap();
        if n < 3 {
            pass(Duration::from_secs(2)).await;
        }
    }
    assert_eq!(several(&layer, &channel, 2).await, [2, 3]);
    silent(&layer, &channel, Duration::from_secs(1)).await;
}

async fn core_messages_1_second_apart_all_arrive_within_3(site: Site) {
    let layer = site.builder().expiry(EXPIRY).connect().await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    for n in 1..=3 {
        layer.send(&channel, &numbered(n)).await.unwrap();
        pass(Duration::from_secs(1)).await;
    }
    assert_eq!(several(&layer, &channel, 3).await, [1, 2, 3], "the first is 3.0 seconds old");
}

async fn core_group_messages_expire_by_the_same_rule(site: Site) {
    let layer = site.builder().expiry(EXPIRY).connect().await.unwrap();
    let room = group("test-group");
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    for channel in [&one, &two] {
        layer.group_add(&room, channel).await.unwrap();
    }
    for n in 1..=3 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        if n < 3 {
            pass(Duration::from_secs(2)).await;
        }
    }
    for channel in [&one, &two] {
        assert_eq!(several(&layer, channel, 2).await, [2, 3]);
    }
    silent(&layer, &one, Duration::from_secs(1)).await;
    silent(&layer, &two, Duration::from_millis(100)).await;
}

async fn core_an_old_message_expires_for_its_member_and_group_messages_reach_both(site: Site) {
    let layer = site.builder().expiry(EXPIRY).connect().await.unwrap();
    let room = group("test-group");
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("channel_2").await.unwrap());
    for channel in [&one, &two] {
        layer.group_add(&room, channel).await.unwrap();
    }
    layer.send(&one, &numbered(0)).await.unwrap();
    pass(Duration::from_secs(2)).await;
    for n in 1..=3 {
        layer.group_send(&room, &numbered(n)).await.unwrap();
        if n < 3 {
            pass(Duration::from_secs(1)).await;
        }
    }
    // The last was sent 4 seconds after the first of all, which has lived a second longer than `expiry`.
    assert_eq!(several(&layer, &one, 3).await, [1, 2, 3]);
    silent(&layer, &one, Duration::from_secs(1)).await;
    assert_eq!(several(&layer, &two, 3).await, [1, 2, 3], "the first is 3.0 seconds old");
}

async fn core_a_group_has_the_key_that_python_uses(site: Site) {
    let (name, channel) = (group("core-key-test"), ChannelName::parse("somebody").unwrap());
    for (prefix, key) in [("asgi", "asgi:group:core-key-test"), ("test_prefix", "test_prefix:group:core-key-test")] {
        let layer = RedisCoreLayer::builder(&site.url()).prefix(prefix).connect().await.unwrap();
        layer.group_add(&name, &channel).await.unwrap();
        assert_eq!(site.cli(&["ZRANGE", key, "0", "-1"]), "somebody", "{key}");
        layer.group_discard(&name, &channel).await.unwrap();
        assert_eq!(site.cli(&["EXISTS", key]), "0", "{key}");
    }
    let layer = RedisCoreLayer::connect(&site.url()).await.unwrap();
    layer.group_add(&name, &channel).await.unwrap();
    assert_eq!(site.cli(&["ZRANGE", "asgi:group:core-key-test", "0", "-1"]), "somebody", "`asgi` is the default");
    layer.group_discard(&name, &channel).await.unwrap();
}

async fn core_a_local_queue_keeps_the_newest_100(site: Site) {
    let layer = site.builder().client_ids(1).connect().await.unwrap();
    let (busy, quiet) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    // Whoever receives on one channel takes the others' messages out of their common queue.
    for n in 0..150 {
        layer.send(&quiet, &numbered(n)).await.unwrap();
        layer.send(&busy, &numbered(n)).await.unwrap();
        assert_eq!(next(&layer, &busy).await, n);
    }
    assert_eq!(layer.stats().dropped, 50);
    assert_eq!(several(&layer, &quiet, 100).await, (50..150).collect::<Vec<_>>());
    silent(&layer, &quiet, Duration::from_millis(300)).await;
}

// What the list has for pub/sub, for this layer too.

async fn core_waiting_on_a_silent_channel_can_time_out(site: Site) {
    let layer = site.layer().await;
    for channel in [layer.new_channel("").await.unwrap(), ChannelName::parse("test-channel-1").unwrap()] {
        assert!(timeout(Duration::from_secs(1), layer.receive(&channel)).await.is_err());
        layer.send(&channel, &numbered(1)).await.unwrap();
        assert_eq!(next(&layer, &channel).await, 1);
    }
}

async fn core_discarding_before_any_add_does_nothing(site: Site) {
    let layer = site.layer().await;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_discard(&group("test-group"), &channel).await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    layer.group_send(&group("test-group"), &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &channel).await, 1);
}

#[tokio::test]
async fn core_a_dropped_layer_closes_its_connections() {
    let server = RedisServer::start();
    let ours = || server.cli(&["CLIENT", "LIST"]).matches("name=channel-layer").count();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("test-group"), &channel).await.unwrap();
    let plain = ChannelName::parse("test-channel-1").unwrap();
    layer.send(&plain, &numbered(1)).await.unwrap();
    assert_eq!(next(&layer, &plain).await, 1);
    assert_eq!(ours(), 1 + 4 + 1, "commands, four queues and a plain channel");
    drop(layer);
    until("the connections end", || ours() == 0).await;
}

#[tokio::test]
async fn core_connections_closed_twice_amid_joins_and_leaves_reach_exactly_the_members() {
    let server = RedisServer::start();
    let layer = RedisCoreLayer::connect(&server.url()).await.unwrap();
    let room = group("test-group");
    let mut channels = Vec::new();
    for n in 0..12 {
        let channel = layer.new_channel("").await.unwrap();
        layer.group_add(&room, &channel).await.unwrap();
        if n % 3 == 0 {
            layer.group_discard(&room, &channel).await.unwrap();
        }
        if n == 4 || n == 8 {
            server.client_kill("normal");
        }
        channels.push(channel);
    }
    pass(Duration::from_secs(1)).await;
    assert_eq!(server.cli(&["ZCARD", "asgi:group:test-group"]), "8");
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
