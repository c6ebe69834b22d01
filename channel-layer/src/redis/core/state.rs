//! Who is here: the channels and relays of this process and the memberships Redis must hold for them.
//!
//! Everything happens under one lock, and whoever changes a membership queues the command for Redis
//! while holding it: so Redis hears of changes in the order they were made, and a renewal can never
//! bring back what has been left.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use tokio::time::Instant;

use super::queues::Queue;
use crate::{
    ChannelName, Delivery, Event, GroupName, Missed, RelaySink,
    redis::{hand_over::hand_over, inbox::Inbox},
    stats::Counters,
};

/// How many removals Redis may not have heard of are remembered; what is older expires by itself.
const STALE: usize = 100_000;

#[derive(Default)]
pub(super) struct State {
    channels: HashMap<ChannelName, Local>,
    relays: HashMap<u64, RelayEntry>,
    groups: HashMap<GroupName, Group>,
    /// A relay's member name carries a hash of its group; this leads back.
    tags: HashMap<Box<str>, GroupName>,
    /// Left here, but perhaps not in Redis.
    stale: HashSet<(GroupName, ChannelName)>,
}

/// A channel of this process.
struct Local {
    inbox: Arc<Inbox>,
    /// Where its events come from; read as long as one of its channels is here.
    queue: Arc<Queue>,
    groups: HashSet<GroupName>,
}

/// A group with members of this process.
#[derive(Default)]
struct Group {
    /// As they stand in Redis, a relay's member among them.
    members: HashSet<ChannelName>,
    relays: HashSet<u64>,
}

struct RelayEntry {
    sink: Arc<dyn RelaySink>,
    alive: Weak<()>,
    groups: HashSet<GroupName>,
    /// Since when it has been told `Disconnected`, if it was told that last.
    down: Option<Instant>,
}

/// What a name in a message means here.
pub(super) enum Reader {
    Channel(Arc<Inbox>),
    Relays(GroupName, Vec<u64>),
    RelayChannel(u64),
    Nobody,
}

/// Events on their way into the sinks, collected under the lock and handed over outside of it.
#[derive(Default)]
pub(super) struct Outbound(Vec<ForRelay>);

struct ForRelay {
    id: u64,
    sink: Arc<dyn RelaySink>,
    alive: Weak<()>,
    batch: Vec<Delivery>,
}

impl Outbound {
    pub(super) fn push(&mut self, state: &State, id: u64, delivery: Delivery) {
        if let Some(known) = self.0.iter_mut().find(|relay| relay.id == id) {
            known.batch.push(delivery);
        } else if let Some(relay) = state.relays.get(&id) {
            let (sink, alive) = (relay.sink.clone(), relay.alive.clone());
            self.0.push(ForRelay { id, sink, alive, batch: vec![delivery] });
        }
    }

    pub(super) fn hand_over(&mut self) {
        for relay in &mut self.0 {
            if relay.alive.strong_count() > 0 {
                hand_over(&*relay.sink, &mut relay.batch);
            }
        }
        self.0.clear();
    }
}

impl State {
    // ---- channels ----

    /// What expires unread is counted in `counters`.
    pub(super) fn open_channel(
        &mut self,
        name: ChannelName,
        capacity: usize,
        queue: Arc<Queue>,
        counters: Arc<Counters>,
    ) {
        let inbox = Arc::new(Inbox::of_queue(name.clone(), capacity, queue.hungry.clone(), counters));
        self.channels.insert(name, Local { inbox, queue, groups: HashSet::new() });
    }

    pub(super) fn inbox(&self, name: &ChannelName) -> Option<(Arc<Inbox>, Arc<Queue>)> {
        self.channels.get(name).map(|local| (local.inbox.clone(), local.queue.clone()))
    }

