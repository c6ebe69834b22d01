//! Events on the channel layer and what they look like to a browser (`docs/protocol.md`).

use std::borrow::Cow;

use channel_layer::{Event, Value};
use persistence::{Message, Seen};
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::macros::format_description;
use uuid::Uuid;

use crate::data;
use crate::handlers::Rendering;
use crate::json;
use crate::words::{EventType, FrameType};

/// Notifications that are marked as seen at a time, at most.
pub(crate) const MAX_SEEN: usize = 1000;

/// RFC 3339 in UTC with microseconds.
pub(crate) fn rfc3339(date: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    date.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// The layer event of a stored chat message.
pub(crate) fn chat_event(room: &str, display_name: &str, message: &Message) -> Event {
    let event = Event::new(EventType::ChatMessage.as_str())
        .with("message", message.message.as_str())
        .with("group_name", room)
        .with("from_user", message.from_user.as_str())
        .with("cate", "chat")
        .with("id", message.id.to_string())
        .with("seq", message.seq as i64)
        .with("epoch", message.epoch)
        .with("date", rfc3339(message.date))
        .with("display_name", display_name);
    let event = if message.redacted { event.with("redacted", true) } else { event };
    data::into_event(event, message.data.as_deref())
}

/// The layer event of a stored notification.
pub(crate) fn notification_event(notification: &Message) -> Event {
    let event = Event::new(EventType::NotificationMessage.as_str())
        .with("message", notification.message.as_str())
        .with("from_user", notification.from_user.as_str())
        .with("cate", "notification")
        .with("id", notification.id.to_string())
        .with("seq", notification.seq as i64)
        .with("epoch", notification.epoch)
        .with("date", rfc3339(notification.date));
    data::into_event(event, notification.data.as_deref())
}

/// The position an event takes in its stream: `(epoch, seq)`, if it was stored by a gateway. What comes from
/// the layer can be trusted here once its seal has been checked; without a good one it has none.
pub(crate) fn position(event: &Event) -> Option<(i64, u64)> {
    let epoch = event.get("epoch")?.as_i64()?;
    let seq = event.get("seq")?.as_u64()?;
    (seq > 0).then_some((epoch, seq))
}

/// The same event as one that was not stored.
pub(crate) fn without_place(event: &Event) -> Event {
    let mut plain = event.clone();
    plain.remove("seq");
    plain.remove("epoch");
    plain
}

#[derive(Serialize)]
struct ChatFrame<'a> {
    r#type: FrameType,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    group_name: &'a str,
    display_name: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<data::Shown<'a>>,
    from_user: Cow<'a, str>,
    date: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
}

#[derive(Serialize)]
struct NotificationFrame<'a> {
    r#type: FrameType,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<data::Shown<'a>>,
    from_user: Cow<'a, str>,
    date: &'a str,
}

/// `chat.message` → the `chat` frame, once per node for all members.
pub(crate) fn chat_message(event: &Event) -> Option<Rendering> {
    let (group_name, seq) = (event.text("group_name")?, position(event).map(|(_, seq)| seq));
    let frame = ChatFrame {
        r#type: FrameType::Chat,
        id: id(event),
        seq,
        group_name,
        display_name: event.text("display_name").unwrap_or(group_name),
        message: event.text("message")?,
        data: data::Shown::of(event, seq.is_some()),
        from_user: from_user(event),
        date: event.text("date").unwrap_or_default(),
        redacted: seq.is_some() && event.get("redacted").and_then(Value::as_bool).unwrap_or(false),
    };
    Some(Rendering::json(FrameType::Chat.as_str(), &frame)?.kept_for_resume())
}

/// `notification.message` → the `notification` frame.
pub(crate) fn notification_message(event: &Event) -> Option<Rendering> {
    let seq = position(event).map(|(_, seq)| seq);
    let frame = NotificationFrame {
        r#type: FrameType::Notification,
        id: id(event),
        seq,
        message: event.text("message")?,
        data: data::Shown::of(event, seq.is_some()),
        from_user: from_user(event),
        date: event.text("date").unwrap_or_default(),
    };
    Some(Rendering::json(FrameType::Notification.as_str(), &frame)?.kept_for_resume())
}

