//! The counters behind [`LayerStats`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::LayerStats;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    published: AtomicU64,
    publish_failed: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    undecodable: AtomicU64,
    reconnects: AtomicU64,
    expired: AtomicU64,
    over_capacity: AtomicU64,
    unclaimed: AtomicU64,
    probes_missed: AtomicU64,
    upkeep_refused: AtomicU64,
}

impl Counters {
    pub(crate) fn published(&self, n: u64) {
        self.published.fetch_add(n, Relaxed);
    }
    pub(crate) fn publish_failed(&self, n: u64) {
        self.publish_failed.fetch_add(n, Relaxed);
    }
    pub(crate) fn publish_result(&self, arrived: bool) {
        if arrived { self.published(1) } else { self.publish_failed(1) }
    }
    pub(crate) fn received(&self, n: u64) {
        self.received.fetch_add(n, Relaxed);
    }
    pub(crate) fn dropped(&self, n: u64) {
        self.dropped.fetch_add(n, Relaxed);
    }
    pub(crate) fn undecodable(&self) -> u64 {
        self.undecodable.fetch_add(1, Relaxed) + 1
    }
    pub(crate) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }
    pub(crate) fn expired(&self, n: u64) {
        self.expired.fetch_add(n, Relaxed);
    }
    pub(crate) fn over_capacity(&self, n: u64) {
        self.over_capacity.fetch_add(n, Relaxed);
    }
    pub(crate) fn unclaimed(&self, n: u64) {
        self.unclaimed.fetch_add(n, Relaxed);
    }
    pub(crate) fn probe_missed(&self) -> u64 {
        self.probes_missed.fetch_add(1, Relaxed) + 1
    }
    pub(crate) fn upkeep_refused(&self) {
        self.upkeep_refused.fetch_add(1, Relaxed);
    }
    pub(crate) fn snapshot(&self) -> LayerStats {
        LayerStats {
            published: self.published.load(Relaxed),
            publish_failed: self.publish_failed.load(Relaxed),
            received: self.received.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            undecodable: self.undecodable.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            expired: self.expired.load(Relaxed),
            over_capacity: self.over_capacity.load(Relaxed),
            unclaimed: self.unclaimed.load(Relaxed),
            probes_missed: self.probes_missed.load(Relaxed),
            upkeep_refused: self.upkeep_refused.load(Relaxed),
        }
    }
}
