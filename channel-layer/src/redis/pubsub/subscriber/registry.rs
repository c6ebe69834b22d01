//! Who wants what on this process. Knows nothing of connections: it says which topics to subscribe
//! and unsubscribe, and is told what Redis confirmed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    Directory, Member, NewRelay, Reply,
    members::{Group, JoinId, Relay, Seat},
};
use crate::{
    ChannelName, Delivery, GroupName, LayerError,
    codec::Codec,
    redis::{inbox::Inbox, pubsub::topic},
    stats::Counters,
};

pub(super) type Topic = Arc<[u8]>;

pub(super) struct Registry {
    prefix: String,
    /// Boxed, because a map has room for up to twice as many entries as it holds.
    pub(super) topics: HashMap<Topic, Box<Entry>>,
    pub(super) channels: HashMap<ChannelName, Channel>,
    pub(super) relays: HashMap<u64, Relay>,
    pub(super) joins: HashMap<JoinId, Join>,
    next_id: u64,
    directory: Directory,
    pub(super) codec: Codec,
    pub(super) counters: Arc<Counters>,
}

/// One topic somebody here wants.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) group: Option<Group>,
    /// Set if a local channel has this name.
    pub(super) channel: Option<Arc<Inbox>>,
    /// Whether Redis has confirmed the subscription on the present connection.
    pub(super) confirmed: bool,
    /// The joins that wait for the confirmation.
    pub(super) joins: Vec<JoinId>,
}

pub(super) struct Channel {
    inbox: Arc<Inbox>,
    groups: HashSet<Topic>,
    /// Whether its subscription was ever confirmed: until then nobody has got its name.
    pub(super) opened: bool,
}

/// What somebody waits for.
pub(super) enum Purpose {
    Join(Member),
    /// `only` if nobody but the waiter knows the channel's name.
    Open {
        name: ChannelName,
        only: bool,
    },
}

/// Somebody who waits for confirmations.
pub(super) struct Join {
    pub(super) purpose: Purpose,
    pub(super) topics: Vec<Topic>,
    pub(super) missing: usize,
    pub(super) deadline: Instant,
    pub(super) reply: Reply<()>,
}

/// What must be said to Redis now, if it is there.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Changes {
    pub(super) subscribe: Vec<Topic>,
    pub(super) unsubscribe: Vec<Topic>,
}

impl Registry {
    pub(super) fn new(prefix: String, directory: Directory, codec: Codec, counters: Arc<Counters>) -> Self {
        Self {
            prefix,
            topics: HashMap::new(),
            channels: HashMap::new(),
            relays: HashMap::new(),
            joins: HashMap::new(),
            next_id: 0,
            directory,
            codec,
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

    pub(super) fn end_channel(&mut self, name: &ChannelName, changes: &mut Changes) {
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

    /// Opens a relay; the reply waits for the pattern's confirmations unless `connected` is false.
    /// Returns its id and the pattern to subscribe; `relay_asked` must follow.
    pub(super) fn open_relay(&mut self, new: NewRelay, connected: bool, reply: Reply<u64>) -> (u64, Vec<u8>) {
        let id = self.id();
        let pattern = crate::redis::pattern::beginning_with(&new.prefix);
        let mut relay = Relay {
            sink: new.sink,
            prefix: new.prefix,
            alive: new.alive,
            groups: HashSet::new(),
            batch: Vec::new(),
            down: (!connected).then(Instant::now),
            lost: HashSet::new(),
            opened: None,
        };
        if connected {
            relay.opened = Some((reply, 0));
        } else {
            relay.batch.push(Delivery::Disconnected);
            relay.deliver();
            answer(reply, Ok(id));
        }
        self.relays.insert(id, relay);
        (id, pattern)
    }

    /// On so many connections a new relay's pattern was asked for.
    pub(super) fn relay_asked(&mut self, id: u64, times: usize) {
        if let Some(opened) = self.relays.get_mut(&id).and_then(|relay| relay.opened.as_mut()) {
            opened.1 = times;
        }
    }

    /// Ends the relays whose handles are gone; also returns the patterns to unsubscribe.
    pub(super) fn close_dead_relays(&mut self) -> (Changes, Vec<Vec<u8>>) {
        let mut changes = Changes::default();
        let mut patterns = Vec::new();
        let dead = self.relays.iter().filter(|(_, relay)| relay.alive.strong_count() == 0);
        let dead: Vec<u64> = dead.map(|(id, _)| *id).collect();
        for id in dead {
            let Some(relay) = self.relays.remove(&id) else { continue };
            patterns.push(crate::redis::pattern::beginning_with(&relay.prefix));
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

    pub(super) fn groups_of(&mut self, member: &Member) -> Option<&mut HashSet<Topic>> {
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

    pub(super) fn drop_if_unwanted(&mut self, topic: &Topic, changes: &mut Changes) {
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
}

/// The topic's entry; if it is new, it must be subscribed.
fn want<'a>(topics: &'a mut HashMap<Topic, Box<Entry>>, topic: &Topic, changes: &mut Changes) -> &'a mut Entry {
    topics.entry(topic.clone()).or_insert_with(|| {
        changes.subscribe.push(topic.clone());
        Box::default()
    })
}

pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, LayerError>) {
    // Whoever asked may have stopped waiting.
    let _ = reply.send(result);
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
