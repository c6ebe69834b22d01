//! Who wants what on this process. Knows nothing of connections: it says which topics to subscribe
//! and unsubscribe, and is told what Redis confirmed.

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    Directory, JOIN, Member, NewRelay, Reply,
    members::{Group, JoinId, Relay, Seat},
};
use crate::{
    BoxError, ChannelName, Delivery, Event, GroupName, LayerError,
    redis::{inbox::Inbox, topic},
    stats::Counters,
};

pub(super) type Topic = Arc<[u8]>;

pub(super) struct Registry {
    prefix: String,
    topics: HashMap<Topic, Entry>,
    channels: HashMap<ChannelName, Channel>,
    relays: HashMap<u64, Relay>,
    joins: HashMap<JoinId, Join>,
    next_id: u64,
    directory: Directory,
    counters: Arc<Counters>,
}

/// One topic somebody here wants.
#[derive(Default)]
struct Entry {
    group: Option<Group>,
    /// Set if a local channel has this name.
    channel: Option<Arc<Inbox>>,
    /// Whether Redis has confirmed the subscription on the present connection.
    confirmed: bool,
    /// The joins that wait for the confirmation.
    joins: Vec<JoinId>,
}

struct Channel {
    inbox: Arc<Inbox>,
    groups: HashSet<Topic>,
    /// Whether its subscription was ever confirmed: until then nobody has got its name.
    opened: bool,
}

/// What somebody waits for.
enum Purpose {
    Join(Member),
    /// `only` if nobody but the waiter knows the channel's name.
    Open {
        name: ChannelName,
        only: bool,
    },
}

/// Somebody who waits for confirmations.
struct Join {
    purpose: Purpose,
    topics: Vec<Topic>,
    missing: usize,
    deadline: Instant,
    reply: Reply<()>,
}

/// What must be said to Redis now, if it is there.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Changes {
    pub(super) subscribe: Vec<Topic>,
    pub(super) unsubscribe: Vec<Topic>,
}

