//! What is particular to the layer in memory: ages, bounds, and leaving no trace.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use channel_layer::{
    ChannelLayer, ChannelName, ChannelPattern, Delivery, Event, EventError, GroupName, LayerError, MemoryLayer, Relay,
    RelaySink,
};
use parking_lot::Mutex;
use tokio::time::{advance, timeout};

fn event(n: i64) -> Event {
    Event::new("test.event").with("n", n)
}

fn room() -> GroupName {
    GroupName::parse("room").unwrap()
}

async fn n(layer: &MemoryLayer, channel: &ChannelName) -> Option<i64> {
    let event = timeout(Duration::from_millis(1), layer.receive(channel)).await.ok()?;
    event.unwrap().get("n").unwrap().as_i64()
}

#[tokio::test(start_paused = true)]
async fn unread_events_expire_one_by_one() {
    let (layer, channel) = (MemoryLayer::new(), ChannelName::parse("jobs").unwrap());
    for at in 0..3 {
        layer.send(&channel, &event(at)).await.unwrap();
        advance(Duration::from_secs(25)).await;
    }
    // 75, 50 and 25 seconds old.
    assert_eq!(n(&layer, &channel).await, Some(1));
    assert_eq!(n(&layer, &channel).await, Some(2));
    assert_eq!(n(&layer, &channel).await, None);
}

#[tokio::test(start_paused = true)]
async fn expired_events_make_room_again() {
    let (layer, channel) = (MemoryLayer::with_capacity(1), ChannelName::parse("jobs").unwrap());
    layer.send(&channel, &event(1)).await.unwrap();
    assert!(matches!(layer.send(&channel, &event(2)).await, Err(LayerError::ChannelFull(_))));
    advance(Duration::from_secs(61)).await;
    layer.send(&channel, &event(3)).await.unwrap();
    assert_eq!(n(&layer, &channel).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_member_nobody_reads_leaves_its_groups_with_its_events() {
    let layer = MemoryLayer::new();
    let (dead, alive) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&room(), &dead).await.unwrap();
    layer.group_add(&room(), &alive).await.unwrap();
    layer.group_send(&room(), &event(1)).await.unwrap();
    assert_eq!(n(&layer, &alive).await, Some(1));
    advance(Duration::from_secs(61)).await;
    layer.group_send(&room(), &event(2)).await.unwrap();
    assert_eq!(n(&layer, &alive).await, Some(2));
    assert_eq!(n(&layer, &dead).await, None);
    assert_eq!(layer.footprint(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn memberships_end_a_day_after_the_last_add() {
    let (layer, day) = (MemoryLayer::new(), Duration::from_secs(86_400));
    let (once, again) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&room(), &once).await.unwrap();
    layer.group_add(&room(), &again).await.unwrap();
    advance(day / 2).await;
    layer.group_add(&room(), &again).await.unwrap();
    advance(day / 2 + Duration::from_secs(1)).await;
    layer.group_send(&room(), &event(1)).await.unwrap();
    assert_eq!(n(&layer, &again).await, Some(1));
    assert_eq!(n(&layer, &once).await, None);
}

#[tokio::test]
async fn a_full_member_misses_the_newest_and_is_counted() {
    let layer = MemoryLayer::with_capacity(3);
    let (full, other) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&room(), &full).await.unwrap();
    layer.group_add(&room(), &other).await.unwrap();
    layer.send(&full, &event(0)).await.unwrap();
    for at in 1..=3 {
        layer.group_send(&room(), &event(at)).await.unwrap();
    }
    for at in 0..3 {
        assert_eq!(n(&layer, &full).await, Some(at));
        assert_eq!(n(&layer, &other).await, Some(at + 1));
    }
    assert_eq!(n(&layer, &full).await, None);
    assert_eq!(layer.stats().dropped, 1);
}

#[tokio::test]
async fn nothing_stays_when_everything_is_read_and_left() {
    let layer = MemoryLayer::new();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&room(), &channel).await.unwrap();
    layer.group_send(&room(), &event(1)).await.unwrap();
    assert_eq!(layer.footprint(), (1, 1));
    assert_eq!(n(&layer, &channel).await, Some(1));
    // A given-up wait leaves nothing either.
    assert_eq!(n(&layer, &channel).await, None);
    layer.group_discard(&room(), &channel).await.unwrap();
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test]
async fn what_redis_would_refuse_is_refused_here_too() {
    let layer = MemoryLayer::new();
    let channel = layer.new_channel("").await.unwrap();
    let deep = (0..200).fold(channel_layer::Value::Null, |inner, _| vec![inner].into());
    let deep = Event::new("t").with("v", deep);
    assert!(matches!(layer.group_send(&room(), &deep).await, Err(LayerError::Encode(_))));
    assert!(matches!(layer.send(&channel, &deep).await, Err(LayerError::Encode(EventError::TooDeep))));
    assert!(matches!(layer.new_channel("no spaces").await, Err(LayerError::Name(_))));
    let reserved = event(1).with("__asgi_channel__", "elsewhere");
    assert!(matches!(layer.send(&channel, &reserved).await, Err(LayerError::Encode(EventError::ReservedKey))));
}

#[tokio::test]
async fn the_reserved_key_of_a_group_event_is_never_seen() {
    let layer = MemoryLayer::new();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&room(), &channel).await.unwrap();
    layer.group_send(&room(), &event(1).with("__asgi_channel__", "elsewhere")).await.unwrap();
    assert_eq!(layer.receive(&channel).await.unwrap(), event(1));
}

