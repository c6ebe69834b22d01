//! Memory as a limit: a node that has too much of it refuses newcomers and sends slow readers away, before the
//! kernel kills it with everybody on it.
//!
//! A thread of its own looks some times a second, so that it is not late when the runtime is busy. What only
//! saves statements is given back first, then those readers go who have most waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::memory::{Look, Pressure, Resident};
use crate::node::Node;

/// How often it is looked. A tenth of the memory is left for what comes between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The same while less than half of the limit is taken, or there is none: on a quiet day each look is felt.
const LOOK_AT_EASE: Duration = Duration::from_millis(200);

/// Looks from one to the next of what costs more.
const ASK_CGROUP: u64 = 4;
const PURGE: u64 = 4;
const FORGET: u64 = 20;

/// Starts to watch.
pub(crate) fn start(node: &Arc<Node>, tasks: &TaskTracker, stop: &CancellationToken) {
    let (node, stop) = (Arc::clone(node), stop.clone());
    tasks.spawn_blocking(move || watch(&node, &stop));
}

/// Looks until the node stops. It blocks.
fn watch(node: &Node, stop: &CancellationToken) {
    let (memory, limit) = (&node.memory, node.memory.limit());
    node.metrics.memory_limit_bytes.set(i64::try_from(limit).unwrap_or(i64::MAX));
    let (mut pressure, mut outside, mut pause) = (Pressure::default(), 0, LOOK);
    for look in 0_u64.. {
        std::thread::sleep(pause);
        if stop.is_cancelled() {
            return;
        }
        let Some(Resident { all, own }) = Resident::now() else {
            if limit > 0 {
                tracing::warn!(
                    "this system does not tell how much memory the process has: limits.memory_bytes is not kept"
                );
            }
            return;
        };
        node.metrics.memory_bytes.set(i64::try_from(all).unwrap_or(i64::MAX));
        pause = if limit == 0 || all < limit / 2 { LOOK_AT_EASE } else { LOOK };
        if limit == 0 {
            continue;
        }
        if look.is_multiple_of(ASK_CGROUP) {
            outside = memory.outside(own).unwrap_or(outside);
        }
        act(node, &mut pressure, all, limit.saturating_sub(outside));
    }
}

fn act(node: &Node, pressure: &mut Pressure, used: u64, limit: u64) {
    match pressure.look(used, limit) {
        Look::Under => {}
        Look::Begins => {
            node.memory.set_over(true);
            tracing::warn!(
                used,
                limit,
                sockets = node.registry.len(),
                "too much memory: new sockets are refused and the slowest readers sent away. Give the node more, or lower limits.connections"
            );
            node.hub.forget_recent();
            node.memory.want();
        }
        Look::Over { excess, looks } => {
            if looks.is_multiple_of(FORGET) {
                node.hub.forget_recent();
            }
            if excess > 0 {
                pressure.closed += shed(node, excess);
            }
            if excess > 0 || looks.is_multiple_of(PURGE) {
                node.memory.want();
            }
        }
        Look::Ends { since, closed } => {
            node.memory.set_over(false);
            tracing::warn!(
                used,
                limit,
                closed,
                seconds = since.elapsed().as_secs_f32(),
                "memory is under its limit again"
            );
        }
    }
}

/// Closes those with most waiting, until that is so many bytes. Returns how many.
fn shed(node: &Node, excess: u64) -> u64 {
    let sockets = node.registry.all().into_iter();
    let mut slow: Vec<_> = sockets.map(|socket| (socket.backlog(), socket)).filter(|(bytes, _)| *bytes > 0).collect();
    slow.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let (mut given_back, mut closed) = (0, 0);
    for (bytes, socket) in slow {
        if given_back >= excess {
            break;
        }
        socket.shed();
        given_back += bytes as u64;
        closed += 1;
    }
    node.metrics.memory_closed.inc_by(closed);
    closed
}
