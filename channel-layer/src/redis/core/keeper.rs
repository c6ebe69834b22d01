//! Keeping a shard's memberships alive: one task per shard renews them, says that we live, restores
//! everything when Redis is back or has lost it, and clears away what dead nodes have left.

use std::{collections::HashSet, sync::Arc};

use redis::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    health::Part,
    keys,
    queues::Queue,
    scripts,
    shared::{Shared, answer_of},
};
use crate::{
    ChannelName, Event, GroupName, LayerError,
    codec::Route,
    redis::{
        answer::{Answer, command},
        commander::{Failure, Heard, PATIENCE},
        pattern,
    },
};

/// For how many heartbeats ours must have come through before anybody else is thought dead.
const STEADY: u32 = 2;
/// How often memberships are renewed, in heartbeats: every 20 seconds.
const RENEW_EVERY: u64 = 4;
/// How often the way through Redis and back is probed, in heartbeats.
const PROBE_EVERY: u64 = 2;
/// How many probes of a queue may be missing.
const PROBES: u32 = 2;
/// How many renewing commands are under way at once.
const WINDOW: usize = 256;
/// How long a node may take to clear away a dead one.
const SWEEP: u64 = 60;
/// How many heartbeats renew memberships after Redis had lost them.
const EAGER: u32 = 3;
/// How many groups it looks at together.
const SWEEP_ROUND: usize = 128;

/// Keeps one shard; for ever.
pub(super) async fn keep(shared: Arc<Shared>, shard: usize, queues: Vec<Arc<Queue>>) {
    let mut keeper = Keeper {
        shared: &shared,
        shard,
        probes: queues.into_iter().map(Probe::new).collect(),
        connection: 0,
        skewed: false,
        complained: false,
        unsure: false,
        steady_since: None,
        eager: 0,
    };
    let mut connections = shared.commands.connections(shard);
    // What has happened before counts too.
    connections.mark_changed();
    let mut tick = interval(shared.settings.heartbeat.mul_f64(0.9 + rand::random::<f64>() / 5.0));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = 0_u64;
    loop {
        tokio::select! {
            changed = connections.changed() => {
                if changed.is_err() {
                    return;
                }
                keeper.connection = *connections.borrow_and_update();
                shared.set_part(Part::Shard(shard), false);
                keeper.steady_since = None;
                if keeper.connection % 2 == 1 {
                    keeper.restore().await;
                }
            }
            _ = tick.tick() => {
                beats += 1;
                keeper.beat(beats).await;
            }
            () = shared.relay_gone.notified(), if shard == 0 => shared.end_dead_relays().await,
        }
    }
}

struct Keeper<'a> {
    shared: &'a Shared,
    shard: usize,
    probes: Vec<Probe>,
    /// The number of the connection on which everything was restored last.
    connection: u64,
    skewed: bool,
    complained: bool,
    /// Whether the last heartbeat had no answer.
    unsure: bool,
    /// Since when heartbeats have come through.
    steady_since: Option<Instant>,
    /// So many more heartbeats renew too: another node may still have thought us dead and thrown our
    /// members out after they were restored.
    eager: u32,
}

/// A message to ourselves, from time to time: a connection can be open and deaf.
struct Probe {
    queue: Arc<Queue>,
    sent: u32,
}

impl Probe {
    fn new(queue: Arc<Queue>) -> Self {
        Self { queue, sent: 0 }
    }
}

