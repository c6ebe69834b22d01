//! What bridges count. The paths are those of the settings, so there are few.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Of a bridge, named by its path as configured.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct OfPath {
    pub(crate) path: String,
}

/// How sockets of a bridge ended; the application's own codes are `app`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Ended {
    pub(crate) path: String,
    pub(crate) code: String,
}

/// Why something was.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Because {
    pub(crate) reason: &'static str,
}

/// Why something of an application's was dropped.
pub(crate) const DROPPED: &[&str] = &[
    "after_end",
    "client_left",
    "closing",
    "events_full",
    "expired",
    "large_event",
    "late_rendering",
    "layer",
    "mailbox_full",
    "no_mailbox",
    "not_open",
    "to_send",
    "unknown_sid",
    "unreadable_event",
];

/// What became of an event that a shared handler was to render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Shared,
    NotShared,
    Failed,
    Nobody,
}

/// Named by it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByOutcome {
    pub(crate) outcome: &'static str,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Shared, Self::NotShared, Self::Failed, Self::Nobody];

    fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::NotShared => "not_shared",
            Self::Failed => "failed",
            Self::Nobody => "nobody",
        }
    }
}

/// Why there is no link, or none any more.
pub(crate) const LINK_ERRORS: &[&str] =
    &["address", "closed", "late", "malformed", "secret", "silent", "tls", "too_large", "unknown_kind"];

/// The metrics of all bridges.
#[derive(Clone, Debug, Default)]
pub(crate) struct BridgeMetrics {
    pub(crate) sockets: Family<OfPath, Gauge>,
    pub(crate) opening: Family<OfPath, Gauge>,
    pub(crate) links: Family<OfPath, Gauge>,
    pub(crate) closed: Family<Ended, Counter>,
    pub(crate) dropped: Family<Because, Counter>,
    pub(crate) link_errors: Family<Because, Counter>,
    pub(crate) receive_seconds: ReceiveSeconds,
    pub(crate) rendered: Family<ByOutcome, Counter>,
    pub(crate) reattached: Family<Reattached, Counter>,
    pub(crate) reattach_seconds: ReattachSeconds,
}

/// Of a bridge, and whether a socket has stayed.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Reattached {
    pub(crate) path: String,
    pub(crate) outcome: &'static str,
}

/// A histogram that can be made by default.
#[derive(Clone, Debug)]
pub(crate) struct ReattachSeconds(Histogram);

impl Default for ReattachSeconds {
    fn default() -> Self {
        Self(Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]))
    }
}

/// A histogram that can be made by default.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveSeconds(Histogram);

impl Default for ReceiveSeconds {
    fn default() -> Self {
        let bounds = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        Self(Histogram::new(bounds))
    }
}

impl BridgeMetrics {
    /// Registers them, and makes what can be known before something happens.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("bridge_sockets", "Open sockets whose consumers are the site's own", self.sockets.clone());
        registry.register(
            "bridge_opening",
            "Handshakes that wait for a worker or for what its application says",
            self.opening.clone(),
        );
        registry.register("bridge_links", "Workers that this node is linked to", self.links.clone());
        registry.register(
            "bridge_closed",
            "Bridged sockets closed, by close code; app: a code of the application's own",
            self.closed.clone(),
        );
        registry.register(
            "bridge_dropped",
            "Messages and frames of applications that were dropped, by reason",
            self.dropped.clone(),
        );
        registry.register(
            "bridge_link_errors",
            "Links to workers that could not be made or were given up, by reason",
            self.link_errors.clone(),
        );
        registry.register(
            "bridge_receive_seconds",
            "From a client's message to the application's receive() that took it",
            self.receive_seconds.0.clone(),
        );
        registry.register(
            "bridge_rendered",
            "Events that shared handlers of the site's consumers were asked to render, by outcome",
            self.rendered.clone(),
        );
        registry.register(
            "bridge_reattached",
            "Open sockets whose worker left and whose consumers go on elsewhere: kept, or closed with 1012",
            self.reattached.clone(),
        );
        registry.register(
            "bridge_reattach_seconds",
            "From the last event that an old instance is given to the new one's accept",
            self.reattach_seconds.0.clone(),
        );
        Outcome::ALL.iter().for_each(|outcome| {
            drop(self.rendered.get_or_create(&ByOutcome { outcome: outcome.as_str() }));
        });
        DROPPED.iter().for_each(|reason| drop(self.dropped.get_or_create(&Because { reason })));
        LINK_ERRORS.iter().for_each(|reason| drop(self.link_errors.get_or_create(&Because { reason })));
    }

    /// Begins the series of a bridge at zero.
    pub(crate) fn begin(&self, path: &str, codes: &[u16]) {
        let of = OfPath { path: path.to_owned() };
        [&self.sockets, &self.opening, &self.links].iter().for_each(|family| drop(family.get_or_create(&of)));
        ["kept", "closed"].iter().for_each(|outcome| {
            drop(self.reattached.get_or_create(&Reattached { path: path.to_owned(), outcome }));
        });
        let codes = codes.iter().map(u16::to_string).chain(["app".to_owned()]);
        codes.for_each(|code| drop(self.closed.get_or_create(&Ended { path: path.to_owned(), code })));
    }

    pub(super) fn drop_one(&self, reason: &'static str) {
        self.drop_many(reason, 1);
    }

    pub(super) fn drop_many(&self, reason: &'static str, count: u64) {
        self.dropped.get_or_create(&Because { reason }).inc_by(count);
    }

    /// A socket was to go on elsewhere, and was silent so long; none: it was closed.
    pub(super) fn reattached(&self, path: &str, silence: Option<std::time::Duration>) {
        let outcome = if silence.is_some() { "kept" } else { "closed" };
        self.reattached.get_or_create(&Reattached { path: path.to_owned(), outcome }).inc();
        silence.into_iter().for_each(|silence| self.reattach_seconds.0.observe(silence.as_secs_f64()));
    }

    pub(super) fn rendered(&self, outcome: Outcome) {
        self.rendered.get_or_create(&ByOutcome { outcome: outcome.as_str() }).inc();
    }

    pub(super) fn received(&self, seconds: f64) {
        self.receive_seconds.0.observe(seconds);
    }
}
