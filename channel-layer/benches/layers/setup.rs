//! What a worker is told: the same for both languages.

use serde_json::{Value, json};

pub(crate) const GROUP: &str = "bench";
/// So many callers wait for their own send at the same time.
pub(crate) const CALLERS: usize = 16;
/// The core layer's capacity: no queue is to be full while a burst is under way.
pub(crate) const CAPACITY: usize = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Core,
    PubSub,
}

/// Who sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// This crate, one relay for the whole process.
    Relay,
    /// This crate, one channel with a task that receives for each member, as in Python.
    Channels,
    /// `channels_redis`.
    Python,
}

/// What is sent, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `group_send`, each caller waiting for Redis.
    Group,
    /// `group_send_later`.
    Later,
    /// `send` to one channel.
    Direct,
}

/// One measurement of one peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) layer: Layer,
    pub(crate) peer: Peer,
    pub(crate) kind: Kind,
    pub(crate) members: usize,
    pub(crate) callers: usize,
}

impl Layer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::PubSub => "pubsub",
        }
    }
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relay => "Rust, relay",
            Self::Channels => "Rust, channels",
            Self::Python => "Python",
        }
    }
}

impl Setup {
    /// The worker's only argument.
    pub(crate) fn argument(&self, role: &str, url: &str, prefix: &str, channel: &str) -> Value {
        json!({
            "role": role,
            "layer": self.layer.name(),
            "url": url,
            "prefix": prefix,
            "channel": channel,
            "relay": self.peer == Peer::Relay,
            "kind": match self.kind {
                Kind::Group => "group",
                Kind::Later if role == "receiver" => "group",
                Kind::Later => "later",
                Kind::Direct => "direct",
            },
            "members": self.members,
            "callers": self.callers,
            "capacity": CAPACITY,
            // A chat message of usual length.
            "event": {
                "type": "chat.message",
                "message": "The quick brown fox jumps over the lazy dog, and the dog sleeps on as if nothing had happened.",
                "from_user": "alice",
                "group_name": "lobby",
                "seq": 123_456,
                "sent_at": 1_700_000_000.25,
            },
        })
    }

    /// How many events may be under way: our pub/sub inboxes drop the oldest beyond 100.
    pub(crate) fn burst(&self) -> usize {
        match (self.layer, self.peer) {
            (Layer::PubSub, Peer::Channels) => 64,
            _ => 100_000,
        }
    }
}
