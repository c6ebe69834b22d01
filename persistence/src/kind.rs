//! The two kinds of streams, as the tables know them: rooms with their chat, inboxes with their notifications. Each has
//! a table of heads, one row a stream, and a table of rows, which are alike (`row.rs`).

use crate::Stream;

/// What numbers messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Room,
    Inbox,
}

/// The tables of a kind.
pub(crate) struct Tables {
    /// As it stands in keys of messages and in errors.
    pub(crate) word: &'static str,
    /// The table of heads, its column of names, and the index on that.
    pub(crate) heads: &'static str,
    pub(crate) name: &'static str,
    pub(crate) name_index: &'static str,
    /// The column of what people call it, if they call it anything.
    pub(crate) display_name: Option<&'static str>,
    /// The table of messages, and its column that names the head.
    pub(crate) rows: &'static str,
    pub(crate) stream: &'static str,
    /// Its column that says when a message was seen, if anybody says so.
    pub(crate) seen_at: Option<&'static str>,
    /// Its column that says when a message was redacted, if any may be.
    pub(crate) redacted_at: Option<&'static str>,
}

static ROOMS: Tables = Tables {
    word: "room",
    heads: "gateway_rooms",
    name: "name",
    name_index: "gateway_rooms_name",
    display_name: Some("display_name"),
    rows: "gateway_messages",
    stream: "room_id",
    seen_at: None,
    redacted_at: Some("redacted_at"),
};

static INBOXES: Tables = Tables {
    word: "inbox",
    heads: "gateway_inboxes",
    name: "user_name",
    name_index: "gateway_inboxes_user",
    display_name: None,
    rows: "gateway_notifications",
    stream: "inbox_id",
    seen_at: Some("seen_at"),
    redacted_at: None,
};

impl Kind {
    /// Both, in the order in which a transaction locks their heads.
    pub(crate) const ALL: [Self; 2] = [Self::Room, Self::Inbox];

    pub(crate) fn tables(self) -> &'static Tables {
        match self {
            Self::Room => &ROOMS,
            Self::Inbox => &INBOXES,
        }
    }

    /// The stream of this name.
    pub(crate) fn stream(self, name: String) -> Stream {
        match self {
            Self::Room => Stream::Room(name),
            Self::Inbox => Stream::Inbox(name),
        }
    }
}

impl Stream {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Room(_) => Kind::Room,
            Self::Inbox(_) => Kind::Inbox,
        }
    }
}
