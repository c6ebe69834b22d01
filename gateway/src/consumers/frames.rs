//! Client frames (`docs/protocol.md`), and the answers that are not events.

use persistence::{Range, Seen};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::consumers::history;
use crate::hub::ClientPosition;
use crate::json;
use crate::words::{Cate, FrameType};

/// Error codes a client may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    /// Bad input.
    Invalid,
    /// A `cate` that nobody knows.
    UnknownCate,
    /// Not allowed.
    Forbidden,
    /// No such room, or not yours.
    RoomNotFound,
    /// Nobody has heard of that user.
    UserNotFound,
    /// More data than a message may have.
    TooLarge,
    /// Too many frames.
    RateLimited,
    /// The database or the layer is away; trying again helps.
    Unavailable,
}

impl ErrorCode {
    /// As it stands in the frame.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::UnknownCate => "unknown_cate",
            Self::Forbidden => "forbidden",
            Self::RoomNotFound => "room_not_found",
            Self::UserNotFound => "user_not_found",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The `error` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorFrame {
    r#type: FrameType,
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
}

impl ErrorFrame {
    /// An error with a short text for people. It never repeats what the client sent.
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>, client_id: Option<String>) -> Self {
        Self { r#type: FrameType::Error, code: code.as_str(), detail: detail.into(), client_id }
    }

    /// Its code.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }
}

/// The `ack` frame: committed.
#[derive(Debug, Serialize)]
pub(crate) struct Ack<'a> {
    /// Always `ack`.
    pub r#type: FrameType,
    /// The client's own id.
    pub client_id: &'a str,
    /// Id of the stored row.
    pub id: String,
    /// Its position.
    pub seq: u64,
    /// When it was stored.
    pub date: String,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) message: String,
    /// A JSON object, as it came.
    pub(crate) data: Option<Box<str>>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientFrame {
    /// Say something in a room.
    Chat {
        /// The room.
        group_name: String,
        /// What to say.
        content: Content,
    },
    /// Notify a user.
    Notification {
        /// The user.
        user_name: String,
        /// What to say.
        content: Content,
    },
    /// Which rooms may be heard.
    Rooms,
    /// A page of a room's messages.
    History {
        /// The room.
        group_name: String,
        /// Which page.
        range: Range,
        /// How many, at most.
        limit: u64,
    },
    /// A page of the inbox.
    Notifications {
        /// Which page.
        range: Range,
        /// How many, at most.
        limit: u64,
        /// Only what has not been seen.
        unseen: bool,
    },
    /// These notifications have been seen.
    Seen(Seen),
    /// The user is typing in a room.
    Typing {
        /// The room.
        group_name: String,
    },
    /// Who of a room is online.
    Presence {
        /// The room.
        group_name: String,
    },
    /// Send what was missed after these places.
    Resume {
        /// By room.
        rooms: Vec<(String, ClientPosition)>,
        /// In the inbox.
        notifications: Option<ClientPosition>,
    },
    /// A new token for the same user.
    Auth {
        /// The token.
        token: String,
    },
    /// Is anybody there?
    Ping,
}

/// A frame, and the id that its answer repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) frame: ClientFrame,
    /// Asks for an ack, of a frame that is stored.
    pub(crate) client_id: Option<String>,
}

impl ClientFrame {
    /// What it asks for; the label in `gateway_frames_received_total`.
    pub(crate) fn cate(&self) -> Cate {
        match self {
            Self::Chat { .. } => Cate::Chat,
            Self::Notification { .. } => Cate::Notification,
            Self::Rooms => Cate::Rooms,
            Self::History { .. } => Cate::History,
            Self::Notifications { .. } => Cate::Notifications,
            Self::Seen(_) => Cate::Seen,
            Self::Typing { .. } => Cate::Typing,
            Self::Presence { .. } => Cate::Presence,
            Self::Resume { .. } => Cate::Resume,
            Self::Auth { .. } => Cate::Auth,
            Self::Ping => Cate::Ping,
        }
    }

