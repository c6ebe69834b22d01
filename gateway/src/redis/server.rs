//! The Redis of what a node keeps beside the channel layer: the first host of the list.
//!
//! The layer's own crate finds the server, so whatever it understands in a URL (Sentinels, a cluster, TLS with
//! certificates, sockets) is understood here; the crate `redis` speaks to it. Short questions share the few connections
//! of a pool of `deadpool-redis`. Those whose answers others make (dead letters, sessions) share a few whose answers
//! have a bound. What waits at the server has a connection of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{Connector, Host, LayerError, Pooled};
use parking_lot::Mutex;
use redis::RedisError;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::connection::Connection;
use super::pool::{self, Lent, Pool};
use crate::config::Config;

/// Longest wait for an answer that need not wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Longest wait for a large entry to be moved within the server, or to be taken by it.
pub(crate) const LETTER_TIME: Duration = Duration::from_secs(10);

/// Longest wait for one of the shared connections, made anew or not.
const TURN: Duration = Duration::from_secs(5);

/// Most connections for short questions.
const QUESTIONS: usize = 2;

/// What `CLIENT LIST` shows.
const CLIENT_NAME: &str = "gateway";

/// Where it is. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Server {
    connector: Connector,
    questions: channel_layer::Pool,
    /// Two keys may be in two places.
    pub(crate) is_cluster: bool,
    /// By key in a cluster, else only one. There are as many as a node has keys here: four.
    pools: Arc<Mutex<HashMap<String, Pool>>>,
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

impl Server {
    /// The first host of the settings; none with the in-memory layer.
    pub(crate) fn of(config: &Config) -> Result<Option<Self>, LayerError> {
        config.layer.hosts.first().map(Self::at).transpose()
    }

    pub(crate) fn at(host: &Host) -> Result<Self, LayerError> {
        Ok(Self {
            connector: host.connector()?,
            questions: host.pool(QUESTIONS)?,
            is_cluster: host.is_cluster(),
            pools: Arc::default(),
        })
    }

    /// A connection for short questions to the server that has this key, within 6 seconds. What it is asked for must not
    /// be large.
    pub(crate) async fn ask(&self, key: &str) -> Result<Pooled, RedisFailed> {
        Ok(self.questions.get(key.as_bytes()).await?)
    }

    /// One of the shared connections to the server that has this key, within 5 seconds.
    pub(crate) async fn open(&self, key: &str) -> Result<Lent, RedisFailed> {
        let place = if self.is_cluster { key } else { "" };
        let pool = {
            let mut pools = self.pools.lock();
            match pools.get(place) {
                Some(pool) => pool.clone(),
                None => {
                    let pool = pool::new(self.connector.clone(), place)?;
                    pools.entry(place.to_owned()).or_insert(pool).clone()
                }
            }
        };
        timeout(TURN, pool::lend(&pool)).await.map_err(|_late| LayerError::Timeout)?
    }

    /// A connection of the caller's own to the server that has this key.
    pub(crate) async fn open_own(&self, key: &str, answer: Duration) -> Result<Connection, RedisFailed> {
        connect(&self.connector, key, answer).await
    }

    /// What time it is there.
    pub(crate) async fn time(&self) -> Result<OffsetDateTime, RedisFailed> {
        let mut redis = self.ask("").await?;
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await?;
        Ok(OffsetDateTime::UNIX_EPOCH + time::Duration::new(seconds, (micros * 1000) as i32))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// Connects to the server that has this key; `answer` is the limit for each answer.
pub(crate) async fn connect(connector: &Connector, key: &str, answer: Duration) -> Result<Connection, RedisFailed> {
    let stream = connector.open(CLIENT_NAME, key.as_bytes()).await?;
    Ok(timeout(PATIENCE, Connection::new(stream, answer)).await.map_err(|_late| LayerError::Timeout)??)
}
