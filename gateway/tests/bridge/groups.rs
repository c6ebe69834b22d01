//! Groups of sockets whose consumers are the site's own: joined at the node, in the sender's order, rendered once where
//! a class shares its handlers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use channel_layer::{ChannelLayer, Event, GroupName, RedisCoreLayer, RedisPubSubLayer};
use futures_util::future::select_all;
use testkit::redis::RedisServer;
use tokio::time::{interval, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::common::eventually;
use super::worker::{
    ACCEPT, CLASS, CLOSED, EVENT, JOIN, JOINED, LAYER, LEAVE, Link, Manner, PUBLISHED, RENDER, RENDERED, SEND, SENT,
    TEXT, Value, Worker, accept, class, event,
};
use super::{Guest, Site};

const BOTH: [&str; 2] = ["pubsub", "core"];

/// A socket in a group.
async fn member(site: &Site, link: &mut Link, group: &str) -> (u64, Guest) {
    let guest = site.knock("/ws/orders/", &[]);
    let (sid, _) = link.open().await;
    link.join(sid, group).await;
    link.accept(sid).await;
    (sid, guest.await.unwrap().unwrap())
}

/// The body of SEND.
fn to_channel(request: u32, channel: &str, event: &[u8]) -> Vec<u8> {
    let name = [&(channel.len() as u16).to_le_bytes()[..], channel.as_bytes()].concat();
    [&request.to_le_bytes()[..], &name, event].concat()
}

fn text_of(event: &Value) -> &str {
    event.get("text").str()
}

#[tokio::test]
async fn groups_are_joined_at_the_node_and_end_with_the_socket() {
    for layer in BOTH {
        let redis = RedisServer::start();
        let (site, _worker, mut link) = Site::with_groups(&[("redis-url", &redis.url()), ("layer", layer)]).await;
        let (one, _first) = member(&site, &mut link, "room").await;
        let (two, second) = member(&site, &mut link, "room").await;
        let (other, _third) = member(&site, &mut link, "elsewhere").await;
        link.publish(one, "room", &event("said", "hello")).await;
        let (said, mut sids) = link.event().await;
        while sids.len() < 2 {
            // The dispatcher may have been at it when the first was written.
            sids.extend(link.event().await.1);
        }
        sids.sort_unstable();
        assert_eq!((text_of(&said), sids), ("hello", vec![one, two]), "{layer}");
        // As it was sent: nothing is added.
        assert!(matches!(&said, Value::Map(fields) if fields.len() == 2), "{said:?}");
        link.send(LEAVE, one, b"room").await;
        link.publish(two, "room", &event("chat_message", "again")).await;
        let (said, sids) = link.event().await;
        assert_eq!((text_of(&said), sids), ("again", vec![two]), "{layer}");
        assert!(matches!(&said, Value::Map(fields) if fields.len() == 2), "{said:?}");
        drop(second);
        while link.next().await.sid != two {}
        link.end(two, 0, "").await;
        eventually("it has left", || async {
            site.metric("gateway_bridge_sockets{path=\"/ws/orders/\"}").await == 2.0
        })
        .await;
        link.publish(one, "room", &event("said", "to nobody")).await;
        link.publish(one, "elsewhere", &event("said", "to one")).await;
        let (said, sids) = link.event().await;
        assert_eq!((text_of(&said), sids), ("to one", vec![other]), "{layer}");
    }
}

#[tokio::test]
async fn what_a_consumer_sends_to_its_client_and_then_to_a_group_comes_in_that_order() {
    let (site, _worker, mut link) = Site::with_groups(&[]).await;
    let (sid, mut guest) = member(&site, &mut link, "room").await;
    for number in 0..200 {
        link.send(TEXT, sid, format!("own {number}").as_bytes()).await;
        link.publish(sid, "room", &event("said", &number.to_string())).await;
    }
    let mut heard = 0;
    while heard < 200 {
        let (said, _) = link.event().await;
        assert_eq!(text_of(&said), heard.to_string());
        link.send(TEXT, sid, format!("group {heard}").as_bytes()).await;
        heard += 1;
    }
    let (mut own, mut group) = (0, 0);
    while group < 200 {
        match guest.text().await.split_once(' ').unwrap() {
            ("own", number) => {
                assert_eq!(number.parse(), Ok(own));
                own += 1;
            }
            (_, number) => {
                assert_eq!(number.parse(), Ok(group));
                group += 1;
                assert!(own >= group);
            }
        }
    }
}

#[tokio::test]
async fn what_is_sent_to_a_channel_reaches_that_socket_alone_from_any_process() {
    for layer in BOTH {
        let redis = RedisServer::start();
        let (site, _worker, mut link) = Site::with_groups(&[("redis-url", &redis.url()), ("layer", layer)]).await;
        let guest = site.knock("/ws/orders/", &[]);
        let (sid, open) = link.open().await;
        let channel = open.get("scope").get("channel_name").str().to_owned();
        link.accept(sid).await;
        let _guest = guest.await.unwrap().unwrap();
        let (_other, _second) = site.open(&mut link).await;
        let body = |event: &[u8]| to_channel(7, &channel, event);
        link.send(SEND, 0, &body(&event("said", "to you"))).await;
        let mut seen = (false, false);
        while seen != (true, true) {
            let frame = link.next().await;
            match frame.kind {
                SENT => {
                    assert_eq!(frame.body, [7, 0, 0, 0, 0]);
                    seen.0 = true;
                }
                EVENT => {
                    assert_eq!(frame.body[frame.body.len() - 8..], sid.to_le_bytes());
                    seen.1 = true;
                }
                other => panic!("{other}"),
            }
        }
        link.send(SEND, 0, &body(b"no event")).await;
        assert_eq!(link.expect(SENT).await.body, [7, 0, 0, 0, 3]);
    }
}

/// How Redis goes away.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Stopped,
    Killed,
}

