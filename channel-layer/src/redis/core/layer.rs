//! The layer itself: what its operations do, here and in Redis.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::timeout};

use super::{
    builder::RedisCoreBuilder,
    health::{Health, Part},
    keeper, keys,
    plain::{self, PlainChannel},
    queues::{Queue, Readers},
    reader,
    relay::CoreRelay,
    scripts::{self, Parcel},
    sender::Sender,
    settings::Settings,
    shared::Shared,
    state::Outbound,
};
use crate::{
    ChannelLayer, ChannelName, Event, GroupName, LayerError, LayerStats, NameError, Relay, RelaySink,
    codec::{Codec, Route},
    name,
    redis::{
        Host,
        answer::Answer,
        commander::{Failure, PATIENCE},
        commands::Commands,
        pattern,
        topology::Topology,
    },
    stats::Counters,
};

/// How long `ping` may take.
const PING: Duration = Duration::from_secs(2);
/// The prefix of channel names, unless another one is asked for.
const SPECIFIC: &str = "specific";
/// How many plain channels a layer reads at a time, and in a cluster queues of its own beside those it always
/// has: each needs a connection.
const MAX_READERS: usize = 64;

/// Carries events through queues in Redis, byte for byte as `channels_redis.core.RedisChannelLayer`
/// 4.x: Django processes, workers and Rust services share groups and channels.
///
/// Events wait in Redis until somebody receives them, up to a capacity and an age. A group is a set in
/// Redis of its members; a process that serves many members joins each group once with a
/// [`Relay`], so that a send costs one message per process, whatever the number of members there.
///
/// Connections per shard: one for commands, one for each client id (4, see
/// [`client_ids`](RedisCoreBuilder::client_ids)), whatever the number of channels and prefixes, and one for each
/// plain channel somebody receives on. In a cluster a channel prefix has a connection of its own for each
/// client id that has channels of it. They come back by themselves; memberships are restored, and relays
/// are told. Memberships are renewed every 20 seconds; those of a process that has died without
/// [`close`](ChannelLayer::close) are removed by the others within 2 minutes.
///
/// A Redis user needs the commands ZADD, ZREM, ZRANGE, ZCOUNT, ZSCORE, ZREMRANGEBYSCORE,
/// ZRANGEBYSCORE, ZPOPMIN, BZPOPMIN, EXPIRE, EVAL, TIME, SET, DEL, TYPE, SCAN and PING, on keys that begin
/// with the prefix or the namespace. It may use INFO, to warn of a Redis that evicts keys, ROLE, to leave a
/// server that has become a replica on all connections at once, and BZMPOP (Redis 7), which makes reading cheaper.
///
/// Clones share everything; with the last clone and the last [`Relay`] the connections end.
#[derive(Clone)]
pub struct RedisCoreLayer(Arc<Inner>);

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    senders: Vec<Sender>,
    /// The queue of each client id that is always read.
    home: Vec<Arc<Queue>>,
    /// The other queues that still are, by name.
    queues: Mutex<HashMap<String, Weak<Queue>>>,
    pub(super) plain: Mutex<HashMap<ChannelName, Arc<PlainChannel>>>,
    /// Spreads new channels over the client ids, and plain sends over the shards.
    turn: AtomicUsize,
    shard_turn: AtomicUsize,
    /// Aborted when this is dropped.
    tasks: Mutex<JoinSet<()>>,
    /// Those that keep us among the living.
    pub(super) keepers: Mutex<JoinSet<()>>,
}

impl RedisCoreLayer {
    /// Starts a set-up for one Redis. `url` is one of the texts of [`Host`]:
    /// `redis://[[user]:password@]host[:port][/db]`, `rediss://…` for TLS, `unix:///path`,
    /// `redis+sentinel://host,host/name` or `redis+cluster://host,host`.
    pub fn builder(url: &str) -> RedisCoreBuilder {
        Self::builder_with_hosts([url])
    }

    /// Starts a set-up with several hosts, each a text as for [`builder`](Self::builder) or a [`Host`].
    /// They are shards, and their order counts: it must be that of `hosts` in Python.
    pub fn builder_with_hosts(hosts: impl IntoIterator<Item: Into<Host>>) -> RedisCoreBuilder {
        RedisCoreBuilder::new(hosts.into_iter().map(Into::into).collect())
    }

