//! Envelopes of publishers (`docs/publishing.md`): the same from HTTP and from the stream.
//!
//! An envelope may be for a thousand recipients. What they have in common is there once ([`Delivery`]); an [`Item`] for
//! each is made piece by piece, as it is stored.

use std::ops::Range;
use std::sync::Arc;

use channel_layer::{Event, GroupName};
use persistence::{Append, AppendError, Appended, Change, ChangeKind, ChangeTime, Changed, Key, StoreError, Stream};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::changes;
use crate::close;
use crate::data;
use crate::events;
use crate::json;
use crate::names;
use crate::node::Node;
use crate::storing::writer::{Trace, WriteError, traced};
use crate::traces::is_traceparent;

/// Recipients of one envelope.
pub(crate) const MAX_RECIPIENTS: usize = 1000;

/// Bytes of an envelope's data.
pub(crate) const MAX_DATA: usize = 64 * 1024;

/// Bytes that no list of recipients needs: each name of the longest there are, every character of it spelled out.
pub(crate) const MAX_TO: usize = MAX_RECIPIENTS * (persistence::MAX_NAME_CHARS * "\\ud83d\\udc4d".len() + 16);

/// Bytes of texts that are stored and sent together, about.
pub(crate) const PIECE: usize = 2 * 1024 * 1024;

/// What an item takes beside its text, and a name of many beside its own.
const ITEM: usize = 512;
const NAME: usize = 64;

/// What a service wants to tell somebody. What it does not name here means nothing to us.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    pub(crate) r#type: String,
    pub(crate) to: Recipients,
    #[serde(borrow)]
    pub(crate) data: &'a RawValue,
    pub(crate) id: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) expires_at: Option<String>,
    pub(crate) time: Option<String>,
    pub(crate) traceparent: Option<String>,
}

/// One or many of `user:NAME` and `room:NAME`, or `everyone`.
#[derive(Debug)]
pub(crate) struct Recipients(pub(crate) Vec<String>);

/// An envelope that means something: what its recipients have in common, and their names.
#[derive(Debug)]
pub(crate) struct Delivery {
    meaning: Meaning,
    source: Arc<str>,
    id: Arc<str>,
    expires_at: Option<OffsetDateTime>,
    to: Vec<String>,
    /// When it was said: only a change of a room needs it.
    time: ChangeTime,
    /// As the publisher gave it, if it can be one.
    traceparent: Trace,
}

#[derive(Debug)]
enum Meaning {
    Store {
        from_user: Arc<str>,
        message: Arc<str>,
        data: Option<Arc<str>>,
    },
    /// Passed on to who is connected, and not stored.
    Live(Event),
    /// Done to each room.
    Change(ChangeKind),
    /// It was too late already.
    Nothing,
}

/// Who an envelope is for.
#[derive(Debug, PartialEq, Eq)]
enum Recipient<'a> {
    User(&'a str),
    Room(&'a str),
    /// All sockets of all nodes.
    Everyone,
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
    Store(Append, Trace),
    Live(GroupName, Event),
    Everyone(Event),
    Change(Box<Change>),
    Expired,
}

/// Why an envelope can never work: a word for metrics and dead letters, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

pub(crate) fn unusable(reason: &'static str, detail: impl Into<String>) -> Unusable {
    Unusable { reason, detail: detail.into() }
}

/// What became of an item.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored(Appended),
    /// A room or its members are as it says, unless something later is known.
    Changed(Box<Changed>),
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
    /// The database answered, and did not store it.
    NotStored,
}

impl<'de> Deserialize<'de> for Recipients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Recipients;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a name, or a list of names")
            }

            fn visit_str<E>(self, name: &str) -> Result<Recipients, E> {
                Ok(Recipients(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Recipients, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    // However many follow, no more are read.
                    if names.len() == MAX_RECIPIENTS {
                        return Err(A::Error::custom(wrong_number()));
                    }
                    names.push(name);
                }
                if names.is_empty() { Err(A::Error::custom(wrong_number())) } else { Ok(Recipients(names)) }
            }
        }
        deserializer.deserialize_any(Names)
    }
}

