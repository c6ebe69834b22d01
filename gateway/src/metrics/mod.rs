//! What a node counts (`docs/operations.md`). One registry per node, so that several nodes can live in one process.
//!
//! The table below has a row for each metric; what is counted of bridges stands in `bridge/metrics.rs`.

mod known;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use self::process::Process;
use crate::bridge::BridgeMetrics;

pub(crate) use self::process::process_usage;

/// A label set of one name.
macro_rules! label {
    ($type:ident, $field:ident: $value:ty) => {
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        #[doc = concat!("The label `", stringify!($field), "`.")]
        pub struct $type {
            #[doc = "Its value."]
            pub $field: $value,
        }
    };
}
label!(ByCode, code: u16);
label!(ByReason, reason: &'static str);
label!(ByCate, cate: &'static str);
label!(ByType, r#type: &'static str);
label!(ByOperation, operation: &'static str);
label!(ByResult, result: &'static str);
label!(ByKind, kind: &'static str);
label!(ByTask, task: &'static str);
label!(ByOf, of: &'static str);

fn seconds() -> Histogram {
    Histogram::new([0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

fn batch_sizes() -> Histogram {
    Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0])
}

/// A gauge of seconds and their parts.
type Seconds = Gauge<f64, AtomicU64>;

/// The struct of these metrics, and what makes and registers them. A row is a metric's name, its type, what makes it if
/// it does not just begin at zero, and its help text.
macro_rules! metrics {
    ($($name:ident: $type:ty $(= $made:expr)?, $help:literal;)+) => {
        /// All metrics of a node.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $name: $type,)+
            pub(crate) bridge: BridgeMetrics,
        }

        impl Metrics {
            fn registered() -> Self {
                let mut registry = Registry::default();
                registry.register_collector(Box::new(Process::new()));
                let own = registry.sub_registry_with_prefix("gateway");
                $(
                    let $name: $type = metrics!(@ $($made)?);
                    own.register(stringify!($name), $help, $name.clone());
                )+
                let bridge = BridgeMetrics::default();
                bridge.register(own);
                own.register("build", "Version of this node", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
                Self { registry, $($name,)+ bridge }
            }
        }
    };
    (@) => { Default::default() };
    (@ $made:expr) => { $made };
}

metrics! {
    // Sockets
    connections: Gauge, "Open sockets";
    connections_opened: Counter, "Sockets accepted";
    connections_closed: Family<ByCode, Counter>, "Sockets closed, by close code";
    handshakes_rejected: Family<ByReason, Counter>, "Handshakes refused before the upgrade, or closed right after it";
    django_asked: Family<ByResult, Counter>, "Questions to auth_url about who somebody is, by the answer";
    accept_errors: Counter, "Errors of accept(), such as no free file descriptor";
    accept_pauses: Counter, "Moments in which nothing was accepted, to keep files for the node itself";
    rooms_unheard: Counter, "Times that somebody was let in who is in more rooms than limits.rooms_per_user, and hears the oldest";
    sign_ins_rechecked: Family<ByResult, Counter>, "Sessions and users looked at again while their sockets are open: good, unavailable (nobody could tell), or why they are over";
    sign_ins_recheck_oldest_seconds: Seconds, "How long the oldest look at a session or user has been due";

    // Frames and consumers
    frames_received: Family<ByCate, Counter>, "Client frames by meaning";
    frames_sent: Family<ByType, Counter>, "Frames handed to sockets, by type";
    frames_bad: Family<ByReason, Counter>, "Client frames answered with an error, by its code";
    outbox_full: Counter, "Sockets closed with 4008";
    inbox_full: Counter, "Events dropped because a consumer does not keep up";
    handler_errors: Counter, "Consumers ended by an error or a panic";

    // The layer
    groups: Gauge, "Layer groups this node has joined";
    layer_events_published: Counter, "Events this node wrote to the layer";
    layer_events_received: Counter, "Events this node read from the layer";
    layer_events_undecodable: Counter, "Payloads on the layer that no event could be made of";
    layer_events_expired: Counter, "Events that had waited too long for this node (core layer)";
    layer_events_unclaimed: Counter, "Times an event came for a channel or group this node does not have any more (core layer)";
    layer_events_unhandled: Counter, "Events of a type that no handler knows";
    layer_events_dropped: Family<ByReason, Counter>, "Events not delivered, by reason";
    layer_events_forged: Family<ByReason, Counter>, "Events that said what only nodes may say, without a good seal: ignored, or delivered as not stored";
    layer_over_capacity: Counter, "Times a reader's queue was full when this node sent to its group (core layer)";
    layer_inbox_full: Counter, "Events that the layer itself dropped because nobody took them in time";
    layer_publish_failures: Counter, "Events that the layer did not take, found out then or later";
    layer_delivery_seconds: Histogram = seconds(), "From the commit of a stored message to its sockets' outboxes on this node";
    layer_probes_missed: Counter, "Messages of the layer to itself that did not come back; it then connects anew";
    layer_reconnects: Counter, "Times the layer's connection came back";
    layer_gaps_filled: Counter, "Messages fetched from the database because the layer lost them";

    // The database
    store_seconds: Family<ByOperation, Histogram> = Family::new_with_constructor(seconds), "Time of database operations";
    store_errors: Family<ByOperation, Counter>, "Failed database operations";
    store_retries: Family<ByReason, Counter>, "Attempts made again by the node itself: another transaction stood in the way (a deadlock, a lock that did not come), or the connection broke";
    store_reconnects: Counter, "Times that all connections to the database were left for new ones, as an answer did not come in time or it takes no writes";
    store_batch_size: Histogram = batch_sizes(), "Messages and notifications per transaction";
    write_waits: Counter, "Times a client was not read from because too much of its own waited to be stored";
    writes_refused: Counter, "Messages answered with unavailable because too much waited to be stored";
    resumes: Family<ByKind, Counter>, "Streams that clients caught up in, by where it came from: nothing missed, memory or database";
    retention_runs: Family<ByResult, Counter>, "Turns to delete what is old, by how they ended; skipped: another node did it";
    retention_deleted: Family<ByKind, Counter>, "Old rows deleted by this node";

    // Publishing
    stream_length: Gauge, "Entries of the event stream: the backlog";
    stream_pending: Gauge, "Entries that a node has taken and not finished";
    stream_events: Family<ByResult, Counter>, "Entries finished by this node";
    stream_dead: Family<ByReason, Counter>, "Entries this node sent to the dead letters";
    stream_postponed: Family<ByReason, Counter>, "Entries left in the stream to be taken up later: the database did not store them, or the dead letter could not be written";
    api_refused: Family<ByReason, Counter>, "API calls that were refused, by reason";

    // Memory
    memory_bytes: Gauge, "Resident memory of the process";
    memory_limit_bytes: Gauge, "The most it may be, 0 for no limit";
    memory_closed: Counter, "Slow readers closed with 4008 because the process had too much memory";
    recent_bytes: Gauge, "Memory taken by recent messages for clients that come back";
    held_bytes: Gauge, "Memory taken by events that wait for what is missing before them";
    hub_queue_bytes: Gauge, "Memory taken by events on their way from the layer to the sockets";
    write_queue_bytes: Gauge, "Memory taken by messages that wait to be stored";

    // The node
    ready: Gauge, "1 while new sockets should come here, as /readyz says";
    draining: Gauge, "1 while the node is leaving";
    redis_up: Gauge, "1 while Redis answers; asked every few seconds";
    database_up: Gauge, "1 while the database answers; asked every few seconds";
    clock_skew_seconds: Family<ByOf, Seconds>, "How far the clock of the database or of Redis is ahead of this node's";
    background_failures: Family<ByTask, Counter>, "Turns of background tasks that failed";
    event_loop_lag_seconds: Histogram = seconds(), "How late timers of the node fire; one every 250 ms for each thread of the runtime";
    event_loop_stalls: Counter, "Times a thread of the runtime came to no end of a task for 250 ms";
    tasks: Gauge, "Tasks of the process that have not ended: about one for each socket, and some thirty";
    nodes: Gauge, "Nodes of this deployment heard of lately, this one included";
    questions_refused: Counter, "Questions to the other nodes that were not asked, or answers and nodes not heard, because there were too many";
    log_lines_dropped: Counter, "Lines of the log that nobody took in time";
    traces_spans: Family<ByResult, Counter>, "Spans of traces that are kept, by what became of them: sent, failed (the collector did not take them), overflowed (too many waited for it)";
}

impl Metrics {
    /// A fresh set, all at zero.
    pub fn new() -> Self {
        let metrics = Self::registered();
        metrics.nodes.set(1);
        metrics.begin_at_zero();
        metrics
    }

    /// Runs a database operation and notes its time, and its failure.
    pub(crate) async fn time_store<T, E>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (label, started) = (ByOperation { operation }, Instant::now());
        let result = work.await;
        self.store_seconds.get_or_create(&label).observe(started.elapsed().as_secs_f64());
        if result.is_err() {
            self.store_errors.get_or_create(&label).inc();
        }
        result
    }

    /// Takes over the layer's own counts, which it keeps as plain numbers.
    pub fn take_layer_stats(&self, stats: &channel_layer::LayerStats) {
        take_over(&self.layer_events_published, stats.published);
        take_over(&self.layer_events_received, stats.received);
        take_over(&self.layer_events_undecodable, stats.undecodable);
        take_over(&self.layer_events_expired, stats.expired);
        take_over(&self.layer_events_unclaimed, stats.unclaimed);
        take_over(&self.layer_over_capacity, stats.over_capacity);
        take_over(&self.layer_probes_missed, stats.probes_missed);
        take_over(&self.layer_publish_failures, stats.publish_failed);
        take_over(&self.layer_inbox_full, stats.dropped);
        take_over(&self.layer_reconnects, stats.reconnects);
    }

    /// Takes over what the store has had to do again.
    pub fn take_store_stats(&self, stats: &persistence::StoreStats) {
        for (reason, count) in [("conflict", stats.conflicts), ("broken", stats.broken)] {
            take_over(&self.store_retries.get_or_create(&ByReason { reason }), count);
        }
        take_over(&self.store_reconnects, stats.renewed);
    }

    /// Counts the tasks of the runtime that this is called in.
    pub(crate) fn count_tasks(&self) {
        self.tasks.set(tokio::runtime::Handle::current().metrics().num_alive_tasks() as i64);
    }

    /// Takes over the number of lines that the log has dropped.
    pub fn take_log_lines_dropped(&self, lines: u64) {
        take_over(&self.log_lines_dropped, lines);
    }

    /// The text that `/metrics` answers with (OpenMetrics, which Prometheus reads).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// A count that somebody else keeps.
fn take_over(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
