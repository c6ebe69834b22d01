//! The groups this node has joined: members, position in each stream, holes, one rendering per node.
//!
//! A node joins a group once, however many of its sockets are members. Groups are spread over shards;
//! each shard has one dispatcher, so the events of a group stay in order while groups use all cores.

mod catch_up;
mod deliver;
mod duplicate;
mod fan_out;
mod fill;
mod group;
mod join;
mod listeners;
pub(crate) mod position;
pub(crate) mod recent;

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use channel_layer::{ChannelLayer, ChannelName, Delivery, GroupName, LayerError, Relay, RelaySink};
use parking_lot::Mutex;
use persistence::{Head, Store, StoreError, Stream};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::health::Health;
use crate::hub::position::Question;
use crate::hub::recent::Memory;
use crate::metrics::{ByReason, Metrics};
use crate::names::GroupNames;
use crate::seal::Seals;
use crate::seldom::SeldomOfKind;
use crate::socket::Socket;
use crate::socket::registry::Registry;
use crate::tail::Tail;
pub(crate) use catch_up::{PAGE_BYTES, renderer};
pub(crate) use group::Released;
use group::{Cause, Group, Member};
pub(crate) use join::JoinError;
pub(crate) use position::ClientPosition;

/// Deliveries that may wait for a dispatcher. Over it the oldest go; stored ones come back from the
/// database as a hole, others are counted as dropped.
const QUEUE_LIMIT: usize = 65_536;

/// The same in bytes, about, over all dispatchers, with what they have taken and not yet delivered.
const QUEUE_BYTES: usize = 32 << 20;

/// Bytes of events behind holes, over all streams.
const HELD_BYTES: usize = 16 << 20;

/// See the [module](self).
pub(crate) struct Hub {
    layer: Arc<dyn ChannelLayer>,
    store: Store,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    seals: Arc<Seals>,
    names: GroupNames,
    relay: OnceLock<Relay>,
    shards: Box<[Shard]>,
    /// Bytes that wait for dispatchers.
    queued: AtomicUsize,
    hasher: RandomState,
    joins: OnceLock<join::Joiner>,
    holes: mpsc::Sender<GroupName>,
    /// What sockets of the site's own consumers could not join while the layer was away. No more than each may join.
    late: Mutex<Vec<(Weak<Socket>, GroupName)>>,
    /// The layer is away: what it should have brought is looked for in the database every second.
    layer_down: AtomicBool,
    reconcile_now: Notify,
    memberships_now: Notify,
    /// Recent events of rooms and of inboxes, for clients that come back. Apart, so that many users'
    /// notifications do not drive out what a room's members share.
    room_memory: Arc<Memory>,
    inbox_memory: Arc<Memory>,
    /// Events behind holes.
    held_memory: Arc<Memory>,
    /// How many of them a room may have; the database keeps no more either.
    recent_per_room: Option<usize>,
    /// Who reads into memory holds the one of its stream; many streams share one.
    reading: Box<[tokio::sync::Mutex<()>]>,
    /// For who watches what passes.
    pub(crate) tail: Tail,
    /// Many sockets may be written to with one system call.
    ring: bool,
    started: std::time::Instant,
    /// The second of the last warning about an unknown event.
    warned_at: AtomicU64,
    /// Of known events that cannot be shown.
    warnings: SeldomOfKind,
}

struct Shard {
    groups: Mutex<HashMap<GroupName, Arc<Group>>>,
    queue: Mutex<Queue>,
    ready: Notify,
}

/// What waits for a dispatcher, with its bytes.
type Queue = VecDeque<(usize, Work)>;

/// What a dispatcher does next.
enum Work {
    Layer(Delivery),
    /// An event for one socket that has come for a group as well.
    Duplicate(duplicate::Duplicate),
    /// An event for all sockets of this node.
    Everyone(Arc<channel_layer::Event>),
    /// Rows that were missing, or the news that there are none.
    Filled(Filled),
    /// What was imported into the stream of this group is still to be told.
    Grown(GroupName),
    /// What a class of the site's own consumers makes of an event.
    Rendered(Box<listeners::Rendered>),
}

/// The database's answer about a stream.
struct Filled {
    group: GroupName,
    question: Question,
    head: Option<Head>,
    /// Rows after `question.after`, ascending: epoch, seq, event.
    events: Vec<(i64, u64, Arc<channel_layer::Event>)>,
    /// Rows were left out because they were imported: nobody is sent those.
    imported: bool,
    /// There may be more rows after these.
    more: bool,
}

