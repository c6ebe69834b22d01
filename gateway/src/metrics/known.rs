//! The series that a node knows before anything happens.

use super::{ByCate, ByCode, ByKind, ByOperation, ByReason, ByResult, ByTask, ByType, Metrics};

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
    &["disputed", "duplicate", "held_full", "incomplete", "no_channel", "old", "queue_full", "rendering", "untold"];
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

/// Sums over all label values of what has labels.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) frames_received: u64,
    pub(crate) frames_sent: u64,
    pub(crate) handshakes_rejected: u64,
    pub(crate) store_errors: u64,
}

impl Metrics {
    /// Makes every known series, so that a rate over its first event can be told.
    pub(super) fn begin_at_zero(&self) {
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
}
