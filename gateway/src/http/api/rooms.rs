//! Rooms and their members.

use std::sync::Arc;

use http::StatusCode;
use persistence::{AppendError, Change, ChangeKind, Changed, Room};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ApiResult, Call, Problem, text};
use crate::consumers::history;
use crate::node::Node;
use crate::publish::changes;

/// Rooms of one answer: the default, and the most.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

/// What lists show of a room.
pub(super) fn head(room: &Room) -> Value {
    json!({"name": room.name, "display_name": room.display_name, "seq": room.last_seq})
}

pub(super) async fn list(call: &Call, node: &Node) -> ApiResult {
    let after: Option<String> = call.query("after")?;
    let limit = call.limit(DEFAULT_LIMIT, MAX_LIMIT)?;
    let rooms = node.store.rooms(after.as_deref(), limit).await?;
    let rooms: Vec<Value> = rooms.iter().map(head).collect();
    Ok(json!({ "rooms": rooms }))
}

pub(super) async fn show(node: &Node, room: &str) -> ApiResult {
    let room = node.store.room(room).await?.ok_or_else(Problem::no_room)?;
    let mut members = node.store.members(&room.name).await?;
    members.sort();
    // As in the `presence` frame: also who hears the room by a token and is no member.
    let group = node.names.room(&room.name).ok();
    let mut online: Vec<String> = node.peers.online(&members, group).await.into_iter().collect();
    online.sort();
    Ok(json!({
        "name": room.name, "display_name": room.display_name, "seq": room.last_seq, "members": members, "online": online,
    }))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    display_name: Option<String>,
}

pub(super) async fn create(call: &Call, node: &Node, room: &str) -> ApiResult {
    let Wanted { display_name } = if call.body.is_empty() { Wanted::default() } else { call.body()? };
    let room = match display_name {
        None => node.store.create_room(room, None).await?,
        Some(name) => change(node, room, ChangeKind::Is(Some(name))).await?.map_err(Problem::from)?.room,
    };
    Ok(head(&room))
}

pub(super) async fn delete(node: &Node, room: &str) -> ApiResult {
    if !node.store.delete_room(room).await? {
        return Err(Problem::no_room());
    }
    // The room's own group still has its sockets.
    changes::tell_room(node, room).await;
    Ok(json!({"name": room, "deleted": true}))
}

pub(super) async fn add_member(node: &Node, room: &str, user: &str) -> ApiResult {
    change(node, room, ChangeKind::Joins(vec![user.to_owned()])).await?.map_err(Problem::from)?;
    Ok(json!({"room": room, "user": user, "member": true}))
}

pub(super) async fn remove_member(node: &Node, room: &str, user: &str) -> ApiResult {
    let removed = match change(node, room, ChangeKind::Leaves(vec![user.to_owned()])).await? {
        Ok(changed) => changed.moved > 0,
        Err(_) => {
            // Told in any case: the room may have come from the user's token.
            changes::tell_user(node, user, "removed", room).await;
            false
        }
    };
    Ok(json!({"room": room, "user": user, "member": false, "removed": removed}))
}

/// Makes a change that is of now.
async fn change(node: &Node, room: &str, kind: ChangeKind) -> Result<Result<Changed, AppendError>, Problem> {
    let change = Change { room: room.to_owned(), kind, time: changes::now(node).await, key: None };
    Ok(changes::make(node, &change).await?)
}

/// Takes away what a message says; its place stays.
pub(super) async fn redact(node: &Node, room: &str, id: &str) -> ApiResult {
    let id: Uuid = id.parse().map_err(|_| Problem::bad("the id is not a UUID"))?;
    let none = || Problem::new(StatusCode::NOT_FOUND, "no such message");
    let seq = node.metrics.time_store("redact", node.store.redact(room, id)).await?.ok_or_else(none)?;
    changes::tell_redacted(node, room, &[(id, seq)]).await;
    Ok(json!({"room": room, "id": id, "seq": seq, "redacted": true}))
}

pub(super) async fn history(call: &Call, node: &Arc<Node>, room: &str) -> Result<String, Problem> {
    let (range, limit) = call.range()?;
    let room = node.store.room(room).await?.ok_or_else(Problem::no_room)?;
    text(&history::history(node, room, range, limit).await?)
}
