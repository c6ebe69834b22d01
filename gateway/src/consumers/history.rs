//! Pages of stored messages and notifications, alike for browsers (`history`, `notifications`) and the API.

use std::sync::Arc;

use persistence::{Message, Page, Range, Room, Seen, StoreError, Stream};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::events::{self, rfc3339};
use crate::hub::PAGE_BYTES;
use crate::node::Node;
use crate::words::FrameType;

/// Rows of a page: the default, and the most; fewer where they are large.
pub(crate) const DEFAULT_LIMIT: u64 = 50;
pub(crate) const MAX_LIMIT: u64 = 100;

/// A row as it is shown, beside the place that it has.
#[derive(Serialize)]
struct Shown {
    r#type: FrameType,
    id: Uuid,
    seq: u64,
    #[serde(flatten)]
    room: Option<RoomNames>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    from_user: String,
    date: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
}

#[derive(Clone, Serialize)]
struct RoomNames {
    group_name: Arc<str>,
    display_name: Arc<str>,
}

impl Shown {
    fn of(row: Message, room: Option<RoomNames>) -> Self {
        Self {
            r#type: if room.is_some() { FrameType::Chat } else { FrameType::Notification },
            id: row.id,
            seq: row.seq,
            message: row.message,
            // What was stored was JSON.
            data: row.data.and_then(|data| RawValue::from_string(data).ok()),
            from_user: row.from_user,
            date: rfc3339(row.date),
            seen: room.is_none().then_some(row.seen),
            redacted: row.redacted,
            room,
        }
    }
}

/// The `history` frame.
#[derive(Serialize)]
pub(crate) struct History {
    r#type: FrameType,
    group_name: String,
    messages: Vec<Shown>,
    has_more: bool,
}

/// The `notifications` frame.
#[derive(Serialize)]
pub(crate) struct Notifications {
    r#type: FrameType,
    notifications: Vec<Shown>,
    unseen: u64,
    has_more: bool,
}

/// A page of a room: ascending, with the news whether there is more in that direction.
pub(crate) async fn history(node: &Node, room: Room, range: Range, limit: u64) -> Result<History, StoreError> {
    let (stream, page) = (Stream::Room(room.name), Page::new(range, limit + 1).within(PAGE_BYTES));
    let (mut rows, was_cut) = node.metrics.time_store("history", node.store.page(&stream, page)).await?;
    let has_more = cut(&mut rows, range, limit) || was_cut;
    let names = RoomNames { group_name: stream.name().into(), display_name: room.display_name.into() };
    let messages = rows.into_iter().map(|row| Shown::of(row, Some(names.clone()))).collect();
    Ok(History { r#type: FrameType::History, group_name: stream.name().to_owned(), messages, has_more })
}

/// A page of an inbox, in the same way.
pub(crate) async fn notifications(
    node: &Node,
    user: &str,
    range: Range,
    unseen_only: bool,
    limit: u64,
) -> Result<Notifications, StoreError> {
    let (stream, page) = (Stream::Inbox(user.to_owned()), Page::new(range, limit + 1).within(PAGE_BYTES));
    let read = node.store.page(&stream, Page { unseen_only, ..page });
    let (mut rows, was_cut) = node.metrics.time_store("notifications", read).await?;
    let has_more = cut(&mut rows, range, limit) || was_cut;
    let unseen = node.store.unseen(user).await?;
    let notifications = rows.into_iter().map(|row| Shown::of(row, None)).collect();
    Ok(Notifications { r#type: FrameType::Notifications, notifications, unseen, has_more })
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
        tracing::debug!(user, channel = by, "other sockets could not be told what is seen");
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