impl Hub {
    /// Makes the hub and starts its tasks. They end with `stop`.
    #[expect(clippy::too_many_arguments, reason = "the parts of a node that a hub works with")]
    pub(crate) async fn start(
        layer: Arc<dyn ChannelLayer>,
        store: Store,
        registry: Arc<Registry>,
        health: &Arc<Health>,
        seals: Arc<Seals>,
        config: &Config,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, LayerError> {
        let shards = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 16);
        let (holes, holes_seen) = mpsc::channel(4096);
        let hub = Arc::new(Self {
            layer,
            store,
            registry,
            metrics: Arc::clone(&health.metrics),
            health: Arc::clone(health),
            seals,
            names: GroupNames::new(&config.user_group, config.layer.raw_group_names),
            relay: OnceLock::new(),
            shards: (0..shards).map(|_| Shard::new()).collect(),
            queued: AtomicUsize::new(0),
            hasher: RandomState::new(),
            joins: OnceLock::new(),
            holes,
            late: Mutex::default(),
            layer_down: AtomicBool::new(false),
            reconcile_now: Notify::new(),
            memberships_now: Notify::new(),
            room_memory: Memory::new(config.limits.recent_bytes / 4 * 3),
            inbox_memory: Memory::new(config.limits.recent_bytes / 4),
            held_memory: Memory::new(HELD_BYTES),
            recent_per_room: usize::try_from(config.retention.messages_per_room).ok().filter(|most| *most > 0),
            reading: (0..catch_up::READERS).map(|_| tokio::sync::Mutex::new(())).collect(),
            tail: Tail::new(),
            ring: config.io_uring,
            started: std::time::Instant::now(),
            warned_at: AtomicU64::new(0),
            warnings: SeldomOfKind::default(),
        });
        let sink: Arc<dyn RelaySink> = Arc::new(Sink(Arc::downgrade(&hub)));
        let relay = hub.layer.relay(sink).await?;
        let _ = hub.relay.set(relay);
        let _ = hub.joins.set(join::Joiner::spawn(&hub, tasks, stop));
        for shard in 0..shards {
            tasks.spawn(until(stop.clone(), deliver::dispatch(Arc::clone(&hub), shard)));
        }
        tasks.spawn(until(stop.clone(), fill::fill_holes(Arc::clone(&hub), holes_seen)));
        tasks.spawn(until(stop.clone(), fill::reconcile(Arc::clone(&hub))));
        tasks.spawn(until(stop.clone(), join::reap(Arc::clone(&hub))));
        Ok(hub)
    }

    /// Whether the layer is away, as far as its reader has noticed.
    pub(crate) fn is_layer_down(&self) -> bool {
        self.layer_down.load(Ordering::Relaxed)
    }

    /// Has positions and memberships compared with the database: the layer may have lost something.
    pub(crate) fn compare_now(&self) {
        self.reconcile_now.notify_one();
        self.memberships_now.notify_one();
    }

    /// Waits until memberships should be compared; for one task.
    pub(crate) async fn memberships_doubtful(&self) {
        self.memberships_now.notified().await;
    }

    /// Hands an event to this node's members of a group, when the layer cannot take it.
    pub(crate) fn deliver_here(&self, group: GroupName, event: channel_layer::Event) {
        let shard = self.shard_of(&group);
        self.push(shard, Work::Layer(Delivery::Group { event: Arc::new(event), group: group.clone() }));
        shard.ready.notify_one();
    }

    /// Hands an event of a node's to all sockets of this one.
    pub(crate) fn deliver_to_all(&self, event: channel_layer::Event) {
        let shard = &self.shards[0];
        self.push(shard, Work::Everyone(Arc::new(event)));
        shard.ready.notify_one();
    }

    /// A fresh channel name that the layer brings to this node.
    pub(crate) fn new_channel(&self) -> Option<ChannelName> {
        self.relay.get().map(Relay::new_channel)
    }

    /// Adds a socket to groups; returns when all of them are heard on this node, with their names as the node has them:
    /// all sockets in a group share one. What the node lacks of them is asked for in one go.
    pub(crate) async fn join(
        &self,
        socket: &Arc<Socket>,
        groups: Vec<(GroupName, Option<Stream>)>,
        held: bool,
    ) -> Result<Vec<GroupName>, JoinError> {
        let joins = self.joins.get().ok_or(JoinError::Stopped)?;
        let mut joined = Vec::with_capacity(groups.len());
        let mut lacking = groups;
        loop {
            lacking.retain(|(name, stream)| {
                let mut member = Some(Member::new(socket, held && stream.is_some()));
                let group = self.group(name).filter(|group| group.add(&mut member, stream.as_ref()));
                joined.extend(group.as_ref().map(|group| group.name.clone()));
                group.is_none()
            });
            if lacking.is_empty() {
                return Ok(joined);
            }
            joins.make_live(lacking.clone()).await?;
        }
    }

