//! The words the store speaks: rooms, inboxes, messages, and what is asked of them.

use std::{collections::HashMap, sync::Arc};

use time::OffsetDateTime;
use uuid::Uuid;

/// Longest name of a room, a user or a sender, in characters.
pub const MAX_NAME_CHARS: usize = 150;
/// Longest display name of a room, in characters.
pub const MAX_DISPLAY_NAME_CHARS: usize = 255;
/// Longest source or event id of a published event, in bytes.
pub const MAX_EVENT_ID_BYTES: usize = 128;
/// Longest text of a stored message, in bytes (1 MiB).
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Longest data of a stored message, in bytes (1 MiB).
pub const MAX_DATA_BYTES: usize = 1024 * 1024;

/// A room and the head of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The room's name, its identity; compared by bytes.
    pub name: String,
    /// What people see; the name until somebody sets another.
    pub display_name: String,
    /// Random, made with the room: a room deleted and made again has another.
    pub epoch: i64,
    /// The `seq` of the newest message, 0 when there is none yet.
    pub last_seq: u64,
    /// The id of the message `last_seq`.
    pub last_id: Option<Uuid>,
}

/// The head of a user's inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Random, made with the inbox.
    pub epoch: i64,
    /// The `seq` of the newest notification, 0 when there is none yet.
    pub last_seq: u64,
    /// The id of the notification `last_seq`.
    pub last_id: Option<Uuid>,
}

/// Where a message goes; each stream is numbered on its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The chat of the room of this name.
    Room(String),
    /// The notifications of the user of this name.
    Inbox(String),
}

impl Stream {
    /// The name of the room or user.
    pub fn name(&self) -> &str {
        match self {
            Self::Room(name) | Self::Inbox(name) => name,
        }
    }
}

/// One message to store. What a thousand recipients have in common is shared by their items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Where it goes.
    pub stream: Stream,
    /// Who sent it, at most [`MAX_NAME_CHARS`].
    pub from_user: Arc<str>,
    /// The text, at most [`MAX_MESSAGE_BYTES`].
    pub message: Arc<str>,
    /// Something of the sender's own beside the text, at most [`MAX_DATA_BYTES`]: JSON, which is not looked at here.
    pub data: Option<Arc<str>>,
    /// What makes a repeat of it recognisable; `None` stores every time.
    pub key: Option<Key>,
    /// For inboxes: make the user known when nobody has heard of them. Ignored for rooms.
    pub create_inbox: bool,
    /// Source and event id, stored beside the message.
    pub origin: Option<(Arc<str>, Arc<str>)>,
}

/// The identity of a message to those who may send it twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A browser's `client_id`: unique per user and kind of stream.
    Client {
        /// The signed-in user.
        user: Arc<str>,
        /// What the client chose.
        client_id: String,
    },
    /// A service's event: source and id are unique per stream.
    Event {
        /// The publishing service.
        source: Arc<str>,
        /// Its id of the event.
        id: Arc<str>,
    },
}

/// Where and when a message was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// UUIDv7.
    pub id: Uuid,
    /// Position in the stream: 1, 2, 3 … without holes.
    pub seq: u64,
    /// Epoch of the stream `seq` belongs to.
    pub epoch: i64,
    /// UTC, microseconds.
    pub date: OffsetDateTime,
    /// The room's display name; `None` for inboxes.
    pub display_name: Option<String>,
    /// Whether this is the answer to an earlier append with the same key.
    pub repeated: bool,
}

/// Why one item of a batch was not stored; its neighbours were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No room of that name.
    #[error("no such room")]
    RoomNotFound,
    /// Nobody has heard of that user, and `create_inbox` was not set.
    #[error("no such user")]
    UserNotFound,
    /// The key was used before for other content.
    #[error("the same key was used before with other content")]
    KeyReused,
    /// A field is too long, empty, or holds a NUL character; the text says which.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Why a batch that is stored as a whole or not at all was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("item {index}: {error}")]
pub struct Refused {
    /// The first item that was refused, counted from 0.
    pub index: usize,
    /// Why.
    #[source]
    pub error: AppendError,
}

/// A stored message: chat of a room, or a notification of an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// UUIDv7.
    pub id: Uuid,
    /// Position in the stream.
    pub seq: u64,
    /// Epoch of the stream.
    pub epoch: i64,
    /// Who sent it.
    pub from_user: String,
    /// The text.
    pub message: String,
    /// What the sender gave beside the text, as it came.
    pub data: Option<String>,
    /// When it was stored: UTC, microseconds.
    pub date: OffsetDateTime,
    /// The publishing service, for events.
    pub source: Option<String>,
    /// The service's id of the event.
    pub event_id: Option<String>,
    /// Whether the user has marked it seen; never of chat.
    pub seen: bool,
    /// Whether its text and data were taken away; never of notifications.
    pub redacted: bool,
}

