//! The layer itself: names and bytes here, the connections elsewhere.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{
    builder::RedisPubSubBuilder,
    publishers::Publishers,
    relay::RedisRelay,
    subscriber::{Member, NewRelay, Subscriber},
    topic,
};
use crate::{
    ChannelLayer, ChannelName, Event, GroupName, LayerError, LayerStats, Relay, RelaySink, codec::Codec, name,
    redis::Host, stats::Counters,
};

/// How long `ping` may take.
const PING: Duration = Duration::from_secs(2);

/// Carries events over Redis pub/sub, byte for byte as `channels_redis.pubsub.RedisPubSubChannelLayer`
/// 4.x; Django processes and Rust services share groups and channels.
///
/// Two connections to each host for a whole process, whatever the number of channels. They come back
/// by themselves; what was published meanwhile is lost, as pub/sub keeps nothing, and relays are told.
/// With several hosts each group and channel has its place on one of them, the same as in Python; all
/// processes of a site must name the same hosts in the same order. While one host is away the others
/// work as ever.
///
/// Every 10 seconds the layer publishes a message to itself through each host. One that hears none of
/// its own twice in a row makes its connections anew: a failover can leave a subscription that answers
/// and hears nothing. A server that has become a replica is left at once. Redis cuts off a subscriber that reads too slowly (`client-output-buffer-limit
/// pubsub`); it does not say so, and here it looks like any other loss: `the server closed the
/// connection` in this log, `scheduled to be closed ASAP for overcoming of output buffer limits` in the
/// server's.
///
/// On a Redis Cluster (7.0 or later; Python's layer knows none) a group is a sharded topic on the node
/// that has its slot, so that one node's groups cost the others nothing; channels are heard on all
/// nodes. There is a subscriber and a publisher for each primary. When slots move, or a replica takes a
/// dead node's place, the subscriptions follow by themselves; relays are told of the gap.
///
/// A Redis user needs the commands PUBLISH, (P)SUBSCRIBE, (P)UNSUBSCRIBE and PING, and, because a relay
/// subscribes to a pattern, all channels (`&*`); on a cluster also SPUBLISH, S(UN)SUBSCRIBE and CLUSTER. It
/// should have ROLE, or INFO: with every probe the layer asks whether the server is a primary still, because
/// what is published on a replica is heard there and by nobody else.
///
/// Nothing waits in Redis: an event for a channel nobody reads is gone. Of an inbox that already
/// holds 100 unread events the oldest is dropped. Clones share everything; with the last clone and
/// the last [`Relay`] the connections end.
#[derive(Clone)]
pub struct RedisPubSubLayer(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) prefix: String,
    pub(super) raw_group_names: bool,
    pub(super) codec: Codec,
    pub(super) publishers: Arc<Publishers>,
    pub(super) subscriber: Subscriber,
    pub(super) counters: Arc<Counters>,
    /// The publishers' tasks and the subscriber's; aborted when this is dropped.
    pub(super) _tasks: JoinSet<()>,
}

impl RedisPubSubLayer {
    /// Starts a set-up. `url` is one of the texts of [`Host`]: `redis://[[user]:password@]host[:port]`,
    /// `rediss://…` for TLS, `unix:///path`, or `redis+sentinel://host,host/name`. A database number
    /// changes nothing, as pub/sub is the same in all of them.
    pub fn builder(url: &str) -> RedisPubSubBuilder {
        Self::builder_with_hosts([url])
    }

    /// Starts a set-up with several hosts, each a text as for [`builder`](Self::builder) or a [`Host`].
    /// Their order counts: it decides where each group and channel is found, and must be the same in all
    /// processes of a site.
    pub fn builder_with_hosts(hosts: impl IntoIterator<Item: Into<Host>>) -> RedisPubSubBuilder {
        RedisPubSubBuilder::new(hosts.into_iter().map(Into::into).collect())
    }

    /// Connects with all defaults; see [`RedisPubSubBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, LayerError> {
        Self::builder(url).connect().await
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
        self.0.publishers.publish(topic::channel(channel), self.0.codec.encode(event)?).await
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
        self.0.publishers.publish(self.0.group_topic(group)?, self.0.codec.encode_for_group(event)?).await
    }

    fn group_send_later(&self, group: &GroupName, event: &Event) -> Result<(), LayerError> {
        self.0.publishers.publish_later(self.0.group_topic(group)?, self.0.codec.encode_for_group(event)?)
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
        self.0.publishers.ping(PING).await
    }

    fn set_encryption_keys(&self, keys: &[String]) -> Result<(), LayerError> {
        self.0.codec.set_keys(keys)
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
