//! When to ask a cluster for its map, and what has to wait for a better one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::registry::Topic;
use crate::{
    BoxError,
    redis::{backoff::Backoff, topology::Cluster},
};

/// How often to ask while all is well: a node that has handed its slots over keeps its subscribers.
const EVERY: Duration = Duration::from_secs(10);

/// How long the answers may still be old after a node has said that slots have moved.
const DOUBT: Duration = Duration::from_secs(3);

pub(super) struct Mapper {
    pub(super) cluster: Arc<Cluster>,
    version: watch::Receiver<u64>,
    asking: Option<Question>,
    /// Whether somebody could not wait for the next turn.
    urgent: bool,
    /// Not before this.
    next: Instant,
    /// Until then it is asked for as if not all were well.
    doubtful: Instant,
    backoff: Backoff,
    failing: bool,
    was_whole: bool,
    /// Subscriptions that a node refused or ended because they belong elsewhere.
    pub(super) again: Vec<Topic>,
}

type Question = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

impl Mapper {
    /// Asks at once.
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        let mut version = cluster.version();
        version.mark_changed();
        let backoff = Backoff::default();
        let mut mapper = Self {
            cluster,
            version,
            asking: None,
            urgent: false,
            next: Instant::now(),
            doubtful: Instant::now(),
            backoff,
            failing: false,
            was_whole: false,
            again: Vec::new(),
        };
        mapper.begin();
        mapper
    }

    fn begin(&mut self) {
        self.urgent = false;
        let cluster = self.cluster.clone();
        self.asking = Some(Box::pin(async move { cluster.refresh().await }));
    }

    /// The map is wrong: asks for it as soon as it is decent.
    pub(super) fn ask(&mut self) {
        match self.asking.is_none() && self.next <= Instant::now() {
            true => self.begin(),
            false => self.urgent = true,
        }
    }

    /// A node has shown that the map is wrong; the others may not know it yet.
    pub(super) fn doubt(&mut self) {
        self.doubtful = Instant::now() + DOUBT;
        self.ask();
    }

    /// Ready when an answer has come, or none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(asking) = &mut self.asking else { return Poll::Pending };
        let Poll::Ready(result) = asking.as_mut().poll(cx) else { return Poll::Pending };
        self.asking = None;
        self.next = Instant::now() + self.backoff.next_pause();
        match (result, std::mem::replace(&mut self.failing, false)) {
            (Ok(()), _) => {}
            (Err(error), before) => {
                self.failing = true;
                if !before {
                    tracing::warn!(%error, "the cluster is away");
                }
            }
        }
        Poll::Ready(())
    }

    /// To be called often; `settled` if every subscription is where it belongs. Tells whether others have
    /// found a new map.
    pub(super) fn tick(&mut self, now: Instant, settled: bool) -> bool {
        let wanted = match settled && !self.urgent && now >= self.doubtful {
            true => now >= self.next + EVERY,
            false => now >= self.next,
        };
        if settled {
            self.backoff.reset();
        }
        if wanted && self.asking.is_none() {
            self.begin();
        }
        self.version.has_changed().unwrap_or(false)
    }

    /// Everything is where it belongs; tells whether that was so once before.
    pub(super) fn is_back(&mut self) -> bool {
        std::mem::replace(&mut self.was_whole, true)
    }

    /// Whether the map is another one than at the last call. Others ask for it too.
    pub(super) fn has_changed(&mut self) -> bool {
        let changed = self.version.has_changed().unwrap_or(false);
        self.version.mark_unchanged();
        changed
    }
}
