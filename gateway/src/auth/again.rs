//! Looking again at who is signed in, while the socket is open: Django may have changed its mind.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use channel_layer::ChannelName;
use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::NotSignedIn;
use super::ask::Question;
use crate::close::CloseReason;
use crate::metrics::ByResult;
use crate::node::Node;

/// How often it is looked for who is due.
const TICK: Duration = Duration::from_secs(1);

/// How many are looked at at once, and how soon again where nobody can tell now.
const AT_ONCE: usize = 64;
const RETRY: Duration = Duration::from_secs(5);

/// What somebody is known by.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// Django was asked.
    Asked(Box<Question>),
}

/// The sockets that are looked at again. Each costs what it showed.
#[derive(Debug, Default)]
pub(crate) struct Again {
    watched: Mutex<HashMap<ChannelName, Watched>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Watched {
    proof: Proof,
    due: Instant,
}

impl Again {
    /// Looks at this socket again after this time, up to a quarter later, and so on.
    pub(crate) fn watch(&self, channel: &ChannelName, proof: Proof, every: Duration) {
        let due = Instant::now() + jittered(every);
        let mut watched = self.watched.lock();
        watched.insert(channel.clone(), Watched { proof, due });
        self.count.store(watched.len(), Ordering::Relaxed);
    }

    /// The socket is gone, or is signed in by something else now.
    pub(crate) fn forget(&self, channel: &ChannelName) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut watched = self.watched.lock();
            watched.remove(channel);
            self.count.store(watched.len(), Ordering::Relaxed);
        }
    }

    /// Those who are due, and not before `next` again.
    fn due(&self, now: Instant, next: impl Fn() -> Instant) -> Vec<(ChannelName, Proof)> {
        let mut watched = self.watched.lock();
        let due = watched.iter_mut().filter(|(_, watched)| watched.due <= now);
        due.map(|(channel, watched)| {
            watched.due = next();
            (channel.clone(), watched.proof.clone())
        })
        .collect()
    }

    fn is_watched(&self, channel: &ChannelName) -> bool {
        self.watched.lock().contains_key(channel)
    }

    fn postpone(&self, channel: &ChannelName, until: Instant) {
        if let Some(watched) = self.watched.lock().get_mut(channel) {
            watched.due = until;
        }
    }
}

fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::random_range(1.0..1.25))
}

/// Runs until the node stops.
pub(crate) async fn look_again(node: Arc<Node>, every: Duration) {
    let mut ticks = tokio::time::interval(TICK.min(every.max(Duration::from_millis(100))));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if node.again.count.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let due = node.again.due(Instant::now(), || Instant::now() + jittered(every));
        stream::iter(due).for_each_concurrent(AT_ONCE, |(channel, proof)| look_at(&node, channel, proof)).await;
    }
}

async fn look_at(node: &Node, channel: ChannelName, proof: Proof) {
    let Some(socket) = node.registry.by_channel(&channel) else { return node.again.forget(&channel) };
    let count = |result| node.metrics.sign_ins_rechecked.get_or_create(&ByResult { result }).inc();
    let now = node.sign_in.look_again(&proof).await;
    // A token may have taken its place meanwhile.
    if !node.again.is_watched(&channel) {
        return;
    }
    let (reason, close) = match now {
        Ok(user) if user.name == socket.user => {
            count("good");
            if let Some(end) = user.expires_at {
                socket.expires_at.store(node.clock.deadline(end), Ordering::Relaxed);
                node.again.forget(&channel);
            }
            return;
        }
        Ok(_) => ("renamed", CloseReason::Unauthorized),
        Err(NotSignedIn::Nobody(reason)) => (reason, CloseReason::Unauthorized),
        Err(NotSignedIn::Forbidden(reason)) => (reason, CloseReason::Forbidden),
        Err(NotSignedIn::CookieWithoutOrigin) => ("origin", CloseReason::Unauthorized),
        // Nobody's socket ends because nobody can tell.
        Err(NotSignedIn::Unavailable(_)) => {
            count("unavailable");
            return node.again.postpone(&channel, Instant::now() + jittered(RETRY));
        }
    };
    count(reason);
    tracing::info!(channel = %channel, user = ?socket.user, reason, "a sign-in is over");
    node.again.forget(&channel);
    socket.close(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_due_in_its_time_and_who_is_forgotten_never() {
        let (again, every) = (Again::default(), Duration::from_secs(300));
        let [one, other]: [ChannelName; 2] =
            ["specific.test!one", "specific.test!two"].map(|name| name.parse().unwrap());
        let start = Instant::now();
        for channel in [&one, &other] {
            again.watch(channel, Proof::Asked(Box::new(Question::empty())), every);
        }
        assert!(again.due(start + every - Duration::from_secs(1), || start).is_empty());
        again.forget(&one);
        assert!(!again.is_watched(&one) && again.is_watched(&other));
        let at = start + every + every / 4 + Duration::from_secs(1);
        let due: Vec<_> = again.due(at, || at + every).into_iter().map(|(channel, _)| channel).collect();
        assert_eq!(due, std::slice::from_ref(&other));
        assert!(again.due(at, || at + every).is_empty(), "not before its next turn");
        again.postpone(&other, at);
        assert_eq!(again.due(at, || at + every).len(), 1);
    }
}
