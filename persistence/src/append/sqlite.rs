//! A few messages in one statement of SQLite.
//!
//! A call to SQLite's driver is two changes of thread, and each result that it sends back may be one more:
//! they cost more than what SQLite does in between. So the writing connection has a view of its own (`append_view.rs`),
//! and what is inserted into it goes through triggers that do the steps of a batch: head moved, row inserted,
//! key claimed. A statement is a transaction. When a head is missing or a key taken, the triggers undo all
//! of it, and the way of the batch finds out why.
//!
//! Where this store wrote to a stream last, it knows what the statement would give back (`known.rs`), says so, and
//! has nothing read.

use std::sync::LazyLock;

use sea_orm::sqlx::{self, Arguments as _, FromRow, error::BoxDynError, sqlite::SqliteArguments};
use uuid::Uuid;

use crate::{
    append::together::{MOST, New, Place},
    append_view::{ALL_VALUES, EXPECTED, OWN, VALUES, number},
    clock,
    db::Db,
    error::{Fault, constraint_failed, query_error, trigger_refused},
    kind::Kind,
    known::Known,
    row,
};

/// The statements for 1, 2, 4, … [`MOST`] messages: few texts, as the connection keeps each prepared.
static STATEMENTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let room = number(Kind::Room);
    // Read for each row when its trigger has run, before the next row's does.
    let returning = format!(
        " RETURNING id, CASE kind WHEN {room} THEN (SELECT last_seq FROM gateway_rooms WHERE name = stream) \
         ELSE (SELECT last_seq FROM gateway_inboxes WHERE user_name = stream) END AS seq, \
         CASE kind WHEN {room} THEN (SELECT epoch FROM gateway_rooms WHERE name = stream) \
         ELSE (SELECT epoch FROM gateway_inboxes WHERE user_name = stream) END AS epoch, \
         (SELECT display_name FROM gateway_rooms WHERE kind = {room} AND name = stream) AS display_name"
    );
    statements("", VALUES, &returning)
});

/// The same for messages whose places are known, if they are right.
static EXPECTING: LazyLock<Vec<String>> = LazyLock::new(|| statements(&format!(", {EXPECTED}"), ALL_VALUES, ""));

fn statements(more: &str, values: usize, returning: &str) -> Vec<String> {
    let (columns, row) = (row::list(str::to_owned), format!("({})", vec!["?"; values].join(", ")));
    let sizes = std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|size| *size <= MOST);
    sizes
        .map(|size| {
            let rows = vec![row.as_str(); size].join(", ");
            format!("INSERT INTO gateway_append ({OWN}, {columns}{more}) VALUES {rows}{returning}")
        })
        .collect()
}

/// The statement for so many messages. What is not bound is NULL: such a row is for no trigger.
fn statement(of: &'static [String], messages: usize) -> &'static str {
    &of[messages.next_power_of_two().ilog2() as usize]
}

/// Where a row went. Rows that only fill up a statement have nothing.
type Answer = (Option<Uuid>, Option<i64>, Option<i64>, Option<String>);

/// Stores all of them, [`MOST`] at most, or nothing.
pub(super) async fn insert(db: &Db, new: &[New<'_>]) -> Result<Option<Vec<Place>>, Fault> {
    let date = clock::of_sqlite();
    if let Some(expected) = expected(db, new) {
        let values = bind(new, date, Some(&expected))?;
        match db.execute_sqlite(statement(&EXPECTING, new.len()), values).await {
            Ok(()) => {
                let places = new.iter().zip(expected);
                let places: Vec<Place> =
                    places.map(|(new, it)| (new.id, it.last_seq, it.epoch, it.display_name, date)).collect();
                note(db, new, &places);
                return Ok(Some(places));
            }
            Err(error) => {
                // Whatever it was, it may not be so any more.
                db.known.forget(new.iter().map(|new| &new.append.stream));
                if !constraint_failed(&error) {
                    return Err(error.into());
                }
                if !trigger_refused(&error) {
                    return Ok(None);
                }
            }
        }
    }
    let rows = match db.write_sqlite(statement(&STATEMENTS, new.len()), bind(new, date, None)?).await {
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
    note(db, new, &places);
    Ok(Some(places))
}

/// The places that these will have if nobody else has written to their streams.
fn expected(db: &Db, new: &[New<'_>]) -> Option<Vec<Known>> {
    let mut expected = db.known.of(new.iter().map(|new| &new.append.stream))?;
    for at in 0..new.len() {
        let before = new[..at].iter().rposition(|other| other.append.stream == new[at].append.stream);
        expected[at].last_seq = expected[before.unwrap_or(at)].last_seq + 1;
    }
    Some(expected)
}

/// Remembers where the streams of these were left.
fn note(db: &Db, new: &[New<'_>], places: &[Place]) {
    for (id, last_seq, epoch, display_name, _) in places {
        if let Some(new) = new.iter().find(|new| new.id == *id) {
            let known = Known { last_seq: *last_seq, epoch: *epoch, display_name: display_name.clone() };
            db.known.note(&new.append.stream, known);
        }
    }
}

fn bind(new: &[New<'_>], date: i64, expected: Option<&[Known]>) -> Result<SqliteArguments, Fault> {
    let mut values = SqliteArguments::default();
    values.reserve(new.len() * ALL_VALUES, 0);
    for (at, new) in new.iter().enumerate() {
        let expected = expected.and_then(|expected| expected.get(at));
        bind_one(&mut values, new, date, expected).map_err(|error| query_error(sqlx::Error::Encode(error)))?;
    }
    Ok(values)
}

fn bind_one(
    values: &mut SqliteArguments,
    new: &New<'_>,
    date: i64,
    expected: Option<&Known>,
) -> Result<(), BoxDynError> {
    let New { id, identity, append } = new;
    values.add(number(append.stream.kind()))?;
    values.add(append.stream.name())?;
    values.add(id)?;
    values.add(date)?;
    values.add(identity.map(|identity| identity.key.to_vec()))?;
    values.add(identity.map(|identity| identity.content.to_vec()))?;
    row::COLUMNS.iter().try_for_each(|column| values.add((column.of)(append)))?;
    if let Some(Known { last_seq, epoch, display_name }) = expected {
        values.add(last_seq)?;
        values.add(epoch)?;
        values.add(display_name.as_deref())?;
    }
    Ok(())
}
