//! The contract: what every channel layer does, whatever carries its events.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{ChannelName, Event, GroupName, LayerError};

/// Carries events between the processes of a site. Object-safe; share it as `Arc<dyn ChannelLayer>`.
///
/// Delivery is at most once: when in doubt an event is lost, never doubled.
#[async_trait]
pub trait ChannelLayer: Send + Sync + 'static {
    /// Opens a channel only this process reads and returns its name. An empty `prefix` means the
    /// layer's default (`specific`). Events sent after this has returned are heard. The channel lives
    /// until [`remove_channel`](Self::remove_channel).
    async fn new_channel(&self, prefix: &str) -> Result<ChannelName, LayerError>;

    /// Ends a channel of this process: it leaves its groups and forgets what nobody has read.
    /// Whoever waits on it gets [`LayerError::Closed`]. An unknown channel is fine.
    async fn remove_channel(&self, channel: &ChannelName) -> Result<(), LayerError>;

    /// Sends an event to one channel. Never waits for room: a layer with capacities answers
    /// [`LayerError::ChannelFull`]. A channel nobody reads swallows the event.
    async fn send(&self, channel: &ChannelName, event: &Event) -> Result<(), LayerError>;

    /// Waits for the next event of a channel. Several waiters share its events. Dropping the future
    /// loses nothing.
    async fn receive(&self, channel: &ChannelName) -> Result<Event, LayerError>;

    /// Adds a channel to a group. Events sent to the group after this has returned are heard.
    /// Adding again is fine.
    async fn group_add(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError>;

    /// Takes a channel out of a group. Not being a member is fine.
    async fn group_discard(&self, group: &GroupName, channel: &ChannelName) -> Result<(), LayerError>;

    /// Sends an event to every member of a group, on every process. Members without room miss it.
    async fn group_send(&self, group: &GroupName, event: &Event) -> Result<(), LayerError>;

    /// Like [`group_send`](Self::group_send), but only queues the event and returns at once; events
    /// leave in the order of the calls, both forms together, and a [`ping`](Self::ping) returns behind
    /// them. Fails when the queue is full or the layer is disconnected; what fails then or later is
    /// counted in [`LayerStats::publish_failed`].
    fn group_send_later(&self, group: &GroupName, event: &Event) -> Result<(), LayerError>;

    /// Forgets all unread events and all groups, as far as this layer object knows them. The layer
    /// stays usable.
    async fn flush(&self) -> Result<(), LayerError>;

    /// Makes one owner for a whole process: it joins each group once and fans out itself. If the
    /// server is away the relay starts all the same: the sink hears [`Delivery::Disconnected`] at
    /// once and [`Delivery::Reconnected`] when the server is there. The layer keeps the sink, so a sink
    /// that keeps the [`Relay`] keeps both for ever.
    async fn relay(&self, sink: Arc<dyn RelaySink>) -> Result<Relay, LayerError>;

    /// Whether events can travel both ways right now. Answers within 2 seconds.
    async fn ping(&self) -> Result<(), LayerError>;

    /// Leaves all groups, as a process does that ends on purpose; the others need not find out. The layer
    /// is not to be used afterwards. Not calling it loses nothing but tidiness.
    async fn close(&self) -> Result<(), LayerError> {
        Ok(())
    }

    /// Encrypts events with the first of these keys from now on, and reads with all of them. Fails where the layer has no
    /// encryption, or cannot end it: all processes of a site must agree on whether there is any.
    fn set_encryption_keys(&self, keys: &[String]) -> Result<(), LayerError> {
        match keys.is_empty() {
            true => Ok(()),
            false => Err(LayerError::Config("this layer does not encrypt".to_owned())),
        }
    }

    /// Counters since the layer was made.
    fn stats(&self) -> LayerStats;
}

/// Where a [`Relay`] delivers.
pub trait RelaySink: Send + Sync + 'static {
    /// Takes everything that was ready at once, in order. Runs on the layer's reader, so it must not
    /// block: what it keeps it queues. What it leaves in `batch` is thrown away.
    fn deliver(&self, batch: &mut Vec<Delivery>);
}

/// What a [`RelaySink`] is given.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// An event for a group the relay has joined; decoded once, shared by everyone who hears it.
    Group {
        /// The group it was sent to.
        group: GroupName,
        /// The event.
        event: Arc<Event>,
    },
    /// An event for one of the relay's own channels.
    Channel {
        /// A name made by [`Relay::new_channel`].
        channel: ChannelName,
        /// The event.
        event: Arc<Event>,
    },
    /// The connection is gone; from here on events are missed.
    Disconnected,
    /// All subscriptions are restored; what was sent since [`Delivery::Disconnected`] may be missing.
    Reconnected(Missed),
}

/// What may be missing after an outage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missed {
    /// How long not everything was there.
    pub away: Duration,
    /// The groups whose events may be missing, in no order. The relay's other groups were heard all the
    /// time.
    pub groups: Arc<[GroupName]>,
}

/// A process's handle on its relay. When the last clone is dropped its subscriptions end.
#[derive(Clone)]
pub struct Relay(Arc<dyn RelayBackend>);

impl Relay {
    /// For authors of layers. The relay ends when the backend is dropped.
    pub fn new(backend: impl RelayBackend) -> Self {
        Self(Arc::new(backend))
    }

    /// Makes a channel name that leads to this relay, at once and without asking the server.
    pub fn new_channel(&self) -> ChannelName {
        self.0.new_channel()
    }

    /// Joins groups, all of them in one command; events sent after this has returned are heard. All
    /// or nothing; groups joined before stay joined. While the server is away it waits up to 5
    /// seconds and then fails. If the future is dropped the groups may have been joined: leave them.
    pub async fn join(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        self.0.join(groups).await
    }

    /// Leaves groups. Not being a member is fine. When it has returned, no event of theirs that
    /// arrives later is delivered.
    pub async fn leave(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        self.0.leave(groups).await
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Relay")
    }
}

/// What stands behind a [`Relay`]; for authors of layers. Its subscriptions end when it is dropped.
#[async_trait]
pub trait RelayBackend: Send + Sync + 'static {
    /// See [`Relay::new_channel`].
    fn new_channel(&self) -> ChannelName;
    /// See [`Relay::join`].
    async fn join(&self, groups: &[GroupName]) -> Result<(), LayerError>;
    /// See [`Relay::leave`].
    async fn leave(&self, groups: &[GroupName]) -> Result<(), LayerError>;
}

/// Counters of one layer object since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerStats {
    /// Events handed to the server, or delivered in memory.
    pub published: u64,
    /// Events that could not be handed over, whether or not somebody waited for the answer.
    pub publish_failed: u64,
    /// Payloads that arrived and were for somebody here.
    pub received: u64,
    /// Events thrown away because an inbox was full.
    pub dropped: u64,
    /// Payloads that could not be decoded; each was skipped.
    pub undecodable: u64,
    /// Times everything was restored after a loss.
    pub reconnects: u64,
    /// Events thrown away because they had waited too long for a reader.
    pub expired: u64,
    /// Times a member's queue was full when something was sent to its group.
    pub over_capacity: u64,
    /// Times an event arrived for a channel that nobody here has (any more).
    pub unclaimed: u64,
    /// Messages the layer published to itself and did not hear; two in a row make it connect anew.
    pub probes_missed: u64,
    /// Times the server refused what the layer does by itself: renewing memberships, removing those of the dead.
    pub upkeep_refused: u64,
}
