//! Users: where they are connected, and their inboxes.

use persistence::Seen;
use serde_json::{Value, json};

use super::{ApiResult, Call, Problem, valid};
use crate::node::Node;
use crate::pages;

pub(super) async fn show(node: &Node, user: &str) -> ApiResult {
    let user = valid("the user", user)?;
    let sockets = node.peers.sockets(node, user).await;
    Ok(json!({"name": user, "sockets": sockets}))
}

pub(super) async fn notifications(call: &Call, node: &Node, user: &str) -> ApiResult {
    let (range, limit) = call.range()?;
    let user = valid("the user", user)?;
    let unseen_only = call.query::<bool>("unseen")?.unwrap_or(false);
    Ok(pages::notifications(node, user, range, unseen_only, limit).await?)
}

pub(super) async fn seen(call: &Call, node: &Node, user: &str) -> ApiResult {
    let user = valid("the user", user)?;
    let body = call.json()?;
    let which = match (body.get("ids"), body.get("up_to").and_then(Value::as_u64)) {
        (Some(Value::Array(ids)), None) => Seen::Ids(
            ids.iter()
                .map(|id| id.as_str().and_then(|id| id.parse().ok()))
                .collect::<Option<_>>()
                .ok_or_else(|| Problem::bad("ids must be UUIDs"))?,
        ),
        (None, Some(seq)) => Seen::UpTo(seq),
        _ => return Err(Problem::bad("either ids or up_to")),
    };
    Ok(pages::mark_seen(node, user, which, None).await?)
}