impl Keeper<'_> {
    /// Everything Redis must hold for us, on a new connection or after it was lost.
    async fn restore(&mut self) {
        let restored = async {
            if !self.heartbeat().await? {
                self.eager = EAGER;
            }
            self.renew().await
        };
        match restored.await {
            Ok(()) => {
                self.complained = false;
                self.shared.set_part(Part::Shard(self.shard), true);
                self.shared.warn_of_eviction(self.shard).await;
            }
            // The next heartbeat tries again.
            Err(failure) => {
                if let Failure::Refused(text) = &failure {
                    self.shared.health.refused(text);
                }
                self.complain(&failure, "memberships could not be restored");
            }
        }
    }

    async fn beat(&mut self, beats: u64) {
        let connection = *self.shared.commands.connections(self.shard).borrow();
        // A new connection is for `restore`, which comes next: what is whole now would be told as lost then.
        if connection != self.connection || connection.is_multiple_of(2) {
            return;
        }
        let known = match self.heartbeat().await {
            // An answer that was lost may have said that we were unknown; now we are known again.
            Ok(known) => known && !std::mem::take(&mut self.unsure),
            Err(failure) => {
                self.steady_since = None;
                self.unsure = true;
                match failure {
                    // Who has no right to it is taken for dead by the others.
                    Failure::Refused(_) => self.complain(&failure, "the others cannot be told that this node lives"),
                    _ => tracing::debug!(%failure, shard = self.shard, "no heartbeat"),
                }
                return;
            }
        };
        let part = Part::Shard(self.shard);
        if !known {
            // Redis has lost our keys without losing us: flushed, or emptied by eviction.
            tracing::warn!(shard = self.shard, "Redis has lost this node's keys: memberships are restored");
            self.shared.set_part(part.clone(), false);
            self.eager = EAGER;
        }
        let missing = self.shared.health.is_missing(&part);
        let eager = self.eager > 0;
        self.eager = self.eager.saturating_sub(1);
        if missing || eager || beats.is_multiple_of(RENEW_EVERY) {
            match self.renew().await {
                Ok(()) => {
                    self.complained = false;
                    if missing {
                        self.shared.set_part(part, true);
                    }
                }
                Err(failure) => self.complain(&failure, "memberships could not be renewed"),
            }
        }
        self.sweep().await;
        if beats.is_multiple_of(PROBE_EVERY) {
            self.probe();
        }
    }

    /// Says what cannot be kept up; what Redis refuses will not end by itself, and is counted.
    fn complain(&mut self, failure: &Failure, what: &str) {
        if let Failure::Refused(_) = failure {
            self.shared.counters.upkeep_refused();
        }
        // Once until it works again: it comes with every beat.
        match std::mem::replace(&mut self.complained, true) {
            false => tracing::warn!(%failure, shard = self.shard, "{what}"),
            true => tracing::debug!(%failure, shard = self.shard, "{what}"),
        }
    }

    /// Says that we live; tells whether Redis still knew.
    async fn heartbeat(&mut self) -> Result<bool, Failure> {
        let key = keys::clients(&self.shared.settings.namespace, &self.shared.prefix);
        let command = scripts::heartbeat(&key, self.shared.settings.alive.as_secs_f64(), &self.shared.clients);
        let answer = self.shared.commands.call(self.shard, &key, command, PATIENCE).await?;
        let odd = || Failure::Refused("an odd answer to a heartbeat".into());
        let items = answer.into_list().ok_or_else(odd)?;
        let [new, seconds, micros, dead] = <[Value; 4]>::try_from(items).map_err(|_| odd())?;
        let number = |text: Value| String::from_utf8(text.into_text()?).ok()?.parse().ok();
        let (seconds, micros) = number(seconds).zip(number(micros)).ok_or_else(odd)?;
        match self.shared.clocks[self.shard].set(seconds, micros) {
            Some(skew) if !self.skewed => {
                self.skewed = true;
                tracing::warn!(skew, "this node's clock and Redis' differ by so many seconds");
            }
            Some(_) => {}
            None => self.skewed = false,
        }
        // After an outage nobody has been heard from: the others get time to say that they live.
        let steady = self.steady_since.get_or_insert_with(Instant::now).elapsed();
        let steady = steady > STEADY * self.shared.settings.heartbeat;
        *self.shared.dead[self.shard].lock() = texts(dead).filter(|_| steady).collect();
        Ok(new.as_int() == Some(0))
    }

    /// Dates all memberships anew, and repeats removals that were lost.
    async fn renew(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let on_shard = |group: &GroupName| self.shared.shard_of(group.as_str()) == self.shard;
        let (stale, ours) = {
            let mut state = self.shared.state.lock();
            let stale: Vec<_> = state
                .take_stale(on_shard)
                .into_iter()
                .map(|(group, member)| (self.shared.start_leave(&group, &member), group, member))
                .collect();
            let ours = state.memberships().filter(|(group, _)| on_shard(group));
            (stale, ours.map(|(group, member)| (group.clone(), member.clone())).collect::<Vec<_>>())
        };
        for (pending, group, member) in stale {
            if answer_of(pending, deadline).await.is_err() {
                self.shared.state.lock().mark_stale(&group, &member);
            }
        }
        for window in ours.chunks(WINDOW * self.shared.commands.keys_per_command()) {
            let started = {
                let state = self.shared.state.lock();
                // Only what is still wanted: see the state's head.
                let wanted = window.iter().filter(|(group, member)| state.is_member(group, member));
                self.shared.start_join(wanted.map(|(group, member)| (group, member)))
            };
            self.shared.joined(started, Instant::now() + PATIENCE).await?;
        }
        Ok(())
    }

    /// Sends a message through every queue; one that is deaf is read on a new connection.
    fn probe(&mut self) {
        // Without a relay nobody takes messages out of the queues.
        if !self.shared.demand.has_relays() {
            self.probes.iter_mut().for_each(|probe| probe.sent = 0);
            return;
        }
        for probe in &mut self.probes {
            if self.shared.take_probe(&probe_address(self.shard, &probe.queue)) {
                probe.sent = 0;
            }
            if probe.sent >= PROBES {
                tracing::warn!(shard = self.shard, "a queue is deaf: read on a new connection");
                self.shared.counters.probe_missed();
                probe.queue.readers.reset(self.shard).notify_one();
                probe.sent = 0;
            }
            if self.shared.start_probe(self.shard, &probe.queue).is_ok() {
                probe.sent += 1;
            }
        }
    }

    /// Removes the members of dead nodes from all groups of the shard, once for all nodes.
    async fn sweep(&mut self) {
        let dead: Vec<String> = self.shared.dead[self.shard].lock().iter().cloned().collect();
        if dead.is_empty() {
            return;
        }
        match self.try_sweep(&dead).await {
            Ok(Some(removed)) => {
                tracing::info!(nodes = dead.len(), removed, shard = self.shard, "members of dead nodes removed");
            }
            Ok(None) => {}
            Err(failure) => self.complain(&failure, "members of dead nodes could not be removed"),
        }
    }

    async fn try_sweep(&mut self, dead: &[String]) -> Result<Option<usize>, Failure> {
        let settings = &self.shared.settings;
        let lock = keys::sweeper(&settings.namespace, &self.shared.prefix);
        let set = command([&b"SET"[..], &lock, b"1", b"NX", b"EX", SWEEP.to_string().as_bytes()]);
        let answer = self.shared.commands.call(self.shard, &lock, set, PATIENCE).await?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let dead: HashSet<&str> = dead.iter().map(String::as_str).collect();
        let pattern = pattern::beginning_with(&keys::groups(&self.shared.prefix));
        let mut removed = 0;
        let mut lived = Instant::now();
        for groups in self.shared.scan(self.shard, &pattern).await?.chunks(SWEEP_ROUND) {
            removed += self.remove_ghosts(groups, &dead).await?;
            // Many groups take long, and nobody must think us dead meanwhile.
            if lived.elapsed() > self.shared.settings.heartbeat {
                lived = Instant::now();
                self.heartbeat().await?;
            }
        }
        let clients = keys::clients(&settings.namespace, &self.shared.prefix);
        let ids: Vec<&[u8]> = dead.iter().map(|id| id.as_bytes()).collect();
        self.shared.commands.call(self.shard, &clients, scripts::leave(&clients, &ids), PATIENCE).await?;
        self.shared.commands.call(self.shard, &lock, scripts::delete(&lock), PATIENCE).await?;
        Ok(Some(removed))
    }

    async fn remove_ghosts(&self, groups: &[Vec<u8>], dead: &HashSet<&str>) -> Result<usize, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let commands = &self.shared.commands;
        let ask = |group: &Vec<u8>| commands.start(self.shard, group, scripts::all_members(group));
        let asked: Vec<_> = groups.iter().map(ask).collect();
        let (mut leaving, mut removed) = (Vec::new(), 0);
        for (pending, group) in asked.into_iter().zip(groups) {
            let members = match answer_of(pending, deadline).await {
                Ok(members) => members,
                // Something else under a group's name is none of our business.
                Err(Failure::Refused(_)) => continue,
                Err(failure) => return Err(failure),
            };
            let ghosts: Vec<String> =
                texts(members).filter(|name| keys::client_of(name).is_some_and(|id| dead.contains(id))).collect();
            for some in ghosts.chunks(1_000) {
                let names: Vec<&[u8]> = some.iter().map(String::as_bytes).collect();
                leaving.push(commands.start(self.shard, group, scripts::leave(group, &names)));
            }
            removed += ghosts.len();
        }
        for pending in leaving {
            answer_of(pending, deadline).await?;
        }
        Ok(removed)
    }
}

