//! Whoever calls with a wrong API key is counted, named in the log, and waits for the answer.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::{Problem, session};
use crate::auth;
use crate::config::ApiKey;
use crate::metrics::ByReason;
use crate::node::Node;
use crate::operators::Session;

/// Who calls, and may.
#[derive(Debug)]
pub(super) enum Caller {
    /// Whoever is on this machine, with `--dev` and without a key.
    Anybody,
    /// Who has the key of this name.
    Key(Arc<str>),
    /// An operator at `/admin/`, who has signed in with the key of this name.
    Operator(Session, Arc<str>),
}

impl Caller {
    /// The name of the key.
    pub(super) fn key(&self) -> Option<&Arc<str>> {
        match self {
            Self::Anybody => None,
            Self::Key(name) | Self::Operator(_, name) => Some(name),
        }
    }
}

/// Lets who has a key pass at once, or a session that was begun with it; others have waited when they are refused.
pub(super) async fn authorize(headers: &HeaderMap, peer: Option<SocketAddr>, node: &Node) -> Result<Caller, Problem> {
    // With --dev both listeners are on loopback. Any page in a browser on this machine finds them there.
    if node.config.api_keys.is_empty() && node.config.dev {
        let seen = session::seen(headers, peer, node);
        let own = session::is_of_own_page(headers, &seen) || session::is_typed(headers);
        return if own && session::is_local(headers) { Ok(Caller::Anybody) } else { Err(session::foreign_page()) };
    }
    if let Some(given) = auth::bearer(headers) {
        return check(given, peer, node).await.map(|key| Caller::Key(Arc::clone(key.name())));
    }
    match session::of(headers, node) {
        Some((session, key)) => {
            session::check_page(headers, &session::seen(headers, peer, node))?;
            Ok(Caller::Operator(session, Arc::clone(key.name())))
        }
        None => Err(refuse(peer, node).await),
    }
}

/// The key that this is.
pub(super) async fn check<'a>(given: &str, peer: Option<SocketAddr>, node: &'a Node) -> Result<&'a ApiKey, Problem> {
    let keys = &node.config.api_keys;
    // All of them are looked at: how long that takes says nothing.
    match keys.iter().fold(None, |found, key| if key.is(given) { Some(key) } else { found }) {
        Some(key) => Ok(key),
        None => Err(refuse(peer, node).await),
    }
}

/// Counts it, names it in the log, and waits.
async fn refuse(peer: Option<SocketAddr>, node: &Node) -> Problem {
    let (reason, detail) = match node.config.api_keys.is_empty() {
        true => ("no_key", "no API key is configured"),
        false => ("key", "the API key is missing or wrong"),
    };
    node.metrics.api_refused.get_or_create(&ByReason { reason }).inc();
    let Some(peer) = peer else { return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nobody asked") };
    if let Some(times) = node.wrong_keys.log.again() {
        tracing::warn!(%peer, times, "an API call was refused: {detail}");
    }
    tokio::time::sleep_until(node.wrong_keys.note(peer.ip().to_canonical(), Instant::now().into_std()).into()).await;
    Problem::unauthorized(detail).counted()
}
