//! What a node counts (`docs/operations.md`). One registry per node, so that several nodes can live in one process.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::bridge::BridgeMetrics;

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

/// Values of labels, as far as they are known before something happens.
const CODES: &[u16] =
    &[1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4000, 4008, 4401, 4403, 4404, 4999];
const HANDSHAKES_REJECTED: &[&str] = &[
    "algorithm",
    "app_denied",
    "app_failed",
    "app_late",
    "audience",
    "bad_signature",
    "claim",
    "client_left",
    "connections",
    "connections_per_address",
    "connections_per_user",
    "consumer_forbidden",
    "consumer_limit",
    "consumer_unauthorized",
    "crit",
    "displaced",
    "django_forbidden",
    "django_late",
    "django_malformed",
    "django_nobody",
    "django_redirect",
    "django_status",
    "django_too_large",
    "django_unauthorized",
    "django_unreachable",
    "draining",
    "expired",
    "failed",
    "handshakes_per_second",
    "host",
    "issuer",
    "jwks",
    "layer",
    "malformed",
    "memory",
    "name",
    "no_credentials",
    "no_room",
    "no_token_key",
    "no_worker",
    "not_yet_valid",
    "origin",
    "token_type",
    "too_slow",
    "unavailable",
    "unknown_key",
    "worker_lost",
    "workers_busy",
];
const CATES: &[&str] = &[
    "auth",
    "bad",
    "bridge",
    "chat",
    "history",
    "notification",
    "notifications",
    "ping",
    "presence",
    "resume",
    "rooms",
    "seen",
    "typing",
];
const TYPES: &[&str] = &[
    "ack",
    "auth",
    "bridge",
    "chat",
    "error",
    "history",
    "notification",
    "notifications",
    "ping",
    "pong",
    "presence",
    "redacted",
    "resumed",
    "rooms",
    "seen",
    "site",
    "typing",
];
const FRAMES_BAD: &[&str] = &[
    "forbidden",
    "invalid",
    "rate_limited",
    "room_not_found",
    "too_large",
    "unavailable",
    "unknown_cate",
    "user_not_found",
];
const EVENTS_DROPPED: &[&str] =
    &["disputed", "duplicate", "held_full", "incomplete", "no_channel", "old", "queue_full", "rendering"];
const EVENTS_FORGED: &[&str] = &["repeated", "stale", "unknown_key", "unsealed", "wrong"];
const OPERATIONS: &[&str] = &[
    "admit",
    "append",
    "change",
    "compare",
    "erase",
    "fill",
    "history",
    "memberships",
    "notifications",
    "recall",
    "redact",
    "resume",
    "retention",
    "secrets",
    "seen",
    "site_cache",
    "site_rows",
];
const API_REFUSED: &[&str] = &[
    "busy",
    "failed",
    "key",
    "malformed",
    "media_type",
    "method",
    "no_key",
    "not_found",
    "reused",
    "slow",
    "too_large",
    "unavailable",
];
const STREAM_DEAD: &[&str] =
    &["gave_up", "malformed", "missing_field", "no_room", "not_json", "too_large", "unknown_type"];
/// The background tasks whose turns can fail.
const TASKS: &[&str] = &[
    "backlog",
    "clocks",
    "dead_letters",
    "deployment",
    "fills",
    "groups",
    "jwks",
    "late_groups",
    "layer",
    "losses",
    "memberships",
    "node_id",
    "peers",
    "positions",
    "retention",
    "secrets",
    "stream",
    "traces",
    "writes",
];

/// What every program tells of its process, as Prometheus' own clients name it. Read when it is asked for.
#[derive(Debug)]
struct Process {
    /// Seconds since 1970.
    started: f64,
}

/// Ticks of the processor's time in a second: Linux says 100 to programs on every architecture there is.
const TICKS: f64 = 100.0;

impl Process {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // The process began a little before, which its times and the system's tell.
        let age = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
            let began: f64 = fields(&stat)?.nth(19)?.parse().ok()?;
            let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
            Some(up - began / TICKS)
        });
        Self { started: now.as_secs_f64() - age.unwrap_or_default() }
    }
}

