//! A few messages in one statement of SQLite.
//!
//! A call to SQLite's driver is two changes of thread, and each result that it sends back may be one more:
//! they cost more than what SQLite does in between. So the writing connection has a view of its own, and
//! what is inserted into it goes through triggers that do the steps of a batch: head moved, row inserted,
//! key claimed. A statement is a transaction. When a head is missing or a key taken, the triggers undo all
//! of it, and the way of the batch finds out why.

use std::sync::LazyLock;

use rusqlite::{
    Connection,
    types::{ToSqlOutput, ValueRef},
};
use sea_orm::sqlx::{self, Arguments as _, FromRow, error::BoxDynError, sqlite::SqliteArguments};
use uuid::Uuid;

use crate::{
    Append, Stream,
    append::together::{MOST, New, Place},
    db::Db,
    error::{Fault, constraint_failed, query_error},
};

const ROOM: i64 = 0;
const INBOX: i64 = 1;

/// What the view takes, in the order in which it is bound.
const COLUMNS: [&str; 10] =
    ["kind", "stream", "id", "from_user", "message", "date", "source", "event_id", "key_hash", "content_hash"];

/// Makes the view and its triggers; for each connection that writes. They are there for this connection only.
pub(crate) static SETUP: LazyLock<String> = LazyLock::new(|| {
    let columns = COLUMNS.join(", ");
    let nulls = COLUMNS.map(|_| "NULL").join(", ");
    let room = trigger("room", ROOM, "gateway_rooms", "name", "gateway_messages", "room_id");
    let inbox = trigger("inbox", INBOX, "gateway_inboxes", "user_name", "gateway_notifications", "inbox_id");
    format!("CREATE TEMP VIEW gateway_append ({columns}) AS SELECT {nulls} WHERE FALSE; {room}; {inbox}")
});

fn trigger(kind: &str, number: i64, heads: &str, name: &str, rows: &str, stream: &str) -> String {
    format!(
        "CREATE TEMP TRIGGER gateway_append_{kind} INSTEAD OF INSERT ON gateway_append WHEN NEW.kind = {number} BEGIN \
         UPDATE {heads} SET last_seq = last_seq + 1, last_id = NEW.id WHERE {name} = NEW.stream; \
         SELECT RAISE(ABORT, 'no such {kind}') WHERE changes() = 0; \
         INSERT INTO {rows} ({stream}, seq, id, from_user, message, date, source, event_id) \
         SELECT id, last_seq, NEW.id, NEW.from_user, NEW.message, NEW.date, NEW.source, NEW.event_id \
         FROM {heads} WHERE {name} = NEW.stream; \
         INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
         SELECT NEW.key_hash, NEW.content_hash, NEW.id, last_seq, epoch, NEW.date, NEW.date \
         FROM {heads} WHERE {name} = NEW.stream AND NEW.key_hash IS NOT NULL; \
         END"
    )
}

/// The statements for 1, 2, 4, … [`MOST`] messages: few texts, as the connection keeps each prepared.
static STATEMENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let row = format!("({})", COLUMNS.map(|_| "?").join(", "));
    let sizes = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|size| *size <= MOST);
    sizes
        .map(|size| {
            // Read for each row when its trigger has run, before the next row's does.
            format!(
                "INSERT INTO gateway_append ({}) VALUES {} RETURNING id, \
                 CASE kind WHEN {ROOM} THEN (SELECT last_seq FROM gateway_rooms WHERE name = stream) \
                 ELSE (SELECT last_seq FROM gateway_inboxes WHERE user_name = stream) END AS seq, \
                 CASE kind WHEN {ROOM} THEN (SELECT epoch FROM gateway_rooms WHERE name = stream) \
                 ELSE (SELECT epoch FROM gateway_inboxes WHERE user_name = stream) END AS epoch, \
                 (SELECT display_name FROM gateway_rooms WHERE kind = {ROOM} AND name = stream) AS display_name",
                COLUMNS.join(", "),
                vec![row.as_str(); size].join(", "),
            )
        })
        .collect()
});

/// Where a row went. Rows that only fill up a statement have nothing.
type Row = (Option<Uuid>, Option<i64>, Option<i64>, Option<String>);

/// Stores all of them, [`MOST`] at most, or nothing.
pub(super) async fn insert(db: &Db, new: &[New<'_>], date: i64) -> Result<Option<Vec<Place>>, Fault> {
    // What is not bound is NULL: such a row is for no trigger.
    let sql = &STATEMENTS[new.len().next_power_of_two().ilog2() as usize];
    let bound = new.iter().flat_map(|new| values(new, date));
    if let Some(places) = db.write_memory(|connection| insert_here(connection, sql, bound.clone())).await? {
        return Ok(Some(places));
    }
    let mut arguments = SqliteArguments::default();
    arguments.reserve(new.len() * COLUMNS.len(), 0);
    for value in bound {
        bind(&mut arguments, value).map_err(|error| query_error(sqlx::Error::Encode(error)))?;
    }
    let rows = match db.write_sqlite(sql, arguments).await {
        Ok(rows) => rows,
        Err(error) if constraint_failed(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let rows = rows.iter().map(Row::from_row).collect::<Result<Vec<_>, _>>().map_err(query_error)?;
    Ok(Some(rows.into_iter().filter_map(place).collect()))
}

/// As [`insert`], without the driver.
fn insert_here<'a>(
    connection: &Connection,
    sql: &str,
    values: impl Iterator<Item = ValueRef<'a>>,
) -> rusqlite::Result<Vec<Place>> {
    let mut statement = connection.prepare_cached(sql)?;
    for (at, value) in values.enumerate() {
        statement.raw_bind_parameter(at + 1, ToSqlOutput::Borrowed(value))?;
    }
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let rows = statement.raw_query().mapped(row).collect::<Result<Vec<Row>, _>>()?;
    Ok(rows.into_iter().filter_map(place).collect())
}

fn place((id, seq, epoch, display_name): Row) -> Option<Place> {
    Some((id?, seq?, epoch?, display_name))
}

/// In the order of [`COLUMNS`].
fn values<'a>(new: &'a New<'_>, date: i64) -> [ValueRef<'a>; COLUMNS.len()] {
    let New { id, identity, append: Append { stream, from_user, message, .. } } = new;
    let text = |text: &'a str| ValueRef::Text(text.as_bytes());
    let kind = match stream {
        Stream::Room(_) => ROOM,
        Stream::Inbox(_) => INBOX,
    };
    let (source, event_id) = new.origin();
    [
        ValueRef::Integer(kind),
        text(stream.name()),
        ValueRef::Blob(id.as_bytes()),
        text(from_user),
        text(message),
        ValueRef::Integer(date),
        source.map_or(ValueRef::Null, text),
        event_id.map_or(ValueRef::Null, text),
        identity.map_or(ValueRef::Null, |identity| ValueRef::Blob(&identity.key)),
        identity.map_or(ValueRef::Null, |identity| ValueRef::Blob(&identity.content)),
    ]
}

fn bind(arguments: &mut SqliteArguments, value: ValueRef<'_>) -> Result<(), BoxDynError> {
    match value {
        ValueRef::Null => arguments.add(None::<i64>),
        ValueRef::Integer(integer) => arguments.add(integer),
        ValueRef::Real(real) => arguments.add(real),
        ValueRef::Text(_) => arguments.add(value.as_str()?),
        ValueRef::Blob(blob) => arguments.add(blob),
    }
}
