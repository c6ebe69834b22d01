//! Which connection a topic belongs to.

use super::session::Kind;
use crate::{
    redis::pubsub::topic,
    shard::{SLOTS, shard, slot},
};

/// Where topics go. A topic's place follows from its text alone, so nobody has to remember it.
pub(super) enum Router {
    /// This many servers that know nothing of each other, as `channels_redis` spreads names over hosts.
    Shards(usize),
    Cluster(Owners),
}

/// Who has which slot of a cluster.
pub(super) struct Owners {
    /// What the topics of groups begin with; these are sharded.
    groups: Vec<u8>,
    /// The link of each slot; `NOBODY` while it is not known.
    links: Box<[u16]>,
}

const NOBODY: u16 = u16::MAX;

impl Owners {
    fn link_of(&self, topic: &[u8]) -> Option<usize> {
        let link = self.links.get(usize::from(slot(topic))).filter(|link| **link != NOBODY);
        link.map(|link| usize::from(*link))
    }
}

impl Router {
    /// A cluster of which nothing is known yet.
    pub(super) fn cluster(prefix: &str) -> Self {
        let groups = topic::group_prefix(prefix).into_bytes();
        Self::Cluster(Owners { groups, links: vec![NOBODY; usize::from(SLOTS)].into() })
    }

    /// The same cluster with other owners: the link of each slot.
    pub(super) fn with_owners(&self, link: impl Fn(u16) -> Option<usize>) -> Self {
        match self {
            Self::Shards(count) => Self::Shards(*count),
            Self::Cluster(owners) => {
                let links = (0..SLOTS).map(|slot| link(slot).and_then(|at| u16::try_from(at).ok()).unwrap_or(NOBODY));
                Self::Cluster(Owners { groups: owners.groups.clone(), links: links.collect() })
            }
        }
    }

    /// The link of a topic; `None` while it is not known.
    pub(super) fn link_of(&self, topic: &[u8]) -> Option<usize> {
        match self {
            Self::Shards(count) => Some(shard(topic, *count)),
            Self::Cluster(owners) => owners.link_of(topic),
        }
    }

    pub(super) fn kind_of(&self, topic: &[u8]) -> Kind {
        match self {
            Self::Cluster(owners) if topic.starts_with(&owners.groups) => Kind::Sharded,
            _ => Kind::Plain,
        }
    }

    /// Whether a relay's pattern belongs on a link. Any of several hosts may be sent something for it; a
    /// cluster tells all its nodes, so that one of them is enough and two would be one too many.
    pub(super) fn has_pattern(&self, pattern: &[u8], at: usize) -> bool {
        match self {
            Self::Shards(_) => true,
            Self::Cluster(_) => self.link_of(pattern) == Some(at),
        }
    }

    /// Whether a message heard on a link is to be taken. In a cluster a topic that has moved may be heard
    /// from its old place too.
    pub(super) fn takes(&self, topic: &[u8], at: usize) -> bool {
        match self {
            // There is no subscription anywhere else.
            Self::Shards(_) => true,
            Self::Cluster(_) => self.link_of(topic) == Some(at),
        }
    }

    /// The same for a message that matched a pattern. Hosts may be one server under several names: it is
    /// heard on each, and counts once.
    pub(super) fn takes_matched(&self, pattern: &[u8], topic: &[u8], at: usize) -> bool {
        match self {
            Self::Shards(_) => self.link_of(topic) == Some(at),
            Self::Cluster(_) => self.link_of(pattern) == Some(at),
        }
    }

    /// Whether anything has a place.
    pub(super) fn is_known(&self) -> bool {
        match self {
            Self::Shards(_) => true,
            Self::Cluster(owners) => owners.links.iter().any(|link| *link != NOBODY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_a_cluster_go_where_their_slot_is() {
        let router = Router::cluster("asgi");
        assert_eq!((router.link_of(b"foo"), router.is_known()), (None, false));
        // Slot 12182.
        let router = router.with_owners(|slot| (slot >= 12_000).then_some(usize::from(slot > 13_000)));
        assert_eq!((router.link_of(b"foo"), router.is_known()), (Some(0), true));
        assert!(router.takes(b"foo", 0) && !router.takes(b"foo", 1));
        assert!(router.has_pattern(b"foo", 0) && !router.has_pattern(b"foo", 1));
        assert!(router.takes_matched(b"foo", b"anything", 0) && !router.takes_matched(b"foo", b"anything", 1));
        // Slot 5061.
        assert_eq!(router.link_of(b"bar"), None);
        assert_eq!(router.kind_of(b"asgi__group__room"), Kind::Sharded);
        assert_eq!(router.kind_of(b"asgispecific.1"), Kind::Plain);
    }

    #[test]
    fn a_message_heard_from_several_hosts_counts_once() {
        let router = Router::Shards(3);
        let topic = b"asgispecific.0123456789abcdef0123456789abcdef";
        let taken: Vec<usize> = (0..3).filter(|at| router.takes_matched(b"asgi*", topic, *at)).collect();
        assert_eq!(taken, [router.link_of(topic).unwrap()]);
        assert!((0..3).all(|at| router.has_pattern(b"asgi*", at)));
    }
}
