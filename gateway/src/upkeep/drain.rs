//! Leaving without losing anyone: not ready, then no new sockets, then goodbye in waves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::close::CloseReason;
use crate::config::Drain;
use crate::node::Node;

/// Pause between two waves of closes.
const WAVE: Duration = Duration::from_millis(100);

/// The shortest time over which clients are spread.
const LEAST: Duration = Duration::from_millis(100);

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
    let spread = spread(settings, sockets.len());
    // Half of it to say goodbye in; the rest of the window for the last writes and answers.
    let waves = (spread.as_millis() / 2 / WAVE.as_millis()).max(1) as usize;
    let reason = CloseReason::Restart { min_ms: 0, max_ms: spread.as_millis() as u64 };
    for wave in sockets.chunks(sockets.len().div_ceil(waves).max(1)) {
        wave.iter().for_each(|socket| socket.close(reason.clone()));
        if node.registry.is_empty() {
            break;
        }
        sleep(WAVE.min(spread)).await;
    }
    // Some may have come in while we were at it.
    node.registry.all().iter().for_each(|socket| socket.close(reason.clone()));
    let drained = timeout_at(end, node.tasks.wait()).await.is_ok();
    let left = node.registry.len();
    tracing::info!(drained, left, "drain finished");
    left
}

/// Over which time so many clients come back: as fast as the nodes that stay can take them, and no longer
/// than the window. A few need not wait for the crowd that is not there.
fn spread(settings: &Drain, sockets: usize) -> Duration {
    let needed = match settings.reconnects_per_second {
        0 => settings.window,
        rate => Duration::from_secs_f64(sockets as f64 / f64::from(rate)),
    };
    needed.min(settings.window).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sockets_come_back_at_once_and_many_over_the_window() {
        let settings = |window, reconnects_per_second| Drain {
            delay: Duration::ZERO,
            window: Duration::from_secs(window),
            reconnects_per_second,
            grace: Duration::ZERO,
        };
        for (window, rate, sockets, milliseconds) in [
            (20, 500, 0, 100),
            (20, 500, 30, 100),
            (20, 500, 1_000, 2_000),
            (20, 500, 10_000, 20_000),
            (20, 500, 100_000, 20_000),
            (20, 50, 100, 2_000),
            (20, 0, 1, 20_000),
            (0, 500, 1_000, 100),
        ] {
            let spread = spread(&settings(window, rate), sockets);
            assert_eq!(spread, Duration::from_millis(milliseconds), "{sockets} sockets at {rate}/s in {window} s");
        }
    }
}
