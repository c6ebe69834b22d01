//! A node's id is its own: others call it by that, and it is its name in the consumer group of the event stream. It is
//! kept in Redis for some seconds at a time.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::RedisFailed;
use super::server::Server;
use crate::config::Config;
use crate::health::Health;

/// How long the id of a node that died stays taken, and how often a living one says that it has it.
const LEASE: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_millis(1500);

/// Bytes of a value: two UUIDs and a space. What else may stand there has no bound.
const VALUE: usize = 73;

/// How often a taken id is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The id of a node, in Redis.
pub(crate) struct NodeId {
    server: Server,
    key: String,
    id: String,
    /// Tells this node from another one of that id.
    mark: String,
}

/// Why a node may not have its id.
#[derive(Debug, thiserror::Error)]
pub enum NodeIdError {
    /// A living node has it.
    #[error(
        "another node runs under the id {0:?}: give each its own --node-id (GATEWAY_NODE_ID), or none, and it makes a \
         random one"
    )]
    Taken(String),
    /// Redis does not answer.
    #[error("Redis cannot be asked for the nodes' ids")]
    Unavailable(#[from] RedisFailed),
}

impl From<RedisError> for NodeIdError {
    fn from(error: RedisError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl NodeId {
    pub(crate) fn new(server: Server, config: &Config) -> Self {
        let id = config.node_id.clone();
        Self { server, key: format!("{}:node:{id}", config.namespace), id, mark: Uuid::new_v4().to_string() }
    }

    /// Takes the id. One that is taken is waited for as long as a dead node can have it; a living one says so meanwhile.
    pub(crate) async fn take(&self) -> Result<(), NodeIdError> {
        let began = Instant::now();
        let mut before: Option<String> = None;
        loop {
            if self.try_take().await? {
                return Ok(());
            }
            let now = self.read().await?;
            match (&before, &now) {
                (Some(before), Some(now)) if before != now => return Err(NodeIdError::Taken(self.id.clone())),
                (None, Some(_)) => {
                    tracing::info!(node = self.id, "a node had this id just now: waiting for whether it lives");
                }
                _ => {}
            }
            if began.elapsed() > LEASE + RENEW_EVERY {
                return Err(NodeIdError::Taken(self.id.clone()));
            }
            before = now.or(before);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Keeps the id until the node stops.
    pub(crate) async fn keep(self: Arc<Self>, health: Arc<Health>) {
        loop {
            sleep(RENEW_EVERY).await;
            health.note("node_id", &self.renew().await);
        }
    }

    /// Gives the id back.
    pub(crate) async fn give_back(&self) -> Result<(), NodeIdError> {
        if self.read().await?.is_some_and(|value| self.is_ours(&value)) {
            let mut redis = self.server.ask(&self.key).await?;
            redis::cmd("SET").arg(&self.key).arg("").arg("PX").arg(1).query_async::<()>(&mut redis).await?;
        }
        Ok(())
    }

    async fn renew(&self) -> Result<(), NodeIdError> {
        match self.read().await? {
            Some(value) if self.is_ours(&value) => {
                self.write(&[]).await?;
                Ok(())
            }
            // Redis was away, or emptied, or this process was frozen.
            None if self.try_take().await? => Ok(()),
            _ => Err(NodeIdError::Taken(self.id.clone())),
        }
    }

    async fn try_take(&self) -> Result<bool, NodeIdError> {
        self.write(&["NX"]).await
    }

    /// Writes a value that is another one each time.
    async fn write(&self, options: &[&str]) -> Result<bool, NodeIdError> {
        let mut redis = self.server.ask(&self.key).await?;
        let value = format!("{} {}", self.mark, Uuid::new_v4());
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(value).arg("PX").arg(LEASE.as_millis() as u64).arg(options);
        let done: Option<String> = set.query_async(&mut redis).await?;
        Ok(done.is_some())
    }

    async fn read(&self) -> Result<Option<String>, NodeIdError> {
        let mut redis = self.server.ask(&self.key).await?;
        let value: String = redis::cmd("GETRANGE").arg(&self.key).arg(0).arg(VALUE - 1).query_async(&mut redis).await?;
        Ok(Some(value).filter(|value| !value.is_empty()))
    }

    fn is_ours(&self, value: &str) -> bool {
        value.split_once(' ').is_some_and(|(mark, _)| mark == self.mark)
    }
}
