//! Pages of stored messages and notifications, alike for browsers (`history`, `notifications`) and the API.

use persistence::{Range, Room, Seen, StoreError};
use serde_json::{Value, json};

use crate::events::{self, rfc3339};
use crate::node::Node;

/// Rows of a page: the default, and the most.
pub(crate) const DEFAULT_LIMIT: u64 = 50;
pub(crate) const MAX_LIMIT: u64 = 100;

/// The `history` frame: ascending, with the news whether there is more in that direction.
pub(crate) async fn history(node: &Node, room: &Room, range: Range, limit: u64) -> Result<Value, StoreError> {
    let mut rows = node.metrics.time_store("history", node.store.messages(&room.name, range, limit + 1)).await?;
    let has_more = cut(&mut rows, range, limit);
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
    let read = node.store.notifications(user, range, unseen_only, limit + 1);
    let mut rows = node.metrics.time_store("notifications", read).await?;
    let has_more = cut(&mut rows, range, limit);
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
        match range {
            Range::After(_) => drop(rows.pop()),
            _ => drop(rows.remove(0)),
        }
    }
    has_more
}
