//! How often something may happen: frames of a client, handshakes of a node, calls with a wrong key.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::close::CloseReason;
use crate::config::Limits;
use crate::seldom::Seldom;

/// Between two pings of a page that cost no token.
const PING: Duration = Duration::from_secs(5);

/// A token bucket: so many at once, and refilled at a rate.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    refilled: Instant,
}

impl Bucket {
    pub(crate) fn full(burst: u32, now: Instant) -> Self {
        Self { tokens: f64::from(burst.max(1)), refilled: now }
    }

    /// Takes up to `wanted` tokens and returns how many there were.
    pub(crate) fn take(&mut self, wanted: u32, per_second: u32, burst: u32, now: Instant) -> u32 {
        let refill = now.duration_since(self.refilled).as_secs_f64() * f64::from(per_second);
        self.tokens = (self.tokens + refill).min(f64::from(burst.max(1)));
        self.refilled = now;
        let taken = wanted.min(self.tokens as u32);
        self.tokens -= f64::from(taken);
        taken
    }
}

/// What one client may send: every frame takes a token, control frames and pieces of a message too.
#[derive(Debug)]
pub(crate) struct FrameRate {
    bucket: Bucket,
    /// Frames over the limit since the client last kept it.
    excess: u32,
    /// When a `ping` was last free.
    pinged: Option<Instant>,
}

/// What is to be done with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Serve,
    /// The first one over the limit: say so.
    Warn,
    /// Over the limit after the warning: not served, not answered.
    Ignore,
}

impl FrameRate {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        Self { bucket: Bucket::full(limits.frames_burst, now), excess: 0, pinged: None }
    }

    /// Whether a `ping` of the page is one that costs no token. It shows a client that is refused everything else that
    /// its connection lives.
    pub(crate) fn ping_is_free(&mut self, now: Instant) -> bool {
        let free = self.pinged.is_none_or(|last| now.duration_since(last) >= PING);
        if free {
            self.pinged = Some(now);
        }
        free
    }

    /// Takes a token for a frame. Who goes on for another burst after the warning is flooding.
    pub(crate) fn frame(&mut self, limits: &Limits, now: Instant) -> Result<Verdict, CloseReason> {
        let burst = limits.frames_burst.max(1);
        if self.bucket.take(1, limits.frames_per_second, burst, now) == 1 {
            if self.bucket.tokens >= f64::from(burst) / 2.0 {
                self.excess = 0;
            }
            return Ok(Verdict::Serve);
        }
        self.excess += 1;
        match self.excess {
            1 => Ok(Verdict::Warn),
            excess if excess > burst => Err(CloseReason::PolicyViolation("flooding")),
            _ => Ok(Verdict::Ignore),
        }
    }
}

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
    pub(crate) log: Seldom,
}

impl WrongKeys {
    /// One more. Says when it is to be answered.
    pub(crate) fn note(&self, peer: IpAddr, now: Instant) -> Instant {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { frames_per_second: 10, frames_burst: 5, ..Limits::default() }
    }

    #[test]
    fn a_burst_passes_then_a_warning_then_the_end() {
        let (limits, now) = (limits(), Instant::now());
        let mut rate = FrameRate::new(&limits, now);
        for _ in 0..5 {
            assert_eq!(rate.frame(&limits, now), Ok(Verdict::Serve));
        }
        assert_eq!(rate.frame(&limits, now), Ok(Verdict::Warn));
        for _ in 0..4 {
            assert_eq!(rate.frame(&limits, now), Ok(Verdict::Ignore));
        }
        assert_eq!(rate.frame(&limits, now).map_err(|reason| reason.code()), Err(1008));
    }

    #[test]
    fn keeping_the_rate_is_forgiven() {
        let (limits, mut now) = (limits(), Instant::now());
        let mut rate = FrameRate::new(&limits, now);
        for _ in 0..100 {
            now += Duration::from_millis(101);
            assert_eq!(rate.frame(&limits, now), Ok(Verdict::Serve));
        }
    }

    #[test]
    fn one_ping_in_five_seconds_costs_nothing() {
        let (limits, now) = (limits(), Instant::now());
        let mut rate = FrameRate::new(&limits, now);
        assert!(rate.ping_is_free(now) && !rate.ping_is_free(now + Duration::from_secs(4)));
        assert!(rate.ping_is_free(now + Duration::from_secs(5)));
        assert!(!rate.ping_is_free(now + Duration::from_secs(9)));
    }

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