impl Registry {
    pub(super) fn new(prefix: String, directory: Directory, counters: Arc<Counters>) -> Self {
        Self {
            prefix,
            topics: HashMap::new(),
            channels: HashMap::new(),
            relays: HashMap::new(),
            joins: HashMap::new(),
            next_id: 0,
            directory,
            counters,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- orders ----

    pub(super) fn open_channel(&mut self, name: ChannelName, only: bool, reply: Reply<()>) -> Changes {
        let topic: Topic = topic::channel(&name).into();
        let inbox = match self.channels.get(&name) {
            Some(channel) => channel.inbox.clone(),
            None => {
                let inbox = Arc::new(Inbox::new(name.clone()));
                let channel = Channel { inbox: inbox.clone(), groups: HashSet::new(), opened: false };
                self.channels.insert(name.clone(), channel);
                self.directory.lock().insert(name.clone(), inbox.clone());
                inbox
            }
        };
        let join = self.id();
        let mut changes = Changes::default();
        let entry = want(&mut self.topics, &topic, &mut changes);
        entry.channel = Some(inbox);
        if !entry.confirmed {
            entry.joins.push(join);
            self.wait(join, Purpose::Open { name, only }, vec![topic], reply);
            return changes;
        }
        if let Some(channel) = self.channels.get_mut(&name) {
            channel.opened = true;
        }
        answer(reply, Ok(()));
        changes
    }

    pub(super) fn close_channel(&mut self, name: &ChannelName) -> Changes {
        let mut changes = Changes::default();
        self.end_channel(name, &mut changes);
        changes
    }

    fn end_channel(&mut self, name: &ChannelName, changes: &mut Changes) {
        let Some(channel) = self.channels.remove(name) else { return };
        self.directory.lock().remove(name);
        channel.inbox.close();
        let member = Member::Channel(name.clone());
        for topic in channel.groups {
            self.drop_member(&topic, &member, changes);
        }
        let own: Topic = topic::channel(name).into();
        if let Some(entry) = self.topics.get_mut(&own) {
            entry.channel = None;
        }
        self.drop_if_unwanted(&own, changes);
    }

    pub(super) fn join(&mut self, member: Member, groups: Vec<GroupName>, reply: Reply<()>) -> Changes {
        let mut changes = Changes::default();
        let seat = match self.seat(&member) {
            Ok(seat) => seat,
            Err(error) => {
                answer(reply, Err(error));
                return changes;
            }
        };
        let join = self.id();
        let mut waiting = Vec::new();
        for name in groups {
            let topic: Topic = topic::group(&self.prefix, &name).into();
            self.groups_of(&member).map(|groups| groups.insert(topic.clone()));
            let entry = want(&mut self.topics, &topic, &mut changes);
            let group = entry.group.get_or_insert_with(|| Group::new(name));
            let standing = group.standing(&seat);
            if entry.confirmed {
                standing.confirmed = true;
            } else if !standing.pending.contains(&join) {
                standing.pending.push(join);
                entry.joins.push(join);
                waiting.push(topic);
            }
        }
        match waiting.is_empty() {
            true => answer(reply, Ok(())),
            false => self.wait(join, Purpose::Join(member), waiting, reply),
        }
        changes
    }

    fn seat(&self, member: &Member) -> Result<Seat, LayerError> {
        match member {
            Member::Relay(id) if self.relays.contains_key(id) => Ok(Seat::Relay(*id)),
            Member::Relay(_) => Err(LayerError::Closed),
            Member::Channel(name) => match self.channels.get(name) {
                Some(channel) => Ok(Seat::Channel(channel.inbox.clone())),
                None => Err(LayerError::NotLocal(name.clone())),
            },
        }
    }

    pub(super) fn leave(&mut self, member: &Member, groups: &[GroupName]) -> Changes {
        let mut changes = Changes::default();
        for name in groups {
            let topic: Topic = topic::group(&self.prefix, name).into();
            self.groups_of(member).map(|groups| groups.remove(&topic));
            self.drop_member(&topic, member, &mut changes);
        }
        changes
    }

    /// Opens a relay; the reply waits for the pattern's confirmation unless `connected` is false.
    /// Returns its id and the pattern to subscribe.
    pub(super) fn open_relay(&mut self, new: NewRelay, connected: bool, reply: Reply<u64>) -> (u64, Vec<u8>) {
        let id = self.id();
        let pattern = topic::pattern(&new.prefix);
        let mut relay = Relay {
            sink: new.sink,
            prefix: new.prefix,
            alive: new.alive,
            groups: HashSet::new(),
            batch: Vec::new(),
            down: !connected,
            opened: None,
        };
        if connected {
            relay.opened = Some(reply);
        } else {
            relay.batch.push(Delivery::Disconnected);
            relay.deliver();
            answer(reply, Ok(id));
        }
        self.relays.insert(id, relay);
        (id, pattern)
    }

    /// Ends the relays whose handles are gone; also returns the patterns to unsubscribe.
    pub(super) fn close_dead_relays(&mut self) -> (Changes, Vec<Vec<u8>>) {
        let mut changes = Changes::default();
        let mut patterns = Vec::new();
        let dead = self.relays.iter().filter(|(_, relay)| relay.alive.strong_count() == 0);
        let dead: Vec<u64> = dead.map(|(id, _)| *id).collect();
        for id in dead {
            let Some(relay) = self.relays.remove(&id) else { continue };
            patterns.push(topic::pattern(&relay.prefix));
            for topic in relay.groups {
                self.drop_member(&topic, &Member::Relay(id), &mut changes);
            }
        }
        (changes, patterns)
    }

    /// Forgets unread events and groups; channels and relays stay open.
    pub(super) fn flush(&mut self) -> Changes {
        let mut changes = Changes::default();
        for channel in self.channels.values_mut() {
            channel.inbox.clear();
            channel.groups.clear();
        }
        for relay in self.relays.values_mut() {
            relay.groups.clear();
        }
        let topics: Vec<Topic> = self.topics.keys().cloned().collect();
        for topic in topics {
            if let Some(entry) = self.topics.get_mut(&topic) {
                entry.group = None;
            }
            self.drop_if_unwanted(&topic, &mut changes);
        }
        changes
    }

    fn groups_of(&mut self, member: &Member) -> Option<&mut HashSet<Topic>> {
        match member {
            Member::Relay(id) => self.relays.get_mut(id).map(|relay| &mut relay.groups),
            Member::Channel(name) => self.channels.get_mut(name).map(|it| &mut it.groups),
        }
    }

    fn drop_member(&mut self, topic: &Topic, member: &Member, changes: &mut Changes) {
        let Some(entry) = self.topics.get_mut(topic) else { return };
        if let Some(group) = &mut entry.group {
            group.remove(member);
            if group.is_empty() {
                entry.group = None;
            }
        }
        self.drop_if_unwanted(topic, changes);
    }

    fn drop_if_unwanted(&mut self, topic: &Topic, changes: &mut Changes) {
        let Some(entry) = self.topics.get(topic) else { return };
        if entry.group.is_some() || entry.channel.is_some() {
            return;
        }
        // Joins overtaken by a leave have happened before it: they get their yes.
        let joins = self.topics.remove(topic).map(|entry| entry.joins).unwrap_or_default();
        changes.unsubscribe.push(topic.clone());
        for join in joins {
            self.one_less(join, changes);
        }
    }

    // ---- waiting ----

    fn wait(&mut self, id: JoinId, purpose: Purpose, topics: Vec<Topic>, reply: Reply<()>) {
        let (missing, deadline) = (topics.len(), Instant::now() + JOIN);
        self.joins.insert(id, Join { purpose, topics, missing, deadline, reply });
    }

    fn one_less(&mut self, join: JoinId, changes: &mut Changes) {
        let hash_map::Entry::Occupied(mut found) = self.joins.entry(join) else { return };
        found.get_mut().missing -= 1;
        if found.get().missing > 0 {
            return;
        }
        let join = found.remove();
        let heard = join.reply.send(Ok(())).is_ok();
        // Whoever wanted the channel has gone without learning its name: nobody could ever end it.
        if !heard && let Purpose::Open { name, only: true } = join.purpose {
            self.end_channel(&name, changes);
        }
    }

    /// Redis has confirmed a topic.
    pub(super) fn confirmed(&mut self, topic: &Topic) -> Changes {
        let mut changes = Changes::default();
        let Some(entry) = self.topics.get_mut(topic) else { return changes };
        entry.confirmed = true;
        if let Some(inbox) = &entry.channel
            && let Some(channel) = self.channels.get_mut(&inbox.name)
        {
            channel.opened = true;
        }
        if let Some(group) = &mut entry.group {
            group.standings().filter(|standing| !standing.pending.is_empty()).for_each(|standing| {
                standing.confirmed = true;
                standing.pending.clear();
            });
        }
        for join in std::mem::take(&mut entry.joins) {
            self.one_less(join, &mut changes);
        }
        changes
    }

    /// Redis has confirmed a relay's pattern.
    pub(super) fn relay_confirmed(&mut self, id: u64) {
        if let Some(reply) = self.relays.get_mut(&id).and_then(|relay| relay.opened.take()) {
            answer(reply, Ok(id));
        }
    }

    /// Redis has refused a topic: everybody who waits for it fails. Also tells whether somebody still
    /// wants it, who had joined before and would now be deaf without knowing.
    pub(super) fn refused(&mut self, topic: &Topic, why: &str) -> (bool, Changes) {
        let mut changes = Changes::default();
        let joins = match self.topics.get_mut(topic) {
            Some(entry) => std::mem::take(&mut entry.joins),
            None => Vec::new(),
        };
        for join in joins {
            self.fail(join, LayerError::Unavailable(why.into()), &mut changes);
        }
        (self.topics.contains_key(topic), changes)
    }

    /// Fails the joins whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Changes {
        let mut changes = Changes::default();
        let late: Vec<JoinId> = self.joins.iter().filter(|(_, join)| join.deadline <= now).map(|(id, _)| *id).collect();
        for join in late {
            let why: BoxError = "no subscription within 5 seconds".into();
            self.fail(join, LayerError::Unavailable(why), &mut changes);
        }
        changes
    }

    /// Fails a join and takes back what it alone has changed.
    fn fail(&mut self, id: JoinId, error: LayerError, changes: &mut Changes) {
        let Some(join) = self.joins.remove(&id) else { return };
        for topic in &join.topics {
            let Some(entry) = self.topics.get_mut(topic) else { continue };
            entry.joins.retain(|other| *other != id);
            match &join.purpose {
                Purpose::Join(member) => {
                    if let Some(group) = &mut entry.group
                        && group.withdraw(member, id)
                    {
                        if group.is_empty() {
                            entry.group = None;
                        }
                        self.groups_of(member).map(|groups| groups.remove(topic));
                    }
                    self.drop_if_unwanted(topic, changes);
                }
                Purpose::Open { name, .. } => {
                    let others = !entry.joins.is_empty();
                    if !others && self.channels.get(name).is_some_and(|it| !it.opened) {
                        self.end_channel(name, changes);
                    }
                }
            }
        }
        answer(join.reply, Err(error));
    }

    // ---- connection ----

    /// The connection is gone: nothing is confirmed any more.
    pub(super) fn disconnected(&mut self) {
        self.topics.values_mut().for_each(|entry| entry.confirmed = false);
        for (id, relay) in &mut self.relays {
            if !relay.down {
                relay.down = true;
                relay.push(Delivery::Disconnected);
                relay.deliver();
            }
            // An opener does not wait for the outage to end.
            if let Some(reply) = relay.opened.take() {
                answer(reply, Ok(*id));
            }
        }
    }

    /// Everything to subscribe on a new connection: topics, and patterns with their relays.
    pub(super) fn everything(&self) -> (Vec<Topic>, Vec<(u64, Vec<u8>)>) {
        let topics = self.topics.keys().cloned().collect();
        let patterns = self.relays.iter().map(|(id, it)| (*id, topic::pattern(&it.prefix)));
        (topics, patterns.collect())
    }

    /// Everything is subscribed again.
    pub(super) fn restored(&mut self) {
        for relay in self.relays.values_mut().filter(|relay| relay.down) {
            relay.down = false;
            relay.push(Delivery::Reconnected);
            relay.deliver();
        }
    }

    // ---- messages ----

    /// A message on a topic; `false` if the payload cannot be decoded.
    pub(super) fn message(&mut self, topic: &[u8], payload: &[u8]) -> bool {
        // Messages may still arrive after the last member has gone.
        let Some(entry) = self.topics.get(topic) else { return true };
        let Ok(event) = Event::from_msgpack(payload) else { return false };
        let event = Arc::new(event);
        self.counters.received(1);
        // As in channels_redis, a channel of that name takes precedence over a group.
        if let Some(inbox) = &entry.channel {
            self.counters.dropped(u64::from(inbox.push(event)));
            return true;
        }
        let Some(group) = &entry.group else { return true };
        for (inbox, _) in group.channels.values() {
            self.counters.dropped(u64::from(inbox.push(event.clone())));
        }
        for (id, _) in &group.relays {
            if let Some(relay) = self.relays.get_mut(id) {
                relay.push(Delivery::Group { group: group.name.clone(), event: event.clone() });
            }
        }
        true
    }

    /// A message that matched a relay's pattern; `false` if the payload cannot be decoded.
    pub(super) fn pattern_message(&mut self, topic: &[u8], payload: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(topic) else { return true };
        let Some(relay) = self.relays.values_mut().find(|relay| relay.owns(name)) else {
            return true;
        };
        let Ok(event) = Event::from_msgpack(payload) else { return false };
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

/// The topic's entry; if it is new, it must be subscribed.
fn want<'a>(topics: &'a mut HashMap<Topic, Entry>, topic: &Topic, changes: &mut Changes) -> &'a mut Entry {
    topics.entry(topic.clone()).or_insert_with(|| {
        changes.subscribe.push(topic.clone());
        Entry::default()
    })
}

fn answer<T>(reply: Reply<T>, result: Result<T, LayerError>) {
    // Whoever asked may have stopped waiting.
    let _ = reply.send(result);
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