/// The fields of `/proc/self/stat` behind the name, which may hold anything.
fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let (stat, status, limits) = (read("stat"), read("status"), read("limits"));
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
        };
        let ticks =
            fields(&stat).map(|fields| fields.skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum());
        let threads = fields(&stat).and_then(|mut fields| fields.nth(17)?.parse::<f64>().ok());
        let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
            match line.split_whitespace().next()? {
                // As the clients of other languages have it.
                "unlimited" => Some(-1.0),
                number => number.parse::<f64>().ok(),
            }
        };
        if let Some(ticks) = ticks.map(|ticks: f64| ticks / TICKS) {
            let counter = ConstCounter::new(ticks);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "User and system time of the process",
                None,
                counter.metric_type(),
            )?;
            counter.encode(metric)?;
        }
        for (name, help, value) in [
            ("process_open_fds", "Open files of the process", files),
            ("process_max_fds", "The most there may be", limit("Max open files")),
            ("process_virtual_memory_bytes", "Virtual memory of the process", kib("VmSize:")),
            ("process_virtual_memory_max_bytes", "The most it may be, -1 for no limit", limit("Max address space")),
            ("process_resident_memory_bytes", "Resident memory of the process", kib("VmRSS:")),
            ("process_threads", "Threads of the process", threads),
            ("process_start_time_seconds", "When the process began, since 1970", Some(self.started)),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Seconds of the processor's time that the process has taken, and bytes of memory that it has now.
pub(crate) fn process_usage() -> (f64, u64) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let ticks = fields(&read("stat"))
        .map_or(0.0, |fields| fields.skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum::<f64>());
    let status = read("status");
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    (ticks / TICKS, kib.unwrap_or(0_u64) * 1024)
}

/// Sums over all label values of what has labels.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) frames_received: u64,
    pub(crate) frames_sent: u64,
    pub(crate) handshakes_rejected: u64,
    pub(crate) store_errors: u64,
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
    pub log_lines_dropped: Counter,
    pub frames_received: Family<ByCate, Counter>,
    pub frames_sent: Family<ByType, Counter>,
    pub frames_bad: Family<ByReason, Counter>,
    pub outbox_full: Counter,
    pub inbox_full: Counter,
    pub rooms_unheard: Counter,
    pub handler_errors: Counter,
    pub groups: Gauge,
    pub layer_events_published: Counter,
    pub layer_events_received: Counter,
    pub layer_events_undecodable: Counter,
    pub layer_events_expired: Counter,
    pub layer_events_unclaimed: Counter,
    pub layer_over_capacity: Counter,
    pub layer_probes_missed: Counter,
    pub layer_events_unhandled: Counter,
    pub layer_events_dropped: Family<ByReason, Counter>,
    pub layer_events_forged: Family<ByReason, Counter>,
    pub layer_inbox_full: Counter,
    pub layer_publish_failures: Counter,
    pub layer_delivery_seconds: Histogram,
    pub layer_reconnects: Counter,
    pub layer_gaps_filled: Counter,
    pub store_seconds: Family<ByOperation, Histogram>,
    pub store_errors: Family<ByOperation, Counter>,
    pub store_retries: Family<ByReason, Counter>,
    pub store_reconnects: Counter,
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
    pub event_loop_lag: Histogram,
    pub event_loop_stalls: Counter,
    pub traces_spans: Family<ByResult, Counter>,
    pub sign_ins_rechecked: Family<ByResult, Counter>,
    pub recheck_oldest: Gauge<f64, AtomicU64>,
    pub nodes: Gauge,
    pub tasks: Gauge,
    pub(crate) bridge: BridgeMetrics,
}