fn wrong_number() -> String {
    format!("to must name 1 to {MAX_RECIPIENTS} recipients")
}

/// The fields of `data` that mean something to us, each of any type.
#[derive(Deserialize)]
struct Data {
    message: Option<Box<RawValue>>,
    from_user: Option<Box<RawValue>>,
    data: Option<Box<RawValue>>,
    code: Option<Box<RawValue>>,
    reason: Option<Box<RawValue>>,
    text: Option<Box<RawValue>>,
    users: Option<Box<RawValue>>,
    display_name: Option<Box<RawValue>>,
}

impl Envelope<'_> {
    /// What it means. `default_source` stands in where it names none; `now` is by the database's clock, and what is stored
    /// of the data beside a text has at most so many bytes.
    pub(crate) fn delivery(
        self,
        default_source: &str,
        now: OffsetDateTime,
        data_bytes: usize,
    ) -> Result<Delivery, Unusable> {
        if json::compact_len(self.data.get(), MAX_DATA) > MAX_DATA {
            return Err(unusable("too_large", "data is over 64 KiB"));
        }
        if !self.data.get().starts_with('{') {
            return Err(unusable("not_json", "data is not a JSON object"));
        }
        let expires_at = match self.expires_at.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339)) {
            Some(Err(_)) => return Err(unusable("malformed", "expires_at must be RFC 3339")),
            Some(Ok(time)) => Some(time),
            None => None,
        };
        if self.time.as_deref().is_some_and(|text| OffsetDateTime::parse(text, &Rfc3339).is_err()) {
            return Err(unusable("malformed", "time must be RFC 3339"));
        }
        let source: Arc<str> = self.source.as_deref().unwrap_or(default_source).into();
        let id: Arc<str> = self.id.as_deref().unwrap_or_default().into();
        for (what, text) in [("source", &source), ("id", &id)] {
            if text.is_empty() || text.len() > persistence::MAX_EVENT_ID_BYTES {
                return Err(unusable("malformed", format!("{what} must have 1 to 128 bytes")));
            }
        }
        let is_late = expires_at.is_some_and(|time| time <= now);
        for to in &self.to.0 {
            let recipient = recipient(to)?;
            if !is_late {
                fits(&self.r#type, &recipient)?;
            }
            if recipient == Recipient::Everyone && self.to.0.len() > 1 {
                return Err(unusable("malformed", "everyone cannot be one of several"));
            }
        }
        let meaning =
            if is_late { Meaning::Nothing } else { meaning(&self.r#type, self.data, &source, &id, data_bytes)? };
        let traceparent = self.traceparent.filter(|trace| is_traceparent(trace)).map(Into::into);
        Ok(Delivery { meaning, source, id, expires_at, to: self.to.0, time: ChangeTime::Now(0), traceparent })
    }
}

/// Types of envelopes whose events are passed on to who is connected.
pub(crate) const DISCONNECT: &str = "gateway.disconnect";
pub(crate) const SEND: &str = "gateway.send";

/// Whether that kind of envelope is for such recipients.
fn fits(kind: &str, to: &Recipient<'_>) -> Result<(), Unusable> {
    let wrong = |detail| Err(unusable("malformed", detail));
    match (kind, to) {
        ("chat" | "member.add" | "member.remove" | "room.put", Recipient::Room(_))
        | ("notification", Recipient::User(_))
        | (DISCONNECT | SEND, _) => Ok(()),
        ("chat" | "notification", _) => wrong("chat goes to rooms, notification to users"),
        ("member.add" | "member.remove" | "room.put", _) => wrong("member.add, member.remove and room.put go to rooms"),
        _ => Err(unusable(
            "unknown_type",
            "type must be chat, notification, member.add, member.remove, room.put, gateway.send or gateway.disconnect",
        )),
    }
}

fn meaning(kind: &str, data: &RawValue, source: &Arc<str>, id: &str, data_bytes: usize) -> Result<Meaning, Unusable> {
    let data: Data = json::read(data.get().as_bytes())
        .map_err(|error| unusable("malformed", format!("data is malformed: {error}")))?;
    match kind {
        DISCONNECT => {
            let (code, reason) = end(data.code.as_deref(), data.reason.as_deref())?;
            return Ok(Meaning::Live(disconnect(code, reason)));
        }
        SEND => return frame(data.text.as_deref()).map(Meaning::Live),
        "member.add" | "member.remove" | "room.put" => {
            // What the store would refuse.
            if [source, id].iter().any(|text| text.contains('\0')) {
                return Err(unusable("malformed", "NUL cannot be stored"));
            }
            return change_kind(kind, &data).map(Meaning::Change);
        }
        _ => {}
    }
    let text = |field: &str, value: &RawValue| {
        let text: Result<String, _> = json::read(value.get().as_bytes());
        text.map_err(|_| unusable("malformed", format!("data.{field} must be text")))
    };
    let missing = || unusable("missing_field", "data.message is missing");
    let message = data.message.filter(|message| message.get().starts_with('"')).ok_or_else(missing)?;
    let message: Arc<str> = text("message", &message)?.into();
    let from_user = match data.from_user {
        None => Arc::clone(source),
        Some(name) => text("from_user", &name)?.into(),
    };
    // What the store would refuse; said here, before anything of a list is stored.
    if [source, id, &message, &from_user].iter().any(|text| text.contains('\0')) {
        return Err(unusable("malformed", "NUL cannot be stored"));
    }
    if from_user.chars().count() > persistence::MAX_NAME_CHARS {
        return Err(unusable("malformed", "data.from_user is too long"));
    }
    let data = data.data.map_or(Ok(None), |data| data::read(data.get(), data_bytes));
    let data = data.map_err(|wrong| {
        let reason = if wrong == data::Wrong::TooLarge { "too_large" } else { "malformed" };
        unusable(reason, format!("data.{}", wrong.detail()))
    })?;
    Ok(Meaning::Store { from_user, message, data })
}

/// With which code and reason sockets are to be closed.
fn end(code: Option<&RawValue>, reason: Option<&RawValue>) -> Result<(Option<u64>, Option<String>), Unusable> {
    let whole = |code: &RawValue| json::whole(&json::read(code.get().as_bytes()).ok()?);
    let code = code.map(|code| {
        let sendable = whole(code).filter(|&code| close::is_sendable_code(code));
        sendable.ok_or_else(|| unusable("malformed", "data.code is none that a socket can be closed with"))
    });
    let reason = reason.map(|reason| {
        let text = json::read::<String>(reason.get().as_bytes());
        text.map_err(|_| unusable("malformed", "data.reason must be text"))
    });
    Ok((code.transpose()?, reason.transpose()?))
}

/// The event that closes sockets.
pub(crate) fn disconnect(code: Option<u64>, reason: Option<String>) -> Event {
    let mut event = Event::new(DISCONNECT);
    if let Some(code) = code {
        event = event.with("code", code);
    }
    if let Some(reason) = reason {
        event = event.with("reason", reason);
    }
    event
}

/// The event that passes on a frame of the site's own.
pub(crate) fn send(frame: &str) -> Event {
    Event::new(SEND).with("text", frame)
}

fn frame(text: Option<&RawValue>) -> Result<Event, Unusable> {
    let text = text.ok_or_else(|| unusable("missing_field", "data.text is missing"))?;
    let text: String =
        json::read(text.get().as_bytes()).map_err(|_| unusable("malformed", "data.text must be text"))?;
    let event = send(&text);
    match events::gateway_send(&event) {
        Some(_) => Ok(event),
        None => Err(unusable(
            "malformed",
            "data.text must be a JSON object, whose type is none of the gateway's own frames",
        )),
    }
}

/// How an envelope changes a room.
fn change_kind(kind: &str, data: &Data) -> Result<ChangeKind, Unusable> {
    let malformed = |detail: &str| unusable("malformed", detail);
    if kind == "room.put" {
        let given = data.display_name.as_ref().filter(|name| name.get() != "null");
        let name: Option<String> = given.map(|name| json::read(name.get().as_bytes())).transpose().unwrap_or(None);
        let most = persistence::MAX_DISPLAY_NAME_CHARS;
        let good = |name: &String| (1..=most).contains(&name.chars().count()) && !name.contains('\0');
        return match (given, name) {
            (None, _) => Ok(ChangeKind::Is(None)),
            (Some(_), Some(name)) if good(&name) => Ok(ChangeKind::Is(Some(name))),
            _ => Err(malformed("data.display_name must be text of 1 to 255 characters, without NUL")),
        };
    }
    let users = data.users.as_ref().ok_or_else(|| unusable("missing_field", "data.users is missing"))?;
    let users: Vec<String> =
        json::read_long(users.get().as_bytes()).map_err(|_| malformed("data.users must be a list of names"))?;
    if users.is_empty() {
        return Err(malformed("data.users must be a list of names"));
    }
    if let Some((user, rule)) = users.iter().find_map(|user| Some((user, names::check_user(user).err()?))) {
        return Err(malformed(&format!("data.users has {user:?}: {rule}")));
    }
    Ok(if kind == "member.add" { ChangeKind::Joins(users) } else { ChangeKind::Leaves(users) })
}

impl Delivery {
    /// How many recipients it has.
    pub(crate) fn recipients(&self) -> usize {
        self.to.len()
    }

    /// Bytes that the item of one recipient takes until it is stored and sent.
    pub(crate) fn bytes_each(&self) -> usize {
        match &self.meaning {
            Meaning::Store { message, data, .. } => message.len() + data.as_ref().map_or(0, |data| data.len()) + ITEM,
            Meaning::Change(ChangeKind::Joins(users) | ChangeKind::Leaves(users)) => {
                users.iter().map(|user| user.len() + NAME).sum::<usize>() + ITEM
            }
            Meaning::Live(event) => event.weight() + ITEM,
            Meaning::Change(ChangeKind::Is(_)) | Meaning::Nothing => ITEM,
        }
    }

    /// The recipients from this one on that are served together.
    pub(crate) fn piece(&self, from: usize) -> Range<usize> {
        from..(from + (PIECE / self.bytes_each()).max(1)).min(self.to.len())
    }

    /// Sender, text and data, if it is one to store.
    pub(crate) fn content(&self) -> Option<[&str; 3]> {
        match &self.meaning {
            Meaning::Store { from_user, message, data } => {
                Some([from_user, message, data.as_deref().unwrap_or_default()])
            }
            _ => None,
        }
    }

    /// The change of a room or its members, if it is one.
    pub(crate) fn change(&self) -> Option<&ChangeKind> {
        match &self.meaning {
            Meaning::Change(kind) => Some(kind),
            _ => None,
        }
    }

    /// Notes when it was said.
    pub(crate) fn set_time(&mut self, time: ChangeTime) {
        self.time = time;
    }

    /// Source and id.
    pub(crate) fn identity(&self) -> [&str; 2] {
        [&self.source, &self.id]
    }

    /// The trace that it is a part of from now on.
    pub(crate) fn set_part(&mut self, traceparent: Option<Arc<str>>) {
        if traceparent.is_some() {
            self.traceparent = traceparent;
        }
    }

    /// Gives it what came beside the envelope, if it has none of its own.
    pub(crate) fn set_traceparent(&mut self, traceparent: &Trace) {
        if self.traceparent.is_none() {
            self.traceparent.clone_from(traceparent);
        }
    }

    /// The names of the recipients, as they were written.
    pub(crate) fn names(&self) -> &[String] {
        &self.to
    }

    /// What it means for a recipient now.
    pub(crate) fn item(&self, node: &Node, index: usize) -> Result<Item, Unusable> {
        let to = self.to.get(index).cloned().unwrap_or_default();
        let recipient = recipient(&to)?;
        let is_late = self.expires_at.is_some_and(|time| time <= node.clock.database());
        let key = || Key::Event { source: Arc::clone(&self.source), id: Arc::clone(&self.id) };
        let what = match &self.meaning {
            _ if is_late => What::Expired,
            Meaning::Nothing => What::Expired,
            Meaning::Live(event) => {
                let event = traced(event.clone(), self.traceparent.as_deref());
                let group = match recipient {
                    Recipient::Room(room) => node.names.room(room),
                    Recipient::User(user) => node.names.user(user),
                    Recipient::Everyone => return Ok(Item { to, what: What::Everyone(event) }),
                };
                What::Live(group.map_err(|_| unusable("malformed", "no group of that name"))?, event)
            }
            Meaning::Change(kind) => {
                let room = room_of(&to).unwrap_or_default().to_owned();
                What::Change(Box::new(Change { room, kind: kind.clone(), time: self.time, key: Some(key()) }))
            }
            Meaning::Store { from_user, message, data } => {
                let stream = match recipient {
                    Recipient::Room(room) => Stream::Room(room.to_owned()),
                    Recipient::User(user) => Stream::Inbox(user.to_owned()),
                    // Such a one does not fit.
                    Recipient::Everyone => return Err(unusable("malformed", "not for everyone")),
                };
                let append = Append {
                    stream,
                    from_user: Arc::clone(from_user),
                    message: Arc::clone(message),
                    data: data.clone(),
                    key: Some(key()),
                    create_inbox: true,
                    origin: Some((Arc::clone(&self.source), Arc::clone(&self.id))),
                };
                What::Store(append, self.traceparent.clone())
            }
        };
        Ok(Item { to, what })
    }
}

/// The room of a recipient, if it is one.
pub(crate) fn room_of(to: &str) -> Option<&str> {
    to.strip_prefix("room:")
}

fn recipient(to: &str) -> Result<Recipient<'_>, Unusable> {
    let (kind, name) = to.split_once(':').unwrap_or_default();
    let valid = names::is_valid_name(name);
    match kind {
        "user" if names::is_user_name(name) => Ok(Recipient::User(name)),
        "room" if valid => Ok(Recipient::Room(name)),
        _ if to == "everyone" => Ok(Recipient::Everyone),
        _ => Err(unusable("malformed", "to must be user:NAME or room:NAME, or everyone")),
    }
}

