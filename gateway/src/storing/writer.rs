//! Stored first, then sent: what consumers and the API want to store, made into few transactions, and
//! written to the layer in commit order.
//!
//! What waits is bounded in bytes, over all lanes. A client whose own messages wait is not read from until
//! fewer of them do, and the more others have waiting, the sooner; so many clients share the room, and
//! only when it is full all the same is one told to try again.

use std::pin::pin;
use std::sync::Arc;

use channel_layer::{ChannelLayer, Event};
use persistence::{Append, AppendError, Appended, Key, Message, Refused, Store, StoreError, Stream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::events;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::names::GroupNames;
use crate::seal::{Keys, Seals};
use crate::seldom::Seldom;

/// Rows per transaction, at most.
const BATCH: usize = 500;

/// Items of something that is stored as a whole, at most.
pub(crate) const MOST_TOGETHER: usize = 1000;

/// Bytes per transaction, about: what is in one is copied several times on its way.
const BATCH_BYTES: usize = 1 << 20;

/// What a message takes beside its texts, about: its job, what is called when it is done, and the allocator's share.
const COST: usize = size_of::<Job>() + 256;

/// A socket's own messages may take this part of all the room, and this part of what is free.
const SHARE_OF_ALL: usize = 16;
const SHARE_OF_FREE: usize = 32;

/// Why something was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WriteError {
    /// The item itself cannot be stored.
    #[error(transparent)]
    Refused(#[from] AppendError),
    /// The database cannot be reached, or the node is stopping; trying again may help.
    #[error("the database is unavailable")]
    Unavailable,
    /// The database answers, and does not store it.
    #[error("the database refused the request")]
    Failed,
}

/// What is called with the result, after the commit and after the event was handed to the layer.
pub(crate) type Done = Box<dyn FnOnce(Result<Appended, WriteError>) + Send>;

/// Why a whole was not stored.
#[derive(Debug)]
pub(crate) enum TogetherError {
    /// An item of it cannot be stored, so nothing was.
    Refused(Refused),
    /// As [`WriteError::Unavailable`].
    Unavailable,
}

/// A `traceparent`, passed on with the event of what is stored.
pub(crate) type Trace = Option<Arc<str>>;

/// An event with the trace it is a part of.
pub(crate) fn traced(event: Event, trace: Option<&str>) -> Event {
    match trace {
        Some(trace) => event.with("traceparent", trace),
        None => event,
    }
}

enum Job {
    One {
        append: Append,
        trace: Trace,
        bytes: u32,
        done: Done,
    },
    /// All or nothing, in a transaction of its own.
    Together {
        appends: Vec<Append>,
        traces: Vec<Trace>,
        bytes: u32,
        done: oneshot::Sender<Result<Vec<Appended>, TogetherError>>,
    },
}

/// The bytes that may wait; one permit each.
struct Room {
    free: Semaphore,
    limit: usize,
}

impl Room {
    /// 0 is any number.
    fn new(limit: usize) -> Arc<Self> {
        let limit = if limit == 0 { Semaphore::MAX_PERMITS } else { limit.min(Semaphore::MAX_PERMITS) };
        Arc::new(Self { free: Semaphore::new(limit), limit })
    }

    /// What these take. Something larger than all the room takes all of it.
    fn cost<'a>(&self, appends: impl IntoIterator<Item = &'a Append>) -> u32 {
        let bytes: usize = appends.into_iter().map(cost).sum();
        u32::try_from(bytes.min(self.limit)).unwrap_or(u32::MAX)
    }

    fn give_back(&self, bytes: usize) {
        self.free.add_permits(bytes);
    }
}

fn cost(append: &Append) -> usize {
    let key = append.key.as_ref().map_or(0, |key| match key {
        Key::Client { user, client_id } => user.len() + client_id.len(),
        Key::Event { source, id } => source.len() + id.len(),
    });
    let origin = append.origin.as_ref().map_or(0, |(source, id)| source.len() + id.len());
    let data = append.data.as_ref().map_or(0, |data| data.len());
    COST + append.stream.name().len() + append.from_user.len() + append.message.len() + data + key + origin
}

/// A handle to the lanes that write. Items of one stream share a lane, so they are committed and
/// published in the order in which they came.
pub(crate) struct Writer {
    lanes: Vec<mpsc::Sender<Job>>,
    room: Arc<Room>,
    metrics: Arc<Metrics>,
    told: Seldom,
}

