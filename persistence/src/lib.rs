//! This crate stores the messages, notifications, rooms and members of the channel gateway, on SQLite, PostgreSQL and
//! MariaDB/MySQL. One program speaks all three.
//!
//! It promises:
//!
//! - [`Store::append`] returns after the commit. Positions (`seq`) are 1, 2, 3 … per room and per
//!   inbox, in commit order and without a hole, with any number of nodes writing. The row with the
//!   counter is locked until the commit. A reader that has seen n asks for the messages after n, and
//!   never misses one.
//! - An append with a [`Key`] stores once, however often it is repeated.
//! - Names are compared by bytes on all three.
//! - Every call is bounded in time, and a database that went away is found again without a new store.
//!
//! # Ways of appending
//!
//! All ways take the same steps: lock the heads of the streams and read the clock, claim the keys, number the messages,
//! insert them, move the heads, commit. They differ in how often they ask the database. Beside the commit itself, these
//! questions are the cost of an append.
//!
//! | file | serves | asks | why |
//! | --- | --- | ---: | --- |
//! | `append/postgres.rs` | PostgreSQL, up to 32 messages, all for rooms or all for inboxes | once | a round trip costs more than the work, and five would hold the head's lock five times as long |
//! | `append/sqlite.rs` | SQLite, up to 32 messages | once | each call to the driver is two changes of thread, and a row that is read is a third; the steps are triggers of a view, and nothing is read of a stream that this store wrote to last (`known.rs`) |
//! | `append.rs` with `append/plan.rs`, `append/write.rs` | MySQL and MariaDB, always; the others for larger batches, streams to make, keys that were used before | 5 to 9 times | MySQL has neither `RETURNING` nor writes in a `WITH`; with many messages the statements cost little, and only this way tells what is wrong with which message |
//! | `append/import.rs` | messages of another system, with the dates they have there ([`Store::import`]) | 7 to 12 times for 1,000 | nobody waits for one; their keys are kept for ever |
//!
//! `sqlite::memory:` goes the same way as a file. Files need no writer thread of our own: a call to the driver and back
//! takes a thirtieth of a commit that reaches the disk (`benches/append.rs`), and a batch is one call.
//!
//! ```no_run
//! # async fn example() -> Result<(), persistence::StoreError> {
//! use persistence::{Append, Range, Store, StoreOptions, Stream};
//!
//! let store = Store::connect(StoreOptions::new("sqlite://gateway.db?mode=rwc")).await?;
//! store.migrate().await?;
//! store.create_room("lobby", None).await?;
//! let results = store
//!     .append(&[Append {
//!         stream: Stream::Room("lobby".into()),
//!         from_user: "alice".into(),
//!         message: "hello".into(),
//!         data: None,
//!         key: None,
//!         create_inbox: false,
//!         origin: None,
//!     }])
//!     .await?;
//! assert!(matches!(&results[..], [Ok(stored)] if stored.seq == 1));
//! let missed = store.messages("lobby", Range::After(0), 100).await?;
//! assert_eq!(missed[0].message, "hello");
//! # Ok(())
//! # }
//! ```

mod append;
mod append_view;
#[cfg(unix)]
mod bell;
mod changes;
mod clock;
mod db;
mod entity;
mod error;
mod heads;
mod inboxes;
mod kept;
mod kind;
mod known;
mod leases;
mod members;
mod messages;
mod migration;
mod notifications;
mod options;
mod pools;
mod private;
mod receipts;
mod redact;
mod retention;
mod rights;
mod rooms;
mod row;
mod schema;
mod secrets;
mod site;
mod snapshot;
mod store;
mod trust;
mod types;
mod unnamed;
mod values;

pub use db::StoreStats;
pub use error::{BoxError, StoreError};
pub use options::StoreOptions;
pub use rooms::is_valid_display_name;
pub use secrets::{Secret, Secrets};
pub use site::{Site, SiteMoment, SiteRows, SiteSession, SiteTables, SiteUser};
pub use snapshot::Snapshot;
pub use store::Store;
pub use types::{
    After, Append, AppendError, Appended, Backend, Change, ChangeKind, ChangeTime, Changed, Deleted, Head, Held,
    Import, Imported, Key, MAX_DATA_BYTES, MAX_DISPLAY_NAME_CHARS, MAX_EVENT_ID_BYTES, MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS, Membership, Message, Page, Range, Refused, Retention, Room, Seen, Stream,
};
pub use values::is_valid_name;
