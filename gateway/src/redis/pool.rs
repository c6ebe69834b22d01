//! The connections that questions share: few, checked before they are used again.
//!
//! The pool is the one inside `deadpool-redis`. That crate's own connections would want every URL read a
//! second time, TLS set up a second time, and other types for Sentinels and clusters; a
//! [`Connector`] knows all of it.

use std::time::Duration;

use channel_layer::{Connector, LayerError};
use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use tokio::time::timeout;

use super::RedisFailed;
use super::connection::Connection;
use super::server::{PATIENCE, connect};

/// Most connections to one place; who comes then waits for one.
const MAX_CONNECTIONS: usize = 4;

/// How soon a connection that was used before must say that it lives.
const ALIVE: Duration = Duration::from_millis(500);

pub(crate) type Pool = managed::Pool<Opener>;

/// A connection for a while; the next one gets it when this is dropped.
pub(crate) type Lent = Object<Opener>;

/// Opens connections to the server that has a key.
pub(crate) struct Opener {
    connector: Connector,
    key: String,
}

pub(crate) fn new(connector: Connector, key: &str) -> Result<Pool, RedisFailed> {
    let builder = Pool::builder(Opener { connector, key: key.to_owned() });
    // The one used last is most likely alive.
    let pool = builder.max_size(MAX_CONNECTIONS).queue_mode(QueueMode::Lifo).build();
    pool.map_err(|error| LayerError::Config(error.to_string()).into())
}

pub(crate) async fn lend(pool: &Pool) -> Result<Lent, RedisFailed> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(failed) => failed,
        other => LayerError::Unavailable(other.to_string().into()).into(),
    })
}

impl managed::Manager for Opener {
    type Type = Connection;
    type Error = RedisFailed;

    async fn create(&self) -> Result<Connection, RedisFailed> {
        connect(&self.connector, &self.key, PATIENCE).await
    }

    async fn recycle(&self, redis: &mut Connection, _: &Metrics) -> RecycleResult<RedisFailed> {
        if !redis.is_fit() {
            return Err(RecycleError::message("a command failed"));
        }
        let ping = redis::cmd("PING");
        let pong = timeout(ALIVE, ping.query_async::<()>(redis)).await;
        pong.map_err(|_late| RedisFailed::from(LayerError::Timeout))?.map_err(|error| RedisFailed::from(error).into())
    }
}
