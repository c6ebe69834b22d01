//! The writing connection of SQLite between two appends.
//!
//! A pool pings a connection whenever one comes back, which for SQLite is two more changes of thread.
//! So the connection of an append stays here for the next one, as long as nobody else wants it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sea_orm::sqlx::{self, Sqlite, SqlitePool, pool::PoolConnection};

#[derive(Default)]
pub(crate) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    /// Who uses the pool or waits for it; while there is anybody, nothing is kept.
    users: usize,
    connection: Option<PoolConnection<Sqlite>>,
}

/// Held by a user of the pool.
pub(crate) struct Place<'a>(&'a Kept);

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the pool have the connection until the place is dropped.
    pub(crate) fn place(&self) -> Place<'_> {
        let mut state = self.state();
        state.users += 1;
        drop(state.connection.take());
        Place(self)
    }

    /// The connection that was kept, or one of the pool.
    pub(crate) async fn take(&self, pool: &SqlitePool) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        let _waiting = {
            let mut state = self.state();
            if let Some(connection) = state.connection.take() {
                return Ok(connection);
            }
            state.users += 1;
            Place(self)
        };
        pool.acquire().await
    }

    /// Keeps a connection that has just worked, if nobody waits for it.
    pub(crate) fn keep(&self, connection: PoolConnection<Sqlite>) {
        let mut state = self.state();
        if state.users == 0 && state.connection.is_none() {
            state.connection = Some(connection);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state().users -= 1;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Giving it back to the pool takes a runtime, which may be gone; closing it does not.
        drop(self.state().connection.take().map(PoolConnection::leak));
    }
}
