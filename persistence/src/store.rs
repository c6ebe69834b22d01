//! The one door to the database.

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::ConnectionTrait;

use crate::{
    Backend, StoreError, StoreOptions,
    db::{Db, PING, StoreStats},
};

/// How long [`Store::ping`] waits.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// A database of the gateway. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    pub(crate) db: Arc<Db>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("backend", &self.backend()).finish_non_exhaustive()
    }
}

impl Store {
    /// Connects, and fails when the database does not answer. Neither makes nor checks the schema:
    /// see [`Store::migrate`] and [`Store::check_schema`].
    pub async fn connect(options: StoreOptions) -> Result<Self, StoreError> {
        let store = Self { db: Arc::new(Db::new(options)?) };
        // The writer first: of several connections to a new SQLite file, one must set it up alone.
        store.db.run(|| async { Ok(store.db.writes().execute_unprepared(PING).await?) }).await?;
        store.ping().await?;
        Ok(store)
    }

    /// Signs in with the user and password of this URL from now on, on new connections; those that are open stay. Changes
    /// nothing, and returns `false`, if it is another database.
    pub fn take_credentials(&self, url: &str) -> Result<bool, StoreError> {
        self.db.take_credentials(url)
    }

    /// Whether the two URLs mean the same database, whoever signs in.
    pub fn is_same_place(one: &str, other: &str) -> bool {
        Db::is_same_place(one, other)
    }

    /// Which kind of database this is.
    pub fn backend(&self) -> Backend {
        self.db.backend
    }

    /// Asks the database for an answer, for at most 2 s.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db
            .run_within(PING_LIMIT, || async {
                self.db.reads().execute_unprepared(PING).await?;
                Ok(())
            })
            .await
    }

    /// How many statements this store has sent, BEGIN and COMMIT included, pings not.
    pub fn statements(&self) -> u64 {
        self.db.statements()
    }

    /// What has had to be done again so far.
    pub fn stats(&self) -> StoreStats {
        self.db.stats()
    }
}
