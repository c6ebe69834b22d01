//! Messages, notifications, rooms and members of the channel gateway, on SQLite, PostgreSQL and
//! MariaDB/MySQL; one program speaks all three.
//!
//! What it promises:
//!
//! - [`Store::append`] returns after the commit. Positions (`seq`) are 1, 2, 3 … per room and per
//!   inbox, in commit order and without a hole, with any number of nodes writing: the row that
//!   counts is locked until the commit. A reader that has seen n can ask for what is after n and
//!   never miss one.
//! - An append with a [`Key`] stores once, however often it is repeated.
//! - Names are compared by bytes on all three.
//! - Every call is bounded in time, and a database that went away is found again without a new store.
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
mod clock;
mod db;
mod entity;
mod error;
mod inboxes;
mod kept;
mod leases;
mod members;
mod memory;
mod messages;
mod migration;
mod missed;
mod notifications;
mod options;
mod private;
mod receipts;
mod retention;
mod rooms;
mod schema;
mod secrets;
mod store;
mod types;
mod values;

pub use error::{BoxError, StoreError};
pub use options::StoreOptions;
pub use secrets::{Secret, Secrets};
pub use store::Store;
pub use types::{
    Append, AppendError, Appended, Backend, Deleted, Head, Key, MAX_DISPLAY_NAME_CHARS, MAX_EVENT_ID_BYTES,
    MAX_MESSAGE_BYTES, MAX_NAME_CHARS, Membership, Message, Notification, Range, Refused, Retention, Room, Seen,
    Stream,
};
pub use values::is_valid_name;
