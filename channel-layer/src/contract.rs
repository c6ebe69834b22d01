//! The suite that every layer passes: each function is one promise of [`ChannelLayer`].
//!
//! [`contract_suite!`](crate::contract_suite) makes a test of each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test suite fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{ChannelLayer, ChannelName, Delivery, Event, GroupName, RelaySink};

/// How long something that must come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing must come. Every layer here delivers within milliseconds.
const SILENCE: Duration = Duration::from_millis(300);

type Layer = Arc<dyn ChannelLayer>;

fn event(n: i64) -> Event {
    Event::new("test.event").with("n", n)
}

fn group(name: &str) -> GroupName {
    GroupName::parse(name).unwrap()
}

async fn receive(layer: &Layer, channel: &ChannelName) -> Event {
    timeout(PATIENCE, layer.receive(channel)).await.expect("an event in time").unwrap()
}

async fn nothing_comes(layer: &Layer, channel: &ChannelName) {
    if let Ok(event) = timeout(SILENCE, layer.receive(channel)).await {
        panic!("nothing was to come on {channel}, not {event:?}");
    }
}

/// What a relay delivers, as a queue.
struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        for delivery in batch.drain(..) {
            // A full queue fails the test that counts.
            let _ = self.0.try_send(delivery);
        }
    }
}

async fn next_event(deliveries: &mut mpsc::Receiver<Delivery>) -> (String, Arc<Event>) {
    loop {
        match timeout(PATIENCE, deliveries.recv()).await.expect("a delivery in time").expect("the relay lives") {
            Delivery::Group { group, event } => return (group.to_string(), event),
            Delivery::Channel { channel, event } => return (channel.to_string(), event),
            Delivery::Disconnected | Delivery::Reconnected(_) => {}
        }
    }
}

/// What is sent to an own channel arrives, with all its keys and in order.
pub async fn own_channel_receives_in_order(layer: Layer) {
    let channel = layer.new_channel("").await.unwrap();
    let first =
        Event::new("test.event").with("text", "héllo").with("n", -1).with("none", crate::Value::Null).with("yes", true);
    layer.send(&channel, &first).await.unwrap();
    for n in 0..20 {
        layer.send(&channel, &event(n)).await.unwrap();
    }
    assert_eq!(receive(&layer, &channel).await, first);
    for n in 0..20 {
        assert_eq!(receive(&layer, &channel).await, event(n));
    }
}

/// Channel names are unique and valid, with the default prefix and one's own.
pub async fn channel_names_are_unique(layer: Layer) {
    let mut names = std::collections::HashSet::new();
    for prefix in ["", "custom"] {
        for _ in 0..20 {
            let name = layer.new_channel(prefix).await.unwrap();
            assert!(
                ChannelName::parse(name.as_str()).is_ok()
                    && name.as_str().contains(if prefix.is_empty() { "specific" } else { prefix })
            );
            assert!(names.insert(name));
        }
    }
}

/// Every member of a group gets what is sent to it; others do not.
pub async fn groups_reach_their_members(layer: Layer) {
    let name = group("room.1");
    let (one, two, other) = (
        layer.new_channel("").await.unwrap(),
        layer.new_channel("").await.unwrap(),
        layer.new_channel("").await.unwrap(),
    );
    layer.group_add(&name, &one).await.unwrap();
    layer.group_add(&name, &two).await.unwrap();
    layer.group_add(&name, &two).await.unwrap();
    layer.group_add(&group("room.2"), &other).await.unwrap();
    layer.group_send(&name, &event(1)).await.unwrap();
    assert_eq!(receive(&layer, &one).await, event(1));
    assert_eq!(receive(&layer, &two).await, event(1));
    nothing_comes(&layer, &two).await;
    nothing_comes(&layer, &other).await;
}

/// Who has left hears nothing any more; discarding without a membership is fine.
pub async fn discarded_members_hear_nothing(layer: Layer) {
    let name = group("room");
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_discard(&name, &one).await.unwrap();
    layer.group_add(&name, &one).await.unwrap();
    layer.group_add(&name, &two).await.unwrap();
    layer.group_discard(&name, &one).await.unwrap();
    layer.group_send(&name, &event(1)).await.unwrap();
    assert_eq!(receive(&layer, &two).await, event(1));
    nothing_comes(&layer, &one).await;
}

/// A group whose name begins like another's is another group.
pub async fn groups_with_the_same_prefix_are_apart(layer: Layer) {
    let (one, two) = (layer.new_channel("").await.unwrap(), layer.new_channel("").await.unwrap());
    layer.group_add(&group("room"), &one).await.unwrap();
    layer.group_add(&group("room.long"), &two).await.unwrap();
    layer.group_send(&group("room"), &event(1)).await.unwrap();
    assert_eq!(receive(&layer, &one).await, event(1));
    nothing_comes(&layer, &two).await;
}

/// Sending to nobody is fine.
pub async fn sending_to_nobody_is_fine(layer: Layer) {
    layer.group_send(&group("empty"), &event(1)).await.unwrap();
    let gone = layer.new_channel("").await.unwrap();
    layer.remove_channel(&gone).await.unwrap();
    let _ = layer.send(&gone, &event(1)).await;
}

