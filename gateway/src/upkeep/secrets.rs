//! The secrets of the deployment, by which nodes believe each other (`seal/`), are read again from time to time.

use std::sync::Arc;
use std::time::Duration;

use crate::node::Node;
use crate::seal::LIFETIME;

/// How often secrets are read; and how soon again when an event names a key that is not known here, which
/// whoever writes to the layer can have it do.
const EVERY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(5);

/// Reads until the node stops, and sooner when an event makes that look necessary.
pub(crate) async fn keep_reading(node: Arc<Node>) {
    let seals = &node.seals;
    loop {
        let wait = EVERY.mul_f64(rand::random_range(0.8..1.2));
        let doubted = tokio::time::timeout(wait, seals.doubted()).await.is_ok();
        match node.metrics.time_store("secrets", node.store.secrets(LIFETIME)).await {
            // What was sealed with a key that was not known yet was taken for not stored.
            Ok(secrets) => {
                if seals.renew(&secrets) && doubted {
                    node.hub.compare_now();
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the deployment's secrets could not be read");
            }
        }
        if doubted {
            tokio::time::sleep(AGAIN).await;
        }
    }
}
