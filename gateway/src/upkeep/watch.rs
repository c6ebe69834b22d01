//! One task that watches over all sockets: pings, dead peers, sign-ins that end. A timer per socket
//! would cost each of them memory and a wake-up; a walk over the registry costs neither.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::node::Node;
use crate::socket::Socket;
use crate::websocket::WireFrame;

/// How often each socket is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Sockets looked at before other tasks get a turn.
const PER_TURN: usize = 512;

/// Runs until the node stops.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let ping = WireFrame::ping();
    let mut before = Instant::now();
    loop {
        ticks.tick().await;
        let (now, millis) = (node.clock.seconds(), node.clock.millis());
        // A process that was frozen, or got no time, has not listened to anybody either.
        let late = before.elapsed();
        before = Instant::now();
        let away = if late >= 2 * EVERY { late.as_secs() as u32 + 1 } else { 0 };
        for sockets in node.registry.all().chunks(PER_TURN) {
            for socket in sockets {
                if away > 0 {
                    socket.forgive(away, now);
                }
                look_at(&node, socket, &ping, now, millis);
            }
            tokio::task::yield_now().await;
        }
        node.metrics.take_layer_stats(&node.layer.stats());
        node.metrics.write_queue_bytes.set(node.writer.waiting() as i64);
    }
}

fn look_at(node: &Node, socket: &Socket, ping: &WireFrame, now: u32, millis: u64) {
    if millis >= socket.expires_at.load(Ordering::Relaxed) {
        return socket.close(CloseReason::Unauthorized);
    }
    let limits = &node.config.limits;
    let (every, patience) = (limits.ping.as_secs_f64().ceil() as u32, limits.pong.as_secs_f64().ceil() as u32);
    if every == 0 || socket.io().is_none() {
        return;
    }
    // The answer to a ping comes behind all that was to be taken before it.
    if socket.has_taken() {
        socket.heard(now);
    }
    let (silent, listening) = socket.silence(now);
    if socket.pinged.load(Ordering::Relaxed) {
        if listening && silent >= every + patience {
            socket.close(CloseReason::PingTimeout);
        }
    } else if silent >= every {
        socket.pinged.store(true, Ordering::Relaxed);
        node.send_to(socket, ping, "ping");
    }
}
