//! A connection of the crate `redis`, whose answers have a bound. It carries one command at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use channel_layer::Bounded;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisFuture, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// What an answer may weigh.
pub(crate) const ANSWER: usize = 4 * 1024 * 1024;

/// An open connection; it ends when this is dropped.
pub(crate) struct Connection {
    redis: MultiplexedConnection,
    /// A command failed, or nobody waited for its answer. The server may be another one's replica by now,
    /// or have given the key away.
    is_doubtful: bool,
    is_flooded: Arc<AtomicBool>,
    /// Moves the bytes.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Over a stream that is signed in already; `answer` is the limit for each answer.
    pub(crate) async fn new(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        answer: Duration,
    ) -> RedisResult<Self> {
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(answer));
        let (stream, is_flooded) = Bounded::new(stream, ANSWER);
        let info = RedisConnectionInfo::default();
        let (redis, driver) = MultiplexedConnection::new_with_config(&info, stream, settings).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        Ok(Self { redis, is_doubtful: false, is_flooded, _driver: tasks })
    }

    /// Whether somebody else may use it.
    pub(crate) fn is_fit(&self) -> bool {
        !self.is_doubtful
    }

    /// Whether an answer was too large; then the connection has ended.
    pub(crate) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Relaxed)
    }

    /// The answer, or nothing if it is too large; then the connection has ended.
    pub(crate) async fn ask(&mut self, command: &Cmd) -> RedisResult<Option<Value>> {
        match command.query_async(self).await {
            Err(_) if self.is_flooded() => Ok(None),
            answer => answer.map(Some),
        }
    }
}

/// Notes what speaks against using the connection again.
async fn watch<T>(
    is_doubtful: &mut bool,
    answer: impl Future<Output = RedisResult<T>>,
    is_good: impl Fn(&T) -> bool,
) -> RedisResult<T> {
    let before = std::mem::replace(is_doubtful, true);
    let answer = answer.await;
    *is_doubtful = before || !answer.as_ref().is_ok_and(is_good);
    answer
}

fn is_good(answer: &Value) -> bool {
    !matches!(answer, Value::ServerError(_))
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let answer = self.redis.req_packed_command(command);
        Box::pin(watch(&mut self.is_doubtful, answer, is_good))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answers = self.redis.req_packed_commands(pipeline, offset, count);
        Box::pin(watch(&mut self.is_doubtful, answers, |answers| answers.iter().all(is_good)))
    }

    fn get_db(&self) -> i64 {
        self.redis.get_db()
    }
}
