//! Old messages, notifications and receipts are deleted, by one node for all.
//!
//! Every node asks from time to time for the lease in the database; who gets it cleans, and the others
//! see that it has been done. A node that dies in the middle loses the lease a minute later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use persistence::{Deleted, Retention, StoreError};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config;
use crate::metrics::{ByKind, ByResult, Metrics};
use crate::node::Node;

/// Name of the lease.
const LEASE: &str = "retention";

/// How long a node that fell silent keeps the others waiting, and how often one at work is heard of.
const LEASE_TIME: Duration = Duration::from_secs(60);
const RENEW_EVERY: Duration = Duration::from_secs(20);

/// How often it is looked whether it has been switched on.
const OFF: Duration = Duration::from_secs(60);

/// Receipts are kept for the 7 days that are promised and one more, should the database's clock be set right.
const KEEP_RECEIPTS: time::Duration = time::Duration::days(8);

/// How a turn ended.
enum Turn {
    /// Another node has the lease, or it was done a short time ago.
    Skipped,
    Done(Deleted),
    /// The node leaves, or another one has taken over.
    BrokenOff,
}

/// Runs until the node leaves. What it is at then is given up between two statements.
pub(crate) async fn run(node: Arc<Node>, leaving: CancellationToken) {
    let holder = Uuid::new_v4();
    // Nodes start together; and a node that starts has better things to do.
    let mut wait = Duration::from_secs(1).mul_f64(rand::random_range(1.0..5.0));
    while leaving.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        // Other settings may hold by now.
        let every = node.config.retention.interval;
        if every.is_zero() {
            wait = OFF;
            continue;
        }
        let started = Instant::now();
        let turn = node.metrics.time_store("retention", turn(&node, holder, &leaving)).await;
        node.health.note("retention", &turn);
        let result = match turn {
            Ok(Turn::Skipped) => "skipped",
            Ok(Turn::BrokenOff) => "broken_off",
            Ok(Turn::Done(deleted)) => {
                if deleted.total() > 0 {
                    let Deleted { messages, notifications, receipts } = deleted;
                    let seconds = started.elapsed().as_secs_f32();
                    tracing::info!(messages, notifications, receipts, seconds, "what was old has been deleted");
                }
                "done"
            }
            Err(_noted) => "failed",
        };
        node.metrics.retention_runs.get_or_create(&ByResult { result }).inc();
        // Several tries per interval: the turn of a node that left is taken over soon.
        wait = (every / 4).mul_f64(rand::random_range(0.8..1.2));
    }
}

async fn turn(node: &Node, holder: Uuid, leaving: &CancellationToken) -> Result<Turn, StoreError> {
    let settings = &node.config.retention;
    if node.is_draining() || !node.store.take_lease(LEASE, holder, LEASE_TIME, settings.interval).await? {
        return Ok(Turn::Skipped);
    }
    let work = async {
        let result = tokio::select! {
            done = clean(node, settings) => done.map(Turn::Done),
            lost = keep_lease(node, holder) => lost.map(|()| Turn::BrokenOff),
        };
        Some(result)
    };
    let result = leaving.run_until_cancelled(work).await.flatten().unwrap_or(Ok(Turn::BrokenOff));
    node.store.end_lease(LEASE, holder, matches!(result, Ok(Turn::Done(_)))).await?;
    result
}

async fn clean(node: &Node, settings: &config::Retention) -> Result<Deleted, StoreError> {
    let retention = retention(settings, node.store.clock().await?);
    node.store.apply_retention(&retention, |part| count(&node.metrics, part)).await
}

/// Returns when another node has the lease.
async fn keep_lease(node: &Node, holder: Uuid) -> Result<(), StoreError> {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if !node.store.renew_lease(LEASE, holder, LEASE_TIME).await? {
            tracing::warn!("another node has taken over to delete what is old");
            return Ok(());
        }
    }
}

fn retention(settings: &config::Retention, now: OffsetDateTime) -> Retention {
    // More days than there ever were keep everything.
    let days_ago = |days: u32| now.checked_sub(time::Duration::days(days.into())).filter(|_| days > 0);
    Retention {
        messages_before: days_ago(settings.messages_days),
        messages_per_room: (settings.messages_per_room > 0).then_some(settings.messages_per_room),
        notifications_before: days_ago(settings.notifications_days),
        receipts_before: Some(now - KEEP_RECEIPTS),
    }
}

fn count(metrics: &Metrics, deleted: Deleted) {
    for (kind, rows) in
        [("message", deleted.messages), ("notification", deleted.notifications), ("receipt", deleted.receipts)]
    {
        if rows > 0 {
            metrics.retention_deleted.get_or_create(&ByKind { kind }).inc_by(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn nothing_is_old_unless_the_settings_say_so_but_receipts_end() {
        let now = datetime!(2026-03-10 12:00 UTC);
        let kept = retention(&config::Retention::default(), now);
        assert_eq!(kept, Retention { receipts_before: Some(datetime!(2026-03-02 12:00 UTC)), ..Retention::default() });
        let settings = config::Retention {
            messages_days: 1,
            messages_per_room: 5,
            notifications_days: 2,
            ..config::Retention::default()
        };
        let limited = retention(&settings, now);
        assert_eq!(limited.messages_before, Some(datetime!(2026-03-09 12:00 UTC)));
        assert_eq!(limited.notifications_before, Some(datetime!(2026-03-08 12:00 UTC)));
        assert_eq!(limited.messages_per_room, Some(5));
        // Whatever the retention, a repeat is known for a week.
        assert_eq!(limited.receipts_before, kept.receipts_before);
    }
}
