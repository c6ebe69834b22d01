//! Sending to groups: one task per shard of groups, so that what is sent to a group leaves in the order
//! of the calls. Whatever is waiting goes together: the members of each group are read once, and all
//! messages travel in as few commands as possible.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    keys, scripts,
    scripts::Parcel,
    shared::{Shared, answer_of},
};
use crate::{
    GroupName, LayerError,
    codec::{Body, Route},
    redis::{
        answer::Answer,
        commander::{Failure, Heard, PATIENCE, Pending},
        gather::gather,
    },
};

/// How many sends may wait.
const QUEUE: usize = 8_192;
/// About how many bytes may wait.
const QUEUE_BYTES: usize = 64 << 20;
/// How many sends go together.
const BATCH: usize = 256;
/// About how many bytes one command carries.
const COMMAND_BYTES: usize = 1 << 20;
/// About how many bytes and how many commands are under way at once: a large group is written piece by
/// piece.
const UNDER_WAY_BYTES: usize = 16 << 20;
const UNDER_WAY: usize = 2_048;

type Reply = oneshot::Sender<Result<(), LayerError>>;

pub(super) enum Job {
    Send {
        group: GroupName,
        body: Body,
        reply: Option<Reply>,
    },
    /// Answered when everything before it has been handled.
    Ping(Reply),
}

/// The sending end of a shard's queue.
pub(super) struct Sender {
    queue: mpsc::Sender<Job>,
    bytes: Arc<AtomicUsize>,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, shard: usize) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let bytes = Arc::new(AtomicUsize::new(0));
        (Self { queue, bytes: bytes.clone() }, run(shared, shard, jobs, bytes))
    }

    /// Queues a send and waits for what becomes of it.
    pub(super) async fn send(&self, group: GroupName, body: Body) -> Result<(), LayerError> {
        let (reply, answer) = oneshot::channel();
        self.wait_for(Job::Send { group, body, reply: Some(reply) }, answer, PATIENCE).await
    }

    /// Queues a send and returns at once.
    pub(super) fn send_later(&self, group: GroupName, body: Body) -> Result<(), LayerError> {
        self.admit()?;
        let size = body.len();
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.queue.try_send(Job::Send { group, body, reply: None }).map_err(|error| {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => LayerError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => LayerError::Closed,
            }
        })
    }

    /// Returns when everything queued before has been handled.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), LayerError> {
        let (reply, answer) = oneshot::channel();
        self.wait_for(Job::Ping(reply), answer, limit).await
    }

    async fn wait_for(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<(), LayerError>>,
        limit: Duration,
    ) -> Result<(), LayerError> {
        self.admit()?;
        let deadline = Instant::now() + limit;
        let size = job.size();
        match timeout_at(deadline, self.queue.reserve()).await {
            // The bytes count from here on, so that a cancelled wait leaves nothing counted.
            Ok(Ok(permit)) => {
                self.bytes.fetch_add(size, Ordering::Relaxed);
                permit.send(job);
            }
            Ok(Err(_closed)) => return Err(LayerError::Closed),
            Err(_late) => return Err(LayerError::Timeout),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_gone)) => Err(LayerError::Closed),
            Err(_late) => Err(LayerError::Timeout),
        }
    }

    fn admit(&self) -> Result<(), LayerError> {
        match self.bytes.load(Ordering::Relaxed) > QUEUE_BYTES {
            true => Err(LayerError::QueueFull),
            false => Ok(()),
        }
    }
}

impl Job {
    fn size(&self) -> usize {
        match self {
            Self::Send { body, .. } => body.len(),
            Self::Ping(_) => 0,
        }
    }
}

async fn run(shared: Arc<Shared>, shard: usize, mut jobs: mpsc::Receiver<Job>, bytes: Arc<AtomicUsize>) {
    let (mut batch, mut crowded) = (Vec::with_capacity(BATCH), false);
    while jobs.recv_many(&mut batch, BATCH).await > 0 {
        gather(&mut jobs, &mut batch, BATCH, crowded).await;
        crowded = batch.len() > 1;
        bytes.fetch_sub(batch.iter().map(Job::size).sum(), Ordering::Relaxed);
        Round::default().go(&shared, shard, &mut batch).await;
        crowded |= !jobs.is_empty();
    }
}

