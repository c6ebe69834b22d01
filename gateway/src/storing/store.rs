//! The store as the settings name it.

use persistence::{Backend, Secrets, Store, StoreError, StoreOptions};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::config::Config;
use crate::seal;

/// The store's options that follow from the settings.
pub fn store_options(config: &Config) -> StoreOptions {
    let mut options = StoreOptions::new(config.database_url.expose_secret());
    options.max_connections = config.database_connections.max(1);
    options.acquire_timeout = config.database_wait;
    options.statement_timeout = config.database_statement;
    options
}

/// The store with the id and the secrets of the deployment. It may be tried again after a failure anywhere in between.
pub(crate) async fn open_store(config: &Config) -> Result<(Store, Uuid, Secrets), StoreError> {
    let store = Store::connect(store_options(config)).await?;
    // SQLite belongs to this node, and an empty database to nobody yet; another one is the operator's
    // to change, with `gateway migrate`.
    let empty = store.migration_status().await?.iter().all(|(_, applied)| !applied);
    if store.backend() == Backend::Sqlite || empty {
        for name in store.migrate().await? {
            tracing::info!(name, "migration applied");
        }
    }
    store.check_schema().await?;
    let (deployment, secrets) = (store.deployment_id().await?, store.secrets(seal::LIFETIME).await?);
    Ok((store, deployment, secrets))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::collect;

    #[test]
    fn the_store_waits_as_long_as_the_settings_say() {
        let given =
            [("database-wait-seconds", "0.5"), ("database-statement-seconds", "30"), ("database-connections", "3")];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let config = Config::from_collected(&collect(&given, &|_| None, None).unwrap()).unwrap();
        let options = store_options(&config);
        assert_eq!(options.max_connections, 3);
        assert_eq!(
            (options.acquire_timeout, options.statement_timeout),
            (Duration::from_millis(500), Duration::from_secs(30))
        );
    }
}
