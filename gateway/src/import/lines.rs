//! One line of an import: what it says, or what is wrong with it.

use std::sync::Arc;

use persistence::{Append, Import, Key, Stream};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{data, json, names};

/// Bytes of a message, as through every other door.
const MAX_MESSAGE: usize = 64 * 1024;

/// A line that can be read.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// A blank one.
    Nothing,
    /// A room to make or find, and its members.
    Room { name: String, display_name: Option<String>, members: Vec<String> },
    /// A message to store.
    Message(Import),
}

/// A line that cannot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    /// The stream it is of, as far as that can be told.
    pub(super) stream: Option<Stream>,
    pub(super) why: String,
}

/// What is not named here would be lost: it is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    room: Option<String>,
    display_name: Option<String>,
    members: Option<Vec<String>>,
    chat: Option<Chat>,
    notification: Option<Notification>,
    source: Option<String>,
    id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chat {
    room: String,
    from_user: String,
    message: String,
    date: String,
    #[serde(default)]
    redacted: Option<bool>,
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Notification {
    user: String,
    from_user: String,
    message: String,
    date: String,
    #[serde(default)]
    seen: Option<bool>,
    data: Option<Box<RawValue>>,
}

/// What has become of it there.
#[derive(Default)]
struct Marks {
    seen: bool,
    redacted: bool,
}

/// What a message has in both kinds of streams.
struct Content {
    from_user: String,
    message: String,
    date: String,
    data: Option<Box<RawValue>>,
}

/// Reads a line. What is stored of a message's data has at most so many bytes.
pub(super) fn read(line: &[u8], data_bytes: usize) -> Result<Line, Bad> {
    let text = std::str::from_utf8(line).map_err(|_| bad(&String::from_utf8_lossy(line), "it is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(Line::Nothing);
    }
    // A list would be read as an object whose fields have no names.
    if !text.starts_with('{') {
        return Err(bad(text, "it is no JSON object"));
    }
    let raw = json::read::<Raw>(text.as_bytes()).map_err(|error| bad(text, error.to_string()))?;
    line_of(raw, data_bytes).map_err(|why| bad(text, why))
}

fn bad(text: &str, why: impl Into<String>) -> Bad {
    Bad { stream: stream_of(text), why: why.into() }
}

fn line_of(raw: Raw, data_bytes: usize) -> Result<Line, String> {
    match raw {
        Raw { room: Some(name), display_name, members, chat: None, notification: None, source: _, id: _ } => {
            names::check(&name).map_err(|rule| format!("room: {rule}"))?;
            if display_name.as_deref().is_some_and(|name| !persistence::is_valid_display_name(name)) {
                return Err(format!("display_name: 1 to {} characters", persistence::MAX_DISPLAY_NAME_CHARS));
            }
            let members = members.unwrap_or_default();
            for user in &members {
                names::check_user(user).map_err(|rule| format!("members: {rule}"))?;
            }
            Ok(Line::Room { name, display_name, members })
        }
        Raw { room: None, display_name: None, members: None, chat: Some(chat), notification: None, source, id } => {
            let Chat { room, from_user, message, date, redacted, data } = chat;
            names::check(&room).map_err(|rule| format!("chat.room: {rule}"))?;
            let redacted = redacted == Some(true);
            if redacted && (!message.is_empty() || data.is_some()) {
                return Err("what is redacted has neither text nor data".to_owned());
            }
            let content = Content { from_user, message, date, data };
            let marks = Marks { redacted, ..Marks::default() };
            message_of(Stream::Room(room), content, marks, [source, text_of(id)?], data_bytes)
        }
        Raw { room: None, display_name: None, members: None, chat: None, notification: Some(it), source, id } => {
            let Notification { user, from_user, message, date, seen, data } = it;
            names::check_user(&user).map_err(|rule| format!("notification.user: {rule}"))?;
            let content = Content { from_user, message, date, data };
            let identity = [source, text_of(id)?];
            let marks = Marks { seen: seen == Some(true), ..Marks::default() };
            message_of(Stream::Inbox(user), content, marks, identity, data_bytes)
        }
        _ => Err("it must have one of room, chat and notification".to_owned()),
    }
}

/// A key of a table is a number more often than not.
fn text_of(id: Option<Value>) -> Result<Option<String>, String> {
    match id {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(number.to_string())),
        Some(_) => Err("id must be text or a whole number".to_owned()),
    }
}

fn message_of(
    stream: Stream,
    content: Content,
    marks: Marks,
    identity: [Option<String>; 2],
    data_bytes: usize,
) -> Result<Line, String> {
    let Content { from_user, message, date, data } = content;
    let [source, id] = identity.map(|text| Arc::<str>::from(text.unwrap_or_default()));
    for (what, text) in [("source", &source), ("id", &id)] {
        if text.is_empty() || text.len() > persistence::MAX_EVENT_ID_BYTES {
            return Err(format!("{what} must have 1 to {} bytes", persistence::MAX_EVENT_ID_BYTES));
        }
    }
    if from_user.is_empty() || from_user.chars().count() > persistence::MAX_NAME_CHARS {
        return Err(format!("from_user must have 1 to {} characters", persistence::MAX_NAME_CHARS));
    }
    if message.len() > MAX_MESSAGE {
        return Err(format!("message is over {} KiB", MAX_MESSAGE / 1024));
    }
    if [&*source, &*id, &from_user, &message].iter().any(|text| text.contains('\0')) {
        return Err("NUL cannot be stored".to_owned());
    }
    let date = OffsetDateTime::parse(&date, &Rfc3339).map_err(|_| "date must be RFC 3339".to_owned())?;
    let data = data.map_or(Ok(None), |data| data::read(data.get(), data_bytes)).map_err(|wrong| wrong.detail())?;
    let append = Append {
        stream,
        from_user: from_user.into(),
        message: message.into(),
        data,
        key: Some(Key::Event { source: Arc::clone(&source), id: Arc::clone(&id) }),
        create_inbox: true,
        origin: Some((source, id)),
    };
    let Marks { seen, redacted } = marks;
    Ok(Line::Message(Import { append, date, seen, redacted }))
}

/// The room or user of a line that cannot be read: what stands behind the first of their keys. Within a text the quotes
/// are escaped, so none of those is taken for one.
fn stream_of(text: &str) -> Option<Stream> {
    let found = ["\"room\"", "\"user\""].into_iter().filter_map(|key| Some((text.find(key)?, key)));
    let (at, key) = found.min()?;
    let value = text[at + key.len()..].trim_start().strip_prefix(':')?.trim_start();
    let name: String = serde_json::Deserializer::from_str(value).into_iter().next()?.ok()?;
    Some(if key == "\"room\"" { Stream::Room(name) } else { Stream::Inbox(name) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn room(name: &str) -> Option<Stream> {
        Some(Stream::Room(name.to_owned()))
    }

    fn why(line: &str) -> String {
        read(line.as_bytes(), 100).unwrap_err().why
    }

    #[test]
    fn each_kind_of_line_is_read() {
        let read = |line: serde_json::Value| read(line.to_string().as_bytes(), 100).unwrap();
        let line = read(json!({"room": "Łódź 1", "display_name": "The Lobby", "members": ["ann", "bob"]}));
        let members = vec!["ann".to_owned(), "bob".to_owned()];
        assert_eq!(line, Line::Room { name: "Łódź 1".into(), display_name: Some("The Lobby".into()), members });
        let line = read(json!({"room": "a", "display_name": null, "members": null}));
        assert_eq!(line, Line::Room { name: "a".into(), display_name: None, members: vec![] });
        let chat = json!({"room": "a", "from_user": "ann", "message": "", "date": "2026-01-02T13:00:00.0000054+01:00", "data": {"a": 1}});
        let Line::Message(chat) = read(json!({"chat": chat, "source": "club.post", "id": 7})) else { panic!() };
        assert_eq!(chat.append.stream, Stream::Room("a".into()));
        assert_eq!(chat.append.key, Some(Key::Event { source: "club.post".into(), id: "7".into() }));
        assert_eq!(chat.append.data.as_deref(), Some(r#"{"a":1}"#));
        assert_eq!((chat.date.unix_timestamp(), chat.date.microsecond(), chat.seen), (1_767_355_200, 5, false));
        let it = json!({"user": "ann", "from_user": "shop", "message": "paid", "date": "1969-12-31T23:59:59Z", "seen": true});
        let Line::Message(it) = read(json!({"notification": it, "source": "s", "id": "x"})) else { panic!() };
        assert_eq!((it.append.stream, it.seen), (Stream::Inbox("ann".into()), true));
    }

    #[test]
    fn blank_lines_and_a_byte_order_mark_mean_nothing() {
        for blank in ["", "  \r", "\u{feff}"] {
            assert_eq!(read(blank.as_bytes(), 100), Ok(Line::Nothing));
        }
        assert!(read("\u{feff}{\"room\":\"a\"}\r".as_bytes(), 100).is_ok());
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let chat = |field: &str, value: serde_json::Value| {
            let mut chat = json!({"room": "a", "from_user": "ann", "message": "x", "date": "2026-01-02T12:00:00Z"});
            chat[field] = value;
            why(&json!({"chat": chat, "source": "s", "id": "1"}).to_string())
        };
        assert!(chat("date", json!("yesterday")).contains("RFC 3339"));
        assert!(chat("date", json!("2026-01-02 12:00")).contains("RFC 3339"));
        assert!(chat("from_user", json!("")).contains("from_user"));
        assert!(chat("message", json!(1)).contains("string"));
        assert!(chat("message", json!("x\0")).contains("NUL"));
        assert!(chat("message", json!("x".repeat(65_537))).contains("64 KiB"));
        assert!(chat("room", json!("a/b")).contains("room"));
        assert!(chat("data", json!([1])).contains("object"));
        assert!(chat("data", json!({"a": "x".repeat(100)})).contains("limit"));
        assert!(chat("seen", json!(true)).contains("seen"));
        for (line, part) in [
            (json!({"room": ""}), "room"),
            (json!({"room": "a", "display_name": ""}), "display_name"),
            (json!({"room": "a", "members": ["anon.x"]}), "members"),
            (json!({"room": "a", "member": ["x"]}), "member"),
            (json!({"source": "s", "id": "1"}), "one of"),
            (json!([]), "no JSON object"),
        ] {
            assert!(why(&line.to_string()).contains(part), "{line}");
        }
        let it = json!({"user": "ann", "from_user": "s", "message": "x", "date": "2026-01-02T12:00:00Z"});
        for (identity, part) in [(json!({"id": "1"}), "source"), (json!({"source": "s"}), "id")] {
            let mut line = identity;
            line["notification"] = it.clone();
            assert!(why(&line.to_string()).contains(part));
        }
    }

    #[test]
    fn a_bad_line_says_of_which_stream_it_is_where_that_can_be_told() {
        let stream = |line: &str| read(line.as_bytes(), 100).unwrap_err().stream;
        assert_eq!(stream(r#"{"chat":{"room":"a","date":1},"source":"s","id":"1"}"#), room("a"));
        assert_eq!(stream(r#"{"chat":{"message":"a \"room\":\"b\"","room" : "\u0061"#), None, "its end is missing");
        assert_eq!(stream(r#"{"chat":{"message":"a \"room\":\"b\"","room" : "\u0061", "from"#), room("a"));
        assert_eq!(stream(r#"{"notification":{"user":"ann","#), Some(Stream::Inbox("ann".into())));
        assert_eq!((stream("nothing"), stream(r#"{"room":1}"#)), (None, None));
        assert_eq!(read(b"{\"room\":\"a\",\"x\":\"\xff\"}", 100).unwrap_err().stream, room("a"));
    }
}