/// A member that nobody reads does not make a group's senders fail.
pub async fn full_members_miss_and_nobody_fails(layer: Layer) {
    let name = group("room");
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&name, &channel).await.unwrap();
    for n in 0..500 {
        layer.group_send(&name, &event(n)).await.unwrap();
    }
    assert!(receive(&layer, &channel).await.get("n").is_some());
}

/// Receives that are given up lose nothing and disturb nobody, also while events are arriving.
pub async fn cancelled_receives_lose_nothing(layer: Layer) {
    let channel = layer.new_channel("").await.unwrap();
    let sending = async {
        for n in 0..60 {
            layer.send(&channel, &event(n)).await.unwrap();
        }
    };
    let receiving = async {
        let (mut heard, mut patience) = (Vec::new(), 0);
        while heard.len() < 60 {
            // Given up after nothing, a moment, or a little more, over and over.
            patience = (patience + 37) % 400;
            if let Ok(event) = timeout(Duration::from_micros(patience), layer.receive(&channel)).await {
                heard.push(event.unwrap().get("n").and_then(crate::Value::as_i64).unwrap());
            }
        }
        heard
    };
    let ((), heard) = timeout(PATIENCE, async { tokio::join!(sending, receiving) }).await.expect("all of them");
    assert_eq!(heard, (0..60).collect::<Vec<_>>());
    nothing_comes(&layer, &channel).await;
    for n in 0..50 {
        for wait in 0..5 {
            let _ = timeout(Duration::from_micros(wait * 100), std::future::pending::<()>()).await;
            if let Ok(event) = timeout(Duration::ZERO, layer.receive(&channel)).await {
                panic!("nothing was sent, not {event:?}");
            }
        }
        layer.send(&channel, &event(n)).await.unwrap();
        assert_eq!(receive(&layer, &channel).await, event(n));
    }
}

/// A removed channel ends its readers and leaves its groups.
pub async fn removed_channels_end(layer: Layer) {
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("room"), &channel).await.unwrap();
    let reader = {
        let (layer, channel) = (Arc::clone(&layer), channel.clone());
        async move { layer.receive(&channel).await }
    };
    let (read, removed) = tokio::join!(timeout(PATIENCE, reader), layer.remove_channel(&channel));
    removed.unwrap();
    assert!(read.expect("the reader ends").is_err());
}

/// Flushing forgets groups and leaves the layer usable.
pub async fn flush_forgets(layer: Layer) {
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("room"), &channel).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(10);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    relay.join(&[group("room")]).await.unwrap();
    layer.flush().await.unwrap();
    layer.group_send(&group("room"), &event(1)).await.unwrap();
    nothing_comes(&layer, &channel).await;
    assert!(deliveries.try_recv().is_err());
    layer.group_add(&group("room"), &channel).await.unwrap();
    layer.group_send(&group("room"), &event(3)).await.unwrap();
    assert_eq!(receive(&layer, &channel).await, event(3));
    let fresh = layer.new_channel("").await.unwrap();
    layer.send(&fresh, &event(2)).await.unwrap();
    assert_eq!(receive(&layer, &fresh).await, event(2));
}

/// Waiting and not waiting: events leave in the order of the calls.
pub async fn both_forms_of_group_send_keep_order(layer: Layer) {
    let (name, channel) = (group("room"), layer.new_channel("").await.unwrap());
    layer.group_add(&name, &channel).await.unwrap();
    for n in 0..40 {
        if n % 10 == 9 {
            layer.group_send(&name, &event(n)).await.unwrap();
        } else {
            layer.group_send_later(&name, &event(n)).unwrap();
        }
    }
    for n in 0..40 {
        assert_eq!(receive(&layer, &channel).await, event(n));
    }
}

/// A relay hears the groups it has joined, once each and in order, and its own channels.
pub async fn a_relay_hears_its_groups_and_channels(layer: Layer) {
    let (sender, mut deliveries) = mpsc::channel(1000);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let (one, two) = (group("room.1"), group("room.2"));
    relay.join(&[one.clone(), two.clone()]).await.unwrap();
    relay.join(std::slice::from_ref(&one)).await.unwrap();
    for n in 0..20 {
        layer.group_send(&one, &event(n)).await.unwrap();
    }
    for n in 0..20 {
        assert_eq!(next_event(&mut deliveries).await, ("room.1".to_owned(), Arc::new(event(n))));
    }
    let channel = relay.new_channel();
    layer.send(&channel, &event(100)).await.unwrap();
    assert_eq!(next_event(&mut deliveries).await, (channel.to_string(), Arc::new(event(100))));
    relay.leave(&[one.clone(), group("never-joined")]).await.unwrap();
    layer.group_send(&one, &event(200)).await.unwrap();
    layer.group_send(&two, &event(300)).await.unwrap();
    assert_eq!(next_event(&mut deliveries).await, ("room.2".to_owned(), Arc::new(event(300))));
}