#[tokio::test]
async fn while_redis_is_away_sockets_live_and_open_and_hear_their_groups_when_it_is_back() {
    tokio::join!(
        redis_goes_away("pubsub", Fault::Stopped),
        redis_goes_away("pubsub", Fault::Killed),
        redis_goes_away("core", Fault::Stopped),
        redis_goes_away("core", Fault::Killed),
    );
}

async fn redis_goes_away(layer: &str, fault: Fault) {
    let mut redis = RedisServer::start();
    let (site, _worker, mut link) = Site::with_groups(&[("redis-url", &redis.url()), ("layer", layer)]).await;
    let (one, first) = member(&site, &mut link, "before").await;
    match fault {
        Fault::Stopped => redis.pause(),
        Fault::Killed => redis.kill(),
    }
    let seconds = if std::env::var_os("GATEWAY_LONG").is_some() { 30 } else { 3 };
    let until = Instant::now() + Duration::from_secs(seconds);
    let guest = site.knock("/ws/orders/", &[]);
    let (two, open) = link.open().await;
    link.join(two, "during").await;
    // What is to be joined later is joined together: a name that the layer refuses would hold up all others.
    link.send(JOIN, two, b"no name").await;
    assert_eq!(link.expect(JOINED).await.body, b"\x01no name");
    link.accept(two).await;
    let mut members = [(one, "before", first), (two, "during", guest.await.unwrap().unwrap())];
    // What leaves before the loss is seen is lost on the way, and counted by the layer.
    let lost = "gateway_bridge_dropped_total{reason=\"layer\"}";
    let mut turns = interval(Duration::from_millis(20));
    while Instant::now() < until || site.metric(lost).await == 0.0 {
        turns.tick().await;
        for (sid, group, guest) in &mut members {
            guest.send(Message::text("still there?")).await;
            link.publish(*sid, group, &event("said", "lost")).await;
            let mut seen = HashSet::new();
            while seen.len() < 2 {
                let frame = link.next().await;
                assert!([TEXT, PUBLISHED].contains(&frame.kind), "{frame:?}");
                seen.insert(frame.kind);
            }
            link.credit(*sid, 1).await;
            link.send(TEXT, *sid, b"yes").await;
            assert_eq!(guest.text().await, "yes");
        }
    }
    // Who sends to one channel is told.
    link.send(SEND, 0, &to_channel(7, open.get("scope").get("channel_name").str(), &event("said", "lost"))).await;
    assert_eq!(link.expect(SENT).await.body, [7, 0, 0, 0, 2], "{layer} {fault:?}");
    match fault {
        Fault::Stopped => redis.resume(),
        Fault::Killed => redis.restart_empty(),
    }
    let all_hear = async {
        for (sid, group, _) in &members {
            while !hears(&mut link, *sid, group).await {}
        }
    };
    timeout(Duration::from_secs(60), all_hear).await.expect("groups go on");
}

