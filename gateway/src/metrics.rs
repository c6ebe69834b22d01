//! What a node counts (`docs/operations.md`). One registry per node, so that several nodes can live in one process.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

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

/// All metrics of a node.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field's help text stands in `new`")]
pub struct Metrics {
    registry: Registry,
    pub connections: Gauge,
    pub connections_opened: Counter,
    pub connections_closed: Family<ByCode, Counter>,
    pub handshakes_rejected: Family<ByReason, Counter>,
    pub django_asked: Family<ByResult, Counter>,
    pub accept_errors: Counter,
    pub accept_pauses: Counter,
    pub log_lines_dropped: Gauge<u64, AtomicU64>,
    pub frames_received: Family<ByCate, Counter>,
    pub frames_sent: Family<ByType, Counter>,
    pub frames_bad: Family<ByReason, Counter>,
    pub outbox_full: Counter,
    pub inbox_full: Counter,
    pub rooms_unheard: Counter,
    pub handler_errors: Counter,
    pub groups: Gauge,
    pub layer_events_published: Gauge<u64, AtomicU64>,
    pub layer_events_received: Gauge<u64, AtomicU64>,
    pub layer_events_undecodable: Gauge<u64, AtomicU64>,
    pub layer_events_expired: Gauge<u64, AtomicU64>,
    pub layer_events_unclaimed: Gauge<u64, AtomicU64>,
    pub layer_over_capacity: Gauge<u64, AtomicU64>,
    pub layer_probes_missed: Gauge<u64, AtomicU64>,
    pub layer_events_unhandled: Counter,
    pub layer_events_dropped: Family<ByReason, Counter>,
    pub layer_events_forged: Family<ByReason, Counter>,
    pub layer_inbox_full: Gauge<u64, AtomicU64>,
    pub layer_publish_failures: Gauge<u64, AtomicU64>,
    pub layer_delivery_seconds: Histogram,
    pub layer_reconnects: Gauge<u64, AtomicU64>,
    pub layer_gaps_filled: Counter,
    pub store_seconds: Family<ByOperation, Histogram>,
    pub store_errors: Family<ByOperation, Counter>,
    pub store_batch_size: Histogram,
    pub stream_length: Gauge,
    pub stream_pending: Gauge,
    pub stream_events: Family<ByResult, Counter>,
    pub stream_dead: Family<ByReason, Counter>,
    pub stream_postponed: Family<ByReason, Counter>,
    pub api_refused: Family<ByReason, Counter>,
    pub resumes: Family<ByKind, Counter>,
    pub recent_bytes: Gauge,
    pub held_bytes: Gauge,
    pub hub_queue_bytes: Gauge,
    pub write_queue_bytes: Gauge,
    pub write_waits: Counter,
    pub writes_refused: Counter,
    pub memory_bytes: Gauge,
    pub memory_limit_bytes: Gauge,
    pub memory_closed: Counter,
    pub questions_refused: Counter,
    pub retention_runs: Family<ByResult, Counter>,
    pub retention_deleted: Family<ByKind, Counter>,
    pub draining: Gauge<i64, AtomicI64>,
    pub redis_up: Gauge,
    pub database_up: Gauge,
    pub ready: Gauge,
    pub clock_skew: Family<ByOf, Gauge<f64, AtomicU64>>,
    pub background_failures: Family<ByTask, Counter>,
    pub sign_ins_rechecked: Family<ByResult, Counter>,
    pub recheck_oldest: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// A fresh set, all at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("gateway");
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr);+ $(;)?) => {
                ($({ let metric = $metric; registry.register($name, $help, metric.clone()); metric },)+)
            };
        }
        let (connections, connections_opened, connections_closed, handshakes_rejected) = register! {
            "connections", "Open sockets", Gauge::default();
            "connections_opened", "Sockets accepted", Counter::default();
            "connections_closed", "Sockets closed, by close code", Family::<ByCode, Counter>::default();
            "handshakes_rejected", "Handshakes refused before the upgrade, or closed right after it", Family::<ByReason, Counter>::default();
        };
        let django_asked = Family::<ByResult, Counter>::default();
        registry.register(
            "django_asked",
            "Questions to auth_url about who somebody is, by the answer",
            django_asked.clone(),
        );
        let (accept_errors, accept_pauses, log_lines_dropped) = register! {
            "accept_errors", "Errors of accept(), such as no free file descriptor", Counter::default();
            "accept_pauses", "Moments in which nothing was accepted, to keep files for the node itself", Counter::default();
            "log_lines_dropped_total", "Lines of the log that nobody took in time", Gauge::<u64, AtomicU64>::default();
        };
        let (frames_received, frames_sent, frames_bad, outbox_full, inbox_full, handler_errors) = register! {
            "frames_received", "Client frames by meaning", Family::<ByCate, Counter>::default();
            "frames_sent", "Frames handed to sockets, by type", Family::<ByType, Counter>::default();
            "frames_bad", "Client frames answered with an error, by its code", Family::<ByReason, Counter>::default();
            "outbox_full", "Sockets closed with 4008", Counter::default();
            "inbox_full", "Events dropped because a consumer does not keep up", Counter::default();
            "handler_errors", "Consumers ended by an error or a panic", Counter::default();
        };
        let rooms_unheard = Counter::default();
        let help =
            "Times that somebody was let in who is in more rooms than limits.rooms_per_user, and hears the oldest";
        registry.register("rooms_unheard", help, rooms_unheard.clone());
        let (groups, layer_events_published, layer_events_received, layer_events_undecodable) = register! {
            "groups", "Layer groups this node has joined", Gauge::default();
            "layer_events_published_total", "Events this node wrote to the layer", Gauge::<u64, AtomicU64>::default();
            "layer_events_received_total", "Events this node read from the layer", Gauge::<u64, AtomicU64>::default();
            "layer_events_undecodable_total", "Payloads on the layer that no event could be made of", Gauge::<u64, AtomicU64>::default();
        };
        let (layer_events_expired, layer_events_unclaimed, layer_over_capacity, layer_probes_missed) = register! {
            "layer_events_expired_total", "Events that had waited too long for this node (core layer)", Gauge::<u64, AtomicU64>::default();
            "layer_events_unclaimed_total", "Times an event came for a channel or group this node does not have any more (core layer)", Gauge::<u64, AtomicU64>::default();
            "layer_over_capacity_total", "Times a reader's queue was full when this node sent to its group (core layer)", Gauge::<u64, AtomicU64>::default();
            "layer_probes_missed_total", "Messages of the layer to itself that did not come back; it then connects anew", Gauge::<u64, AtomicU64>::default();
        };
        let layer_events_forged = Family::<ByReason, Counter>::default();
        registry.register(
            "layer_events_forged",
            "Events that said what only nodes may say, without a good seal: ignored, or delivered as not stored",
            layer_events_forged.clone(),
        );
        let (layer_events_unhandled, layer_events_dropped, layer_publish_failures, layer_delivery_seconds) = register! {
            "layer_events_unhandled", "Events of a type that no handler knows", Counter::default();
            "layer_events_dropped", "Events not delivered, by reason", Family::<ByReason, Counter>::default();
            "layer_publish_failures_total", "Events that the layer did not take, found out then or later", Gauge::<u64, AtomicU64>::default();
            "layer_delivery_seconds", "From the commit of a stored message to its sockets' outboxes on this node", seconds();
        };
        let (layer_reconnects, layer_gaps_filled, draining) = register! {
            "layer_reconnects_total", "Times the layer's connection came back", Gauge::<u64, AtomicU64>::default();
            "layer_gaps_filled", "Messages fetched from the database because the layer lost them", Counter::default();
            "draining", "1 while the node is leaving", Gauge::<i64, AtomicI64>::default();
        };
        let store_seconds = Family::<ByOperation, Histogram>::new_with_constructor(seconds as fn() -> Histogram);
        registry.register("store_seconds", "Time of database operations", store_seconds.clone());
        let (store_errors, store_batch_size) = register! {
            "store_errors", "Failed database operations", Family::<ByOperation, Counter>::default();
            "store_batch_size", "Messages and notifications per transaction", batch_sizes();
        };
        let (stream_length, stream_pending, stream_events, stream_dead) = register! {
            "stream_length", "Entries of the event stream: the backlog", Gauge::default();
            "stream_pending", "Entries that a node has taken and not finished", Gauge::default();
            "stream_events", "Entries finished by this node", Family::<ByResult, Counter>::default();
            "stream_dead", "Entries this node sent to the dead letters", Family::<ByReason, Counter>::default();
        };
        let (stream_postponed, api_refused) = register! {
            "stream_postponed", "Entries left in the stream to be taken up later: the database did not store them, or the dead letter could not be written", Family::<ByReason, Counter>::default();
            "api_refused", "API calls refused before they were looked into: for their key, or because too much was under way", Family::<ByReason, Counter>::default();
        };
        let (resumes, recent_bytes, retention_runs, retention_deleted) = register! {
            "resumes", "Streams that clients caught up in, by where it came from: nothing missed, memory or database", Family::<ByKind, Counter>::default();
            "recent_bytes", "Memory taken by recent messages for clients that come back", Gauge::default();
            "retention_runs", "Turns to delete what is old, by how they ended; skipped: another node did it", Family::<ByResult, Counter>::default();
            "retention_deleted", "Old rows deleted by this node", Family::<ByKind, Counter>::default();
        };
        let (redis_up, database_up, ready, clock_skew, background_failures) = register! {
            "redis_up", "1 while Redis answers; asked every few seconds", Gauge::default();
            "database_up", "1 while the database answers; asked every few seconds", Gauge::default();
            "ready", "1 while new sockets should come here, as /readyz says", Gauge::default();
            "clock_skew_seconds", "How far the clock of the database or of Redis is ahead of this node's", Family::<ByOf, Gauge<f64, AtomicU64>>::default();
            "background_failures", "Turns of background tasks that failed", Family::<ByTask, Counter>::default();
        };
        let (sign_ins_rechecked, recheck_oldest) = register! {
            "sign_ins_rechecked", "Sessions and users looked at again while their sockets are open: good, unavailable (nobody could tell), or why they are over", Family::<ByResult, Counter>::default();
            "sign_ins_recheck_oldest_seconds", "How long the oldest look at a session or user has been due", Gauge::<f64, AtomicU64>::default();
        };
        let (held_bytes, hub_queue_bytes, write_queue_bytes, write_waits, writes_refused, questions_refused) = register! {
            "held_bytes", "Memory taken by events that wait for what is missing before them", Gauge::default();
            "hub_queue_bytes", "Memory taken by events on their way from the layer to the sockets", Gauge::default();
            "write_queue_bytes", "Memory taken by messages that wait to be stored", Gauge::default();
            "write_waits", "Times a client was not read from because too much of its own waited to be stored", Counter::default();
            "writes_refused", "Messages answered with unavailable because too much waited to be stored", Counter::default();
            "questions_refused", "Questions to the other nodes that were not asked, or answers and nodes not heard, because there were too many", Counter::default();
        };
        let (memory_bytes, memory_limit_bytes, memory_closed, layer_inbox_full) = register! {
            "memory_bytes", "Resident memory of the process", Gauge::default();
            "memory_limit_bytes", "The most it may be, 0 for no limit", Gauge::default();
            "memory_closed", "Slow readers closed with 4008 because the process had too much memory", Counter::default();
            "layer_inbox_full_total", "Events that the layer itself dropped because nobody took them in time", Gauge::<u64, AtomicU64>::default();
        };
        registry.register("build", "Version of this node", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            registry,
            connections,
            connections_opened,
            connections_closed,
            handshakes_rejected,
            django_asked,
            accept_errors,
            accept_pauses,
            log_lines_dropped,
            frames_received,
            frames_sent,
            frames_bad,
            outbox_full,
            inbox_full,
            rooms_unheard,
            handler_errors,
            groups,
            layer_events_published,
            layer_events_received,
            layer_events_undecodable,
            layer_events_expired,
            layer_events_unclaimed,
            layer_over_capacity,
            layer_probes_missed,
            layer_events_unhandled,
            layer_events_dropped,
            layer_events_forged,
            layer_inbox_full,
            layer_publish_failures,
            layer_delivery_seconds,
            layer_reconnects,
            layer_gaps_filled,
            store_seconds,
            store_errors,
            store_batch_size,
            stream_length,
            stream_pending,
            stream_events,
            stream_dead,
            stream_postponed,
            api_refused,
            resumes,
            recent_bytes,
            held_bytes,
            hub_queue_bytes,
            write_queue_bytes,
            write_waits,
            writes_refused,
            memory_bytes,
            memory_limit_bytes,
            memory_closed,
            questions_refused,
            retention_runs,
            retention_deleted,
            draining,
            redis_up,
            database_up,
            ready,
            clock_skew,
            background_failures,
            sign_ins_rechecked,
            recheck_oldest,
        }
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
        self.layer_events_published.set(stats.published);
        self.layer_events_received.set(stats.received);
        self.layer_events_undecodable.set(stats.undecodable);
        self.layer_events_expired.set(stats.expired);
        self.layer_events_unclaimed.set(stats.unclaimed);
        self.layer_over_capacity.set(stats.over_capacity);
        self.layer_probes_missed.set(stats.probes_missed);
        self.layer_publish_failures.set(stats.publish_failed);
        self.layer_inbox_full.set(stats.dropped);
        self.layer_reconnects.set(stats.reconnects);
    }

    /// The text that `/metrics` answers with (OpenMetrics, which Prometheus reads).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
