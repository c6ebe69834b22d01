//! What the layer's handles and its tasks share. Tasks hold this, never the layer itself, so that the
//! layer ends with its last handle.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    clock::Clock,
    health::{Health, Part},
    keys,
    queues::{Queue, Readers},
    scripts,
    settings::Settings,
    state::{Outbound, State},
};
use crate::{
    ChannelName, GroupName, LayerError, Text,
    codec::{AgeLimit, Body, Codec, Route, Routing},
    name,
    redis::{
        answer::Answer,
        commander::{Failure, Heard, PATIENCE, Pending},
        commands::Commands,
    },
    shard::shard,
    stats::Counters,
};

/// How many seconds ahead of now our memberships are dated. Renewed every 20 seconds, they are never
/// old, not even for a sender whose `group_expiry` is a second or whose clock is a minute late.
pub(super) const AHEAD: u64 = 60;

/// How long lines about one thing that may come often are apart.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Shared {
    pub(super) prefix: String,
    pub(super) settings: Settings,
    pub(super) codec: Codec,
    pub(super) commands: Commands,
    pub(super) state: Mutex<State>,
    /// Our client ids: each has a queue of its own per channel prefix.
    pub(super) clients: Vec<String>,
    /// Of every shard, as they may be different servers.
    pub(super) clocks: Box<[Clock]>,
    pub(super) health: Health,
    pub(super) counters: Arc<Counters>,
    pub(super) demand: Demand,
    /// Told when a relay's handle is gone.
    pub(super) relay_gone: Notify,
    /// Client ids whose node is gone, as the last heartbeat on each shard found.
    pub(super) dead: Box<[Mutex<HashSet<String>>]>,
    /// Makes members of queues unique and keeps those of one moment in order.
    serial: AtomicU64,
    /// Probes that came back, by their address.
    probes: Mutex<HashSet<String>>,
    /// When something that may come often was logged last, by what it was.
    warned: Mutex<HashMap<&'static str, Instant>>,
    /// Whether everything was there once.
    was_whole: AtomicBool,
}

/// Whether anybody wants what the queues hold. Python leaves messages in Redis until somebody
/// receives, and senders find a full queue by that; so do we, until there is a relay.
#[derive(Default)]
pub(super) struct Demand {
    relays: AtomicUsize,
    changed: Notify,
}

impl Demand {
    pub(super) fn set_relays(&self, relays: bool) {
        self.relays.store(usize::from(relays), Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(super) fn has_relays(&self) -> bool {
        self.relays.load(Ordering::Acquire) > 0
    }

    pub(super) fn raise(&self) {
        self.changed.notify_waiters();
    }

    /// Returns when somebody wants a message: a relay, or a receiver that is `hungry`.
    pub(super) async fn wanted(&self, hungry: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Armed before looking, so that a change in between wakes us.
            changed.as_mut().enable();
            if self.has_relays() || hungry() {
                return;
            }
            changed.await;
        }
    }
}

/// One message taken out of a queue.
pub(super) struct Arrival {
    pub(super) message: Vec<u8>,
    pub(super) score: f64,
}

impl Shared {
    pub(super) fn new(
        prefix: String,
        settings: Settings,
        codec: Codec,
        commands: Commands,
        health: Health,
        counters: Arc<Counters>,
    ) -> Self {
        let clients = (0..settings.clients).map(|_| name::random_hex32()).collect();
        let shards = commands.shards();
        Self {
            prefix,
            settings,
            codec,
            commands,
            state: Mutex::default(),
            clients,
            clocks: (0..shards).map(|_| Clock::new()).collect(),
            health,
            counters,
            demand: Demand::default(),
            relay_gone: Notify::new(),
            dead: (0..shards).map(|_| Mutex::default()).collect(),
            serial: AtomicU64::new(0),
            probes: Mutex::default(),
            warned: Mutex::default(),
            was_whole: AtomicBool::new(false),
        }
    }

    // ---- names ----

    pub(super) fn shard_of(&self, name: &str) -> usize {
        shard(name.as_bytes(), self.commands.shards())
    }