    /// Reads a text frame. The error says which field is wrong.
    pub(crate) fn parse(text: &str) -> Result<Asked, ErrorFrame> {
        let invalid = |detail: &str, client_id| Err(ErrorFrame::new(ErrorCode::Invalid, detail, client_id));
        let object = match json::read(text.as_bytes()) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return invalid("the frame is not a JSON object", None),
            Err(_) => return invalid("the frame is not JSON", client_id(text)),
        };
        let fields = Fields { client_id: readable_client_id(&object), object, text };
        let frame = Self::of(&fields)?;
        Ok(Asked { frame, client_id: fields.client_id()? })
    }

    /// Whether a text is a `ping`; looks closer only at what may be one.
    pub(crate) fn is_ping(text: &str) -> bool {
        /// Longer than any that makes sense.
        const MOST: usize = 256;
        text.len() <= MOST
            && text.contains("ping")
            && Self::parse(text).is_ok_and(|asked| asked.frame == ClientFrame::Ping)
    }

    fn of(fields: &Fields<'_>) -> Result<Self, ErrorFrame> {
        let Some(cate) = fields.first(&["cate", "type"]) else {
            return Err(fields.invalid("cate is missing"));
        };
        let Some(cate) = cate.as_str() else {
            return Err(fields.invalid("cate must be text"));
        };
        let Some(cate) = Cate::of(cate) else {
            return Err(ErrorFrame::new(ErrorCode::UnknownCate, "no such cate", fields.client_id.clone()));
        };
        match cate {
            Cate::Chat => Ok(Self::Chat { group_name: fields.room()?, content: fields.content()? }),
            Cate::Notification => {
                Ok(Self::Notification { user_name: fields.name(&["user_name"])?, content: fields.content()? })
            }
            Cate::Rooms => Ok(Self::Rooms),
            Cate::History => {
                Ok(Self::History { group_name: fields.room()?, range: fields.range()?, limit: fields.limit()? })
            }
            Cate::Notifications => Ok(Self::Notifications {
                range: fields.range()?,
                limit: fields.limit()?,
                unseen: fields.flag("unseen")?,
            }),
            Cate::Seen => fields.seen().map(Self::Seen),
            Cate::Typing => Ok(Self::Typing { group_name: fields.room()? }),
            Cate::Presence => Ok(Self::Presence { group_name: fields.room()? }),
            Cate::Resume => fields.resume(),
            Cate::Auth => match fields.first(&["token"]) {
                Some(Value::String(token)) => Ok(Self::Auth { token: token.clone() }),
                _ => Err(fields.invalid("token must be text")),
            },
            Cate::Ping => Ok(Self::Ping),
        }
    }
}

struct Fields<'t> {
    object: Map<String, Value>,
    text: &'t str,
    /// For errors: the client's id, if it can be read.
    client_id: Option<String>,
}

