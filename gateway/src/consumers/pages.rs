//! Pages of stored messages and notifications, alike for browsers (`history`, `notifications`) and the API.

use persistence::{Range, Room, Seen, StoreError};
use serde_json::{Value, json};

use crate::events::{self, rfc3339};
use crate::node::Node;

/// Rows of a page: the default, and the most; fewer where they are large.
pub(crate) const DEFAULT_LIMIT: u64 = 50;
pub(crate) const MAX_LIMIT: u64 = 100;

/// Bytes of text in a page, about: of long messages there are fewer, and `has_more` says so.
pub(crate) const PAGE_BYTES: usize = 256 * 1024;

/// The `history` frame: ascending, with the news whether there is more in that direction.
pub(crate) async fn history(node: &Node, room: &Room, range: Range, limit: u64) -> Result<Value, StoreError> {
    let read = node.store.messages_within(&room.name, range, limit + 1, PAGE_BYTES);
    let (mut rows, was_cut) = node.metrics.time_store("history", read).await?;
    let has_more = cut(&mut rows, range, limit) || was_cut;
    let messages: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "type": "chat", "id": row.id.to_string(), "seq": row.seq, "group_name": room.name,
                "display_name": room.display_name, "message": row.message, "from_user": row.from_user,
                "date": rfc3339(row.date),
            })
        })
        .collect();
    Ok(json!({"type": "history", "group_name": room.name, "messages": messages, "has_more": has_more}))
}

/// The `notifications` frame.
pub(crate) async fn notifications(
    node: &Node,
    user: &str,
    range: Range,
    unseen_only: bool,
    limit: u64,
) -> Result<Value, StoreError> {
    let read = node.store.notifications_within(user, range, unseen_only, limit + 1, PAGE_BYTES);
    let (mut rows, was_cut) = node.metrics.time_store("notifications", read).await?;
    let has_more = cut(&mut rows, range, limit) || was_cut;
    let unseen = node.store.unseen(user).await?;
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "type": "notification", "id": row.id.to_string(), "seq": row.seq, "message": row.message,
                "from_user": row.from_user, "date": rfc3339(row.date), "seen": row.seen,
            })
        })
        .collect();
    Ok(json!({"type": "notifications", "notifications": rows, "unseen": unseen, "has_more": has_more}))
}

/// Marks notifications as seen, tells the user's sockets on all nodes except the one `by` whom it was asked, and returns the `seen` frame.
pub(crate) async fn mark_seen(
    node: &Node,
    user: &str,
    which: Seen,
    by: Option<&str>,
) -> Result<events::SeenFrame, StoreError> {
    let unseen = node.metrics.time_store("seen", node.store.mark_seen(user, which.clone())).await?;
    let event = events::seen_event(&which, unseen, by);
    if !node.names.user(user).is_ok_and(|group| node.tell(&group, event).is_ok()) {
        tracing::debug!("other sockets could not be told what is seen");
    }
    Ok(events::SeenFrame::new(which, unseen))
}

/// Takes away the one row that was read to see whether there are more, from the far end.
fn cut<T>(rows: &mut Vec<T>, range: Range, limit: u64) -> bool {
    let has_more = rows.len() as u64 > limit;
    if has_more {
        let far_end = if range.is_forward() { rows.len() - 1 } else { 0 };
        rows.remove(far_end);
    }
    has_more
}