/// Does what an item asks for; stored things are committed when this returns.
pub(crate) async fn run(node: &Node, what: What) -> Result<Outcome, Failed> {
    let unsent = |error: channel_layer::LayerError| {
        node.health.tell("an event could not be sent", &error);
        Failed::Unavailable("the channel layer is unavailable")
    };
    match what {
        What::Expired => Ok(Outcome::Expired),
        What::Live(group, event) => node.layer.group_send(&group, &event).await.map(|()| Outcome::Sent).map_err(unsent),
        What::Everyone(event) => node.peers.everyone(event).await.map(|()| Outcome::Sent).map_err(unsent),
        What::Change(change) => match changes::make(node, &change).await {
            Ok(Ok(changed)) => Ok(Outcome::Changed(Box::new(changed))),
            Ok(Err(error)) => refused(error),
            Err(StoreError::Invalid(detail)) => Err(Failed::Unusable(unusable("malformed", detail))),
            Err(error) if error.is_retryable() => Err(Failed::Unavailable("the database is unavailable")),
            Err(error) => {
                node.health.tell("a change of a room could not be stored", &error);
                Err(Failed::NotStored)
            }
        },
        What::Store(append, trace) => match node.writer.write(append, trace).await {
            Ok(stored) => Ok(Outcome::Stored(stored)),
            Err(WriteError::Refused(error)) => refused(error),
            Err(WriteError::Unavailable) => Err(Failed::Unavailable("the database is unavailable")),
            Err(WriteError::Failed) => Err(Failed::NotStored),
        },
    }
}