/// Whether an event for the group comes soon. What Redis had not read when it was stopped may come first.
async fn hears(link: &mut Link, sid: u64, group: &str) -> bool {
    link.publish(sid, group, &event("said", "heard")).await;
    let heard = async {
        loop {
            let (said, sids) = link.event().await;
            if text_of(&said) == "heard" && sids == [sid] {
                break;
            }
        }
    };
    timeout(Duration::from_millis(500), heard).await.is_ok()
}

/// A socket of a class with a shared handler, in the group.
async fn shares(site: &Site, link: &mut Link) -> (u64, Guest) {
    shares_in(site, link, "room").await
}

async fn shares_in(site: &Site, link: &mut Link, group: &str) -> (u64, Guest) {
    let guest = site.knock("/ws/orders/", &[]);
    let (sid, _) = link.open().await;
    link.send(CLASS, sid, &class("app.Chat", &["said"])).await;
    link.join(sid, group).await;
    link.accept(sid).await;
    (sid, guest.await.unwrap().unwrap())
}

#[tokio::test]
async fn a_shared_handler_is_asked_once_and_its_frames_go_to_all() {
    let (site, _worker, mut link) = Site::with_groups(&[]).await;
    let (one, mut first) = shares(&site, &mut link).await;
    let (_two, mut second) = shares(&site, &mut link).await;
    let (own, _third) = member(&site, &mut link, "room").await;
    for number in 0..3 {
        link.publish(one, "room", &event("said", &number.to_string())).await;
    }
    // Who shares nothing has its own handler.
    let mut requests = Vec::new();
    let mut own_events = 0;
    while requests.len() < 3 || own_events < 3 {
        let frame = link.next().await;
        match frame.kind {
            PUBLISHED => {}
            EVENT => {
                assert_eq!(frame.body[frame.body.len() - 8..], own.to_le_bytes());
                own_events += 1;
            }
            _ => requests.push(u64::from_le_bytes(frame.body[..8].try_into().unwrap())),
        }
    }
    // Whatever comes first from the worker, the group's order is kept.
    link.rendered(requests[2], &["2"]).await;
    link.rendered(requests[0], &["0a", "0b"]).await;
    link.rendered(requests[1], &[]).await;
    for guest in [&mut first, &mut second] {
        for text in ["0a", "0b", "2"] {
            assert_eq!(guest.text().await, text);
        }
    }
    assert_eq!(site.metric("gateway_bridge_rendered_total{outcome=\"shared\"}").await, 3.0);
}

#[tokio::test]
async fn a_handler_that_is_not_shared_after_all_runs_for_each_socket() {
    let (site, _worker, mut link) = Site::with_groups(&[]).await;
    let (one, _first) = shares(&site, &mut link).await;
    link.publish(one, "room", &event("said", "a")).await;
    let (request, name, said) = link.rendering().await;
    assert_eq!((name.as_str(), text_of(&said)), ("app.Chat", "a"));
    // An event of another type waits behind it.
    link.publish(one, "room", &event("other", "b")).await;
    link.send(RENDERED, 0, &[&request.to_le_bytes()[..], &[1], b"it reads self.scope"].concat()).await;
    for (text, kind) in [("a", "said"), ("b", "other")] {
        let (said, sids) = link.event().await;
        assert_eq!((text_of(&said), said.get("type").str(), sids), (text, kind, vec![one]));
    }
    link.publish(one, "room", &event("said", "c")).await;
    assert_eq!(text_of(&link.event().await.0), "c");
    assert_eq!(site.metric("gateway_bridge_rendered_total{outcome=\"not_shared\"}").await, 1.0);
}

