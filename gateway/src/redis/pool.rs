//! The connections that questions share: few, checked before they are used again.
//!
//! The pool is the one inside `deadpool-redis`. That crate's own connections would want every URL read a
//! second time, TLS set up a second time, and other types for Sentinels and clusters; a
//! [`Connector`] knows all of it.

use std::time::Duration;

use channel_layer::{Connector, LayerError};
use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::time::timeout;

use super::RedisFailed;
use super::server::{PATIENCE, Redis};

/// Most connections to one place; who comes then waits for one.
const MAX_CONNECTIONS: usize = 4;

/// How soon a connection that was used before must say that it lives.
const ALIVE: Duration = Duration::from_millis(500);

pub(super) type Pool = managed::Pool<Opener>;

/// A connection for a while; the next one gets it when this is dropped.
pub(super) type Lent = Object<Opener>;

/// Opens connections to the server that has a key.
pub(super) struct Opener {
    connector: Connector,
    key: String,
}

/// A connection of the pool.
pub(super) struct Shared {
    redis: Redis,
    /// A command failed, or nobody waited for its answer. The server may be another one's replica by now,
    /// or have given the key away.
    doubtful: bool,
}

pub(super) fn new(connector: Connector, key: &str) -> Result<Pool, RedisFailed> {
    let builder = Pool::builder(Opener { connector, key: key.to_owned() });
    // The one used last is most likely alive.
    let pool = builder.max_size(MAX_CONNECTIONS).queue_mode(QueueMode::Lifo).build();
    pool.map_err(|error| LayerError::Config(error.to_string()).into())
}

pub(super) async fn lend(pool: &Pool) -> Result<Lent, RedisFailed> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(failed) => failed,
        other => LayerError::Unavailable(other.to_string().into()).into(),
    })
}

impl managed::Manager for Opener {
    type Type = Shared;
    type Error = RedisFailed;

    async fn create(&self) -> Result<Shared, RedisFailed> {
        Ok(Shared { redis: Redis::open(&self.connector, &self.key, PATIENCE).await?, doubtful: false })
    }

    async fn recycle(&self, shared: &mut Shared, _: &Metrics) -> RecycleResult<RedisFailed> {
        if shared.doubtful {
            return Err(RecycleError::message("a command failed"));
        }
        let ping = redis::cmd("PING");
        let pong = timeout(ALIVE, ping.query_async::<()>(&mut shared.redis.connection)).await;
        pong.map_err(|_late| RedisFailed::from(LayerError::Timeout))?.map_err(|error| RedisFailed::from(error).into())
    }
}

/// Notes what speaks against using the connection again.
async fn watch<T>(
    doubtful: &mut bool,
    answer: impl Future<Output = RedisResult<T>>,
    is_good: impl Fn(&T) -> bool,
) -> RedisResult<T> {
    let before = std::mem::replace(doubtful, true);
    let answer = answer.await;
    *doubtful = before || !answer.as_ref().is_ok_and(is_good);
    answer
}

fn is_good(answer: &Value) -> bool {
    !matches!(answer, Value::ServerError(_))
}

impl ConnectionLike for Shared {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let answer = self.redis.connection.req_packed_command(command);
        Box::pin(watch(&mut self.doubtful, answer, is_good))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answers = self.redis.connection.req_packed_commands(pipeline, offset, count);
        Box::pin(watch(&mut self.doubtful, answers, |answers| answers.iter().all(is_good)))
    }

    fn get_db(&self) -> i64 {
        self.redis.connection.get_db()
    }
}