    /// Connects with all defaults; see [`RedisCoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, LayerError> {
        Self::builder(url).connect().await
    }

    pub(super) fn start(
        prefix: String,
        settings: Settings,
        codec: Codec,
        topology: &Topology,
    ) -> Result<Self, LayerError> {
        let (commands, command_tasks) = Commands::new(topology, "channel-layer:command");
        let shards = commands.shards();
        let health = Health::new((0..shards).map(Part::Shard));
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared::new(prefix, settings, codec, commands, health, counters));
        let mut tasks = JoinSet::new();
        command_tasks.into_iter().for_each(|task| drop(tasks.spawn(task)));
        let mut senders = Vec::new();
        for shard in 0..shards {
            let (sender, task) = Sender::new(shared.clone(), shard);
            senders.push(sender);
            tasks.spawn(task);
        }
        let home = home_queues(&shared);
        for queue in &home {
            for shard in 0..shards {
                shared.set_part(Part::Reader(shard, queue.readers.name.clone()), false);
                tasks.spawn(reader::read(shared.clone(), shard, queue.readers.clone()));
            }
        }
        let mut keepers = JoinSet::new();
        for shard in 0..shards {
            keepers.spawn(keeper::keep(shared.clone(), shard, home.clone()));
        }
        Ok(Self(Arc::new(Inner {
            shared,
            senders,
            home,
            queues: Mutex::default(),
            plain: Mutex::default(),
            turn: AtomicUsize::new(0),
            shard_turn: AtomicUsize::new(0),
            tasks: Mutex::new(tasks),
            keepers: Mutex::new(keepers),
        })))
    }

    /// Returns when everything is there; if that is not soon, with the reason.
    pub(super) async fn ready(&self, limit: Duration) -> Result<(), LayerError> {
        let health = &self.0.shared.health;
        let whole = tokio::select! {
            () = health.whole() => true,
            () = health.denied() => false,
            () = tokio::time::sleep(limit) => false,
        };
        match health.refusal() {
            _ if whole => Ok(()),
            Some(text) => Err(Failure::Refused(text).into()),
            None => Err(LayerError::Timeout),
        }
    }
}

impl Inner {
    /// A queue of a client id; read from now on, as long as somebody holds it.
    fn queue(&self, client: usize, name: &str) -> Result<Arc<Queue>, LayerError> {
        let home = &self.home[client];
        if home.name == name {
            return Ok(home.clone());
        }
        let shared = &self.shared;
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(name).and_then(Weak::upgrade) {
            return Ok(queue);
        }
        if queues.len() == queues.capacity() {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = match home.readers.wake_key {
            Some(_) => home.readers.add(&shared.prefix, name),
            None => {
                queues.retain(|_, queue| queue.strong_count() > 0);
                if queues.len() >= MAX_READERS {
                    let text = format!("more than {MAX_READERS} queues of channel prefixes at a time in a cluster");
                    return Err(LayerError::Config(text));
                }
                let queue = Readers::with_queue(&shared.prefix, name, None, shared.commands.shards());
                let mut tasks = self.tasks.lock();
                while tasks.try_join_next().is_some() {}
                // That it is not read yet is no loss: nobody has a name in it.
                for shard in 0..shared.commands.shards() {
                    tasks.spawn(reader::read(shared.clone(), shard, queue.readers.clone()));
                }
                queue
            }
        };
        queues.insert(name.to_owned(), Arc::downgrade(&queue));
        drop(queues);
        if shared.demand.has_relays() {
            shared.wake_readers_of(&queue);
        }
        Ok(queue)
    }

    fn plain(&self, channel: &ChannelName) -> Result<Arc<PlainChannel>, LayerError> {
        let mut plain = self.plain.lock();
        if let Some(found) = plain.get(channel) {
            return Ok(found.clone());
        }
        let shards = self.shared.commands.shards();
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        if plain.len() >= MAX_READERS {
            // Nobody has it but this map and its tasks: nobody receives.
            let idle = |it: &Arc<PlainChannel>| Arc::strong_count(it) <= 1 + shards && it.is_empty();
            if let Some(name) = plain.iter().find_map(|(name, it)| idle(it).then(|| name.clone()))
                && let Some(retired) = plain.remove(&name)
            {
                retired.retire();
            }
        }
        if plain.len() >= MAX_READERS {
            return Err(LayerError::Config(format!("more than {MAX_READERS} plain channels received on at a time")));
        }
        let key = keys::queue(&self.shared.prefix, channel.as_str());
        let made = Arc::new(PlainChannel::new(key, shards));
        plain.insert(channel.clone(), made.clone());
        for shard in 0..shards {
            tasks.spawn(plain::read(self.shared.clone(), shard, made.clone()));
        }
        Ok(made)
    }

    /// Where a direct send goes: to the queue's shard, or, for a plain channel, to the next one in turn.
    fn shard_for(&self, channel: &ChannelName) -> usize {
        match channel.as_str().contains('!') {
            true => self.shared.shard_of(channel.non_local()),
            false => self.shard_turn.fetch_add(1, Ordering::Relaxed) % self.shared.commands.shards(),
        }
    }
}

/// The queue that each client id always has.
fn home_queues(shared: &Shared) -> Vec<Arc<Queue>> {
    // In a cluster a command cannot name keys of several queues.
    let together = shared.commands.keys_per_command() > 1;
    let home = |client: &String| {
        let wake_key = together.then(|| keys::queue(&shared.prefix, &format!("wake.{client}!")));
        let name = format!("{SPECIFIC}.{client}!");
        Readers::with_queue(&shared.prefix, &name, wake_key, shared.commands.shards())
    };
    shared.clients.iter().map(home).collect()
}

/// Checked here, because a name from `parse_any` may be none in this layer.
fn check_channel(channel: &ChannelName) -> Result<(), NameError> {
    ChannelName::parse(channel.as_str()).map(drop)
}

#[async_trait]
impl ChannelLayer for RedisCoreLayer {
    async fn new_channel(&self, prefix: &str) -> Result<ChannelName, LayerError> {
        let prefix = if prefix.is_empty() { SPECIFIC } else { prefix };
        // 33 characters of a prefix leave room for the rest.
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.shared.clients.len();
        let local = name::random_hex32();
        let client = &self.0.shared.clients[turn];
        let name = ChannelName::parse(&format!("{prefix}.{client}!{local}"))
            .map_err(|error| NameError { kind: "channel prefix", ..error })?;
        let shared = &self.0.shared;
        let queue = self.0.queue(turn, name.non_local())?;
        let capacity = shared.settings.capacity.of(name.as_str());
        shared.state.lock().open_channel(name.clone(), capacity, queue, shared.counters.clone());
        Ok(name)
    }