#[tokio::test]
async fn a_worker_with_other_code_may_share_what_the_one_before_it_could_not() {
    let (site, worker, mut link) = Site::with_groups(&[]).await;
    let (one, mut first) = shares(&site, &mut link).await;
    link.publish(one, "room", &event("said", "a")).await;
    let (request, _, _) = link.rendering().await;
    link.send(RENDERED, 0, &[&request.to_le_bytes()[..], &[1], b"it reads self.scope"].concat()).await;
    assert_eq!(link.event().await.1, [one]);
    drop((worker, link));
    assert_eq!(first.closed().await.0, 1012);
    let next = Worker::at(&site.socket(2)).with(Manner { groups: true, ..Manner::default() });
    let mut link = next.link().await;
    link.expect(LAYER).await;
    let (two, mut second) = shares(&site, &mut link).await;
    link.publish(two, "room", &event("said", "b")).await;
    let (request, _, said) = link.rendering().await;
    assert_eq!(text_of(&said), "b");
    link.rendered(request, &["b"]).await;
    assert_eq!(second.text().await, "b");
}

#[tokio::test]
async fn what_waits_to_be_rendered_by_a_worker_that_reads_nothing_is_bounded() {
    let (site, _worker, mut frozen) = Site::with_groups(&[]).await;
    let mut guests = Vec::new();
    for number in 0..40 {
        guests.push(shares_in(&site, &mut frozen, &format!("room-{number}")).await.1);
    }
    let second = Worker::at(&site.socket(2)).with(Manner { groups: true, ..Manner::default() });
    let mut publisher = second.link().await;
    publisher.expect(LAYER).await;
    let large = "x".repeat(1 << 20);
    for number in 0..40 {
        publisher.publish(0, &format!("room-{number}"), &event("said", &large)).await;
        publisher.expect(PUBLISHED).await;
    }
    // What has no room is to be heard by each socket itself, and for that there is no room either.
    let closed = guests.iter_mut().map(|guest| Box::pin(guest.closed()));
    assert_eq!(select_all(closed).await.0.0, 4008);
    let mut asked = 0;
    loop {
        match frozen.next().await.kind {
            RENDER => asked += 1,
            CLOSED => break,
            other => panic!("{other}"),
        }
    }
    // 16 MiB, and as much at most that was on its way already.
    assert!((16..36).contains(&asked), "{asked}");
}

#[tokio::test]
async fn an_event_that_is_too_large_for_a_link_is_dropped_and_counted_for_each_socket_shared_handler_or_not() {
    for layer in BOTH {
        let redis = RedisServer::start();
        let (site, _worker, mut link) = Site::with_groups(&[("redis-url", &redis.url()), ("layer", layer)]).await;
        let (_one, mut first) = shares(&site, &mut link).await;
        let (_two, mut second) = shares(&site, &mut link).await;
        let (own, _third) = member(&site, &mut link, "room").await;
        // Another program of the site: no worker could send it.
        let program: Box<dyn ChannelLayer> = match layer {
            "core" => Box::new(RedisCoreLayer::connect(&redis.url()).await.unwrap()),
            _ => Box::new(RedisPubSubLayer::connect(&redis.url()).await.unwrap()),
        };
        let room = GroupName::parse("room").unwrap();
        let said = |text: &str| Event::new("said").with("text", text);
        program.group_send(&room, &said(&"x".repeat(17 << 20))).await.unwrap();
        eventually("it is dropped for each socket", || async {
            site.metric("gateway_bridge_dropped_total{reason=\"large_event\"}").await == 3.0
        })
        .await;
        // The link lives, and what comes next is heard, by either kind of handler.
        program.group_send(&room, &said("small")).await.unwrap();
        let (mut request, mut heard) = (None, false);
        while request.is_none() || !heard {
            let frame = link.next().await;
            assert!(frame.body.len() < 100, "{layer}: {} bytes in a frame of kind {}", frame.body.len(), frame.kind);
            match frame.kind {
                RENDER => request = Some(u64::from_le_bytes(frame.body[..8].try_into().unwrap())),
                EVENT => heard = frame.body.ends_with(&own.to_le_bytes()),
                other => panic!("{layer}: a frame of kind {other}"),
            }
        }
        link.rendered(request.unwrap(), &["small"]).await;
        for guest in [&mut first, &mut second] {
            assert_eq!(guest.text().await, "small", "{layer}");
        }
    }
}