impl Fields<'_> {
    fn invalid(&self, detail: &str) -> ErrorFrame {
        ErrorFrame::new(ErrorCode::Invalid, detail, self.client_id.clone())
    }

    fn first(&self, names: &[&str]) -> Option<&Value> {
        names.iter().filter_map(|name| self.object.get(*name)).find(|value| !value.is_null())
    }

    fn name(&self, names: &[&str]) -> Result<String, ErrorFrame> {
        let field = names[0];
        match self.first(names) {
            Some(Value::String(name)) if crate::names::is_valid_name(name) => Ok(name.clone()),
            Some(Value::String(_)) => Err(self.invalid(&format!("{field} is not a valid name"))),
            Some(_) => Err(self.invalid(&format!("{field} must be text"))),
            None => Err(self.invalid(&format!("{field} is missing"))),
        }
    }

    fn room(&self) -> Result<String, ErrorFrame> {
        self.name(&["group_name", "groupname"])
    }

    fn seq(&self, field: &str) -> Result<Option<u64>, ErrorFrame> {
        match self.first(&[field]) {
            None => Ok(None),
            Some(value) => match json::whole(value) {
                Some(seq) => Ok(Some(seq)),
                None => Err(self.invalid(&format!("{field} must be a whole number, 0 or more"))),
            },
        }
    }

    fn range(&self) -> Result<Range, ErrorFrame> {
        Ok(Range::of(self.seq("after")?, self.seq("before")?))
    }

    fn limit(&self) -> Result<u64, ErrorFrame> {
        match self.first(&["limit"]).map(Value::as_f64) {
            None => Ok(history::DEFAULT_LIMIT),
            // Of any size: a conversion ends at the largest.
            Some(Some(limit)) if limit >= 0.0 && limit.fract() == 0.0 => {
                Ok((limit as u64).clamp(1, history::MAX_LIMIT))
            }
            Some(_) => Err(self.invalid("limit must be a whole number, 0 or more")),
        }
    }

    fn flag(&self, field: &str) -> Result<bool, ErrorFrame> {
        match self.first(&[field]) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(&format!("{field} must be true or false"))),
        }
    }

    fn seen(&self) -> Result<Seen, ErrorFrame> {
        match (self.first(&["ids"]), self.seq("up_to")?) {
            (None, Some(seq)) => Ok(Seen::UpTo(seq)),
            (Some(Value::Array(ids)), None) if ids.len() <= crate::events::MAX_SEEN => ids
                .iter()
                .map(|id| id.as_str().and_then(|id| id.parse().ok()))
                .collect::<Option<_>>()
                .map(Seen::Ids)
                .ok_or_else(|| self.invalid("ids must be UUIDs")),
            _ => Err(self.invalid("either up to 1,000 ids, or up_to")),
        }
    }

    fn resume(&self) -> Result<ClientFrame, ErrorFrame> {
        let rooms = match self.first(&["rooms"]) {
            None => Vec::new(),
            Some(Value::Object(rooms)) => rooms
                .iter()
                .map(|(room, place)| Some((room.clone(), read_place(place)?)))
                .collect::<Option<_>>()
                .ok_or_else(|| self.invalid("rooms must hold positions"))?,
            Some(_) => return Err(self.invalid("rooms must be an object")),
        };
        let notifications = match self.first(&["notifications"]) {
            None => None,
            Some(place) => Some(read_place(place).ok_or_else(|| self.invalid("notifications must be a position"))?),
        };
        Ok(ClientFrame::Resume { rooms, notifications })
    }

    fn message(&self) -> Result<String, ErrorFrame> {
        match self.first(&["message"]) {
            // PostgreSQL cannot keep a NUL in text, so it is refused everywhere alike.
            Some(Value::String(message)) if message.contains('\0') => Err(self.invalid("message contains NUL")),
            Some(Value::String(message)) => Ok(message.clone()),
            Some(_) => Err(self.invalid("message must be text")),
            None => Err(self.invalid("message is missing")),
        }
    }

    fn content(&self) -> Result<Content, ErrorFrame> {
        let data = match self.first(&["data"]) {
            None => None,
            Some(Value::Object(_)) => json::raw_field(self.text, "data").map(|data| data.get().into()),
            Some(_) => return Err(self.invalid("data must be a JSON object")),
        };
        Ok(Content { message: self.message()?, data })
    }

    fn client_id(&self) -> Result<Option<String>, ErrorFrame> {
        match self.first(&["client_id"]) {
            None => Ok(None),
            Some(Value::String(id)) if is_client_id(id) => Ok(Some(id.clone())),
            Some(_) => Err(self.invalid("client_id must be text of 1 to 64 bytes")),
        }
    }
}

/// `{"seq":N,"id":UUID?}`, or a bare N.
fn read_place(value: &Value) -> Option<ClientPosition> {
    match value {
        Value::Number(_) => Some(ClientPosition { seq: json::whole(value)?, id: None }),
        Value::Object(place) => {
            let id = match place.get("id") {
                None | Some(Value::Null) => None,
                Some(id) => Some(id.as_str()?.parse().ok()?),
            };
            Some(ClientPosition { seq: json::whole(place.get("seq")?)?, id })
        }
        _ => None,
    }
}

/// The `client_id` of a frame that is not served, if there is one to be found.
pub(crate) fn client_id(text: &str) -> Option<String> {
    json::salvage(text, "client_id").filter(|id| is_client_id(id))
}

fn is_client_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && !id.contains('\0')
}

