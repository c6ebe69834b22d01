//! The columns of a message, alike for chat and notifications. Here they stand once: every way of appending and of
//! reading goes by these lists.

use sea_orm::{DbErr, FromQueryResult, QueryResult};
use uuid::Uuid;

use crate::{
    Append, Message,
    kind::Tables,
    values::{date, unsigned},
};

/// A column that an [`Append`] fills. All of them are texts, with or without a value.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) of: fn(&Append) -> Option<&str>,
    /// Whether two messages that differ in it are two messages to whoever sends one again.
    is_content: bool,
}

/// What is stored beside the stream, the `seq`, the id and the date.
pub(crate) const COLUMNS: [Column; 5] = [
    Column { name: "from_user", of: |append| Some(&append.from_user), is_content: true },
    Column { name: "message", of: |append| Some(&append.message), is_content: true },
    Column { name: "data", of: |append| append.data.as_deref(), is_content: true },
    Column { name: "source", of: |append| append.origin.as_ref().map(|(source, _)| &**source), is_content: false },
    Column { name: "event_id", of: |append| append.origin.as_ref().map(|(_, id)| &**id), is_content: false },
];

/// The names of [`COLUMNS`], each made into a text, with commas between them.
pub(crate) fn list(each: impl Fn(&str) -> String) -> String {
    COLUMNS.map(|column| each(column.name)).join(", ")
}

/// What a repeat must have in common with the first. A column that came after the first release counts where it has a
/// value: what was stored before it is the same message still.
pub(crate) fn content(append: &Append) -> impl Iterator<Item = &str> {
    const FIRST: usize = 2;
    COLUMNS.iter().enumerate().filter(|(_, column)| column.is_content).flat_map(move |(at, column)| {
        let value = (column.of)(append);
        let name = (at >= FIRST && value.is_some()).then_some(column.name);
        name.into_iter().chain(value)
    })
}

/// Bytes of text in a message.
pub(crate) fn bytes(append: &Append) -> usize {
    COLUMNS.iter().filter_map(|column| (column.of)(append)).map(str::len).sum()
}

/// What is read of a message. Nothing of it is there where a stream is read together with its head, and has no message.
#[derive(FromQueryResult)]
pub(crate) struct Row {
    id: Option<Uuid>,
    seq: Option<i64>,
    date: Option<i64>,
    from_user: Option<String>,
    message: Option<String>,
    data: Option<String>,
    source: Option<String>,
    event_id: Option<String>,
    seen_at: Option<i64>,
    redacted_at: Option<i64>,
}

impl Row {
    /// The columns to read, with the table they are of; what a kind of stream has not is null.
    pub(crate) fn columns(tables: &Tables) -> impl Iterator<Item = &'static str> {
        ["id", "seq", "date"]
            .into_iter()
            .chain(COLUMNS.iter().map(|column| column.name))
            .chain(tables.seen_at)
            .chain(tables.redacted_at)
    }

    pub(crate) fn bytes(&self) -> usize {
        [&self.message, &self.data].into_iter().flatten().map(String::len).sum()
    }

    /// The message, if there is one.
    pub(crate) fn message(self, epoch: i64) -> Option<Message> {
        Some(Message {
            id: self.id?,
            seq: unsigned(self.seq?),
            epoch,
            from_user: self.from_user?,
            message: self.message?,
            data: self.data,
            date: date(self.date?),
            source: self.source,
            event_id: self.event_id,
            seen: self.seen_at.is_some(),
            redacted: self.redacted_at.is_some(),
        })
    }
}

/// A message beside what is read of its stream.
pub(crate) struct Beside<T>(pub(crate) T, pub(crate) Row);

impl<T: FromQueryResult> FromQueryResult for Beside<T> {
    fn from_query_result(result: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self(T::from_query_result(result, prefix)?, Row::from_query_result(result, prefix)?))
    }
}
