//! Whoever calls with a wrong API key is counted, named in the log, and waits for the answer.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::Problem;
use crate::auth;
use crate::metrics::ByReason;
use crate::node::Node;

/// Lets who has a key pass at once, by the key's name; others have waited when they are refused.
pub(super) async fn authorize(
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
    node: &Node,
) -> Result<Option<Arc<str>>, Problem> {
    let keys = &node.config.api_keys;
    let (reason, detail) = match keys.is_empty() {
        // With --dev both listeners are on loopback.
        true if node.config.dev => return Ok(None),
        true => ("no_key", "no API key is configured"),
        false => {
            let given = auth::bearer(headers).unwrap_or_default();
            // All of them are looked at: how long that takes says nothing.
            let found = keys.iter().fold(None, |found, key| if key.is(given) { Some(key) } else { found });
            if let Some(key) = found {
                return Ok(Some(Arc::clone(key.name())));
            }
            ("key", "the API key is missing or wrong")
        }
    };
    node.metrics.api_refused.get_or_create(&ByReason { reason }).inc();
    let peer = peer.ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nobody asked"))?;
    if let Some(times) = node.wrong_keys.log.again() {
        tracing::warn!(%peer, times, "an API call was refused: {detail}");
    }
    tokio::time::sleep_until(node.wrong_keys.note(peer.ip().to_canonical(), Instant::now().into_std()).into()).await;
    Err(Problem::unauthorized(detail).counted())
}
