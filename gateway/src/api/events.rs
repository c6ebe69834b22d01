//! `POST /api/events`: durable publishing, answered after the commit.

use std::sync::Arc;

use channel_layer::{Event, GroupName};
use futures_util::future::join_all;
use http::StatusCode;
use persistence::{Append, AppendError, Key, Stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ApiResult, Call, Problem, valid};
use crate::events::rfc3339;
use crate::node::Node;
use crate::writer::WriteError;

/// Envelopes of one call, and recipients of one envelope.
const MAX_LIST: usize = 1000;

/// Bytes of an envelope's data.
const MAX_DATA: usize = 64 * 1024;

/// The same envelope as in the stream (contract, section 8).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    r#type: String,
    to: OneOrMany,
    data: Map<String, Value>,
    id: Option<String>,
    source: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default, rename = "time")]
    _time: Option<String>,
    #[serde(default, rename = "traceparent")]
    _traceparent: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What one envelope means for one recipient.
enum Item {
    Store { to: String, append: Append },
    Disconnect { to: String, group: GroupName, event: Event },
    Expired { to: String },
}

pub(super) async fn publish(call: &Call, node: &Arc<Node>) -> ApiResult {
    let envelopes = match call.json()? {
        Value::Array(envelopes) if envelopes.len() <= MAX_LIST => envelopes,
        Value::Array(_) => return Err(Problem::bad(format!("at most {MAX_LIST} envelopes"))),
        envelope => vec![envelope],
    };
    let key = call.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let mut items = Vec::new();
    for (index, envelope) in envelopes.iter().enumerate() {
        // One header for many envelopes: each has its place in the list as a part of its identity.
        let key = key.map(|key| if envelopes.len() == 1 { key.to_owned() } else { format!("{key}/{index}") });
        items.extend(read(node, envelope, key)?);
    }
    check_rooms(node, &items).await?;
    let results = join_all(items.into_iter().map(|item| run(node, item))).await;
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "results": results }))
}

fn read(node: &Node, envelope: &Value, key: Option<String>) -> Result<Vec<Item>, Problem> {
    let envelope =
        Envelope::deserialize(envelope).map_err(|error| Problem::bad(format!("the envelope is malformed: {error}")))?;
    let data = &envelope.data;
    if serde_json::to_string(data).map_or(true, |text| text.len() > MAX_DATA) {
        return Err(Problem::bad("data is over 64 KiB"));
    }
    let expires_at = envelope.expires_at.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339));
    let expired = match expires_at {
        Some(Err(_)) => return Err(Problem::bad("expires_at must be RFC 3339")),
        Some(Ok(time)) => time <= OffsetDateTime::now_utc(),
        None => false,
    };
    let source = envelope.source.unwrap_or_else(|| "api".to_owned());
    let id = envelope.id.or(key).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    for (what, text) in [("source", &source), ("id", &id)] {
        if text.is_empty() || text.len() > persistence::MAX_EVENT_ID_BYTES {
            return Err(Problem::bad(format!("{what} must have 1 to 128 bytes")));
        }
    }
    let recipients = match envelope.to {
        OneOrMany::One(to) => vec![to],
        OneOrMany::Many(list) if list.is_empty() || list.len() > MAX_LIST => {
            return Err(Problem::bad(format!("to must name 1 to {MAX_LIST} recipients")));
        }
        OneOrMany::Many(list) => list,
    };
    let text = |field: &str| data.get(field).and_then(Value::as_str);
    let item = |to: String| {
        let stream = recipient(&to)?;
        if expired {
            return Ok(Item::Expired { to });
        }
        if envelope.r#type == "gateway.disconnect" {
            let group = match &stream {
                Stream::Room(room) => node.names.room(room),
                Stream::Inbox(user) => node.names.user(user),
            };
            let mut event = Event::new("gateway.disconnect");
            if let Some(code) = data.get("code").and_then(Value::as_i64) {
                event = event.with("code", code);
            }
            if let Some(reason) = text("reason") {
                event = event.with("reason", reason);
            }
            return Ok(Item::Disconnect {
                to,
                group: group.map_err(|_| Problem::bad("no group of that name"))?,
                event,
            });
        }
        match (envelope.r#type.as_str(), &stream) {
            ("chat", Stream::Room(_)) | ("notification", Stream::Inbox(_)) => {}
            ("chat" | "notification", _) => return Err(Problem::bad("chat goes to rooms, notification to users")),
            _ => return Err(Problem::bad("type must be chat, notification or gateway.disconnect")),
        }
        let message = text("message").ok_or_else(|| Problem::bad("data.message is missing"))?.to_owned();
        let from_user = text("from_user").unwrap_or(&source).to_owned();
        let key = Some(Key::Event { source: source.clone(), id: id.clone() });
        let origin = Some((source.clone(), id.clone()));
        Ok(Item::Store { to, append: Append { stream, from_user, message, key, create_inbox: true, origin } })
    };
    recipients.into_iter().map(item).collect()
}

fn recipient(to: &str) -> Result<Stream, Problem> {
    match to.split_once(':') {
        Some(("user", name)) => Ok(Stream::Inbox(valid("the user", name)?.to_owned())),
        Some(("room", name)) => Ok(Stream::Room(valid("the room", name)?.to_owned())),
        _ => Err(Problem::bad("to must be user:NAME or room:NAME")),
    }
}

/// Nothing is stored when a room is missing.
async fn check_rooms(node: &Node, items: &[Item]) -> Result<(), Problem> {
    let rooms: Vec<String> = items
        .iter()
        .filter_map(|item| match item {
            Item::Store { append: Append { stream: Stream::Room(room), .. }, .. } => Some(room.clone()),
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
    match item {
        Item::Expired { to } => Ok(json!({"to": to, "expired": true})),
        Item::Disconnect { to, group, event } => {
            node.layer.group_send(&group, &event).await.map_err(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event could not be sent");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the channel layer is unavailable")
            })?;
            Ok(json!({"to": to}))
        }
        Item::Store { to, append } => {
            let stored = node.writer.write(append).await.map_err(|error| match error {
                WriteError::Refused(AppendError::RoomNotFound) => Problem::no_room(),
                WriteError::Refused(AppendError::KeyReused) => {
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "this id was used before with other content")
                }
                WriteError::Refused(error) => Problem::bad(error.to_string()),
                WriteError::Unavailable => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable"),
            })?;
            let date = rfc3339(stored.date);
            Ok(
                json!({"to": to, "id": stored.id.to_string(), "seq": stored.seq, "date": date, "repeated": stored.repeated}),
            )
        }
    }
}
