//! Sessions that a site keeps in its cache. What stands there may be of any size, so answers have a bound.

use std::sync::Arc;

use channel_layer::{Host, LayerError};
use futures_util::future::BoxFuture;
use redis::aio::ConnectionLike;
use redis::{RedisError, Value};

use super::RedisFailed;
use super::server::Server;

/// What Django puts before the key of a session.
const SESSION: &str = "django.contrib.sessions.cache";

/// The cache of a site, over connections of its own. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct SessionCache {
    server: Server,
    prefix: String,
}

/// A session in the cache, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cached<T> {
    pub(crate) content: T,
    /// When it ends, in microseconds since 1970.
    pub(crate) ends: Option<i64>,
}

impl SessionCache {
    /// `prefix` is the cache's own, with its version.
    pub(crate) fn new(host: &Host, prefix: &str) -> Result<Self, LayerError> {
        Ok(Self { server: Server::at(host)?, prefix: format!("{prefix}:{SESSION}") })
    }

    /// The sessions with these keys, in their order; `now` is in microseconds since 1970. `read` gets each as bytes, none if it is too large or no text.
    pub(crate) async fn read<T: Send>(
        &self,
        keys: &[Arc<str>],
        now: i64,
        read: fn(Option<&[u8]>) -> T,
    ) -> Result<Vec<Option<Cached<T>>>, RedisFailed> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut redis = self.server.open("").await?;
        let mut pipeline = redis::pipe();
        for key in keys {
            let key = format!("{}{key}", self.prefix);
            pipeline.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
        }
        let answers = match redis.req_packed_commands(&pipeline, 0, 2 * keys.len()).await {
            Err(_) if redis.is_flooded() => {
                drop(redis);
                return match keys {
                    [_] => Ok(vec![Some(Cached { content: read(None), ends: None })]),
                    _ => self.read_by_halves(keys, now, read).await,
                };
            }
            answers => answers?,
        };
        let cached = |pair: &[Value]| {
            let [value, left] = pair else { return Err(RedisFailed::Open(LayerError::Timeout)) };
            let ends = match left {
                Value::Int(millis) if *millis >= 0 => Some(now.saturating_add(millis.saturating_mul(1000))),
                _ => None,
            };
            match value {
                Value::Nil => Ok(None),
                Value::BulkString(value) => Ok(Some(Cached { content: read(Some(value)), ends })),
                Value::ServerError(error) if error.code() != "WRONGTYPE" => Err(RedisError::from(error.clone()).into()),
                _ => Ok(Some(Cached { content: read(None), ends })),
            }
        };
        answers.chunks(2).map(cached).collect()
    }

    /// What is too much at once is less by halves.
    fn read_by_halves<'a, T: Send + 'a>(
        &'a self,
        keys: &'a [Arc<str>],
        now: i64,
        read: fn(Option<&[u8]>) -> T,
    ) -> BoxFuture<'a, Result<Vec<Option<Cached<T>>>, RedisFailed>> {
        Box::pin(async move {
            let (one, other) = keys.split_at(keys.len() / 2);
            let mut found = self.read(one, now, read).await?;
            found.extend(self.read(other, now, read).await?);
            Ok(found)
        })
    }

    /// Whether it answers.
    pub(crate) async fn ping(&self) -> Result<(), RedisFailed> {
        let mut redis = self.server.open("").await?;
        Ok(redis::cmd("PING").query_async(&mut *redis).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_are_read_together_and_one_that_is_too_large_alone() {
        let redis = testkit::redis::RedisServer::start();
        let host: Host = redis.url().parse().unwrap();
        let cache = SessionCache::new(&host, "s:1").unwrap();
        let mut setup = cache.server.open("").await.unwrap();
        let key = |key: &str| format!("s:1:django.contrib.sessions.cache{key}");
        let mut run = async |command: redis::Cmd| command.query_async::<Value>(&mut *setup).await.unwrap();
        run(redis::Cmd::set(key("small"), "{}")).await;
        run(redis::Cmd::set_ex(key("ends"), "{}", 100)).await;
        run(redis::Cmd::lpush(key("list"), "{}")).await;
        for large in ["large-1", "large-2", "large-3"] {
            run(redis::Cmd::set(key(large), vec![b'x'; 3 << 20])).await;
        }
        run(redis::Cmd::set(key("huge"), vec![b'x'; 6 << 20])).await;
        let keys: Vec<Arc<str>> =
            ["small", "ends", "none", "list", "large-1", "large-2", "huge", "large-3"].map(Into::into).into();
        let found = cache.read(&keys, 5_000_000, |value| value.map(<[u8]>::len)).await.unwrap();
        let size = |found: &Option<Cached<Option<usize>>>| found.as_ref().map(|found| found.content);
        let sizes: Vec<_> = found.iter().map(size).collect();
        let large = Some(Some(3 << 20));
        assert_eq!(sizes, [Some(Some(2)), Some(Some(2)), None, Some(None), large, large, Some(None), large]);
        let left = found[1].as_ref().unwrap().ends.unwrap() / 1_000_000 - 5;
        assert!((1..=100).contains(&left) && found[0].as_ref().unwrap().ends.is_none());
        cache.ping().await.unwrap();
    }
}