    pub(super) fn group_key(&self, group: &GroupName) -> Bytes {
        keys::group(&self.prefix, group)
    }

    /// Whether a channel's queue is one of ours.
    pub(super) fn owns(&self, channel: &ChannelName) -> bool {
        keys::client_of(channel.as_str()).is_some_and(|id| self.clients.iter().any(|client| client == id))
    }

    // ---- bytes ----

    /// A message as it stands in a queue: random bytes, then the payload.
    pub(super) fn message(&self, body: &Body, route: Route<'_>) -> Result<Bytes, LayerError> {
        let mut out = Vec::with_capacity(256);
        self.write_prefix(&mut out);
        self.codec.append_payload(&mut out, body, route, Some(self.clocks[0].now() as u64))?;
        Ok(out.into())
    }

    /// Where the random bytes have room for it they begin with a counter: members of equal score are
    /// sorted by their bytes, and so those of this process stay in order.
    fn write_prefix(&self, out: &mut Vec<u8>) {
        const COUNTER: usize = 6;
        let length = self.settings.random_prefix;
        if length >= COUNTER + 4 {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            out.extend_from_slice(&serial[8 - COUNTER..]);
        }
        while out.len() < length {
            let random: [u8; 16] = rand::random();
            out.extend_from_slice(&random[..random.len().min(length - out.len())]);
        }
    }

    // ---- memberships ----