/// The name of who says it. Sites that know people by their keys write a number.
fn from_user(event: &Event) -> Cow<'_, str> {
    match event.get("from_user") {
        Some(Value::Text(name)) => Cow::Borrowed(name),
        Some(Value::Int(key)) => key.to_string().into(),
        Some(Value::UInt(key)) => key.to_string().into(),
        _ => "".into(),
    }
}

/// `gateway.send` → its text as it is, or as the standard would have it, if that is a JSON object and not one of our own frames.
pub(crate) fn gateway_send(event: &Event) -> Option<Rendering> {
    let (text, mended): (_, Box<RawValue>);
    let sent = event.text("text")?;
    if serde_json::from_str::<&RawValue>(sent).is_ok() {
        text = sent;
    } else {
        mended = json::read(sent.as_bytes()).ok()?;
        text = mended.get();
    }
    let object: std::collections::HashMap<String, Box<RawValue>> = json::read(text.as_bytes()).ok()?;
    if let Some(kind) = object.get("type") {
        let kind: Result<String, _> = json::read(kind.get().as_bytes());
        // The last two are not sent yet, and are kept free.
        if kind.is_ok_and(|kind| FrameType::of(&kind).is_some() || matches!(kind.as_str(), "read" | "presence_change"))
        {
            return None;
        }
    }
    Some(Rendering::text("site", text))
}

/// Tells a user's other sockets what has been seen; `by` is the channel that already knows.
pub(crate) fn seen_event(which: &Seen, unseen: u64, by: Option<&str>) -> Event {
    let event = match which {
        Seen::Ids(ids) => Event::new(EventType::Seen.as_str())
            .with("ids", Value::List(ids.iter().map(|id| Value::from(id.to_string())).collect())),
        Seen::UpTo(seq) => Event::new(EventType::Seen.as_str()).with("up_to", *seq),
    };
    let event = event.with("unseen", unseen);
    match by {
        Some(by) => event.with("by", by),
        None => event,
    }
}

/// The `seen` frame.
#[derive(Serialize)]
pub(crate) struct SeenFrame {
    r#type: FrameType,
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<Uuid>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_to: Option<u64>,
    unseen: u64,
}

