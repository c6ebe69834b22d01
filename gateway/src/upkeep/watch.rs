//! One task that watches over all sockets: pings, dead peers, sign-ins that end. A timer per socket
//! would cost each of them memory and a wake-up; a walk over the registry costs neither.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::node::Node;
use crate::seldom::SeldomOfKind;
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
    let (mut before, mut layer) = (Instant::now(), Layer::default());
    loop {
        ticks.tick().await;
        // All from one reading: a process frozen between two would take its own absence for its clients' silence.
        let reading = Instant::now();
        let millis = node.clock.millis_at(reading);
        let now = (millis / 1000) as u32;
        // A process that was frozen, or got no time, has not listened to anybody either.
        let late = reading.duration_since(before);
        before = reading;
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
        let stats = node.layer.stats();
        node.metrics.take_layer_stats(&stats);
        layer.tell_of_losses([stats.expired, stats.dropped, stats.publish_failed]);
        if let Some(turn) = layer.look(stats.upkeep_refused, before) {
            node.health.note("layer", &turn);
        }
        node.metrics.nodes.set(node.peers.nodes().len() as i64);
        node.metrics.write_queue_bytes.set(node.writer.waiting() as i64);
    }
}

/// What the layer does by itself, as far as its counters show it.
#[derive(Default)]
struct Layer {
    refused: u64,
    /// Events that were lost, by how: so many so far.
    lost: [u64; 3],
    warnings: SeldomOfKind,
    failed_at: Option<Instant>,
}

/// The layer does everything again within this time.
const LAYER_TURN: Duration = Duration::from_secs(60);

/// Redis refuses what the layer does by itself.
#[derive(Debug, thiserror::Error)]
#[error("Redis refuses what the channel layer does by itself, {0} times so far; its own lines say what")]
struct LayerRefused(u64);

/// What to say of events that the layer has lost, in that order.
const LOST: [&str; 3] = [
    "events had waited longer than layer-expiry for this node and were dropped: it is too slow, or was away",
    "the layer dropped events because nobody took them in time: this node is too slow",
    "the layer did not take events: Redis is away, or refuses them to this user. What was stored is found by comparing",
];

impl Layer {
    fn tell_of_losses(&mut self, lost: [u64; 3]) {
        for ((before, now), what) in self.lost.iter_mut().zip(lost).zip(LOST) {
            if now > *before && self.warnings.again("layer", what).is_some() {
                tracing::warn!(events = now - *before, "{what}");
            }
            *before = now;
        }
    }

    fn look(&mut self, refused: u64, now: Instant) -> Option<Result<(), LayerRefused>> {
        if refused > self.refused {
            (self.refused, self.failed_at) = (refused, Some(now));
            return Some(Err(LayerRefused(refused)));
        }
        self.failed_at.take_if(|at| now.duration_since(*at) > LAYER_TURN).map(|_| Ok(()))
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
        if listening && patience > 0 && silent >= every + patience {
            if socket.ping_is_on_its_way() {
                socket.heard(now);
            } else {
                socket.close(CloseReason::PingTimeout);
            }
        }
    } else if silent >= every {
        socket.pinged.store(true, Ordering::Relaxed);
        node.send_to(socket, ping, "ping");
        socket.note_ping();
    }
}
