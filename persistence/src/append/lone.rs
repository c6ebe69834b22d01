//! One message alone, in one statement of PostgreSQL: what a quiet node stores most of the time.
//!
//! The steps are those of a batch: head locked, key claimed, numbered, inserted. They are written so
//! that each takes what the one before it has found; when the head or the key stands in the way,
//! nothing is stored, and the way of the batch finds out why.

use sea_orm::{ConnectionTrait, FromQueryResult, Statement, Value};
use uuid::Uuid;

use crate::{
    Append, Appended, Store, Stream,
    error::Fault,
    inboxes::InboxRow,
    receipts::Identity,
    rooms::RoomRow,
    values::{date, now, unsigned},
};

/// Where a stream's head and its rows are.
struct Tables {
    heads: &'static str,
    name: &'static str,
    head_columns: &'static str,
    rows: &'static str,
    stream: &'static str,
}

const ROOMS: Tables = Tables {
    heads: "gateway_rooms",
    name: "name",
    head_columns: "id, name, display_name, epoch, last_seq, last_id, created_at",
    rows: "gateway_messages",
    stream: "room_id",
};

const INBOXES: Tables = Tables {
    heads: "gateway_inboxes",
    name: "user_name",
    head_columns: "id, user_name, epoch, last_seq, last_id, created_at",
    rows: "gateway_notifications",
    stream: "inbox_id",
};

/// What is put in, beside names of tables.
struct New<'a> {
    append: &'a Append,
    identity: Option<&'a Identity>,
    id: Uuid,
    date: i64,
}

impl Store {
    /// Stores one message, or nothing where that takes more than one call: no such stream, a key that
    /// was used before.
    pub(super) async fn append_lone(
        &self,
        append: &Append,
        identity: Option<&Identity>,
    ) -> Result<Option<Appended>, Fault> {
        let tables = match &append.stream {
            Stream::Room(_) => &ROOMS,
            Stream::Inbox(_) => &INBOXES,
        };
        let new = New { append, identity, id: Uuid::now_v7(), date: now() };
        let connection = self.db.writes();
        let (sql, values) = new.statement(tables);
        let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
        let row = connection.query_one_raw(statement).await.map_err(Fault::committing)?;
        let Some(row) = row else { return Ok(None) };
        let (epoch, seq, display_name) = match &append.stream {
            Stream::Room(_) => {
                let room = RoomRow::from_query_result(&row, "")?;
                (room.epoch, room.last_seq, Some(room.display_name))
            }
            Stream::Inbox(_) => {
                let inbox = InboxRow::from_query_result(&row, "")?;
                (inbox.epoch, inbox.last_seq, None)
            }
        };
        let date = date(new.date);
        Ok(Some(Appended { id: new.id, seq: unsigned(seq), epoch, date, display_name, repeated: false }))
    }
}

impl New<'_> {
    fn statement(&self, tables: &Tables) -> (String, Vec<Value>) {
        let Tables { heads, name, head_columns, rows, stream } = tables;
        let mut values = vec![self.name(), self.id.into()];
        values.extend(self.row());
        let (mut claim, mut claimed) = ("", "");
        if let Some(identity) = self.identity {
            // It waits for whoever is just claiming the same key.
            claim = ", claim AS (\
                INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
                SELECT $8, $9, $10, last_seq + 1, epoch, $11, $12 FROM head \
                ON CONFLICT (key_hash) DO NOTHING RETURNING id)";
            claimed = ", claim";
            values.extend(self.receipt(identity));
        }
        let moved: String = head_columns.split(", ").map(|column| format!("h.{column}, ")).collect();
        let moved = moved.trim_end_matches(", ");
        let sql = format!(
            "WITH head AS (SELECT id, epoch, last_seq FROM {heads} WHERE {name} = $1 FOR UPDATE){claim}, \
             moved AS (UPDATE {heads} AS h SET last_seq = head.last_seq + 1, last_id = $2 FROM head{claimed} \
             WHERE h.id = head.id RETURNING {moved}), \
             stored AS (INSERT INTO {rows} ({stream}, seq, id, from_user, message, date, source, event_id) \
             SELECT id, last_seq, last_id, $3, $4, $5, $6, $7 FROM moved) \
             SELECT {head_columns} FROM moved"
        );
        (sql, values)
    }

    fn name(&self) -> Value {
        self.append.stream.name().into()
    }

    /// Sender, text, date and origin.
    fn row(&self) -> [Value; 5] {
        let Append { from_user, message, origin, .. } = self.append;
        let (source, event_id) = origin.as_ref().map_or((None, None), |(source, id)| (Some(&**source), Some(&**id)));
        [(&**from_user).into(), (&**message).into(), self.date.into(), source.into(), event_id.into()]
    }

    /// Hashes, id and dates of the receipt; its position comes from the head.
    fn receipt(&self, identity: &Identity) -> [Value; 5] {
        [
            identity.key.to_vec().into(),
            identity.content.to_vec().into(),
            self.id.into(),
            self.date.into(),
            self.date.into(),
        ]
    }
}