#[tokio::test]
async fn when_the_worker_that_renders_dies_another_is_asked() {
    let (site, worker, mut link) = Site::with_groups(&[]).await;
    let second = Worker::at(&site.socket(2)).with(Manner { groups: true, ..Manner::default() });
    let mut other = second.link().await;
    other.expect(LAYER).await;
    // One socket at each; which worker gets one is a matter of chance.
    let mut guests = Vec::new();
    let (mut at_one, mut at_other) = (0, 0);
    while at_one == 0 || at_other == 0 {
        let guest = site.knock("/ws/orders/", &[]);
        let (link, count) = tokio::select! {
            open = link.next() => { other_open(&mut link, &open).await; (&mut link, &mut at_one) }
            open = other.next() => { other_open(&mut other, &open).await; (&mut other, &mut at_other) }
        };
        *count += 1;
        let _ = link;
        guests.push(guest.await.unwrap().unwrap());
    }
    other.publish(0, "room", &event("said", "once")).await;
    let (died, mut lives) = tokio::select! {
        (_, _, _) = link.rendering() => (link, other),
        (_, _, _) = other.rendering() => (other, link),
    };
    drop((worker, died));
    let (request, _, _) = lives.rendering().await;
    lives.rendered(request, &["once"]).await;
    let mut heard = 0;
    for guest in &mut guests {
        heard += usize::from(matches!(guest.next().await, Message::Text(text) if text == "once"));
    }
    assert!(heard > 0);
}

async fn other_open(link: &mut Link, open: &super::worker::Frame) {
    link.send(CLASS, open.sid, &class("app.Chat", &["said"])).await;
    link.send(JOIN, open.sid, b"room").await;
    link.send(ACCEPT, open.sid, &accept(None, &[])).await;
    assert_eq!(link.next().await.kind, super::worker::JOINED);
}

#[tokio::test]
async fn a_worker_that_takes_no_events_loses_the_sockets_that_hear_more_than_may_wait() {
    let (site, _worker, mut frozen) = Site::with_groups(&[]).await;
    let (_sid, mut guest) = member(&site, &mut frozen, "room").await;
    let (other, mut quiet) = member(&site, &mut frozen, "another").await;
    let second = Worker::at(&site.socket(2)).with(Manner { groups: true, ..Manner::default() });
    let mut publisher = second.link().await;
    publisher.expect(LAYER).await;
    let large = "x".repeat(1 << 20);
    // What the kernel takes, and what may wait in the node.
    for _ in 0..40 {
        publisher.publish(0, "room", &event("said", &large)).await;
        publisher.expect(PUBLISHED).await;
    }
    assert_eq!(guest.closed().await.0, 4008);
    assert!(site.metric("gateway_bridge_dropped_total{reason=\"events_full\"}").await >= 1.0);
    // Who has heard none of it stays.
    let mut heard = Vec::new();
    while heard.len() < 5 {
        let frame = frozen.next().await;
        heard.extend((frame.kind == EVENT).then_some(frame.sid));
    }
    frozen.send(TEXT, other, b"still here").await;
    assert_eq!(quiet.text().await, "still here");
}

#[tokio::test]
async fn a_client_that_does_not_read_what_is_shared_is_closed_with_4008() {
    let (site, _worker, mut link) = Site::with_groups(&[("bridge.outbox_bytes", "200000")]).await;
    let (sid, mut guest) = shares(&site, &mut link).await;
    let large = "x".repeat(100_000);
    let mut closed = false;
    for _ in 0..400 {
        link.publish(sid, "room", &event("said", "large")).await;
        let frame = loop {
            let frame = link.next().await;
            if frame.kind != PUBLISHED {
                break frame;
            }
        };
        if frame.kind == super::worker::CLOSED {
            assert_eq!(frame.code().0, 4008);
            closed = true;
            break;
        }
        let request = u64::from_le_bytes(frame.body[..8].try_into().unwrap());
        link.rendered(request, &[&large]).await;
    }
    assert!(closed, "nothing waits for `slow_seconds`: nobody can wait with it");
    guest.hears_end().await;
    assert_eq!(site.metric("gateway_outbox_full_total").await, 1.0);
}
