//! Whether connections that were idle still work.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::sqlx::Connection;

/// A connection idle for so long is pinged before it is used.
pub(crate) const PING_AFTER_IDLE: Duration = Duration::from_secs(2);
/// What such a ping may take. Without a bound, one dead connection would use up `acquire_timeout`.
const PING_TIMEOUT: Duration = Duration::from_millis(700);

/// Since when the connections of a pool are not trusted. What has swallowed one that was idle, as a firewall does that
/// forgets what it knew, has swallowed them all: waiting for the answer of each would use up the time of many calls.
#[derive(Clone, Default)]
pub(crate) struct Trust(Arc<Mutex<Option<Instant>>>);

impl Trust {
    /// Whether a connection that was used so long ago still works.
    pub(crate) async fn answers(&self, connection: &mut impl Connection, idle: Duration) -> bool {
        if idle < PING_AFTER_IDLE {
            return true;
        }
        let now = Instant::now();
        let lost = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.is_some_and(|lost| now.checked_sub(idle).is_none_or(|used| used < lost)) {
            return false;
        }
        match tokio::time::timeout(PING_TIMEOUT, connection.ping()).await {
            Ok(answer) => answer.is_ok(),
            Err(_) => {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
                false
            }
        }
    }
}
