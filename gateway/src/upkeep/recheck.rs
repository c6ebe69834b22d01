//! Sign-ins that are looked at again while the socket is open: Django sessions, users of the site who came by a token, and
//! people about whom Django was asked. A log-out, a new password, a deactivated or renamed user ends the socket here, at
//! the latest.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::sleep;

use crate::auth::django::{Current, SiteProof};
use crate::auth::recheck::{jittered, next};
use crate::auth::{NotSignedIn, Proof};
use crate::clock::{Clock, NEVER};
use crate::close::CloseReason;
use crate::metrics::{ByResult, Metrics};
use crate::node::Node;
use crate::socket::Socket;

/// How often it is looked for who is due.
const TICK: Duration = Duration::from_secs(1);

/// How soon it is tried again while nobody can tell: at the site's servers, and by asking Django.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_ASKING: Duration = Duration::from_secs(5);

/// Sockets looked at with the same statements.
const BATCH: usize = 1_000;

/// Sockets that Django is asked about at once.
const AT_ONCE: usize = 64;

/// Runs until the node stops. Neither waits for the other: they ask different servers.
pub(crate) async fn watch(node: Arc<Node>) {
    tokio::join!(watch_site(&node), watch_asked(&node));
}

/// Sessions and users that are read.
async fn watch_site(node: &Node) {
    if node.django.is_none() {
        return;
    }
    let tick = TICK.min(node.recheck());
    let mut wait = tick;
    loop {
        sleep(wait).await;
        let due = all_due(node, |proof| matches!(proof, Proof::Site(_)));
        wait = tick;
        for (number, batch) in due.chunks(BATCH).enumerate() {
            if read_again(node, batch).await.is_err() {
                note_oldest(&node.metrics, &node.clock, due.get(number * BATCH).map(|due| due.at));
                wait = RETRY;
                break;
            }
        }
        if wait == tick {
            note_oldest(&node.metrics, &node.clock, None);
        }
    }
}

/// People about whom Django was asked.
async fn watch_asked(node: &Node) {
    if node.sign_in.ask.is_none() {
        return;
    }
    loop {
        sleep(TICK.min(node.recheck())).await;
        let due = all_due(node, |proof| matches!(proof, Proof::Asked(_)));
        stream::iter(due).for_each_concurrent(AT_ONCE, |due| async move { ask_again(node, &due).await }).await;
    }
}

/// A socket whose sign-in is due, since when.
struct Due {
    at: u64,
    socket: Arc<Socket>,
}

/// Those of a kind who are due; who has waited longest comes first.
fn all_due(node: &Node, is_kind: fn(&Proof) -> bool) -> Vec<Due> {
    let now = node.clock.millis();
    let is_due = |socket: &Socket| {
        let recheck = socket.recheck()?;
        let at = recheck.due();
        (at <= now && recheck.proof_is(is_kind)).then_some(at)
    };
    let sockets = node.registry.all().into_iter();
    let mut due: Vec<_> = sockets.filter_map(|socket| Some(Due { at: is_due(&socket)?, socket })).collect();
    due.sort_unstable_by_key(|due| due.at);
    due
}

impl Due {
    fn proof(&self) -> Option<Proof> {
        self.socket.recheck()?.proof()
    }

    /// Sets when it is due next. Not if the sign-in was renewed meanwhile: it is judged by that, when its time comes.
    fn set(&self, due: u64) -> bool {
        self.socket.recheck().is_some_and(|recheck| recheck.postpone(self.at, due))
    }

    fn is_good(&self, node: &Node, ends: Option<i64>) {
        count(node, "good", 1);
        self.set(next(ends, node.recheck(), &node.clock));
    }

    fn is_over(&self, node: &Node, reason: &'static str, close: CloseReason) {
        if self.set(NEVER) {
            count(node, reason, 1);
            let socket = &self.socket;
            tracing::info!(channel = %socket.channel_name, user = &*socket.user, reason, "a sign-in is over");
            socket.close(close);
        }
    }
}

/// Nobody's socket ends because nobody can tell.
async fn read_again(node: &Node, batch: &[Due]) -> Result<(), ()> {
    let Some(django) = &node.django else { return Ok(()) };
    let kept = |due| match Due::proof(due) {
        Some(Proof::Site(kept)) => Some((due, kept)),
        Some(Proof::Asked(_)) | None => None,
    };
    let (open, kept): (Vec<&Due>, Vec<SiteProof>) = batch.iter().filter_map(kept).unzip();
    let Ok(current) = django.again(&kept).await else {
        count(node, "unavailable", open.len() as u64);
        return Err(());
    };
    for (due, current) in open.into_iter().zip(current) {
        match current.and_then(|current| same(node, &due.socket, current)) {
            Ok(ends) => due.is_good(node, ends),
            Err(reason) => due.is_over(node, reason, CloseReason::Unauthorized),
        }
    }
    Ok(())
}

/// When a sign-in ends that is still this socket's.
fn same(node: &Node, socket: &Socket, current: Current) -> Result<Option<i64>, &'static str> {
    let name = node.sign_in.name_of(&current.person);
    if **name == *socket.user { Ok(current.ends) } else { Err("renamed") }
}

async fn ask_again(node: &Node, due: &Due) {
    let Some(Proof::Asked(question)) = due.proof() else { return };
    match node.sign_in.ask_again(*question).await {
        Ok(user) if user.name != due.socket.user => due.is_over(node, "renamed", CloseReason::Unauthorized),
        Ok(user) => match user.expires_at {
            None => due.is_good(node, None),
            Some(end) if due.set(NEVER) => {
                count(node, "good", 1);
                due.socket.expires_at.store(node.clock.deadline(end), Ordering::Relaxed);
            }
            Some(_) => {}
        },
        Err(NotSignedIn::Nobody(reason)) => due.is_over(node, reason, CloseReason::Unauthorized),
        Err(NotSignedIn::Forbidden(reason)) => due.is_over(node, reason, CloseReason::Forbidden),
        Err(NotSignedIn::CookieWithoutOrigin) => due.is_over(node, "origin", CloseReason::Unauthorized),
        Err(NotSignedIn::Unavailable(_)) => {
            count(node, "unavailable", 1);
            due.set(node.clock.millis() + jittered(RETRY_ASKING));
        }
    }
}

fn count(node: &Node, result: &'static str, times: u64) {
    node.metrics.sign_ins_rechecked.get_or_create(&ByResult { result }).inc_by(times);
}

fn note_oldest(metrics: &Metrics, clock: &Clock, due: Option<u64>) {
    let late = due.map_or(0, |due| clock.millis().saturating_sub(due));
    metrics.sign_ins_recheck_oldest_seconds.set(late as f64 / 1000.0);
}