/// A group may have a relay and single channels in one process; each hears once.
pub async fn relays_and_channels_share_groups(layer: Layer) {
    let (sender, mut deliveries) = mpsc::channel(100);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let (name, channel) = (group("room"), layer.new_channel("").await.unwrap());
    layer.group_add(&name, &channel).await.unwrap();
    relay.join(std::slice::from_ref(&name)).await.unwrap();
    layer.group_send(&name, &event(1)).await.unwrap();
    assert_eq!(receive(&layer, &channel).await, event(1));
    assert_eq!(next_event(&mut deliveries).await.1, Arc::new(event(1)));
    relay.leave(std::slice::from_ref(&name)).await.unwrap();
    layer.group_send(&name, &event(2)).await.unwrap();
    assert_eq!(receive(&layer, &channel).await, event(2));
    layer.group_discard(&name, &channel).await.unwrap();
    assert!(deliveries.try_recv().is_err());
}

/// Joining and leaving over and over ends where the last call says.
pub async fn joins_and_leaves_do_not_race(layer: Layer) {
    let (sender, mut deliveries) = mpsc::channel(1000);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let name = group("room");
    for n in 0..30 {
        relay.join(std::slice::from_ref(&name)).await.unwrap();
        layer.group_send(&name, &event(n)).await.unwrap();
        assert_eq!(next_event(&mut deliveries).await.1, Arc::new(event(n)));
        relay.leave(std::slice::from_ref(&name)).await.unwrap();
    }
}

/// A large event passes.
pub async fn a_megabyte_passes(layer: Layer) {
    let channel = layer.new_channel("").await.unwrap();
    let large = Event::new("test.large").with("text", "x".repeat(1 << 20).as_str());
    layer.send(&channel, &large).await.unwrap();
    assert_eq!(receive(&layer, &channel).await, large);
}

/// The layer answers.
pub async fn ping_answers(layer: Layer) {
    layer.ping().await.unwrap();
    layer.group_send(&group("room"), &event(1)).await.unwrap();
    assert!(layer.stats().published >= 1);
}

/// Several readers of one channel share its events: each goes to exactly one.
pub async fn readers_share_a_channel(layer: Layer) {
    const EVENTS: usize = 50;
    let channel = layer.new_channel("").await.unwrap();
    let (taken, deadline) = (AtomicUsize::new(0), Instant::now() + PATIENCE);
    let read = async || {
        let mut heard = Vec::new();
        while taken.load(Ordering::Relaxed) < EVENTS && Instant::now() < deadline {
            if let Ok(event) = timeout(SILENCE, layer.receive(&channel)).await {
                heard.push(event.unwrap().get("n").and_then(crate::Value::as_i64).unwrap());
                taken.fetch_add(1, Ordering::Relaxed);
            }
        }
        heard
    };
    let send = async {
        for n in 0..EVENTS as i64 {
            layer.send(&channel, &event(n)).await.unwrap();
        }
    };
    let (one, two, three, ()) = tokio::join!(read(), read(), read(), send);
    let mut all = [one, two, three].concat();
    all.sort_unstable();
    assert_eq!(all, (0..EVENTS as i64).collect::<Vec<_>>());
    nothing_comes(&layer, &channel).await;
}

/// A relay whose handle is dropped hears nothing more, and its groups are as if it had left.
pub async fn a_dropped_relay_hears_nothing(layer: Layer) {
    let (sender, mut deliveries) = mpsc::channel(10);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    relay.join(&[group("room")]).await.unwrap();
    let other = relay.clone();
    drop(relay);
    layer.group_send(&group("room"), &event(1)).await.unwrap();
    assert_eq!(next_event(&mut deliveries).await.1, Arc::new(event(1)));
    drop(other);
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&group("room"), &channel).await.unwrap();
    layer.group_send(&group("room"), &event(2)).await.unwrap();
    assert_eq!(receive(&layer, &channel).await, event(2));
    assert!(!matches!(deliveries.try_recv(), Ok(Delivery::Group { .. })));
}

/// Makes a test of every promise for one layer. `$make` is an expression that makes a fresh one.
#[macro_export]
macro_rules! contract_suite {
    ($module:ident, $make:expr) => {
        $crate::contract_suite!(@each $module, $make,
            own_channel_receives_in_order channel_names_are_unique groups_reach_their_members
            discarded_members_hear_nothing groups_with_the_same_prefix_are_apart sending_to_nobody_is_fine
            full_members_miss_and_nobody_fails cancelled_receives_lose_nothing removed_channels_end flush_forgets
            both_forms_of_group_send_keep_order a_relay_hears_its_groups_and_channels
            relays_and_channels_share_groups joins_and_leaves_do_not_race a_megabyte_passes ping_answers
            readers_share_a_channel a_dropped_relay_hears_nothing
        );
    };
    (@each $module:ident, $make:expr, $($promise:ident)+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    // Kept to the end: a server that the layer needs may live in it.
                    let (layer, _keep) = $make.await;
                    $crate::contract::$promise(layer).await;
                }
            )+
        }
    };
}
