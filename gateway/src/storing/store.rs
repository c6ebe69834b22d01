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
