//! Envelopes of publishers (contract, section 8): the same from HTTP and from the stream.

use channel_layer::{Event, GroupName};
use persistence::{Append, AppendError, Appended, Key, Stream};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::names;
use crate::node::Node;
use crate::writer::WriteError;

/// Recipients of one envelope.
pub(crate) const MAX_RECIPIENTS: usize = 1000;

/// Bytes of an envelope's data.
pub(crate) const MAX_DATA: usize = 64 * 1024;

/// What a service wants to tell somebody.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    pub(crate) r#type: String,
    pub(crate) to: Recipients,
    pub(crate) data: Map<String, Value>,
    pub(crate) id: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) expires_at: Option<String>,
    pub(crate) time: Option<String>,
    #[serde(rename = "traceparent")]
    pub(crate) _traceparent: Option<String>,
}

/// One or many of `user:NAME` and `room:NAME`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Recipients {
    One(String),
    Many(Vec<String>),
}

/// What an envelope means for one recipient.
#[derive(Debug)]
pub(crate) struct Item {
    /// As it was written.
    pub(crate) to: String,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Store(Append),
    Disconnect(GroupName, Event),
    Expired,
}

/// Why an envelope can never work: a word for metrics and dead letters, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

fn unusable(reason: &'static str, detail: impl Into<String>) -> Unusable {
    Unusable { reason, detail: detail.into() }
}

/// What became of an item.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored(Appended),
    /// The same identity was used before with other content; nothing changed.
    Reused,
    Sent,
    Expired,
}

/// Why an item did not work.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It never will.
    Unusable(Unusable),
    /// The database or the layer is away.
    Unavailable(&'static str),
}

impl Envelope {
    /// What it means for each recipient. `default_source` and `default_id` stand in where it names none.
    pub(crate) fn items(
        &self,
        node: &Node,
        default_source: &str,
        default_id: Option<String>,
    ) -> Result<Vec<Item>, Unusable> {
        if serde_json::to_string(&self.data).map_or(true, |text| text.len() > MAX_DATA) {
            return Err(unusable("too_large", "data is over 64 KiB"));
        }
        let expired = match self.expires_at.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339)) {
            Some(Err(_)) => return Err(unusable("malformed", "expires_at must be RFC 3339")),
            Some(Ok(time)) => time <= node.clock.database(),
            None => false,
        };
        if self.time.as_deref().is_some_and(|text| OffsetDateTime::parse(text, &Rfc3339).is_err()) {
            return Err(unusable("malformed", "time must be RFC 3339"));
        }
        let source = self.source.as_deref().unwrap_or(default_source).to_owned();
        let id = self.id.clone().or(default_id).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        for (what, text) in [("source", &source), ("id", &id)] {
            if text.is_empty() || text.len() > persistence::MAX_EVENT_ID_BYTES {
                return Err(unusable("malformed", format!("{what} must have 1 to 128 bytes")));
            }
        }
        let recipients = match &self.to {
            Recipients::One(to) => vec![to.clone()],
            Recipients::Many(list) if list.is_empty() || list.len() > MAX_RECIPIENTS => {
                return Err(unusable("malformed", format!("to must name 1 to {MAX_RECIPIENTS} recipients")));
            }
            Recipients::Many(list) => list.clone(),
        };
        recipients
            .into_iter()
            .map(|to| {
                let stream = recipient(&to)?;
                let what = if expired { What::Expired } else { self.what(node, stream, &source, &id)? };
                Ok(Item { to, what })
            })
            .collect()
    }

    fn what(&self, node: &Node, stream: Stream, source: &str, id: &str) -> Result<What, Unusable> {
        let text = |field: &str| self.data.get(field).and_then(Value::as_str);
        if self.r#type == "gateway.disconnect" {
            let group = match &stream {
                Stream::Room(room) => node.names.room(room),
                Stream::Inbox(user) => node.names.user(user),
            };
            let mut event = Event::new("gateway.disconnect");
            if let Some(code) = self.data.get("code").and_then(Value::as_i64) {
                event = event.with("code", code);
            }
            if let Some(reason) = text("reason") {
                event = event.with("reason", reason);
            }
            return Ok(What::Disconnect(group.map_err(|_| unusable("malformed", "no group of that name"))?, event));
        }
        match (self.r#type.as_str(), &stream) {
            ("chat", Stream::Room(_)) | ("notification", Stream::Inbox(_)) => {}
            ("chat" | "notification", _) => {
                return Err(unusable("malformed", "chat goes to rooms, notification to users"));
            }
            _ => return Err(unusable("unknown_type", "type must be chat, notification or gateway.disconnect")),
        }
        let message = text("message").ok_or_else(|| unusable("missing_field", "data.message is missing"))?;
        let from_user = match self.data.get("from_user") {
            None | Some(Value::Null) => source,
            Some(Value::String(name)) => name,
            Some(_) => return Err(unusable("malformed", "data.from_user must be text")),
        };
        // What the store would refuse; said here, before anything of a list is stored.
        if [source, id, message, from_user].iter().any(|text| text.contains('\0')) {
            return Err(unusable("malformed", "NUL cannot be stored"));
        }
        if from_user.chars().count() > persistence::MAX_NAME_CHARS {
            return Err(unusable("malformed", "data.from_user is too long"));
        }
        Ok(What::Store(Append {
            stream,
            from_user: from_user.to_owned(),
            message: message.to_owned(),
            key: Some(Key::Event { source: source.to_owned(), id: id.to_owned() }),
            create_inbox: true,
            origin: Some((source.to_owned(), id.to_owned())),
        }))
    }
}

fn recipient(to: &str) -> Result<Stream, Unusable> {
    let (kind, name) = to.split_once(':').unwrap_or_default();
    let valid = names::is_valid_name(name);
    match kind {
        "user" if valid => Ok(Stream::Inbox(name.to_owned())),
        "room" if valid => Ok(Stream::Room(name.to_owned())),
        _ => Err(unusable("malformed", "to must be user:NAME or room:NAME")),
    }
}

/// Does what an item asks for; stored things are committed when this returns.
pub(crate) async fn run(node: &Node, what: What) -> Result<Outcome, Failed> {
    match what {
        What::Expired => Ok(Outcome::Expired),
        What::Disconnect(group, event) => match node.layer.group_send(&group, &event).await {
            Ok(()) => Ok(Outcome::Sent),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event could not be sent");
                Err(Failed::Unavailable("the channel layer is unavailable"))
            }
        },
        What::Store(append) => match node.writer.write(append).await {
            Ok(stored) => Ok(Outcome::Stored(stored)),
            Err(WriteError::Refused(AppendError::KeyReused)) => Ok(Outcome::Reused),
            Err(WriteError::Refused(AppendError::RoomNotFound)) => {
                Err(Failed::Unusable(unusable("no_room", "no such room")))
            }
            Err(WriteError::Refused(error)) => Err(Failed::Unusable(unusable("malformed", error.to_string()))),
            Err(WriteError::Unavailable) => Err(Failed::Unavailable("the database is unavailable")),
        },
    }
}