    async fn remove_channel(&self, channel: &ChannelName) -> Result<(), LayerError> {
        let forget = |state: &mut super::state::State| {
            let groups = state.close_channel(channel);
            groups.into_iter().map(|group| (group, channel.clone())).collect()
        };
        let left = self.0.shared.leave(forget).await;
        // Its queue may have gone with it.
        self.0.shared.demand.raise();
        left
    }

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        check_channel(channel)?;
        event.refuse_reserved()?;
        let shared = &self.0.shared;
        let body = shared.codec.body(event)?;
        let route = match channel.as_str().contains('!') {
            true => Route::One(channel.as_str()),
            false => Route::None,
        };
        let parcel = Parcel {
            queue: keys::queue(&shared.prefix, channel.non_local()),
            message: shared.message(&body, route)?,
            capacity: shared.settings.capacity.of(channel.as_str()),
        };
        let queue = parcel.queue.clone();
        let command = scripts::deliver(&[parcel], shared.settings.expiry);
        let answer = shared.commands.call(self.0.shard_for(channel), &queue, command, PATIENCE).await;
        let full = answer.map(|answer| answer.into_list().unwrap_or_default());
        shared.counters.publish_result(full.as_ref().is_ok_and(Vec::is_empty));
        let full = full?;
        match full.first().and_then(Answer::as_int) {
            Some(place) if place < 0 => Err(LayerError::Unavailable("the channel's queue is no sorted set".into())),
            Some(_) => Err(LayerError::ChannelFull(channel.clone())),
            None => Ok(()),
        }
    }

    async fn receive(&self, channel: &ChannelName) -> Result<Event, LayerError> {
        check_channel(channel)?;
        let shared = &self.0.shared;
        if !channel.as_str().contains('!') {
            return self.0.plain(channel)?.receive(shared).await;
        }
        if !shared.owns(channel) {
            return Err(LayerError::NotLocal(channel.clone()));
        }
        let (inbox, queue) = shared.state.lock().inbox(channel).ok_or(LayerError::Closed)?;
        let hungry = || {
            shared.demand.raise();
            shared.wake_readers_of(&queue);
        };
        inbox.pop_or(hungry).await
    }

