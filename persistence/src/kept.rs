//! The connection of an append, kept for the next one.
//!
//! A pool pings a connection whenever one comes back: a round trip to the server for each message, and on
//! SQLite two changes of thread. So what append used stays here, as far as the others can do without it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use sea_orm::sqlx::{self, Database, Pool, Postgres, Sqlite, pool::PoolConnection};

use crate::trust::{PING_AFTER_IDLE, Trust};

/// After so many uses a connection goes back all the same, as the pool knows when it is too old.
const USES: usize = 1024;

/// What is kept of a pool. Goes with it: of a pool that was given up, nothing is used again.
#[derive(Clone)]
pub(crate) enum AppendConnections {
    Sqlite(Arc<IdleConnections<Sqlite>>),
    Postgres(Arc<IdleConnections<Postgres>>),
    MySql,
}

pub(crate) struct IdleConnections<DB: Database> {
    /// Connections that may be kept, at most.
    most: usize,
    /// There are no others: nothing is kept while anybody wants one.
    all: bool,
    trust: Trust,
    state: Mutex<Idle<DB>>,
}

struct Idle<DB: Database> {
    /// Who uses the pool or waits for it, where `all` is kept.
    users: usize,
    uses: usize,
    connections: Vec<(PoolConnection<DB>, Instant)>,
}

/// Held by a user of the pool.
pub(crate) struct PoolUse(Arc<IdleConnections<Sqlite>>);

impl AppendConnections {
    /// For the one connection that writes to SQLite.
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(Arc::new(IdleConnections::new(1, true, Trust::default())))
    }

    /// For a pool of so many connections: half of them stay in it.
    pub(crate) fn postgres(connections: u32, trust: Trust) -> Self {
        Self::Postgres(Arc::new(IdleConnections::new(connections as usize / 2, false, trust)))
    }

    /// Lets the pool have what it needs until this is dropped.
    pub(crate) fn pool_use(&self) -> Option<PoolUse> {
        let Self::Sqlite(kept) = self else { return None };
        let mut state = kept.state();
        state.users += 1;
        state.connections.clear();
        Some(PoolUse(Arc::clone(kept)))
    }
}

impl IdleConnections<Sqlite> {
    /// The connection that was kept, or the pool's.
    pub(crate) async fn take_only(
        self: &Arc<Self>,
        pool: &Pool<Sqlite>,
    ) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        let _waiting = {
            let mut state = self.state();
            if let Some((connection, _)) = state.connections.pop() {
                return Ok(connection);
            }
            state.users += 1;
            PoolUse(Arc::clone(self))
        };
        // Boxed here and below: what is rare makes the future of every append larger, which is moved about.
        Box::pin(pool.acquire()).await
    }
}

impl<DB: Database> IdleConnections<DB> {
    fn new(most: usize, all: bool, trust: Trust) -> Self {
        Self { most, all, trust, state: Mutex::new(Idle { users: 0, uses: 0, connections: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, Idle<DB>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was kept and works, or one of the pool.
    pub(crate) async fn take(&self, pool: &Pool<DB>) -> Result<PoolConnection<DB>, sqlx::Error> {
        let kept = self.state().connections.pop();
        if let Some((mut connection, since)) = kept {
            let idle = since.elapsed();
            if idle < PING_AFTER_IDLE || Box::pin(self.trust.answers(&mut *connection, idle)).await {
                return Ok(connection);
            }
            // Without a goodbye: the peer may have vanished.
            drop(connection.detach());
        }
        Box::pin(pool.acquire()).await
    }

    /// Keeps a connection that has just worked, if the others can do without it.
    pub(crate) fn keep(&self, connection: PoolConnection<DB>) {
        let mut state = self.state();
        state.uses += 1;
        let spare = state.connections.len() < self.most && !(self.all && state.users > 0);
        if spare && !state.uses.is_multiple_of(USES) {
            state.connections.push((connection, Instant::now()));
        }
    }
}

impl Drop for PoolUse {
    fn drop(&mut self) {
        self.0.state().users -= 1;
    }
}

impl<DB: Database> Drop for IdleConnections<DB> {
    fn drop(&mut self) {
        // Giving them back to the pool takes a runtime, which may be gone; closing them does not.
        let connections = std::mem::take(&mut self.state().connections);
        connections.into_iter().for_each(|(connection, _)| drop(connection.leak()));
    }
}
