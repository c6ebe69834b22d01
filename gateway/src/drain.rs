//! Leaving without losing anyone: not ready, then no new sockets, then goodbye in waves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::close::CloseReason;
use crate::node::Node;

/// Pause between two waves of closes.
const WAVE: Duration = Duration::from_millis(100);

/// Closes all sockets over the drain window. Returns how many are left when it has passed.
pub(crate) async fn drain(node: &Arc<Node>, accepting: &CancellationToken) -> usize {
    node.draining.store(true, Ordering::Relaxed);
    node.metrics.draining.set(1);
    node.metrics.ready.set(0);
    let settings = &node.config.drain;
    tracing::info!(sockets = node.registry.len(), "draining");
    // Balancers take some seconds to see that the node is not ready; with nobody here nothing is lost.
    let until = Instant::now() + settings.delay;
    while !node.registry.is_empty() && Instant::now() < until {
        sleep(WAVE.min(settings.delay)).await;
    }
    accepting.cancel();
    node.tasks.close();
    let end = Instant::now() + settings.window;
    let sockets = node.registry.all();
    // Half of the window to say goodbye in, half for the last writes and answers.
    let waves = (settings.window.as_millis() / 2 / WAVE.as_millis()).max(1) as usize;
    let reason = CloseReason::Restart { min_ms: 0, max_ms: settings.window.as_millis().max(1000) as u64 };
    for wave in sockets.chunks(sockets.len().div_ceil(waves).max(1)) {
        wave.iter().for_each(|socket| socket.close(reason.clone()));
        if node.registry.is_empty() {
            break;
        }
        sleep(WAVE).await;
    }
    // Some may have come in while we were at it.
    node.registry.all().iter().for_each(|socket| socket.close(reason.clone()));
    let drained = timeout_at(end, node.tasks.wait()).await.is_ok();
    let left = node.registry.len();
    tracing::info!(drained, left, "drain finished");
    left
}
