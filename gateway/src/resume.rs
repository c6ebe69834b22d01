//! Catching up: what a client missed, read from the database, sent before anything newer.
//!
//! The stream is held first, then read, then released: live frames that came in between follow the
//! rows, without a hole and without a repetition.

use channel_layer::GroupName;
use persistence::{Range, StoreError, Stream};
use uuid::Uuid;

use crate::consumer::Context;
use crate::events;
use crate::hub::Released;

/// Missed frames per stream that are sent; who missed more reloads the stream.
const MAX_MISSED: u64 = 1000;

/// Rows read at a time.
const PAGE: u64 = 200;

/// How often a stream that is busier than its client is read again before the client is sent away.
const ROUNDS: usize = 10;

/// Where a client stands in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The last `seq` it has.
    pub seq: u64,
    /// The id at that `seq`, which tells another history apart.
    pub id: Option<Uuid>,
}

/// Sends what is missing after `place` and lets the stream go on. `false`: the place is unknown, too
/// old or of another history; the stream goes on from now.
pub(crate) async fn resume(
    ctx: &Context,
    group: &GroupName,
    stream: &Stream,
    place: Place,
) -> Result<bool, StoreError> {
    let (node, socket) = (ctx.node(), ctx.socket());
    node.hub.hold(socket, group);
    if crate::lossy::is_lossy() {
        node.hub.release(socket, group, place.seq);
        return Ok(true);
    }
    // Nothing missed, the commonest case of a reconnect storm: the node knows without the database.
    if let Some((seq, id)) = node.hub.position(group)
        && seq == place.seq
        && (place.seq == 0 || (place.id.is_some() && place.id == id))
    {
        node.hub.release(socket, group, place.seq);
        return Ok(true);
    }
    let _permit = node.resumes.acquire().await;
    let known = check(ctx, group, stream, place).await?;
    if !known {
        node.hub.release(socket, group, 0);
        return Ok(false);
    }
    let mut at = place.seq;
    for _ in 0..ROUNDS {
        loop {
            let rows = frames(ctx, stream, at).await?;
            let full = rows.len() as u64 == PAGE;
            for (seq, rendering) in rows {
                if let Some(rendering) = rendering {
                    node.send_to(socket, &rendering.frame, rendering.kind);
                }
                at = seq;
            }
            ctx.drained().await;
            if !full {
                break;
            }
        }
        match node.hub.release(socket, group, at) {
            Released::Live => return Ok(true),
            // More came meanwhile than may be held; it is in the database.
            Released::Overflowed => node.hub.hold(socket, group),
        }
    }
    socket.close(crate::CloseReason::SlowConsumer);
    Ok(true)
}

/// Whether the place is one of this history, and not too far back.
async fn check(ctx: &Context, group: &GroupName, stream: &Stream, place: Place) -> Result<bool, StoreError> {
    let Some(head) = ctx.node().hub.head(group, stream).await? else { return Ok(place.seq == 0) };
    if place.seq > head.last_seq || head.last_seq - place.seq > MAX_MISSED {
        return Ok(false);
    }
    if place.seq == head.last_seq {
        return Ok(place.id.is_none() || place.id == head.last_id || place.seq == 0);
    }
    // The row the client has last, or else the first one it has not: retention may have taken them.
    let after = if place.id.is_some() && place.seq > 0 { place.seq - 1 } else { place.seq };
    let first = match stream {
        Stream::Room(room) => {
            let rows = ctx.store().messages(room, Range::After(after), 1).await?;
            rows.first().map(|row| (row.seq, row.id))
        }
        Stream::Inbox(user) => {
            let rows = ctx.store().notifications(user, Range::After(after), false, 1).await?;
            rows.first().map(|row| (row.seq, row.id))
        }
    };
    Ok(first.is_some_and(|(seq, id)| seq == after + 1 && (after == place.seq || Some(id) == place.id)))
}

/// The next rows as frames.
async fn frames(
    ctx: &Context,
    stream: &Stream,
    after: u64,
) -> Result<Vec<(u64, Option<crate::Rendering>)>, StoreError> {
    let (store, range) = (ctx.store(), Range::After(after));
    let read = async {
        Ok(match stream {
            Stream::Room(room) => {
                let display_name = store.room(room).await?.map_or_else(|| room.clone(), |room| room.display_name);
                let rows = store.messages(room, range, PAGE).await?;
                let frame = |row| events::chat_message(&events::chat_event(room, &display_name, row));
                rows.iter().map(|row| (row.seq, frame(row))).collect()
            }
            Stream::Inbox(user) => {
                let rows = store.notifications(user, range, false, PAGE).await?;
                let frame = |row| events::notification_message(&events::notification_event(row));
                rows.iter().map(|row| (row.seq, frame(row))).collect()
            }
        })
    };
    ctx.node().metrics.time_store("resume", read).await
}
