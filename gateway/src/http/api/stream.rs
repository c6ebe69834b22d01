//! The stream of durable events: what waits in it.

use http::StatusCode;
use serde_json::json;
use time::OffsetDateTime;

use super::{ApiResult, Problem};
use crate::events::rfc3339;
use crate::node::Node;
use crate::redis::Backlog;

pub(super) async fn show(node: &Node) -> ApiResult {
    let server = node.redis.as_ref().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no stream"))?;
    let stream = format!("{}:events", node.config.namespace);
    let Backlog { length, pending, oldest_pending } = Backlog::read(server, &stream).await?;
    // An id begins with the milliseconds at which it was written.
    let oldest = oldest_pending.and_then(|id| {
        let milliseconds: i128 = id.split('-').next()?.parse().ok()?;
        OffsetDateTime::from_unix_timestamp_nanos(milliseconds * 1_000_000).ok()
    });
    let dead = Backlog::dead(server, &node.config.namespace).await?;
    Ok(json!({
        "stream": stream, "length": length, "pending": pending, "oldest_pending": oldest.map(rfc3339), "dead": dead,
    }))
}
