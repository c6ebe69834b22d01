//! Setting a core layer up.

use std::time::Duration;

use super::{layer::RedisCoreLayer, settings::Settings};
use crate::{
    ChannelPattern, LayerError,
    codec::Codec,
    redis::{
        Host,
        site::{Site, site_settings},
        topology::Topology,
    },
};

/// How long `connect` waits for all connections.
const CONNECT: Duration = Duration::from_secs(5);

/// How a [`RedisCoreLayer`] is set up. What the Python side of a site must agree on: the hosts and
/// their order, the prefix, the serializer, the encryption keys and the length of the random prefix.
#[derive(Clone)]
pub struct RedisCoreBuilder {
    site: Site,
    settings: Settings,
}

impl RedisCoreBuilder {
    pub(super) fn new(hosts: Vec<Host>) -> Self {
        Self { site: Site::new(hosts), settings: Settings::default() }
    }

    site_settings!();

    /// The text before keys of this crate's own, `gateway` by default: who lives, and who clears away
    /// after the dead. Best not one that begins with the prefix: a flush of Python's takes it along.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.settings.namespace = namespace.to_owned();
        self
    }

    /// Seconds an event waits for a reader, 60 by default, at least 1.
    #[must_use]
    pub fn expiry(mut self, seconds: u64) -> Self {
        self.settings.expiry = seconds;
        self
    }

    /// Seconds a membership that nobody renews lasts, 86,400 by default, at least 1. Ours are renewed
    /// every 20 seconds.
    #[must_use]
    pub fn group_expiry(mut self, seconds: u64) -> Self {
        self.settings.group_expiry = seconds;
        self
    }

    /// How many unread events a queue holds, 100 by default, for all channels of a process and client id
    /// together; the sender's setting counts.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.settings.capacity.set_default(capacity);
        self
    }

    /// Another capacity for channels whose name matches; the first match counts. A group's send asks with
    /// the name of a queue's first member.
    #[must_use]
    pub fn channel_capacity(mut self, pattern: ChannelPattern, capacity: usize) -> Self {
        self.settings.capacity.add(pattern, capacity);
        self
    }

    /// Random bytes before each message, 12 by default; 0 for none, and then equal messages to one queue
    /// become one.
    #[must_use]
    pub fn random_prefix_length(mut self, bytes: usize) -> Self {
        self.settings.random_prefix = bytes;
        self
    }

    /// How many client ids, and so queues, this process has: 4 by default, 1 to 64. Each has its own
    /// capacity and its own connection to every shard.
    #[must_use]
    pub fn client_ids(mut self, count: usize) -> Self {
        self.settings.clients = count;
        self
    }

    /// How often the layer says that it lives, 5 seconds by default, and how long it counts as alive
    /// after that, 45 seconds by default; for tests. Memberships are renewed with every fourth of these,
    /// and queues probed with every second one.
    #[doc(hidden)]
    #[must_use]
    pub fn intervals(mut self, heartbeat: Duration, alive: Duration) -> Self {
        self.settings.heartbeat = heartbeat;
        self.settings.alive = alive;
        self
    }

    /// Connects and returns when everything works. Fails with the cause if a Redis does not answer
    /// within 2 seconds or refuses; then nothing goes on in the background.
    pub async fn connect(self) -> Result<RedisCoreLayer, LayerError> {
        let (codec, topology) = self.check()?;
        // One attempt by hand, because the tasks would only try again and never tell.
        topology.try_out().await.map_err(LayerError::Unavailable)?;
        let layer = RedisCoreLayer::start(self.site.prefix, self.settings, codec, &topology)?;
        layer.ready(CONNECT).await?;
        Ok(layer)
    }

    /// Starts without waiting: connects in the background and tries for ever. Until Redis is there,
    /// sends fail and joins wait. Needs to be called inside a Tokio runtime.
    pub fn start(self) -> Result<RedisCoreLayer, LayerError> {
        let (codec, topology) = self.check()?;
        RedisCoreLayer::start(self.site.prefix, self.settings, codec, &topology)
    }

    fn check(&self) -> Result<(Codec, Topology), LayerError> {
        self.settings.check()?;
        self.site.check()
    }
}

impl std::fmt::Debug for RedisCoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The hosts may hold passwords.
        f.debug_struct("RedisCoreBuilder").field("prefix", &self.site.prefix).finish_non_exhaustive()
    }
}