    /// Takes a socket out of a group. The group itself stays for some seconds, so that a client that
    /// comes back finds it as it was.
    pub(crate) fn leave(&self, socket: &Socket, name: &GroupName) {
        if let Some(group) = self.group(name) {
            group.remove(socket);
        }
    }

    /// Whether a socket is in a group.
    pub(crate) fn has(&self, socket: &Socket, name: &GroupName) -> bool {
        self.group(name).is_some_and(|group| group.has(socket))
    }

    /// Keeps a stream's stored frames from a socket until it is released.
    pub(crate) fn hold(&self, socket: &Socket, name: &GroupName) {
        if let Some(group) = self.group(name) {
            group.hold(socket);
        }
    }

    /// Sends what was held after `sent`, and then everything as it comes.
    pub(crate) fn release(&self, socket: &Socket, name: &GroupName, sent: u64) -> Released {
        let released = self.group(name).map_or(Released::Live, |group| group.release(socket, sent));
        socket.flush();
        released
    }

    /// The users who have a socket of this node in a group.
    pub(crate) fn users_in(&self, name: &GroupName) -> HashSet<String> {
        let mut users = HashSet::new();
        if let Some(group) = self.group(name) {
            group.for_each(|member| {
                if !users.contains(&*member.socket.user) {
                    users.insert(member.socket.user.to_string());
                }
            });
        }
        users
    }

    /// What this node has handed on in the stream of a group: `(seq, id)`.
    pub(crate) fn position(&self, name: &GroupName) -> Option<(u64, Option<uuid::Uuid>)> {
        self.group(name)?.position()
    }

    fn group(&self, name: &GroupName) -> Option<Arc<Group>> {
        self.shard_of(name).groups.lock().get(name).cloned()
    }

    fn shard_of(&self, name: &GroupName) -> &Shard {
        &self.shards[self.hasher.hash_one(name) as usize % self.shards.len()]
    }

    fn push(&self, shard: &Shard, work: Work) {
        let bytes = work.bytes();
        let mut queue = shard.queue.lock();
        let mut queued = self.queued.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Nearly always there is none, and nothing is allocated.
        let mut dropped = Vec::new();
        while queue.len() >= QUEUE_LIMIT || queued > QUEUE_BYTES {
            let Some((bytes, oldest)) = queue.pop_front() else { break };
            queued = self.queued.fetch_sub(bytes, Ordering::Relaxed) - bytes;
            dropped.push(oldest);
        }
        // The others', or what the dispatcher is at, leave no room. Something larger than all of it goes by itself.
        if queued > QUEUE_BYTES && queued > bytes {
            self.queued.fetch_sub(bytes, Ordering::Relaxed);
            dropped.push(work);
        } else {
            queue.push_back((bytes, work));
        }
        drop(queue);
        for lost in dropped {
            self.metrics.layer_events_dropped.get_or_create(&ByReason { reason: "queue_full" }).inc();
            if let Some(times) = self.warnings.again("queue", "full") {
                tracing::warn!(
                    times,
                    bytes = self.queued(),
                    "an event was dropped: more comes from the layer than this node can hand to its sockets. What was \
                     stored comes from the database; spread the sockets over more nodes or cores"
                );
            }
            match lost {
                Work::Filled(lost) => {
                    if let Some(group) = self.group(&lost.group) {
                        // Or nobody would ever ask again.
                        group.end_fill();
                    }
                }
                Work::Rendered(lost) => lost.lose(),
                _ => {}
            }
        }
    }

    /// Bytes that wait for dispatchers, about.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Gives back the memory that only saves statements.
    pub(crate) fn forget_recent(&self) {
        for shard in &self.shards {
            shard.groups.lock().values().for_each(|group| group.forget_recent());
        }
    }

    /// Asks for what is missing in a stream. When the queue is full the next comparison finds it.
    fn request_fill(&self, group: &Group, cause: Cause) {
        if !crate::lossy::is_lossy() && group.begin_fill(cause) && self.holes.try_send(group.name.clone()).is_err() {
            group.end_fill();
        }
    }

