//! Rooms and their members.

use std::sync::Arc;

use channel_layer::{Event, GroupName, NameError};
use persistence::Membership;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiResult, Call, Problem, text};
use crate::consumers::pages;
use crate::node::Node;
use crate::words::EventType;

/// Rooms of one answer: the default, and the most.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

pub(super) async fn list(call: &Call, node: &Node) -> ApiResult {
    let after: Option<String> = call.query("after")?;
    let limit = call.limit(DEFAULT_LIMIT, MAX_LIMIT)?;
    let rooms = node.store.rooms(after.as_deref(), limit).await?;
    let rooms: Vec<Value> = rooms
        .iter()
        .map(|room| json!({"name": room.name, "display_name": room.display_name, "seq": room.last_seq}))
        .collect();
    Ok(json!({ "rooms": rooms }))
}

pub(super) async fn show(node: &Node, room: &str) -> ApiResult {
    let room = node.store.room(room).await?.ok_or_else(Problem::no_room)?;
    let mut members = node.store.members(&room.name).await?;
    members.sort();
    // As in the `presence` frame: also who hears the room by a token and is no member.
    let group = node.names.room(&room.name).ok();
    let mut online: Vec<String> = node.peers.online(node, &members, group).await.into_iter().collect();
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
    let room = node.store.create_room(room, display_name.as_deref()).await?;
    Ok(json!({"name": room.name, "display_name": room.display_name, "seq": room.last_seq}))
}

pub(super) async fn delete(node: &Node, room: &str) -> ApiResult {
    if !node.store.delete_room(room).await? {
        return Err(Problem::no_room());
    }
    // The room's own group still has its sockets: they look again and leave.
    tell(node, node.names.room(room), Event::new(EventType::RoomsChanged.as_str()).with("removed", room)).await;
    Ok(json!({"name": room, "deleted": true}))
}

pub(super) async fn add_member(node: &Node, room: &str, user: &str) -> ApiResult {
    let pair = Membership { room: room.to_owned(), user: user.to_owned(), create_room: false };
    if node.store.add_members(&[pair]).await? != [true] {
        return Err(Problem::no_room());
    }
    tell(node, node.names.user(user), Event::new(EventType::RoomsChanged.as_str()).with("added", room)).await;
    Ok(json!({"room": room, "user": user, "member": true}))
}

pub(super) async fn remove_member(node: &Node, room: &str, user: &str) -> ApiResult {
    let removed = node.store.remove_member(room, user).await?;
    // Told in any case: the room may have come from the user's token.
    tell(node, node.names.user(user), Event::new(EventType::RoomsChanged.as_str()).with("removed", room)).await;
    Ok(json!({"room": room, "user": user, "member": false, "removed": removed}))
}

/// Tells open sockets to look at their rooms again.
async fn tell(node: &Node, group: Result<GroupName, NameError>, event: Event) {
    let Ok(group) = group else { return };
    let event = node.seals.word(event, group.as_str());
    if let Err(error) = node.layer.group_send(&group, &event).await {
        // The other nodes find out by themselves, as soon as they compare (`upkeep/memberships.rs`).
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "other nodes could not be told of a change of members"
        );
        node.hub.deliver_here(group, event);
    }
}

pub(super) async fn history(call: &Call, node: &Arc<Node>, room: &str) -> Result<String, Problem> {
    let (range, limit) = call.range()?;
    let room = node.store.room(room).await?.ok_or_else(Problem::no_room)?;
    text(&pages::history(node, room, range, limit).await?)
}
