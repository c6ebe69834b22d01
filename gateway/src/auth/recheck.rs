//! What of a sign-in is looked at again while its socket is open, and when. `upkeep/recheck.rs` looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Proof;
use crate::clock::{Clock, NEVER};

/// What is looked at again, and when.
#[derive(Debug)]
pub(crate) struct Recheck {
    proof: Mutex<Option<Proof>>,
    /// On the node's clock, in milliseconds.
    due: AtomicU64,
}

impl Recheck {
    /// Due after `every`, up to a quarter later, or when the session ends as things stand.
    pub(crate) fn new(proof: Proof, ends: Option<i64>, every: Duration, clock: &Clock) -> Self {
        Self { proof: Mutex::new(Some(proof)), due: AtomicU64::new(next(ends, every, clock)) }
    }

    /// A token has taken its place, with what there is to look at again of that.
    pub(crate) fn replace(&self, proof: Option<Proof>, every: Duration, clock: &Clock) {
        let due = if proof.is_some() { next(None, every, clock) } else { NEVER };
        *self.proof.lock() = proof;
        self.due.store(due, Ordering::Relaxed);
    }

    /// When it is due, on the node's clock.
    pub(crate) fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    pub(crate) fn proof(&self) -> Option<Proof> {
        self.proof.lock().clone()
    }

    pub(crate) fn proof_is(&self, kind: fn(&Proof) -> bool) -> bool {
        self.proof.lock().as_ref().is_some_and(kind)
    }

    /// Makes what was due at `at` due at another time. `false` if it was renewed meanwhile.
    pub(crate) fn postpone(&self, at: u64, due: u64) -> bool {
        self.due.compare_exchange(at, due, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// When it is due next.
pub(crate) fn next(ends: Option<i64>, every: Duration, clock: &Clock) -> u64 {
    let again = clock.millis() + jittered(every);
    // One that has ended meanwhile is over by its next look.
    ends.map_or(again, |ends| clock.deadline(ends).min(again))
}

/// Up to a quarter more.
pub(crate) fn jittered(time: Duration) -> u64 {
    time.mul_f64(rand::random_range(1.0..1.25)).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::django::SiteProof;

    #[test]
    fn what_is_looked_at_again_is_small_and_due_with_jitter_or_at_its_end() {
        assert!(size_of::<Recheck>() <= 40, "{}", size_of::<Recheck>());
        let (clock, every) = (Clock::start(), Duration::from_secs(300));
        let due = |ends| next(ends, every, &clock);
        let now = clock.unix_seconds();
        let many: Vec<u64> = (0..200).map(|_| due(None)).collect();
        assert!(many.iter().all(|due| (300_000..=376_000).contains(due)));
        assert!(many.iter().max() > many.iter().min());
        assert!((9_000..=11_000).contains(&due(Some(now + 10))), "its own end");
        assert!((300_000..=376_000).contains(&due(Some(now + 10_000))));
        let recheck = Recheck::new(Proof::Site(SiteProof::Session("key".into())), None, every, &clock);
        let due = || recheck.due();
        recheck.replace(None, every, &clock);
        assert!(due() == NEVER && recheck.proof.lock().is_none(), "what was shown is not kept for longer");
        recheck.replace(Some(Proof::Site(SiteProof::User("1".into()))), every, &clock);
        assert!(due() < NEVER && recheck.proof.lock().is_some());
    }
}