struct Lane {
    room: Arc<Room>,
    store: Store,
    layer: Arc<dyn ChannelLayer>,
    names: GroupNames,
    seals: Arc<Seals>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl Writer {
    /// Starts the lanes: one for SQLite, which has one writer anyway, four for servers. With `stop` they take
    /// nothing more, and end when what they have is written. `limit` bytes may wait for them.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a part of the node; a struct of them would only be taken apart here"
    )]
    pub(crate) fn start(
        limit: usize,
        store: &Store,
        layer: &Arc<dyn ChannelLayer>,
        names: &GroupNames,
        seals: &Arc<Seals>,
        health: &Arc<Health>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let metrics = &health.metrics;
        let lanes = if store.backend() == persistence::Backend::Sqlite { 1 } else { 4 };
        let room = Room::new(limit);
        let lanes = (0..lanes)
            .map(|_| {
                // The bytes are the bound: no more jobs can be there than those leave room for.
                let (jobs, waiting) = mpsc::channel((room.limit / COST + 1).min(Semaphore::MAX_PERMITS));
                let lane = Lane {
                    room: Arc::clone(&room),
                    store: store.clone(),
                    layer: Arc::clone(layer),
                    names: names.clone(),
                    seals: Arc::clone(seals),
                    metrics: Arc::clone(metrics),
                    health: Arc::clone(health),
                };
                tasks.spawn(lane.run(waiting, stop.clone()));
                jobs
            })
            .collect();
        Self { lanes, room, metrics: Arc::clone(metrics), told: Seldom::new() }
    }

    /// The bytes that something takes until it is done.
    pub(crate) fn cost(&self, append: &Append) -> u32 {
        self.room.cost([append])
    }

    /// Hands over something to store that takes so many bytes, or says at once that there is no room for it.
    pub(crate) fn submit(&self, append: Append, bytes: u32, done: Done) {
        let lane = &self.lanes[lane_of(&append.stream, self.lanes.len())];
        let Ok(room) = self.room.free.try_acquire_many(bytes) else {
            self.metrics.writes_refused.inc();
            if let Some(times) = self.told.again() {
                tracing::warn!(
                    times,
                    limit = self.room.limit,
                    "clients are told to try again: the database takes less than they send, and limits.write_queue_bytes wait"
                );
            }
            return done(Err(WriteError::Unavailable));
        };
        match lane.try_send(Job::One { append, trace: None, bytes, done }) {
            Ok(()) => room.forget(),
            Err(mpsc::error::TrySendError::Closed(job) | mpsc::error::TrySendError::Full(job)) => job.refuse(),
        }
    }

    /// Bytes of one client that may wait now; one that has more is not read from.
    pub(crate) fn share(&self) -> usize {
        (self.room.limit / SHARE_OF_ALL).min(self.room.free.available_permits() / SHARE_OF_FREE)
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.room.limit - self.room.free.available_permits()
    }

    /// Waits for room, then hands over.
    async fn send(&self, lane: usize, bytes: u32, job: Job) {
        // It is never closed.
        let Ok(room) = self.room.free.acquire_many(bytes).await else { return job.refuse() };
        match self.lanes[lane].send(job).await {
            Ok(()) => room.forget(),
            Err(mpsc::error::SendError(job)) => job.refuse(),
        }
    }

    /// Stores and waits for the commit.
    pub(crate) async fn write(&self, append: Append, trace: Trace) -> Result<Appended, WriteError> {
        let (done, result) = oneshot::channel();
        let (lane, bytes) = (lane_of(&append.stream, self.lanes.len()), self.cost(&append));
        let done = Box::new(move |result| drop(done.send(result)));
        self.send(lane, bytes, Job::One { append, trace, bytes, done }).await;
        result.await.map_err(|_| WriteError::Unavailable)?
    }

    /// Stores all or nothing and waits for the commit. At most [`MOST_TOGETHER`] items.
    ///
    /// It goes through the lane of its first stream. In its other streams it may be published before what
    /// another lane has committed just before; nodes put that in order by the positions.
    pub(crate) async fn write_whole(
        &self,
        appends: Vec<Append>,
        traces: Vec<Trace>,
    ) -> Result<Vec<Appended>, TogetherError> {
        let Some(first) = appends.first() else { return Ok(Vec::new()) };
        let lane = lane_of(&first.stream, self.lanes.len());
        let (done, result) = oneshot::channel();
        let bytes = self.room.cost(&appends);
        self.send(lane, bytes, Job::Together { appends, traces, bytes, done }).await;
        result.await.map_err(|_| TogetherError::Unavailable)?
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Job {
    /// Says that it could not be stored.
    fn refuse(self) {
        match self {
            Self::One { done, .. } => done(Err(WriteError::Unavailable)),
            // Whoever asked may have gone.
            Self::Together { done, .. } => drop(done.send(Err(TogetherError::Unavailable))),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::One { bytes, .. } | Self::Together { bytes, .. } => *bytes as usize,
        }
    }
}

/// What goes into one transaction.
#[derive(Default)]
struct Batch {
    appends: Vec<Append>,
    traces: Vec<Trace>,
    done: Vec<Done>,
    bytes: usize,
}

fn lane_of(stream: &Stream, lanes: usize) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    hasher.finish() as usize % lanes
}

