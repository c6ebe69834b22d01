//! Sign-ins that are looked at again while the socket is open: Django sessions, and users of the site who came by a
//! token. A log-out, a new password, a deactivated or renamed user ends the socket here, at the latest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::auth::django::{Current, Kept};
use crate::clock::{Clock, NEVER};
use crate::close::CloseReason;
use crate::metrics::{ByResult, Metrics};
use crate::node::Node;
use crate::socket::Socket;

/// How often it is looked for who is due.
const TICK: Duration = Duration::from_secs(1);

/// How soon it is tried again while nobody can tell.
const RETRY: Duration = Duration::from_secs(2);

/// Sockets looked at with the same statements.
const BATCH: usize = 1_000;

/// What is looked at again, and when.
#[derive(Debug)]
pub(crate) struct Recheck {
    kept: Mutex<Kept>,
    /// On the node's clock, in milliseconds.
    due: AtomicU64,
}

impl Recheck {
    /// Due after `every`, up to a quarter later, or when the session ends as things stand.
    pub(crate) fn new(kept: Kept, ends: Option<i64>, every: Duration, clock: &Clock) -> Self {
        Self { kept: Mutex::new(kept), due: AtomicU64::new(next(ends, every, clock)) }
    }

    /// A token has taken its place, with what there is to look at again of that.
    pub(crate) fn replace(&self, kept: Option<Kept>, every: Duration, clock: &Clock) {
        let due = kept.map_or(NEVER, |kept| {
            *self.kept.lock() = kept;
            next(None, every, clock)
        });
        self.due.store(due, Ordering::Relaxed);
    }

    fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }
}

fn next(ends: Option<i64>, every: Duration, clock: &Clock) -> u64 {
    let again = clock.millis() + every.mul_f64(rand::random_range(1.0..1.25)).as_millis() as u64;
    // One that has ended meanwhile is over by its next look.
    ends.map_or(again, |ends| clock.deadline(ends).min(again))
}

/// Runs until the node stops.
pub(crate) async fn watch(node: Arc<Node>) {
    let every = node.config.django.recheck;
    let tick = TICK.min(every);
    let mut wait = tick;
    loop {
        tokio::time::sleep(wait).await;
        let now = node.clock.millis();
        let mut due: Vec<(u64, Arc<Socket>)> = Vec::new();
        for socket in node.registry.all() {
            if let Some(at) = socket.recheck().map(Recheck::due).filter(|at| *at <= now) {
                due.push((at, socket));
            }
        }
        // Who has waited longest comes first.
        due.sort_unstable_by_key(|(at, _)| *at);
        wait = tick;
        for (number, batch) in due.chunks(BATCH).enumerate() {
            if look_at(&node, batch, every).await.is_err() {
                note_oldest(&node.metrics, &node.clock, due.get(number * BATCH).map(|(at, _)| *at));
                wait = RETRY;
                break;
            }
        }
        if wait == tick {
            note_oldest(&node.metrics, &node.clock, None);
        }
    }
}

/// Nobody's socket ends because nobody can tell.
async fn look_at(node: &Node, batch: &[(u64, Arc<Socket>)], every: Duration) -> Result<(), ()> {
    let Some(django) = &node.django else { return Ok(()) };
    let open: Vec<(u64, &Socket, &Recheck)> =
        batch.iter().filter_map(|(at, socket)| Some((*at, &**socket, socket.recheck()?))).collect();
    let kept: Vec<Kept> = open.iter().map(|(.., recheck)| recheck.kept.lock().clone()).collect();
    let count = |result| node.metrics.sign_ins_rechecked.get_or_create(&ByResult { result });
    let Ok(current) = django.again(&kept).await else {
        count("unavailable").inc_by(open.len() as u64);
        return Err(());
    };
    for ((at, socket, recheck), current) in open.into_iter().zip(current) {
        // One that was renewed meanwhile is judged by that, when its time comes.
        let set_due = |due| recheck.due.compare_exchange(at, due, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        match current.and_then(|current| same(node, socket, current)) {
            Ok(ends) => {
                count("good").inc();
                set_due(next(ends, every, &node.clock));
            }
            Err(reason) if set_due(NEVER) => {
                count(reason).inc();
                tracing::info!(channel = %socket.channel_name, user = ?socket.user, reason, "a sign-in is over");
                socket.close(CloseReason::Unauthorized);
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// When a sign-in ends that is still this socket's.
fn same(node: &Node, socket: &Socket, current: Current) -> Result<Option<i64>, &'static str> {
    let name = node.sign_in.name_of(&current.person);
    if **name == *socket.user { Ok(current.ends) } else { Err("renamed") }
}

fn note_oldest(metrics: &Metrics, clock: &Clock, due: Option<u64>) {
    let late = due.map_or(0, |due| clock.millis().saturating_sub(due));
    metrics.recheck_oldest.set(late as f64 / 1000.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_again_is_small_and_due_with_jitter_or_at_its_end() {
        assert!(size_of::<Recheck>() <= 40, "{}", size_of::<Recheck>());
        let (clock, every) = (Clock::start(), Duration::from_secs(300));
        let due = |ends| next(ends, every, &clock);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let many: Vec<u64> = (0..200).map(|_| due(None)).collect();
        assert!(many.iter().all(|due| (300_000..=376_000).contains(due)));
        assert!(many.iter().max() > many.iter().min());
        assert!((9_000..=11_000).contains(&due(Some(now + 10))), "its own end");
        assert!((300_000..=376_000).contains(&due(Some(now + 10_000))));
        let recheck = Recheck::new(Kept::Session("key".into()), None, every, &clock);
        recheck.replace(None, every, &clock);
        assert_eq!(recheck.due(), NEVER);
        recheck.replace(Some(Kept::User("1".into())), every, &clock);
        assert!(recheck.due() < NEVER && *recheck.kept.lock() == Kept::User("1".into()));
    }
}
