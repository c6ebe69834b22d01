//! Pages of stored messages and notifications, alike for browsers (`history`, `notifications`) and the API.

use persistence::{MAX_MESSAGE_BYTES, Message, Notification, Range, Room, Seen, StoreError};
use serde_json::{Value, json};

use crate::envelope::MAX_DATA;
use crate::events::{self, rfc3339};
use crate::node::Node;

/// Rows of a page: the default, and the most; fewer where they are large.
pub(crate) const DEFAULT_LIMIT: u64 = 50;
pub(crate) const MAX_LIMIT: u64 = 100;

/// Bytes of a page, about: what comes then is for the next one.
const PAGE: usize = 2 * 1024 * 1024;

/// Bytes of texts that are read at a time, at most.
const READ: usize = 4 * 1024 * 1024;

/// What a row has in JSON beside its text, about.
const ROW: usize = 512;

/// The `history` frame: ascending, with the news whether there is more in that direction.
pub(crate) async fn history(node: &Node, room: &Room, range: Range, limit: u64) -> Result<Value, StoreError> {
    let read = |range, count| node.metrics.time_store("history", node.store.messages(&room.name, range, count));
    let (rows, has_more) = page(node, range, limit, read).await?;
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
    let read = |range, count| {
        node.metrics.time_store("notifications", node.store.notifications(user, range, unseen_only, count))
    };
    let (rows, has_more) = page(node, range, limit, read).await?;
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

/// A row of a page.
trait Row {
    fn seq(&self) -> u64;
    fn text(&self) -> &str;
}

impl Row for Message {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn text(&self) -> &str {
        &self.message
    }
}

impl Row for Notification {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn text(&self) -> &str {
        &self.message
    }
}

/// Up to `limit` rows, ascending, or as many from the near end as fit into a page; and whether there are more. One
/// read for most pages, several where rows may be so long that it would be too much.
async fn page<T: Row, F>(
    node: &Node,
    range: Range,
    limit: u64,
    read: impl Fn(Range, u64) -> F,
) -> Result<(Vec<T>, bool), StoreError>
where
    F: Future<Output = Result<Vec<T>, StoreError>>,
{
    let longest = match node.config.limits.frame_bytes {
        0 => MAX_MESSAGE_BYTES,
        bytes => bytes.clamp(MAX_DATA, MAX_MESSAGE_BYTES),
    };
    let most = (READ / longest) as u64;
    let is_ascending = range.is_forward();
    let (mut rows, mut bytes, mut place) = (Vec::new(), 0, range);
    let has_more = 'page: loop {
        // One more than is wanted tells whether there are more.
        let count = most.min(limit + 1 - rows.len() as u64);
        let mut part = read(place, count).await?;
        let is_last = (part.len() as u64) < count;
        if !is_ascending {
            part.reverse();
        }
        for row in part {
            bytes += ROW + json_len(row.text());
            if rows.len() as u64 == limit || (!rows.is_empty() && bytes > PAGE) {
                break 'page true;
            }
            place = range.continued(row.seq());
            rows.push(row);
        }
        if is_last {
            break false;
        }
    };
    if !is_ascending {
        rows.reverse();
    }
    Ok((rows, has_more))
}

/// Bytes of a text in JSON, or a little more.
fn json_len(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}