fn readable_client_id(object: &Map<String, Value>) -> Option<String> {
    object.get("client_id")?.as_str().filter(|id| is_client_id(id)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(text: &str) -> &'static str {
        ClientFrame::parse(text).map_or_else(|error| error.code(), |asked| asked.frame.cate().as_str())
    }

    #[test]
    fn frames_and_their_other_spellings() {
        let content = Content { message: "hi".into(), data: None };
        let frame = ClientFrame::Chat { group_name: "lobby".into(), content };
        let chat = Asked { frame, client_id: Some("1".into()) };
        for text in [
            r#"{"cate":"chat","group_name":"lobby","message":"hi","client_id":"1"}"#,
            r#"{"type":"chat","groupname":"lobby","message":"hi","client_id":"1","from_user":"mallory","seq":9}"#,
            r#"{"cate":null,"type":"chat","group_name":null,"groupname":"lobby","message":"hi","client_id":"1"}"#,
            "\u{feff}{\"cate\":\"chat\",\"group_name\":\"lobby\",\"message\":\"hi\",\"client_id\":\"1\",\"x\":[NaN,1e400,1180591620717411303424]}",
        ] {
            assert_eq!(ClientFrame::parse(text), Ok(chat.clone()));
        }
        assert_eq!(code(r#"{"cate":"notification","user_name":"bob","message":"hi"}"#), "notification");
        assert_eq!(code(r#"{"cate":"rooms"}"#), "rooms");
    }

    #[test]
    fn data_is_taken_as_it_came() {
        let data = |text: &str| match ClientFrame::parse(text).unwrap().frame {
            ClientFrame::Chat { content, .. } => content.data.map(String::from),
            other => panic!("{other:?}"),
        };
        let chat = |more: &str| format!(r#"{{"cate":"chat","group_name":"a","message":"x"{more}}}"#);
        assert_eq!(data(&chat(r#","data":{ "a":1.10, "b":[1e400]}"#)).as_deref(), Some(r#"{ "a":1.10, "b":[1e400]}"#));
        assert_eq!((data(&chat(r#","data":null"#)), data(&chat(""))), (None, None));
        assert_eq!(data(&chat(",\"data\":{\"a\":NaN}")).as_deref(), Some(r#"{"a":null}"#));
    }

    #[test]
    fn bad_frames_have_a_code() {
        for text in [
            "",
            "nonsense",
            "[]",
            "5",
            "{}",
            r#"{"cate":5}"#,
            r#"{"cate":"chat"}"#,
            r#"{"cate":"chat","group_name":5,"message":"x"}"#,
            r#"{"cate":"chat","group_name":"a/b","message":"x"}"#,
            r#"{"cate":"chat","group_name":"a","message":["x"]}"#,
            r#"{"cate":"chat","group_name":"a","message":"\u0000"}"#,
            r#"{"cate":"chat","group_name":"a","message":"x","client_id":""}"#,
            r#"{"cate":"chat","group_name":"a","message":"x","client_id":7}"#,
            r#"{"cate":"chat","group_name":"a","message":"x","data":[]}"#,
            r#"{"cate":"notification","user_name":"a","message":"x","data":"{}"}"#,
            &"[".repeat(10_000),
        ] {
            assert_eq!(code(text), "invalid", "{text}");
        }
        assert_eq!(code(r#"{"cate":"nope"}"#), "unknown_cate");
        for (text, answer) in [
            (r#"{"cate":"history","group_name":"a","limit":1000000}"#, "history"),
            (r#"{"cate":"history","group_name":"a","before":-1}"#, "invalid"),
            (r#"{"cate":"history","group_name":"a","before":18446744073709551615}"#, "invalid"),
            (r#"{"cate":"history","group_name":"a","before":2.0,"after":1}"#, "history"),
            (r#"{"cate":"history","group_name":"a","before":2.5}"#, "invalid"),
            (r#"{"cate":"history","group_name":"a","limit":-1}"#, "invalid"),
            (r#"{"cate":"history","group_name":"a","limit":1.5}"#, "invalid"),
            (r#"{"cate":"rooms","client_id":7}"#, "invalid"),
            (r#"{"cate":"ping"}"#, "ping"),
            (r#"{"cate":"notifications","unseen":true}"#, "notifications"),
            (r#"{"cate":"notifications","unseen":"yes"}"#, "invalid"),
            (r#"{"cate":"seen","up_to":3}"#, "seen"),
            (r#"{"cate":"seen","ids":["x"]}"#, "invalid"),
            (r#"{"cate":"seen"}"#, "invalid"),
            (r#"{"cate":"typing","group_name":"a"}"#, "typing"),
            (r#"{"cate":"presence"}"#, "invalid"),
            (r#"{"cate":"auth","token":5}"#, "invalid"),
            (r#"{"cate":"resume","rooms":{"a":5,"b":{"seq":0}},"notifications":{"seq":1,"id":null}}"#, "resume"),
            (r#"{"cate":"resume","rooms":{"a":-1}}"#, "invalid"),
            (r#"{"cate":"resume","rooms":{"a":{"seq":1,"id":"x"}}}"#, "invalid"),
        ] {
            assert_eq!(code(text), answer, "{text}");
        }
    }

    #[test]
    fn every_error_repeats_the_client_id_that_can_be_found() {
        for text in [
            r#"{"cate":"chat","client_id":"7"}"#,
            r#"{"client_id":"7"}"#,
            r#"{"cate":"nope","client_id":"7"}"#,
            r#"{"cate":"history","group_name":"a","before":-1,"client_id":"7"}"#,
            r#"{"cate":"chat","client_id":"7","message":"cut o"#,
            r#"{"cate":"chat","client_id":"7",}"#,
        ] {
            assert_eq!(ClientFrame::parse(text).unwrap_err().client_id.as_deref(), Some("7"), "{text}");
        }
        let long = format!(r#"{{"client_id":"{}","#, "x".repeat(65));
        for text in [r#"{"cate":"chat","client_id":7}"#, "nonsense", &long] {
            assert_eq!(ClientFrame::parse(text).unwrap_err().client_id, None, "{text}");
        }
    }

    #[test]
    fn a_text_that_was_cut_in_an_emoji_is_a_message() {
        for (sent, read) in [(r"\ud83d", "\u{fffd}"), (r"a\ude00b", "a\u{fffd}b"), (r"\ud83d\ude00", "\u{1f600}")] {
            let asked =
                ClientFrame::parse(&format!(r#"{{"cate":"chat","group_name":"a","message":"{sent}"}}"#)).unwrap();
            let content = Content { message: read.into(), data: None };
            assert_eq!(asked.frame, ClientFrame::Chat { group_name: "a".into(), content });
        }
    }

    #[test]
    fn numbers_are_whole_however_they_are_written() {
        let history =
            |fields: &str| match ClientFrame::parse(&format!(r#"{{"cate":"history","group_name":"a",{fields}}}"#)) {
                Ok(Asked { frame: ClientFrame::History { range, limit, .. }, .. }) => (range, limit),
                other => panic!("{fields}: {other:?}"),
            };
        assert_eq!(history(r#""before":2.0,"limit":3.0"#), (Range::Before(2), 3));
        assert_eq!(history(r#""before":9,"after":2"#), (Range::Between(2, 9), 50));
        for limit in ["101", "1000000", "18446744073709551616", "1e300"] {
            assert_eq!(history(&format!(r#""limit":{limit}"#)), (Range::Latest, 100), "{limit}");
        }
        let seen = ClientFrame::parse(r#"{"cate":"seen","up_to":3.0}"#).unwrap();
        assert_eq!(seen.frame, ClientFrame::Seen(Seen::UpTo(3)));
        let resume = ClientFrame::parse(r#"{"cate":"resume","rooms":{"a":5.0},"notifications":{"seq":1.0}}"#).unwrap();
        let (rooms, notifications) =
            (vec![("a".into(), ClientPosition { seq: 5, id: None })], Some(ClientPosition { seq: 1, id: None }));
        assert_eq!(resume.frame, ClientFrame::Resume { rooms, notifications });
    }

    #[test]
    fn a_ping_is_told_from_what_only_looks_like_one() {
        for (text, is_ping) in [
            (r#"{"cate":"ping"}"#, true),
            (r#"{"type":"ping","client_id":"1"}"#, true),
            (r#"{"cate":"chat","group_name":"a","message":"ping"}"#, false),
            ("ping", false),
        ] {
            assert_eq!(ClientFrame::is_ping(text), is_ping, "{text}");
        }
        assert!(!ClientFrame::is_ping(&format!(r#"{{"cate":"ping","x":"{}"}}"#, "x".repeat(300))));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = ClientFrame::parse(&text);
        }
    }
}
