//! A few messages in one statement of SQLite.
//!
//! A call to SQLite's driver is two changes of thread, and each result that it sends back may be one more:
//! they cost more than what SQLite does in between. So the writing connection has a view of its own, and
//! what is inserted into it goes through triggers that do the steps of a batch: head moved, row inserted,
//! key claimed. A statement is a transaction. When a head is missing or a key taken, the triggers undo all
//! of it, and the way of the batch finds out why.
//!
//! In memory there is no thread to change to (`memory.rs`), and the same steps are taken one by one.

use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use sea_orm::sqlx::{self, Arguments as _, FromRow, error::BoxDynError, sqlite::SqliteArguments};
use uuid::Uuid;

use crate::{
    Append, Stream,
    append::together::{MOST, New, Place},
    clock,
    db::Db,
    error::{Fault, constraint_failed, query_error},
};

const ROOM: i32 = 0;
const INBOX: i32 = 1;

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

fn trigger(kind: &str, number: i32, heads: &str, name: &str, rows: &str, stream: &str) -> String {
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
pub(super) async fn insert(db: &Db, new: &[New<'_>]) -> Result<Option<Vec<Place>>, Fault> {
    if let Some(places) = db.write_memory(|connection| insert_here(connection, new)).await? {
        return Ok(places);
    }
    let date = clock::of_sqlite();
    let mut values = SqliteArguments::default();
    values.reserve(new.len() * COLUMNS.len(), 0);
    for new in new {
        bind(&mut values, new, date).map_err(|error| query_error(sqlx::Error::Encode(error)))?;
    }
    // What is not bound is NULL: such a row is for no trigger.
    let sql = &STATEMENTS[new.len().next_power_of_two().ilog2() as usize];
    let rows = match db.write_sqlite(sql, values).await {
        Ok(rows) => rows,
        Err(error) if constraint_failed(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut places = Vec::with_capacity(new.len());
    for row in &rows {
        if let (Some(id), Some(seq), Some(epoch), display_name) = Row::from_row(row).map_err(query_error)? {
            places.push((id, seq, epoch, display_name, date));
        }
    }
    Ok(Some(places))
}

/// In the order of [`COLUMNS`].
fn bind(values: &mut SqliteArguments, new: &New<'_>, date: i64) -> Result<(), BoxDynError> {
    let New { id, identity, append: Append { stream, from_user, message, .. } } = new;
    values.add(match stream {
        Stream::Room(_) => ROOM,
        Stream::Inbox(_) => INBOX,
    })?;
    values.add(stream.name())?;
    values.add(id)?;
    values.add(&**from_user)?;
    values.add(&**message)?;
    values.add(date)?;
    let (source, event_id) = new.origin();
    values.add(source)?;
    values.add(event_id)?;
    values.add(identity.map(|identity| identity.key.to_vec()))?;
    values.add(identity.map(|identity| identity.content.to_vec()))
}

/// The steps of one kind of stream, for a connection whose calls cost nothing but SQLite's own work: about half of what
/// the view takes, with its triggers and the table that `RETURNING` makes.
struct Steps {
    head: &'static str,
    move_head: &'static str,
    row: &'static str,
}

const ROOM_STEPS: Steps = Steps {
    head: "SELECT id, last_seq + 1, epoch, display_name FROM gateway_rooms WHERE name = ?",
    move_head: "UPDATE gateway_rooms SET last_seq = ?, last_id = ? WHERE id = ?",
    row: "INSERT INTO gateway_messages (room_id, seq, id, from_user, message, date, source, event_id) \
          VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
};

const INBOX_STEPS: Steps = Steps {
    head: "SELECT id, last_seq + 1, epoch, NULL FROM gateway_inboxes WHERE user_name = ?",
    move_head: "UPDATE gateway_inboxes SET last_seq = ?, last_id = ? WHERE id = ?",
    row: "INSERT INTO gateway_notifications (inbox_id, seq, id, from_user, message, date, source, event_id) \
          VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
};

const RECEIPT: &str = "INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)";

/// As [`insert`], without the driver.
fn insert_here(connection: &Connection, new: &[New<'_>]) -> rusqlite::Result<Option<Vec<Place>>> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let date = clock::of_sqlite();
    let places = new.iter().map(|new| place(&transaction, new, date)).collect::<Result<Option<Vec<_>>, _>>()?;
    if places.is_some() {
        transaction.commit()?;
    }
    Ok(places)
}

/// None if there is no such stream.
fn place(connection: &Connection, new: &New<'_>, date: i64) -> rusqlite::Result<Option<Place>> {
    let New { id, identity, append: Append { stream, from_user, message, .. } } = new;
    let steps = match stream {
        Stream::Room(_) => ROOM_STEPS,
        Stream::Inbox(_) => INBOX_STEPS,
    };
    let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let head = connection.prepare_cached(steps.head)?.query_row([stream.name()], columns).optional()?;
    let Some((head, seq, epoch, display_name)): Option<(Uuid, i64, i64, _)> = head else { return Ok(None) };
    connection.prepare_cached(steps.move_head)?.execute(params![seq, id, head])?;
    let (source, event_id) = new.origin();
    connection.prepare_cached(steps.row)?.execute(params![
        head,
        seq,
        id,
        &**from_user,
        &**message,
        date,
        source,
        event_id
    ])?;
    if let Some(identity) = identity {
        let receipt = params![&identity.key[..], &identity.content[..], id, seq, epoch, date];
        connection.prepare_cached(RECEIPT)?.execute(receipt)?;
    }
    Ok(Some((*id, seq, epoch, display_name, date)))
}
