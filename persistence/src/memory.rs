//! SQLite in memory, called where the caller is.
//!
//! The driver runs each of its connections in a thread of its own. With a file that is as it should be, as a commit
//! waits for the disk. In memory nothing waits, and going to the thread and back costs several times what an append
//! does there. So appends have a connection of their own to the same memory, without a thread.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Result};

pub(crate) struct Memory {
    name: PathBuf,
    /// Opened when first used.
    connection: Mutex<Option<Connection>>,
}

impl Memory {
    /// The memory that the driver knows by this name. Should it keep it from other connections, calls fail, as there
    /// are no tables in what they see.
    pub(crate) fn new(name: &Path) -> Self {
        Self { name: name.to_owned(), connection: Mutex::default() }
    }

    /// Nobody else may use the database meanwhile: in memory, connections lock each other out without waiting.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        match &*connection {
            Some(connection) => call(connection),
            None => call(connection.insert(self.open()?)),
        }
    }

    fn open(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_MEMORY
            | OpenFlags::SQLITE_OPEN_SHARED_CACHE
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.name, flags)?;
        // The thread is one of the runtime's: whatever is locked goes to the driver at once.
        connection.busy_timeout(Duration::ZERO)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Append, Store, StoreOptions, Stream};

    async fn store(url: &str) -> Store {
        let store = Store::connect(StoreOptions::new(url)).await.unwrap();
        store.migrate().await.unwrap();
        store.create_room("lobby", None).await.unwrap();
        store
    }

    async fn append(store: &Store, room: &str) -> Result<u64, crate::AppendError> {
        let append = Append {
            stream: Stream::Room(room.into()),
            from_user: "alice".into(),
            message: "hello".into(),
            key: None,
            create_inbox: false,
            origin: None,
        };
        store.append(&[append]).await.unwrap().pop().unwrap().map(|appended| appended.seq)
    }

    async fn count_here(store: &Store) -> Option<u32> {
        let count = "SELECT count(*) FROM gateway_messages";
        store.db.write_memory(|connection| connection.query_row(count, [], |row| row.get(0))).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_called_here_and_what_the_driver_calls_is_one_database() {
        let store = store("sqlite::memory:").await;
        for seq in 1..=3 {
            assert_eq!(append(&store, "lobby").await, Ok(seq));
            assert_eq!(store.room("lobby").await.unwrap().unwrap().last_seq, seq);
            assert_eq!(count_here(&store).await, Some(seq as u32));
        }
        // Refused here, and the driver says why.
        assert_eq!(append(&store, "nowhere").await, Err(crate::AppendError::RoomNotFound));
        assert_eq!(append(&store, "lobby").await, Ok(4));
    }

    #[tokio::test]
    async fn what_is_locked_here_goes_to_the_driver() {
        let store = store("sqlite::memory:").await;
        assert_eq!(append(&store, "lobby").await, Ok(1));
        // As a read of the driver's does that was given up and has not noticed.
        let memory = store.db.memory().unwrap();
        let reads = memory.open().unwrap();
        let mut statement = reads.prepare("SELECT id FROM gateway_rooms").unwrap();
        let mut rows = statement.query([]).unwrap();
        assert!(rows.next().unwrap().is_some());
        let (result, ()) = tokio::join!(append(&store, "lobby"), async {
            tokio::task::yield_now().await;
            drop(rows);
        });
        assert_eq!(result, Ok(2));
    }

    #[tokio::test]
    async fn where_it_cannot_be_called_here_the_driver_is() {
        // SQLite keeps a memory with a plain name to one connection.
        let private = store("sqlite://where_it_cannot?mode=memory").await;
        let dir = tempfile::tempdir().unwrap();
        let file = store(&format!("sqlite://{}?mode=rwc", dir.path().join("gateway.db").display())).await;
        for store in [private, file] {
            assert_eq!(append(&store, "lobby").await, Ok(1));
            assert_eq!(count_here(&store).await, None);
        }
    }
}
