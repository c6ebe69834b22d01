//! `POST /api/events`: durable publishing, answered after the commit.

use std::sync::Arc;

use futures_util::future::join_all;
use http::StatusCode;
use persistence::Stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiResult, Call, Problem};
use crate::envelope::{self, Envelope, Failed, Item, Outcome, Unusable, What};
use crate::events::rfc3339;
use crate::node::Node;

/// Envelopes of one call.
const MAX_ENVELOPES: usize = 1000;

impl From<Unusable> for Problem {
    fn from(unusable: Unusable) -> Self {
        match unusable.reason {
            "no_room" => Self::no_room(),
            _ => Self::bad(unusable.detail),
        }
    }
}

pub(super) async fn publish(call: &Call, node: &Arc<Node>) -> ApiResult {
    let envelopes = match call.json()? {
        Value::Array(envelopes) if envelopes.len() <= MAX_ENVELOPES => envelopes,
        Value::Array(_) => return Err(Problem::bad(format!("at most {MAX_ENVELOPES} envelopes"))),
        envelope => vec![envelope],
    };
    let key = call.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let mut items = Vec::new();
    for (index, envelope) in envelopes.iter().enumerate() {
        // One header for many envelopes: each has its place in the list as a part of its identity.
        let key = key.map(|key| if envelopes.len() == 1 { key.to_owned() } else { format!("{key}/{index}") });
        let envelope = Envelope::deserialize(envelope)
            .map_err(|error| Problem::bad(format!("the envelope is malformed: {error}")))?;
        items.extend(envelope.items(node, "api", key)?);
    }
    check_rooms(node, &items).await?;
    let results = join_all(items.into_iter().map(|item| run(node, item))).await;
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "results": results }))
}

/// Nothing is stored when a room is missing.
async fn check_rooms(node: &Node, items: &[Item]) -> Result<(), Problem> {
    let rooms: Vec<String> = items
        .iter()
        .filter_map(|item| match &item.what {
            What::Store(append) => match &append.stream {
                Stream::Room(room) => Some(room.clone()),
                Stream::Inbox(_) => None,
            },
            _ => None,
        })
        .collect();
    if rooms.is_empty() {
        return Ok(());
    }
    let known = node.store.room_heads(&rooms).await?;
    if rooms.iter().all(|room| known.contains_key(room)) { Ok(()) } else { Err(Problem::no_room()) }
}

async fn run(node: &Node, item: Item) -> ApiResult {
    let to = item.to;
    match envelope::run(node, item.what).await {
        Ok(Outcome::Stored(stored)) => Ok(json!({
            "to": to, "id": stored.id.to_string(), "seq": stored.seq, "date": rfc3339(stored.date), "repeated": stored.repeated,
        })),
        Ok(Outcome::Sent) => Ok(json!({ "to": to })),
        Ok(Outcome::Expired) => Ok(json!({"to": to, "expired": true})),
        Ok(Outcome::Reused) => {
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "this id was used before with other content"))
        }
        Err(Failed::Unusable(unusable)) => Err(unusable.into()),
        Err(Failed::Unavailable(detail)) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)),
    }
}
