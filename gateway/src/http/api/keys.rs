//! Whoever calls with a wrong API key is counted, named in the log, and waits for the answer.

use std::net::SocketAddr;

use http::{HeaderMap, StatusCode};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::Problem;
use crate::auth;
use crate::metrics::ByReason;
use crate::node::Node;

/// Lets who has the key pass at once; others have waited when they are refused.
pub(super) async fn authorize(headers: &HeaderMap, peer: Option<SocketAddr>, node: &Node) -> Result<(), Problem> {
    let (reason, detail) = match &node.config.api_key {
        // With --dev both listeners are on loopback.
        None if node.config.dev => return Ok(()),
        None => ("no_key", "no API key is configured"),
        Some(key) => {
            let given = auth::bearer(headers).unwrap_or_default();
            if given.as_bytes().ct_eq(key.expose_secret().as_bytes()).into() {
                return Ok(());
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