    /// Forgets a channel; returns the groups it was in.
    pub(super) fn close_channel(&mut self, name: &ChannelName) -> Vec<GroupName> {
        let Some(local) = self.channels.remove(name) else { return Vec::new() };
        local.inbox.close();
        for group in &local.groups {
            self.remove_member(group, name);
        }
        local.groups.into_iter().collect()
    }

    // ---- memberships ----

    /// Notes a member that is to be kept; tells whether it is new.
    pub(super) fn add_member(&mut self, group: &GroupName, member: &ChannelName) -> bool {
        if let Some(local) = self.channels.get_mut(member) {
            local.groups.insert(group.clone());
        }
        self.stale.remove(&(group.clone(), member.clone()));
        self.groups.entry(group.clone()).or_default().members.insert(member.clone())
    }

    pub(super) fn discard_member(&mut self, group: &GroupName, member: &ChannelName) {
        if let Some(local) = self.channels.get_mut(member) {
            local.groups.remove(group);
        }
        self.remove_member(group, member);
    }

    fn remove_member(&mut self, group: &GroupName, member: &ChannelName) {
        if let Some(entry) = self.groups.get_mut(group) {
            entry.members.remove(member);
            if entry.members.is_empty() && entry.relays.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// Redis may still hold this member, which has left.
    pub(super) fn mark_stale(&mut self, group: &GroupName, member: &ChannelName) {
        let wanted = self.groups.get(group).is_some_and(|entry| entry.members.contains(member));
        if !wanted && self.stale.len() < STALE {
            self.stale.insert((group.clone(), member.clone()));
        }
    }

    pub(super) fn take_stale(&mut self, on_shard: impl Fn(&GroupName) -> bool) -> Vec<(GroupName, ChannelName)> {
        self.stale.extract_if(|(group, _)| on_shard(group)).collect()
    }

    /// Every membership that Redis must hold.
    pub(super) fn memberships(&self) -> impl Iterator<Item = (&GroupName, &ChannelName)> {
        self.groups.iter().flat_map(|(group, entry)| entry.members.iter().map(move |member| (group, member)))
    }

    pub(super) fn is_member(&self, group: &GroupName, member: &ChannelName) -> bool {
        self.groups.get(group).is_some_and(|entry| entry.members.contains(member))
    }

    /// Forgets all memberships and what waits in the inboxes.
    pub(super) fn flush(&mut self) {
        self.groups.clear();
        self.tags.clear();
        self.stale.clear();
        for local in self.channels.values_mut() {
            local.groups.clear();
            local.inbox.clear();
        }
        self.relays.values_mut().for_each(|relay| relay.groups.clear());
    }

    // ---- relays ----

    pub(super) fn open_relay(&mut self, sink: Arc<dyn RelaySink>, alive: Weak<()>) -> u64 {
        // Random, because it is part of channel names and those of an earlier relay must lead nowhere.
        let id = rand::random();
        self.relays.insert(id, RelayEntry { sink, alive, groups: HashSet::new(), down: None });
        id
    }

    pub(super) fn has_relay(&self, id: u64) -> bool {
        self.relays.contains_key(&id)
    }

    pub(super) fn relay_is_in(&self, id: u64, group: &GroupName) -> bool {
        self.groups.get(group).is_some_and(|entry| entry.relays.contains(&id))
    }

    pub(super) fn has_relays(&self) -> bool {
        !self.relays.is_empty()
    }

    /// Notes that a relay is in a group; tells whether Redis has to hear of it.
    pub(super) fn relay_join(&mut self, id: u64, group: &GroupName, member: &ChannelName, tag: &str) -> bool {
        let Some(relay) = self.relays.get_mut(&id) else { return false };
        relay.groups.insert(group.clone());
        self.tags.insert(tag.into(), group.clone());
        self.groups.entry(group.clone()).or_default().relays.insert(id);
        self.add_member(group, member)
    }

    /// Takes a relay out of a group; tells whether its member has to leave Redis.
    pub(super) fn relay_leave(&mut self, id: u64, group: &GroupName, member: &ChannelName, tag: &str) -> bool {
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.groups.remove(group);
        }
        let Some(entry) = self.groups.get_mut(group) else { return false };
        if !entry.relays.remove(&id) || !entry.relays.is_empty() {
            return false;
        }
        self.tags.remove(tag);
        self.remove_member(group, member);
        true
    }

    /// Ends the relays whose handle is gone; returns the groups they were in.
    pub(super) fn dead_relays(&self) -> Vec<(u64, Vec<GroupName>)> {
        let dead = self.relays.iter().filter(|(_, relay)| relay.alive.strong_count() == 0);
        dead.map(|(id, relay)| (*id, relay.groups.iter().cloned().collect())).collect()
    }

    /// Forgets a relay; its own channels leave the groups they were put into, which are returned.
    pub(super) fn close_relay(
        &mut self,
        id: u64,
        owns: impl Fn(&ChannelName) -> bool,
    ) -> Vec<(GroupName, ChannelName)> {
        self.relays.remove(&id);
        let left: Vec<_> =
            self.memberships().filter(|(_, member)| owns(member)).map(|(g, m)| (g.clone(), m.clone())).collect();
        for (group, member) in &left {
            self.remove_member(group, member);
        }
        left
    }

    /// Tells every relay that has not been told yet. What waited in the queues comes late and what was
    /// lost with Redis never, so any group may miss something.
    pub(super) fn tell(&mut self, down: bool, outbound: &mut Outbound) {
        let untold: Vec<u64> =
            self.relays.iter().filter(|(_, relay)| relay.down.is_some() != down).map(|(id, _)| *id).collect();
        for id in untold {
            let Some(relay) = self.relays.get_mut(&id) else { continue };
            let delivery = match relay.down.take() {
                Some(since) => {
                    let groups = relay.groups.iter().cloned().collect();
                    Delivery::Reconnected(Missed { away: since.elapsed(), groups })
                }
                None => {
                    relay.down = Some(Instant::now());
                    Delivery::Disconnected
                }
            };
            outbound.push(self, id, delivery);
        }
    }

    // ---- arrivals ----

    /// Who reads under this name.
    pub(super) fn reader(&self, name: &str, own_relay: impl Fn(&str) -> Option<u64>) -> Reader {
        if let Some(local) = self.channels.get(name) {
            return Reader::Channel(local.inbox.clone());
        }
        let Some((_, local)) = name.split_once('!') else { return Reader::Nobody };
        if let Some(group) = self.tags.get(local) {
            let relays = self.groups.get(group).map(|entry| entry.relays.iter().copied().collect());
            return Reader::Relays(group.clone(), relays.unwrap_or_default());
        }
        match own_relay(local) {
            Some(id) if self.relays.contains_key(&id) => Reader::RelayChannel(id),
            _ => Reader::Nobody,
        }
    }

    /// Puts one event where its names lead; each reader gets it once. Returns how many readers had to
    /// lose an older one for it, and how many names led nowhere.
    pub(super) fn route<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        event: &Arc<Event>,
        expires: Instant,
        own_relay: impl Fn(&str) -> Option<u64>,
        outbound: &mut Outbound,
    ) -> (u64, u64) {
        let (mut dropped, mut nobody) = (0, 0);
        for name in names {
            match self.reader(name, &own_relay) {
                Reader::Channel(inbox) => dropped += u64::from(inbox.push_until(event.clone(), expires)),
                Reader::Relays(group, relays) => {
                    for id in relays {
                        outbound.push(self, id, Delivery::Group { group: group.clone(), event: event.clone() });
                    }
                }
                Reader::RelayChannel(id) => {
                    let channel = ChannelName::trusted(name);
                    outbound.push(self, id, Delivery::Channel { channel, event: event.clone() });
                }
                Reader::Nobody => nobody += 1,
            }
        }
        (dropped, nobody)
    }
}
