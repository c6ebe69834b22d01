//! How the layer is set up.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use super::{
    layer::{Inner, RedisPubSubLayer},
    publishers::Publishers,
    subscriber::Subscriber,
};
use crate::{
    LayerError,
    codec::Codec,
    redis::{
        Host,
        site::{Site, site_settings},
        topology::Topology,
    },
    stats::Counters,
};

/// How long `connect` waits for all connections.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the layer sends itself a message, to notice a subscription that hears nothing.
const PROBE: Duration = Duration::from_secs(10);

/// How a [`RedisPubSubLayer`] is set up.
#[derive(Clone)]
pub struct RedisPubSubBuilder {
    site: Site,
    raw_group_names: bool,
    probe_every: Duration,
}

impl RedisPubSubBuilder {
    pub(super) fn new(hosts: Vec<Host>) -> Self {
        Self { site: Site::new(hosts), raw_group_names: false, probe_every: PROBE }
    }

    site_settings!();

    /// Whether group names from [`GroupName::parse_any`](crate::GroupName::parse_any) are accepted, for
    /// sites whose Python side already uses such names; off by default.
    #[must_use]
    pub fn raw_group_names(mut self, accept: bool) -> Self {
        self.raw_group_names = accept;
        self
    }

    /// How often the layer sends itself a message, 10 seconds by default; for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn probe_every(mut self, interval: Duration) -> Self {
        self.probe_every = interval;
        self
    }

    /// Connects and returns when both directions work, on every host. Fails with the cause if one does
    /// not answer within 2 seconds or refuses; then nothing goes on in the background.
    pub async fn connect(self) -> Result<RedisPubSubLayer, LayerError> {
        let (codec, topology) = self.site.check()?;
        // One attempt by hand, because the tasks would only try again and never tell.
        topology.try_out().await.map_err(LayerError::Unavailable)?;
        let layer = self.start_with(codec, &topology);
        let both = async {
            layer.0.publishers.connected().await;
            layer.0.subscriber.ready().await
        };
        timeout(CONNECT, both).await.map_err(|_late| LayerError::Timeout)??;
        Ok(layer)
    }

    /// Starts without waiting: connects in the background and tries for ever. Until Redis is there,
    /// publishes fail and joins wait. Needs to be called inside a Tokio runtime.
    pub fn start(self) -> Result<RedisPubSubLayer, LayerError> {
        let (codec, topology) = self.site.check()?;
        Ok(self.start_with(codec, &topology))
    }

    fn start_with(self, codec: Codec, topology: &Topology) -> RedisPubSubLayer {
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let publishers = Arc::new(Publishers::new(topology, &self.site.prefix, counters.clone(), &mut tasks));
        let (subscriber, task) = Subscriber::new(
            topology,
            &self.site.prefix,
            codec.clone(),
            self.probe_every,
            publishers.clone(),
            counters.clone(),
        );
        tasks.spawn(task);
        RedisPubSubLayer(Arc::new(Inner {
            prefix: self.site.prefix,
            raw_group_names: self.raw_group_names,
            codec,
            publishers,
            subscriber,
            counters,
            _tasks: tasks,
        }))
    }
}

impl std::fmt::Debug for RedisPubSubBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URLs may hold passwords.
        f.debug_struct("RedisPubSubBuilder")
            .field("hosts", &self.site.hosts.len())
            .field("prefix", &self.site.prefix)
            .finish_non_exhaustive()
    }
}
