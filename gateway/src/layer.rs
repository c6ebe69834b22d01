//! Making the channel layer that the settings name.

use std::sync::Arc;

use channel_layer::{ChannelLayer, LayerError, MemoryLayer, RedisCoreLayer, RedisPubSubLayer};
use secrecy::ExposeSecret;

use crate::config::{Config, LayerKind};

/// A layer that can stand in a struct with `Debug`.
#[derive(Clone)]
pub struct SharedLayer(Arc<dyn ChannelLayer>);

impl std::ops::Deref for SharedLayer {
    type Target = Arc<dyn ChannelLayer>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::fmt::Debug for SharedLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChannelLayer")
    }
}

/// Connects; one attempt.
pub(crate) async fn connect(config: &Config) -> Result<SharedLayer, LayerError> {
    let settings = &config.layer;
    let keys: Vec<&str> = settings.encryption_keys.iter().map(|key| key.expose_secret()).collect();
    let layer: Arc<dyn ChannelLayer> = match settings.kind {
        LayerKind::Memory => Arc::new(MemoryLayer::new()),
        LayerKind::PubSub => Arc::new(
            RedisPubSubLayer::builder_with_hosts(&settings.hosts)
                .prefix(&settings.prefix)
                .raw_group_names(settings.raw_group_names)
                .serializer(settings.serializer)
                .encryption_keys(keys)
                .connect()
                .await?,
        ),
        LayerKind::Core => Arc::new(
            RedisCoreLayer::builder_with_hosts(&settings.hosts)
                .prefix(&settings.prefix)
                .namespace(&config.namespace)
                .expiry(settings.expiry)
                .group_expiry(settings.group_expiry)
                .capacity(settings.capacity)
                .serializer(settings.serializer)
                .encryption_keys(keys)
                .connect()
                .await?,
        ),
    };
    Ok(SharedLayer(layer))
}
