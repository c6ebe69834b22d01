//! Users: where they are connected, and their inboxes.

use persistence::Seen;
use serde_json::{Value, json};

use super::{ApiResult, Call, Problem, valid};
use crate::events::rfc3339;
use crate::node::Node;

pub(super) async fn show(node: &Node, user: &str) -> ApiResult {
    let user = valid("the user", user)?;
    let sockets = node.peers.sockets(node, user).await;
    Ok(json!({"name": user, "sockets": sockets}))
}

pub(super) async fn notifications(call: &Call, node: &Node, user: &str) -> ApiResult {
    let (range, limit) = call.range()?;
    let user = valid("the user", user)?;
    let unseen_only = call.query::<bool>("unseen")?.unwrap_or(false);
    let mut rows = node.store.notifications(user, range, unseen_only, limit + 1).await?;
    let has_more = super::cut(&mut rows, range, limit);
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
    let unseen = node.store.mark_seen(user, which).await?;
    Ok(json!({"type": "seen", "unseen": unseen}))
}