impl SeenFrame {
    pub(crate) fn new(which: Seen, unseen: u64) -> Self {
        let (ids, up_to) = match which {
            Seen::Ids(ids) => (Some(ids), None),
            Seen::UpTo(seq) => (None, Some(seq)),
        };
        Self { r#type: FrameType::Seen, ids, up_to, unseen }
    }

    fn of(event: &Event) -> Option<Self> {
        let which = match (event.get("ids"), event.get("up_to")) {
            (Some(Value::List(ids)), None) if ids.len() <= MAX_SEEN => {
                Seen::Ids(ids.iter().map(|id| id.as_str()?.parse().ok()).collect::<Option<_>>()?)
            }
            (None, Some(seq)) => Seen::UpTo(seq.as_u64()?),
            _ => return None,
        };
        Some(Self::new(which, event.get("unseen")?.as_u64()?))
    }
}

/// `gateway.seen` → the `seen` frame, for clients that know it.
pub(crate) fn seen(event: &Event) -> Option<Rendering> {
    let rendering = Rendering::json(FrameType::Seen.as_str(), &SeenFrame::of(event)?)?.v1_only();
    Some(match event.text("by") {
        Some(by) => rendering.except_channel(by),
        None => rendering,
    })
}

/// Tells the members of a room that somebody is typing; never stored.
pub(crate) fn typing_event(room: &str, from_user: &str) -> Event {
    Event::new(EventType::Typing.as_str()).with("group_name", room).with("from_user", from_user)
}

/// `gateway.typing` → the `typing` frame, for the other members.
pub(crate) fn typing(event: &Event) -> Option<Rendering> {
    let (room, from_user) = (event.text("group_name")?, event.text("from_user")?);
    let frame = serde_json::json!({"type": FrameType::Typing, "group_name": room, "from_user": from_user});
    Some(Rendering::json(FrameType::Typing.as_str(), &frame)?.v1_only().except_user(from_user))
}

/// Tells the sockets of a room that a message has lost its text.
pub(crate) fn redacted_event(room: &str, id: Uuid, seq: u64) -> Event {
    Event::new(EventType::Redacted.as_str()).with("group_name", room).with("id", id.to_string()).with("seq", seq)
}

/// `gateway.redacted` → the `redacted` frame, for clients that know it.
pub(crate) fn redacted(event: &Event) -> Option<Rendering> {
    let (room, id) = (event.text("group_name")?, event.text("id")?);
    let seq = event.get("seq")?.as_u64()?;
    let frame = serde_json::json!({"type": FrameType::Redacted, "group_name": room, "id": id, "seq": seq});
    Some(Rendering::json(FrameType::Redacted.as_str(), &frame)?.v1_only())
}

/// What an event of a type that anybody may send lacks to be shown, with that type.
pub(crate) fn lack(event: &Event) -> Option<(&'static str, &'static str)> {
    let kind = EventType::of_event(event)?;
    let needs: &[&str] = match kind {
        EventType::ChatMessage => &["message", "group_name"],
        EventType::NotificationMessage => &["message"],
        EventType::Send if event.text("text").is_some() => {
            return Some((kind.as_str(), "text that is a JSON object and no frame of ours"));
        }
        EventType::Send => &["text"],
        // Nobody but nodes sends these, or nothing is needed.
        EventType::Disconnect | EventType::Seen | EventType::Typing | EventType::RoomsChanged | EventType::Redacted => {
            return None;
        }
    };
    needs.iter().find(|field| event.text(field).is_none()).map(|field| (kind.as_str(), *field))
}

/// The `resumed` frame: which streams went on from the client's place. The others are to be read again.
#[derive(Serialize)]
pub(crate) struct Resumed {
    r#type: FrameType,
    rooms: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notifications: Option<bool>,
}

impl Resumed {
    pub(crate) fn new(rooms: impl IntoIterator<Item = (String, bool)>, notifications: Option<bool>) -> Self {
        let rooms = rooms.into_iter().map(|(room, went_on)| (room, went_on.into())).collect();
        Self { r#type: FrameType::Resumed, rooms, notifications }
    }
}

/// Whatever a site has as id, if it is anything in JSON.
fn id(event: &Event) -> Option<&Value> {
    event.get("id").filter(|id| !id.is_null() && id.as_f64().is_none_or(f64::is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn rendered(event: &Event, handler: fn(&Event) -> Option<Rendering>) -> serde_json::Value {
        let frame = handler(event).unwrap().frame;
        let bytes = frame.as_bytes();
        let header = if bytes[1] == 126 { 4 } else { 2 };
        serde_json::from_slice(&bytes[header..]).unwrap()
    }

    #[test]
    fn a_stored_message_becomes_the_frame_of_the_documents() {
        let id = Uuid::nil();
        let message = Message {
            id,
            seq: 7,
            epoch: 3,
            from_user: "alice".into(),
            message: "hi".into(),
            data: Some(r#"{"a": 1.10}"#.into()),
            source: None,
            event_id: None,
            seen: false,
            redacted: false,
            date: datetime!(2026-01-02 03:04:05.000006 UTC),
        };
        let event = chat_event("lobby", "The Lobby", &message);
        assert_eq!(position(&event), Some((3, 7)));
        assert_eq!(
            rendered(&event, chat_message),
            serde_json::json!({"type":"chat","id":id.to_string(),"seq":7,"group_name":"lobby","display_name":"The Lobby",
                "message":"hi","data":{"a":1.1},"from_user":"alice","date":"2026-01-02T03:04:05.000006Z"})
        );
    }

    #[test]
    fn an_event_from_outside_has_no_seq() {
        let event = Event::new("chat.message").with("message", "hi").with("group_name", "lobby").with("seq", 5);
        let frame = rendered(&event, chat_message);
        assert_eq!(frame.get("seq"), None);
        assert_eq!(frame["display_name"], "lobby");
        let event = Event::new("notification_message").with("message", "hi").with("id", 17).with("from_user", "shop");
        let with_data = event.clone().with("data", Value::from_json(br#"{"b":[1,null],"a":{}}"#).unwrap());
        let shown = rendered(&with_data, notification_message);
        assert_eq!((&shown["data"], shown["seq"].is_null()), (&serde_json::json!({"b": [1, null], "a": {}}), true));
        assert_eq!(rendered(&event.clone().with("data", "own"), notification_message).get("data"), None);
        assert_eq!(rendered(&event, notification_message)["id"], 17);
        let by_key = event.clone().with("from_user", 5);
        assert_eq!(rendered(&by_key, notification_message)["from_user"], "5");
        assert!(chat_message(&Event::new("chat.message").with("message", 5).with("group_name", "x")).is_none());
    }

    #[test]
    fn what_was_seen_becomes_a_frame_of_its_fields_and_nothing_else() {
        let ids = vec![Uuid::from_u128(1), Uuid::from_u128(2)];
        let event = seen_event(&Seen::Ids(ids.clone()), 3, Some("specific.x"));
        assert_eq!(rendered(&event, seen), serde_json::json!({"type": "seen", "ids": ids, "unseen": 3}));
        assert!(
            seen(&event).is_some_and(|shown| shown.v1_only && shown.except_channel.as_deref() == Some("specific.x"))
        );
        let event = seen_event(&Seen::UpTo(7), 0, None).with("frame", r#"{"type":"chat"}"#).with("more", 1);
        assert_eq!(rendered(&event, seen), serde_json::json!({"type": "seen", "up_to": 7, "unseen": 0}));
        let list = |count: usize, id: &str| Value::List(vec![Value::from(id); count]);
        let nil = Uuid::nil().to_string();
        let good = Event::new(EventType::Seen.as_str()).with("unseen", 1);
        assert!(seen(&good.clone().with("ids", list(MAX_SEEN, &nil))).is_some());
        for bad in [
            good.clone(),
            good.clone().with("ids", list(MAX_SEEN + 1, &nil)),
            good.clone().with("ids", list(1, "no id")),
            good.clone().with("up_to", -1),
            good.clone().with("up_to", 1).with("ids", list(1, &nil)),
            Event::new(EventType::Seen.as_str()).with("up_to", 1),
            Event::new(EventType::Seen.as_str()).with("frame", "{}"),
        ] {
            assert!(seen(&bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn what_an_event_lacks_is_named() {
        let chat = Event::new("chat.message").with("message", "hi");
        assert_eq!(lack(&chat), Some(("chat_message", "group_name")));
        assert_eq!(lack(&chat.clone().with("message", 5)), Some(("chat_message", "message")));
        assert_eq!(lack(&chat.with("group_name", "lobby")), None);
        assert_eq!(lack(&Event::new("notification.message")), Some(("notification_message", "message")));
        assert_eq!(lack(&Event::new("gateway.send")), Some(("gateway_send", "text")));
        assert!(lack(&Event::new("gateway.send").with("text", "[1]")).is_some());
        assert_eq!(lack(&Event::new("own.type")), None);
    }

    #[test]
    fn a_sites_own_frame_may_not_fake_ours() {
        let send = |text: &str| gateway_send(&Event::new("gateway.send").with("text", text)).is_some();
        assert!(send(r#"{"type":"cart","items":2}"#) && send("{}"));
        assert!(!send(r#"{"type":"chat"}"#) && !send("[1]") && !send("no json") && !send(r#"{"type":"ack"}"#));
        assert!(!send(r#"{"\u0074ype":"chat"}"#));
        assert!(send(r#"{"type":"cart","name":"\ud83d"}"#) && !send("\u{feff}{\"type\":\"chat\"}"));
        let odd = Event::new("gateway.send").with("text", "\u{feff}{\"type\":\"cart\",\"sum\":NaN}");
        assert_eq!(rendered(&odd, gateway_send), serde_json::json!({"type": "cart", "sum": null}));
    }
}
