//! What a node does in Redis beside the channel layer: it notes which deployment it belongs to, and reads
//! the stream of durable events.

mod stream;

use std::time::Duration;

use deadpool_redis::redis::{self, AsyncCommands};
use deadpool_redis::{Pool, Runtime};
use uuid::Uuid;

use crate::config::Config;
pub(crate) use stream::{DeadLetters, DeadLettersError, ingest};

/// How often the claim is looked at again; an emptied Redis has forgotten it.
const CLAIM_EVERY: Duration = Duration::from_secs(15);

/// Longest wait for Redis.
const PATIENCE: Duration = Duration::from_secs(2);

/// The nodes of one deployment share one database; its id is noted in Redis, so that a node with
/// another database cannot mix its messages into theirs.
pub(crate) struct Deployment {
    pool: Result<Pool, String>,
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
    #[error("Redis cannot be asked for its deployment: {0}")]
    Unavailable(String),
}

/// A small pool for commands beside the layer; every wait in it is bounded.
fn pool(url: &str) -> Result<Pool, String> {
    let builder = deadpool_redis::Config::from_url(url).builder().map_err(|error| error.to_string())?;
    let builder = builder.max_size(1).runtime(Runtime::Tokio1);
    let builder = builder.create_timeout(Some(PATIENCE)).wait_timeout(Some(PATIENCE));
    builder.build().map_err(|error| error.to_string())
}

impl Deployment {
    pub(crate) fn new(url: &str, config: &Config, id: Uuid) -> Self {
        let pool = pool(url);
        // The second key stands for the layer prefix, whatever the namespace: who shares it shares groups.
        let keys = [format!("{}:deployment", config.namespace), format!("gateway:layer:{}", config.layer_prefix)];
        Self { pool, id, keys }
    }

    /// Notes the deployment's id, or finds that another one has done so.
    pub(crate) async fn claim(&self) -> Result<(), DeploymentError> {
        let unavailable = |error: &dyn std::fmt::Display| DeploymentError::Unavailable(error.to_string());
        let pool = self.pool.as_ref().map_err(|error| unavailable(error))?;
        let mut connection = pool.get().await.map_err(|error| unavailable(&error))?;
        for key in &self.keys {
            let ours = self.id.to_string();
            let theirs: String = async {
                let _: bool = connection.set_nx(key, &ours).await?;
                connection.get(key).await
            }
            .await
            .map_err(|error: redis::RedisError| unavailable(&error))?;
            if theirs != ours {
                return Err(DeploymentError::Other { key: key.clone(), theirs, ours: self.id });
            }
        }
        Ok(())
    }

    /// Claims again from time to time.
    pub(crate) async fn keep_claiming(self) {
        loop {
            tokio::time::sleep(CLAIM_EVERY).await;
            match self.claim().await {
                Ok(()) => {}
                Err(DeploymentError::Unavailable(error)) => {
                    tracing::debug!(error, "the deployment could not be checked")
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "two deployments share one Redis")
                }
            }
        }
    }
}
