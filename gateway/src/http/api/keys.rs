//! Whoever calls with a wrong API key is counted, named in the log, and waits for the answer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::Problem;
use crate::auth;
use crate::metrics::ByReason;
use crate::node::Node;
use crate::seldom::Seldom;

/// How long a wrong key takes. Those of one peer take it one after the other.
const DELAY: Duration = Duration::from_millis(100);

/// Longest wait of one call: more of them at once are no reason to keep them all.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Peers that are remembered; of more, those who may go on soonest are forgotten.
const MAX_PEERS: usize = 1024;

/// Who has come with wrong keys lately.
#[derive(Debug, Default)]
pub(crate) struct WrongKeys {
    /// When the peer's next wrong key is answered.
    next: Mutex<HashMap<IpAddr, Instant>>,
    log: Seldom,
}

impl WrongKeys {
    /// One more. Says when it is to be answered.
    fn note(&self, peer: IpAddr, now: Instant) -> Instant {
        let mut next = self.next.lock();
        if next.len() >= MAX_PEERS && !next.contains_key(&peer) {
            next.retain(|_, at| *at > now);
            if next.len() >= MAX_PEERS
                && let Some(soonest) = next.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer)
            {
                next.remove(&soonest);
            }
        }
        let at = next.entry(peer).or_insert(now);
        *at = ((*at).max(now) + DELAY).min(now + MAX_DELAY);
        *at
    }
}

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
    tokio::time::sleep_until(node.wrong_keys.note(peer.ip().to_canonical(), Instant::now())).await;
    Err(Problem::unauthorized(detail).counted())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn wrong_keys_of_one_peer_are_answered_one_after_the_other() {
        let (keys, now) = (WrongKeys::default(), Instant::now());
        assert_eq!(keys.note(peer(1), now), now + DELAY);
        assert_eq!(keys.note(peer(1), now), now + DELAY * 2);
        assert_eq!(keys.note(peer(2), now), now + DELAY);
        for _ in 0..1000 {
            assert!(keys.note(peer(1), now) <= now + MAX_DELAY);
        }
        let later = now + Duration::from_secs(60);
        assert_eq!(keys.note(peer(1), later), later + DELAY);
    }

    #[test]
    fn many_peers_take_no_more_memory() {
        let (keys, now) = (WrongKeys::default(), Instant::now());
        for number in 0..10_000 {
            keys.note(peer(number), now);
        }
        assert_eq!(keys.next.lock().len(), MAX_PEERS);
    }
}