impl Lane {
    async fn run(self, mut waiting: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut jobs = Vec::with_capacity(BATCH);
        let mut batch = Batch::default();
        let mut stopped = pin!(stop.cancelled_owned());
        loop {
            let taken = tokio::select! {
                taken = waiting.recv_many(&mut jobs, BATCH) => taken,
                () = &mut stopped, if !waiting.is_closed() => {
                    waiting.close();
                    continue;
                }
            };
            if taken == 0 {
                return;
            }
            // What has waited for a database that does not answer waits no second time.
            let mut away = false;
            for job in jobs.drain(..) {
                let bytes = job.bytes();
                match job {
                    job if away => {
                        job.refuse();
                        self.room.give_back(bytes);
                    }
                    Job::One { append, trace, done, .. } => {
                        if batch.bytes + bytes > BATCH_BYTES {
                            away = self.write(&mut batch).await;
                        }
                        batch.appends.push(append);
                        batch.traces.push(trace);
                        batch.done.push(done);
                        batch.bytes += bytes;
                    }
                    Job::Together { appends, traces, done, .. } => {
                        // What came before it is committed before it.
                        self.write(&mut batch).await;
                        let result = self.append_all(&appends).await;
                        if let Ok(stored) = &result {
                            self.publish_new(appends.iter().zip(&traces).zip(stored));
                        }
                        // Whoever asked may have gone.
                        let _ = done.send(result);
                        self.room.give_back(bytes);
                    }
                }
            }
            if away { self.refuse(&mut batch, &WriteError::Unavailable) } else { _ = self.write(&mut batch).await }
        }
    }

    /// Stores what is in the batch. `true` when the database is away, and nothing was stored.
    async fn write(&self, batch: &mut Batch) -> bool {
        if batch.appends.is_empty() {
            return false;
        }
        let results = match self.append(&batch.appends).await {
            Ok(results) => results,
            Err(error) => {
                let away = error.is_retryable();
                self.refuse(batch, &if away { WriteError::Unavailable } else { WriteError::Failed });
                return away;
            }
        };
        let batched = batch.appends.drain(..).zip(batch.traces.drain(..)).zip(batch.done.drain(..));
        for (((append, trace), done), result) in batched.zip(results) {
            let result = result.map_err(WriteError::from);
            self.publish_new(result.iter().map(|appended| ((&append, &trace), appended)));
            done(result);
        }
        self.room.give_back(std::mem::take(&mut batch.bytes));
        false
    }

    fn refuse(&self, batch: &mut Batch, why: &WriteError) {
        batch.appends.clear();
        batch.traces.clear();
        batch.done.drain(..).for_each(|done| done(Err(why.clone())));
        self.room.give_back(std::mem::take(&mut batch.bytes));
    }