#[tokio::test]
async fn the_first_pattern_that_matches_sets_a_channels_capacity() {
    let layer = MemoryLayer::builder()
        .capacity(3)
        .channel_capacity("one", 1)
        .channel_capacity(ChannelPattern::regex("spec.*[.]inmemory!").unwrap(), 2)
        .channel_capacity("*e", 5)
        .build();
    let own = layer.new_channel("").await.unwrap();
    let named = |name: &str| ChannelName::parse(name).unwrap();
    for (channel, capacity) in [(own, 2), (named("one"), 1), (named("sale"), 5), (named("two"), 3)] {
        for _ in 0..capacity {
            layer.send(&channel, &event(1)).await.unwrap();
        }
        assert!(matches!(layer.send(&channel, &event(1)).await, Err(LayerError::ChannelFull(_))), "{channel}");
    }
}

/// Expiry 3 s: events 2 s apart lose the first by the third; events 1 s apart lose none.
#[tokio::test(start_paused = true)]
async fn expiry_is_a_setting_and_counts_from_each_send() {
    for (apart, first) in [(2, 1), (1, 0)] {
        let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
        let channel = ChannelName::parse("jobs").unwrap();
        for at in 0..3 {
            layer.send(&channel, &event(at)).await.unwrap();
            if at < 2 {
                advance(Duration::from_secs(apart)).await;
            }
        }
        for at in first..3 {
            assert_eq!(n(&layer, &channel).await, Some(at));
        }
        assert_eq!(n(&layer, &channel).await, None);
        assert_eq!(layer.footprint(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_expires_for_one_member_reaches_the_others() {
    let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
    let (late, other) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    for channel in [&late, &other] {
        layer.group_add(&room(), channel).await.unwrap();
    }
    layer.send(&late, &event(0)).await.unwrap();
    advance(Duration::from_secs(2)).await;
    layer.group_send(&room(), &event(1)).await.unwrap();
    advance(Duration::from_secs(1)).await;
    for channel in [&late, &other] {
        assert_eq!(n(&layer, channel).await, Some(1));
        assert_eq!(n(&layer, channel).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn events_on_channels_nobody_reads_expire_several_at_once_and_leave_no_trace() {
    let layer = MemoryLayer::builder().expiry(Duration::from_secs(3)).build();
    for name in ["a", "b", "c"] {
        let channel = ChannelName::parse(name).unwrap();
        layer.group_add(&room(), &channel).await.unwrap();
        for at in 0..5 {
            layer.send(&channel, &event(at)).await.unwrap();
        }
    }
    assert_eq!(layer.footprint(), (3, 1));
    advance(Duration::from_secs(3)).await;
    assert_eq!(layer.footprint(), (0, 0));
}

/// Its events expire between two looks at unread channels, and must not be replaced unnoticed by new ones.
#[tokio::test(start_paused = true)]
async fn a_member_nobody_reads_leaves_a_busy_group() {
    let layer = MemoryLayer::builder().capacity(5).expiry(Duration::from_millis(2500)).build();
    let (dead, alive) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&room(), &dead).await.unwrap();
    layer.group_add(&room(), &alive).await.unwrap();
    for at in 0..30 {
        layer.group_send(&room(), &event(at)).await.unwrap();
        assert_eq!(n(&layer, &alive).await, Some(at));
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(n(&layer, &dead).await, None);
}

#[tokio::test(start_paused = true)]
async fn group_expiry_is_a_setting_and_an_ended_membership_leaves_no_trace() {
    let layer = MemoryLayer::builder().group_expiry(Duration::from_secs(10)).build();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&room(), &channel).await.unwrap();
    advance(Duration::from_secs(9)).await;
    layer.group_send(&room(), &event(1)).await.unwrap();
    assert_eq!(n(&layer, &channel).await, Some(1));
    layer.group_add(&room(), &channel).await.unwrap();
    advance(Duration::from_secs(9)).await;
    layer.group_send(&room(), &event(2)).await.unwrap();
    assert_eq!(n(&layer, &channel).await, Some(2));
    advance(Duration::from_secs(1)).await;
    layer.group_send(&room(), &event(3)).await.unwrap();
    assert_eq!(n(&layer, &channel).await, None);
    assert_eq!(layer.footprint(), (0, 0));
    // Also in a group that is sent nothing, once anything at all is sent.
    layer.group_add(&room(), &channel).await.unwrap();
    advance(Duration::from_secs(10)).await;
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test]
async fn a_channel_emptied_while_others_wait_still_delivers() {
    let (layer, channel) = (MemoryLayer::new(), ChannelName::parse("jobs").unwrap());
    let first = layer.receive(&channel);
    let second = layer.receive(&channel);
    let sends = async {
        layer.send(&channel, &event(1)).await.unwrap();
        tokio::task::yield_now().await;
        layer.send(&channel, &event(2)).await.unwrap();
    };
    let (first, second, ()) = tokio::join!(first, second, sends);
    let mut both = [first.unwrap(), second.unwrap()].map(|event| event.get("n").unwrap().as_i64());
    both.sort_unstable();
    assert_eq!(both, [Some(1), Some(2)]);
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test]
async fn a_channel_removed_while_somebody_waits_ends_the_wait_and_can_be_used_again() {
    let (layer, channel) = (MemoryLayer::new(), ChannelName::parse("jobs").unwrap());
    let waiting = layer.receive(&channel);
    let removal = async {
        layer.remove_channel(&channel).await.unwrap();
        layer.send(&channel, &event(2)).await.unwrap();
    };
    let (ended, ()) = tokio::join!(waiting, removal);
    assert!(matches!(ended, Err(LayerError::Closed)));
    assert_eq!(n(&layer, &channel).await, Some(2));
    assert_eq!(layer.footprint(), (0, 0));
}

#[tokio::test]
async fn nothing_ever_expires_if_the_limits_say_so() {
    let layer = MemoryLayer::builder().expiry(Duration::MAX).group_expiry(Duration::MAX).build();
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&room(), &channel).await.unwrap();
    layer.group_send(&room(), &event(1)).await.unwrap();
    assert_eq!(n(&layer, &channel).await, Some(1));
}

/// A sink that sends from inside `deliver`, once for each of the first ten events it hears.
struct Echo(MemoryLayer, Mutex<Vec<i64>>);

impl RelaySink for Echo {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        for delivery in batch.drain(..) {
            let Delivery::Group { event: heard, .. } = delivery else { continue };
            let at = heard.get("n").unwrap().as_i64().unwrap();
            self.1.lock().push(at);
            if at < 10 {
                self.0.group_send_later(&room(), &event(at + 1)).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_sink_may_send_and_order_is_kept() {
    let layer = MemoryLayer::new();
    let echo = Arc::new(Echo(layer.clone(), Mutex::default()));
    let relay: Relay = layer.relay(echo.clone()).await.unwrap();
    relay.join(&[room()]).await.unwrap();
    layer.group_send(&room(), &event(0)).await.unwrap();
    assert_eq!(*echo.1.lock(), (0..=10).collect::<Vec<_>>());
    drop(relay);
    layer.group_send(&room(), &event(0)).await.unwrap();
    assert_eq!(echo.1.lock().len(), 11, "a relay ends with its handle");
    assert_eq!(layer.footprint(), (0, 0));
}
