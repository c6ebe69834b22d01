//! A few messages in one statement of SQLite.
//!
//! A call to SQLite's driver is two changes of thread, and each result that it sends back may be one more:
//! they cost more than what SQLite does in between. So the writing connection has a view of its own, and
//! what is inserted into it goes through triggers that do the steps of a batch: head moved, row inserted,
//! key claimed. A statement is a transaction. When a head is missing or a key taken, the triggers undo all
//! of it, and the way of the batch finds out why.

use std::sync::LazyLock;

use sea_orm::sqlx::{self, Arguments as _, FromRow, error::BoxDynError, sqlite::SqliteArguments};
use uuid::Uuid;

use crate::{
    append::together::{MOST, New, Place},
    clock,
    db::Db,
    error::{Fault, constraint_failed, query_error},
    kind::{Kind, Tables},
    row,
};

/// What the view takes before the columns of a message, in the order in which it is bound.
const OWN: &str = "kind, stream, id, date, key_hash, content_hash";
/// How many values a message is.
const VALUES: usize = 6 + row::COLUMNS.len();

/// How a kind of stream stands in the view.
fn number(kind: Kind) -> i32 {
    match kind {
        Kind::Room => 0,
        Kind::Inbox => 1,
    }
}

/// Makes the view and its triggers; for each connection that writes. They are there for this connection only.
pub(crate) static SETUP: LazyLock<String> = LazyLock::new(|| {
    let columns = row::list(str::to_owned);
    let nulls = ["NULL"; VALUES].join(", ");
    let [room, inbox] = Kind::ALL.map(trigger);
    format!("CREATE TEMP VIEW gateway_append ({OWN}, {columns}) AS SELECT {nulls} WHERE FALSE; {room}; {inbox}")
});

fn trigger(kind: Kind) -> String {
    let (&Tables { word, heads, name, rows, stream, .. }, number) = (kind.tables(), number(kind));
    let (columns, new) = (row::list(str::to_owned), row::list(|column| format!("NEW.{column}")));
    format!(
        "CREATE TEMP TRIGGER gateway_append_{word} INSTEAD OF INSERT ON gateway_append WHEN NEW.kind = {number} BEGIN \
         UPDATE {heads} SET last_seq = last_seq + 1, last_id = NEW.id WHERE {name} = NEW.stream; \
         SELECT RAISE(ABORT, 'no such {word}') WHERE changes() = 0; \
         INSERT INTO {rows} ({stream}, seq, id, date, {columns}) \
         SELECT id, last_seq, NEW.id, NEW.date, {new} FROM {heads} WHERE {name} = NEW.stream; \
         INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
         SELECT NEW.key_hash, NEW.content_hash, NEW.id, last_seq, epoch, NEW.date, NEW.date \
         FROM {heads} WHERE {name} = NEW.stream AND NEW.key_hash IS NOT NULL; \
         END"
    )
}

/// The statements for 1, 2, 4, … [`MOST`] messages: few texts, as the connection keeps each prepared.
static STATEMENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let row = format!("({})", ["?"; VALUES].join(", "));
    let room = number(Kind::Room);
    let sizes = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|size| *size <= MOST);
    sizes
        .map(|size| {
            // Read for each row when its trigger has run, before the next row's does.
            format!(
                "INSERT INTO gateway_append ({OWN}, {}) VALUES {} RETURNING id, \
                 CASE kind WHEN {room} THEN (SELECT last_seq FROM gateway_rooms WHERE name = stream) \
                 ELSE (SELECT last_seq FROM gateway_inboxes WHERE user_name = stream) END AS seq, \
                 CASE kind WHEN {room} THEN (SELECT epoch FROM gateway_rooms WHERE name = stream) \
                 ELSE (SELECT epoch FROM gateway_inboxes WHERE user_name = stream) END AS epoch, \
                 (SELECT display_name FROM gateway_rooms WHERE kind = {room} AND name = stream) AS display_name",
                row::list(str::to_owned),
                vec![row.as_str(); size].join(", "),
            )
        })
        .collect()
});

/// Where a row went. Rows that only fill up a statement have nothing.
type Answer = (Option<Uuid>, Option<i64>, Option<i64>, Option<String>);

/// Stores all of them, [`MOST`] at most, or nothing.
pub(super) async fn insert(db: &Db, new: &[New<'_>]) -> Result<Option<Vec<Place>>, Fault> {
    let date = clock::of_sqlite();
    let mut values = SqliteArguments::default();
    values.reserve(new.len() * VALUES, 0);
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
        if let (Some(id), Some(seq), Some(epoch), display_name) = Answer::from_row(row).map_err(query_error)? {
            places.push((id, seq, epoch, display_name, date));
        }
    }
    Ok(Some(places))
}

fn bind(values: &mut SqliteArguments, new: &New<'_>, date: i64) -> Result<(), BoxDynError> {
    let New { id, identity, append } = new;
    values.add(number(append.stream.kind()))?;
    values.add(append.stream.name())?;
    values.add(id)?;
    values.add(date)?;
    values.add(identity.map(|identity| identity.key.to_vec()))?;
    values.add(identity.map(|identity| identity.content.to_vec()))?;
    row::COLUMNS.iter().try_for_each(|column| values.add((column.of)(append)))
}
