//! The view of SQLite that messages are appended through: the steps of a batch as triggers (`append/sqlite.rs` says why).

use std::sync::LazyLock;

use crate::{
    kind::{Kind, Tables},
    row,
};

/// What the view takes before the columns of a message, in the order in which it is bound.
pub(crate) const OWN: &str = "kind, stream, id, date, key_hash, content_hash";
/// What it takes behind them: the place that the message will have, and what else is known of its stream.
pub(crate) const EXPECTED: &str = "expected_seq, expected_epoch, expected_name";
/// How many values a message is, and how many with what is expected.
pub(crate) const VALUES: usize = 6 + row::COLUMNS.len();
pub(crate) const ALL_VALUES: usize = VALUES + 3;

/// How a kind of stream stands in the view.
pub(crate) fn number(kind: Kind) -> i32 {
    match kind {
        Kind::Room => 0,
        Kind::Inbox => 1,
    }
}

/// Makes the view and its triggers; for each connection that writes. They are there for this connection only.
pub(crate) static SETUP: LazyLock<String> = LazyLock::new(|| {
    let columns = row::list(str::to_owned);
    let nulls = ["NULL"; ALL_VALUES].join(", ");
    let [room, inbox] = Kind::ALL.map(trigger);
    format!(
        "CREATE TEMP VIEW gateway_append ({OWN}, {columns}, {EXPECTED}) AS SELECT {nulls} WHERE FALSE; {room}; {inbox}"
    )
});

fn trigger(kind: Kind) -> String {
    let (&Tables { word, heads, name, rows, stream, display_name, .. }, number) = (kind.tables(), number(kind));
    let display_name = display_name.unwrap_or("NULL");
    let (columns, new) = (row::list(str::to_owned), row::list(|column| format!("NEW.{column}")));
    format!(
        "CREATE TEMP TRIGGER gateway_append_{word} INSTEAD OF INSERT ON gateway_append WHEN NEW.kind = {number} BEGIN \
         UPDATE {heads} SET last_seq = last_seq + 1, last_id = NEW.id WHERE {name} = NEW.stream \
         AND (NEW.expected_seq IS NULL OR (last_seq + 1 = NEW.expected_seq AND epoch = NEW.expected_epoch \
         AND {display_name} IS NEW.expected_name)); \
         SELECT RAISE(ABORT, 'no such {word}') WHERE changes() = 0; \
         INSERT INTO {rows} ({stream}, seq, id, date, {columns}) \
         SELECT id, last_seq, NEW.id, NEW.date, {new} FROM {heads} WHERE {name} = NEW.stream; \
         INSERT INTO gateway_receipts (key_hash, content_hash, id, seq, epoch, date, created_at) \
         SELECT NEW.key_hash, NEW.content_hash, NEW.id, last_seq, epoch, NEW.date, NEW.date \
         FROM {heads} WHERE {name} = NEW.stream AND NEW.key_hash IS NOT NULL; \
         END"
    )
}
