//! Stored first, then sent: what consumers and the API want to store, made into few transactions, and
//! written to the layer in commit order.

use std::pin::pin;
use std::sync::Arc;

use channel_layer::{ChannelLayer, Event};
use persistence::{Append, AppendError, Appended, Message, Notification, Refused, Store, StoreError, Stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::events;
use crate::metrics::Metrics;
use crate::names::GroupNames;
use crate::seal::{Keys, Seals};

/// Rows per transaction, at most.
const BATCH: usize = 500;

/// Items of something that is stored as a whole, at most.
pub(crate) const WHOLE: usize = 1000;

/// Messages that may wait for a transaction; whoever comes after waits for room.
const WAITING: usize = 4096;

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
pub(crate) enum WholeError {
    /// An item of it cannot be stored, so nothing was.
    Refused(Refused),
    /// As [`WriteError::Unavailable`].
    Unavailable,
}

enum Job {
    One {
        append: Append,
        done: Done,
    },
    /// All or nothing, in a transaction of its own.
    Whole {
        appends: Vec<Append>,
        done: oneshot::Sender<Result<Vec<Appended>, WholeError>>,
    },
}

/// A handle to the lanes that write. Items of one stream share a lane, so they are committed and
/// published in the order in which they came.
#[derive(Debug)]
pub(crate) struct Writer {
    lanes: Vec<mpsc::Sender<Job>>,
}

struct Lane {
    store: Store,
    layer: Arc<dyn ChannelLayer>,
    names: GroupNames,
    seals: Arc<Seals>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Starts the lanes: one for SQLite, which has one writer anyway, four for servers. With `stop` they take
    /// nothing more, and end when what they have is written.
    pub(crate) fn start(
        store: &Store,
        layer: &Arc<dyn ChannelLayer>,
        names: &GroupNames,
        seals: &Arc<Seals>,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let lanes = if store.backend() == persistence::Backend::Sqlite { 1 } else { 4 };
        let lanes = (0..lanes)
            .map(|_| {
                let (jobs, waiting) = mpsc::channel(WAITING);
                let lane = Lane {
                    store: store.clone(),
                    layer: Arc::clone(layer),
                    names: names.clone(),
                    seals: Arc::clone(seals),
                    metrics: Arc::clone(metrics),
                };
                tasks.spawn(lane.run(waiting, stop.clone()));
                jobs
            })
            .collect();
        Self { lanes }
    }

    /// Hands over something to store. Waits only while too much is waiting already.
    pub(crate) async fn submit(&self, append: Append, done: Done) {
        let lane = lane_of(&append.stream, self.lanes.len());
        if let Err(mpsc::error::SendError(Job::One { done, .. })) =
            self.lanes[lane].send(Job::One { append, done }).await
        {
            done(Err(WriteError::Unavailable));
        }
    }

    /// Stores and waits for the commit.
    pub(crate) async fn write(&self, append: Append) -> Result<Appended, WriteError> {
        let (done, result) = oneshot::channel();
        self.submit(append, Box::new(move |result| drop(done.send(result)))).await;
        result.await.map_err(|_| WriteError::Unavailable)?
    }

    /// Stores all or nothing and waits for the commit. At most [`WHOLE`] items.
    ///
    /// It goes through the lane of its first stream. In its other streams it may be published before what
    /// another lane has committed just before; nodes put that in order by the positions.
    pub(crate) async fn write_whole(&self, appends: Vec<Append>) -> Result<Vec<Appended>, WholeError> {
        let Some(first) = appends.first() else { return Ok(Vec::new()) };
        let lane = lane_of(&first.stream, self.lanes.len());
        let (done, result) = oneshot::channel();
        // A lane that has ended drops the job, and with it the sender of the result.
        let _ = self.lanes[lane].send(Job::Whole { appends, done }).await;
        result.await.map_err(|_| WholeError::Unavailable)?
    }
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
        let (mut batch, mut done) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
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
            for job in jobs.drain(..) {
                match job {
                    Job::One { append, done: one_done } => {
                        batch.push(append);
                        done.push(one_done);
                    }
                    Job::Whole { appends, done: whole_done } => {
                        // What came before it is committed before it.
                        self.write(&mut batch, &mut done).await;
                        let result = self.append_all(&appends).await;
                        if let Ok(stored) = &result {
                            self.publish_new(appends.iter().zip(stored));
                        }
                        // Whoever asked may have gone.
                        let _ = whole_done.send(result);
                    }
                }
            }
            self.write(&mut batch, &mut done).await;
        }
    }

    async fn write(&self, batch: &mut Vec<Append>, done: &mut Vec<Done>) {
        if batch.is_empty() {
            return;
        }
        let results = self.append(batch).await;
        for ((append, done), result) in batch.drain(..).zip(done.drain(..)).zip(results) {
            self.publish_new(result.iter().map(|appended| (&append, appended)));
            done(result);
        }
    }

    fn publish_new<'a>(&self, stored: impl Iterator<Item = (&'a Append, &'a Appended)>) {
        let keys = self.seals.keys();
        let new = stored.filter(|(_, appended)| !appended.repeated);
        new.for_each(|(append, appended)| self.publish(append, appended, &keys));
    }

    async fn append_all(&self, whole: &[Append]) -> Result<Vec<Appended>, WholeError> {
        self.metrics.store_batch_size.observe(whole.len() as f64);
        match self.metrics.time_store("append", self.store.append_all(whole)).await {
            Ok(result) => result.map_err(WholeError::Refused),
            Err(error) => {
                self.log(&error, whole.len());
                Err(WholeError::Unavailable)
            }
        }
    }

    async fn append(&self, batch: &[Append]) -> Vec<Result<Appended, WriteError>> {
        self.metrics.store_batch_size.observe(batch.len() as f64);
        let result = self.metrics.time_store("append", self.store.append(batch)).await;
        match result {
            Ok(results) => results.into_iter().map(|result| result.map_err(WriteError::from)).collect(),
            Err(error) => {
                self.log(&error, batch.len());
                let failed = if error.is_retryable() { WriteError::Unavailable } else { WriteError::Failed };
                batch.iter().map(|_| Err(failed.clone())).collect()
            }
        }
    }

    fn log(&self, error: &StoreError, rows: usize) {
        tracing::error!(error = error as &dyn std::error::Error, rows, "messages could not be stored");
    }

    /// Queues the event of what was just committed. If the layer does not take it, nodes find the message by
    /// comparing positions, as soon as they can be told to (`peers.rs`).
    fn publish(&self, append: &Append, appended: &Appended, keys: &Keys) {
        let (group, event) = self.event(append, appended);
        let sent = group.map_err(|error| error.to_string()).and_then(|group| {
            let event = keys.seal(event, group.as_str());
            self.layer.group_send_later(&group, &event).map_err(|error| error.to_string())
        });
        if let Err(error) = sent {
            tracing::debug!(error, "a stored message could not be written to the layer");
        }
    }

    fn event(
        &self,
        append: &Append,
        appended: &Appended,
    ) -> (Result<channel_layer::GroupName, channel_layer::NameError>, Event) {
        let Appended { id, seq, epoch, date, .. } = *appended;
        let (from_user, message) = (append.from_user.to_string(), append.message.to_string());
        match &append.stream {
            Stream::Room(room) => {
                let display_name = appended.display_name.as_deref().unwrap_or(room);
                let row = Message { id, seq, epoch, room: room.clone(), from_user, message, date };
                (self.names.room(room), events::chat_event(room, display_name, &row))
            }
            Stream::Inbox(user) => {
                let origin = append.origin.as_ref();
                let (source, event_id) = origin.map(|(source, id)| (source.to_string(), id.to_string())).unzip();
                let row = Notification { id, seq, epoch, from_user, message, date, seen: false, source, event_id };
                (self.names.user(user), events::notification_event(&row))
            }
        }
    }
}