    /// The heads of streams, in one statement for rooms and one for inboxes.
    async fn heads(&self, streams: &[(GroupName, Stream)]) -> Result<HashMap<GroupName, Head>, StoreError> {
        let (mut rooms, mut users) = (Vec::new(), Vec::new());
        for (_, stream) in streams {
            match stream {
                Stream::Room(room) => rooms.push(room.clone()),
                Stream::Inbox(user) => users.push(user.clone()),
            }
        }
        let rooms = if rooms.is_empty() { HashMap::new() } else { self.store.room_heads(&rooms).await? };
        let inboxes = if users.is_empty() { HashMap::new() } else { self.store.inbox_heads(&users).await? };
        let head = |stream: &Stream| match stream {
            Stream::Room(room) => {
                rooms.get(room).map(|room| Head { epoch: room.epoch, last_seq: room.last_seq, last_id: room.last_id })
            }
            Stream::Inbox(user) => inboxes.get(user).cloned(),
        };
        Ok(streams.iter().filter_map(|(name, stream)| Some((name.clone(), head(stream)?))).collect())
    }
}

impl Shard {
    fn new() -> Self {
        Self { groups: Mutex::default(), queue: Mutex::default(), ready: Notify::new() }
    }
}

impl Work {
    /// What it takes while it waits, about.
    fn bytes(&self) -> usize {
        let behind = match self {
            Self::Layer(Delivery::Group { event, .. } | Delivery::Channel { event, .. }) => event.weight(),
            Self::Duplicate(duplicate) => duplicate.event.weight(),
            Self::Everyone(event) => event.weight(),
            Self::Rendered(rendered) => rendered.bytes(),
            Self::Filled(filled) => filled.events.iter().map(|(.., event)| event.weight()).sum(),
            Self::Layer(Delivery::Disconnected | Delivery::Reconnected(_)) | Self::Grown(_) => 0,
        };
        size_of::<Self>() + behind
    }
}

/// The layer's entrance: sorts what has come to the dispatchers, without waiting. The layer keeps it
/// and the hub keeps the relay, so one of them must not own the other.
struct Sink(Weak<Hub>);

impl RelaySink for Sink {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        let Some(hub) = self.0.upgrade() else { return };
        for duplicate in duplicate::take(batch) {
            hub.push(hub.shard_of(&duplicate.group), Work::Duplicate(duplicate));
        }
        for delivery in batch.drain(..) {
            let shard = match &delivery {
                Delivery::Group { group, .. } => hub.shard_of(group),
                Delivery::Channel { .. } => &hub.shards[0],
                Delivery::Disconnected => {
                    hub.layer_down.store(true, Ordering::Relaxed);
                    hub.compare_now();
                    continue;
                }
                Delivery::Reconnected(_) => {
                    hub.layer_down.store(false, Ordering::Relaxed);
                    // A redaction may have been missed: whoever comes back is sent what the database has.
                    hub.forget_recent();
                    hub.compare_now();
                    continue;
                }
            };
            hub.push(shard, Work::Layer(delivery));
        }
        for shard in &hub.shards {
            if !shard.queue.lock().is_empty() {
                shard.ready.notify_one();
            }
        }
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    stop.run_until_cancelled(task).await;
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::collect;
    use crate::start::RunningNode;

    #[tokio::test]
    async fn what_waits_for_a_dispatcher_is_bounded_in_number_and_in_bytes() {
        let given =
            [("listen", "127.0.0.1:0"), ("internal-listen", "127.0.0.1:0"), ("database-url", "sqlite::memory:")];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let config = Config::from_collected(&collect(&given, &|_| None, None).unwrap()).unwrap();
        let node = RunningNode::start(config, crate::consumers::routes()).await.unwrap();
        let (hub, metrics) = (&node.node().hub, &node.node().metrics);
        let dropped = || metrics.layer_events_dropped.get_or_create(&ByReason { reason: "queue_full" }).get();
        let push = |bytes: usize| {
            let event = channel_layer::Event::new("x").with("text", "x".repeat(bytes));
            hub.deliver_here(GroupName::parse("g").unwrap(), event);
        };
        // Nobody else runs until this test waits for something.
        (0..50).for_each(|_| push(1 << 20));
        assert!((QUEUE_BYTES - (2 << 20)..=QUEUE_BYTES).contains(&hub.queued()), "{}", hub.queued());
        assert_eq!(dropped(), 50 - 31);
        push(2 * QUEUE_BYTES);
        assert_eq!((dropped(), hub.queued() > QUEUE_BYTES), (50, true), "alone, whatever its size");
        while hub.queued() > 0 {
            tokio::task::yield_now().await;
        }
        (0..QUEUE_LIMIT + 10).for_each(|_| push(0));
        let left: usize = hub.shards.iter().map(|shard| shard.queue.lock().len()).sum();
        assert!(left <= QUEUE_LIMIT && hub.queued() <= QUEUE_BYTES && dropped() >= 60);
        while hub.queued() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
