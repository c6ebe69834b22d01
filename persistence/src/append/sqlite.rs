//! A few messages in one statement of SQLite.
//!
//! A call to SQLite's driver is two changes of thread, and each result that it sends back may be one more:
//! they cost more than what SQLite does in between. So the writing connection has a view of its own, and
//! what is inserted into it goes through triggers that do the steps of a batch: head moved, row inserted,
//! key claimed. A statement is a transaction. When a head is missing or a key taken, the triggers undo all
//! of it, and the way of the batch finds out why.

use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement, Value};
use uuid::Uuid;

use crate::{
    Append, AppendError, Appended, Store, Stream,
    error::{Fault, constraint_failed},
    receipts::Identity,
    values::{date, now, unsigned},
};

/// Messages of one statement, at most. With more, what the batch's statements cost apart is little.
const MOST: usize = 32;

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
#[derive(FromQueryResult)]
struct Place {
    id: Option<Uuid>,
    seq: Option<i64>,
    epoch: Option<i64>,
    display_name: Option<String>,
}

impl Store {
    /// Stores what is not refused of a few messages, or nothing where that takes more than one statement: too
    /// many, no such stream, a key that was used before.
    pub(super) async fn append_together(
        &self,
        batch: &[Append],
        checked: &[Result<Option<Identity>, AppendError>],
        all_or_nothing: bool,
    ) -> Result<Option<Vec<Result<Appended, AppendError>>>, Fault> {
        let good = checked.iter().filter(|check| check.is_ok()).count();
        if good == 0 || good > MOST || (all_or_nothing && good < batch.len()) {
            return Ok(None);
        }
        let (now, mut ids) = (now(), Vec::with_capacity(good));
        let mut values = Vec::with_capacity(good * COLUMNS.len());
        for (append, identity) in
            batch.iter().zip(checked).filter_map(|(append, check)| Some((append, check.as_ref().ok()?)))
        {
            let id = Uuid::now_v7();
            values.extend(row(append, identity.as_ref(), id, now));
            ids.push(id);
        }
        let connection = self.db.writes();
        // What is not bound is NULL: such a row is for no trigger.
        let sql = &STATEMENTS[good.next_power_of_two().ilog2() as usize];
        let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
        let rows = match connection.query_all_raw(statement).await {
            Ok(rows) => rows,
            Err(error) if constraint_failed(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut places: Vec<_> = rows.iter().map(|row| Place::from_query_result(row, "")).collect::<Result<_, _>>()?;
        let mut ids = ids.into_iter();
        let answers = checked.iter().map(|check| match check {
            Ok(_) => appended(ids.next(), &mut places, now).map(Ok),
            Err(refused) => Ok(Err(refused.clone())),
        });
        Ok(Some(answers.collect::<Result<_, DbErr>>()?))
    }
}

/// SQLite promises no order of the rows.
fn appended(id: Option<Uuid>, places: &mut [Place], now: i64) -> Result<Appended, DbErr> {
    let Some((id, place)) = id.and_then(|id| Some((id, places.iter_mut().find(|place| place.id == Some(id))?))) else {
        return Err(DbErr::RecordNotFound("a message that was just stored".to_owned()));
    };
    let Place { seq, epoch, display_name, .. } = place;
    Ok(Appended {
        id,
        seq: seq.map_or(0, unsigned),
        epoch: epoch.unwrap_or(0),
        date: date(now),
        display_name: display_name.take(),
        repeated: false,
    })
}

fn row(append: &Append, identity: Option<&Identity>, id: Uuid, date: i64) -> [Value; 10] {
    let Append { stream, from_user, message, origin, .. } = append;
    let kind = match stream {
        Stream::Room(_) => ROOM,
        Stream::Inbox(_) => INBOX,
    };
    let (source, event_id) = origin.as_ref().map_or((None, None), |(source, id)| (Some(&**source), Some(&**id)));
    let (key, content) = identity.map(|identity| (identity.key.to_vec(), identity.content.to_vec())).unzip();
    [
        kind.into(),
        stream.name().into(),
        id.into(),
        (&**from_user).into(),
        (&**message).into(),
        date.into(),
        source.into(),
        event_id.into(),
        key.into(),
        content.into(),
    ]
}
