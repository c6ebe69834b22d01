//! Users: where they are connected, and their inboxes.

use persistence::Seen;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{ApiResult, Call, Problem, text};
use crate::consumers::pages;
use crate::node::Node;

/// Ids of one call, and names.
const MAX_IDS: usize = 1000;
const MAX_NAMES: usize = 1000;

pub(super) async fn show(node: &Node, user: &str) -> ApiResult {
    let sockets = node.peers.sockets(node, user).await;
    Ok(json!({"name": user, "sockets": sockets}))
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
    let mut online: Vec<String> = node.peers.online(node, &users, None).await.into_iter().collect();
    online.sort();
    Ok(json!({ "online": online }))
}

pub(super) async fn notifications(call: &Call, node: &Node, user: &str) -> Result<String, Problem> {
    let (range, limit) = call.range()?;
    let unseen_only = call.query::<bool>("unseen")?.unwrap_or(false);
    text(&pages::notifications(node, user, range, unseen_only, limit).await?)
}

/// One of the two.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Marked {
    ids: Option<Vec<Uuid>>,
    up_to: Option<u64>,
}

pub(super) async fn seen(call: &Call, node: &Node, user: &str) -> ApiResult {
    let which = match call.body()? {
        Marked { ids: Some(ids), up_to: None } if ids.len() <= MAX_IDS => Seen::Ids(ids),
        Marked { ids: Some(_), up_to: None } => return Err(Problem::bad(format!("at most {MAX_IDS} ids"))),
        Marked { ids: None, up_to: Some(seq) } => Seen::UpTo(seq),
        _ => return Err(Problem::bad("either ids or up_to")),
    };
    Ok(serde_json::json!(pages::mark_seen(node, user, which, None).await?))
}