fn refused(error: AppendError) -> Result<Outcome, Failed> {
    match error {
        AppendError::KeyReused => Ok(Outcome::Reused),
        AppendError::RoomNotFound => Err(Failed::Unusable(unusable("no_room", "no such room"))),
        error => Err(Failed::Unusable(unusable("malformed", error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipients(json: &str) -> Result<Vec<String>, String> {
        serde_json::from_str::<Recipients>(json).map(|names| names.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_is_read_no_further_than_a_thousand() {
        let list = |count| format!("[{}]", vec![r#""user:a""#; count].join(","));
        assert_eq!(recipients(&list(1000)).unwrap().len(), 1000);
        assert_eq!(recipients(r#""user:a""#).unwrap(), ["user:a"]);
        // What comes behind is not looked at: it is no JSON.
        let endless = format!("{},{{{{", list(1001).trim_end_matches(']'));
        assert!(recipients(&endless).unwrap_err().contains("1 to 1000"));
        assert!(recipients("[]").unwrap_err().contains("1 to 1000") && recipients("[1]").is_err());
    }

    #[test]
    fn the_longest_list_there_can_be_is_within_the_bound() {
        let name = format!(r#""user:{}""#, "\\ud83d\\udc4d".repeat(persistence::MAX_NAME_CHARS));
        let list = format!("[{}]", vec![name; MAX_RECIPIENTS].join(", "));
        assert!(list.len() <= MAX_TO, "{}", list.len());
        assert!(recipients(&list).unwrap().iter().all(|to| recipient(to).is_ok()));
    }

    fn delivery(data: &str) -> Result<Delivery, Unusable> {
        let data: &RawValue = serde_json::from_str(data).unwrap();
        let to = Recipients(vec!["user:alice".into()]);
        let envelope = Envelope {
            r#type: "notification".into(),
            to,
            data,
            id: Some("1".into()),
            source: None,
            expires_at: None,
            time: None,
            traceparent: None,
        };
        envelope.delivery("api", OffsetDateTime::now_utc(), 100)
    }

    #[test]
    fn what_is_wrong_with_data_is_said() {
        let reason = |data: &str| delivery(data).unwrap_err().reason;
        assert_eq!(reason("[]"), "not_json");
        assert_eq!((reason("{}"), reason(r#"{"message":1}"#)), ("missing_field", "missing_field"));
        assert_eq!(reason(r#"{"message":"x","from_user":1}"#), "malformed");
        assert_eq!(reason(&format!(r#"{{"message":"{}"}}"#, "x".repeat(MAX_DATA))), "too_large");
        let good = delivery(r#" {"from_user":null,"more":[{}],"message":"x"}"#).unwrap();
        assert_eq!(good.content(), Some(["api", "x", ""]));
        let more = delivery(r#"{"message":"x","data":{ "a":1.10}}"#).unwrap();
        assert_eq!(more.content(), Some(["api", "x", r#"{ "a":1.10}"#]));
        assert_eq!(reason(r#"{"message":"x","data":[1]}"#), "malformed");
        assert_eq!(reason(&format!(r#"{{"message":"x","data":{{"a":"{}"}}}}"#, "x".repeat(100))), "too_large");
        let end = |code: &str, reason: &str| {
            let [code, reason] = [code, reason].map(|json| serde_json::from_str::<Box<RawValue>>(json).unwrap());
            super::end(Some(&code), Some(&reason)).map_err(|wrong| wrong.reason)
        };
        assert_eq!(end("4001.0", r#""bye""#), Ok((Some(4001), Some("bye".to_owned()))));
        for (code, reason) in
            [("999", r#""""#), ("1005", r#""""#), ("-1", r#""""#), (r#""4403""#, r#""""#), ("4403", "5")]
        {
            assert_eq!(end(code, reason), Err("malformed"), "{code} {reason}");
        }
        let cut = delivery(r#"{"message":"\ud800","\ud800":1}"#).unwrap();
        assert_eq!(cut.content(), Some(["api", "\u{fffd}", ""]));
    }
}
