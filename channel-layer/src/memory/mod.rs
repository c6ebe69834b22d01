//! The layer of one process: for tests, development and single nodes.

mod builder;
mod outlet;
mod state;

use std::{
    borrow::Cow,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use parking_lot::Mutex;

pub use self::builder::MemoryBuilder;
use self::{
    outlet::Outlet,
    state::{Limits, Poll, State},
};
use crate::{
    ChannelLayer, ChannelName, Delivery, Event, GroupName, LayerError, LayerStats, NameError, Relay, RelayBackend,
    RelaySink, event::RESERVED_KEY, name, stats::Counters,
};

/// Channels and groups in memory, as in Channels' `InMemoryChannelLayer`: capacity 100, events expire
/// after 60 seconds, memberships after a day. A channel on which an event expired unread leaves its
/// groups. Clones share everything; a relay hears its events inside the call that sends them.
///
/// What a Redis layer would refuse is refused here too: too many or too deep values, and the key
/// `__asgi_channel__` in an event sent to a channel; in one sent to a group it is left out.
///
/// ```
/// use channel_layer::{ChannelLayer, Event, GroupName, MemoryLayer};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let layer = MemoryLayer::new();
/// let lobby = GroupName::parse("lobby")?;
/// let alice = layer.new_channel("").await?;
/// layer.group_add(&lobby, &alice).await?;
/// layer.group_send(&lobby, &Event::new("chat.message").with("text", "hello")).await?;
/// assert_eq!(layer.receive(&alice).await?.text("text"), Some("hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MemoryLayer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    counters: Counters,
}

impl MemoryLayer {
    /// A layer whose channels hold 100 unread events.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A layer whose channels hold `capacity` unread events, at least 1.
    pub fn with_capacity(capacity: usize) -> Self {
        Self::builder().capacity(capacity).build()
    }

    /// A layer with limits of one's own.
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder::new()
    }

    fn with_limits(limits: Limits) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State::new(limits)), counters: Counters::default() }))
    }

    /// How many channels and groups are in memory: zero of both when nothing is waiting anywhere.
    pub fn footprint(&self) -> (usize, usize) {
        let mut state = self.0.state.lock();
        state.sweep(true);
        state.footprint()
    }

    fn publish(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        // Checked here too, so that what works in memory also works on Redis.
        event.check()?;
        let event = Arc::new(without_reserved(event).into_owned());
        let (outlets, missed) = self.0.state.lock().group_send(group, &event);
        self.0.counters.published(1);
        self.0.counters.dropped(missed);
        for outlet in outlets {
            self.0.counters.received(1);
            let delivery = Delivery::Group { group: group.clone(), event: event.clone() };
            self.0.counters.dropped(outlet.push(delivery));
        }
        Ok(())
    }
}

/// A Redis layer writes its own value over the reserved key, and its readers never see it.
fn without_reserved(event: &Event) -> Cow<'_, Event> {
    let mut event = Cow::Borrowed(event);
    if event.refuse_reserved().is_err() {
        event.to_mut().remove(RESERVED_KEY);
    }
    event
}

impl Default for MemoryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLayer").finish_non_exhaustive()
    }
}

#[async_trait]
impl ChannelLayer for MemoryLayer {
    async fn new_channel(&self, prefix: &str) -> Result<ChannelName, LayerError> {
        let prefix = match prefix.trim_end_matches('.') {
            "" => "specific",
            prefix => prefix,
        };
        let name = format!("{prefix}.inmemory!{}", name::random_hex32());
        Ok(ChannelName::parse(&name).map_err(|error| NameError { kind: "channel prefix", ..error })?)
    }

