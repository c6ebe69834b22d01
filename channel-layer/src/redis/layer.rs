//! The layer itself: names and bytes here, the connections elsewhere.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{task::JoinSet, time::timeout};

use super::{
    Host,
    connection::Target,
    publisher::Publisher,
    relay::RedisRelay,
    subscriber::{Member, NewRelay, Subscriber},
    tls::TlsOptions,
    topic,
    topology::Topology,
};
use crate::{
    ChannelLayer, ChannelName, Event, GroupName, LayerError, LayerStats, Relay, RelaySink, name, stats::Counters,
};

/// How long `connect` waits for both connections.
const CONNECT: Duration = Duration::from_secs(5);
/// How long `ping` may take.
const PING: Duration = Duration::from_secs(2);

/// Carries events over Redis pub/sub, byte for byte as `channels_redis.pubsub.RedisPubSubChannelLayer`
/// 4.x with its default serializer; Django processes and Rust services share groups and channels.
///
/// Two connections for a whole process, whatever the number of channels. They come back by
/// themselves; what was published meanwhile is lost, as pub/sub keeps nothing, and relays are told.
/// A Redis user needs the commands PUBLISH, (P)SUBSCRIBE, (P)UNSUBSCRIBE and PING, and, because a relay
/// subscribes to a pattern, all channels (`&*`).
///
/// Nothing waits in Redis: an event for a channel nobody reads is gone. Of an inbox that already
/// holds 100 unread events the oldest is dropped. Clones share everything; with the last clone and
/// the last [`Relay`] the connections end.
#[derive(Clone)]
pub struct RedisPubSubLayer(Arc<Inner>);

/// How a [`RedisPubSubLayer`] is set up.
#[derive(Clone)]
pub struct RedisPubSubBuilder {
    host: Host,
    prefix: String,
    raw_group_names: bool,
    tls: TlsOptions,
}

pub(super) struct Inner {
    prefix: String,
    raw_group_names: bool,
    publisher: Publisher,
    pub(super) subscriber: Subscriber,
    counters: Arc<Counters>,
    /// The two tasks; aborted when this is dropped.
    _tasks: JoinSet<()>,
}

impl RedisPubSubLayer {
    /// Starts a set-up. `url` is one of the texts of [`Host`]: `redis://[[user]:password@]host[:port]`,
    /// `rediss://…` for TLS, `unix:///path`, or `redis+sentinel://host,host/name`. A database number
    /// changes nothing, as pub/sub is the same in all of them.
    pub fn builder(url: &str) -> RedisPubSubBuilder {
        let tls = TlsOptions::default();
        RedisPubSubBuilder { host: url.into(), prefix: "asgi".to_owned(), raw_group_names: false, tls }
    }

    /// Connects with all defaults; see [`RedisPubSubBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, LayerError> {
        Self::builder(url).connect().await
    }
}

impl RedisPubSubBuilder {
    /// The text before every group and channel name in Redis, `asgi` by default as in Python; all
    /// processes of a site must agree on it. At most 100 bytes.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Whether group names from [`GroupName::parse_any`] are accepted, for sites whose Python side
    /// already uses such names; off by default.
    #[must_use]
    pub fn raw_group_names(mut self, accept: bool) -> Self {
        self.raw_group_names = accept;
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

    /// Connects and returns when both directions work. Fails with the cause if Redis does not answer
    /// within 2 seconds or refuses; then nothing goes on in the background.
    pub async fn connect(self) -> Result<RedisPubSubLayer, LayerError> {
        // One attempt by hand, because the tasks would only try again and never tell.
        let target = self.target()?;
        drop(target.open("channel-layer:probe").await.map_err(LayerError::Unavailable)?);
        let layer = self.start()?;
        let both = async {
            layer.0.publisher.connected().await;
            layer.0.subscriber.ready().await
        };
        timeout(CONNECT, both).await.map_err(|_late| LayerError::Timeout)??;
        Ok(layer)
    }

    fn target(&self) -> Result<Target, LayerError> {
        match Topology::of(std::slice::from_ref(&self.host), &self.tls)? {
            Topology::Shards(targets) => match &targets[..] {
                [target] => Ok(target.clone()),
                _ => Err(LayerError::Config("several hosts are not supported yet".into())),
            },
            Topology::Cluster(_) => Err(LayerError::Config("Redis Cluster is not supported yet".into())),
        }
    }

    /// Starts without waiting: connects in the background and tries for ever. Until Redis is there,
    /// publishes fail and joins wait. Needs to be called inside a Tokio runtime.
    pub fn start(self) -> Result<RedisPubSubLayer, LayerError> {
        if self.prefix.len() > 100 || self.prefix.chars().any(char::is_control) {
            let text = "the prefix must be at most 100 bytes without control characters";
            return Err(LayerError::Config(text.into()));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(LayerError::Config("it must be started inside a Tokio runtime".into()));
        }
        let target = self.target()?;
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let (publisher, task) = Publisher::new(target.clone(), counters.clone());
        tasks.spawn(task);
        let (subscriber, task) = Subscriber::new(target, self.prefix.clone(), counters.clone());
        tasks.spawn(task);
        Ok(RedisPubSubLayer(Arc::new(Inner {
            prefix: self.prefix,
            raw_group_names: self.raw_group_names,
            publisher,
            subscriber,
            counters,
            _tasks: tasks,
        })))
    }
}

impl Inner {
    /// Whether this layer takes the group's name.
    pub(super) fn check(&self, group: &GroupName) -> Result<(), LayerError> {
        if self.raw_group_names {
            return Ok(());
        }
        Ok(group.check_strict()?)
    }

