//! A few messages in one statement of PostgreSQL.

use std::sync::LazyLock;

use sea_orm::sqlx::{self, Arguments as _, FromRow, error::BoxDynError, postgres::PgArguments};

use crate::{
    append::together::{New, Place},
    clock,
    db::Db,
    error::{Fault, key_taken, query_error},
    kind::{Kind, Tables},
    row,
};

static ROOMS: LazyLock<String> = LazyLock::new(|| statement(Kind::Room));
static INBOXES: LazyLock<String> = LazyLock::new(|| statement(Kind::Inbox));

/// One text for any number: what is new comes in arrays. Nothing is `placed` unless everything can be; its
/// date is of then, when the heads are locked.
fn statement(kind: Kind) -> String {
    let &Tables { heads, name, rows, stream, .. } = kind.tables();
    let display_name = kind.tables().display_name.unwrap_or("NULL::text");
    let columns = row::list(str::to_owned);
    let arrays = (0..row::COLUMNS.len()).map(|at| format!(", ${}::text[]", at + 5)).collect::<String>();
    format!(
        "WITH new AS (\
         SELECT * FROM unnest($1::text[], $2::uuid[], $3::bytea[], $4::bytea[]{arrays}) \
         WITH ORDINALITY AS new (stream, id, key_hash, content_hash, {columns}, n)), \
         head AS (\
         SELECT id, {name} AS stream, {display_name} AS display_name, epoch, last_seq FROM {heads} \
         WHERE {name} = ANY($1) ORDER BY {name} FOR UPDATE), \
         numbered AS (\
         SELECT new.*, head.id AS head, head.epoch, head.display_name, \
         head.last_seq + row_number() OVER (PARTITION BY head.id ORDER BY n) AS seq \
         FROM new JOIN head ON head.stream = new.stream \
         WHERE NOT EXISTS (SELECT 1 FROM gateway_receipts AS known WHERE known.key_hash = new.key_hash)), \
         placed AS (SELECT *, {now} AS date FROM numbered WHERE (SELECT count(*) FROM numbered) = cardinality($1)), \
         stored AS (\
         INSERT INTO {rows} ({stream}, seq, id, date, {columns}) SELECT head, seq, id, date, {columns} FROM placed), \
         claimed AS (\
         INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
         SELECT key_hash, content_hash, id, seq, epoch, date, date FROM placed WHERE key_hash IS NOT NULL ORDER BY key_hash), \
         moved AS (\
         UPDATE {heads} AS moved SET last_seq = last.seq, last_id = last.id \
         FROM (SELECT DISTINCT ON (head) head, seq, id FROM placed ORDER BY head, seq DESC) AS last \
         WHERE moved.id = last.head) \
         SELECT id, seq, epoch, display_name, date FROM placed",
        now = clock::POSTGRES_MICROS,
    )
}

/// Stores all of them or nothing. They must be for rooms, or for inboxes, for the order in which heads are locked.
pub(super) async fn insert(db: &Db, new: &[New<'_>]) -> Result<Option<Vec<Place>>, Fault> {
    let rooms = new.iter().filter(|new| new.append.stream.kind() == Kind::Room).count();
    let sql = match rooms {
        0 => &INBOXES,
        rooms if rooms == new.len() => &ROOMS,
        _ => return Ok(None),
    };
    let mut keys: Vec<_> = new.iter().filter_map(|new| new.identity.map(|identity| identity.key)).collect();
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    if keys.len() < count {
        return Ok(None);
    }
    let values = values(new).map_err(|error| query_error(sqlx::Error::Encode(error)))?;
    let rows = match db.write_postgres(sql, values).await {
        Ok(rows) => rows,
        // Somebody else claimed a key just now.
        Err(error) if key_taken(&error) => return Ok(None),
        Err(error) => return Err(Fault::committing(error)),
    };
    if rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(rows.iter().map(Place::from_row).collect::<Result<_, _>>().map_err(query_error)?))
}

fn values(new: &[New<'_>]) -> Result<PgArguments, BoxDynError> {
    let mut values = PgArguments::default();
    values.add(new.iter().map(|new| new.append.stream.name()).collect::<Vec<_>>())?;
    values.add(new.iter().map(|new| new.id).collect::<Vec<_>>())?;
    values.add(new.iter().map(|new| new.identity.map(|identity| &identity.key[..])).collect::<Vec<_>>())?;
    values.add(new.iter().map(|new| new.identity.map(|identity| &identity.content[..])).collect::<Vec<_>>())?;
    for column in &row::COLUMNS {
        values.add(new.iter().map(|new| (column.of)(new.append)).collect::<Vec<_>>())?;
    }
    Ok(values)
}
