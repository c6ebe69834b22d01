//! Trying, without changing anything, whether this program may do what it does.

use sea_orm::ConnectionTrait;

use crate::{Store, StoreError};

/// What is done with which table, and a column of it that is no key.
const USED: &[(&str, &str, &[Verb])] = &[
    ("gateway_deployment", "secret_made_at", &[Verb::Select, Verb::Insert, Verb::Update]),
    ("gateway_rooms", "display_name", &Verb::ALL),
    ("gateway_memberships", "created_at", &[Verb::Select, Verb::Insert, Verb::Delete]),
    ("gateway_messages", "from_user", &Verb::ALL),
    ("gateway_inboxes", "created_at", &Verb::ALL),
    ("gateway_notifications", "seen_at", &Verb::ALL),
    ("gateway_room_words", "said_seq", &Verb::ALL),
    ("gateway_receipts", "created_at", &[Verb::Select, Verb::Insert, Verb::Delete]),
    ("gateway_leases", "finished_at", &[Verb::Select, Verb::Insert, Verb::Update]),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Select,
    Insert,
    Update,
    Delete,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Select, Self::Insert, Self::Update, Self::Delete];

    fn name(self) -> &'static str {
        match self {
            Self::Select => "SELECT",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }

    /// A statement that touches no row.
    fn statement(self, table: &str, column: &str) -> String {
        match self {
            Self::Select => format!("SELECT {column} FROM {table} WHERE 1 = 0"),
            Self::Insert => format!("INSERT INTO {table} ({column}) SELECT {column} FROM {table} WHERE 1 = 0"),
            Self::Update => format!("UPDATE {table} SET {column} = {column} WHERE 1 = 0"),
            Self::Delete => format!("DELETE FROM {table} WHERE 1 = 0"),
        }
    }
}

impl Store {
    /// Tries every kind of statement on every table, on no row. Returns what is refused, such as
    /// `INSERT on gateway_messages`, with the database's reason. Needs the schema.
    pub async fn refused(&self) -> Vec<(String, StoreError)> {
        let mut refused = Vec::new();
        for (table, column, verbs) in USED {
            for verb in *verbs {
                let sql = verb.statement(table, column);
                let tried = self.db.run(|| async {
                    self.db.writes().execute_unprepared(&sql).await?;
                    Ok(())
                });
                if let Err(error) = tried.await {
                    refused.push((format!("{} on {table}", verb.name()), error));
                }
            }
        }
        refused
    }
}
