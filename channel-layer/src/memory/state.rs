//! Channels, groups and relays of the in-memory layer; everything here happens under one lock.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::outlet::Outlet;
use crate::{ChannelName, Event, GroupName, LayerError, capacity::Capacity};

/// How often, at most, a send also looks at the channels nobody touches.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// About how many bytes of unread events a channel holds, and all of them; one event is always let in.
const CHANNEL_BYTES: usize = 4 << 20;
const ALL_BYTES: usize = 64 << 20;

/// What the builder sets.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) capacity: Capacity,
    pub(super) expiry: Duration,
    pub(super) group_expiry: Duration,
}

pub(super) struct State {
    limits: Limits,
    channels: HashMap<ChannelName, Mailbox>,
    /// Of unread events.
    bytes: Arc<AtomicUsize>,
    groups: HashMap<GroupName, Members>,
    relays: HashMap<u64, RelayEntry>,
    next_relay: u64,
    swept: Instant,
    groups_swept: Instant,
}

/// Exists only while an event waits in it or somebody waits for one.
struct Mailbox {
    events: VecDeque<(Instant, Unread)>,
    bytes: usize,
    notify: Arc<Notify>,
    waiters: usize,
}

/// An event, as long as it counts as unread.
struct Unread {
    event: Arc<Event>,
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Unread {
    fn new(event: &Arc<Event>, all: &Arc<AtomicUsize>) -> Self {
        let bytes = event.weight();
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { event: event.clone(), bytes, all: all.clone() }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Members {
    channels: HashMap<ChannelName, Instant>,
    relays: HashSet<u64>,
}

struct RelayEntry {
    prefix: String,
    outlet: Arc<Outlet>,
    groups: HashSet<GroupName>,
}

/// What a look into a mailbox found.
pub(super) enum Poll {
    Event(Arc<Event>),
    Empty,
    Removed,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            channels: HashMap::new(),
            bytes: Arc::default(),
            groups: HashMap::new(),
            relays: HashMap::new(),
            next_relay: 0,
            swept: now,
            groups_swept: now,
        }
    }

    pub(super) fn footprint(&self) -> (usize, usize) {
        (self.channels.len(), self.groups.len())
    }

    /// Puts an event into a channel, or names the relay it belongs to.
    pub(super) fn send(
        &mut self,
        channel: &ChannelName,
        event: &Arc<Event>,
    ) -> Result<Option<Arc<Outlet>>, LayerError> {
        self.sweep(false);
        if let Some(relay) = self.relays.values().find(|relay| relay.owns(channel)) {
            return Ok(Some(relay.outlet.clone()));
        }
        match self.put(channel, event) {
            true => Ok(None),
            false => Err(LayerError::ChannelFull(channel.clone())),
        }
    }

    /// Puts an event into every member channel; returns the relays to tell and how many were full.
    pub(super) fn group_send(&mut self, group: &GroupName, event: &Arc<Event>) -> (Vec<Arc<Outlet>>, u64) {
        self.sweep(false);
        let now = Instant::now();
        let Limits { expiry, group_expiry, .. } = self.limits;
        self.change_members(group, |members| members.expire(now, group_expiry));
        let Some(members) = self.groups.get(group) else { return (Vec::new(), 0) };
        let channels: Vec<ChannelName> = members.channels.keys().cloned().collect();
        let relays = members.relays.iter();
        let outlets = relays.filter_map(|id| Some(self.relays.get(id)?.outlet.clone())).collect();
        let mut dead = HashSet::new();
        let mut missed = 0;
        for channel in channels {
            if self.channels.get_mut(&channel).is_some_and(|mailbox| mailbox.is_deserted(now, expiry)) {
                dead.insert(channel);
            } else if !self.put(&channel, event) {
                missed += 1;
            }
        }
        self.bury(&dead);
        (outlets, missed)
    }

    fn put(&mut self, channel: &ChannelName, event: &Arc<Event>) -> bool {
        let now = Instant::now();
        let mailbox = match self.channels.get_mut(channel) {
            Some(mailbox) => mailbox,
            None => self.channels.entry(channel.clone()).or_insert_with(Mailbox::new),
        };
        mailbox.expire(now, self.limits.expiry);
        if mailbox.events.len() >= self.limits.capacity.of(channel.as_str()) {
            return false;
        }
        let unread = Unread::new(event, &self.bytes);
        let (bytes, all) = (mailbox.bytes + unread.bytes, self.bytes.load(Ordering::Relaxed));
        if (bytes > CHANNEL_BYTES && !mailbox.events.is_empty()) || (all > ALL_BYTES && all > unread.bytes) {
            if mailbox.events.is_empty() && mailbox.waiters == 0 {
                self.channels.remove(channel);
            }
            return false;
        }
        mailbox.bytes = bytes;
        mailbox.events.push_back((now, unread));
        mailbox.notify.notify_one();
        true
    }

    pub(super) fn start_waiting(&mut self, channel: &ChannelName) -> Arc<Notify> {
        let mailbox = self.channels.entry(channel.clone()).or_insert_with(Mailbox::new);
        mailbox.waiters += 1;
        mailbox.notify.clone()
    }

    pub(super) fn stop_waiting(&mut self, channel: &ChannelName, notify: &Arc<Notify>) {
        // A mailbox removed and made anew meanwhile is not the one we waited on.
        let Some(mailbox) = self.channels.get_mut(channel) else { return };
        if Arc::ptr_eq(&mailbox.notify, notify) {
            mailbox.waiters -= 1;
            if mailbox.waiters == 0 && mailbox.events.is_empty() {
                self.channels.remove(channel);
            }
        }
    }

    pub(super) fn poll(&mut self, channel: &ChannelName, notify: &Arc<Notify>) -> Poll {
        match self.channels.get_mut(channel) {
            Some(mailbox) if Arc::ptr_eq(&mailbox.notify, notify) => {
                mailbox.expire(Instant::now(), self.limits.expiry);
                match mailbox.pop() {
                    Some(unread) => Poll::Event(unread.event.clone()),
                    None => Poll::Empty,
                }
            }
            _ => Poll::Removed,
        }
    }

    pub(super) fn remove_channel(&mut self, channel: &ChannelName) {
        if let Some(mailbox) = self.channels.remove(channel) {
            mailbox.notify.notify_waiters();
        }
        self.leave_all(channel);
    }

    fn leave_all(&mut self, channel: &ChannelName) {
        self.groups.retain(|_, members| {
            members.channels.remove(channel);
            !members.is_empty()
        });
    }

    pub(super) fn group_add(&mut self, group: &GroupName, channel: &ChannelName) {
        let members = self.groups.entry(group.clone()).or_default();
        members.channels.insert(channel.clone(), Instant::now());
    }

    pub(super) fn group_discard(&mut self, group: &GroupName, channel: &ChannelName) {
        self.change_members(group, |members| {
            members.channels.remove(channel);
        });
    }

    fn change_members(&mut self, group: &GroupName, change: impl FnOnce(&mut Members)) {
        if let Some(members) = self.groups.get_mut(group) {
            change(members);
            if members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    pub(super) fn flush(&mut self) {
        self.groups.clear();
        for relay in self.relays.values_mut() {
            relay.groups.clear();
        }
        self.channels.retain(|_, mailbox| {
            mailbox.events.clear();
            mailbox.bytes = 0;
            mailbox.waiters > 0
        });
    }

    pub(super) fn add_relay(&mut self, prefix: String, outlet: Arc<Outlet>) -> u64 {
        self.next_relay += 1;
        self.relays.insert(self.next_relay, RelayEntry { prefix, outlet, groups: HashSet::new() });
        self.next_relay
    }

    pub(super) fn relay_join(&mut self, id: u64, groups: &[GroupName]) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        for group in groups {
            relay.groups.insert(group.clone());
            self.groups.entry(group.clone()).or_default().relays.insert(id);
        }
    }

    pub(super) fn relay_leave(&mut self, id: u64, groups: &[GroupName]) {
        for group in groups {
            if let Some(relay) = self.relays.get_mut(&id) {
                relay.groups.remove(group);
            }
            self.change_members(group, |members| {
                members.relays.remove(&id);
            });
        }
    }

    pub(super) fn remove_relay(&mut self, id: u64) {
        let Some(relay) = self.relays.remove(&id) else { return };
        relay.outlet.close();
        for group in relay.groups {
            self.change_members(&group, |members| {
                members.relays.remove(&id);
            });
        }
    }

    /// Drops expired events, also on channels nobody reads, and memberships that have ended.
    pub(super) fn sweep(&mut self, at_once: bool) {
        let now = Instant::now();
        if !at_once && now.duration_since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now;
        let Limits { expiry, group_expiry, .. } = self.limits;
        let channels = self.channels.iter_mut();
        let dead = channels.filter_map(|(name, mailbox)| mailbox.is_deserted(now, expiry).then(|| name.clone()));
        let dead = dead.collect();
        self.bury(&dead);
        // What is sent to a group ends its old memberships anyway; this is for the others.
        if at_once || now.duration_since(self.groups_swept) >= group_expiry / 8 {
            self.groups_swept = now;
            self.groups.retain(|_, members| {
                members.expire(now, group_expiry);
                !members.is_empty()
            });
        }
    }

    /// Channels whose events expired unread leave their groups: the reader is gone, and nothing else
    /// would end the membership for a day.
    fn bury(&mut self, dead: &HashSet<ChannelName>) {
        if dead.is_empty() {
            return;
        }
        self.groups.retain(|_, members| {
            members.channels.retain(|channel, _| !dead.contains(channel));
            !members.is_empty()
        });
        for channel in dead {
            if self.channels.get(channel).is_some_and(|mailbox| mailbox.events.is_empty()) {
                self.channels.remove(channel);
            }
        }
    }
}

impl Mailbox {
    fn new() -> Self {
        Self { events: VecDeque::new(), bytes: 0, notify: Arc::new(Notify::new()), waiters: 0 }
    }

    /// Drops what is too old; tells whether that was lost because nobody reads any more.
    fn is_deserted(&mut self, now: Instant, expiry: Duration) -> bool {
        self.expire(now, expiry) && self.waiters == 0
    }

    /// Drops what is too old; tells whether there was any.
    fn expire(&mut self, now: Instant, expiry: Duration) -> bool {
        let before = self.events.len();
        while self.events.front().is_some_and(|(sent, _)| now.duration_since(*sent) >= expiry) {
            self.pop();
        }
        self.events.len() < before
    }

    fn pop(&mut self) -> Option<Unread> {
        let (_, unread) = self.events.pop_front()?;
        self.bytes -= unread.bytes;
        Some(unread)
    }
}

impl Members {
    fn expire(&mut self, now: Instant, group_expiry: Duration) {
        self.channels.retain(|_, added| now.duration_since(*added) < group_expiry);
    }

    fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.relays.is_empty()
    }
}

impl RelayEntry {
    fn owns(&self, channel: &ChannelName) -> bool {
        channel.as_str().strip_prefix(&self.prefix).is_some_and(|local| local.len() == 16)
    }
}
