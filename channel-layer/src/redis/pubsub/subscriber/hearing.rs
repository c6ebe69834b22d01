//! What comes from Redis, and what becomes of its connections.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    members::Relay,
    registry::{Registry, Topic, answer},
};
use crate::{ChannelName, Delivery, Event, EventError, Missed, codec::Codec, event::RESERVED_KEY, redis::pattern};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// The payload cannot be decoded.
    Undecodable,
    /// Nobody here wants the topic.
    Unknown,
}

impl Registry {
    /// Redis has confirmed a relay's pattern, on one of the connections.
    pub(super) fn relay_confirmed(&mut self, id: u64) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        if let Some((reply, missing)) = relay.opened.take() {
            match missing {
                0 | 1 => answer(reply, Ok(id)),
                _ => relay.opened = Some((reply, missing - 1)),
            }
        }
    }

    /// A connection is gone, or what was on it has to move: the topics of which `lost` says so are not
    /// confirmed any more.
    pub(super) fn disconnected(&mut self, lost: impl Fn(&[u8]) -> bool) {
        for (_, entry) in self.topics.iter_mut().filter(|(topic, _)| lost(topic)) {
            entry.confirmed = false;
        }
        self.down(lost);
    }

    /// One topic is not subscribed any more; tells whether somebody here wants it.
    pub(super) fn ended(&mut self, topic: &[u8]) -> bool {
        let Some(entry) = self.topics.get_mut(topic) else { return false };
        entry.confirmed = false;
        self.down(|other| other == topic);
        true
    }

    pub(super) fn wants(&self, topic: &[u8]) -> bool {
        self.topics.contains_key(topic)
    }

    fn down(&mut self, lost: impl Fn(&[u8]) -> bool) {
        for (id, relay) in &mut self.relays {
            relay.lost.extend(relay.groups.iter().filter(|topic| lost(topic)).cloned());
            if relay.down.is_none() {
                relay.down = Some(Instant::now());
                relay.push(Delivery::Disconnected);
                relay.deliver();
            }
            // An opener does not wait for the outage to end.
            if let Some((reply, _)) = relay.opened.take() {
                answer(reply, Ok(*id));
            }
        }
    }

    /// Everything to subscribe on a new connection: the topics that belong to it, and patterns with
    /// their relays.
    pub(super) fn everything(&self, wanted: impl Fn(&[u8]) -> bool) -> (Vec<Topic>, Vec<(u64, Vec<u8>)>) {
        let topics = self.topics.keys().filter(|topic| wanted(topic)).cloned().collect();
        let patterns = self.relays.iter().map(|(id, it)| (*id, pattern::beginning_with(&it.prefix)));
        (topics, patterns.collect())
    }

    /// Everything is subscribed again.
    pub(super) fn restored(&mut self) {
        for relay in self.relays.values_mut() {
            let Some(since) = relay.down.take() else { continue };
            let lost = std::mem::take(&mut relay.lost);
            // Those that have been left meanwhile miss nothing.
            let lost = lost.iter().filter(|topic| relay.groups.contains(*topic));
            let groups = lost.filter_map(|topic| Some(self.topics.get(topic)?.group.as_ref()?.name.clone()));
            relay.push(Delivery::Reconnected(Missed { away: since.elapsed(), groups: groups.collect() }));
            relay.deliver();
        }
    }

    // ---- messages ----

    /// A message on a topic.
    pub(super) fn message(&mut self, topic: &[u8], payload: &[u8]) -> Taken {
        // Messages may still arrive after the last member has gone.
        let Some(entry) = self.topics.get(topic) else { return Taken::Unknown };
        let Ok(event) = decode(&self.codec, payload) else { return Taken::Undecodable };
        let event = Arc::new(event);
        self.counters.received(1);
        // As in channels_redis, a channel of that name takes precedence over a group.
        if let Some(inbox) = &entry.channel {
            self.counters.dropped(u64::from(inbox.push(event)));
            return Taken::Yes;
        }
        let Some(group) = &entry.group else { return Taken::Yes };
        for inbox in group.inboxes() {
            self.counters.dropped(u64::from(inbox.push(event.clone())));
        }
        for (id, _) in &group.relays {
            if let Some(relay) = self.relays.get_mut(id) {
                relay.push(Delivery::Group { group: group.name.clone(), event: event.clone() });
            }
        }
        Taken::Yes
    }

    /// A message that matched a relay's pattern; `false` if the payload cannot be decoded.
    pub(super) fn pattern_message(&mut self, topic: &[u8], payload: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(topic) else { return true };
        let Some(relay) = self.relays.values_mut().find(|relay| relay.owns(name)) else {
            return true;
        };
        let Ok(event) = decode(&self.codec, payload) else { return false };
        self.counters.received(1);
        let channel = ChannelName::trusted(name);
        relay.push(Delivery::Channel { channel, event: Arc::new(event) });
        true
    }

    /// Hands over what has been collected since the last time.
    pub(super) fn deliver(&mut self) {
        self.relays.values_mut().for_each(Relay::deliver);
    }
}

fn decode(codec: &Codec, payload: &[u8]) -> Result<Event, EventError> {
    let mut event = codec.decode(payload, None)?;
    // It means nothing on this layer, and must not mean anything to whoever passes the event on.
    event.remove(RESERVED_KEY);
    Ok(event)
}