fn texts(list: Value) -> impl Iterator<Item = String> {
    let items = list.into_list().unwrap_or_default();
    items.into_iter().filter_map(|item| String::from_utf8(item.into_text()?).ok())
}

impl Shared {
    /// All keys of a shard that match a pattern.
    pub(super) async fn scan(&self, shard: usize, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let odd = || Failure::Refused("an odd answer to SCAN".into());
        let mut found = HashSet::new();
        for server in self.commands.servers(shard) {
            let mut cursor = b"0".to_vec();
            loop {
                let answer = server.call(scripts::scan(&cursor, pattern), PATIENCE).await?;
                let [next, keys] = <[Value; 2]>::try_from(answer.into_list().ok_or_else(odd)?).map_err(|_| odd())?;
                found.extend(keys.into_list().ok_or_else(odd)?.into_iter().filter_map(Answer::into_text));
                cursor = next.into_text().ok_or_else(odd)?;
                if cursor == b"0" {
                    break;
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    fn start_probe(&self, shard: usize, queue: &Queue) -> Result<(), LayerError> {
        let channel = ChannelName::trusted(probe_address(shard, queue));
        let body = self.codec.body(&Event::new("channel_layer.probe"))?;
        let message = self.message(&body, Route::One(channel.as_str()))?;
        let parcel = scripts::Parcel { queue: queue.key.clone(), message, capacity: usize::MAX >> 1 };
        let command = scripts::deliver(&[parcel], self.settings.expiry);
        Ok(self.commands.start_with(shard, &queue.key, command, None, Heard::AtOnce).map_err(|(failure, _)| failure)?)
    }
}

/// What the local part of a probe's address begins with.
pub(super) const PROBE: &str = "probe";

fn probe_address(shard: usize, queue: &Queue) -> String {
    format!("{}{PROBE}{shard}", queue.name)
}