    async fn remove_channel(&self, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.state.lock().remove_channel(channel);
        Ok(())
    }

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        event.check()?;
        event.refuse_reserved()?;
        let event = Arc::new(event.clone());
        let outlet = self.0.state.lock().send(channel, &event)?;
        self.0.counters.published(1);
        if let Some(outlet) = outlet {
            self.0.counters.received(1);
            let delivery = Delivery::Channel { channel: channel.clone(), event };
            self.0.counters.dropped(outlet.push(delivery));
        }
        Ok(())
    }

    async fn receive(&self, channel: &ChannelName) -> Result<Event, LayerError> {
        let waiter = Waiter::new(&self.0, channel);
        loop {
            // Armed before looking, so that an event between looking and waiting wakes us.
            let notified = waiter.notify.notified();
            match self.0.state.lock().poll(channel, &waiter.notify) {
                Poll::Event(event) => {
                    self.0.counters.received(1);
                    return Ok(Arc::unwrap_or_clone(event));
                }
                Poll::Empty => {}
                Poll::Removed => return Err(LayerError::Closed),
            }
            notified.await;
        }
    }

    async fn group_add(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.state.lock().group_add(group, channel);
        Ok(())
    }

    async fn group_discard(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.state.lock().group_discard(group, channel);
        Ok(())
    }

    async fn group_send(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        self.publish(group, event)
    }

    fn group_send_later(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        self.publish(group, event)
    }

    async fn flush(&self) -> Result<(), LayerError> {
        self.0.state.lock().flush();
        Ok(())
    }

    async fn relay(&self, sink: Arc<dyn RelaySink>) -> Result<Relay, LayerError> {
        let prefix = format!("specific.{}", name::random_hex16());
        let outlet = Arc::new(Outlet::new(sink));
        let id = self.0.state.lock().add_relay(prefix.clone(), outlet);
        Ok(Relay::new(MemoryRelay { id, prefix, shared: Arc::downgrade(&self.0) }))
    }

    async fn ping(&self) -> Result<(), LayerError> {
        Ok(())
    }

    fn stats(&self) -> LayerStats {
        self.0.counters.snapshot()
    }
}

/// Somebody inside `receive`: keeps the channel's entry alive while waiting, and only so long.
struct Waiter<'a> {
    shared: &'a Shared,
    channel: &'a ChannelName,
    notify: Arc<tokio::sync::Notify>,
}

impl<'a> Waiter<'a> {
    fn new(shared: &'a Shared, channel: &'a ChannelName) -> Self {
        let notify = shared.state.lock().start_waiting(channel);
        Self { shared, channel, notify }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().stop_waiting(self.channel, &self.notify);
    }
}

struct MemoryRelay {
    id: u64,
    prefix: String,
    shared: Weak<Shared>,
}

impl MemoryRelay {
    fn with_state(&self, change: impl FnOnce(&mut State)) -> Result<(), LayerError> {
        let shared = self.shared.upgrade().ok_or(LayerError::Closed)?;
        change(&mut shared.state.lock());
        Ok(())
    }
}

#[async_trait]
impl RelayBackend for MemoryRelay {
    fn new_channel(&self) -> ChannelName {
        ChannelName::trusted(format!("{}{}", self.prefix, name::random_hex16()))
    }

    async fn join(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        self.with_state(|state| state.relay_join(self.id, groups))
    }

    async fn leave(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        self.with_state(|state| state.relay_leave(self.id, groups))
    }
}

impl Drop for MemoryRelay {
    fn drop(&mut self) {
        // The layer may be gone already; then so are the subscriptions.
        let _ = self.with_state(|state| state.remove_relay(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unread_events_are_bounded_in_bytes_by_channel_and_in_all() {
        const MIB: usize = 1 << 20;
        let layer = MemoryLayer::with_capacity(1_000_000);
        let event = Event::new("big").with("text", "x".repeat(MIB));
        let channel = |number: usize| ChannelName::parse(&format!("c{number}")).unwrap();
        let mut sent = Vec::new();
        for number in 0..40 {
            let mut fitted = 0;
            while layer.send(&channel(number), &event).await.is_ok() {
                fitted += 1;
            }
            sent.push(fitted);
        }
        assert_eq!((sent[0], sent[39], sent.iter().sum::<usize>()), (3, 0, 63));
        assert_eq!(layer.footprint().0, 21, "a channel into which nothing fitted is none");
        layer.receive(&channel(0)).await.unwrap();
        layer.send(&channel(0), &event).await.unwrap();
        layer.flush().await.unwrap();
        layer.send(&channel(0), &Event::new("huge").with("text", "x".repeat(100 * MIB))).await.unwrap();
    }
}