/// The members of a group that share a queue.
struct Bucket {
    shard: usize,
    queue: Bytes,
    capacity: usize,
    names: Vec<String>,
}

struct Sending {
    group: GroupName,
    reply: Option<Reply>,
    failed: Option<LayerError>,
    /// Queues without room, and how many members the group has.
    full: usize,
    members: usize,
}

/// One batch on its way.
#[derive(Default)]
struct Round {
    sendings: Vec<Sending>,
    /// What has been packed, by shard, each with the sending it belongs to; and how many bytes that is.
    parcels: Vec<Vec<(Parcel, usize)>>,
    bytes: usize,
    /// Commands under way, each with the sending every parcel of it belongs to.
    started: Vec<(Result<Pending, Failure>, Vec<usize>)>,
}

impl Round {
    async fn go(mut self, shared: &Shared, shard: usize, batch: &mut Vec<Job>) {
        let deadline = Instant::now() + PATIENCE;
        let groups = members(shared, shard, batch, deadline).await;
        let mut pings = Vec::new();
        self.parcels.resize_with(shared.commands.shards(), Vec::new);
        for job in batch.drain(..) {
            match job {
                Job::Ping(reply) => pings.push(reply),
                Job::Send { group, body, reply } => {
                    let mut sending = Sending { group, reply, failed: None, full: 0, members: 0 };
                    let at = self.sendings.len();
                    let buckets = groups.get(&sending.group).map(Result::as_deref);
                    match buckets {
                        Some(Ok(buckets)) => sending.members = buckets.iter().map(|bucket| bucket.names.len()).sum(),
                        Some(Err(why)) => sending.failed = Some(LayerError::Unavailable(why.clone().into())),
                        None => sending.failed = Some(LayerError::Closed),
                    }
                    self.sendings.push(sending);
                    for bucket in buckets.and_then(Result::ok).unwrap_or_default() {
                        if let Err(error) = self.pack(shared, bucket, &body, at) {
                            self.sendings[at].failed = Some(error);
                            break;
                        }
                        if self.bytes >= UNDER_WAY_BYTES {
                            self.dispatch(shared).await;
                        }
                    }
                }
            }
        }
        self.dispatch(shared).await;
        self.sendings.into_iter().for_each(|sending| sending.end(shared));
        for reply in pings {
            let _ = reply.send(Ok(()));
        }
    }

    /// One message for one queue, addressed to the members that share it.
    fn pack(&mut self, shared: &Shared, bucket: &Bucket, body: &Body, owner: usize) -> Result<(), LayerError> {
        let names: Vec<&str> = bucket.names.iter().map(String::as_str).collect();
        let message = shared.message(body, Route::Many(&names))?;
        self.bytes += message.len();
        let parcel = Parcel { queue: bucket.queue.clone(), message, capacity: bucket.capacity };
        self.parcels[bucket.shard].push((parcel, owner));
        Ok(())
    }

    /// Sends what has been packed, in as few commands as number and size allow, and waits for the answers.
    async fn dispatch(&mut self, shared: &Shared) {
        self.bytes = 0;
        for shard in 0..self.parcels.len() {
            let (mut now, mut owners, mut bytes, mut queues) = (Vec::new(), Vec::new(), 0, 0);
            let mut parcels = std::mem::take(&mut self.parcels[shard]);
            // Those for one queue together and in their order: they cost Redis little more than one.
            parcels.sort_by(|(one, _), (other, _)| one.queue.cmp(&other.queue));
            let mut parcels = parcels.into_iter().peekable();
            while let Some((parcel, owner)) = parcels.next() {
                let next = parcels.peek();
                let queue_ends = next.is_none_or(|(next, _)| next.queue != parcel.queue);
                bytes += parcel.message.len();
                queues += usize::from(queue_ends);
                let full = queues >= shared.commands.keys_per_command()
                    || now.len() + 1 >= scripts::MOST_PARCELS
                    || bytes >= COMMAND_BYTES;
                now.push(parcel);
                owners.push(owner);
                if full || next.is_none() {
                    let command = scripts::deliver(&now, shared.settings.expiry);
                    let pending = shared.commands.start(shard, &now[0].queue, command);
                    self.started.push((pending, std::mem::take(&mut owners)));
                    now.clear();
                    (bytes, queues) = (0, 0);
                }
                if self.started.len() >= UNDER_WAY {
                    self.answers().await;
                }
            }
        }
        self.answers().await;
    }

