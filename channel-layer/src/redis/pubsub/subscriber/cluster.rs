//! What the task does for a cluster: follows its map, so that every topic is subscribed where its slot is.

use tokio::time::Instant;

use super::{
    link::Link,
    probe::Probe,
    registry::{Changes, Topic},
    route::Router,
    session::Kind,
    task::Task,
};
use crate::{
    name,
    redis::{
        pubsub::topic,
        refusal::ErrorClass::{self, Failover, Moved, Retryable},
    },
};

/// How many random topics are tried to find one that belongs to a node.
const TRIES: usize = 4_096;

impl Task {
    /// Looks whether the map has changed, and asks again for what was refused under the old one.
    pub(super) fn look_at_map(&mut self) {
        let Some(mapper) = &mut self.mapper else { return };
        let changed = mapper.has_changed();
        let again = std::mem::take(&mut mapper.again);
        if changed {
            self.remap();
        }
        let again: Vec<Topic> = again.into_iter().filter(|topic| self.registry.wants(topic)).collect();
        self.ask_for(again);
        self.place_probes();
        self.settle();
    }

    /// Takes over a new map: connects to new nodes, leaves those that serve nothing any more, and moves
    /// every subscription whose slot has another owner.
    fn remap(&mut self) {
        let Some(mapper) = &self.mapper else { return };
        let (cluster, links) = (&mapper.cluster, &mut self.links);
        let nodes = cluster.nodes();
        if nodes.is_empty() {
            return;
        }
        let places: Vec<usize> = nodes
            .iter()
            .map(|node| {
                links.named(&node.to_string(), || {
                    // `place_probes` gives it a topic.
                    let probe = Probe::new(Topic::default(), Kind::Sharded, self.probe_every);
                    Link::new(node.to_string(), cluster.target(node), probe)
                })
            })
            .collect();
        let router = links.router().with_owners(|slot| {
            let owner = cluster.node_of(slot)?;
            nodes.iter().position(|node| *node == owner).and_then(|at| places.get(at).copied())
        });
        let old = links.reroute(router);
        for at in 0..links.count() {
            match links.get(at) {
                Some(link) if places.contains(&at) => link.wake(),
                Some(link) => link.rest(),
                None => {}
            }
        }
        let new = self.links.router();
        let moved = |topic: &[u8]| old.link_of(topic) != new.link_of(topic);
        let (topics, mut patterns) = self.registry.everything(moved);
        patterns.retain(|(_, pattern)| moved(pattern));
        tracing::info!(nodes = nodes.len(), moved = topics.len(), "the cluster has a new map");
        if topics.is_empty() && patterns.is_empty() {
            return;
        }
        // Something may be missed on the way.
        self.registry.disconnected(moved);
        self.ready.send_replace(false);
        self.leave(&old, topics.clone(), &patterns);
        for (relay, pattern) in &patterns {
            let sessions = self.links.with_pattern(pattern);
            sessions.for_each(|session| session.psubscribe(*relay, pattern));
        }
        self.ask_for(topics);
        for at in 0..self.links.count() {
            let has_pattern = patterns.iter().any(|(_, pattern)| self.links.router().has_pattern(pattern, at));
            if let Some(link) = self.links.get(at).filter(|_| has_pattern) {
                link.await_again();
            }
        }
    }

    /// Unsubscribes from where things were.
    fn leave(&mut self, old: &Router, topics: Vec<Topic>, patterns: &[(u64, Vec<u8>)]) {
        self.links.unsubscribe(Some(old), topics);
        for (_, pattern) in patterns {
            let session = old.link_of(pattern).and_then(|at| self.links.get(at)).and_then(Link::session);
            if let Some(session) = session {
                session.punsubscribe(pattern);
            }
        }
    }

    fn ask_for(&mut self, topics: Vec<Topic>) {
        for at in self.links.subscribe(topics) {
            if let Some(link) = self.links.get(at) {
                link.await_again();
            }
        }
    }

    /// Gives every link a probe whose topic belongs to it.
    fn place_probes(&mut self) {
        let now = Instant::now();
        for at in 0..self.links.count() {
            let router = self.links.router();
            let fits = |topic: &[u8]| !topic.is_empty() && router.link_of(topic) == Some(at);
            let found = || {
                let names = std::iter::repeat_with(|| {
                    let prefix = topic::group_prefix(&self.prefix);
                    Topic::from(format!("{prefix}specific.{}", name::random_hex32()).into_bytes())
                });
                names.take(TRIES).find(|topic| fits(topic))
            };
            let Some(link) = self.links.peek(at).filter(|link| !link.is_idle()) else { continue };
            if fits(&link.probe.topic) && link.probe.is_allowed() {
                continue;
            }
            let found = found();
            if let Some(link) = self.links.get(at) {
                match found {
                    Some(topic) => link.change_probe(topic, now),
                    None => link.probe.allow(false),
                }
            }
        }
    }

    /// Whether a refusal only means that the map is out of date, or that the cluster is not well just now.
    /// Then the topic is asked for again.
    pub(super) fn is_misplaced(&mut self, topic: &Topic, why: &str) -> bool {
        let Some(mapper) = &mut self.mapper else { return false };
        if !matches!(ErrorClass::of(why), Moved | Failover | Retryable) {
            return false;
        }
        mapper.again.push(topic.clone());
        mapper.doubt();
        true
    }

    /// A node has ended a subscription by itself; `false` if that can not be.
    pub(super) fn has_moved(&mut self, at: usize, topic: &Topic) -> bool {
        let Some(mapper) = &mut self.mapper else { return false };
        mapper.doubt();
        if self.links.router().takes(topic, at) && self.registry.ended(topic) {
            mapper.again.push(topic.clone());
            self.ready.send_replace(false);
        }
        true
    }

    /// Asks for a better map if a topic has no place.
    pub(super) fn notice_homeless(&mut self, changes: &Changes) {
        if let Some(mapper) = &mut self.mapper
            && changes.subscribe.iter().any(|topic| self.links.router().link_of(topic).is_none())
        {
            mapper.ask();
        }
    }

    /// Whether everything that is wanted has a place, and nothing is to be asked for again.
    pub(super) fn is_placed(&self) -> bool {
        let Some(mapper) = &self.mapper else { return true };
        let router = self.links.router();
        let (homeless, patterns) = self.registry.everything(|topic| router.link_of(topic).is_none());
        mapper.again.is_empty()
            && homeless.is_empty()
            && patterns.iter().all(|(_, pattern)| router.link_of(pattern).is_some())
    }
}
