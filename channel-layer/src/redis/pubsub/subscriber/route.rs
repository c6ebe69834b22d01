//! Which connection a topic belongs to.

use super::session::Kind;
use crate::shard::shard;

/// Where topics go. A topic's place follows from its text alone, so nobody has to remember it.
pub(super) enum Router {
    /// This many servers that know nothing of each other, as `channels_redis` spreads names over hosts.
    Shards(usize),
}

impl Router {
    /// The link of a topic; `None` while it is not known.
    pub(super) fn link_of(&self, topic: &[u8]) -> Option<usize> {
        match self {
            Self::Shards(count) => Some(shard(topic, *count)),
        }
    }

    pub(super) fn kind_of(&self, _topic: &[u8]) -> Kind {
        match self {
            Self::Shards(_) => Kind::Plain,
        }
    }
}