    fn publish_new<'a>(&self, stored: impl Iterator<Item = ((&'a Append, &'a Trace), &'a Appended)>) {
        let keys = self.seals.keys();
        for ((append, trace), appended) in stored {
            let Appended { id, seq, repeated, .. } = appended;
            tracing::debug!(%id, stream = ?append.stream, seq, repeated, traceparent = trace.as_deref(), "a message is stored");
            if !repeated {
                self.publish(append, trace.as_deref(), appended, &keys);
            }
        }
    }

    async fn append_all(&self, whole: &[Append]) -> Result<Vec<Appended>, TogetherError> {
        self.metrics.store_batch_size.observe(whole.len() as f64);
        let stored = self.metrics.time_store("append", self.store.append_all(whole)).await;
        self.health.note("writes", &stored);
        match stored {
            Ok(result) => result.map_err(TogetherError::Refused),
            Err(_noted) => Err(TogetherError::Unavailable),
        }
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Result<Appended, AppendError>>, StoreError> {
        self.metrics.store_batch_size.observe(batch.len() as f64);
        let stored = self.metrics.time_store("append", self.store.append(batch)).await;
        self.health.note("writes", &stored);
        stored
    }

    /// Queues the event of what was just committed. If the layer does not take it, nodes find the message by
    /// comparing positions, as soon as they can be told to (`peers.rs`).
    fn publish(&self, append: &Append, trace: Option<&str>, appended: &Appended, keys: &Keys) {
        let (group, event) = self.event(append, appended);
        let event = traced(event, trace);
        let sent = group.map_err(|error| error.to_string()).and_then(|group| {
            let event = keys.seal(event, group.as_str());
            self.layer.group_send_later(&group, &event).map_err(|error| error.to_string())
        });
        let Appended { id, seq, .. } = appended;
        match sent {
            Ok(()) => tracing::debug!(%id, stream = ?append.stream, seq, "a stored message is on its way to the layer"),
            Err(error) => {
                tracing::debug!(error, %id, stream = ?append.stream, seq, "a stored message could not be written to the layer");
            }
        }
    }

    fn event(
        &self,
        append: &Append,
        appended: &Appended,
    ) -> (Result<channel_layer::GroupName, channel_layer::NameError>, Event) {
        let Appended { id, seq, epoch, date, .. } = *appended;
        let text = |text: &Arc<str>| text.to_string();
        let (from_user, message) = (text(&append.from_user), text(&append.message));
        let (source, event_id) = append.origin.as_ref().map(|(source, id)| (text(source), text(id))).unzip();
        let data = append.data.as_ref().map(text);
        let row =
            Message { id, seq, epoch, from_user, message, data, date, source, event_id, seen: false, redacted: false };
        match &append.stream {
            Stream::Room(room) => {
                let display_name = appended.display_name.as_deref().unwrap_or(room);
                (self.names.room(room), events::chat_event(room, display_name, &row))
            }
            Stream::Inbox(user) => (self.names.user(user), events::notification_event(&row)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use channel_layer::MemoryLayer;
    use parking_lot::Mutex;
    use persistence::StoreOptions;

    use super::*;

    const LIMIT: usize = 200_000;

    fn chat() -> Append {
        Append {
            stream: Stream::Room("lobby".into()),
            from_user: "alice".into(),
            message: "x".repeat(10_000).into(),
            data: None,
            key: None,
            create_inbox: false,
            origin: None,
        }
    }

    async fn writer() -> (Writer, TaskTracker, tokio_util::sync::DropGuard) {
        let store = Store::connect(StoreOptions::new("sqlite::memory:")).await.unwrap();
        store.migrate().await.unwrap();
        store.create_room("lobby", None).await.unwrap();
        let layer: Arc<dyn ChannelLayer> = Arc::new(MemoryLayer::new());
        let (names, metrics) = (GroupNames::new("{username}", false), Arc::new(Metrics::new()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let seals = Arc::new(Seals::new(&store.secrets(Duration::from_secs(3600)).await.unwrap(), &metrics));
        (
            Writer::start(LIMIT, &store, &layer, &names, &seals, &Arc::new(Health::new(&metrics)), &tasks, &stop),
            tasks,
            stop.drop_guard(),
        )
    }

    #[tokio::test]
    async fn what_waits_to_be_stored_is_bounded_in_bytes_and_the_rest_is_refused_at_once() {
        let (writer, _tasks, _stop) = writer().await;
        let (share, stored) = (writer.share(), Arc::new(Mutex::new(Vec::new())));
        // Nobody else runs until this test waits for something.
        for _ in 0..30 {
            let (append, stored) = (chat(), Arc::clone(&stored));
            let bytes = writer.cost(&append);
            writer.submit(append, bytes, Box::new(move |result| stored.lock().push(result.is_ok())));
            assert!(writer.waiting() <= LIMIT);
        }
        let refused = writer.metrics.writes_refused.get() as usize;
        assert!((11..=14).contains(&refused), "{refused}");
        assert_eq!(*stored.lock(), vec![false; refused]);
        assert!(writer.share() < share / 10, "the less is free, the less may be one client's");
        writer.write(chat(), None).await.unwrap();
        assert_eq!(stored.lock().iter().filter(|stored| **stored).count(), 30 - refused, "what was taken is stored");
        assert_eq!((writer.waiting(), writer.share()), (0, share));
    }

    #[tokio::test]
    async fn a_whole_that_is_larger_than_all_the_room_takes_its_turn() {
        let (writer, _tasks, _stop) = writer().await;
        let whole = || writer.write_whole((0..40).map(|_| chat()).collect(), vec![None; 40]);
        let (one, other, single) = tokio::join!(whole(), whole(), writer.write(chat(), None));
        assert_eq!((one.unwrap().len(), other.unwrap().len(), single.is_ok()), (40, 40, true));
        assert_eq!((writer.waiting(), writer.metrics.writes_refused.get()), (0, 0));
    }
}