    /// Adds members that are to be kept, all of them or none. Waits for Redis, [`PATIENCE`] at most.
    pub(super) async fn join(
        &self,
        note: impl Fn(&mut State) -> Vec<(GroupName, ChannelName)>,
    ) -> Result<(), LayerError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Noted and queued under one lock: see the state's head.
            let started = {
                let mut state = self.state.lock();
                let pairs = note(&mut state);
                self.start_join(pairs.iter().map(|(group, member)| (group, member)))
            };
            match self.joined(started, deadline).await {
                Ok(()) => return Ok(()),
                // Done twice is as good as once.
                Err(Failure::NotConnected | Failure::Lost(_)) if Instant::now() < deadline => {}
                Err(failure) => return Err(failure.into()),
            }
            if timeout_at(deadline, self.commands.connected()).await.is_err() {
                return Err(Failure::NotConnected.into());
            }
        }
    }

    pub(super) fn start_join<'m>(
        &self,
        pairs: impl Iterator<Item = (&'m GroupName, &'m ChannelName)>,
    ) -> Vec<Result<Pending, Failure>> {
        let mut by_shard: Vec<Vec<(Bytes, Bytes)>> = vec![Vec::new(); self.commands.shards()];
        for (group, member) in pairs {
            let member = Bytes::copy_from_slice(member.as_str().as_bytes());
            by_shard[self.shard_of(group.as_str())].push((self.group_key(group), member));
        }
        let mut started = Vec::new();
        for (shard, pairs) in by_shard.iter().enumerate() {
            for pairs in pairs.chunks(self.commands.keys_per_command()) {
                let command = scripts::join(pairs, AHEAD, self.settings.group_expiry + AHEAD);
                started.push(self.commands.start(shard, &pairs[0].0, command));
            }
        }
        started
    }

    /// Waits for all of these joins; the first failure counts.
    pub(super) async fn joined(
        &self,
        started: Vec<Result<Pending, Failure>>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let mut result = Ok(());
        for pending in started {
            let answer = answer_of(pending, deadline).await;
            if matches!(&answer, Ok(answer) if answer.as_int() != Some(0)) {
                tracing::error!("a group of ours was no sorted set: deleted");
            }
            result = result.and(answer.map(drop));
        }
        result
    }

    /// Takes members out of groups, here by `forget` and then in Redis. What Redis does not hear is
    /// told again later, so this fails only when Redis refuses.
    pub(super) async fn leave(
        &self,
        forget: impl FnOnce(&mut State) -> Vec<(GroupName, ChannelName)>,
    ) -> Result<(), LayerError> {
        let deadline = Instant::now() + PATIENCE;
        let started: Vec<_> = {
            let mut state = self.state.lock();
            let left = forget(&mut state);
            left.into_iter().map(|(group, member)| (self.start_leave(&group, &member), group, member)).collect()
        };
        let mut result = Ok(());
        for (pending, group, member) in started {
            match answer_of(pending, deadline).await {
                Ok(_) => {}
                Err(failure @ Failure::Refused(_)) => result = Err(failure.into()),
                Err(_) => self.state.lock().mark_stale(&group, &member),
            }
        }
        result
    }

    pub(super) fn start_leave(&self, group: &GroupName, member: &ChannelName) -> Result<Pending, Failure> {
        let key = self.group_key(group);
        let command = scripts::leave(&key, &[member.as_str().as_bytes()]);
        self.commands.start(self.shard_of(group.as_str()), &key, command)
    }

    // ---- relays ----

    /// What stands in Redis for all relays of this process in a group, and its local part.
    pub(super) fn relay_member(&self, group: &GroupName) -> (ChannelName, String) {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(group.as_str());
        let client = &self.clients[usize::from(hash[31]) % self.clients.len()];
        let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let tag = format!("g{hex}");
        (ChannelName::trusted(format!("specific.{client}!{tag}")), tag)
    }

    /// A name that leads to one relay; its client id spreads them over the queues.
    pub(super) fn relay_channel(&self, relay: u64) -> ChannelName {
        let random = name::random_hex16();
        let client = &self.clients[usize::from(random.as_bytes()[15]) % self.clients.len()];
        ChannelName::trusted(format!("specific.{client}!r{relay:016x}{random}"))
    }

    /// The relay a local part leads to.
    pub(super) fn relay_of(local: &str) -> Option<u64> {
        let hex = local.strip_prefix('r').filter(|hex| hex.len() == 32)?;
        u64::from_str_radix(hex.get(..16)?, 16).ok()
    }

    /// Forgets relays whose handle is gone and leaves their groups.
    pub(super) async fn end_dead_relays(&self) {
        let dead = self.state.lock().dead_relays();
        for (id, groups) in dead {
            let members: Vec<_> = groups.iter().map(|group| (group, self.relay_member(group))).collect();
            // What Redis did not hear is remembered as stale.
            let _ = self
                .leave(|state| {
                    let mut left: Vec<_> = members
                        .iter()
                        .filter(|(group, (member, tag))| state.relay_leave(id, group, member, tag))
                        .map(|(group, (member, _))| ((*group).clone(), member.clone()))
                        .collect();
                    let owns = |channel: &ChannelName| {
                        let local = channel.as_str().split_once('!').map_or("", |(_, local)| local);
                        self.owns(channel) && Self::relay_of(local) == Some(id)
                    };
                    left.extend(state.close_relay(id, owns));
                    self.demand.set_relays(state.has_relays());
                    left
                })
                .await;
        }
    }

    /// Notes that a part of the layer is there or not, and tells the relays if that makes a difference.
    pub(super) fn set_part(&self, part: Part, there: bool) {
        self.health.set(part, there, |whole| {
            let mut outbound = Outbound::default();
            self.state.lock().tell(!whole, &mut outbound);
            outbound.hand_over();
            match whole {
                true => {
                    if self.was_whole.swap(true, Ordering::Relaxed) {
                        self.counters.reconnected();
                    }
                    tracing::debug!("channel layer complete");
                }
                false => tracing::warn!("channel layer incomplete: events may be late or missing"),
            }
        });
    }

    // ---- arrivals ----

    /// Seconds a message may live at most: senders go by whole seconds, and throw away what is older than
    /// `expiry` at the last one.
    pub(super) fn longest_life(&self) -> f64 {
        self.settings.expiry as f64 + 1.0
    }

    /// Wakes the readers of a queue that wait for others of their queues only.
    pub(super) fn wake_readers_of(&self, queue: &Queue) {
        self.wake_readers(&queue.readers, |shard| queue.is_missed(shard));
    }

    /// Wakes the readers that wait for some of their queues only.
    pub(super) fn wake_readers(&self, readers: &Readers, misses: impl Fn(usize) -> bool) {
        let Some(key) = &readers.wake_key else { return };
        for shard in (0..self.commands.shards()).filter(|shard| misses(*shard)) {
            // What cannot be sent is not missed for long: a pop waits for seconds only.
            for command in [scripts::wake(key), scripts::expire(key, self.settings.expiry)] {
                let _ = self.commands.start_with(shard, key, command, None, Heard::AtOnce);
            }
        }
    }

    /// Takes in what came out of one of our queues on a shard, in order.
    pub(super) fn take_in(&self, shard: usize, arrivals: Vec<Arrival>) {
        let life = self.longest_life();
        let (now, here) = (self.clocks[shard].now(), Instant::now());
        let oldest = self.clocks[shard].oldest(life);
        let age = AgeLimit { now: now as u64, max_age: self.settings.expiry + 10 };
        let mut outbound = Outbound::default();
        for Arrival { message, score } in arrivals {
            // Nobody has looked at the age of what waited: senders do, and none may have come since.
            if score < oldest {
                self.counters.expired(1);
                continue;
            }
            let payload = message.get(self.settings.random_prefix..).unwrap_or_default();
            let Ok((event, routing)) = self.codec.decode_routed(payload, Some(age)) else {
                self.undecodable(message.len());
                continue;
            };
            if let Routing::One(name) = &routing
                && self.is_probe(name)
            {
                continue;
            }
            self.counters.received(1);
            let event = Arc::new(event);
            let left = Duration::from_secs_f64((score + life - now).clamp(0.0, life));
            let state = self.state.lock();
            let (dropped, nobody) = match &routing {
                Routing::None => (0, 1),
                Routing::One(name) => {
                    state.route([name.as_str()].into_iter(), &event, here + left, Self::relay_of, &mut outbound)
                }
                Routing::Many(names) => {
                    let mut seen = HashSet::with_capacity(names.len());
                    let once = names.iter().map(Text::as_str).filter(|name| seen.insert(*name));
                    state.route(once, &event, here + left, Self::relay_of, &mut outbound)
                }
            };
            drop(state);
            self.counters.dropped(dropped);
            self.counters.unclaimed(nobody);
        }
        outbound.hand_over();
    }

    /// Notes a probe that came back.
    fn is_probe(&self, name: &str) -> bool {
        let ours = name.split_once('!').is_some_and(|(_, local)| local.starts_with(super::keeper::PROBE))
            && keys::client_of(name).is_some_and(|id| self.clients.iter().any(|client| client == id));
        if ours {
            let mut probes = self.probes.lock();
            // One per queue and shard; anything else is somebody's joke.
            if probes.len() < self.clients.len() * self.commands.shards() {
                probes.insert(name.to_owned());
            }
        }
        ours
    }

    /// Whether the probe with this address has come back since the last time.
    pub(super) fn take_probe(&self, address: &str) -> bool {
        self.probes.lock().remove(address)
    }

    /// Counts a message nobody can read; logs its size, never its content, now and then.
    pub(super) fn undecodable(&self, bytes: usize) {
        let total = self.counters.undecodable();
        if self.may_warn("undecodable") {
            tracing::warn!(bytes, total, "undecodable message skipped");
        }
    }

    /// Whether it is time for another line about something that may come often.
    pub(super) fn may_warn(&self, about: &'static str) -> bool {
        let mut warned = self.warned.lock();
        let now = Instant::now();
        let may = warned.get(about).is_none_or(|at| now.duration_since(*at) >= WARN_EVERY);
        if may {
            warned.insert(about, now);
        }
        may
    }
}

/// What became of a command, if it was queued at all.
pub(super) async fn answer_of(pending: Result<Pending, Failure>, deadline: Instant) -> Result<Value, Failure> {
    match pending {
        Ok(pending) => pending.answer_by(deadline).await,
        Err(failure) => Err(failure),
    }
}
