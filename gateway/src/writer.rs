//! Stored first, then sent: what consumers and the API want to store, made into few transactions, and
//! written to the layer in commit order.

use std::sync::Arc;

use channel_layer::{ChannelLayer, Event};
use persistence::{Append, AppendError, Appended, Message, Notification, Store, StoreError, Stream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::events;
use crate::metrics::Metrics;
use crate::names::GroupNames;

/// Rows per transaction, at most.
const BATCH: usize = 500;

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
}

/// What is called with the result, after the commit and after the event was handed to the layer.
pub(crate) type Done = Box<dyn FnOnce(Result<Appended, WriteError>) + Send>;

struct Job {
    append: Append,
    done: Done,
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
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Starts the lanes: one for SQLite, which has one writer anyway, four for servers.
    pub(crate) fn start(
        store: &Store,
        layer: &Arc<dyn ChannelLayer>,
        names: &GroupNames,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
    ) -> Self {
        let lanes = if store.backend() == persistence::Backend::Sqlite { 1 } else { 4 };
        let lanes = (0..lanes)
            .map(|_| {
                let (jobs, waiting) = mpsc::channel(WAITING);
                let lane = Lane {
                    store: store.clone(),
                    layer: Arc::clone(layer),
                    names: names.clone(),
                    metrics: Arc::clone(metrics),
                };
                tasks.spawn(lane.run(waiting));
                jobs
            })
            .collect();
        Self { lanes }
    }

    /// Hands over something to store. Waits only while too much is waiting already.
    pub(crate) async fn submit(&self, append: Append, done: Done) {
        let lane = lane_of(&append.stream, self.lanes.len());
        if let Err(mpsc::error::SendError(job)) = self.lanes[lane].send(Job { append, done }).await {
            (job.done)(Err(WriteError::Unavailable));
        }
    }

    /// Stores and waits for the commit.
    pub(crate) async fn write(&self, append: Append) -> Result<Appended, WriteError> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.submit(append, Box::new(move |result| drop(done.send(result)))).await;
        result.await.map_err(|_| WriteError::Unavailable)?
    }
}

fn lane_of(stream: &Stream, lanes: usize) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    hasher.finish() as usize % lanes
}

impl Lane {
    async fn run(self, mut waiting: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut jobs, BATCH).await > 0 {
            let (batch, done): (Vec<Append>, Vec<Done>) = jobs.drain(..).map(|job| (job.append, job.done)).unzip();
            let results = self.append(&batch).await;
            for ((append, done), result) in batch.into_iter().zip(done).zip(results) {
                if let Ok(appended) = &result
                    && !appended.repeated
                {
                    self.publish(&append, appended);
                }
                done(result);
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
                batch.iter().map(|_| Err(WriteError::Unavailable)).collect()
            }
        }
    }

    fn log(&self, error: &StoreError, rows: usize) {
        tracing::error!(error = error as &dyn std::error::Error, rows, "messages could not be stored");
    }

    /// Queues the event of what was just committed. If the layer is away, nodes find the message by
    /// comparing positions.
    fn publish(&self, append: &Append, appended: &Appended) {
        let (group, event) = self.event(append, appended);
        let sent = group
            .map_err(|error| error.to_string())
            .and_then(|group| self.layer.group_send_later(&group, &event).map_err(|error| error.to_string()));
        if let Err(error) = sent {
            self.metrics.layer_publish_failures.inc();
            tracing::debug!(error, "a stored message could not be written to the layer");
        }
    }

    fn event(
        &self,
        append: &Append,
        appended: &Appended,
    ) -> (Result<channel_layer::GroupName, channel_layer::NameError>, Event) {
        let Appended { id, seq, epoch, date, .. } = *appended;
        let (from_user, message) = (append.from_user.clone(), append.message.clone());
        match &append.stream {
            Stream::Room(room) => {
                let display_name = appended.display_name.as_deref().unwrap_or(room);
                let row = Message { id, seq, epoch, room: room.clone(), from_user, message, date };
                (self.names.room(room), events::chat_event(room, display_name, &row))
            }
            Stream::Inbox(user) => {
                let (source, event_id) = append.origin.clone().unzip();
                let row = Notification { id, seq, epoch, from_user, message, date, seen: false, source, event_id };
                (self.names.user(user), events::notification_event(&row))
            }
        }
    }
}
