//! The Redis of what a node keeps beside the channel layer: the first host of the list.
//!
//! The layer's own crate opens the connections, so whatever it understands in a URL (Sentinels, a
//! cluster, TLS with certificates, sockets) is understood here; the crate `redis` speaks over them.

use std::time::Duration;

use channel_layer::{Connector, Host, LayerError};
use redis::aio::MultiplexedConnection;
use redis::{self, AsyncConnectionConfig, RedisConnectionInfo, RedisError};
use tokio::task::JoinSet;

use crate::config::Config;

/// Longest wait for an answer that need not wait for anything.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `CLIENT LIST` shows.
const CLIENT_NAME: &str = "gateway";

/// Where it is.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    connector: Connector,
    /// Two keys may be in two places.
    pub(super) is_cluster: bool,
}

/// Why Redis did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RedisFailed {
    /// There is no connection to be had.
    #[error("Redis cannot be reached")]
    Open(#[from] LayerError),
    /// A command failed.
    #[error("Redis refused")]
    Command(#[from] RedisError),
}

impl RedisFailed {
    /// The server's own word for the refusal, such as `NOGROUP`.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Open(_) => None,
            Self::Command(error) => error.code(),
        }
    }
}

/// An open connection; it ends when this is dropped.
pub(crate) struct Redis {
    pub(super) connection: MultiplexedConnection,
    /// Moves the bytes.
    _driver: JoinSet<()>,
}

impl Server {
    /// The first host of the settings; none with the in-memory layer.
    pub(crate) fn of(config: &Config) -> Result<Option<Self>, LayerError> {
        config.layer.hosts.first().map(Self::at).transpose()
    }

    pub(super) fn at(host: &Host) -> Result<Self, LayerError> {
        Ok(Self { connector: host.connector()?, is_cluster: host.is_cluster() })
    }

    /// Connects to the server that has this key.
    pub(super) async fn open(&self, key: &str) -> Result<Redis, RedisFailed> {
        self.open_for(key, PATIENCE).await
    }

    /// The same with another limit for each answer.
    pub(super) async fn open_for(&self, key: &str, answer: Duration) -> Result<Redis, RedisFailed> {
        let stream = self.connector.open(CLIENT_NAME, key.as_bytes()).await?;
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(answer));
        // Signed in already.
        let info = RedisConnectionInfo::default();
        let opening = MultiplexedConnection::new_with_config(&info, stream, settings);
        let (connection, driver) =
            tokio::time::timeout(PATIENCE, opening).await.map_err(|_late| LayerError::Timeout)??;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        Ok(Redis { connection, _driver: tasks })
    }

    /// Whether it answers.
    pub(crate) async fn ping(&self) -> Result<(), RedisFailed> {
        let mut redis = self.open("").await?;
        Ok(redis::cmd("PING").query_async(&mut redis.connection).await?)
    }
}
