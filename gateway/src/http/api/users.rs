//! Users: where they are connected, and their inboxes.

use persistence::{Change, ChangeKind, Seen};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{ApiResult, Call, Problem, text};
use crate::consumers::history;
use crate::node::Node;
use crate::publish::changes;
use crate::publish::envelope::{self, What};

/// Rooms that are looked through at a time for what somebody has written, and messages of each that its sockets are told of.
const ROOMS: u64 = 500;
const TOLD: u64 = 1000;

/// Ids of one call, and names.
const MAX_IDS: usize = 1000;
const MAX_NAMES: usize = 1000;

pub(super) async fn show(node: &Node, user: &str) -> ApiResult {
    let sockets = node.peers.sockets(user).await;
    Ok(json!({"name": user, "sockets": sockets}))
}

/// The rooms that a user is a member of, by their names.
pub(super) async fn rooms(node: &Node, user: &str) -> ApiResult {
    let rooms = node.store.rooms_of(&[user.to_owned()]).await?.remove(user).unwrap_or_default();
    let mut rooms: Vec<_> = rooms.iter().map(super::rooms::head).collect();
    rooms.sort_by(|one, other| one["name"].as_str().cmp(&other["name"].as_str()));
    Ok(json!({ "rooms": rooms }))
}

/// The names, as a list or in an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum Asked {
    List(Vec<String>),
    Users { users: Vec<String> },
}

/// Those of some users who have a socket on any node.
pub(super) async fn online(call: &Call, node: &Node) -> ApiResult {
    let asked: Asked = super::lenient(call.text()?, |json| {
        serde_json::from_str(json).map_err(|error| {
            if error.is_data() { Problem::bad("the body is not {\"users\": [NAME, …]}") } else { super::not_json() }
        })
    })?;
    let (Asked::List(users) | Asked::Users { users }) = asked;
    if users.len() > MAX_NAMES {
        return Err(Problem::too_large(format!("at most {MAX_NAMES} names")));
    }
    let mut online: Vec<String> = node.peers.online(&users, None).await.into_iter().collect();
    online.sort();
    Ok(json!({ "online": online }))
}

pub(super) async fn notifications(call: &Call, node: &Node, user: &str) -> Result<String, Problem> {
    let (range, limit) = call.range()?;
    let unseen_only = call.query::<bool>("unseen")?.unwrap_or(false);
    text(&history::notifications(node, user, range, unseen_only, limit).await?)
}

/// Takes a user away: closes the sockets, takes them out of all rooms, deletes the inbox and what they have written.
pub(super) async fn erase(call: &Call, node: &Node, user: &str) -> ApiResult {
    let mut names = call.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next());
    if names.any(|name| name != Some("keep_messages")) {
        // A misspelt one would take away what was to be kept.
        return Err(Problem::bad("keep_messages is all that can be said here"));
    }
    let keeps = call.query::<bool>("keep_messages")?.unwrap_or(false);
    let group = node.names.user(user).map_err(|_| Problem::bad("the user is not a valid name"))?;
    envelope::run(node, What::Live(group, envelope::disconnect(None, None))).await?;
    let users = [user.to_owned()];
    let memberships = node.store.rooms_of(&users).await?.remove(user).unwrap_or_default();
    for room in &memberships {
        let kind = ChangeKind::Leaves(users.to_vec());
        let change = Change { room: room.name.clone(), kind, time: changes::now(node).await, key: None };
        // A room that was deleted meanwhile has no members.
        let _ = changes::make(node, &change).await?;
    }
    let mut messages = 0;
    if !keeps {
        let mut after: Option<String> = None;
        loop {
            let rooms = node.store.rooms(after.as_deref(), ROOMS).await?;
            for room in rooms.iter().filter(|room| room.last_seq > 0) {
                let redacting = node.store.redact_user(&room.name, user, TOLD);
                let (newest, count) = node.metrics.time_store("redact", redacting).await?;
                messages += count;
                changes::tell_redacted(node, &room.name, &newest).await;
            }
            match rooms.last() {
                Some(last) if rooms.len() as u64 == ROOMS => after = Some(last.name.clone()),
                _ => break,
            }
        }
    }
    // Last: until then a call that broke off finds the user.
    let known = node.metrics.time_store("erase", node.store.delete_inbox(user)).await?;
    node.peers.erased(user).await;
    Ok(json!({"user": user, "erased": known, "rooms": memberships.len(), "messages": messages}))
}

/// One of the two.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Marked {
    ids: Option<Vec<Uuid>>,
    #[serde(default, deserialize_with = "crate::json::optional_whole")]
    up_to: Option<u64>,
}

pub(super) async fn seen(call: &Call, node: &Node, user: &str) -> ApiResult {
    let which = match call.body()? {
        Marked { ids: Some(ids), up_to: None } if ids.len() <= MAX_IDS => Seen::Ids(ids),
        Marked { ids: Some(_), up_to: None } => return Err(Problem::bad(format!("at most {MAX_IDS} ids"))),
        Marked { ids: None, up_to: Some(seq) } => Seen::UpTo(seq),
        _ => return Err(Problem::bad("either ids or up_to")),
    };
    Ok(serde_json::json!(history::mark_seen(node, user, which, None).await?))
}