    async fn answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for (pending, owners) in std::mem::take(&mut self.started) {
            self.note(answer_of(pending, deadline).await, &owners);
        }
    }

    fn note(&mut self, answer: Result<Value, Failure>, owners: &[usize]) {
        match answer {
            Ok(answer) => {
                // The places of full queues, counted from 1; as negative numbers, of what are no queues.
                let full = answer.into_list().unwrap_or_default();
                for place in full.iter().filter_map(Answer::as_int) {
                    let owner = usize::try_from(place.abs() - 1).ok().and_then(|at| owners.get(at));
                    if let Some(sending) = owner.and_then(|at| self.sendings.get_mut(*at)) {
                        sending.full += 1;
                    }
                }
            }
            Err(failure) => {
                let why = failure.to_string();
                for at in owners {
                    self.sendings[*at].failed.get_or_insert_with(|| LayerError::Unavailable(why.clone().into()));
                }
            }
        }
    }
}

impl Sending {
    fn end(self, shared: &Shared) {
        shared.counters.publish_result(self.failed.is_none());
        if self.full > 0 {
            shared.counters.over_capacity(self.full as u64);
            if shared.may_warn("capacity") {
                let (full, members, group) = (self.full, self.members, self.group);
                tracing::info!("{full} of {members} channels over capacity in group {group}");
            }
        }
        if let Some(reply) = self.reply {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(self.failed.map_or(Ok(()), Err));
        }
    }
}

/// The members of every group in the batch, by queue; or why they cannot be read.
async fn members(
    shared: &Shared,
    shard: usize,
    batch: &[Job],
    deadline: Instant,
) -> HashMap<GroupName, Result<Vec<Bucket>, String>> {
    let mut asked: HashMap<&GroupName, Result<Pending, Failure>> = HashMap::new();
    for job in batch {
        if let Job::Send { group, .. } = job
            && !asked.contains_key(group)
        {
            let key = shared.group_key(group);
            let command = scripts::members(&key, shared.settings.group_expiry);
            asked.insert(group, shared.commands.start(shard, &key, command));
        }
    }
    let mut found = HashMap::with_capacity(asked.len());
    for (group, pending) in asked {
        let buckets = answer_of(pending, deadline)
            .await
            .map(|answer| sort(shared, shard, group, answer))
            .map_err(|failure| failure.to_string());
        found.insert(group.clone(), buckets);
    }
    found
}

/// Members by queue, in the order of their first appearance. Those of dead nodes are thrown out.
fn sort(shared: &Shared, shard: usize, group: &GroupName, answer: Value) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let dead = shared.dead[shard].lock();
    let mut ghosts: Vec<String> = Vec::new();
    for member in answer.into_list().unwrap_or_default() {
        // What can be no channel's name was put there by nobody who follows the format, and may lead to
        // any key.
        let Some(name) = member.into_text().and_then(|name| String::from_utf8(name).ok()) else { continue };
        if !keys::may_be_channel(&name) {
            continue;
        }
        if !dead.is_empty() && keys::client_of(&name).is_some_and(|client| dead.contains(client)) {
            ghosts.push(name);
            continue;
        }
        let non_local = name.find('!').map_or(name.as_str(), |at| &name[..=at]);
        let at = match places.get(non_local) {
            Some(at) => *at,
            None => {
                let bucket = Bucket {
                    shard: shared.shard_of(non_local),
                    queue: keys::queue(&shared.prefix, non_local),
                    // As in Python: of the first member's whole name.
                    capacity: shared.settings.capacity.of(&name),
                    names: Vec::new(),
                };
                places.insert(non_local.to_owned(), buckets.len());
                buckets.push(bucket);
                buckets.len() - 1
            }
        };
        buckets[at].names.push(name);
    }
    drop(dead);
    if !ghosts.is_empty() {
        let key = shared.group_key(group);
        let ghosts: Vec<&[u8]> = ghosts.iter().map(String::as_bytes).collect();
        // If this is lost the next send does it again.
        let _ = shared.commands.start_with(shard, &key, scripts::leave(&key, &ghosts), None, Heard::AtOnce);
    }
    buckets
}
