//! What waits in the stream of durable events.

use redis::Value;

use super::server::Server;
use super::{GROUP, RedisFailed};

/// Entries that are not finished.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// All of them.
    pub(crate) length: i64,
    /// Those that a node has taken.
    pub(crate) pending: i64,
    /// The id of the oldest of those: when it was written.
    pub(crate) oldest_pending: Option<String>,
}

impl Backlog {
    pub(crate) async fn read(server: &Server, stream: &str) -> Result<Self, RedisFailed> {
        let mut redis = server.open(stream).await?;
        let length = redis::cmd("XLEN").arg(stream).query_async(&mut *redis).await?;
        let pending: Result<Value, _> = redis::cmd("XPENDING").arg(stream).arg(GROUP).query_async(&mut *redis).await;
        let summary = match pending {
            Ok(Value::Array(summary)) => summary,
            Err(error) if error.code() != Some("NOGROUP") => return Err(error.into()),
            _ => Vec::new(),
        };
        let pending = summary.first().and_then(|count| redis::from_redis_value_ref(count).ok()).unwrap_or(0);
        let oldest_pending = summary.get(1).and_then(|id| redis::from_redis_value_ref(id).ok()).unwrap_or(None);
        Ok(Self { length, pending, oldest_pending })
    }

    /// How many letters are dead.
    pub(crate) async fn dead(server: &Server, namespace: &str) -> Result<i64, RedisFailed> {
        let dead = format!("{namespace}:events:dead");
        let mut redis = server.open(&dead).await?;
        Ok(redis::cmd("XLEN").arg(&dead).query_async(&mut *redis).await?)
    }
}
