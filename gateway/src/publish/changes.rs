//! Changes of rooms and members, from every door. Each is stored in its place among the others, then told to open sockets.

use std::sync::Arc;
use std::time::Duration;

use channel_layer::{Event, GroupName, NameError};
use futures_util::StreamExt;
use persistence::{AppendError, Change, ChangeKind, ChangeTime, Changed, StoreError};
use uuid::Uuid;

use crate::events;
use crate::metrics::ByReason;
use crate::node::Node;
use crate::words::EventType;

/// Users who are told of a change at once.
const AT_ONCE: usize = 64;

/// How long the stream's clock is waited for. Without it the database's is as good, as far as the two agree.
const CLOCK_TIME: Duration = Duration::from_millis(500);

/// Redactions that are kept for nodes that could not be told, at most.
const UNTOLD: usize = 1000;

/// How often it is tried again to tell them.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Now, as the ids of the stream's entries have it.
pub(crate) async fn now(node: &Node) -> ChangeTime {
    let asked = async { node.redis.as_ref()?.time().await.ok() };
    let time = tokio::time::timeout(CLOCK_TIME, asked).await.ok().flatten();
    let time = time.unwrap_or_else(|| node.clock.database());
    ChangeTime::Now(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

/// Does what a change says, and tells those whom it concerns, also when it was done before: who did it may not have
/// come to that.
pub(crate) async fn make(node: &Node, change: &Change) -> Result<Result<Changed, AppendError>, StoreError> {
    let changed = {
        // Each waits for the room's lock with a connection in hand; messages need some, too.
        let _turn = node.changes.acquire().await;
        node.metrics.time_store("change", node.store.change(change)).await?
    };
    if let Ok(changed) = &changed {
        let how = if matches!(change.kind, ChangeKind::Joins(_)) { "added" } else { "removed" };
        let told = changed.counts.iter().map(|user| tell_user(node, user, how, &change.room));
        let told: Vec<_> = told.collect();
        futures_util::stream::iter(told).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
    Ok(changed)
}

/// Tells a user's open sockets that a room was `added` or `removed`.
pub(crate) async fn tell_user(node: &Node, user: &str, how: &'static str, room: &str) {
    tell(node, node.names.user(user), Event::new(EventType::RoomsChanged.as_str()).with(how, room)).await;
}

/// Tells the open sockets of a room that it is gone: they look again and leave.
pub(crate) async fn tell_room(node: &Node, room: &str) {
    tell(node, node.names.room(room), Event::new(EventType::RoomsChanged.as_str()).with("removed", room)).await;
}

/// Tells the open sockets of a room which messages have lost their texts.
pub(crate) async fn tell_redacted(node: &Node, room: &str, messages: &[(Uuid, u64)]) {
    for (id, seq) in messages {
        tell(node, node.names.room(room), events::redacted_event(room, *id, *seq)).await;
    }
}

async fn tell(node: &Node, group: Result<GroupName, NameError>, event: Event) {
    let Ok(group) = group else { return };
    let event = node.seals.word(event, group.as_str());
    if let Err(error) = node.layer.group_send(&group, &event).await {
        // Of members the other nodes find out by themselves, as soon as they compare (`upkeep/memberships.rs`).
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "other nodes could not be told of a change of members, or of a redacted message"
        );
        if EventType::of_event(&event) == Some(EventType::Redacted) {
            keep_untold(node, group.clone(), event.clone());
        }
        node.hub.deliver_here(group, event);
    }
}

/// Keeps a redaction until the layer takes it. The oldest goes where there are too many: what the other nodes have in
/// memory they forget by themselves when their layer is back, so only pages that show the text go on showing it.
fn keep_untold(node: &Node, group: GroupName, event: Event) {
    let mut untold = node.untold.lock();
    if untold.len() >= UNTOLD {
        untold.pop_front();
        node.metrics.layer_events_dropped.get_or_create(&ByReason { reason: "untold" }).inc();
        tracing::warn!(most = UNTOLD, "the oldest of the redactions that other nodes are to be told of is given up");
    }
    untold.push_back((group, event));
}

/// Tells the other nodes what they could not be told, until the node stops.
pub(crate) async fn tell_again(node: Arc<Node>) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        loop {
            let Some((group, event)) = node.untold.lock().pop_front() else { break };
            if node.layer.group_send(&group, &event).await.is_err() {
                node.untold.lock().push_front((group, event));
                break;
            }
        }
    }
}