    async fn group_add(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        group.check_strict()?;
        check_channel(channel)?;
        let shared = &self.0.shared;
        if !shared.owns(channel) {
            // Another process's: it renews the membership itself, as Python does never.
            let key = shared.group_key(group);
            let pair = (key.clone(), bytes::Bytes::copy_from_slice(channel.as_str().as_bytes()));
            let command = scripts::join(&[pair], 0, shared.settings.group_expiry);
            shared.commands.call(shared.shard_of(group.as_str()), &key, command, PATIENCE).await?;
            return Ok(());
        }
        let local = channel.as_str().split_once('!').map_or("", |(_, local)| local);
        let relayed = Shared::relay_of(local);
        {
            let state = shared.state.lock();
            let known = match relayed {
                Some(relay) => state.has_relay(relay),
                None => state.inbox(channel).is_some(),
            };
            if !known {
                return Err(LayerError::Closed);
            }
        }
        let first = std::sync::atomic::AtomicBool::new(false);
        let joined = shared
            .join(|state| {
                first.fetch_or(state.add_member(group, channel), Ordering::Relaxed);
                vec![(group.clone(), channel.clone())]
            })
            .await;
        if joined.is_err() && first.into_inner() {
            let mut state = shared.state.lock();
            state.discard_member(group, channel);
            state.mark_stale(group, channel);
        }
        joined
    }

    async fn group_discard(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        group.check_strict()?;
        let forget = |state: &mut super::state::State| {
            state.discard_member(group, channel);
            vec![(group.clone(), channel.clone())]
        };
        self.0.shared.leave(forget).await
    }

    async fn group_send(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        group.check_strict()?;
        let body = self.0.shared.codec.body(event)?;
        self.0.senders[self.0.shared.shard_of(group.as_str())].send(group.clone(), body).await
    }

    fn group_send_later(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        group.check_strict()?;
        let shared = &self.0.shared;
        let body = shared.codec.body(event)?;
        let shard = shared.shard_of(group.as_str());
        let queued = match shared.commands.reaches(shard, &shared.group_key(group)) {
            true => self.0.senders[shard].send_later(group.clone(), body),
            false => Err(Failure::NotConnected.into()),
        };
        queued.inspect_err(|_| shared.counters.publish_failed(1))
    }

    async fn flush(&self) -> Result<(), LayerError> {
        let shared = &self.0.shared;
        shared.state.lock().flush();
        let pattern = pattern::beginning_with(&shared.prefix);
        for shard in 0..shared.commands.shards() {
            for key in shared.scan(shard, &pattern).await? {
                if keys::is_ours(&shared.prefix, &key) {
                    shared.commands.call(shard, &key, scripts::delete(&key), PATIENCE).await?;
                }
            }
        }
        Ok(())
    }

    async fn relay(&self, sink: Arc<dyn RelaySink>) -> Result<Relay, LayerError> {
        let alive = Arc::new(());
        let shared = &self.0.shared;
        let mut outbound = Outbound::default();
        let id = shared.health.look(|whole| {
            let mut state = shared.state.lock();
            let id = state.open_relay(sink, Arc::downgrade(&alive));
            if !whole {
                state.tell(true, &mut outbound);
            }
            shared.demand.set_relays(true);
            id
        });
        outbound.hand_over();
        // From now on every queue is wanted.
        for queue in &self.0.home {
            shared.wake_readers(&queue.readers, |shard| queue.readers.misses_one(shard));
        }
        Ok(Relay::new(CoreRelay { inner: self.0.clone(), id, alive: Some(alive) }))
    }

    async fn ping(&self) -> Result<(), LayerError> {
        if !self.0.shared.health.is_whole() {
            return Err(Failure::NotConnected.into());
        }
        let all = async {
            for sender in &self.0.senders {
                sender.ping(PING).await?;
            }
            Ok::<(), LayerError>(self.0.shared.commands.ping(PING).await?)
        };
        timeout(PING, all).await.map_err(|_late| LayerError::Timeout)?
    }

    async fn close(&self) -> Result<(), LayerError> {
        self.0.close().await
    }

    fn set_encryption_keys(&self, keys: &[String]) -> Result<(), LayerError> {
        self.0.shared.codec.set_keys(keys)
    }

    fn stats(&self) -> LayerStats {
        self.0.shared.counters.snapshot()
    }
}

impl std::fmt::Debug for RedisCoreLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisCoreLayer")
            .field("prefix", &self.0.shared.prefix)
            .field("shards", &self.0.shared.commands.shards())
            .field("ready", &self.0.shared.health.is_whole())
            .finish_non_exhaustive()
    }
}
