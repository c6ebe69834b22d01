//! Joining groups on the layer, once per node and many at a time; leaving them when nobody is left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use channel_layer::{GroupName, LayerError};
use persistence::{Head, StoreError, Stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::group::Group;
use super::{Hub, Work};
use crate::storing::batch::{BatchError, Batcher};

/// Groups joined with one command and one statement.
const GROUPS_PER_BATCH: usize = 1000;

/// Why groups could not be joined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// The layer did not confirm the subscription.
    #[error("the channel layer cannot subscribe")]
    Layer(#[from] LayerError),
    /// The streams' positions could not be read.
    #[error("the database cannot tell positions")]
    Store(#[from] StoreError),
    /// A batch of joins failed.
    #[error("joining failed")]
    Batch(#[source] Arc<JoinError>),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// Makes groups live, one batch after another, so that joining and leaving never race.
pub(super) struct Joiner(Batcher<Request, (), JoinError>);

/// A group, and the stream that it carries.
type Wanted = (GroupName, Option<Stream>);

enum Request {
    /// All that a socket lacks.
    MakeLive(Vec<Wanted>),
    Reap,
}

impl Joiner {
    pub(super) fn spawn(hub: &Arc<Hub>, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let hub = Arc::downgrade(hub);
        Self(Batcher::spawn(tasks, stop, GROUPS_PER_BATCH, move |requests| {
            let hub = hub.upgrade();
            async move {
                let answers = vec![(); requests.len()];
                let hub = hub.ok_or(JoinError::Stopped)?;
                hub.serve(requests).await?;
                Ok(answers)
            }
        }))
    }

    pub(super) async fn make_live(&self, groups: Vec<Wanted>) -> Result<(), JoinError> {
        self.load(Request::MakeLive(groups)).await
    }

    async fn load(&self, request: Request) -> Result<(), JoinError> {
        self.0.load(request).await.map_err(|error| match error {
            BatchError::Failed(error) => JoinError::Batch(error),
            BatchError::Stopped => JoinError::Stopped,
        })
    }
}

/// Leaves groups that have been empty for a while.
pub(super) async fn reap(hub: Arc<Hub>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Some(joins) = hub.joins.get() {
            hub.health.note("groups", &joins.load(Request::Reap).await);
            hub.health.note("late_groups", &hub.join_late().await);
        }
    }
}

impl Hub {
    async fn serve(&self, requests: Vec<Request>) -> Result<(), JoinError> {
        let mut wanted: HashMap<GroupName, Option<Stream>> = HashMap::new();
        let mut reap = false;
        for request in requests {
            let Request::MakeLive(groups) = request else {
                reap = true;
                continue;
            };
            for (name, stream) in groups {
                let known = self.group(&name).is_some_and(|group| group.follows(stream.as_ref()));
                if !known {
                    let entry = wanted.entry(name).or_default();
                    *entry = stream.or_else(|| entry.take());
                }
            }
        }
        let mut wanted = wanted.into_iter();
        loop {
            let some: HashMap<_, _> = wanted.by_ref().take(GROUPS_PER_BATCH).collect();
            if some.is_empty() {
                break;
            }
            self.make_live(some).await?;
        }
        if reap {
            self.leave_empty_groups().await?;
        }
        Ok(())
    }

    /// Subscribes, then reads the positions: what is committed after the head was read is heard.
    async fn make_live(&self, wanted: HashMap<GroupName, Option<Stream>>) -> Result<(), JoinError> {
        let relay = self.relay.get().ok_or(JoinError::Stopped)?;
        let new: Vec<GroupName> = wanted.keys().filter(|name| self.group(name).is_none()).cloned().collect();
        if !new.is_empty() {
            relay.join(&new).await?;
        }
        let streams: Vec<(GroupName, Stream)> =
            wanted.iter().filter_map(|(name, stream)| Some((name.clone(), stream.clone()?))).collect();
        let heads = match self.heads(&streams).await {
            Ok(heads) => heads,
            Err(error) => {
                // Without a position the groups are of no use; the next who wants them tries again.
                if let Err(error) = relay.leave(&new).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "groups could not be left again");
                }
                return Err(error.into());
            }
        };
        let nothing = Head { epoch: 0, last_seq: 0, last_id: None };
        for (name, stream) in wanted {
            let shard = self.shard_of(&name);
            let group = Arc::clone(shard.groups.lock().entry(name.clone()).or_insert_with(|| {
                self.metrics.groups.inc();
                Arc::new(Group::new(name.clone()))
            }));
            if let Some(stream) = stream {
                // A stream without a head begins with its first message; its epoch shows itself then.
                let recent = self.recent(&stream);
                group.follow(stream, heads.get(&name).unwrap_or(&nothing), recent, &self.held_memory);
            }
        }
        Ok(())
    }

    async fn leave_empty_groups(&self) -> Result<(), JoinError> {
        let now = Instant::now();
        let mut left = Vec::new();
        for shard in &self.shards {
            let mut grown = Vec::new();
            shard.groups.lock().retain(|name, group| {
                if group.is_due(now) {
                    grown.push(name.clone());
                }
                let expired = group.expire(now);
                if expired {
                    left.push(name.clone());
                }
                !expired
            });
            for group in grown {
                self.push(shard, Work::Grown(group));
                shard.ready.notify_one();
            }
        }
        self.metrics.recent_bytes.set((self.room_memory.used() + self.inbox_memory.used()) as i64);
        self.metrics.held_bytes.set(self.held_memory.used() as i64);
        self.metrics.hub_queue_bytes.set(self.queued() as i64);
        if !left.is_empty() {
            self.metrics.groups.dec_by(left.len() as i64);
            if let Some(relay) = self.relay.get() {
                relay.leave(&left).await?;
            }
        }
        Ok(())
    }
}
