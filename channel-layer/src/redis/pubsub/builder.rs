//! How the layer is set up.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use tokio::{task::JoinSet, time::timeout};

use super::{
    layer::{Inner, RedisPubSubLayer},
    publishers::Publishers,
    subscriber::Subscriber,
};
use crate::{
    LayerError, Serializer,
    codec::Codec,
    redis::{Host, tls::TlsOptions, topology::Topology},
    stats::Counters,
};

/// How long `connect` waits for all connections.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the layer sends itself a message, to notice a subscription that hears nothing.
const PROBE: Duration = Duration::from_secs(10);

/// How a [`RedisPubSubLayer`] is set up.
#[derive(Clone)]
pub struct RedisPubSubBuilder {
    hosts: Vec<Host>,
    prefix: String,
    raw_group_names: bool,
    serializer: Serializer,
    encryption_keys: Vec<String>,
    tls: TlsOptions,
    probe_every: Duration,
}

impl RedisPubSubBuilder {
    pub(super) fn new(hosts: Vec<Host>) -> Self {
        Self {
            hosts,
            prefix: "asgi".to_owned(),
            raw_group_names: false,
            serializer: Serializer::default(),
            encryption_keys: Vec::new(),
            tls: TlsOptions::default(),
            probe_every: PROBE,
        }
    }

    /// The text before every group and channel name in Redis, `asgi` by default as in Python; all
    /// processes of a site must agree on it. At most 100 bytes.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Whether group names from [`GroupName::parse_any`](crate::GroupName::parse_any) are accepted, for
    /// sites whose Python side already uses such names; off by default.
    #[must_use]
    pub fn raw_group_names(mut self, accept: bool) -> Self {
        self.raw_group_names = accept;
        self
    }

    /// The format of payloads, [`Serializer::MsgPack`] by default; `serializer_format` in Python. All
    /// processes of a site must agree on it.
    #[must_use]
    pub fn serializer(mut self, serializer: Serializer) -> Self {
        self.serializer = serializer;
        self
    }

    /// Encrypts payloads with the first key and reads them with each in turn, as
    /// `symmetric_encryption_keys` in Python; none by default. A key is any text but the empty one, which
    /// `connect` and `start` refuse. Names of groups and channels stay readable. A payload without
    /// encryption, or under another key, counts as undecodable. Python encrypts from `channels_redis` 4.2.1.
    #[must_use]
    pub fn encryption_keys(mut self, keys: impl IntoIterator<Item: Into<String>>) -> Self {
        self.encryption_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// The certificates (PEM) to trust for `rediss://`, instead of the public authorities.
    #[must_use]
    pub fn root_certificates(mut self, pem: &[u8]) -> Self {
        self.tls.roots = Some(pem.to_vec());
        self
    }

    /// The certificate to show to servers that want one, with its chain, and its key (both PEM); for
    /// `rediss://`.
    #[must_use]
    pub fn client_certificate(mut self, chain: &[u8], key: &[u8]) -> Self {
        self.tls.client = Some((chain.to_vec(), key.to_vec()));
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
        let (codec, topology) = (self.codec()?, self.topology()?);
        // One attempt by hand, because the tasks would only try again and never tell.
        let targets = match &topology {
            Topology::Shards(targets) => targets.to_vec(),
            Topology::Cluster(cluster) => {
                cluster.refresh().await.map_err(LayerError::Unavailable)?;
                cluster.nodes().iter().map(|node| cluster.target(node)).collect()
            }
        };
        let attempts = targets.iter().map(|target| target.open("channel-layer:probe"));
        drop(try_join_all(attempts).await.map_err(LayerError::Unavailable)?);
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
        let (codec, topology) = (self.codec()?, self.topology()?);
        Ok(self.start_with(codec, &topology))
    }

    fn start_with(self, codec: Codec, topology: &Topology) -> RedisPubSubLayer {
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let publishers = Arc::new(Publishers::new(topology, &self.prefix, counters.clone(), &mut tasks));
        let (subscriber, task) = Subscriber::new(
            topology,
            &self.prefix,
            codec.clone(),
            self.probe_every,
            publishers.clone(),
            counters.clone(),
        );
        tasks.spawn(task);
        RedisPubSubLayer(Arc::new(Inner {
            prefix: self.prefix,
            raw_group_names: self.raw_group_names,
            codec,
            publishers,
            subscriber,
            counters,
            _tasks: tasks,
        }))
    }

    /// What can be found wrong without any Redis.
    fn codec(&self) -> Result<Codec, LayerError> {
        if self.prefix.len() > 100 || self.prefix.chars().any(char::is_control) {
            let text = "the prefix must be at most 100 bytes without control characters";
            return Err(LayerError::Config(text.into()));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(LayerError::Config("it must be started inside a Tokio runtime".into()));
        }
        Codec::new(self.serializer, &self.encryption_keys)
    }

    fn topology(&self) -> Result<Topology, LayerError> {
        Topology::of(&self.hosts, &self.tls)
    }
}

impl std::fmt::Debug for RedisPubSubBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URLs may hold passwords.
        f.debug_struct("RedisPubSubBuilder")
            .field("hosts", &self.hosts.len())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
