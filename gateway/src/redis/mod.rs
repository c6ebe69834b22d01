//! What is in Redis beside the channel layer: which deployment it belongs to, whose a node's id is, entries of the
//! stream of durable events and of its dead letters, and a look for traces of another layer.

mod backlog;
mod connection;
mod dead;
mod entry;
mod hint;
mod node_id;
mod pool;
mod server;
mod session_cache;
pub(crate) mod unread;

use std::sync::Arc;
use std::time::Duration;

use channel_layer::Pooled;
use uuid::Uuid;

use crate::config::Config;
use crate::health::Health;
pub(crate) use backlog::Backlog;
pub(crate) use connection::{ANSWER, Connection};
pub(crate) use dead::{DeadLetters, before};
pub(crate) use entry::{Entry, entries, entries_of_read};
pub(crate) use hint::{other_layer, warn_of_other_layer};
pub(crate) use node_id::NodeId;
pub use node_id::NodeIdError;
pub use server::RedisFailed;
pub(crate) use server::{LETTER_TIME, Server};
pub(crate) use session_cache::{Cached, SessionCache};
pub(crate) use unread::Moved;

/// The one consumer group of the stream.
pub(crate) const GROUP: &str = "gateway";

/// How often the claim is looked at again; an emptied Redis has forgotten it.
const CLAIM_EVERY: Duration = Duration::from_secs(15);

/// What stands there, or nothing; of anything longer than an id the beginning.
async fn read(redis: &mut Pooled, key: &str) -> Result<String, RedisFailed> {
    Ok(redis::cmd("GETRANGE").arg(key).arg(0).arg(uuid::fmt::Hyphenated::LENGTH).query_async(redis).await?)
}

/// The nodes of one deployment share one database; its id is noted in Redis, so that a node with
/// another database cannot mix its messages into theirs.
pub(crate) struct Deployment {
    server: Server,
    id: Uuid,
    keys: [String; 2],
}

/// Why a node may not use this Redis.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// Another database stands behind this Redis.
    #[error(
        "this Redis belongs to another deployment: its key {key} names {theirs}, and this node's database is {ours}. \
         Nodes of one deployment share one database; another deployment needs its own --namespace and --layer-prefix. \
         If the database was replaced on purpose, delete the key"
    )]
    Other {
        /// The key in Redis.
        key: String,
        /// The id in Redis.
        theirs: String,
        /// The id in this node's database.
        ours: Uuid,
    },
    /// Redis does not answer.
    #[error("Redis cannot be asked for its deployment")]
    Unavailable(#[from] RedisFailed),
}

impl Deployment {
    pub(crate) fn new(server: Server, config: &Config, id: Uuid) -> Self {
        // The second key stands for the layer prefix, whatever the namespace: who shares it shares groups.
        let keys = [format!("{}:deployment", config.namespace), format!("gateway:layer:{}", config.layer.prefix)];
        Self { server, id, keys }
    }

    /// Notes the deployment's id, or finds that another one has done so.
    pub(crate) async fn claim(&self) -> Result<(), DeploymentError> {
        for key in &self.keys {
            let mut redis = self.server.ask(key).await?;
            let ours = self.id.to_string();
            let noted = redis::cmd("SETNX").arg(key).arg(&ours).query_async::<()>(&mut redis).await;
            noted.map_err(RedisFailed::from)?;
            let theirs = read(&mut redis, key).await?;
            if theirs != ours {
                return Err(DeploymentError::Other { key: key.clone(), theirs, ours: self.id });
            }
        }
        Ok(())
    }

    /// Whether another deployment has claimed it.
    pub(crate) async fn look(&self) -> Result<(), DeploymentError> {
        for key in &self.keys {
            let theirs = read(&mut self.server.ask(key).await?, key).await?;
            if !theirs.is_empty() && theirs != self.id.to_string() {
                return Err(DeploymentError::Other { key: key.clone(), theirs, ours: self.id });
            }
        }
        Ok(())
    }

    /// Claims again from time to time.
    pub(crate) async fn keep_claiming(self, health: Arc<Health>) {
        loop {
            tokio::time::sleep(CLAIM_EVERY).await;
            let claimed = self.claim().await;
            health.note("deployment", &claimed);
        }
    }
}