    fn group_topic(&self, group: &GroupName) -> Result<Box<[u8]>, LayerError> {
        self.check(group)?;
        Ok(topic::group(&self.prefix, group))
    }
}

#[async_trait]
impl ChannelLayer for RedisPubSubLayer {
    async fn new_channel(&self, prefix: &str) -> Result<ChannelName, LayerError> {
        let prefix = topic::channel_prefix(&self.0.prefix, prefix);
        let name = ChannelName::parse_any(&format!("{prefix}{}", name::random_hex32()))?;
        self.0.subscriber.open_channel(name.clone(), true).await?;
        Ok(name)
    }

    async fn remove_channel(&self, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.subscriber.close_channel(channel.clone()).await
    }

    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError> {
        self.0.publisher.publish(topic::channel(channel), event.to_msgpack()?).await
    }

    async fn receive(&self, channel: &ChannelName) -> Result<Event, LayerError> {
        let inbox = match self.0.subscriber.local(channel) {
            Some(inbox) => inbox,
            None => {
                self.0.subscriber.open_channel(channel.clone(), false).await?;
                self.0.subscriber.local(channel).ok_or(LayerError::Closed)?
            }
        };
        inbox.pop().await
    }

    async fn group_add(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.check(group)?;
        self.0.subscriber.join(Member::Channel(channel.clone()), vec![group.clone()]).await
    }

    async fn group_discard(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError> {
        self.0.subscriber.leave(Member::Channel(channel.clone()), vec![group.clone()]).await
    }

    async fn group_send(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        self.0.publisher.publish(self.0.group_topic(group)?, event.to_msgpack()?).await
    }

    fn group_send_later(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        self.0.publisher.publish_later(self.0.group_topic(group)?, event.to_msgpack()?)
    }

    async fn flush(&self) -> Result<(), LayerError> {
        self.0.subscriber.flush().await
    }

    async fn relay(&self, sink: Arc<dyn RelaySink>) -> Result<Relay, LayerError> {
        let own = topic::channel_prefix(&self.0.prefix, "");
        let prefix = format!("{own}{}", name::random_hex16());
        let alive = Arc::new(());
        let new = NewRelay { sink, prefix: prefix.clone(), alive: Arc::downgrade(&alive) };
        let id = self.0.subscriber.open_relay(new).await?;
        Ok(Relay::new(RedisRelay { inner: self.0.clone(), id, prefix, alive: Some(alive) }))
    }

    async fn ping(&self) -> Result<(), LayerError> {
        if !self.0.subscriber.is_ready() {
            return Err(LayerError::Unavailable("not subscribed".into()));
        }
        self.0.publisher.ping(PING).await
    }

    fn stats(&self) -> LayerStats {
        self.0.counters.snapshot()
    }
}

impl std::fmt::Debug for RedisPubSubLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisPubSubLayer")
            .field("prefix", &self.0.prefix)
            .field("ready", &self.0.subscriber.is_ready())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RedisPubSubBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisPubSubBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
