//! Connections for commands that are not the layers'.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::host::Resolved;
use crate::LayerError;

/// Opens connections to a [`Host`](crate::Host) for commands of the caller's own, for example to keep
/// something in the Redis of the layer. Made by [`Host::connector`](crate::Host::connector). Clones share
/// what they know of Sentinels and clusters.
#[derive(Clone)]
pub struct Connector(Arc<Resolved>);

impl Connector {
    pub(super) fn new(to: Resolved) -> Self {
        Self(Arc::new(to))
    }

    /// Opens a connection: signed in, with the database chosen, to the primary where Sentinels know it,
    /// in a cluster to the node that has `key`. What is written are commands and what is read are
    /// answers, in RESP2. `client_name` is what `CLIENT LIST` shows.
    ///
    /// Fails within 4 seconds with [`LayerError::Unavailable`] and the cause.
    pub async fn open(
        &self,
        client_name: &str,
        key: &[u8],
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, LayerError> {
        let opened = async { self.0.target(key).await?.stream(client_name).await };
        opened.await.map_err(LayerError::Unavailable)
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}