/// A message of another system to store as it was there. Its key is its source and id, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Where it goes, by whom and what; a room that is missing is made, and a user made known.
    pub append: Append,
    /// When it was sent: UTC, microseconds.
    pub date: OffsetDateTime,
    /// Whether the user has seen it; ignored for rooms.
    pub seen: bool,
    /// Whether its text and data were taken away there; ignored for inboxes.
    pub redacted: bool,
}

/// What became of a message to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It was stored, and has this place.
    Stored(u64),
    /// It was there already.
    Known,
    /// It was there already, with other content, and stays as it was.
    Changed,
}

/// Messages of a stream, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Those of each source.
    pub of: HashMap<String, u64>,
    /// Those without one: what people have said.
    pub without: u64,
}

/// A part of a stream, from which the message on was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// The stream's head.
    pub head: Head,
    /// What people call the stream; `None` for an inbox.
    pub display_name: Option<String>,
    /// What comes after the place and was not imported, ascending.
    pub messages: Vec<Message>,
    /// Whether something was left out before, between or behind them because it was imported.
    pub imported: bool,
    /// Whether the bytes asked for left out any.
    pub cut: bool,
}

/// What to read of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Which part.
    pub range: Range,
    /// So many messages, at most.
    pub limit: u64,
    /// Not many more than so many bytes of text and data; two messages at least, if there are.
    pub bytes: usize,
    /// Only what the user has not seen.
    pub unseen_only: bool,
}

impl Page {
    /// Messages of any length, seen or not.
    pub fn new(range: Range, limit: u64) -> Self {
        Self { range, limit, bytes: usize::MAX, unseen_only: false }
    }

    /// The same with not many more than so many bytes; two messages at least, if there are.
    pub fn within(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

/// Which part of a stream to read. Results ascend by `seq` in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// The newest.
    Latest,
    /// The newest of those with a smaller `seq`.
    Before(u64),
    /// The oldest of those with a larger `seq`.
    After(u64),
    /// The oldest of those with a larger `seq` than the first and a smaller one than the second.
    Between(u64, u64),
}

impl Range {
    /// The range that optional bounds ask for.
    pub fn of(after: Option<u64>, before: Option<u64>) -> Self {
        match (after, before) {
            (None, None) => Self::Latest,
            (None, Some(end)) => Self::Before(end),
            (Some(start), None) => Self::After(start),
            (Some(start), Some(end)) => Self::Between(start, end),
        }
    }

    /// Whether it is read from its oldest row on.
    pub fn is_forward(self) -> bool {
        matches!(self, Self::After(_) | Self::Between(..))
    }
}

/// Which notifications have been seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// These.
    Ids(Vec<Uuid>),
    /// All up to and with this `seq`.
    UpTo(u64),
}

/// A user to put into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Name of the room.
    pub room: String,
    /// Name of the user.
    pub user: String,
    /// Make the room when there is none of that name.
    pub create_room: bool,
}

/// A change of a room, to be made once and in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Name of the room.
    pub room: String,
    /// How the room changes.
    pub kind: ChangeKind,
    /// When it was said.
    pub time: ChangeTime,
    /// What makes a repeat of it recognisable; `None` does it every time.
    pub key: Option<Key>,
}

/// How a room changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// These users are members.
    Joins(Vec<String>),
    /// These users are none.
    Leaves(Vec<String>),
    /// There is such a room, and this is its display name, if any is given.
    Is(Option<String>),
}

/// When a change was said. Of two changes of one member, or of one room's name, the later one counts, whichever is
/// stored first. Both are milliseconds since 1970 by the clock of the stream of events, as in the ids of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeTime {
    /// With an entry of the stream: the two numbers of its id.
    At(u64, u64),
    /// Just now: it is later than all that is known.
    Now(u64),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The room.
    pub room: Room,
    /// Whether the same key was used before; then at most the order has changed.
    pub repeated: bool,
    /// Members for whom this is what counts now.
    pub counts: Vec<String>,
    /// How many of them became members, or were members until now.
    pub moved: u64,
    /// When it was stored, by the database's clock.
    pub date: OffsetDateTime,
}

/// What to delete, oldest first; `None` keeps. The newest message of a stream always stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Delete chat messages older than this.
    pub messages_before: Option<OffsetDateTime>,
    /// Keep so many of the newest messages of each room.
    pub messages_per_room: Option<u64>,
    /// Delete notifications older than this.
    pub notifications_before: Option<OffsetDateTime>,
    /// Delete the receipts of keys older than this, and changes of members; at least 7 days are promised.
    pub receipts_before: Option<OffsetDateTime>,
}

/// How many rows were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Chat messages.
    pub messages: u64,
    /// Notifications.
    pub notifications: u64,
    /// Receipts of keys, and changes of members.
    pub receipts: u64,
}

impl Deleted {
    /// All rows together.
    pub fn total(&self) -> u64 {
        self.messages + self.notifications + self.receipts
    }
}

impl std::ops::AddAssign for Deleted {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.notifications += other.notifications;
        self.receipts += other.receipts;
    }
}

/// The database behind a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Embedded SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}