impl Metrics {
    /// A fresh set, all at zero.
    pub fn new() -> Self {
        let mut all = Registry::default();
        all.register_collector(Box::new(Process::new()));
        let registry = all.sub_registry_with_prefix("gateway");
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
            "log_lines_dropped", "Lines of the log that nobody took in time", Counter::default();
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
            "layer_events_published", "Events this node wrote to the layer", Counter::default();
            "layer_events_received", "Events this node read from the layer", Counter::default();
            "layer_events_undecodable", "Payloads on the layer that no event could be made of", Counter::default();
        };
        let (layer_events_expired, layer_events_unclaimed, layer_over_capacity, layer_probes_missed) = register! {
            "layer_events_expired", "Events that had waited too long for this node (core layer)", Counter::default();
            "layer_events_unclaimed", "Times an event came for a channel or group this node does not have any more (core layer)", Counter::default();
            "layer_over_capacity", "Times a reader's queue was full when this node sent to its group (core layer)", Counter::default();
            "layer_probes_missed", "Messages of the layer to itself that did not come back; it then connects anew", Counter::default();
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
            "layer_publish_failures", "Events that the layer did not take, found out then or later", Counter::default();
            "layer_delivery_seconds", "From the commit of a stored message to its sockets' outboxes on this node", seconds();
        };
        let (layer_reconnects, layer_gaps_filled, draining) = register! {
            "layer_reconnects", "Times the layer's connection came back", Counter::default();
            "layer_gaps_filled", "Messages fetched from the database because the layer lost them", Counter::default();
            "draining", "1 while the node is leaving", Gauge::<i64, AtomicI64>::default();
        };
        let store_seconds = Family::<ByOperation, Histogram>::new_with_constructor(seconds as fn() -> Histogram);
        registry.register("store_seconds", "Time of database operations", store_seconds.clone());
        let (store_errors, store_retries, store_reconnects, store_batch_size) = register! {
            "store_errors", "Failed database operations", Family::<ByOperation, Counter>::default();
            "store_retries", "Attempts made again by the node itself: another transaction stood in the way (a deadlock, a lock that did not come), or the connection broke", Family::<ByReason, Counter>::default();
            "store_reconnects", "Times that all connections to the database were left for new ones, as an answer did not come in time or it takes no writes", Counter::default();
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
            "api_refused", "API calls that were refused, by reason", Family::<ByReason, Counter>::default();
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
        let (traces_spans, event_loop_lag, event_loop_stalls) = register! {
            "traces_spans", "Spans of traces that are kept, by what became of them: sent, failed (the collector did not take them), overflowed (too many waited for it)", Family::<ByResult, Counter>::default();
            "event_loop_lag_seconds", "How late timers of the node fire; one every 250 ms for each thread of the runtime", seconds();
            "event_loop_stalls", "Times a thread of the runtime came to no end of a task for 250 ms", Counter::default();
        };
        let (sign_ins_rechecked, recheck_oldest) = register! {
            "sign_ins_rechecked", "Sessions and users looked at again while their sockets are open: good, unavailable (nobody could tell), or why they are over", Family::<ByResult, Counter>::default();
            "sign_ins_recheck_oldest_seconds", "How long the oldest look at a session or user has been due", Gauge::<f64, AtomicU64>::default();
        };
        let nodes = Gauge::default();
        nodes.set(1);
        registry.register("nodes", "Nodes of this deployment heard of lately, this one included", nodes.clone());
        let tasks = Gauge::default();
        registry.register(
            "tasks",
            "Tasks of the process that have not ended: about one for each socket, and some thirty",
            tasks.clone(),
        );
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
            "layer_inbox_full", "Events that the layer itself dropped because nobody took them in time", Counter::default();
        };
        let bridge = BridgeMetrics::default();
        bridge.register(registry);
        registry.register("build", "Version of this node", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let metrics = Self {
            registry: all,
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
            store_retries,
            store_reconnects,
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
            event_loop_lag,
            event_loop_stalls,
            traces_spans,
            sign_ins_rechecked,
            recheck_oldest,
            nodes,
            tasks,
            bridge,
        };
        metrics.begin_at_zero();
        metrics
    }

    /// Makes every known series, so that a rate over its first event can be told.
    fn begin_at_zero(&self) {
        macro_rules! begin {
            ($($family:ident, $label:ident { $field:ident } of $values:expr);+ $(;)?) => {
                $(for $field in $values { drop(self.$family.get_or_create(&$label { $field })); })+
            };
        }
        begin! {
            connections_closed, ByCode { code } of CODES.iter().copied();
            handshakes_rejected, ByReason { reason } of HANDSHAKES_REJECTED.iter().copied();
            frames_received, ByCate { cate } of CATES.iter().copied();
            frames_sent, ByType { r#type } of TYPES.iter().copied();
            frames_bad, ByReason { reason } of FRAMES_BAD.iter().copied();
            layer_events_dropped, ByReason { reason } of EVENTS_DROPPED.iter().copied();
            layer_events_forged, ByReason { reason } of EVENTS_FORGED.iter().copied();
            store_seconds, ByOperation { operation } of OPERATIONS.iter().copied();
            store_errors, ByOperation { operation } of OPERATIONS.iter().copied();
            store_retries, ByReason { reason } of ["conflict", "broken"];
            stream_events, ByResult { result } of ["stored", "changed", "repeated", "sent", "expired", "deleted", "dead"];
            stream_dead, ByReason { reason } of STREAM_DEAD.iter().copied();
            stream_postponed, ByReason { reason } of ["no_dead_letter", "no_room_yet", "not_stored"];
            api_refused, ByReason { reason } of API_REFUSED.iter().copied();
            resumes, ByKind { kind } of ["nothing", "memory", "database", "refused", "overflowed"];
            retention_runs, ByResult { result } of ["done", "skipped", "broken_off", "failed"];
            retention_deleted, ByKind { kind } of ["message", "notification", "receipt"];
            background_failures, ByTask { task } of TASKS.iter().copied();
            django_asked, ByResult { result } of ["user", "nobody", "unauthorized", "forbidden", "failed"];
            traces_spans, ByResult { result } of ["sent", "failed", "overflowed"];
            sign_ins_rechecked, ByResult { result } of ["good", "unavailable", "renamed"];
        }
    }

    /// What came to how much in all.
    pub(crate) fn totals(&self) -> Totals {
        macro_rules! sum {
            ($family:ident, $label:ident { $field:ident } of $values:expr) => {
                $values.iter().copied().map(|$field| self.$family.get_or_create(&$label { $field }).get()).sum()
            };
        }
        Totals {
            frames_received: sum!(frames_received, ByCate { cate } of CATES),
            frames_sent: sum!(frames_sent, ByType { r#type } of TYPES),
            handshakes_rejected: sum!(handshakes_rejected, ByReason { reason } of HANDSHAKES_REJECTED),
            store_errors: sum!(store_errors, ByOperation { operation } of OPERATIONS),
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
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The words behind these calls in the crate's sources.
    fn words(directory: &Path, calls: &[&str], found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                words(&entry, calls, found);
                continue;
            }
            let text = std::fs::read_to_string(&entry).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for call in calls {
                found.extend(text.split(call).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }

    #[test]
    fn every_series_that_the_program_knows_begins_at_zero() {
        let text = Metrics::new().encode();
        for (calls, series) in [
            (&["time_store(\""][..], "gateway_store_errors_total{operation="),
            (&["health.note(\"", "note_with(\""], "gateway_background_failures_total{task="),
            (&["self.dropped(\""], "gateway_layer_events_dropped_total{reason="),
            (&["postponed(\""], "gateway_stream_postponed_total{reason="),
            (&[" unusable(\"", "(unusable(\""], "gateway_stream_dead_total{reason="),
            (
                &["reject(&self.node, \"", "refuse(Refusal::Unavailable, \""],
                "gateway_handshakes_rejected_total{reason=",
            ),
        ] {
            let mut found = BTreeSet::new();
            words(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), calls, &mut found);
            assert!(!found.is_empty(), "{series}");
            for word in found {
                assert!(text.contains(&format!("{series}\"{word}\"}} 0")), "{series}{word}");
            }
        }
    }

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

    /// The rows of `docs/metrics.md`: what `/metrics` shows.
    fn rows() -> Vec<String> {
        let metrics = Metrics::new();
        // There once clocks have been compared.
        for of in ["database", "redis"] {
            drop(metrics.clock_skew.get_or_create(&ByOf { of }));
        }
        // There for each bridge.
        metrics.bridge.begin("/ws/orders/", crate::consumers::bridged::CODES);
        let text = metrics.encode();
        let mut rows = Vec::new();
        for part in text.split("# HELP ").skip(1) {
            let mut lines = part.lines();
            let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
            let kind = lines.find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
            let samples: Vec<&str> = lines.filter(|line| line.starts_with(name)).collect();
            let shown = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            let mut labels: Vec<(&str, BTreeSet<&str>)> = Vec::new();
            for pairs in samples.iter().filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0)) {
                for (label, value) in pairs.split(',').filter_map(|pair| pair.split_once('=')) {
                    if label == "le" {
                        continue;
                    }
                    if !labels.iter().any(|(known, _)| *known == label) {
                        labels.push((label, BTreeSet::new()));
                    }
                    let values = &mut labels.iter_mut().find(|(known, _)| *known == label).unwrap().1;
                    values.insert(value.trim_matches('"'));
                }
            }
            assert!(!samples.is_empty(), "{name} shows nothing");
            let labels: Vec<String> = labels
                .iter()
                .map(|(label, values)| match *label {
                    "version" | "path" => format!("`{label}`"),
                    _ => format!("`{label}`: {}", values.iter().copied().collect::<Vec<_>>().join(", ")),
                })
                .collect();
            rows.push(format!("| `{shown}` | {kind} | {} | {} |", labels.join("; "), help.trim_end_matches('.')));
        }
        rows.sort();
        rows
    }

    /// `GATEWAY_WRITE_DOCUMENTS=1 cargo test -p gateway --lib metrics::` writes the table anew.
    #[test]
    fn the_document_explains_every_metric_by_its_help_text_and_labels() {
        let document = std::fs::read_to_string(DOCUMENT).unwrap();
        let head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n";
        let (before, rest) = document.split_once(head).unwrap();
        let table: String = rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).collect();
        let wanted: String = rows().iter().map(|row| format!("{row}\n")).collect();
        if table != wanted && std::env::var_os("GATEWAY_WRITE_DOCUMENTS").is_some() {
            let after = &rest[table.len()..];
            std::fs::write(DOCUMENT, format!("{before}{head}{wanted}{after}")).unwrap();
            return;
        }
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let (has, wants) = (lines(&table), lines(&wanted));
        let (missing, gone): (Vec<_>, Vec<_>) = (wants.difference(&has).collect(), has.difference(&wants).collect());
        assert!(
            table == wanted,
            "docs/metrics.md: GATEWAY_WRITE_DOCUMENTS=1 writes it anew. Missing: {missing:#?} Gone: {gone:#?}"
        );
    }
}
